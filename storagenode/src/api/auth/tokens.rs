//! Client tokens: a file of names and digests, looked at again every few seconds (`secrets::token_file` has its form).
//!
//! What is not in the file any more is not good any more, whatever else is wrong with it: a line that is a mistake
//! lets nobody in and keeps no other from counting, and a file that is gone lets nobody in. Only a file that is there
//! and cannot be read leaves the tokens in force as they are: that is the disk's fault and nobody's wish.

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
    secrets::token_file::{LineFault, MAX_FILE_BYTES, Token, TokenFile, parse},
    warnings::Warnings,
};

const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// Looks in a row that must find no file before it counts as gone: some editors remove a file and write it anew.
const LOOKS_UNTIL_GONE: u32 = 2;
/// In [`Warnings`].
const MATTER: &str = "client tokens";

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error(
        "CLIENT_TOKENS_FILE {path:?} cannot be read: {error}; give the path of a file that this user may read"
    )]
    Unreadable { path: PathBuf, error: io::Error },
    /// The first of its mistakes.
    #[error("CLIENT_TOKENS_FILE {path:?} names no token: {fault}")]
    NoToken { path: PathBuf, fault: LineFault },
}

/// The tokens in force.
pub struct Tokens {
    env: Env,
    path: PathBuf,
    warnings: Warnings,
    tokens: RwLock<Vec<Token>>,
}

impl Tokens {
    /// No token is good.
    pub fn none(env: Env) -> Arc<Self> {
        Arc::new(Self { env, path: PathBuf::new(), warnings: Warnings::default(), tokens: RwLock::default() })
    }

    /// Reads the file and begins to watch it. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The file cannot be read, or there are lines and none of them names a token: a configuration that was never
    /// right, such as a token instead of its digest.
    pub async fn open(env: Env, path: &Path, warnings: Warnings) -> Result<Arc<Self>, TokenFileError> {
        let path = path.to_owned();
        let content = read(&env, &path)
            .await
            .map_err(|error| TokenFileError::Unreadable { path: path.clone(), error })?;
        let file = parse(&content);
        if let (true, Some(fault)) = (file.tokens.is_empty(), file.faults.first()) {
            return Err(TokenFileError::NoToken { path, fault: fault.clone() });
        }
        // Not refused: that is how all tokens are taken back, and clients may have certificates.
        if file.tokens.is_empty() {
            tracing::warn!(
                "CLIENT_TOKENS_FILE {path:?} holds no token: only who shows a certificate of the cluster's CA gets in; to \
                 let others in, add lines of NAME SHA256-OF-THE-TOKEN"
            );
        }
        let tokens = Arc::new(Self { env, path, warnings, tokens: RwLock::default() });
        tokens.use_file(file);
        tokio::spawn(reload(Arc::downgrade(&tokens)));
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

    fn use_file(&self, file: TokenFile) {
        self.complain(file.complaint().map(|mistake| format!("passed over: {mistake}")));
        let mut tokens = self.tokens.write();
        if *tokens == file.tokens {
            return;
        }
        tracing::info!(tokens = file.tokens.len(), path = ?self.path, "client tokens read");
        *tokens = file.tokens;
    }

    /// Says in the log and in the node's status what is wrong with the file now.
    fn complain(&self, complaint: Option<String>) {
        let text = complaint.map(|what| format!("CLIENT_TOKENS_FILE {:?}: {what}", self.path));
        if self.warnings.set(MATTER, text.clone())
            && let Some(text) = text
        {
            tracing::warn!("{text}");
        }
    }
}

async fn read(env: &Env, path: &Path) -> io::Result<Vec<u8>> {
    let (disk, path) = (env.disk.clone(), path.to_owned());
    env.blocking(move || read_file(&*disk, &path)).await
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut content = vec![0; file.size()?.min(MAX_FILE_BYTES + 1) as usize];
    file.read_at(&mut content, 0)?;
    Ok(content)
}

/// Looks at the file again and again, for as long as somebody has the tokens.
async fn reload(tokens: Weak<Tokens>) {
    let mut gone = 0;
    loop {
        let Some((env, path)) = tokens.upgrade().map(|tokens| (tokens.env.clone(), tokens.path.clone()))
        else {
            return;
        };
        env.clock.sleep(RELOAD_EVERY).await;
        let content = read(&env, &path).await;
        let Some(tokens) = tokens.upgrade() else { return };
        let is_gone = content.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        gone = if is_gone { gone + 1 } else { 0 };
        match content {
            Ok(content) => tokens.use_file(parse(&content)),
            Err(_) if is_gone && gone < LOOKS_UNTIL_GONE => {}
            Err(_) if is_gone => {
                tokens.tokens.write().clear();
                tokens.complain(Some("the file is gone, so no token is good; put it back".into()));
            }
            Err(error) => {
                tokens.complain(Some(format!("{error}; the tokens that were read before stay in force")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::fake::quick_env, secrets::token_line};

    #[tokio::test]
    async fn what_is_not_in_the_file_is_not_good_whatever_else_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, env, warnings) = (folder.path().join("tokens"), quick_env(), Warnings::default());
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let refused = async |text: &str| {
            write(text);
            Tokens::open(env.clone(), &path, Warnings::default()).await.err().unwrap().to_string()
        };
        assert!(refused("cairn_token\n").await.contains("line 1: there is no SHA-256"));

        let (leaver, stayer) = (token_line("leaver", "t1"), token_line("stayer", "t2"));
        write(&format!("{leaver}a mistake\n{stayer}"));
        let tokens = Tokens::open(env.clone(), &path, warnings.clone()).await.unwrap();
        let good = |token| tokens.check(token).is_ok();
        assert!(good("t1") && good("t2"));
        assert!(warnings.list()[0].contains("line 2:"), "{:?}", warnings.list());

        let looks = || env.clock.sleep(RELOAD_EVERY * (LOOKS_UNTIL_GONE + 2));
        write(&format!("{stayer}{}another mistake", token_line("new", "t3")));
        looks().await;
        assert!(!good("t1") && good("t2") && good("t3"));
        assert!(warnings.list()[0].contains("line 3:"), "{:?}", warnings.list());

        std::fs::remove_file(&path).unwrap();
        looks().await;
        assert!(!good("t2") && warnings.list()[0].contains("gone"), "{:?}", warnings.list());
        // What is there and cannot be read is nobody's wish.
        write(&leaver);
        looks().await;
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        looks().await;
        assert!(good("t1") && warnings.list()[0].contains("stay in force"), "{:?}", warnings.list());
        std::fs::remove_dir(&path).unwrap();
        write("# nobody\n");
        looks().await;
        assert!(!good("t1") && warnings.list().is_empty(), "{:?}", warnings.list());
    }
}
