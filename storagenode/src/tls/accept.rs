//! From a TCP connection to an [`Accepted`] one: handshakes in bounded time and number, and strangers sent away
//! with a word they understand.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::material::{Configs, identity_of};
use crate::env::{Accepted, Clock, Listener, Protocol};

/// First byte of every TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a server puts up with before it knows the other end.
#[derive(Debug, Clone)]
pub struct HandshakeLimits {
    pub timeout: Duration,
    /// Handshakes going on at a time; further connections wait in the kernel.
    pub concurrent: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), concurrent: 512 }
    }
}

struct TlsListener {
    accepted: Mutex<mpsc::Receiver<Accepted>>,
    address: String,
    _accepting: AbortOnDropHandle<()>,
}

#[async_trait]
impl Listener for TlsListener {
    async fn accept(&self) -> io::Result<Accepted> {
        let accepted = self.accepted.lock().await.recv().await;
        accepted.ok_or_else(|| io::Error::other("the listener has ended"))
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}

/// What each handshake needs.
struct Door {
    protocol: Protocol,
    configs: Arc<RwLock<Configs>>,
    limits: HandshakeLimits,
    clock: Arc<dyn Clock>,
    complaints: Complaints,
}

pub(super) fn listen(
    listener: TcpListener,
    protocol: Protocol,
    configs: Arc<RwLock<Configs>>,
    limits: HandshakeLimits,
    clock: Arc<dyn Clock>,
) -> io::Result<Arc<dyn Listener>> {
    let address = listener.local_addr()?.to_string();
    let (sender, receiver) = mpsc::channel(64);
    let door = Arc::new(Door { protocol, configs, limits, clock, complaints: Complaints::default() });
    let accepting = AbortOnDropHandle::new(tokio::spawn(door.accept_all(listener, sender)));
    Ok(Arc::new(TlsListener { accepted: Mutex::new(receiver), address, _accepting: accepting }))
}

impl Door {
    async fn accept_all(self: Arc<Self>, listener: TcpListener, sender: mpsc::Sender<Accepted>) {
        let permits = Arc::new(Semaphore::new(self.limits.concurrent));
        // Owned by this task: handshakes end with the listener.
        let mut handshakes = JoinSet::new();
        loop {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            while handshakes.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, remote)) => {
                    let (door, sender) = (self.clone(), sender.clone());
                    handshakes.spawn(async move {
                        if let Some(accepted) = door.shake_hands(stream, remote.to_string()).await {
                            let _ = sender.send(accepted).await;
                        }
                        // Only now: connections that nobody takes up count as well.
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: waiting is all that helps.
                    tracing::warn!(%error, "cannot accept a connection");
                    self.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn shake_hands(&self, stream: TcpStream, remote: String) -> Option<Accepted> {
        let outcome = tokio::select! {
            biased;
            outcome = self.try_shake_hands(stream, &remote) => outcome,
            () = self.clock.sleep(self.limits.timeout) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no handshake within {} s", self.limits.timeout.as_secs_f32()),
            )),
        };
        match outcome {
            Ok(accepted) => accepted,
            Err(error) => {
                if self.complaints.allowed(&*self.clock) {
                    tracing::info!(%remote, %error, "connection ended before it was established");
                }
                None
            }
        }
    }

    async fn try_shake_hands(&self, stream: TcpStream, remote: &str) -> io::Result<Option<Accepted>> {
        super::set_socket_options(&stream, super::CALLER_DEAD_AFTER)?;
        let mut first = [0; 1];
        match stream.peek(&mut first).await? {
            0 => return Ok(None), // A probe that only connects.
            _ if first[0] != TLS_HANDSHAKE => return self.send_away(stream, first[0]).await,
            _ => {}
        }
        let config = self.configs.read().server(self.protocol);
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let peer = identity_of(stream.get_ref().1.peer_certificates());
        Ok(Some(Accepted { stream: Box::new(stream), peer, remote: remote.to_owned() }))
    }

    /// Someone speaks without TLS. If it may be HTTP/1, the answer is one that people can read.
    async fn send_away(&self, mut stream: TcpStream, first: u8) -> io::Result<Option<Accepted>> {
        if first.is_ascii_uppercase() {
            stream.write_all(self.plain_answer().as_bytes()).await?;
            stream.shutdown().await?;
            // Closing with unread bytes would reset the connection, and the answer could be lost on the way.
            let mut rest = stream.take(64 * 1024);
            let mut buffer = [0; 4096];
            while rest.read(&mut buffer).await? > 0 {}
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the other end does not speak TLS"))
    }

    fn plain_answer(&self) -> String {
        let body = match self.protocol {
            Protocol::Http => "this port speaks TLS: use https://\n",
            Protocol::Grpc => "this port speaks gRPC over TLS: use a gRPC client with TLS\n",
        };
        format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: \
             close\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Lets at most one complaint a second into the log, whatever strangers do.
#[derive(Default)]
struct Complaints {
    last_second: AtomicU64,
}

impl Complaints {
    fn allowed(&self, clock: &dyn Clock) -> bool {
        let now = clock.monotonic().as_secs() + 1;
        self.last_second.swap(now, Ordering::Relaxed) != now
    }
}
