//! `/v1/volumes/{volume}/files`: put, get, head, move, delete, list.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use cairn_proto::v1::ErrorCode;
use futures::StreamExt;
use http_body::Body as _;

use super::{
    super::{
        SharedShell, decode,
        flow::{Outgoing, incoming},
        status::Refusal,
    },
    Answer,
    conditions::{self, ReadConditions, Verdict},
    json, json_response, range,
    request::{file_of, file_with, flag, page_limit, query, volume_of},
    single, stale,
};
use crate::files::{
    Condition, Download, FileError, FileInfo, FilePath, MoveSpec, RangeSpec, ReadSpec, Stat, UploadSpec,
    VolumeName,
};

const BLAKE3: HeaderName = HeaderName::from_static("x-cairn-blake3");
const DIGEST: HeaderName = HeaderName::from_static("digest");
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

pub(super) async fn put(State(shell): State<SharedShell>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let (volume, path) = file_of(&parts.uri)?;
    refuse_what_would_be_lost(&parts.headers)?;
    let condition = conditions::for_write(&parts.headers)?;
    let content_type = single(&parts.headers, &header::CONTENT_TYPE)?.unwrap_or_default();
    let spec = UploadSpec {
        volume,
        path,
        size_bytes: body.size_hint().exact(),
        blake3: declared_digest(&parts.headers)?,
        condition,
        content_type: decode::content_type(content_type)?,
    };
    let content = body.into_data_stream().map(|data| {
        data.map_err(|error| FileError::UploadIncomplete(format!("the connection broke: {error}")))
    });
    let (content, gate) = incoming(&shell.env, &shell.metrics, shell.limits.stall, content);
    let file = gate.until_whole(shell.files.upload(spec, content)).await?;
    let status = if condition == Condition::IfAbsent { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = json_response(status, &json::file(&file));
    response.headers_mut().insert(header::ETAG, header_value(&conditions::etag(&file)));
    Ok(response)
}

/// What we would neither keep nor understand must not vanish silently.
fn refuse_what_would_be_lost(headers: &HeaderMap) -> Result<(), Refusal> {
    if let Some(encoding) = single(headers, &header::CONTENT_ENCODING)?
        && !encoding.eq_ignore_ascii_case("identity")
    {
        let cause = format!("Content-Encoding {encoding:?} is not kept; send the content as it is");
        return Err(Refusal::new(ErrorCode::Unsupported, cause).with_http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Refusal::invalid(
            "a part of a file cannot be put; send the whole file, without Content-Range",
        ));
    }
    Ok(())
}

/// The content's BLAKE3: `X-Cairn-Blake3: HEX`, or `Digest: blake3=BASE64`. Digests of other kinds are not ours to check.
fn declared_digest(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Refusal> {
    if let Some(text) = single(headers, &BLAKE3)? {
        let bytes = hex::decode(text)
            .map_err(|_| Refusal::invalid("X-Cairn-Blake3 must be 64 hexadecimal digits"))?;
        return decode::blake3(&bytes).map(Some);
    }
    let Some(text) = single(headers, &DIGEST)? else { return Ok(None) };
    for part in text.split(',') {
        if let Some((algorithm, value)) = part.trim().split_once('=')
            && algorithm.eq_ignore_ascii_case("blake3")
        {
            let bytes = BASE64_STANDARD
                .decode(value)
                .map_err(|_| Refusal::invalid("the blake3 value of Digest must be base64"))?;
            return decode::blake3(&bytes).map(Some);
        }
    }
    Ok(None)
}

pub(super) async fn get(State(shell): State<SharedShell>, request: Request) -> Answer {
    let (volume, path) = file_of(request.uri())?;
    let read = ReadConditions::of(request.headers())?;
    let wanted = range::of(request.headers());
    let max_stale = stale::allowed(request.headers());
    let opening = open(&shell, &volume, &path, &read, (wanted, max_stale));
    let (download, ranged) = match shell.within(shell.limits.unary, opening).await? {
        Opened::Content(download, ranged) => (download, ranged),
        Opened::PastTheEnd { size_bytes, error } => return Ok(not_satisfiable(size_bytes, error)),
    };
    let mut response = Response::new(Body::empty());
    describe(&download.file, response.headers_mut());
    stale::tell(download.stale, response.headers_mut());
    if read.check(&download.file).map_err(|refusal| stale::doubted(download.stale, refusal))?
        == Verdict::NotModified
    {
        return Ok(not_modified(response));
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(download.length));
    if ranged && download.length > 0 {
        let last = download.offset + download.length - 1;
        let shown = format!("bytes {}-{last}/{}", download.offset, download.file.size_bytes);
        headers.insert(header::CONTENT_RANGE, header_value(&shown));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let outgoing = Outgoing {
        env: shell.env.clone(),
        metrics: shell.metrics.clone(),
        stall: shell.limits.stall,
        deadline: None,
        ended: download.ended,
    };
    *response.body_mut() = Body::from_stream(outgoing.send(download.content, download.length));
    Ok(response)
}

enum Opened {
    /// And whether it is the range that was asked for.
    Content(Download, bool),
    PastTheEnd {
        size_bytes: u64,
        error: FileError,
    },
}

/// Begins the download of what the range asks for, or of everything if the range does not count.
async fn open(
    shell: &SharedShell,
    volume: &VolumeName,
    path: &FilePath,
    read: &ReadConditions,
    (wanted, max_stale): (Option<RangeSpec>, Option<Duration>),
) -> Result<Opened, Refusal> {
    let all = async || {
        let spec = ReadSpec { max_stale, ..ReadSpec::default() };
        let download = shell.files.download(volume, path, spec).await?;
        Ok(Opened::Content(download, false))
    };
    let Some(range) = wanted else { return all().await };
    let generation = match read.if_range() {
        Some(None) => return all().await,
        Some(Some(generation)) => Some(generation),
        None => None,
    };
    let ranged = match range {
        // Asks for no byte at all, which no file can satisfy.
        RangeSpec::Last(0) => {
            let size_bytes = shell.files.stat(volume, path, None).await?.file.size_bytes;
            Err(FileError::RangeNotSatisfiable { offset: size_bytes, size_bytes })
        }
        range => {
            shell.files.download(volume, path, ReadSpec { range, if_match: generation, max_stale }).await
        }
    };
    match ranged {
        Ok(download) => Ok(Opened::Content(download, true)),
        // If-Range: the file is another one by now, so all of it is wanted.
        Err(FileError::PreconditionFailed(_)) if generation.is_some() => all().await,
        Err(error @ FileError::RangeNotSatisfiable { size_bytes, .. }) => {
            // Conditions come before ranges.
            let file = shell.files.stat(volume, path, None).await?.file;
            match read.check(&file)? {
                Verdict::NotModified => all().await,
                Verdict::Send => Ok(Opened::PastTheEnd { size_bytes, error }),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn not_satisfiable(size_bytes: u64, error: FileError) -> Response {
    let mut response = Refusal::from(error).into_response();
    response.headers_mut().insert(header::CONTENT_RANGE, header_value(&format!("bytes */{size_bytes}")));
    response
}

pub(super) async fn head(State(shell): State<SharedShell>, request: Request) -> Answer {
    let (volume, path) = file_of(request.uri())?;
    let read = ReadConditions::of(request.headers())?;
    let look = shell.files.stat(&volume, &path, stale::allowed(request.headers()));
    let Stat { file, stale } = shell.within(shell.limits.unary, look).await?;
    let mut response = Response::new(Body::empty());
    describe(&file, response.headers_mut());
    stale::tell(stale, response.headers_mut());
    if read.check(&file).map_err(|refusal| stale::doubted(stale, refusal))? == Verdict::NotModified {
        return Ok(not_modified(response));
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(file.size_bytes));
    Ok(response)
}

/// `POST …/files/OLD?move_to=NEW`. Conditions in headers are about the file that moves, as everywhere.
pub(super) async fn move_file(State(shell): State<SharedShell>, request: Request) -> Answer {
    let (volume, path, [to, if_absent]) = file_with(request.uri(), ["move_to", "if_absent"])?;
    let to =
        to.ok_or_else(|| Refusal::invalid("a file that is posted to is moved: add ?move_to=NEW-NAME"))?;
    let if_match = match conditions::for_write(request.headers())? {
        Condition::Always | Condition::IfExists => None,
        Condition::IfMatch(generation) => Some(generation),
        Condition::IfAbsent => {
            let cause = "If-None-Match is about the file that moves, which must be there; use ?if_absent=true for the new name";
            return Err(Refusal::invalid(cause));
        }
    };
    let condition = match flag("if_absent", if_absent)? {
        true => Condition::IfAbsent,
        false => Condition::Always,
    };
    let spec = MoveSpec { volume, path, to: decode::file_path(&to)?, if_match, condition };
    let file = shell.within(shell.limits.unary, shell.files.move_file(spec)).await?;
    Ok(json_response(StatusCode::OK, &json::file(&file)))
}

pub(super) async fn delete(State(shell): State<SharedShell>, request: Request) -> Answer {
    let (volume, path) = file_of(request.uri())?;
    let condition = conditions::for_write(request.headers())?;
    let file = shell.within(shell.limits.unary, shell.files.delete(&volume, &path, condition)).await?;
    Ok(json_response(StatusCode::OK, &json::file(&file)))
}

pub(super) async fn list(State(shell): State<SharedShell>, uri: Uri) -> Answer {
    let volume = volume_of(&uri)?;
    let [prefix, delimiter, limit, token] = query(&uri, ["prefix", "delimiter", "limit", "page_token"])?;
    let text = |value: Option<String>| value.unwrap_or_default();
    let spec = decode::listing(&text(prefix), &text(delimiter), page_limit(limit)?, &text(token))?;
    let listing = shell.within(shell.limits.unary, shell.files.list(&volume, spec)).await?;
    Ok(json_response(StatusCode::OK, &json::listing(&listing)))
}

/// Headers that say what a file is.
fn describe(file: &FileInfo, headers: &mut HeaderMap) {
    let content_type = match file.content_type.as_str() {
        "" => DEFAULT_CONTENT_TYPE,
        given => given,
    };
    headers.insert(header::ETAG, header_value(&conditions::etag(file)));
    headers.insert(header::LAST_MODIFIED, header_value(&conditions::http_date(file.modified_unix_ms)));
    headers.insert(header::CONTENT_TYPE, header_value(content_type));
    headers.insert(BLAKE3, header_value(&hex::encode(file.blake3)));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Browsers must take the type as it is, and ask whether their copy is still good.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
}

fn not_modified(mut response: Response) -> Response {
    response.headers_mut().remove(header::CONTENT_TYPE);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(DEFAULT_CONTENT_TYPE))
}
