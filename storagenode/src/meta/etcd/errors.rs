//! What a failed call to etcd means: has it happened, certainly not, or perhaps?
//!
//! Certainly not, if the connection was never made, or if etcd says so itself before it proposes anything to its
//! members. Everything else that a write may meet (no answer, a connection lost, a leader lost) is unknown: the proposal may be
//! in the log, and be applied later.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, Status};

use crate::meta::MetaError;

/// Why one attempt has failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Certainly nothing has happened; another attempt may work.
    NotDone(String),
    /// It may have happened, or may still happen.
    Unknown(String),
    /// As `Unknown`: no answer in time.
    Hung(String),
    /// The answer has come and is larger than we take.
    TooLarge,
    /// Nothing has happened, and another attempt would not help.
    Final(MetaError),
}

pub(super) fn classify(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => classify_status(status),
        Error::LeaseKeepAliveError(why) if why == "lease not found" => {
            Failure::Final(MetaError::LeaseNotFound)
        }
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Failure::Final(MetaError::Refused(error.to_string()))
        }
        Error::TransportError(source) if never_connected(source) => Failure::NotDone(describe(source)),
        other => Failure::Unknown(other.to_string()),
    }
}

pub(super) fn classify_status(status: &Status) -> Failure {
    let message = status.message();
    let says = |text: &str| message.contains(text);
    if status.source().is_some_and(never_connected) || message.starts_with("Service was not ready") {
        return Failure::NotDone(status.source().map_or_else(|| message.to_owned(), describe));
    }
    match status.code() {
        Code::ResourceExhausted if says("database space exceeded") => Failure::Final(MetaError::Full(
            "etcd's quota is used up: compact and defragment it, raise --quota-backend-bytes, then disarm its alarm"
                .to_owned(),
        )),
        Code::ResourceExhausted if says("too many requests") => Failure::NotDone(message.to_owned()),
        Code::ResourceExhausted if says("received message larger than max") => refused(message),
        Code::InvalidArgument | Code::Unimplemented => refused(message),
        Code::OutOfRange if says("revision has been compacted") => Failure::Final(MetaError::Compacted),
        Code::OutOfRange if says("future revision") => refused(message),
        Code::OutOfRange if says("message length too large") => Failure::TooLarge,
        Code::NotFound if says("lease not found") => Failure::Final(MetaError::LeaseNotFound),
        Code::Unauthenticated | Code::PermissionDenied => {
            refused(&format!("{message} (check the certificate that DATABASE_URL names, and etcd's roles)"))
        }
        Code::DataLoss => Failure::Final(MetaError::Damaged(message.to_owned())),
        _ if says("etcdserver: no leader")
            || says("raft proposal dropped")
            || says("not supported for learner") =>
        {
            Failure::NotDone(message.to_owned())
        }
        code => Failure::Unknown(match status.source() {
            Some(source) => describe(source),
            None => format!("{code:?}: {message}"),
        }),
    }
}

fn refused(why: &str) -> Failure {
    Failure::Final(MetaError::Refused(why.to_owned()))
}

/// Whether making the connection is what failed, so that nothing was sent.
fn never_connected(error: &(dyn std::error::Error + 'static)) -> bool {
    chain(error).any(|error| error.is::<tonic::ConnectError>())
}

/// The whole chain in one line: "transport error" alone helps nobody.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in chain(error).map(ToString::to_string) {
        if parts.last().is_none_or(|last| !last.contains(&part)) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What etcd 3.6 says, by its `rpctypes/error.go`.
    #[test]
    fn what_etcd_says() {
        let classify = |code, message: &str| classify_status(&Status::new(code, message));
        for (code, message) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (Code::Unknown, "raft proposal dropped"),
        ] {
            assert_eq!(classify(code, message), Failure::NotDone(message.to_owned()));
        }
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Cancelled, "h2 protocol error"),
            (Code::ResourceExhausted, "too_many_pings"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Unknown, "transport error"),
        ] {
            assert!(matches!(classify(code, message), Failure::Unknown(_)), "{message}");
        }
        let is_final = |code, message| match classify(code, message) {
            Failure::Final(error) => error,
            other => panic!("{message}: {other:?}"),
        };
        assert!(matches!(
            is_final(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            MetaError::Full(_)
        ));
        assert!(matches!(
            is_final(Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            MetaError::Refused(_)
        ));
        assert_eq!(
            is_final(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            MetaError::Compacted
        );
        assert_eq!(
            is_final(Code::NotFound, "etcdserver: requested lease not found"),
            MetaError::LeaseNotFound
        );
    }

    #[test]
    fn no_connection_means_not_done() {
        let cause = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        let status = Status::from_error(Box::new(tonic::ConnectError(Box::new(cause))));
        assert!(matches!(classify_status(&status), Failure::NotDone(why) if why.contains("refused")));
        let status = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(matches!(classify_status(&status), Failure::Unknown(_)));
    }
}
