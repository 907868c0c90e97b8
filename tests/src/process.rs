//! Child processes of tests: logged to a file, ended with the test, even when the test is killed.
//!
//! A child is asked to die with its parent (`PR_SET_PDEATHSIG`). The kernel ties that to the *thread* that forked, and
//! tests run on threads that come and go, so every child is forked by one thread that lives as long as the process.
//! Each child also gets its own process group: Ctrl-C on a terminal reaches the test, which then ends its children in order.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender, SyncSender};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::mounts::View;

/// Runs its arguments with a standard error of which somebody takes one line and goes away.
const UNREAD: &str = r#"pipe=$(mktemp -u) && mkfifo "$pipe" || exit
head -n 1 <"$pipe" >/dev/null &
exec 2>"$pipe"
rm "$pipe"
exec "$@"
"#;

/// What to run, where its output goes, and in which network namespace.
#[derive(Debug)]
pub struct Spec {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    clear_env: bool,
    without: Option<&'static str>,
    folder: Option<PathBuf>,
    log: Option<PathBuf>,
    shown: bool,
    netns: Option<PathBuf>,
    view: View,
}

impl Spec {
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            clear_env: false,
            without: None,
            folder: None,
            log: None,
            shown: false,
            netns: None,
            view: View::Same,
        }
    }

    /// Of what it says on its standard error, nobody takes more than a line.
    pub fn unread(mut self) -> Self {
        let program = std::mem::replace(&mut self.program, "sh".into());
        let shell = ["-c".into(), UNREAD.into(), "sh".into(), program.into_os_string()];
        self.args.splice(0..0, shell);
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts from an empty environment, so that only what [`Spec::env`] says counts.
    pub fn clear_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Keeps variables of the caller's environment whose names begin so from the process.
    pub fn without_env(mut self, prefix: &'static str) -> Self {
        self.without = Some(prefix);
        self
    }

    /// The folder that the process starts in.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Where standard output and error go (appended). Without it they go nowhere.
    pub fn log(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// Standard output and error are ours, not a log.
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    /// The network namespace to enter first, as a file such as `/run/netns/NAME`. Needs root.
    pub fn netns(mut self, netns: Option<PathBuf>) -> Self {
        self.netns = netns;
        self
    }

    /// Which files the process sees. Another view than ours starts in `/`.
    pub fn view(mut self, view: View) -> Self {
        self.view = view;
        self
    }

    pub fn spawn(self) -> io::Result<Process> {
        self.spawn_with(None)
    }

    fn spawn_with(self, files: Option<Redirect>) -> io::Result<Process> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null()).process_group(0);
        if self.clear_env {
            command.env_clear();
        }
        if let Some(prefix) = self.without {
            let begins_so = |name: &OsString| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            let names = std::env::vars_os().map(|(name, _)| name).filter(begins_so);
            names.for_each(|name| _ = command.env_remove(name));
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        match (&self.log, files) {
            (_, Some(files)) => {
                command.stdin(files.stdin).stdout(files.stdout).stderr(files.stderr);
            }
            (Some(path), None) => {
                let log = OpenOptions::new().create(true).append(true).open(path)?;
                command.stdout(log.try_clone()?).stderr(log);
            }
            (None, None) if self.shown => {}
            (None, None) => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        let netns = self.netns.as_ref().map(File::open).transpose()?.map(OwnedFd::from);
        let parent = std::process::id() as i32;
        let view = self.view.prepare()?;
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || prepare_child(parent, netns.as_ref()).and_then(|()| view.enter()));
        }
        let child = fork_on_lasting_thread(command)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start {}: {e}", self.program.display())))?;
        let pid = child.id() as i32;
        Ok(Process { name: self.name, pid, child: Mutex::new(child), log: self.log })
    }
}

struct Redirect {
    stdin: File,
    stdout: File,
    stderr: File,
}

fn prepare_child(parent: i32, netns: Option<&OwnedFd>) -> io::Result<()> {
    // SAFETY: plain system calls with valid arguments.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into()); // the test died before the line above took effect
        }
        if let Some(fd) = netns
            && libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

type Job = (Command, SyncSender<io::Result<Child>>);

fn fork_on_lasting_thread(command: Command) -> io::Result<Child> {
    static FORKER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let run = move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("forker".into()).spawn(run).expect("a thread can be started");
        Mutex::new(jobs)
    });
    let (reply, answer) = mpsc::sync_channel(1);
    forker.lock().expect("the forker's lock").send((command, reply)).expect("the forker lives");
    answer.recv().expect("the forker answers")
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: i32,
    child: Mutex<Child>,
    log: Option<PathBuf>,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().expect("child lock").try_wait().ok().flatten()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&self) -> ExitStatus {
        let mut child = self.child.lock().expect("child lock");
        let _ = child.kill();
        child.wait().unwrap_or_else(|_| ExitStatus::from_raw(libc::SIGKILL))
    }

    /// SIGTERM, then SIGKILL if it is still there after `grace`.
    pub fn terminate(&self, grace: Duration) -> ExitStatus {
        self.signal(libc::SIGTERM);
        match poll(grace, Duration::from_millis(20), || self.exited()) {
            Some(status) => status,
            None => self.kill(),
        }
    }

    /// SIGSTOP: the process answers nothing, its connections stay open. Waits until each of its threads stands still: the
    /// signal alone leaves those that run on another core the time for an answer.
    ///
    /// # Panics
    /// If that takes longer than ten seconds.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
        let stopped =
            poll(Duration::from_secs(10), Duration::from_millis(1), || all_stopped(self.pid).then_some(()));
        assert!(stopped.is_some(), "process {} does not stop", self.pid);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    pub fn signal(&self, signal: i32) {
        let mut child = self.child.lock().expect("child lock");
        // A child that was waited for has given its pid back: it may be someone else's by now.
        if let Ok(None) = child.try_wait() {
            // SAFETY: the pid is our own child's, which is not reaped yet.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// The last `lines` lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.log.as_deref().map(|p| tail(p, lines)).unwrap_or_default()
    }
}

/// Whether no thread of the process can run any more; also true of one that has ended.
fn all_stopped(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // "pid (name) state ...": the name may hold anything, also brackets.
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        state.is_none_or(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program that ran to its end has printed.
#[derive(Clone, Debug)]
pub struct Output {
    pub success: bool,
    /// The exit code; nothing if a signal or the limit ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end, at most `limit` long, with `input` on its standard input.
pub fn run(spec: Spec, input: Option<&[u8]>, limit: Duration) -> io::Result<Output> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    // Files instead of pipes: nobody has to read while the other side writes.
    std::fs::write(path("in"), input.unwrap_or_default())?;
    let (name, program) = (spec.name.clone(), spec.program.clone());
    let files = Redirect {
        stdin: File::open(path("in"))?,
        stdout: File::create(path("out"))?,
        stderr: File::create(path("err"))?,
    };
    let child = spec.spawn_with(Some(files))?;
    let status = poll(limit, Duration::from_millis(10), || child.exited());
    if status.is_none() {
        child.kill();
    }
    let text = |name: &str| std::fs::read(path(name)).map(|b| String::from_utf8_lossy(&b).into_owned());
    let mut output = Output {
        success: status.is_some_and(|s| s.success()),
        code: status.and_then(|s| s.code()),
        stdout: text("out")?,
        stderr: text("err")?,
    };
    if status.is_none() {
        let seconds = limit.as_secs();
        output.stderr.push_str(&format!("\n{name} ({}) was ended after {seconds} s\n", program.display()));
    }
    Ok(output)
}

/// The last `lines` lines of a file, or why it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    const MOST_BYTES: u64 = 64 * 1024;
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(e) => format!("({}: {e})", path.display()),
    }
}

/// Asks `condition` again and again until it has an answer or the time is over. Blocks the thread.
pub fn poll<T>(limit: Duration, pause: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return Some(found);
        }
        if start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause);
    }
}

/// When a process started, in clock ticks since boot: a pid and this name one process for ever.
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold spaces and brackets: count from the last closing one.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_is_logged_paused_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let spec =
            Spec::new("sh", "/bin/sh").args(["-c", "echo $GREETING; sleep 60"]).env("GREETING", "hello");
        let child = spec.log(&log).spawn().unwrap();
        let seen = poll(Duration::from_secs(5), Duration::from_millis(5), || {
            (child.log_tail(3) == "hello").then_some(())
        });
        assert!(seen.is_some(), "log: {}", child.log_tail(3));
        assert!(start_ticks(child.pid()).is_some());
        child.pause();
        assert!(child.exited().is_none());
        assert_eq!(child.kill().signal(), Some(libc::SIGKILL));
        assert!(child.exited().is_some());
    }

    #[test]
    fn run_gives_input_takes_output_and_has_a_limit() {
        let limit = Duration::from_secs(5);
        let output = run(Spec::new("cat", "/bin/cat"), Some(b"hello"), limit).unwrap();
        assert_eq!((output.success, output.stdout.as_str()), (true, "hello"));
        let output =
            run(Spec::new("sleep", "/bin/sleep").arg("60"), None, Duration::from_millis(50)).unwrap();
        assert!(!output.success && output.stderr.contains("was ended"), "{output:?}");
    }

    #[test]
    fn missing_program_is_named() {
        let error = Spec::new("x", "/nowhere/program").spawn().unwrap_err();
        assert!(error.to_string().contains("/nowhere/program"), "{error}");
    }
}
