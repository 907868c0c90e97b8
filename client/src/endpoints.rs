//! The nodes that a client knows: parsed once, used in turn, and left alone for a while after a failure.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tonic::transport::Channel;

use crate::error::{Error, Result};
use crate::options::ClientConfig;
use crate::tls::{Dialer, parse_server_name};

pub const DEFAULT_PORT: u16 = 50_051;
/// More than this is a mistake; a client needs a handful to start from.
const MAX_ENDPOINTS: usize = 256;
/// A failed node rests so long, doubled with each failure in a row.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(15);
/// A connection on which nothing was heard for so long is asked for a sign of life …
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// … and given up when it does not answer within this. On a slow line, the question waits behind what is on its way.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(120);

/// A node's address.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) server_name: ServerName<'static>,
}

impl Endpoint {
    /// Accepts `host`, `host:port`, `https://host` and `https://host:port`; IPv6 addresses in brackets.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            let shown: String = text.chars().take(120).collect();
            Error::local(
                format!("{shown:?} is not the address of a node: {why}"),
                "write it as https://HOST:50051",
            )
        };
        let rest = match text.trim().split_once("://") {
            Some(("https", rest)) => rest,
            Some(("http", _)) => return Err(bad("Cairn never speaks plain text")),
            Some(_) => return Err(bad("only https:// is known")),
            None => text.trim(),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) =
            split_port(rest).ok_or_else(|| bad("the part after the last \":\" is not a port"))?;
        if host.is_empty() {
            return Err(bad("there is no host in it"));
        }
        let server_name = parse_server_name(host).map_err(|_| bad("that is not a host name"))?;
        Ok(Self { host: host.to_owned(), port, server_name })
    }
}

/// Splits `host:port`, `[v6]:port`, `[v6]` and `host`.
fn split_port(text: &str) -> Option<(&str, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((host, DEFAULT_PORT)),
            _ => Some((host, rest.strip_prefix(':')?.parse().ok()?)),
        };
    }
    match text.rsplit_once(':') {
        None => Some((text, DEFAULT_PORT)),
        // More than one colon: a bare IPv6 address, whose port cannot be told from its end.
        Some((host, _)) if host.contains(':') => None,
        Some((host, port)) => Some((host, port.parse().ok().filter(|port| *port != 0)?)),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Default)]
struct Health {
    failures_in_a_row: u32,
    rests_until: Option<Instant>,
}

/// One node and the connection to it, which is opened on first use and again after it broke.
pub(crate) struct Node {
    pub name: String,
    pub channel: Channel,
    health: Mutex<Health>,
}

impl Node {
    pub fn worked(&self) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::default();
    }

    pub fn failed(&self) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let doubled = FIRST_REST.saturating_mul(1 << health.failures_in_a_row.min(8));
        health.failures_in_a_row = health.failures_in_a_row.saturating_add(1);
        health.rests_until = Some(Instant::now() + doubled.min(LONGEST_REST));
    }

    fn rests_until(&self, now: Instant) -> Option<Instant> {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.rests_until.filter(|until| *until > now)
    }
}

/// All nodes that a client knows.
pub(crate) struct Pool {
    nodes: Vec<Arc<Node>>,
    next: AtomicUsize,
}

impl Pool {
    /// Must be called on a Tokio runtime, where the connections will live.
    pub fn new(config: &ClientConfig) -> Result<Self> {
        let help = "name one or more nodes: CAIRN_ENDPOINT, --endpoint, or a context";
        if config.endpoints.is_empty() {
            return Err(Error::local("no node to connect to is given", help));
        }
        if config.endpoints.len() > MAX_ENDPOINTS {
            return Err(Error::local(
                format!("more than {MAX_ENDPOINTS} nodes are given"),
                "name a few of them",
            ));
        }
        let dialer = Dialer::new(config)?;
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for text in &config.endpoints {
            let endpoint = Endpoint::parse(text)?;
            let name = endpoint.to_string();
            if nodes.iter().all(|node| node.name != name) {
                let channel = channel(config, &dialer, endpoint);
                nodes.push(Arc::new(Node { name, channel, health: Mutex::default() }));
            }
        }
        // Many clients that start at once should not all begin at the first node.
        let next = AtomicUsize::new(rand::random_range(0..nodes.len()));
        Ok(Self { nodes, next })
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The next node in turn that is not in `avoid` and does not rest; if there is none, the one that rests the
    /// least longer.
    pub fn pick(&self, avoid: &[usize]) -> (usize, Arc<Node>) {
        let count = self.nodes.len();
        let start = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let now = Instant::now();
        let index = (0..count)
            .map(|step| (start + step) % count)
            .min_by_key(|index| (avoid.contains(index), self.nodes[*index].rests_until(now)))
            .unwrap_or(start);
        (index, Arc::clone(&self.nodes[index]))
    }
}

fn channel(config: &ClientConfig, dialer: &Dialer, endpoint: Endpoint) -> Channel {
    // To tonic this is plain: the connector does TLS itself, with TLS 1.3 only and errors that can be explained.
    let origin = |scheme: &str| {
        let uri = format!("{scheme}://{endpoint}").parse::<http::Uri>();
        uri.unwrap_or_else(|_| http::Uri::from_static("https://cairn.invalid"))
    };
    let template = Channel::builder(origin("http"))
        .origin(origin("https"))
        .user_agent(concat!("cairn-client/", env!("CARGO_PKG_VERSION")))
        .expect("a version is a valid header value")
        .initial_stream_window_size(config.stream_window_bytes())
        .initial_connection_window_size(config.connection_window_bytes())
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER);
    let dialer = dialer.clone();
    template.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let (dialer, endpoint) = (dialer.clone(), endpoint.clone());
        async move { dialer.dial(&endpoint).await }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_accepted_forms() {
        for (text, want) in [
            ("node-1", "node-1:50051"),
            ("node-1:7000", "node-1:7000"),
            ("https://node-1.example", "node-1.example:50051"),
            ("https://127.0.0.1:50052/", "127.0.0.1:50052"),
            (" [::1]:7000 ", "[::1]:7000"),
            ("https://[::1]", "[::1]:50051"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn bad_addresses_are_refused_with_a_reason() {
        for text in [
            "",
            "http://node-1:50051",
            "ftp://node-1",
            "node-1:",
            "node-1:0",
            "node-1:65536",
            "node-1:port",
            "::1",
            "https://user@node-1",
            "https://node-1/path",
            "no de",
            "[::1",
            "[]:1",
            "https://",
        ] {
            let error = Endpoint::parse(text).expect_err(text);
            assert!(error.help().contains("https://"), "{error:?}");
        }
    }

    fn pool(count: usize) -> Pool {
        let nodes = (0..count)
            .map(|index| {
                let channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
                Arc::new(Node { name: index.to_string(), channel, health: Mutex::default() })
            })
            .collect();
        Pool { nodes, next: AtomicUsize::new(0) }
    }

    #[tokio::test]
    async fn nodes_take_turns_and_failed_ones_rest() {
        let pool = pool(3);
        let picks: Vec<usize> = (0..6).map(|_| pool.pick(&[]).0).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
        pool.nodes[1].failed();
        assert!((0..6).all(|_| pool.pick(&[]).0 != 1));
        pool.nodes[1].worked();
        assert!((0..3).any(|_| pool.pick(&[]).0 == 1));
    }

    #[tokio::test]
    async fn with_nothing_better_a_resting_or_avoided_node_is_used() {
        let two = pool(2);
        two.nodes[0].failed();
        assert_eq!(two.pick(&[1]).0, 0);
        assert_eq!(pool(1).pick(&[0]).0, 0);
        for node in &two.nodes {
            node.failed();
        }
        two.nodes[0].failed();
        assert_eq!(two.pick(&[]).0, 1, "the one that comes back first");
    }
}
