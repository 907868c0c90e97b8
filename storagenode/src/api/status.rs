//! The one map from errors to the wire.
//!
//! Every refusal is a [`Refusal`]: a code of the catalogue in `cairn/v1/common.proto` and a cause. [`entry`] says for
//! each code what gRPC and HTTP call it, what the caller can do, and whether waiting helps. Over gRPC it travels as a
//! `google.rpc.ErrorInfo` in the status details (domain [`DOMAIN`], `reason` the code's name, metadata `cause` and
//! `help`), over HTTP as `application/problem+json` (RFC 9457).

use std::{collections::HashMap, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use cairn_proto::v1::ErrorCode;
use http::{HeaderValue, StatusCode, header};
use tonic_types::{ErrorDetails, StatusExt};

use super::{observe::RefusalCode, ports::IntentError};
use crate::files::FileError;

/// The domain of every `ErrorInfo` of ours.
pub const DOMAIN: &str = "cairn.storage";

/// Causes are cut to this, so that a status always fits into HTTP/2 headers.
const MAX_CAUSE_BYTES: usize = 2_048;

/// What the wire says about one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub grpc: tonic::Code,
    pub http: StatusCode,
    pub title: &'static str,
    /// What the caller can do about it.
    pub help: &'static str,
    /// Seconds after which the same request may succeed.
    pub retry_after_s: Option<u32>,
}

/// A request that was not carried out, as the caller learns it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Refusal {
    pub code: ErrorCode,
    pub cause: String,
    /// Another HTTP status than the code's usual one (unknown addresses, methods, sizes of bodies).
    pub http: Option<StatusCode>,
}

impl Refusal {
    pub fn new(code: ErrorCode, cause: impl Into<String>) -> Self {
        Self { code, cause: cause.into(), http: None }
    }

    pub fn invalid(cause: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, cause)
    }

    /// With another HTTP status than the code's usual one.
    pub fn with_http(self, http: StatusCode) -> Self {
        Self { http: Some(http), ..self }
    }

    pub fn entry(&self) -> Entry {
        entry(self.code)
    }

    pub fn http_status(&self) -> StatusCode {
        self.http.unwrap_or(self.entry().http)
    }
}

macro_rules! catalogue {
    ($($code:ident => $grpc:ident $http:literal $(retry $seconds:literal)?, $title:literal, $help:literal;)*) => {
        /// What each code means on each wire.
        pub fn entry(code: ErrorCode) -> Entry {
            let (grpc, http, title, help, retry_after_s) = match code {
                $(ErrorCode::$code => (tonic::Code::$grpc, $http, $title, $help, None$(.or(Some($seconds)))?),)*
            };
            let http = StatusCode::from_u16(http).expect("the table holds HTTP statuses");
            Entry { grpc, http, title, help, retry_after_s }
        }
    };
}

catalogue! {
    Unspecified => Unknown 500, "Unknown error",
        "look into the node's log, and report this as a bug";
    InvalidArgument => InvalidArgument 400, "Malformed request",
        "mend the request as the cause says";
    InvalidPath => InvalidArgument 400, "File name not allowed",
        "use a relative name of 1 to 1,024 bytes of UTF-8, with no empty, \".\" or \"..\" part and no NUL";
    InvalidVolumeName => InvalidArgument 400, "Volume name not allowed",
        "use 1 to 63 of a-z, 0-9 and \"-\", beginning and ending with a letter or a digit";
    Unauthenticated => Unauthenticated 401, "Not authenticated",
        "send \"authorization: Bearer TOKEN\" with a token of this cluster, or use a client certificate of its CA";
    PermissionDenied => PermissionDenied 403, "Not allowed",
        "use credentials of the role that the cause names";
    VolumeNotFound => NotFound 404, "No such volume",
        "create the volume first, or mend its name";
    VolumeExists => AlreadyExists 409, "Volume exists",
        "use the volume as it is, or choose another name: settings of a volume cannot be changed";
    VolumeDeleting => FailedPrecondition 409, "Volume is being deleted",
        "wait until it is gone, or use another volume";
    VolumeNotEmpty => FailedPrecondition 409, "Volume is not empty",
        "delete its files first, or ask for the files to be deleted with it";
    FileNotFound => NotFound 404, "No such file",
        "list the volume to see the names that it has";
    PreconditionFailed => FailedPrecondition 412, "Condition does not hold",
        "read the file's present etag, decide anew, and repeat with it";
    RangeNotSatisfiable => OutOfRange 416, "Range past the end",
        "ask for a range within the file's size";
    SizeMismatch => InvalidArgument 400, "Content has another size",
        "send exactly as many bytes as declared; nothing was stored";
    DigestMismatch => InvalidArgument 400, "Content has another digest",
        "the content changed on its way, or the digest is of something else; nothing was stored, send it again";
    UploadIncomplete => Aborted 400, "Upload broke off",
        "nothing was stored; send the whole content again";
    NotEnoughNodes => Unavailable 503 retry 5, "Too few nodes",
        "nothing was changed; see to the nodes that are named (`cairn status` shows all of them), or try again later";
    MetadataUnavailable => Unavailable 503 retry 2, "Metadata store away",
        "check that the metadata store runs and can be reached from the nodes; try again later";
    CommitUnknown => Unknown 500, "Outcome unknown",
        "look whether the file is there before you repeat the request";
    Conflict => Aborted 409, "Changed at the same time",
        "nothing was changed by this request; repeat it";
    OutOfSpace => ResourceExhausted 507, "Disks are full",
        "delete files (which still works; their space is free after they have rested, by default for 15 minutes), or add \
         disk space or nodes";
    ChunkUnavailable => Unavailable 503 retry 5, "No copy within reach",
        "bring the nodes back that hold the file (its chunk locations name them), or try again later";
    DataCorrupt => DataLoss 500, "Every copy is damaged",
        "restore the file from a backup, check the nodes' disks, and upload it again";
    Unavailable => Unavailable 503 retry 1, "Node is not ready",
        "try again, here or at another node";
    Overloaded => ResourceExhausted 503 retry 1, "Too much at once",
        "send less at the same time, or try again later";
    DeadlineExceeded => DeadlineExceeded 504, "Deadline passed",
        "allow more time; for a write, look whether it happened before you repeat it";
    ChunkNotFound => NotFound 404, "No such chunk here",
        "ask another member";
    ChunkRefused => FailedPrecondition 409, "Chunk refused",
        "do not repeat: other bytes are stored under this id, or it was deleted";
    StaleGeneration => FailedPrecondition 409, "Older than what is known",
        "read the present state and decide anew";
    NodeNotFound => NotFound 404, "No such node",
        "see the cluster's status for the names of its nodes";
    Unsupported => Unimplemented 501, "Not supported",
        "see /openapi.json, or gRPC reflection, for what is";
    Internal => Internal 500, "Internal error",
        "look into the node's log, and report this as a bug";
}

impl From<FileError> for Refusal {
    fn from(error: FileError) -> Self {
        let code = match &error {
            FileError::InvalidArgument(_) => ErrorCode::InvalidArgument,
            FileError::InvalidPath(_) => ErrorCode::InvalidPath,
            FileError::InvalidVolumeName(_) => ErrorCode::InvalidVolumeName,
            FileError::VolumeNotFound(_) => ErrorCode::VolumeNotFound,
            FileError::VolumeExists(_) => ErrorCode::VolumeExists,
            FileError::VolumeDeleting(_) => ErrorCode::VolumeDeleting,
            FileError::VolumeNotEmpty(_) => ErrorCode::VolumeNotEmpty,
            FileError::FileNotFound { .. } => ErrorCode::FileNotFound,
            FileError::PreconditionFailed(_) => ErrorCode::PreconditionFailed,
            FileError::RangeNotSatisfiable { .. } => ErrorCode::RangeNotSatisfiable,
            FileError::SizeMismatch { .. } => ErrorCode::SizeMismatch,
            FileError::DigestMismatch { .. } => ErrorCode::DigestMismatch,
            FileError::UploadIncomplete(_) => ErrorCode::UploadIncomplete,
            FileError::NotEnoughNodes { .. } => ErrorCode::NotEnoughNodes,
            FileError::MetadataUnavailable(_) => ErrorCode::MetadataUnavailable,
            FileError::CommitUnknown(_) => ErrorCode::CommitUnknown,
            FileError::Conflict(_) => ErrorCode::Conflict,
            FileError::OutOfSpace(_) => ErrorCode::OutOfSpace,
            FileError::ChunkUnavailable { .. } => ErrorCode::ChunkUnavailable,
            FileError::DataCorrupt { .. } => ErrorCode::DataCorrupt,
            FileError::NotReady(_) => ErrorCode::Unavailable,
            FileError::Overloaded(_) => ErrorCode::Overloaded,
            FileError::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            FileError::Internal(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<IntentError> for Refusal {
    fn from(error: IntentError) -> Self {
        match error {
            IntentError::Stale { .. } | IntentError::Differs(_) => {
                Self::new(ErrorCode::StaleGeneration, error.to_string())
            }
            IntentError::Invalid(cause) => Self::invalid(cause),
            IntentError::Other(error) => error.into(),
        }
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let entry = refusal.entry();
        let cause = cut(refusal.cause);
        let metadata = HashMap::from([
            ("cause".to_string(), cause.clone()),
            ("help".to_string(), entry.help.to_string()),
        ]);
        let mut details = ErrorDetails::with_error_info(refusal.code.as_str_name(), DOMAIN, metadata);
        if let Some(seconds) = entry.retry_after_s {
            details.set_retry_info(Some(Duration::from_secs(seconds.into())));
        }
        tonic::Status::with_error_details(entry.grpc, cause, details)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let entry = self.entry();
        let status = self.http_status();
        let problem = serde_json::json!({
            "type": format!("urn:cairn:error:{}", self.code.as_str_name()),
            "title": entry.title,
            "status": status.as_u16(),
            "detail": cut(self.cause),
            "code": self.code.as_str_name(),
            "help": entry.help,
        });
        let mut response = Response::new(Body::from(problem.to_string()));
        *response.status_mut() = status;
        response.extensions_mut().insert(RefusalCode(self.code));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = entry.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"cairn\""));
        }
        response
    }
}

/// A status for what a peer refuses.
pub fn peer_status(code: ErrorCode, cause: impl Into<String>) -> tonic::Status {
    Refusal::new(code, cause).into()
}

/// The status of a gateway's refusal.
pub fn file_status(error: FileError) -> tonic::Status {
    Refusal::from(error).into()
}

/// The catalogue's code in a status from another node; `None` if there is none (the transport failed, or another
/// program answered).
pub fn code_of(status: &tonic::Status) -> Option<ErrorCode> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    ErrorCode::from_str_name(&info.reason)
}

fn cut(mut cause: String) -> String {
    if cause.len() > MAX_CAUSE_BYTES {
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE_BYTES));
        cause.push('…');
    }
    cause
}

#[cfg(test)]
mod tests;
