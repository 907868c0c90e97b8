//! The node's outer shell: gRPC and HTTP. Every handler decodes a request, calls [`crate::files::Files`] (or one of
//! the [`ports`]), and encodes the answer; [`status`] is the one map from errors to the wire.
//!
//! ```text
//! serve.rs     connections: bounded, observed, ended gently            observe.rs  counts and times each request
//! auth.rs      who may do what                                         decode.rs   checks what comes from outside
//! grpc/        cairn.v1.Files, Volumes, Admin; reflection, health      flow.rs     content in and out, with bounds
//! http/        the same for cURL, browsers and Prometheus              status.rs   errors to the wire
//! drain.rs     what is left of a body when the answer is ready
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    env::{Env, Listener},
    files::SharedFiles,
    metrics::{Interface, Metrics},
};

pub mod auth;
mod decode;
mod drain;
#[cfg(test)]
mod fake;
mod flow;
mod grpc;
mod http;
mod observe;
pub mod peer;
pub mod ports;
mod serve;
pub mod status;

use auth::Tokens;
use observe::Observer;
use ports::SharedCluster;
use serve::Server;
pub use serve::{Connection, ConnectionLimits};

pub use self::http::openapi_document;

/// How long the shell waits for others.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A client that neither sends nor takes anything for this long, in the middle of content, is given up.
    pub stall: Duration,
    /// For requests without content that bring no deadline.
    pub unary: Duration,
    pub connections: ConnectionLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(60),
            unary: Duration::from_secs(60),
            connections: ConnectionLimits::default(),
        }
    }
}

/// Everything that requests are answered with.
pub struct Shell {
    pub env: Env,
    pub files: SharedFiles,
    pub cluster: SharedCluster,
    pub tokens: Arc<Tokens>,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
}

/// A shell that is stopping says so to whoever asks for readiness.
struct Inner {
    shell: Shell,
    stopping: AtomicBool,
}

impl std::ops::Deref for Inner {
    type Target = Shell;

    fn deref(&self) -> &Shell {
        &self.shell
    }
}

impl Inner {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("this node is stopping".into());
        }
        self.cluster.ready()
    }
}

type SharedShell = Arc<Inner>;

/// Both interfaces, serving.
pub struct Running {
    shell: SharedShell,
    grpc_address: String,
    http_address: String,
    stop: CancellationToken,
    servers: JoinSet<()>,
    health: HealthReporter,
    _watching: AbortOnDropHandle<()>,
}

/// Begins to serve. `others` are gRPC services that the shell mounts without knowing them: `Peer`, which the door
/// opens to nodes only. Must be called inside a tokio runtime.
pub fn start(shell: Shell, grpc: Arc<dyn Listener>, http: Arc<dyn Listener>, others: Routes) -> Running {
    let shell = Arc::new(Inner { shell, stopping: AtomicBool::new(false) });
    let (health, health_server) = tonic_health::server::health_reporter();
    let stop = CancellationToken::new();
    let (grpc_address, http_address) = (grpc.address(), http.address());
    let server = |interface, router| Server {
        env: shell.env.clone(),
        router,
        observer: Arc::new(Observer::new(interface, shell.metrics.clone(), shell.env.clock.clone())),
        metrics: shell.metrics.clone(),
        limits: shell.limits.connections.clone(),
        places: Arc::new(Semaphore::new(shell.limits.connections.requests)),
        http1: interface == Interface::Http,
    };
    let mut servers = JoinSet::new();
    let grpc_server = server(Interface::Grpc, grpc::router(&shell, health_server, others));
    servers.spawn(grpc_server.run(grpc, stop.clone()));
    let http_server = server(Interface::Http, self::http::router(&shell));
    servers.spawn(http_server.run(http, stop.clone()));
    let watching = tokio::spawn(report_health(shell.clone(), health.clone()));
    Running {
        shell,
        grpc_address,
        http_address,
        stop,
        servers,
        health,
        _watching: AbortOnDropHandle::new(watching),
    }
}

/// The health service says what readiness says, a second later at most.
async fn report_health(shell: SharedShell, health: HealthReporter) {
    loop {
        let status = match shell.ready() {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        health.set_service_status("", status).await;
        shell.env.clock.sleep(Duration::from_secs(1)).await;
    }
}

impl Running {
    /// `host:port` of the gRPC listener.
    pub fn grpc_address(&self) -> &str {
        &self.grpc_address
    }

    /// `host:port` of the HTTP listener.
    pub fn http_address(&self) -> &str {
        &self.http_address
    }

    /// Takes no new requests, gives those that go on `drain` to end, then drops them.
    pub async fn stop(mut self, drain: Duration) {
        self.shell.stopping.store(true, Ordering::Relaxed);
        self.health.set_service_status("", ServingStatus::NotServing).await;
        self.stop.cancel();
        let ended =
            self.shell.env.timeout(drain, async { while self.servers.join_next().await.is_some() {} }).await;
        if ended.is_none() {
            tracing::warn!(drain_s = drain.as_secs(), "requests did not end in time and are dropped");
        }
        self.servers.shutdown().await;
    }
}
