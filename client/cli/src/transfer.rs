//! Many files at once: a bounded number at a time, failures counted and shown, progress drawn, a summary at the end.

use std::collections::HashSet;
use std::future::Future;
use std::time::{Duration, Instant};

use cairn_client::Counter;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::failure::{Exit, Failure};
use crate::output::{Output, count, describe, shown, size, to_stderr};

/// Files found and not yet begun: enough to keep all workers busy, few enough to forget about their memory.
const FOUND_AHEAD: usize = 1_024;
/// Failures that a summary names; further ones are only counted.
const MAX_NAMED: usize = 1_000;
const TICK: Duration = Duration::from_millis(100);
const SHARE: &str = "{spinner} {msg}  {bytes} of {total_bytes}  {bytes_per_sec}  {wide_bar} {percent}%";
const OPEN_END: &str = "{spinner} {msg}  {bytes}  {bytes_per_sec}";

/// What looking for files brings to light.
pub enum Found<T> {
    /// A file, its size if known, and what to do with it.
    File { path: String, size_bytes: Option<u64>, task: T },
    /// Something that is left out on purpose.
    Skipped { path: String, reason: &'static str },
    /// A file that cannot be had; the others can.
    Failed { path: String, failure: Failure },
    /// Looking itself failed.
    Broken(Failure),
}

/// What came of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Moved {
        bytes: u64,
    },
    /// The same was there already.
    Unchanged {
        size_bytes: u64,
    },
}

pub type Finder<T> = mpsc::Sender<Found<T>>;

/// Starts a search: what it finds waits in a bounded queue.
pub fn queue<T>() -> (Finder<T>, mpsc::Receiver<Found<T>>) {
    mpsc::channel(FOUND_AHEAD)
}

/// What came of it all.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    pub files: u64,
    pub bytes: u64,
    pub seconds: f64,
    /// Files that were passed over because the same was there already.
    pub unchanged: u64,
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<FailedFile>,
    /// What is not a file, and so was left out.
    pub left_out: u64,
    /// The first of it.
    pub skipped: Vec<SkippedFile>,
    /// Of one file: how long ago it was known to be as it was given; absent: it is so now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_ms: Option<u64>,
    /// Why the rest was not tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Failure>,
}

#[derive(Debug, Serialize)]
pub struct FailedFile {
    pub path: String,
    #[serde(flatten)]
    pub failure: Failure,
}

#[derive(Debug, Serialize)]
pub struct SkippedFile {
    pub path: String,
    pub reason: &'static str,
}

/// How a transfer is done and shown.
pub struct Transfer<'a> {
    pub output: &'a Output,
    pub jobs: usize,
    /// Past tense: "uploaded".
    pub verb: &'static str,
    /// One file was named, so its failure is the command's.
    pub single: bool,
    /// Counts the bytes for the progress bar.
    pub counter: Counter,
    /// Whether bytes are moved at all, and worth a mention.
    pub has_bytes: bool,
}

struct Running<'a> {
    transfer: &'a Transfer<'a>,
    bar: Option<ProgressBar>,
    began: Instant,
    found_files: u64,
    found_bytes: u64,
    /// Something of unknown size is on its way: no share of a whole can be shown.
    open_end: bool,
    failures_in_a_row: usize,
    /// Advice that was given already.
    helps: HashSet<String>,
    summary: Summary,
}

impl Transfer<'_> {
    /// Does `work` for everything found.
    pub async fn run<T, F, Fut>(&self, mut found: mpsc::Receiver<Found<T>>, work: F) -> Summary
    where
        F: Fn(T) -> Fut,
        Fut: Future<Output = Result<Done, Failure>> + Send + 'static,
    {
        let mut running = Running::begin(self);
        let mut tasks: JoinSet<(String, Result<Done, Failure>)> = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        let mut searching = true;
        while (searching || !tasks.is_empty()) && running.summary.stopped.is_none() {
            tokio::select! {
                next = found.recv(), if searching && tasks.len() < self.jobs => match next {
                    Some(Found::File { path, size_bytes, task }) => {
                        running.found(size_bytes);
                        let doing = work(task);
                        tasks.spawn(async move { (path, doing.await) });
                    }
                    Some(other) => running.note(other),
                    None => searching = false,
                },
                Some(done) = tasks.join_next() => match done {
                    Ok((path, outcome)) => running.done(path, outcome),
                    Err(error) => {
                        let failure = Failure::local(format!("a transfer crashed: {error}"), "report this");
                        running.done(String::new(), Err(failure));
                    }
                },
                _ = tick.tick() => running.draw(),
            }
        }
        running.finish()
    }

    /// Prints the summary, and turns it into the end of the command.
    pub fn conclude(&self, summary: Summary) -> Result<Exit, Failure> {
        if self.single && summary.files == 0 && summary.failed == 1 && summary.stopped.is_none() {
            return match summary.failures.into_iter().next() {
                Some(failed) => Err(failed.failure),
                None => Ok(Exit::Failed),
            };
        }
        if summary.files + summary.failed > 0 || summary.stopped.is_none() {
            self.output.done(&summary, || self.describe(&summary));
        }
        match summary.stopped {
            Some(failure) => Err(failure),
            None if summary.failed > 0 => Ok(Exit::Partial),
            None => Ok(Exit::Ok),
        }
    }

    fn describe(&self, summary: &Summary) -> String {
        let mut text = format!("{} {}", self.verb, count(summary.files, "file"));
        if self.has_bytes {
            text += &format!(", {} in {:.1} s", size(summary.bytes), summary.seconds);
            // Of little content only the waiting would be measured.
            if summary.bytes >= 1 << 20 {
                text += &format!(" ({}/s)", size((summary.bytes as f64 / summary.seconds.max(0.001)) as u64));
            }
        }
        if summary.failed > 0 {
            text += &format!("; {} failed", summary.failed);
        }
        if summary.unchanged > 0 {
            text += &format!("; skipped {}, there already", count(summary.unchanged, "file"));
        }
        if summary.left_out > 0 {
            text += &format!("; left out {} that are no files", summary.left_out);
        }
        text + "\n"
    }
}

impl<'a> Running<'a> {
    fn begin(transfer: &'a Transfer<'a>) -> Self {
        let bar = transfer.output.shows_progress().then(|| {
            ProgressBar::new(0).with_style(style(if transfer.has_bytes { SHARE } else { "{spinner} {msg}" }))
        });
        Self {
            transfer,
            bar,
            began: Instant::now(),
            found_files: 0,
            found_bytes: 0,
            open_end: false,
            failures_in_a_row: 0,
            helps: HashSet::new(),
            summary: Summary::default(),
        }
    }

    fn found(&mut self, size_bytes: Option<u64>) {
        self.found_files += 1;
        self.found_bytes += size_bytes.unwrap_or(0);
        if size_bytes.is_none() && self.transfer.has_bytes && !self.open_end {
            self.open_end = true;
            if let Some(bar) = &self.bar {
                bar.set_style(style(OPEN_END));
            }
        }
    }

    fn note<T>(&mut self, found: Found<T>) {
        match found {
            Found::File { .. } => {}
            Found::Skipped { path, reason } => {
                self.print(|output| output.warning(&format!("{path}: left out, {reason}")));
                self.summary.left_out += 1;
                if self.summary.skipped.len() < MAX_NAMED {
                    self.summary.skipped.push(SkippedFile { path, reason });
                }
            }
            Found::Failed { path, failure } => self.failed(path, failure),
            Found::Broken(failure) => self.summary.stopped = Some(failure),
        }
    }

    fn done(&mut self, path: String, outcome: Result<Done, Failure>) {
        match outcome {
            Ok(Done::Moved { bytes }) => {
                self.failures_in_a_row = 0;
                self.summary.files += 1;
                self.summary.bytes += bytes;
            }
            Ok(Done::Unchanged { size_bytes }) => {
                self.failures_in_a_row = 0;
                self.summary.unchanged += 1;
                // Nothing of it is to be moved.
                self.found_bytes = self.found_bytes.saturating_sub(size_bytes);
            }
            Err(failure) => {
                self.failures_in_a_row += 1;
                let cluster_is_away = failure.exit == Exit::Unavailable
                    && self.failures_in_a_row >= self.transfer.jobs.max(4)
                    && !self.transfer.single;
                if failure.hits_all || cluster_is_away {
                    self.summary.stopped = Some(failure.clone());
                }
                self.failed(path, failure);
            }
        }
    }

    fn failed(&mut self, path: String, failure: Failure) {
        self.summary.failed += 1;
        // A single file's failure, or one that ends everything, is printed at the end.
        if !self.transfer.single && self.summary.stopped.is_none() && !self.transfer.output.is_json() {
            let text = describe(&path, &failure);
            // What to do is said once, not under each of a thousand names.
            let is_new = self.helps.insert(failure.help.clone());
            let text =
                if is_new { text.as_str() } else { text.split_inclusive('\n').next().unwrap_or_default() };
            self.print(|_| to_stderr(text));
        }
        if self.summary.failures.len() < MAX_NAMED {
            self.summary.failures.push(FailedFile { path, failure });
        }
    }

    fn print(&self, print: impl FnOnce(&Output)) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print(self.transfer.output)),
            None => print(self.transfer.output),
        }
    }

    fn draw(&self) {
        let Some(bar) = &self.bar else { return };
        // Before the first file is known there is nothing to show a share of.
        if self.found_files == 0 {
            return;
        }
        if !self.open_end {
            bar.set_length(self.found_bytes.max(1));
        }
        bar.set_position(self.transfer.counter.get());
        let done = self.summary.files + self.summary.unchanged;
        bar.set_message(shown(&format!("{done} of {}", count(self.found_files, "file"))));
        bar.tick();
    }

    fn finish(mut self) -> Summary {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.summary.seconds = (self.began.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0;
        self.summary
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::args::Format;

    fn transfer(output: &Output, jobs: usize) -> Transfer<'_> {
        Transfer { output, jobs, verb: "moved", single: false, counter: Counter::default(), has_bytes: true }
    }

    fn queued(tasks: Vec<usize>) -> mpsc::Receiver<Found<usize>> {
        let (finder, found) = queue();
        for task in tasks {
            let file = Found::File { path: task.to_string(), size_bytes: Some(1), task };
            assert!(finder.try_send(file).is_ok());
        }
        found
    }

    #[tokio::test]
    async fn at_most_so_many_run_at_once_and_all_are_done() {
        let output = Output::new(Format::Json, true);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let summary = transfer(&output, 4)
            .run(queued((0..50).collect()), |_| {
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                async move {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(Done::Moved { bytes: 10 })
                }
            })
            .await;
        assert_eq!((summary.files, summary.bytes, summary.failed), (50, 500, 0));
        assert_eq!(most.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn one_failure_does_not_stop_the_others() {
        let output = Output::new(Format::Json, true);
        let transfer = transfer(&output, 4);
        let work = |task: usize| async move {
            match task % 10 {
                3 => Err(Failure::local("broken", "mend it")),
                _ => Ok(Done::Moved { bytes: 1 }),
            }
        };
        let summary = transfer.run(queued((0..50).collect()), work).await;
        assert_eq!((summary.files, summary.failed), (45, 5));
        assert_eq!(transfer.conclude(summary).unwrap(), Exit::Partial);
    }

    #[tokio::test]
    async fn what_is_there_already_is_told_from_what_was_moved() {
        let output = Output::new(Format::Json, true);
        let transfer = transfer(&output, 4);
        let (finder, found) = queue();
        for task in 0..6 {
            let file = Found::File { path: task.to_string(), size_bytes: Some(5), task };
            assert!(finder.try_send(file).is_ok());
        }
        for link in ["x", "y"] {
            let link = Found::Skipped { path: link.into(), reason: "it is a symbolic link" };
            assert!(finder.try_send(link).is_ok());
        }
        drop(finder);
        let work = |task: u64| async move {
            Ok(if task < 2 { Done::Moved { bytes: 5 } } else { Done::Unchanged { size_bytes: 5 } })
        };
        let summary = transfer.run(found, work).await;
        assert_eq!((summary.files, summary.bytes, summary.unchanged, summary.left_out), (2, 10, 4, 2));
        let text = transfer.describe(&summary);
        assert!(text.starts_with("moved 2 files, 10 B in "), "{text}");
        assert!(text.ends_with("; skipped 4 files, there already; left out 2 that are no files\n"), "{text}");
        assert_eq!(transfer.conclude(summary).unwrap(), Exit::Ok);
    }

    #[tokio::test]
    async fn what_hits_all_files_stops_at_once() {
        let output = Output::new(Format::Json, true);
        let transfer = transfer(&output, 2);
        let work = |_| async { Err(Failure { hits_all: true, ..Failure::local("no token", "give one") }) };
        let summary = transfer.run(queued((0..50).collect()), work).await;
        assert!(summary.failed <= 2);
        assert_eq!(transfer.conclude(summary).unwrap_err().cause, "no token");
    }

    #[tokio::test]
    async fn a_cluster_that_is_away_is_not_asked_a_thousand_times() {
        let output = Output::new(Format::Json, true);
        let transfer = transfer(&output, 2);
        let work = |_| async { Err(Failure::unavailable("away", "try later")) };
        let summary = transfer.run(queued((0..500).collect()), work).await;
        assert!(summary.failed < 10, "{}", summary.failed);
        assert_eq!(transfer.conclude(summary).unwrap_err().exit, Exit::Unavailable);
    }

    #[tokio::test]
    async fn the_failure_of_a_single_file_is_the_commands() {
        let output = Output::new(Format::Json, true);
        let transfer = Transfer { single: true, ..transfer(&output, 1) };
        let work = |_| async { Err(Failure::not_found("gone", "look")) };
        let summary = transfer.run(queued(vec![1]), work).await;
        assert_eq!(transfer.conclude(summary).unwrap_err().exit, Exit::NotFound);
    }
}
