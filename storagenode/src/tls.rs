//! The real [`Network`]: TCP with TLS 1.3 (rustls on aws-lc), certificates checked on both sides.
//!
//! - A server asks every client for a certificate and takes none for an answer ([`PeerIdentity::Anonymous`]: such a
//!   client must show a token later). A certificate that is shown must come from the cluster's CA.
//! - Who someone is says the certificate's subject: O is the role (`cairn:node`, `cairn:operator`, `cairn:client`), CN
//!   the name. A certificate of the CA with any other O proves nothing.
//! - A client ([`Network::connect`], from node to node) shows the node's own certificate, and wants from the server
//!   one of the CA, for the host that it dialled, with the role of a node.
//! - The three files are looked at again every few seconds; new handshakes use new content. Content that cannot be
//!   used is logged and leaves the old in force.
//!
//! `material.rs` is what the files hold, `accept.rs` what happens to a connection before it is given out.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // This is the real side of a seam.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::RwLock;
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::env::{Clock, Listener, Network, PeerIdentity, Protocol, Stream};

mod accept;
mod material;

pub use accept::HandshakeLimits;
use material::{Configs, FileContents};
pub use material::{CredentialError, identity_of};

/// Where a node's certificate, its key, and the CA's certificate are, in PEM form.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

/// How the network behaves; the defaults are for production.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// How often the files are looked at.
    pub reload_every: Duration,
    /// TCP and TLS together, when connecting.
    pub connect_timeout: Duration,
    pub handshakes: HandshakeLimits,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            reload_every: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            handshakes: HandshakeLimits::default(),
        }
    }
}

/// TLS over TCP. See the module's documentation.
pub struct TlsNetwork {
    current: Arc<RwLock<Configs>>,
    options: TlsOptions,
    clock: Arc<dyn Clock>,
    _reload: AbortOnDropHandle<()>,
}

impl TlsNetwork {
    /// Reads the files and begins to watch them. Must be called inside a tokio runtime.
    pub fn open(
        files: TlsFiles,
        options: TlsOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CredentialError> {
        // Libraries that do not say which provider they mean (etcd's client) get this one; an error: it is set already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let contents = FileContents::read(&files)?;
        let current = Arc::new(RwLock::new(Configs::build(&contents, &files)?));
        let reload = reload(files, contents, current.clone(), options.reload_every, clock.clone());
        Ok(Self { current, options, clock, _reload: AbortOnDropHandle::new(tokio::spawn(reload)) })
    }

    /// Whether other nodes that connect to `host` would accept this node's certificate.
    pub fn check_own_name(&self, host: &str) -> Result<(), CredentialError> {
        self.current.read().check_name(host)
    }

    async fn connect_tcp(&self, address: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        set_socket_options(&stream, NODE_DEAD_AFTER)?;
        Ok(stream)
    }

    async fn connect_tls(&self, address: &str, expected: &str) -> io::Result<Box<dyn Stream>> {
        let host = host_of(address).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is not host:port"))
        })?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{host:?} is neither a DNS name nor an IP address"),
            )
        })?;
        let tcp = self.connect_tcp(address).await?;
        let config = self.current.read().client.clone();
        let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
            io::Error::new(error.kind(), format!("TLS with node {expected:?} at {address} failed: {error}"))
        })?;
        let identity = identity_of(stream.get_ref().1.peer_certificates());
        if !matches!(identity, PeerIdentity::Node { .. }) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{address} should be node {expected:?}, but its certificate is not a node's (O=cairn:node)"
                ),
            ));
        }
        Ok(Box::new(stream))
    }
}

#[async_trait]
impl Network for TlsNetwork {
    async fn listen(&self, address: &str, protocol: Protocol) -> io::Result<Arc<dyn Listener>> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
        let limits = self.options.handshakes.clone();
        accept::listen(listener, protocol, self.current.clone(), limits, self.clock.clone())
    }

    async fn connect(&self, address: &str, expected: &str) -> io::Result<Box<dyn Stream>> {
        let limit = self.options.connect_timeout;
        tokio::select! {
            biased;
            result = self.connect_tls(address, expected) => result,
            () = self.clock.sleep(limit) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("node {expected:?} at {address} did not answer within {} s", limit.as_secs_f32()),
            )),
        }
    }
}

/// After this, a node that takes nothing is taken for dead.
const NODE_DEAD_AFTER: Duration = Duration::from_secs(30);
/// And whoever connected to us: more than the longest that a slow reader is waited for (`api/flow.rs`). Until then its window
/// may be shut, or be smaller than what Linux would send at once, which counts as shut.
const CALLER_DEAD_AFTER: Duration = Duration::from_secs(330);
/// Bytes that wait in the kernel to be sent: what a slow reader does not take should wait where it is counted.
const UNSENT_BYTES: u32 = 128 << 10;

/// Small messages at once; dead peers noticed, also by a sender.
fn set_socket_options(stream: &TcpStream, dead_after: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.set_tcp_user_timeout(Some(dead_after))
}

/// The host part of `host:port`, without the brackets of an IPv6 address.
fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

async fn reload(
    files: TlsFiles,
    mut in_force: FileContents,
    current: Arc<RwLock<Configs>>,
    every: Duration,
    clock: Arc<dyn Clock>,
) {
    // What was refused last, so that one mistake is logged once, not every few seconds.
    let mut refused: Option<String> = None;
    loop {
        clock.sleep(every).await;
        let read_files = files.clone();
        let Ok(contents) = tokio::task::spawn_blocking(move || FileContents::read(&read_files)).await else {
            return;
        };
        let outcome = match contents {
            Ok(contents) if contents == in_force => Ok(None),
            Ok(contents) => Configs::build(&contents, &files).map(|configs| Some((contents, configs))),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(None) => refused = None,
            Ok(Some((contents, configs))) => {
                *current.write() = configs;
                in_force = contents;
                refused = None;
                tracing::info!(certificate = %shown(&files.certificate), "certificates reloaded");
            }
            Err(error) => {
                let error = error.to_string();
                if refused.as_ref() != Some(&error) {
                    tracing::warn!(%error, "changed certificates cannot be used; the old ones stay in force");
                    refused = Some(error);
                }
            }
        }
    }
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}

#[cfg(test)]
mod tests;
