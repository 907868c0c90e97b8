//! Watches each request from its header to the last byte of its answer: counts it, times it, logs it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use cairn_proto::v1::ErrorCode;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;

use super::{serve::ActiveRequest, status::code_of};
use crate::{
    env::Clock,
    metrics::{Interface, Metrics},
};

/// In a response's extensions: the route that made it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RouteLabel(pub &'static str);

/// In a response's extensions: the refusal that it carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct RefusalCode(pub ErrorCode);

/// What requests are told apart by when no route took them.
const NO_METHOD: &str = "none";
const OK: &str = "OK";
/// The client went away before the end of the answer, or the answer could not be finished.
const BROKEN_OFF: &str = "BROKEN_OFF";

/// Watches one interface's requests.
pub(super) struct Observer {
    interface: Interface,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

impl Observer {
    pub(super) fn new(interface: Interface, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Self {
        Self { interface, metrics, clock }
    }

    pub(super) fn interface(&self) -> Interface {
        self.interface
    }

    pub(super) fn begin(self: &Arc<Self>, request: &Request<Body>, active: ActiveRequest) -> Watch {
        let method = match self.interface {
            Interface::Grpc => grpc_methods().get(request.uri().path()).copied().unwrap_or(NO_METHOD),
            Interface::Http => NO_METHOD,
        };
        Watch {
            observer: self.clone(),
            method,
            code: BROKEN_OFF,
            started: self.clock.monotonic(),
            _active: active,
        }
    }
}

/// One request; counted when dropped.
pub(super) struct Watch {
    observer: Arc<Observer>,
    method: &'static str,
    code: &'static str,
    started: Duration,
    _active: ActiveRequest,
}

impl Watch {
    /// The answer's header is known; goes on watching its body.
    pub(super) fn response(mut self, response: Response<Body>) -> Response<Observed> {
        let extensions = response.extensions();
        if let Some(label) = extensions.get::<RouteLabel>() {
            self.method = label.0;
        }
        let outcome = match self.observer.interface {
            Interface::Grpc => extensions.get::<tonic::Status>().map(grpc_code),
            Interface::Http => match extensions.get::<RefusalCode>() {
                Some(code) => Some(code.0.as_str_name()),
                None if response.status().is_client_error() || response.status().is_server_error() => {
                    Some(ErrorCode::Unspecified.as_str_name())
                }
                None => None,
            },
        };
        response.map(|inner| {
            let mut observed = Observed { inner, watch: self, outcome };
            observed.note_end();
            observed
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let took = self.observer.clock.monotonic().saturating_sub(self.started);
        self.observer.metrics.request_ended(self.observer.interface, self.method, self.code, took);
        tracing::debug!(
            interface = self.observer.interface.as_str(),
            method = self.method,
            code = self.code,
            took_ms = took.as_millis() as u64,
            "request ended"
        );
    }
}

/// An answer's body that knows when it ended and how.
pub(super) struct Observed {
    inner: Body,
    watch: Watch,
    /// The code that the header has settled already.
    outcome: Option<&'static str>,
}

impl Observed {
    /// A body without content is never polled to its end.
    fn note_end(&mut self) {
        if let Some(code) = self.outcome {
            self.watch.code = code;
        } else if self.inner.is_end_stream() {
            self.watch.code = OK;
        }
    }

    fn note_trailers(&mut self, trailers: &HeaderMap) {
        if self.outcome.is_none()
            && let Some(status) = tonic::Status::from_header_map(trailers)
        {
            self.outcome = Some(grpc_code(&status));
            self.note_end();
        }
    }
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.note_trailers(trailers);
                }
                self.note_end();
            }
            Poll::Ready(None) if self.outcome.is_none() => self.watch.code = OK,
            Poll::Ready(Some(Err(_))) => self.watch.code = self.outcome.unwrap_or(BROKEN_OFF),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn grpc_code(status: &tonic::Status) -> &'static str {
    match code_of(status) {
        Some(code) => code.as_str_name(),
        None if status.code() == tonic::Code::Ok => OK,
        None => ErrorCode::Unspecified.as_str_name(),
    }
}

/// `/cairn.v1.Files/Upload` → `Files/Upload`, for every method of ours: labels must not grow with what strangers ask.
fn grpc_methods() -> &'static HashMap<String, &'static str> {
    static METHODS: OnceLock<HashMap<String, &'static str>> = OnceLock::new();
    METHODS.get_or_init(|| {
        let set = prost_types::FileDescriptorSet::decode(cairn_proto::v1::FILE_DESCRIPTOR_SET)
            .expect("the build has written a descriptor set");
        let mut methods = HashMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let label = format!("{}/{}", service.name(), method.name());
                    let path = format!("/{}.{label}", file.package());
                    methods.insert(path, &*Box::leak(label.into_boxed_str()));
                }
            }
        }
        methods
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_label() {
        assert_eq!(grpc_methods().get("/cairn.v1.Files/Upload"), Some(&"Files/Upload"));
        assert_eq!(grpc_methods().get("/cairn.v1.Peer/PutChunk"), Some(&"Peer/PutChunk"));
        assert!(grpc_methods().len() >= 17);
    }
}
