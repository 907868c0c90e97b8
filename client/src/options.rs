//! How to reach a cluster: where, whom to trust, as whom, and how long to wait.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Certificates or keys in PEM form.
#[derive(Clone)]
pub enum Pem {
    File(PathBuf),
    Text(String),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => write!(f, "File({})", path.display()),
            Pem::Text(_) => f.write_str("Text(..)"),
        }
    }
}

/// As whom to act.
#[derive(Clone, Default)]
pub enum Credentials {
    #[default]
    None,
    Token(String),
    /// Read again every half minute: mounted tokens are replaced while programs run.
    TokenFile(PathBuf),
    Certificate {
        certificate: Pem,
        key: Pem,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::None => f.write_str("None"),
            Credentials::Token(_) => f.write_str("Token(..)"),
            Credentials::TokenFile(path) => write!(f, "TokenFile({})", path.display()),
            Credentials::Certificate { certificate, .. } => write!(f, "Certificate({certificate:?})"),
        }
    }
}

/// How long to wait, and how often to try.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For a connection, its TLS handshake included.
    pub connect_timeout: Duration,
    /// For one attempt at a short call, or for a download to begin.
    pub attempt_timeout: Duration,
    /// For a call with all its attempts; for a transfer, from the last progress to giving up.
    pub call_timeout: Duration,
    /// For the next byte of a transfer to move. An upload moves in steps of up to 128 KiB, half a node's window: with the usual 45 s, a line
    /// needs 3 KB/s.
    pub stall_timeout: Duration,
    /// Attempts at one call, at most; asking one node after another until one can be reached counts as one.
    pub attempts: u32,
    /// The first wait between attempts; each next one is twice as long, up to `max_backoff`, less a random part.
    pub first_backoff: Duration,
    pub max_backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(20),
            call_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(45),
            attempts: 8,
            first_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
        }
    }
}

/// Everything that [`Client::connect`](crate::Client::connect) needs.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Nodes of one cluster, each `host`, `host:port` or `https://host:port`. Any of them serves every file.
    pub endpoints: Vec<String>,
    /// Authorities that sign the nodes' certificates. Nothing else is trusted.
    pub ca: Pem,
    /// The name that the nodes' certificates must have, if it is not the endpoint's host: needed through a tunnel.
    pub server_name: Option<String>,
    /// The supervisor of a cluster run by `cairn-operator local`, written like an endpoint: it stops and starts nodes.
    pub supervisor: Option<String>,
    pub credentials: Credentials,
    pub limits: Limits,
    /// Transfers that run at the same time, about: with many, each gets a smaller window, so that memory stays bounded.
    pub parallel_transfers: usize,
}

impl ClientConfig {
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>, ca: Pem) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ca,
            server_name: None,
            supervisor: None,
            credentials: Credentials::None,
            limits: Limits::default(),
            parallel_transfers: 8,
        }
    }

    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    pub fn with_token(self, token: impl Into<String>) -> Self {
        self.with_credentials(Credentials::Token(token.into()))
    }

    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Bytes that a node may send of one transfer before it hears from us: 8 MiB for one or two, else 1 MiB.
    pub(crate) fn stream_window_bytes(&self) -> u32 {
        if self.parallel_transfers <= 2 { 8 << 20 } else { 1 << 20 }
    }

    pub(crate) fn connection_window_bytes(&self) -> u32 {
        let wanted = self.stream_window_bytes() as u64 * self.parallel_transfers.clamp(1, 64) as u64;
        wanted.clamp(4 << 20, 32 << 20) as u32
    }
}
