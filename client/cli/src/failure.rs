//! What a command ends with: an exit code, and for a failure what happened and what to do.

use std::process::ExitCode;

use cairn_client::config::ConfigError;
use cairn_client::{Effect, Error, ErrorCode};
use serde::Serialize;

/// Exit codes, as `cairn --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Denied = 5,
    Unavailable = 6,
    Partial = 7,
    /// As shells have it for a program that was interrupted.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command, or one file of it, failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// From the catalogue of errors, or `LOCAL`.
    pub code: &'static str,
    pub cause: String,
    pub help: String,
    /// The node that said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(skip)]
    pub exit: Exit,
    /// The same will happen to every other file.
    #[serde(skip)]
    pub hits_all: bool,
}

impl Failure {
    fn new(code: &'static str, exit: Exit, cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code, exit, cause: cause.into(), help: help.into(), endpoint: None, hits_all: false }
    }

    /// Something about this machine: files, rights, settings.
    pub fn local(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new("LOCAL", Exit::Failed, cause, help)
    }

    pub fn usage(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new("INVALID_ARGUMENT", Exit::Usage, cause, help)
    }

    pub fn path(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new("INVALID_PATH", Exit::Usage, cause, help)
    }

    pub fn not_found(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new("FILE_NOT_FOUND", Exit::NotFound, cause, help)
    }

    pub fn unavailable(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new("UNAVAILABLE", Exit::Unavailable, cause, help)
    }

    pub fn interrupted() -> Self {
        let help = "files that were not complete are not stored; run the same again";
        Self::new("LOCAL", Exit::Interrupted, "interrupted", help)
    }

    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let help = "check that it exists, that you may read or write it, and that the disk is not full";
        Self::local(format!("{what}: {error}"), help)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        use ErrorCode::*;
        // A connection that cannot be made for good is none that every other file could use.
        let no_connection =
            error.effect() == Effect::NotSent && !error.is_transient() && error.endpoint().is_some();
        Self {
            code: error.code_name(),
            cause: error.cause().to_owned(),
            help: error.help().to_owned(),
            endpoint: error.endpoint().map(str::to_owned),
            exit: exit_of(error.code()),
            hits_all: no_connection
                || matches!(
                    error.code(),
                    Unauthenticated
                        | PermissionDenied
                        | VolumeNotFound
                        | VolumeDeleting
                        | OutOfSpace
                        | Unsupported
                ),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let exit = match error {
            ConfigError::NoSuchContext { .. } => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::new("LOCAL", exit, error.to_string(), error.help())
    }
}

/// One code for each thing that a script may want to do about it.
fn exit_of(code: ErrorCode) -> Exit {
    use ErrorCode::*;
    match code {
        InvalidArgument | InvalidPath | InvalidVolumeName | RangeNotSatisfiable => Exit::Usage,
        FileNotFound | VolumeNotFound | NodeNotFound | ChunkNotFound => Exit::NotFound,
        PreconditionFailed | VolumeExists | VolumeNotEmpty | VolumeDeleting | Conflict | StaleGeneration => {
            Exit::Conflict
        }
        Unauthenticated | PermissionDenied => Exit::Denied,
        NotEnoughNodes | MetadataUnavailable | ChunkUnavailable | Unavailable | Overloaded
        | DeadlineExceeded => Exit::Unavailable,
        Unspecified | SizeMismatch | DigestMismatch | UploadIncomplete | CommitUnknown | OutOfSpace
        | DataCorrupt | ChunkRefused | Unsupported | Internal => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: ErrorCode) -> Failure {
        Error::new(code, Effect::Nothing, "cause", "help").into()
    }

    #[test]
    fn codes_become_exit_codes() {
        for (code, exit) in [
            (ErrorCode::InvalidPath, 2),
            (ErrorCode::VolumeNotFound, 3),
            (ErrorCode::PreconditionFailed, 4),
            (ErrorCode::Unauthenticated, 5),
            (ErrorCode::NotEnoughNodes, 6),
            (ErrorCode::CommitUnknown, 1),
            (ErrorCode::DataCorrupt, 1),
        ] {
            assert_eq!(of(code).exit as u8, exit, "{code:?}");
        }
    }

    #[test]
    fn what_hits_all_files_is_told_from_what_hits_one() {
        assert!(of(ErrorCode::VolumeNotFound).hits_all);
        assert!(of(ErrorCode::Unauthenticated).hits_all);
        assert!(!of(ErrorCode::FileNotFound).hits_all);
        assert!(!of(ErrorCode::Unavailable).hits_all);
        assert!(!Failure::from(Error::local("cannot read x", "")).hits_all, "one local file");
    }

    #[test]
    fn json_has_stable_names() {
        let json = serde_json::to_value(of(ErrorCode::FileNotFound)).unwrap();
        assert_eq!(json, serde_json::json!({"code": "FILE_NOT_FOUND", "cause": "cause", "help": "help"}));
    }
}
