//! HTTP for cURL, browsers, probes and Prometheus. [`ROUTES`] is the one list of what there is: the router is made from
//! it, and a test holds the OpenAPI document against it.

use std::{future::Future, sync::OnceLock, time::Duration};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use cairn_proto::v1::ErrorCode;

use super::{
    Inner, SharedShell,
    auth::{Right, authorize},
    observe::RouteLabel,
    serve::Connection,
    status::Refusal,
};
use crate::{env::PeerIdentity, files::FileError};

mod conditions;
mod files;
mod json;
mod range;
mod request;
mod stale;
mod system;
mod volumes;

/// Something to ask for.
struct Route {
    method: Method,
    /// As OpenAPI writes it; `{path}` stands for the rest of the address, slashes included.
    path: &'static str,
    /// The operation's id in the OpenAPI document, and its label in metrics.
    id: &'static str,
    right: Right,
    handler: fn(MethodFilter) -> MethodRouter<SharedShell>,
}

const FILE: &str = "/v1/volumes/{volume}/files/{path}";
const FILES: &str = "/v1/volumes/{volume}/files";
const VOLUME: &str = "/v1/volumes/{volume}";
const VOLUMES: &str = "/v1/volumes";

const ROUTES: &[Route] = &[
    Route::new(Method::PUT, FILE, "putFile", Right::Use, |m| on(m, files::put)),
    Route::new(Method::GET, FILE, "getFile", Right::Use, |m| on(m, files::get)),
    Route::new(Method::HEAD, FILE, "headFile", Right::Use, |m| on(m, files::head)),
    Route::new(Method::POST, FILE, "moveFile", Right::Use, |m| on(m, files::move_file)),
    Route::new(Method::DELETE, FILE, "deleteFile", Right::Use, |m| on(m, files::delete)),
    Route::new(Method::GET, FILES, "listFiles", Right::Use, |m| on(m, files::list)),
    Route::new(Method::GET, VOLUMES, "listVolumes", Right::Use, |m| on(m, volumes::list)),
    Route::new(Method::POST, VOLUMES, "createVolume", Right::Use, |m| on(m, volumes::create)),
    Route::new(Method::GET, VOLUME, "getVolume", Right::Use, |m| on(m, volumes::get)),
    Route::new(Method::DELETE, VOLUME, "deleteVolume", Right::Use, |m| on(m, volumes::delete)),
    Route::new(Method::GET, "/v1/status", "status", Right::Use, |m| on(m, system::status)),
    Route::new(Method::GET, "/healthz", "healthz", Right::Open, |m| on(m, system::healthz)),
    Route::new(Method::GET, "/readyz", "readyz", Right::Open, |m| on(m, system::readyz)),
    Route::new(Method::GET, "/metrics", "metrics", Right::Open, |m| on(m, system::metrics)),
    Route::new(Method::GET, "/openapi.json", "openapi", Right::Open, |m| on(m, system::openapi)),
];

impl Route {
    const fn new(
        method: Method,
        path: &'static str,
        id: &'static str,
        right: Right,
        handler: fn(MethodFilter) -> MethodRouter<SharedShell>,
    ) -> Self {
        Self { method, path, id, right, handler }
    }
}

/// What handlers give.
type Answer = Result<Response, Refusal>;

pub(super) fn router(shell: &SharedShell) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let (id, right) = (route.id, route.right);
        let method =
            MethodFilter::try_from(route.method.clone()).expect("the routes' methods are usual ones");
        let handler = (route.handler)(method)
            .layer(middleware::from_fn_with_state((shell.clone(), right), check_right))
            .layer(middleware::map_response(move |mut response: Response| async move {
                response.extensions_mut().insert(RouteLabel(id));
                response
            }));
        if route.path == FILE {
            // The router's wildcard does not match nothing; a file without a name deserves its own answer.
            router = router.route(&format!("{FILES}/"), handler.clone());
        }
        router = router.route(&route.path.replace("{path}", "{*path}"), handler);
    }
    router
        .fallback(nothing_here)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(refuse_codings))
        .with_state(shell.clone())
}

/// For every address and method: content that is still coded would be taken for what it is not. RFC 9112, section 6.1, asks
/// for 501. Where the content ends is what the sender and we may see differently, so the connection ends with the answer.
async fn refuse_codings(request: Request, next: Next) -> Response {
    let Some(codings) = codings_not_undone(request.headers()) else { return next.run(request).await };
    let cause = format!(
        "Transfer-Encoding {codings:?} is not understood, only \"chunked\" is; nothing was done. Send the content as it is"
    );
    let mut response = Refusal::new(ErrorCode::Unsupported, cause).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The transfer codings, unless they are the one that the connection has undone, once, by now.
fn codings_not_undone(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(header::TRANSFER_ENCODING).iter();
    let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    let all = values.join(",");
    let codings: Vec<&str> = all.split(',').map(str::trim).filter(|coding| !coding.is_empty()).collect();
    let undone =
        matches!(codings[..], [] | [_]) && codings.iter().all(|one| one.eq_ignore_ascii_case("chunked"));
    (!undone).then(|| codings.join(", "))
}

async fn nothing_here(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::new(ErrorCode::Unsupported, format!("there is nothing at {path:?}"))
        .with_http(StatusCode::NOT_FOUND)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::new(ErrorCode::Unsupported, format!("{method} is not possible at {path:?}"))
        .with_http(StatusCode::METHOD_NOT_ALLOWED)
}

/// The door: nothing behind it sees a request without the right.
async fn check_right(
    State((shell, right)): State<(SharedShell, Right)>,
    mut request: Request,
    next: Next,
) -> Response {
    let anonymous = PeerIdentity::Anonymous;
    let peer = request.extensions().get::<Connection>().map_or(&anonymous, |connection| &connection.peer);
    match authorize(right, peer, request.headers(), &shell.tokens) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl Inner {
    /// For everything that does not stream: HTTP has no deadlines of its own.
    async fn within<T, E: Into<Refusal>>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Refusal> {
        match self.env.timeout(limit, work).await {
            Some(result) => result.map_err(Into::into),
            None => Err(FileError::DeadlineExceeded.into()),
        }
    }
}

fn json_response(status: StatusCode, value: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(format!("{value}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The header's only value as text; an error if there are several, or it is not ASCII.
fn single<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::invalid(format!("the header {name} is there more than once")));
    }
    let text =
        value.to_str().map_err(|_| Refusal::invalid(format!("the header {name} is not visible ASCII")))?;
    Ok(Some(text.trim()))
}

/// The OpenAPI document of this version.
pub fn openapi_document() -> &'static str {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    DOCUMENT.get_or_init(|| include_str!("http/openapi.json").replace("{version}", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests;
