//! What can go wrong, in one type: a code from the catalogue (`proto/cairn/v1/common.proto`), what happened, what to
//! do about it, and whether anything may have changed.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use cairn_proto::v1::ErrorCode;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::tls::{ConnectFailure, explain_tls};

/// The `domain` of every `google.rpc.ErrorInfo` that a node sends.
pub const ERROR_DOMAIN: &str = "cairn.storage";

/// What the failed call may have done at the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// No server has seen it.
    NotSent,
    /// A server refused it; nothing changed.
    Nothing,
    /// It may have been done, or may still be: look before repeating a change.
    Unknown,
}

/// Why a call failed.
#[derive(Clone)]
pub struct Error(Box<Parts>);

#[derive(Clone)]
struct Parts {
    code: ErrorCode,
    cause: String,
    help: String,
    endpoint: Option<String>,
    effect: Effect,
    permanent: bool,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a code of the catalogue, found out on this side.
    pub fn new(code: ErrorCode, effect: Effect, cause: impl Into<String>, help: impl Into<String>) -> Self {
        let (cause, help) = (cause.into(), help.into());
        Self(Box::new(Parts { code, cause, help, endpoint: None, effect, permanent: false }))
    }

    /// Something on this side, such as a local file that cannot be read. Its code is `ERROR_CODE_UNSPECIFIED`.
    pub fn local(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unspecified, Effect::NotSent, cause, help)
    }

    pub(crate) fn local_io(what: &str, error: &io::Error) -> Self {
        Self::local(
            format!("{what}: {error}"),
            "check that it exists, can be read or written, and that the disk is not full",
        )
    }

    /// What a server sent that breaks the protocol.
    pub(crate) fn protocol(cause: impl Into<String>) -> Self {
        let help =
            "the node may be of another version; compare the output of `cairn --version` with `cairn status`";
        Self::new(ErrorCode::Internal, Effect::Unknown, cause, help)
    }

    pub(crate) fn from_connect(failure: &ConnectFailure) -> Self {
        let mut error = Self::new(failure.code, Effect::NotSent, &failure.cause, &failure.help);
        error.0.permanent = failure.permanent;
        error
    }

    /// Decodes what tonic has: a node's answer with `ErrorInfo`, or a connection that failed or broke.
    pub(crate) fn from_status(status: &Status) -> Self {
        if let Some(error) = from_error_info(status) {
            return error;
        }
        if let Some(failure) = find_source::<ConnectFailure>(status) {
            return Self::from_connect(failure);
        }
        if let Some(failure) = find_tls(status) {
            return Self::from_connect(&failure);
        }
        from_bare_status(status)
    }

    pub(crate) fn at(mut self, endpoint: &str) -> Self {
        // What is wrong on this side no node has said, and another file may be sound.
        if self.0.code != ErrorCode::Unspecified {
            self.0.endpoint.get_or_insert_with(|| endpoint.to_owned());
        }
        self
    }

    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The code as it is on the wire, such as `FILE_NOT_FOUND`; `LOCAL` for what is not from the catalogue.
    pub fn code_name(&self) -> &'static str {
        match self.0.code {
            ErrorCode::Unspecified => "LOCAL",
            code => code.as_str_name(),
        }
    }

    /// What happened: a sentence without a full stop.
    pub fn cause(&self) -> &str {
        &self.0.cause
    }

    /// What to do about it.
    pub fn help(&self) -> &str {
        &self.0.help
    }

    /// The node that answered, or could not be reached: `host:port`.
    pub fn endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }

    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// Whether the same call may work a little later, or at another node.
    pub fn is_transient(&self) -> bool {
        use ErrorCode::*;
        !self.0.permanent
            && matches!(
                self.0.code,
                Unavailable
                    | Overloaded
                    | NotEnoughNodes
                    | MetadataUnavailable
                    | Conflict
                    | ChunkUnavailable
                    | UploadIncomplete
            )
    }

    /// Trying the same node again cannot help: its certificate is not to be trusted, or the like.
    pub(crate) fn is_permanent(&self) -> bool {
        self.0.permanent
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self.0.code, ErrorCode::FileNotFound | ErrorCode::VolumeNotFound)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.cause)?;
        match self.endpoint() {
            Some(endpoint) if !self.0.cause.contains(endpoint) => write!(f, " (node {endpoint})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}; help: {} ({:?})", self.code_name(), self.0.help, self.0.effect)
    }
}

impl StdError for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

fn from_error_info(status: &Status) -> Option<Error> {
    let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN)?;
    // A newer node may know codes that this client does not.
    let code = ErrorCode::from_str_name(&info.reason).unwrap_or_else(|| code_of(status.code()));
    let text = |key: &str| info.metadata.get(key).filter(|text| !text.is_empty()).cloned();
    let cause = text("cause").unwrap_or_else(|| message_of(status));
    let help = text("help").unwrap_or_else(|| default_help(code).to_owned());
    let effect = if code == ErrorCode::CommitUnknown { Effect::Unknown } else { Effect::Nothing };
    Some(Error::new(code, effect, cause, help))
}

fn from_bare_status(status: &Status) -> Error {
    if find_source::<tonic::TimeoutExpired>(status).is_some() {
        return Error::new(
            ErrorCode::DeadlineExceeded,
            Effect::Unknown,
            "the node did not answer in time",
            default_help(ErrorCode::DeadlineExceeded),
        );
    }
    let broken =
        status.source().is_some() && !matches!(status.code(), Code::DeadlineExceeded | Code::OutOfRange);
    if broken {
        let cause = format!("the connection broke: {}", innermost(status));
        return Error::new(
            ErrorCode::Unavailable,
            Effect::Unknown,
            cause,
            "the node may have stopped; try again",
        );
    }
    let code = code_of(status.code());
    Error::new(code, Effect::Unknown, message_of(status), default_help(code))
}

fn code_of(code: Code) -> ErrorCode {
    match code {
        Code::Unavailable | Code::Aborted | Code::Cancelled => ErrorCode::Unavailable,
        Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::PermissionDenied => ErrorCode::PermissionDenied,
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
        Code::FailedPrecondition => ErrorCode::PreconditionFailed,
        Code::ResourceExhausted => ErrorCode::Overloaded,
        Code::Unimplemented => ErrorCode::Unsupported,
        _ => ErrorCode::Internal,
    }
}

fn message_of(status: &Status) -> String {
    match status.message() {
        "" => format!("the node answered {:?} without saying why", status.code()),
        message => message.to_owned(),
    }
}

/// What to do, for an answer that does not say.
fn default_help(code: ErrorCode) -> &'static str {
    use ErrorCode::*;
    match code {
        Unauthenticated => {
            "give a token that this cluster knows: CAIRN_TOKEN_FILE, --token-file, or a context"
        }
        PermissionDenied => "ask the owner of the cluster for the right to do this",
        VolumeNotFound => "list the volumes with `cairn volumes`",
        FileNotFound => "list the files with `cairn ls`",
        DeadlineExceeded => "look at the cluster with `cairn status`, and allow more time with --timeout",
        CommitUnknown => "look with `cairn stat` whether it happened before repeating it",
        Unsupported => {
            "the server does not offer this: it may be of another version, or not the gRPC port of a Cairn node (50051)"
        }
        Unavailable | Overloaded | NotEnoughNodes | MetadataUnavailable | ChunkUnavailable | Conflict => {
            "try again; `cairn status` shows how the cluster is"
        }
        _ => "see the node's log for more",
    }
}

/// Walks an error and its sources; `io::Error` hides what it carries from `source()`, so that is looked into too.
fn find_source<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(carried) = carried
            && let Some(found) = find_source::<T>(carried)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A server that wants another certificate says so after the handshake, as an alert.
fn find_tls(status: &Status) -> Option<ConnectFailure> {
    let error = find_source::<rustls::Error>(status)?;
    matches!(error, rustls::Error::AlertReceived(_)).then(|| explain_tls(error, "the node"))
}

fn innermost(status: &Status) -> String {
    let mut error: &dyn StdError = status;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = error.to_string();
    if text.is_empty() { status.message().to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str, domain: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<String, String> =
            metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Status::with_error_details(code, "message", ErrorDetails::with_error_info(reason, domain, metadata))
    }

    /// A caller that goes on with other files stops where a node cannot be used at all: this is no such thing.
    #[test]
    fn what_is_wrong_here_was_said_by_no_node() {
        let local = Error::local("cannot read x", "").at("n1:50051");
        assert_eq!((local.endpoint(), local.effect()), (None, Effect::NotSent));
        assert_eq!(
            Error::new(ErrorCode::Unavailable, Effect::NotSent, "", "").at("n1:1").endpoint(),
            Some("n1:1")
        );
    }

    #[test]
    fn error_info_is_decoded() {
        let sent = status(
            Code::NotFound,
            "FILE_NOT_FOUND",
            ERROR_DOMAIN,
            &[("cause", "no file \"a\""), ("help", "list them")],
        );
        let error = Error::from_status(&sent).at("n1:50051");
        assert_eq!(error.code(), ErrorCode::FileNotFound);
        assert_eq!(error.code_name(), "FILE_NOT_FOUND");
        assert_eq!(error.cause(), "no file \"a\"");
        assert_eq!(error.help(), "list them");
        assert_eq!(error.effect(), Effect::Nothing);
        assert_eq!(error.to_string(), "no file \"a\" (node n1:50051)");
        assert!(!error.is_transient());
    }

    #[test]
    fn missing_texts_and_unknown_reasons_still_make_sense() {
        let error =
            Error::from_status(&status(Code::ResourceExhausted, "FROM_THE_FUTURE", ERROR_DOMAIN, &[]));
        assert_eq!(error.code(), ErrorCode::Overloaded);
        assert_eq!(error.cause(), "message");
        assert!(!error.help().is_empty());
        assert!(error.is_transient());
    }

    #[test]
    fn another_domain_is_not_believed() {
        let error = Error::from_status(&status(Code::NotFound, "FILE_NOT_FOUND", "example.com", &[]));
        assert_eq!(error.code(), ErrorCode::Internal);
        assert_eq!(error.effect(), Effect::Unknown);
    }

    #[test]
    fn commit_unknown_is_never_transient() {
        let error = Error::from_status(&status(Code::Unknown, "COMMIT_UNKNOWN", ERROR_DOMAIN, &[]));
        assert_eq!(error.effect(), Effect::Unknown);
        assert!(!error.is_transient());
    }

    #[test]
    fn garbage_in_the_details_is_survived() {
        let garbage =
            Status::with_details(Code::Unavailable, "busy", bytes::Bytes::from_static(b"\xff\xff\x01"));
        let error = Error::from_status(&garbage);
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert_eq!(error.effect(), Effect::Unknown);
    }

    #[test]
    fn what_an_io_error_carries_is_found() {
        let failure = ConnectFailure::refused("n1:50051");
        let wrapped = io::Error::other(io::Error::other(failure));
        let mut status = Status::unavailable("x");
        status.set_source(std::sync::Arc::new(wrapped));
        let error = Error::from_status(&status);
        assert_eq!(error.effect(), Effect::NotSent);
        assert!(error.cause().contains("n1:50051"), "{error}");
    }
}
