//! Uploads: whole or not at all, and never twice by accident.
//!
//! A server can commit only once it was given everything. So an attempt that broke before that is repeated, if the
//! content can be read again. One that broke after it may have been committed: then what is there is compared with what
//! was sent, and only an unconditional upload that is found *not* there is sent again.

pub(crate) mod outgoing;
pub mod source;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use cairn_proto::v1::{ErrorCode, FileInfo, UploadHeader};
use futures::{Stream, StreamExt};
use tokio::io::AsyncRead;

use crate::endpoints::Node;
use crate::error::{Effect, Error, Result};
use crate::retry::{Attempts, no_answer};
use crate::{Client, Condition};
use outgoing::{Watch, outgoing};
use source::{BytesSource, FileSource, OnceSource, Source};

/// Content of one message. Servers take up to 1 MiB; 256 KiB is as fast, and needs less memory at both ends.
pub(crate) const MESSAGE_BYTES: usize = 256 << 10;

/// Bytes transferred so far, for whoever shows progress. Attempts that came to nothing are taken back.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn take_back(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What may be said about an upload beyond its name and content.
#[derive(Debug, Clone, Default)]
pub struct UploadOptions {
    /// Content with another digest is refused.
    pub blake3: Option<[u8; 32]>,
    pub condition: Condition,
    /// At most 127 bytes of visible ASCII.
    pub content_type: String,
    pub counter: Option<Counter>,
}

/// An attempt that failed.
struct Failed {
    error: Error,
    /// Set if the server had been given everything: length and digest of that.
    complete: Option<(u64, blake3::Hash)>,
    /// Some content was on its way.
    moved: bool,
}

impl Client {
    /// Uploads content that can be read again, so that a failed attempt can be repeated.
    pub async fn upload(
        &self,
        volume: &str,
        path: &str,
        options: UploadOptions,
        source: &dyn Source,
    ) -> Result<FileInfo> {
        let header = UploadHeader {
            volume: volume.to_owned(),
            path: path.to_owned(),
            size_bytes: source.size_bytes(),
            blake3: options.blake3.map(|digest| Bytes::copy_from_slice(&digest)),
            condition: options.condition.to_wire(),
            content_type: options.content_type.clone(),
        };
        let mut attempts = Attempts::new(self.pool(), self.limits());
        // Set once an attempt may have been committed although it failed.
        let mut unsure = false;
        loop {
            let (node, begun) = (attempts.begin(), Instant::now());
            let failed = match self.attempt(&node, header.clone(), &options, source).await {
                Ok(file) => {
                    node.worked();
                    return Ok(file);
                }
                Err(failed) => failed,
            };
            // What a busy node has taken before it refused is no progress.
            let refused =
                failed.error.code() == ErrorCode::Overloaded && begun.elapsed() < self.limits().call_timeout;
            if failed.moved && !refused {
                attempts.extend();
            }
            let mut error = failed.error.at(&node.name);
            if let (Effect::Unknown, Some(sent)) = (error.effect(), failed.complete) {
                unsure = true;
                match self.look_after(volume, path, &options.condition, sent, &error).await? {
                    Some(file) => return Ok(file),
                    // It is not there: what is to be repeated has changed nothing.
                    None => error = not_stored(&error),
                }
            } else if unsure && error.code() == ErrorCode::PreconditionFailed {
                return Err(unknown(&error, "the file has changed since, perhaps by this upload"));
            }
            attempts.failed(&node, error, source.can_open()).await?;
        }
    }

    pub async fn upload_bytes(
        &self,
        volume: &str,
        path: &str,
        mut options: UploadOptions,
        content: Bytes,
    ) -> Result<FileInfo> {
        options.blake3.get_or_insert_with(|| blake3::hash(&content).into());
        self.upload(volume, path, options, &BytesSource(content)).await
    }

    /// Uploads a file of this machine.
    pub async fn upload_file(
        &self,
        volume: &str,
        path: &str,
        options: UploadOptions,
        file: impl Into<PathBuf>,
    ) -> Result<FileInfo> {
        let file = file.into();
        let source = FileSource::new(&file)
            .await
            .map_err(|error| Error::local_io(&format!("cannot read {}", file.display()), &error))?;
        self.upload(volume, path, options, &source).await
    }

    /// Uploads content that can be read only once: another node is tried only as long as none of it was read.
    /// An error of the stream makes the upload fail; nothing is stored then.
    pub async fn upload_stream(
        &self,
        volume: &str,
        path: &str,
        options: UploadOptions,
        size_bytes: Option<u64>,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<FileInfo> {
        self.upload(volume, path, options, &OnceSource::from_stream(content.boxed(), size_bytes)).await
    }

    /// As [`Client::upload_stream`], from a reader.
    pub async fn upload_reader(
        &self,
        volume: &str,
        path: &str,
        options: UploadOptions,
        size_bytes: Option<u64>,
        content: impl AsyncRead + Send + 'static,
    ) -> Result<FileInfo> {
        self.upload(volume, path, options, &OnceSource::from_reader(content, size_bytes)).await
    }

    async fn attempt(
        &self,
        node: &Node,
        header: UploadHeader,
        options: &UploadOptions,
        source: &dyn Source,
    ) -> Result<FileInfo, Failed> {
        let early = |error| Failed { error, complete: None, moved: false };
        let content = source
            .open()
            .await
            .map_err(|error| early(Error::local_io(&format!("cannot read {}", source.describe()), &error)))?;
        let (messages, watch) = outgoing(header, content, source.describe(), options.counter.clone());
        let request = self.request(messages).map_err(early)?;
        let mut files = self.files(node);
        let limit = self.limits().stall_timeout;
        let outcome = tokio::select! {
            biased;
            answer = files.upload(request) => answer
                .map_err(|status| Error::from_status(&status))
                .and_then(|answer| checked(answer.into_inner().file, &watch)),
            error = watch.failed() => Err(error),
            () = watch.stalled(limit) => Err(no_answer(limit)),
        };
        outcome.map_err(|error| {
            let moved = watch.has_moved();
            watch.uncount();
            let complete = watch.was_complete().then(|| watch.digest()).flatten();
            // The server was not given everything, so it cannot have stored it.
            let error = match (error.effect(), complete) {
                (Effect::Unknown, None) => not_stored(&error),
                _ => error,
            };
            Failed { error, complete, moved }
        })
    }

    /// An attempt failed after everything was sent. Finds out whether it was stored: `Some`, it is there; `None`, it is
    /// not, and sending it again does no harm; an error, that cannot be told. Then it is not sent again (R4): what somebody
    /// else did since would be undone.
    async fn look_after(
        &self,
        volume: &str,
        path: &str,
        condition: &Condition,
        (size_bytes, digest): (u64, blake3::Hash),
        error: &Error,
    ) -> Result<Option<FileInfo>> {
        tracing::debug!(%error, "looking whether the upload was stored");
        let found = match self.stat(volume, path).await {
            Ok(file) => Some(file),
            Err(look) if look.code() == ErrorCode::FileNotFound => None,
            Err(_) => return Err(unknown(error, "looking for it failed as well")),
        };
        let same = found
            .as_ref()
            .is_some_and(|file| file.size_bytes == size_bytes && file.blake3[..] == digest.as_bytes()[..]);
        match condition {
            Condition::Always if same => Ok(found),
            // An etag is never given twice: this upload would have replaced it. If it does so yet, the next one is refused.
            Condition::IfMatch(etag) if found.as_ref().is_some_and(|file| file.etag == *etag) => Ok(None),
            // It may have been stored and then deleted or replaced: another try would undo that.
            _ if found.is_none() => Err(unknown(error, "the file is not there now")),
            Condition::Always => Err(unknown(error, "the file has other content now")),
            _ => Err(unknown(
                error,
                "a file is there, but whether this upload or another put it there cannot be told",
            )),
        }
    }
}

/// Compares what the server says it stored with what was sent.
fn checked(file: Option<FileInfo>, watch: &Watch) -> Result<FileInfo> {
    let file = file.ok_or_else(|| Error::protocol("the node's answer has no file in it"))?;
    match watch.digest() {
        Some((size_bytes, digest))
            if file.size_bytes == size_bytes && file.blake3[..] == digest.as_bytes()[..] =>
        {
            Ok(file)
        }
        _ => Err(Error::new(
            ErrorCode::DigestMismatch,
            Effect::Nothing,
            "the node stored other content than was sent",
            "upload the file again, and report this: it must not happen",
        )),
    }
}

fn not_stored(error: &Error) -> Error {
    // What a server says it does not know is known now; it may be tried again.
    let code = match error.code() {
        ErrorCode::CommitUnknown => ErrorCode::Unavailable,
        code => code,
    };
    let again = Error::new(code, Effect::Nothing, error.cause(), error.help());
    match error.endpoint() {
        Some(endpoint) => again.at(endpoint),
        None => again,
    }
}

fn unknown(error: &Error, why: &str) -> Error {
    Error::new(
        ErrorCode::CommitUnknown,
        Effect::Unknown,
        format!("it is not known whether the upload was stored: {}; {why}", error.cause()),
        "compare the file with `cairn stat` before you upload it again",
    )
}
