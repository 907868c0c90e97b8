//! Who may do what. Certificates were checked by the network; here their roles, and clients' tokens, become rights.
//!
//! | what | who |
//! |---|---|
//! | health, reflection, readiness, metrics, the API's description | everybody: they reveal no name of a file, volume or client |
//! | `Files`, `Volumes`, `Admin.Status`, all of HTTP's `/v1` | a token, or a certificate of any role |
//! | `Admin.SetIntent` | a certificate of the role operator or node |
//! | `Peer` | a certificate of the role node |
//!
//! Anything not named here needs what `Files` needs: a new service is closed until someone opens it.

use std::sync::Arc;

use cairn_proto::v1::ErrorCode;
use http::{HeaderMap, header};

use super::status::Refusal;
use crate::env::PeerIdentity;

mod tokens;

pub use tokens::{TokenFileError, Tokens};

/// Longer ones are not looked at.
const MAX_TOKEN_BYTES: usize = 1_024;

/// A request's origin, once proven. In the extensions of every request that got through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody in particular; only for what is open to all.
    Anyone,
    Token {
        name: Arc<str>,
    },
    Client {
        name: String,
    },
    Operator {
        name: String,
    },
    Node {
        name: String,
    },
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Open,
    Use,
    Administer,
    Peer,
}

/// What the gRPC method at `path` needs.
pub fn grpc_right(path: &str) -> Right {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    match (service, method) {
        ("grpc.health.v1.Health", _) => Right::Open,
        ("grpc.reflection.v1.ServerReflection", _) => Right::Open,
        ("cairn.v1.Peer", _) => Right::Peer,
        ("cairn.v1.Admin", "SetIntent") => Right::Administer,
        _ => Right::Use,
    }
}

/// Decides whether a request from `peer` with these headers has the `right`.
pub fn authorize(
    right: Right,
    peer: &PeerIdentity,
    headers: &HeaderMap,
    tokens: &Tokens,
) -> Result<Caller, Refusal> {
    if right == Right::Open {
        return Ok(Caller::Anyone);
    }
    let caller = match peer {
        PeerIdentity::Node { name } => Caller::Node { name: name.clone() },
        PeerIdentity::Operator { name } => Caller::Operator { name: name.clone() },
        PeerIdentity::Client { name } => Caller::Client { name: name.clone() },
        PeerIdentity::Anonymous => Caller::Token { name: tokens.check(bearer(headers)?)? },
    };
    let allowed = match right {
        Right::Open | Right::Use => true,
        Right::Administer => matches!(caller, Caller::Operator { .. } | Caller::Node { .. }),
        Right::Peer => matches!(caller, Caller::Node { .. }),
    };
    if allowed {
        return Ok(caller);
    }
    let wanted = match right {
        Right::Peer => "nodes (a certificate with O=cairn:node)",
        _ => "operators (a certificate with O=cairn:operator)",
    };
    Err(Refusal::new(ErrorCode::PermissionDenied, format!("this is for {wanted} only")))
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let refused = |cause: &str| Refusal::new(ErrorCode::Unauthenticated, cause);
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| refused("neither a token nor a client certificate was shown"))?;
    if values.next().is_some() {
        return Err(refused("the authorization header is there more than once"));
    }
    let value = value.to_str().map_err(|_| refused("the authorization header is not ASCII"))?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            let token = token.trim();
            if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
                return Err(refused("the token is empty, or longer than any token is"));
            }
            Ok(token)
        }
        _ => Err(refused("the authorization header is not of the form \"Bearer TOKEN\"")),
    }
}

#[cfg(test)]
mod tests;
