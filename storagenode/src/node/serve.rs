//! A node with its servers.

use std::{path::PathBuf, sync::Arc, time::Duration};

use cairn_proto::v1::peer_server::PeerServer;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{Ended, Node, NodeOptions, StartError};
use crate::{
    api::{
        self, Limits, Shell,
        auth::{TokenFileError, Tokens},
    },
    env::{Env, Listener},
    files::SharedFiles,
    meta::SharedMeta,
    replication::wire::MAX_MESSAGE_BYTES,
    warnings::Warnings,
};

/// Where a node serves, and to whom.
pub struct ServeOptions {
    pub grpc: Arc<dyn Listener>,
    pub http: Arc<dyn Listener>,
    /// Names and hashes of the tokens that clients may show.
    pub tokens: PathBuf,
    pub limits: Limits,
}

/// Why a node does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A node that serves.
pub struct RunningNode {
    node: Node,
    shell: api::Running,
}

/// Starts a node and its servers on listeners that are open already: its address must be known before it registers.
pub async fn serve(
    env: Env,
    options: NodeOptions,
    meta: SharedMeta,
    serve: ServeOptions,
) -> Result<RunningNode, ServeError> {
    let warnings = Warnings::default();
    let tokens = Tokens::open(env.clone(), &serve.tokens, warnings.clone()).await?;
    let node = Node::start(env.clone(), options, meta, warnings).await?;
    let peer = PeerServer::new(node.peer.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let shell = Shell {
        env,
        files: node.files.clone(),
        cluster: node.cluster.clone(),
        tokens,
        metrics: node.metrics.clone(),
        limits: serve.limits,
    };
    let shell = api::start(shell, serve.grpc, serve.http, Routes::new(peer));
    Ok(RunningNode { node, shell })
}

impl RunningNode {
    /// `host:port` of the gRPC listener.
    pub fn grpc_address(&self) -> &str {
        self.shell.grpc_address()
    }

    /// `host:port` of the HTTP listener.
    pub fn http_address(&self) -> &str {
        self.shell.http_address()
    }

    pub fn files(&self) -> SharedFiles {
        self.node.files.clone()
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Cancelled when the node has to stop by itself; [`Self::ended`] says why.
    pub fn stopping(&self) -> CancellationToken {
        self.node.stopping()
    }

    /// Why the node stopped by itself, if it did.
    pub fn ended(&self) -> Option<Ended> {
        self.node.ended()
    }

    /// Stops taking requests, gives those that go on `drain` to end, gives the lease back, and closes the disk.
    pub async fn stop(self, drain: Duration) {
        self.shell.stop(drain).await;
        self.node.stop().await;
    }
}
