//! gRPC: [`Files`](files), [`Volumes`](volumes) and [`Admin`](admin), with reflection and health, and whatever services
//! others bring (`Peer`). Every call is checked for its right before a service sees it, ends by its deadline, and ends
//! when its caller goes away.

use std::{future::Future, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use cairn_proto::v1::{
    ErrorCode, admin_server::AdminServer, files_server::FilesServer, volumes_server::VolumesServer,
};
use tonic::{metadata::MetadataMap, service::Routes};
use tonic_health::pb::health_server::{Health, HealthServer};

use super::{
    SharedShell,
    auth::{authorize, grpc_right},
    serve::Connection,
    status::Refusal,
};
use crate::{env::PeerIdentity, files::FileError};

mod admin;
mod encode;
mod files;
mod volumes;

/// Larger messages are refused; content comes in messages of 1 MiB at most. A message that is not whole yet is in no budget.
pub const MAX_MESSAGE_BYTES: usize = 2 << 20;

/// A service's handler in this shell: one type for all of them.
#[derive(Clone)]
struct Service(SharedShell);

/// All services, behind the door. `others` are those that the shell only mounts.
pub(super) fn router<H: Health>(shell: &SharedShell, health: HealthServer<H>, others: Routes) -> Router {
    let service = Service(shell.clone());
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cairn_proto::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptor sets were written by the build");
    others
        .add_service(FilesServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(VolumesServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(AdminServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(health)
        .add_service(reflection)
        .prepare()
        .into_axum_router()
        .layer(middleware::from_fn_with_state(shell.clone(), check_right))
}

/// The door: nothing behind it sees a request without the right.
async fn check_right(State(shell): State<SharedShell>, mut request: Request, next: Next) -> Response {
    let anonymous = PeerIdentity::Anonymous;
    let peer = request.extensions().get::<Connection>().map_or(&anonymous, |connection| &connection.peer);
    let right = grpc_right(request.uri().path());
    match authorize(right, peer, request.headers(), &shell.tokens) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => tonic::Status::from(refusal).into_http(),
    }
}

impl Service {
    /// Gives an answer within the caller's deadline, or, if there is none, within `otherwise`.
    async fn answer<T>(
        &self,
        metadata: &MetadataMap,
        otherwise: Option<Duration>,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<tonic::Response<T>, tonic::Status> {
        let limit = deadline(metadata)?.or(otherwise);
        let answer = match limit {
            None => work.await,
            Some(limit) => {
                let late = || Err(FileError::DeadlineExceeded.into());
                self.0.env.timeout(limit, work).await.unwrap_or_else(late)
            }
        };
        Ok(tonic::Response::new(answer?))
    }
}

/// The time that the caller allows (`grpc-timeout`: up to eight digits and a unit).
fn deadline(metadata: &MetadataMap) -> Result<Option<Duration>, Refusal> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let malformed = || Refusal::new(ErrorCode::InvalidArgument, "grpc-timeout is malformed");
    let text = value.to_str().map_err(|_| malformed())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let count: u64 = digits.parse().map_err(|_| malformed())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(malformed()),
    }))
}

#[cfg(test)]
mod tests;
