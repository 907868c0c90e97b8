//! New client tokens. Only their digests are stored, so a token is shown once: when it is made.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::{
    SECRET,
    token_file::{self, MAX_FILE_BYTES, MAX_TOKENS},
    token_line,
};
use crate::env::{Clock, Random};

const MAX_NAME_BYTES: usize = 253;

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Whose it is: in logs, and in messages to whoever shows it.
    pub name: String,
    /// When it expires, as given: a span from now, a day, a moment, or `never`.
    pub expires: String,
    /// CLIENT_TOKENS_FILE; absent: the line is shown instead of added.
    pub file: Option<PathBuf>,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeToken {
    pub token: String,
    /// Of CLIENT_TOKENS_FILE, with its end.
    pub line: String,
    pub expires: Option<Timestamp>,
    /// What else is wrong with the file: nodes pass such lines over.
    pub complaint: Option<String>,
}

/// Why none was made.
#[derive(Debug, thiserror::Error)]
pub enum NewTokenError {
    #[error("{0:?} is no name for a token: use up to 253 of A-Z a-z 0-9 . _ @ : / -")]
    Name(String),
    #[error(
        "--expires {given:?} {problem}: give a span such as 90d or 12h, a day such as 2027-06-30, a moment such as 2027-06-30T18:00:00Z, or never"
    )]
    Expires { given: String, problem: &'static str },
    #[error("{path:?} has a token named {name:?} already: remove its line first, or choose another name")]
    Taken { path: PathBuf, name: String },
    #[error(
        "{path:?}: {error}; give the file that the nodes have as CLIENT_TOKENS_FILE, which this user must be allowed to change"
    )]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "{path:?} would be longer than nodes read (1 MiB, {MAX_TOKENS} tokens): remove tokens that have expired"
    )]
    TooLong { path: PathBuf },
}

/// Makes a token, and adds its digest to the file.
pub fn make(wanted: &NewToken, clock: &dyn Clock, random: &dyn Random) -> Result<MadeToken, NewTokenError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@:/-".contains(c);
    let NewToken { name, expires, file } = wanted;
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(allowed) {
        return Err(NewTokenError::Name(name.clone()));
    }
    let expires = moment(expires, clock.unix_ms())?;
    let mut bytes = [0; 32];
    random.fill(&mut bytes);
    let token = format!("cairn_{}", BASE64_URL_SAFE_NO_PAD.encode(bytes));
    let mut line = token_line(name, &token);
    if let Some(expires) = expires {
        line = format!("{} {}\n", line.trim_end(), expires.as_second());
    }
    let complaint = match file {
        Some(file) => add(file, name, &line)?,
        None => None,
    };
    Ok(MadeToken { token, line, expires, complaint })
}

/// Takes a token back that nobody got, while its file is as it was, or has grown.
pub fn take_back(path: &Path, made: &MadeToken) -> io::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    file.lock()?;
    let mut content = Vec::new();
    (&file).take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    let line = made.line.as_bytes();
    let Some(at) = content.windows(line.len()).rposition(|part| part == line) else { return Ok(()) };
    if at + line.len() == content.len() {
        file.set_len(at as u64)?;
    } else {
        // Others were added behind it: it becomes a comment.
        file.write_all_at(b"#", at as u64)?;
    }
    file.sync_all()
}

/// When a token expires that is made now; `None`: never.
fn moment(given: &str, now_unix_ms: i64) -> Result<Option<Timestamp>, NewTokenError> {
    let problem = |problem| NewTokenError::Expires { given: given.to_owned(), problem };
    let text = given.trim();
    if text == "never" {
        return Ok(None);
    }
    let now = Timestamp::from_millisecond(now_unix_ms).unwrap_or_default();
    let expires = if let Ok(moment) = text.parse::<Timestamp>() {
        moment
    } else if let Ok(day) = text.parse::<Date>() {
        day.to_zoned(TimeZone::UTC).map_err(|_| problem("is out of reach"))?.timestamp()
    } else {
        let span: jiff::Span = text.parse().map_err(|_| problem("is not understood"))?;
        let later = now.to_zoned(TimeZone::UTC).checked_add(span);
        later.map_err(|_| problem("is out of reach"))?.timestamp()
    };
    if expires <= now {
        return Err(problem("is not in the future"));
    }
    // The file has whole seconds.
    let seconds = expires.as_second() + i64::from(expires.subsec_nanosecond() > 0);
    Timestamp::from_second(seconds).map(Some).map_err(|_| problem("is out of reach"))
}

/// Adds a line to the end of the file, which keeps its place and its rights: it may be mounted from elsewhere. The
/// answer is what is wrong with other lines.
fn add(path: &Path, name: &str, line: &str) -> Result<Option<String>, NewTokenError> {
    let failed = |error| NewTokenError::Io { path: path.to_owned(), error };
    let mut options = fs::OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).mode(SECRET).open(path).map_err(failed)?;
    file.lock().map_err(failed)?;
    let mut content = Vec::new();
    (&file).take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    let known = token_file::parse(&content);
    if (content.len() + line.len()) as u64 >= MAX_FILE_BYTES || known.tokens.len() >= MAX_TOKENS {
        return Err(NewTokenError::TooLong { path: path.to_owned() });
    }
    if known.tokens.iter().any(|known| *known.name == *name) {
        return Err(NewTokenError::Taken { path: path.to_owned(), name: name.to_owned() });
    }
    let gap = if content.last().is_none_or(|last| *last == b'\n') { "" } else { "\n" };
    let end = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let written = file.write_all(format!("{gap}{line}").as_bytes()).and_then(|()| file.sync_all());
    // Half a line is a mistake that somebody would have to find.
    written.map_err(|error| {
        let _ = file.set_len(end);
        failed(error)
    })?;
    Ok(known.complaint())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::env::real::{RealClock, RealRandom};

    const NOW_MS: i64 = 1_795_000_000_000;

    #[test]
    fn moments() {
        let seconds = |given| moment(given, NOW_MS).unwrap().map(Timestamp::as_second);
        assert_eq!(seconds("never"), None);
        assert_eq!(seconds("90d"), Some(1_795_000_000 + 90 * 86_400));
        assert_eq!(seconds("12h"), Some(1_795_000_000 + 12 * 3_600));
        assert_eq!(seconds("2027-06-30"), Some(1_814_313_600));
        assert_eq!(seconds(" 2027-06-30T18:00:00Z"), Some(1_814_313_600 + 18 * 3_600));
        for (given, problem) in [
            ("", "not understood"),
            ("soon", "not understood"),
            ("90", "not understood"),
            ("-1d", "not in the future"),
            ("0s", "not in the future"),
            ("2020-01-01", "not in the future"),
            ("19000y", "out of reach"),
        ] {
            let error = moment(given, NOW_MS).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("such as 90d"), "{given}: {error}");
        }
    }

    fn wanted(name: &str, file: Option<PathBuf>) -> NewToken {
        NewToken { name: name.into(), expires: "1h".into(), file }
    }

    #[test]
    fn the_file_has_the_digest_and_not_the_token() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("tokens");
        let before = format!("# people\nnobody 00\nci {} # no end of line", "0".repeat(64));
        fs::write(&file, &before).unwrap();
        let make = |name: &str| make(&wanted(name, Some(file.clone())), &RealClock::default(), &RealRandom);
        let made = make("nightly").unwrap();
        let content = fs::read_to_string(&file).unwrap();
        assert_eq!(content, format!("{before}\n{}", made.line));
        assert!(made.complaint.as_ref().unwrap().contains("line 2:"), "{made:?}");
        assert!(made.token.starts_with("cairn_") && !content.contains(&made.token));
        let words: Vec<&str> = made.line.split_ascii_whitespace().collect();
        assert_eq!(words[..2].join(" "), token_line("nightly", &made.token).trim_end());
        assert_eq!(words[2], made.expires.unwrap().as_second().to_string());
        for taken in ["nightly", "ci"] {
            let error = make(taken).unwrap_err().to_string();
            assert!(error.contains("already"), "{error}");
        }
        assert_ne!(make("other").unwrap().token, made.token);
    }

    #[test]
    fn a_token_that_nobody_got_is_taken_back() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("tokens");
        let make = |name: &str| make(&wanted(name, Some(file.clone())), &RealClock::default(), &RealRandom);
        let names = || {
            let parsed = token_file::parse(&fs::read(&file).unwrap());
            assert_eq!(parsed.faults, []);
            parsed.tokens.iter().map(|token| token.name.to_string()).collect::<Vec<_>>()
        };
        let (first, second) = (make("first").unwrap(), make("second").unwrap());
        take_back(&file, &first).unwrap();
        assert_eq!(names(), ["second"]);
        take_back(&file, &second).unwrap();
        assert!(names().is_empty());
        take_back(&file, &second).unwrap();
        assert!(make("first").is_ok() && make("second").is_ok(), "their names are free");
        assert_eq!(names(), ["first", "second"]);
    }

    #[test]
    fn without_a_file_nothing_is_written() {
        let made = make(&wanted("a", None), &RealClock::default(), &RealRandom).unwrap();
        assert!(made.line.starts_with("a ") && made.line.ends_with('\n'));
        for bad in ["", "two words", "#", "a\nb", &"n".repeat(254)] {
            assert!(make(&wanted(bad, None), &RealClock::default(), &RealRandom).is_err(), "{bad}");
        }
        let nowhere = wanted("a", Some("/proc/nothing/tokens".into()));
        let error = make(&nowhere, &RealClock::default(), &RealRandom).unwrap_err().to_string();
        assert!(error.contains("CLIENT_TOKENS_FILE"), "{error}");
    }
}
