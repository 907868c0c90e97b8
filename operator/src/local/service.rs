//! The supervisor's own port: the gRPC service `Local`, with which a person or a test cuts a node's power.
//!
//! It takes what the nodes take: TLS 1.3, and a client's token or a certificate of the cluster's CA.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use cairn_node::proto::{
    ErrorCode, StartNodeRequest, StartNodeResponse, StopNodeRequest, StopNodeResponse,
    local_server::{Local, LocalServer as Router},
};
use cairn_node::{
    api::{
        auth::{self, Right, Tokens},
        status::Refusal,
    },
    env::{Accepted, Env, Listener, PeerIdentity, Protocol, Stream},
    secrets::SecretFiles,
    warnings::Warnings,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::server::Connected};

use super::node::NodeHost;

/// Every node, by name.
pub type Nodes = Arc<BTreeMap<String, Arc<NodeHost>>>;

/// Open requests get so long when the supervisor ends.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Why the supervisor's port is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("{0}")]
    Tokens(String),
    #[error("the supervisor cannot listen: {0}; give another --base-port (0 picks free ports)")]
    Listen(#[from] io::Error),
}

/// The running server.
pub struct LocalServer {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl LocalServer {
    pub async fn start(
        env: &Env,
        address: &str,
        secrets: &SecretFiles,
        nodes: Nodes,
    ) -> Result<Self, ServiceError> {
        // What is wrong with the file, the nodes say too, in their status.
        let tokens = Tokens::open(env.clone(), &secrets.tokens, Warnings::default()).await;
        let tokens = tokens.map_err(|error| ServiceError::Tokens(error.to_string()))?;
        let listener = env.network.listen(address, Protocol::Grpc).await?;
        let stop = CancellationToken::new();
        let router = Router::with_interceptor(LocalService { nodes }, move |request| admit(&tokens, request));
        let server = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(8)
            .add_service(router)
            .serve_with_incoming_shutdown(connections(env.clone(), listener), stop.clone().cancelled_owned());
        let task = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the supervisor's port is served no more");
            }
        });
        Ok(Self { stop, task })
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_LIMIT, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

fn admit(tokens: &Tokens, request: Request<()>) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<PeerIdentity>().cloned().unwrap_or(PeerIdentity::Anonymous);
    match auth::authorize(Right::Use, &peer, request.metadata().as_ref(), tokens) {
        Ok(_) => Ok(request),
        Err(refusal) => Err(refusal.into()),
    }
}

struct LocalService {
    nodes: Nodes,
}

impl LocalService {
    fn node(&self, name: &str) -> Result<Arc<NodeHost>, Status> {
        self.nodes.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
            let cause = format!("there is no node {:?}; there are {}", cut(name), names.join(", "));
            Refusal::new(ErrorCode::NodeNotFound, cause).into()
        })
    }
}

fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}

#[tonic::async_trait]
impl Local for LocalService {
    async fn stop_node(
        &self,
        request: Request<StopNodeRequest>,
    ) -> Result<Response<StopNodeResponse>, Status> {
        let node = self.node(&request.into_inner().name)?;
        // In a task of its own: a caller that goes away must not leave a node half dropped.
        let _ = tokio::spawn(async move { node.cut().await }).await;
        Ok(Response::new(StopNodeResponse {}))
    }

    async fn start_node(
        &self,
        request: Request<StartNodeRequest>,
    ) -> Result<Response<StartNodeResponse>, Status> {
        let node = self.node(&request.into_inner().name)?;
        match tokio::spawn(async move { node.start().await }).await {
            Ok(Ok(started)) => Ok(Response::new(StartNodeResponse { already_running: !started })),
            Ok(Err(error)) => Err(Refusal::new(ErrorCode::Unavailable, error.to_string()).into()),
            Err(error) => Err(Refusal::new(ErrorCode::Internal, error.to_string()).into()),
        }
    }
}

fn connections(env: Env, listener: Arc<dyn Listener>) -> impl futures::Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((env, listener), |(env, listener)| async move {
        loop {
            match listener.accept().await {
                Ok(accepted) => return Some((Ok(Connection(accepted)), (env, listener))),
                Err(error) => {
                    tracing::warn!(%error, "the supervisor cannot accept connections");
                    env.clock.sleep(Duration::from_millis(200)).await;
                }
            }
        }
    })
}

/// An accepted connection, as tonic wants it.
struct Connection(Accepted);

impl Connection {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut Box<dyn Stream>> {
        Pin::new(&mut self.get_mut().0.stream)
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.0.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
