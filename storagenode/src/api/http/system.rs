//! Status, health, readiness, metrics, and the API's own description.

use ::http::{HeaderValue, StatusCode, header};
use axum::{body::Body, extract::State, response::Response};
use cairn_proto::v1::ErrorCode;

use super::{
    super::{SharedShell, status::Refusal},
    Answer, json, json_response,
};
use crate::metrics;

pub(super) async fn status(State(shell): State<SharedShell>) -> Answer {
    let status = shell.within(shell.limits.unary, shell.cluster.status()).await?;
    Ok(json_response(StatusCode::OK, &json::status(&status)))
}

/// The process runs and answers; nothing else is meant.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Requests can be served now.
pub(super) async fn readyz(State(shell): State<SharedShell>) -> Result<&'static str, Refusal> {
    match shell.ready() {
        Ok(()) => Ok("ready\n"),
        Err(why) => Err(Refusal::new(ErrorCode::Unavailable, why)),
    }
}

pub(super) async fn metrics(State(shell): State<SharedShell>) -> Response {
    typed(metrics::CONTENT_TYPE, shell.metrics.encode())
}

pub(super) async fn openapi() -> Response {
    typed("application/json", super::openapi_document().to_owned())
}

fn typed(content_type: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
