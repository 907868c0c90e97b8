//! `/healthz`, `/readyz` and `/metrics`, in plain HTTP: they reveal nothing, and kubelets and Prometheus ask them.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::writes::Counters;

/// Serves until `stop`. Gives the address that it listens on.
pub async fn serve(
    address: SocketAddr,
    counters: Arc<Counters>,
    ready: CancellationToken,
    stop: CancellationToken,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    let is_ready = move || {
        let ready = ready.is_cancelled();
        async move {
            if ready {
                (StatusCode::OK, "ok\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "the API server is not reached yet\n")
            }
        }
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(is_ready))
        .route("/metrics", get(move || std::future::ready(counters.to_text())));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
        {
            tracing::error!(%error, "health is served no more");
        }
    });
    Ok(local)
}
