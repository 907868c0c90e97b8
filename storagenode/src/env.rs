//! The seams: everything a node does to the world outside goes through one of these traits.
//!
//! The real ones are in [`real`]; a simulator brings its own and drives the same code from one seed. So nothing else
//! in this crate reads a clock, draws a random number, opens a file or a socket, or starts a thread
//! (`clippy.toml` forbids it by name).
//!
//! | seam | what |
//! |---|---|
//! | [`Clock`] | monotonic time, wall time (for people only: no rule depends on it), sleeping |
//! | [`Random`] | random bytes: generations, incarnations, keys, jitter |
//! | [`Disk`] | folders and files with explicit syncs; blocking, called inside [`Threads`] |
//! | [`Network`] | connections that are already trusted (TLS is inside the real one) |
//! | [`Threads`] | blocking work off the event loop |

use std::{future::Future, io, path::Path, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(test)]
pub(crate) mod paused;
pub mod real;

/// A future that can be kept in a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// All seams of one node. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub disk: Arc<dyn Disk>,
    pub network: Arc<dyn Network>,
    pub threads: Arc<dyn Threads>,
}

impl Env {
    /// Runs blocking work off the event loop and gives its result. Never ends if the work was dropped undone: only a runtime
    /// that is being dropped does that, and whoever waits here goes with it.
    ///
    /// # Panics
    /// If the work panics.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.threads
            .run(Box::new(move || {
                let _ = sender.send(work());
            }))
            .await;
        match receiver.await {
            Ok(result) => result,
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives the future's result, or `None` once `limit` has passed.
    pub async fn timeout<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            result = future => Some(result),
            () = self.clock.sleep(limit) => None,
        }
    }
}

/// Time.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment before the process began; never goes back.
    fn monotonic(&self) -> Duration;
    /// Milliseconds since 1970. For people and file dates only: it may jump, also backwards.
    fn unix_ms(&self) -> i64;
    /// Ends after `duration` of monotonic time.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Unpredictable bytes.
pub trait Random: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);
}

impl dyn Random + '_ {
    /// An array of random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A number below `limit` (which must not be 0).
    pub fn below(&self, limit: u64) -> u64 {
        u64::from_le_bytes(self.bytes()) % limit
    }
}

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    Read,
    /// Must exist.
    ReadWrite,
    /// Must not exist.
    CreateNew,
}

/// A file system. All calls block: make them inside [`Env::blocking`].
///
/// Nothing is durable until a sync says so: written bytes after [`DiskFile::sync_data`] or `sync_all`, a created,
/// renamed or removed name after [`Disk::sync_folder`] of its folder.
pub trait Disk: Send + Sync {
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Names (not paths) in a folder, sorted.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Total and available bytes of the file system that holds `folder`.
    fn space(&self, folder: &Path) -> io::Result<DiskSpace>;
}

/// Makes the names in a folder durable, its own, and those of the folders above it: any of them may have been made just now,
/// or by a process that was killed before it had synced that.
pub fn sync_with_parents(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    for path in folder.ancestors() {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match disk.sync_folder(path) {
            // Nothing in it was made by us.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Replaces a small file as a whole, or makes it: durably, and whatever happens meanwhile there is the old one or the new
/// one. `NAME.new` beside it is used for that.
pub fn replace_file(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = path.to_owned().into_os_string();
    new.push(".new");
    let new = Path::new(&new);
    match disk.remove(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(new, OpenMode::CreateNew)?;
    file.write_at(&[io::IoSlice::new(content)], 0)?;
    file.sync_all()?;
    disk.rename(new, path)?;
    disk.sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

/// An open file. Closed when dropped.
pub trait DiskFile: Send + Sync {
    fn size(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all parts one after the other at `offset`.
    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Reserves blocks and sets the size.
    fn allocate(&self, size: u64) -> io::Result<()>;
    /// Gives the blocks of a range back; it reads as zeros.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;
    fn truncate(&self, size: u64) -> io::Result<()>;
    /// Makes written bytes durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes written bytes and the size durable (`fsync`).
    fn sync_all(&self) -> io::Result<()>;
    /// Whether the file still has a name. One without goes when it is closed, with all that is in it.
    fn has_name(&self) -> io::Result<bool>;
    /// Drops cached pages of a range, so that the next read asks the device.
    fn forget_cached(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Takes the exclusive lock; `WouldBlock` if another process has it. Held until the file is closed.
    fn lock(&self) -> io::Result<()>;
}

/// A two-way byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Who is at the other end, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerIdentity {
    /// No certificate: a client that must show a token.
    Anonymous,
    Node {
        name: String,
    },
    Operator {
        name: String,
    },
    /// A client with a certificate.
    Client {
        name: String,
    },
}

/// An accepted connection.
pub struct Accepted {
    pub stream: Box<dyn Stream>,
    pub peer: PeerIdentity,
    pub remote: String,
}

/// Waits for connections. Handshakes happen inside, in bounded time and number, and failed ones are not given out.
#[async_trait]
pub trait Listener: Send + Sync {
    async fn accept(&self) -> io::Result<Accepted>;
    /// `host:port` that it listens on.
    fn address(&self) -> String;
}

/// What will be spoken on a listener's connections: decides what is negotiated, and how a stranger is sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 only.
    Grpc,
    /// HTTP/2 or HTTP/1.1.
    Http,
}

/// Connections, trusted and encrypted: the real one speaks TLS 1.3 with certificates checked on both sides.
#[async_trait]
pub trait Network: Send + Sync {
    /// Listens on `address` (`host:port`, port 0 for any).
    async fn listen(&self, address: &str, protocol: Protocol) -> io::Result<Arc<dyn Listener>>;
    /// Connects to the gRPC port of a node at `address` (`host:port`); fails unless the other end proves to be a node
    /// of this cluster that goes by that host name. Nodes may share a certificate, so requests say *which* one they are
    /// for (`replication::peers`); `expected` is for messages only.
    async fn connect(&self, address: &str, expected: &str) -> io::Result<Box<dyn Stream>>;
}

/// Work that may block.
pub type Work = Box<dyn FnOnce() + Send>;

/// Runs blocking work: on threads in reality, in place in a simulation.
pub trait Threads: Send + Sync {
    /// Ends when the work has ended.
    fn run(&self, work: Work) -> BoxFuture<'static, ()>;
}
