//! What is printed: text for people, or one JSON document; errors on standard error, likewise.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::address::Address;
use crate::args::Format;
use crate::failure::Failure;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    pub fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether to draw progress: somebody looks at standard error, and wants to see it.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// The answer of a command: `text` for people, `document` for programs.
    pub fn answer(&self, document: &impl Serialize, text: impl FnOnce() -> String) {
        let text = if self.is_json() { format!("{}\n", json(document)) } else { text() };
        match write(&text) {
            // What was done is done, and how it went is in the exit code: whoever does not read on need not be told.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => lost(&error),
            Ok(()) => {}
        }
    }

    /// As [`Output::answer`], but the text says only that something was done: `--quiet` leaves it out.
    pub fn done(&self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.is_json() || !self.quiet {
            self.answer(document, text);
        }
    }

    /// As [`Output::done`], where standard output is taken by the content of a file: only the document is printed, to
    /// standard error.
    pub fn aside(&self, document: &impl Serialize) {
        if self.is_json() {
            to_stderr(&format!("{}\n", json(document)));
        }
    }

    /// Writes to standard output. A reader that has seen enough (`| head`) ends the program without a complaint.
    pub fn raw(&self, text: &str) {
        match write(text) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                std::process::exit(crate::failure::Exit::Failed as i32)
            }
            Err(error) => lost(&error),
            Ok(()) => {}
        }
    }

    /// Something that was not done, and need not be; left out by `--quiet`.
    pub fn warning(&self, text: &str) {
        if !self.quiet && !self.is_json() {
            to_stderr(&format!("warning: {}\n", shown(text)));
        }
    }

    /// A file is given as it was so long ago.
    pub fn stale(&self, file: &Address, age: Duration) {
        let age = since(age);
        self.warning(&format!("{file} as it was known {age} ago: the metadata store cannot be reached"));
    }

    pub fn failed(&self, failure: &Failure) -> ExitCode {
        if self.is_json() {
            #[derive(Serialize)]
            struct Document<'a> {
                error: &'a Failure,
            }
            to_stderr(&format!("{}\n", json(&Document { error: failure })));
        } else {
            to_stderr(&describe("", failure));
        }
        failure.exit.into()
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// Standard output takes nothing: a disk is full, perhaps.
fn lost(error: &io::Error) -> ! {
    to_stderr(&describe("", &Failure::io("standard output", error)));
    std::process::exit(crate::failure::Exit::Failed as i32)
}

/// A reader of the messages that has gone (`2>&1 | head`) changes nothing about what is done, nor the exit code.
pub fn to_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `error: …` and `help: …`, each on its line.
pub fn describe(path: &str, failure: &Failure) -> String {
    let of = if path.is_empty() { String::new() } else { format!("{path}: ") };
    let node = match &failure.endpoint {
        Some(endpoint) if !failure.cause.contains(endpoint.as_str()) => format!(" (node {endpoint})"),
        _ => String::new(),
    };
    format!("error: {}{}{node}\nhelp: {}\n", shown(&of), shown(&failure.cause), shown(&failure.help))
}

pub fn json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("documents are plain data")
}

/// A text from elsewhere, fit for a terminal: control characters are escaped, so that a name cannot move the cursor.
pub fn shown(text: &str) -> String {
    let tame = |letter: char| !letter.is_control() && !('\u{202a}'..='\u{202e}').contains(&letter);
    if text.chars().all(tame) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if tame(letter) { out.push(letter) } else { out.extend(letter.escape_default()) }
    }
    out
}

/// `0 B`, `1.5 KiB`, `23 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1_024.0;
    let mut unit = 0;
    // What would be shown as 1024 of a unit is 1 of the next.
    while value >= 1_023.5 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// `12 s`, `5 min`, `3 h`.
fn since(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

/// Local time, to the minute.
pub fn local_time(unix_ms: i64) -> String {
    match Timestamp::from_millisecond(unix_ms) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// RFC 3339, in UTC, for programs.
pub fn utc_time(unix_ms: i64) -> Option<String> {
    Timestamp::from_millisecond(unix_ms).ok().map(|time| time.to_string())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// "1 file", "2 files".
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Columns as wide as they must be; those in `right` have their text at the right. The last one is not padded.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[column] - cell.chars().count());
            let last = column + 1 == row.len();
            match (right.contains(&column), last) {
                (true, _) => out.push_str(&format!("{padding}{cell}")),
                (false, true) => out.push_str(cell),
                (false, false) => out.push_str(&format!("{cell}{padding}")),
            }
            if !last {
                out.push_str("  ");
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_536, "1.5 KiB"),
            (10_240, "10 KiB"),
            (1_048_575, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn names_cannot_play_with_the_terminal() {
        assert_eq!(shown("plain ü 漢字"), "plain ü 漢字");
        assert_eq!(shown("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
        assert_eq!(shown("gpj.\u{202e}exe"), "gpj.\\u{202e}exe");
    }

    #[test]
    fn ages_are_short() {
        let ages = [0, 119, 120, 7_199, 7_200, 86_400].map(|seconds| since(Duration::from_secs(seconds)));
        assert_eq!(ages, ["0 s", "119 s", "2 min", "119 min", "2 h", "24 h"]);
    }

    #[test]
    fn tables_are_aligned() {
        let rows = vec![vec!["9 B".into(), "a".into()], vec!["10 KiB".into(), "long name".into()]];
        assert_eq!(table(&rows, &[0]), "   9 B  a\n10 KiB  long name\n");
        assert_eq!(table(&[], &[]), "");
    }

    #[test]
    fn errors_have_two_lines() {
        let failure = Failure::local("it broke", "mend it");
        assert_eq!(describe("a\nb", &failure), "error: a\\nb: it broke\nhelp: mend it\n");
    }

    #[test]
    fn times_out_of_range_are_no_reason_to_fail() {
        assert_eq!(utc_time(0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(utc_time(i64::MAX), None);
        assert_eq!(local_time(i64::MIN), "?");
    }
}
