//! Copies within a cluster: read at one place, and stored at another under the key of the volume there.
//!
//! The content passes through this machine, so it is verified twice: a download checks it against the digest of the
//! source, and the node that stores it refuses anything else.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::v1::{ErrorCode, FileInfo};
use futures::StreamExt;

use crate::upload::UploadOptions;
use crate::upload::source::{ContentStream, Source};
use crate::{Client, Download, DownloadOptions, Effect, Error, Result};

/// One generation of a file in the cluster, as the content of an upload.
struct StoredSource {
    client: Client,
    file: FileInfo,
    /// Begun already: the first attempt reads it.
    begun: Mutex<Option<Download>>,
    /// Why reading failed, of which an `io::Error` keeps only the text.
    failure: Arc<Mutex<Option<Error>>>,
}

impl StoredSource {
    fn note(failure: &Mutex<Option<Error>>, error: Error) -> io::Error {
        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        error.into()
    }
}

#[async_trait::async_trait]
impl Source for StoredSource {
    async fn open(&self) -> io::Result<ContentStream> {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        let download = match begun {
            Some(download) => download,
            None => {
                let only_this = Some(self.file.etag.clone());
                let options = DownloadOptions { if_match: only_this, ..DownloadOptions::default() };
                let again = self.client.download(&self.file.volume, &self.file.path, options).await;
                again.map_err(|error| Self::note(&self.failure, error))?
            }
        };
        let failure = Arc::clone(&self.failure);
        let pieces = download.into_stream();
        Ok(pieces.map(move |piece| piece.map_err(|error| Self::note(&failure, error))).boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.file.size_bytes)
    }

    fn describe(&self) -> String {
        format!("{}/{}", self.file.volume, self.file.path)
    }
}

impl Client {
    /// Copies a file to another path, or into another volume: whole or not at all, of one generation, with the same
    /// digest. The content type goes along unless the options have one.
    pub async fn copy(
        &self,
        (volume, path): (&str, &str),
        (to_volume, to_path): (&str, &str),
        mut options: UploadOptions,
    ) -> Result<FileInfo> {
        let download = self.download(volume, path, DownloadOptions::default()).await?;
        let file = download.file().clone();
        options.blake3 = file.blake3[..].try_into().ok();
        if options.content_type.is_empty() {
            options.content_type.clone_from(&file.content_type);
        }
        let begun = Mutex::new(Some(download));
        let source = StoredSource { client: self.clone(), file, begun, failure: Arc::default() };
        let error = match self.upload(to_volume, to_path, options, &source).await {
            Ok(stored) => return Ok(stored),
            Err(error) => error,
        };
        // An upload knows what failed to be read only as a local error.
        let failure = source.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(failure.filter(|_| error.code() == ErrorCode::Unspecified).map_or(error, changed_meanwhile))
    }
}

/// A generation that was there and is not any more. What the node says of it would be taken for the target's condition.
fn changed_meanwhile(error: Error) -> Error {
    if error.code() != ErrorCode::PreconditionFailed && !error.is_not_found() {
        return error;
    }
    Error::new(
        ErrorCode::PreconditionFailed,
        Effect::Nothing,
        format!("the source was changed or deleted while it was copied ({})", error.cause()),
        "copy it again",
    )
}
