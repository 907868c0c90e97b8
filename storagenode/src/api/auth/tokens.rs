//! Client tokens: a file of names and SHA-256 digests, looked at again every few seconds.
//!
//! ```text
//! # name   sha256 of the token, hexadecimal   [expires, Unix seconds]
//! backup   9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ci-jobs  60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752  1798761600
//! ```
//!
//! The tokens themselves are stored nowhere: the file may be read by whoever may read the node's configuration
//! without giving access to anything.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use cairn_proto::v1::ErrorCode;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    api::status::Refusal,
    env::{Disk, Env, OpenMode},
};

const RELOAD_EVERY: Duration = Duration::from_secs(5);
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Every request compares with all of them.
const MAX_TOKENS: usize = 10_000;

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error(
        "CLIENT_TOKENS_FILE {path:?} cannot be read: {error}; give the path of a file that this user may read"
    )]
    Unreadable { path: PathBuf, error: io::Error },
    #[error(
        "CLIENT_TOKENS_FILE, line {line}: {what}; write: NAME SHA256-OF-THE-TOKEN [EXPIRES-UNIX-SECONDS]"
    )]
    Line { line: usize, what: String },
    #[error(
        "CLIENT_TOKENS_FILE holds more than {MAX_TOKENS} tokens, or is over 1 MiB; use certificates for so many"
    )]
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    name: Arc<str>,
    sha256: [u8; 32],
    expires_unix_s: Option<i64>,
}

/// The tokens in force.
pub struct Tokens {
    env: Env,
    tokens: RwLock<Vec<Token>>,
}

impl Tokens {
    /// No token is good.
    pub fn none(env: Env) -> Arc<Self> {
        Arc::new(Self { env, tokens: RwLock::default() })
    }

    /// Reads the file and begins to watch it. Must be called inside a tokio runtime.
    pub async fn open(env: Env, path: &Path) -> Result<Arc<Self>, TokenFileError> {
        let content = read(&env, path).await?;
        let parsed = parse(&content)?;
        warn_if_none(&parsed, path);
        let tokens = Arc::new(Self { env, tokens: RwLock::new(parsed) });
        tokio::spawn(reload(Arc::downgrade(&tokens), path.to_owned(), content));
        Ok(tokens)
    }

    /// The name that goes with a token.
    pub fn check(&self, token: &str) -> Result<Arc<str>, Refusal> {
        let refused = |cause: String| Refusal::new(ErrorCode::Unauthenticated, cause);
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let tokens = self.tokens.read();
        if tokens.is_empty() {
            return Err(refused(
                "this node knows no tokens (CLIENT_TOKENS_FILE): use a client certificate".into(),
            ));
        }
        // All are compared, each in constant time: how long it takes tells nothing.
        let mut found = None;
        for token in tokens.iter() {
            if bool::from(token.sha256.ct_eq(&digest)) {
                found = Some(token);
            }
        }
        let token = found.ok_or_else(|| refused("the token is not known here".into()))?;
        match token.expires_unix_s {
            Some(expires) if self.env.clock.unix_ms() / 1000 >= expires => {
                let when = jiff::Timestamp::from_second(expires).unwrap_or_default();
                Err(refused(format!("the token of {:?} expired at {when}", token.name)))
            }
            _ => Ok(token.name.clone()),
        }
    }
}

/// Not refused: that is how all tokens are taken back, and clients may have certificates.
fn warn_if_none(tokens: &[Token], path: &Path) {
    if let Some(complaint) = complaint(tokens, path) {
        tracing::warn!("{complaint}");
    }
}

fn complaint(tokens: &[Token], path: &Path) -> Option<String> {
    tokens.is_empty().then(|| {
        format!(
            "CLIENT_TOKENS_FILE {path:?} holds no token: only who shows a certificate of the cluster's CA gets in; to let \
             others in, add lines of NAME SHA256-OF-THE-TOKEN"
        )
    })
}

async fn read(env: &Env, path: &Path) -> Result<Vec<u8>, TokenFileError> {
    let (disk, path) = (env.disk.clone(), path.to_owned());
    env.blocking(move || read_file(&*disk, &path).map_err(|error| TokenFileError::Unreadable { path, error }))
        .await
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut content = vec![0; file.size()?.min(MAX_FILE_BYTES + 1) as usize];
    file.read_at(&mut content, 0)?;
    Ok(content)
}

fn parse(content: &[u8]) -> Result<Vec<Token>, TokenFileError> {
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(TokenFileError::TooMany);
    }
    let text = std::str::from_utf8(content)
        .map_err(|_| TokenFileError::Line { line: 1, what: "the file is not UTF-8".into() })?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            let token = parse_line(line).map_err(|what| TokenFileError::Line { line: number + 1, what })?;
            tokens.push(token);
        }
    }
    if tokens.len() > MAX_TOKENS {
        return Err(TokenFileError::TooMany);
    }
    Ok(tokens)
}

fn parse_line(line: &str) -> Result<Token, String> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next().ok_or("there is no name")?;
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
        None => Ok(Token { name: name.into(), sha256, expires_unix_s }),
        Some(word) => Err(format!("{word:?} is one word too many")),
    }
}

async fn reload(tokens: Weak<Tokens>, path: PathBuf, mut seen: Vec<u8>) {
    let mut complained = false;
    loop {
        let Some(env) = tokens.upgrade().map(|tokens| tokens.env.clone()) else { return };
        env.clock.sleep(RELOAD_EVERY).await;
        let parsed = match read(&env, &path).await {
            Ok(content) if content == seen => continue,
            Ok(content) => {
                let parsed = parse(&content);
                seen = content;
                parsed
            }
            Err(error) => Err(error),
        };
        let Some(tokens) = tokens.upgrade() else { return };
        match parsed {
            Ok(parsed) => {
                tracing::info!(tokens = parsed.len(), "client tokens reloaded");
                warn_if_none(&parsed, &path);
                *tokens.tokens.write() = parsed;
                complained = false;
            }
            Err(error) if !complained => {
                tracing::warn!(%error, "changed client tokens cannot be used; the old ones stay in force");
                complained = true;
            }
            Err(_) => {}
        }
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
        let tokens = parse(text.as_bytes()).unwrap();
        assert_eq!(tokens.len(), 2);
        assert_eq!((&*tokens[0].name, tokens[0].expires_unix_s), ("backup", None));
        assert_eq!((&*tokens[1].name, tokens[1].expires_unix_s), ("ci", Some(1_798_761_600)));
        assert_eq!(tokens[0].sha256, tokens[1].sha256);
    }

    #[test]
    fn a_file_without_tokens_is_complained_of() {
        let complaint = |text: &str| complaint(&parse(text.as_bytes()).unwrap(), Path::new("/etc/tokens"));
        for empty in ["", "\n# backup 9f86\n"] {
            let said = complaint(empty).unwrap();
            assert!(said.contains("/etc/tokens") && said.contains("holds no token"), "{said}");
        }
        assert_eq!(complaint(&format!("backup {DIGEST}")), None);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, word) in [
            ("\nbackup".to_string(), "no SHA-256"),
            (format!("\nbackup secret {DIGEST}"), "not the token itself"),
            (format!("\nbackup {DIGEST} tomorrow"), "tomorrow"),
            (format!("\nbackup {DIGEST} 1 2"), "one word too many"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(word), "{error}");
        }
        assert!(parse(b"\xff").is_err());
    }
}
