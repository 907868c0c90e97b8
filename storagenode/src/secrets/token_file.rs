//! The file of client tokens, as it is written: names and SHA-256 digests.
//!
//! ```text
//! # name   sha256 of the token, hexadecimal   [expires, Unix seconds]
//! backup   9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ci-jobs  60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752  1798761600
//! ```
//!
//! The tokens themselves are stored nowhere: the file may be read by whoever may read the node's configuration
//! without giving access to anything.
//!
//! Each line counts by itself. If a mistake in one line kept the whole file from being used, a token whose line was
//! removed would stay good for as long as nobody sees the mistake.

use std::{fmt, sync::Arc};

/// Bytes of a file that are read.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Every request compares with all of them.
pub const MAX_TOKENS: usize = 10_000;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub name: Arc<str>,
    pub sha256: [u8; 32],
    pub expires_unix_s: Option<i64>,
}

/// A line that names no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineFault {
    /// From 1.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, what } = self;
        write!(f, "line {line}: {what}; write: NAME SHA256-OF-THE-TOKEN [EXPIRES-UNIX-SECONDS]")
    }
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenFile {
    pub tokens: Vec<Token>,
    /// In the order of their lines.
    pub faults: Vec<LineFault>,
}

impl TokenFile {
    /// What is wrong, in one sentence; `None` if nothing is.
    pub fn complaint(&self) -> Option<String> {
        let first = self.faults.first()?;
        Some(match self.faults.len() - 1 {
            0 => first.to_string(),
            1 => format!("{first} (and 1 more line)"),
            more => format!("{first} (and {more} more lines)"),
        })
    }
}

/// Reads as many lines as nodes do; `content` may be longer than [`MAX_FILE_BYTES`].
pub fn parse(content: &[u8]) -> TokenFile {
    let cut = content.len().min(MAX_FILE_BYTES as usize);
    // Half a line at the limit would be taken for a mistake.
    let whole = match content.len() > cut {
        true => content[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1),
        false => cut,
    };
    let mut file = TokenFile::default();
    let mut lines = 0;
    for line in content[..whole].split(|byte| *byte == b'\n') {
        lines += 1;
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some(_)) if file.tokens.len() == MAX_TOKENS => {
                let what = format!("only {MAX_TOKENS} tokens are read; use certificates for more clients");
                file.faults.push(LineFault { line: lines, what });
                return file;
            }
            Ok(Some(token)) => file.tokens.push(token),
            Err(what) => file.faults.push(LineFault { line: lines, what }),
        }
    }
    if content.len() > cut {
        let what = "only 1 MiB of the file is read; remove tokens that have expired".to_owned();
        file.faults.push(LineFault { line: lines.max(1), what });
    }
    file
}

fn parse_line(line: &[u8]) -> Result<Option<Token>, String> {
    let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
    let Some(name) = words.next() else { return Ok(None) };
    let digest = words.next().ok_or("there is no SHA-256")?;
    let mut sha256 = [0; 32];
    hex::decode_to_slice(digest, &mut sha256).map_err(|_| {
        "the second word is not 64 hexadecimal digits (the SHA-256 of the token, not the token itself)"
            .to_string()
    })?;
    let expires_unix_s = match words.next() {
        None => None,
        Some(text) => {
            Some(text.parse().map_err(|_| format!("{text:?} is not a number of seconds since 1970"))?)
        }
    };
    match words.next() {
        None => Ok(Some(Token { name: name.into(), sha256, expires_unix_s })),
        Some(word) => Err(format!("{word:?} is one word too many")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn lines() {
        let text =
            format!("# people\n\nbackup {DIGEST} # nightly\n  ci\t{} 1798761600\r\n", DIGEST.to_uppercase());
        let TokenFile { tokens, faults } = parse(text.as_bytes());
        assert_eq!((tokens.len(), faults), (2, vec![]));
        assert_eq!((&*tokens[0].name, tokens[0].expires_unix_s), ("backup", None));
        assert_eq!((&*tokens[1].name, tokens[1].expires_unix_s), ("ci", Some(1_798_761_600)));
        assert_eq!(tokens[0].sha256, tokens[1].sha256);
    }

    #[test]
    fn mistakes_are_named_with_their_line_and_hide_no_other() {
        for (text, word) in [
            (&b"backup"[..], "no SHA-256"),
            (format!("backup secret {DIGEST}").as_bytes(), "not the token itself"),
            (format!("backup {DIGEST} tomorrow").as_bytes(), "tomorrow"),
            (format!("backup {DIGEST} 1 2").as_bytes(), "one word too many"),
            (b"b\xff", "not UTF-8"),
        ] {
            let good = |name: &str| format!("{name} {DIGEST}\n").into_bytes();
            let file = parse(&[&good("before"), text, b"\n", &good("after")].concat());
            let names: Vec<&str> = file.tokens.iter().map(|token| &*token.name).collect();
            assert_eq!(names, ["before", "after"], "{text:?}");
            let complaint = file.complaint().unwrap();
            assert!(complaint.contains("line 2") && complaint.contains(word), "{complaint}");
        }
        assert!(parse(b"a\nb\nc").complaint().unwrap().ends_with("(and 2 more lines)"));
        assert_eq!(parse(b"").complaint(), None);
    }

    #[test]
    fn what_is_too_long_is_read_up_to_the_limit() {
        let line = format!("n {DIGEST}\n");
        let file = parse(line.repeat(MAX_TOKENS + 1).as_bytes());
        assert_eq!((file.tokens.len(), file.faults.len()), (MAX_TOKENS, 1));
        assert!(file.complaint().unwrap().contains("line 10001: only 10000 tokens"), "{:?}", file.faults);
        assert_eq!(parse(line.repeat(MAX_TOKENS).as_bytes()).complaint(), None);

        let filler = format!("#{}\n", "x".repeat(998));
        let long = filler.repeat(1_100) + &line;
        let file = parse(long.as_bytes());
        assert!(file.tokens.is_empty() && file.complaint().unwrap().contains("1 MiB"), "{:?}", file.faults);
        assert_eq!(file.faults.len(), 1, "the line at the limit is no mistake");
        let early = line.clone() + &long;
        assert_eq!(parse(early.as_bytes()).tokens.len(), 1);
    }
}
