//! Downloads: verified, and taken up again at another node where they broke off.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_proto::v1::download_response::Part;
use cairn_proto::v1::{DownloadHeader, DownloadRequest, DownloadResponse, ErrorCode, FileInfo};
use futures::Stream;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tonic::Streaming;

use crate::Client;
use crate::endpoints::Node;
use crate::error::{Effect, Error, Result};
use crate::retry::{Attempts, within};
use crate::upload::Counter;

/// A download that breaks off more often than this is given up, even if each time some of it came.
const MAX_RESUMES: u32 = 100;

/// Which bytes are wanted.
#[derive(Debug, Clone, Default)]
pub struct DownloadOptions {
    pub offset: u64,
    /// Absent: up to the end.
    pub length: Option<u64>,
    /// Only the generation with this etag.
    pub if_match: Option<String>,
    /// While the metadata store cannot be reached, the file as a node last knew it will do; [`Download::stale`] says so.
    pub allow_stale: bool,
    pub counter: Option<Counter>,
}

/// A download that has begun.
///
/// The length is verified always, the BLAKE3 digest when the whole file is read; both show only at the end: what came
/// before an error is not to be used.
pub struct Download {
    client: Client,
    file: FileInfo,
    allow_stale: bool,
    stale: Option<Duration>,
    offset: u64,
    length: u64,
    received: u64,
    counter: Option<Counter>,
    hasher: Option<blake3::Hasher>,
    stream: Option<Opened>,
    resumes: u32,
}

/// A stream after its header, and who sends it.
struct Opened {
    messages: Streaming<DownloadResponse>,
    node: Arc<Node>,
}

impl Client {
    /// Begins a download; the file's metadata is known when this returns.
    pub async fn download(&self, volume: &str, path: &str, options: DownloadOptions) -> Result<Download> {
        let DownloadOptions { offset, length, if_match, allow_stale, counter } = options;
        let request = DownloadRequest {
            volume: volume.to_owned(),
            path: path.to_owned(),
            offset,
            length,
            if_match: if_match.unwrap_or_default(),
            allow_stale,
        };
        let (stream, Begun { file, length, stale }) = self.open_download(&request).await?;
        let whole = offset == 0 && length == file.size_bytes;
        Ok(Download {
            client: self.clone(),
            file,
            allow_stale,
            stale,
            offset,
            length,
            received: 0,
            counter,
            hasher: whole.then(blake3::Hasher::new),
            stream: Some(stream),
            resumes: 0,
        })
    }

    async fn open_download(&self, request: &DownloadRequest) -> Result<(Opened, Begun)> {
        let mut attempts = Attempts::new(self.pool(), self.limits());
        loop {
            let node = attempts.begin();
            let opening = async {
                let request = self.request(request.clone())?;
                let answer = self.files(&node).download(request).await;
                let mut messages = answer.map_err(|status| Error::from_status(&status))?.into_inner();
                let first = messages.message().await.map_err(|status| Error::from_status(&status))?;
                Ok((messages, first))
            };
            match within(attempts.attempt_timeout(), opening).await {
                Ok((messages, first)) => {
                    node.worked();
                    let begun = check_header(request, first).map_err(|error| error.at(&node.name))?;
                    return Ok((Opened { messages, node }, begun));
                }
                Err(error) => attempts.failed(&node, error.at(&node.name), true).await?,
            }
        }
    }
}

/// What a download's header says.
struct Begun {
    file: FileInfo,
    length: u64,
    stale: Option<Duration>,
}

/// Checks that the first message is a header that fits what was asked for.
fn check_header(request: &DownloadRequest, first: Option<DownloadResponse>) -> Result<Begun> {
    let Some(Part::Header(header)) = first.and_then(|message| message.part) else {
        return Err(Error::protocol("the node's download does not begin with a header"));
    };
    let DownloadHeader { file: Some(file), offset, length, stale_ms } = header else {
        return Err(Error::protocol("the header of the node's download has no file in it"));
    };
    if stale_ms.is_some() && !request.allow_stale {
        return Err(Error::protocol("the node's answer is old, which was not allowed"));
    }
    let left = file.size_bytes.checked_sub(request.offset);
    let expected = left.map(|left| request.length.unwrap_or(u64::MAX).min(left));
    let right_file = request.if_match.is_empty() || request.if_match == file.etag;
    if offset != request.offset || expected != Some(length) || file.blake3.len() != 32 || !right_file {
        return Err(Error::protocol("the node sends another part of the file than was asked for"));
    }
    Ok(Begun { file, length, stale: stale_ms.map(Duration::from_millis) })
}

impl Download {
    pub fn file(&self) -> &FileInfo {
        &self.file
    }

    /// How long ago the file was known to be as it is given; absent: it is so now. Only with
    /// [`DownloadOptions::allow_stale`].
    pub fn stale(&self) -> Option<Duration> {
        self.stale
    }

    /// First byte that is sent.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that are sent in all.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The next piece; `None` once everything has come and is verified.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(opened) = self.stream.as_mut() else {
                return Ok(None);
            };
            let limit = self.client.limits().stall_timeout;
            let next = within(limit, async {
                opened.messages.message().await.map_err(|status| Error::from_status(&status))
            })
            .await;
            match next {
                Ok(Some(DownloadResponse { part: Some(Part::Data(piece)) })) => {
                    if piece.is_empty() {
                        continue;
                    }
                    return self.take(piece).map(Some);
                }
                Ok(None) if self.received == self.length => return self.finish().map(|()| None),
                Ok(None) => {
                    let error = Error::new(
                        ErrorCode::Unavailable,
                        Effect::Nothing,
                        format!("the download ended after {} of {} bytes", self.received, self.length),
                        "try again; `cairn status` shows how the cluster is",
                    );
                    self.resume(error).await?;
                }
                Ok(Some(_)) => {
                    return Err(Error::protocol("the node's download has something else than content in it"));
                }
                Err(error) => self.resume(error).await?,
            }
        }
    }

    fn take(&mut self, piece: Bytes) -> Result<Bytes> {
        let length = piece.len() as u64;
        if length > self.length - self.received {
            self.stream = None;
            return Err(Error::protocol("the node sends more than was asked for"));
        }
        self.received += length;
        if let Some(counter) = &self.counter {
            counter.add(length);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        Ok(piece)
    }

    fn finish(&mut self) -> Result<()> {
        self.stream = None;
        match self.hasher.take() {
            Some(hasher) if hasher.finalize().as_bytes()[..] != self.file.blake3[..] => Err(Error::new(
                ErrorCode::DigestMismatch,
                Effect::Nothing,
                "the content that came is not the content that was stored",
                "download it again, and report this: it must not happen",
            )),
            _ => Ok(()),
        }
    }

    /// Goes on at another node with the same generation, if waiting or asking elsewhere can help.
    async fn resume(&mut self, error: Error) -> Result<()> {
        let error = match self.stream.take() {
            Some(opened) => {
                opened.node.failed();
                error.at(&opened.node.name)
            }
            None => error,
        };
        let passing = error.is_transient() || error.code() == ErrorCode::DeadlineExceeded;
        if !passing || self.resumes >= MAX_RESUMES {
            return Err(error);
        }
        self.resumes += 1;
        tracing::debug!(%error, received = self.received, "going on at another node");
        let request = DownloadRequest {
            volume: self.file.volume.clone(),
            path: self.file.path.clone(),
            offset: self.offset + self.received,
            length: Some(self.length - self.received),
            if_match: self.file.etag.clone(),
            allow_stale: self.allow_stale,
        };
        if request.length == Some(0) {
            // Only the end of the stream is missing.
            self.stream = None;
            return self.finish();
        }
        let (stream, Begun { file, .. }) = self.client.open_download(&request).await.map_err(|again| {
            let gone = again.is_not_found() || again.code() == ErrorCode::PreconditionFailed;
            if gone { changed_meanwhile(&again) } else { again }
        })?;
        if file.blake3 != self.file.blake3 || file.size_bytes != self.file.size_bytes {
            return Err(Error::protocol("two nodes differ about the content of one generation"));
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// All that is left, as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        futures::stream::try_unfold(self, |mut download| async move {
            Ok(download.next_piece().await?.map(|piece| (piece, download)))
        })
    }

    /// Writes everything, and flushes. After an error the writer holds a part that is not to be used.
    pub async fn write_to(mut self, writer: &mut (impl AsyncWrite + Unpin)) -> Result<FileInfo> {
        let failed = |error: std::io::Error| Error::local_io("cannot write", &error);
        while let Some(piece) = self.next_piece().await? {
            writer.write_all(&piece).await.map_err(failed)?;
        }
        writer.flush().await.map_err(failed)?;
        Ok(self.file)
    }

    /// Everything, in memory, if it is at most `limit` bytes.
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes> {
        if self.length > limit as u64 {
            return Err(Error::local(
                format!("the content has {} bytes, more than the {limit} that were allowed for", self.length),
                "read it as a stream",
            ));
        }
        let mut all = BytesMut::with_capacity(self.length as usize);
        while let Some(piece) = self.next_piece().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

fn changed_meanwhile(error: &Error) -> Error {
    Error::new(
        ErrorCode::PreconditionFailed,
        Effect::Nothing,
        format!("the file was changed or deleted while it was downloaded ({})", error.cause()),
        "download it again",
    )
}
