//! The one loop that serves connections, for gRPC and HTTP alike: bounded in number, windows and idle time, ended by
//! one token, first gently, then by dropping it.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse};
use cairn_proto::v1::ErrorCode;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{
    drain,
    observe::{Observed, Observer, RefusalCode},
    status::Refusal,
};
use crate::{
    env::{Accepted, Env, Listener, PeerIdentity},
    metrics::{Interface, InterfaceLabels, Metrics},
};

/// What a listener puts up with.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Connections of others than nodes; more are closed at once. Nodes are always let in.
    pub connections: usize,
    /// Requests on one connection at a time.
    pub streams_per_connection: u32,
    /// Requests that may bring content, of all connections of clients, at a time; more are refused unread. What has
    /// come of each and was not taken yet (a stream's window, an unfinished message) is in no other budget.
    pub requests: usize,
    /// A connection without a request is closed after this.
    pub idle: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 2_048,
            streams_per_connection: 128,
            requests: 512,
            idle: Duration::from_secs(300),
        }
    }
}

/// Bytes that one upload may be ahead of us. A connection may be ahead by as much for each of its streams: with less, uploads
/// that wait for memory would fill the connection's window with what nobody reads yet, and those that have memory, and
/// will give it back, would get no data.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Larger frames cost fewer wake-ups; 16 KiB is HTTP/2's default.
const FRAME_BYTES: u32 = 128 << 10;
/// What HTTP/1.1 gathers before it takes more content is written as a whole before it does: with more, nothing would seem to move for
/// minutes where a reader is slow. Room for a request's headers, too.
const HTTP1_BUFFER_BYTES: usize = 48 << 10;
/// Names of 1,024 bytes, escaped, with room for a token and what proxies add.
const HEADER_BYTES: u32 = 32 << 10;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Who is at the other end of the connection that a request came over; in every request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub peer: PeerIdentity,
    pub remote: String,
}

/// One listener with what it serves.
pub(super) struct Server {
    pub env: Env,
    pub router: Router,
    pub observer: Arc<Observer>,
    pub metrics: Arc<Metrics>,
    pub limits: ConnectionLimits,
    /// For requests of clients that may bring content.
    pub places: Arc<Semaphore>,
    pub http1: bool,
}

/// Requests going on on one connection, and how often one began.
#[derive(Default)]
pub(super) struct Activity {
    active: AtomicUsize,
    begun: AtomicUsize,
}

/// Counts one request while it lives.
pub(super) struct ActiveRequest {
    activity: Arc<Activity>,
    /// Its place among those that may bring content.
    _place: Option<OwnedSemaphorePermit>,
}

impl ActiveRequest {
    fn begin(activity: &Arc<Activity>, place: Option<OwnedSemaphorePermit>) -> Self {
        activity.active.fetch_add(1, Ordering::Relaxed);
        activity.begun.fetch_add(1, Ordering::Relaxed);
        Self { activity: activity.clone(), _place: place }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.activity.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Serves until `stop`, then lets requests that go on end. Dropping the future ends them.
    pub(super) async fn run(self, listener: Arc<dyn Listener>, stop: CancellationToken) {
        let server = Arc::new(self);
        let mut connections = JoinSet::new();
        let strangers = Arc::new(AtomicUsize::new(0));
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    let Some(counted) = server.let_in(&accepted, &strangers) else { continue };
                    let (server, stop) = (server.clone(), stop.clone());
                    connections.spawn(async move {
                        server.serve_connection(accepted, stop).await;
                        drop(counted);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, address = listener.address(), "cannot accept connections");
                    server.env.clock.sleep(Duration::from_millis(200)).await;
                }
            }
        }
        // New connections are refused from here on, not left waiting.
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    fn let_in(&self, accepted: &Accepted, strangers: &Arc<AtomicUsize>) -> Option<Counted> {
        let node = matches!(accepted.peer, PeerIdentity::Node { .. });
        if !node && strangers.load(Ordering::Relaxed) >= self.limits.connections {
            self.metrics.connections_refused.inc();
            tracing::debug!(remote = accepted.remote, "too many connections: closed");
            return None;
        }
        let interface = InterfaceLabels { interface: self.observer.interface().as_str() };
        let open = self.metrics.connections.get_or_create_owned(&interface);
        Some(Counted::new(open, (!node).then(|| strangers.clone())))
    }

    async fn serve_connection(&self, accepted: Accepted, stop: CancellationToken) {
        let connection = Connection { peer: accepted.peer, remote: accepted.remote };
        let remote = connection.remote.clone();
        let activity = Arc::new(Activity::default());
        let service = RequestService {
            env: self.env.clone(),
            router: self.router.clone(),
            connection,
            observer: self.observer.clone(),
            activity: activity.clone(),
            places: self.places.clone(),
        };
        let builder = self.builder();
        let serving = builder.serve_connection(TokioIo::new(accepted.stream), service);
        tokio::pin!(serving);
        let ended = tokio::select! {
            biased;
            ended = serving.as_mut() => Some(ended),
            () = stop.cancelled() => None,
            () = self.idle(&activity) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%remote, %error, "connection ended");
        }
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_buf_size(HTTP1_BUFFER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .adaptive_window(false)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(STREAM_WINDOW_BYTES * self.limits.streams_per_connection)
            .max_frame_size(FRAME_BYTES)
            .max_header_list_size(HEADER_BYTES)
            .max_concurrent_streams(self.limits.streams_per_connection);
        // No pings: they wait behind what a slow reader has not read yet. TCP notices who is dead, and content whoever stalls.
        if self.http1 { builder } else { builder.http2_only() }
    }

    /// Ends when the connection had no request for the whole idle time.
    async fn idle(&self, activity: &Activity) {
        loop {
            let before = activity.begun.load(Ordering::Relaxed);
            self.env.clock.sleep(self.limits.idle).await;
            if activity.active.load(Ordering::Relaxed) == 0
                && activity.begun.load(Ordering::Relaxed) == before
            {
                return;
            }
        }
    }
}

/// Takes a connection off the counts when it ends.
struct Counted {
    open: prometheus_client::metrics::gauge::Gauge,
    stranger: Option<Arc<AtomicUsize>>,
}

impl Counted {
    fn new(open: prometheus_client::metrics::gauge::Gauge, stranger: Option<Arc<AtomicUsize>>) -> Self {
        open.inc();
        if let Some(strangers) = &stranger {
            strangers.fetch_add(1, Ordering::Relaxed);
        }
        Self { open, stranger }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.dec();
        if let Some(strangers) = &self.stranger {
            strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Hands one connection's requests to the router, with the connection's facts, and watches them to their end.
struct RequestService {
    env: Env,
    router: Router,
    connection: Connection,
    observer: Arc<Observer>,
    activity: Arc<Activity>,
    places: Arc<Semaphore>,
}

/// Whether a request is one of those that are counted. What asks whether the node is well is always answered, and so are nodes
/// and the operator, of whom there are few: a crowd of clients must not look like a cluster that is away.
fn may_bring_content(interface: Interface, request: &http::request::Parts, peer: &PeerIdentity) -> bool {
    if matches!(peer, PeerIdentity::Node { .. } | PeerIdentity::Operator { .. }) {
        return false;
    }
    match interface {
        Interface::Grpc => !request.uri.path().starts_with("/grpc.health."),
        Interface::Http => !matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS),
    }
}

/// The answer to a request for which there is no place.
fn crowded(interface: Interface) -> Response<Body> {
    let cause = "this node has as many requests under way as it takes at a time";
    let refusal = Refusal::new(ErrorCode::Overloaded, cause);
    match interface {
        Interface::Grpc => tonic::Status::from(refusal).into_http(),
        Interface::Http => refusal.into_response(),
    }
}

impl hyper::service::Service<Request<Incoming>> for RequestService {
    type Response = Response<Observed>;
    type Error = Infallible;
    type Future = crate::env::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        // Streams of gRPC end as its library ends them.
        let (body, rest) = match self.observer.interface() {
            Interface::Grpc => (Body::new(body), None),
            Interface::Http => drain::hold(body, &parts.headers, &self.env),
        };
        parts.extensions.insert(self.connection.clone());
        let interface = self.observer.interface();
        let counted = may_bring_content(interface, &parts, &self.connection.peer);
        let place = if counted { self.places.clone().try_acquire_owned().ok() } else { None };
        let refused = counted && place.is_none();
        let request = Request::from_parts(parts, body);
        let watch = self.observer.begin(&request, ActiveRequest::begin(&self.activity, place));
        let mut router = self.router.clone();
        Box::pin(async move {
            let response = if refused { crowded(interface) } else { router.call(request).await? };
            if let Some(rest) = rest {
                let refusal = response.extensions().get::<RefusalCode>().map(|code| code.0);
                rest.drain(refusal).await;
            }
            Ok(watch.response(response))
        })
    }
}
