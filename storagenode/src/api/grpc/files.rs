//! `cairn.v1.Files`.

use std::pin::Pin;

use bytes::Bytes;
use cairn_proto::v1::{
    DeleteRequest, DeleteResponse, DownloadHeader, DownloadRequest, DownloadResponse, ListRequest,
    ListResponse, MoveRequest, MoveResponse, StatRequest, StatResponse, UploadHeader, UploadRequest,
    UploadResponse, download_response, files_server::Files, upload_request,
};
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{Service, deadline, encode};
use crate::{
    api::{
        decode,
        flow::{Outgoing, incoming},
        status::{Refusal, file_status},
    },
    files::{FileError, MoveSpec, RangeSpec, ReadSpec, Stat, UploadSpec},
};

/// Content comes in messages of at most this size.
const MAX_DATA_BYTES: usize = 1 << 20;

#[tonic::async_trait]
impl Files for Service {
    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let (metadata, _, mut messages) = request.into_parts();
        // No limit of our own: the stream may be long. It must not stall, and what follows it is bounded by the gateway.
        self.answer(&metadata, None, async {
            let shell = &self.0;
            let first = shell.env.timeout(shell.limits.stall, messages.message()).await;
            let first = first.ok_or_else(|| FileError::UploadIncomplete("no header came".into()))?;
            let spec = match first.map_err(broken)?.and_then(|message| message.part) {
                Some(upload_request::Part::Header(header)) => upload_spec(header)?,
                _ => return Err(Refusal::invalid("the first message of an upload must be its header")),
            };
            let (content, gate) =
                incoming(&shell.env, &shell.metrics, shell.limits.stall, content_of(messages));
            let file = gate.until_whole(shell.files.upload(spec, content)).await?;
            Ok(UploadResponse { file: Some(encode::file(file)) })
        })
        .await
    }

    type DownloadStream = Pin<Box<dyn Stream<Item = Result<DownloadResponse, Status>> + Send>>;

    async fn download(
        &self,
        request: Request<DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let started = self.0.env.clock.monotonic();
        let limit = deadline(&metadata)?;
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let shell = &self.0;
            let volume = decode::volume_name(&request.volume)?;
            let path = decode::file_path(&request.path)?;
            let range = match (request.offset, request.length) {
                (0, None) => RangeSpec::All,
                (offset, length) => RangeSpec::From { offset, length },
            };
            let if_match = decode::if_match(&request.if_match)?;
            let spec = ReadSpec { range, if_match, max_stale: decode::max_stale(request.allow_stale) };
            let download = shell.files.download(&volume, &path, spec).await?;
            let header = DownloadHeader {
                file: Some(encode::file(download.file)),
                stale_ms: encode::stale_ms(download.stale),
                offset: download.offset,
                length: download.length,
            };
            let elapsed = shell.env.clock.monotonic().saturating_sub(started);
            let outgoing = Outgoing {
                env: shell.env.clone(),
                metrics: shell.metrics.clone(),
                stall: shell.limits.stall,
                deadline: limit.map(|limit| limit.saturating_sub(elapsed)),
                ended: download.ended,
            };
            let content = outgoing.send(download.content, download.length).map(|data| match data {
                Ok(data) => Ok(DownloadResponse { part: Some(download_response::Part::Data(data)) }),
                Err(error) => Err(file_status(error)),
            });
            let header = DownloadResponse { part: Some(download_response::Part::Header(header)) };
            let messages: Self::DownloadStream = Box::pin(stream::iter([Ok(header)]).chain(content));
            Ok(messages)
        })
        .await
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let volume = decode::volume_name(&request.volume)?;
            let path = decode::file_path(&request.path)?;
            let max_stale = decode::max_stale(request.allow_stale);
            let (Stat { file, stale }, locations) = match request.chunks {
                true => self.0.files.locate(&volume, &path, max_stale).await?,
                false => (self.0.files.stat(&volume, &path, max_stale).await?, Vec::new()),
            };
            let label = |node| self.0.cluster.label(node);
            let chunks = locations.into_iter().map(|location| encode::chunk(location, label)).collect();
            Ok(StatResponse { file: Some(encode::file(file)), chunks, stale_ms: encode::stale_ms(stale) })
        })
        .await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let volume = decode::volume_name(&request.volume)?;
            let page = request.page.unwrap_or_default();
            let limit = decode::page_size(page.size)?;
            let spec = decode::listing(&request.prefix, &request.delimiter, limit, &page.token)?;
            Ok(encode::listing(self.0.files.list(&volume, spec).await?))
        })
        .await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let volume = decode::volume_name(&request.volume)?;
            let path = decode::file_path(&request.path)?;
            let condition = encode::condition(request.condition)?;
            let file = self.0.files.delete(&volume, &path, condition).await?;
            Ok(DeleteResponse { file: Some(encode::file(file)) })
        })
        .await
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<MoveResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let spec = MoveSpec {
                volume: decode::volume_name(&request.volume)?,
                path: decode::file_path(&request.path)?,
                to: decode::file_path(&request.to_path)?,
                if_match: decode::if_match(&request.if_match)?,
                condition: encode::condition(request.to_condition)?,
            };
            let file = self.0.files.move_file(spec).await?;
            Ok(MoveResponse { file: Some(encode::file(file)) })
        })
        .await
    }
}

fn upload_spec(header: UploadHeader) -> Result<UploadSpec, Refusal> {
    Ok(UploadSpec {
        volume: decode::volume_name(&header.volume)?,
        path: decode::file_path(&header.path)?,
        size_bytes: header.size_bytes,
        blake3: header.blake3.map(|bytes| decode::blake3(&bytes)).transpose()?,
        condition: encode::condition(header.condition)?,
        content_type: decode::content_type(&header.content_type)?,
    })
}

/// The messages after the header.
fn content_of(messages: Streaming<UploadRequest>) -> impl Stream<Item = Result<Bytes, FileError>> + Send {
    messages.map(|message| match message.map_err(broken)?.part {
        Some(upload_request::Part::Data(data)) if data.len() <= MAX_DATA_BYTES => Ok(data),
        Some(upload_request::Part::Data(data)) => Err(FileError::InvalidArgument(format!(
            "a message of an upload has {} bytes of content; send {MAX_DATA_BYTES} at most",
            data.len()
        ))),
        Some(upload_request::Part::Header(_)) => {
            Err(FileError::InvalidArgument("an upload has one header, and it is the first message".into()))
        }
        None => {
            Err(FileError::InvalidArgument("a message of an upload has neither header nor content".into()))
        }
    })
}

/// The stream of messages ended with an error: of the caller's making, or because the connection broke.
fn broken(status: Status) -> FileError {
    match status.code() {
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted | tonic::Code::InvalidArgument => {
            FileError::InvalidArgument(status.message().to_owned())
        }
        _ => FileError::UploadIncomplete(status.message().to_owned()),
    }
}
