//! Network namespaces of a bed, and a way in: a port on our own loopback that leads to an address inside.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// More connections than these through one forwarded port are refused: each costs two threads.
const MOST_CONNECTIONS: usize = 512;

/// Where `ip netns` keeps its namespaces.
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs `work` in a namespace, on a thread of its own.
pub fn enter<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(netns)?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: a valid descriptor; changes this thread alone.
            if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(work())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` with arguments separated by spaces.
pub fn ip(program: &Path, arguments: &str) -> io::Result<()> {
    let output = Command::new(program).args(arguments.split_whitespace()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {arguments}: {}", why.trim())))
}

/// Removes a namespace, also one whose processes still run.
pub fn remove(netns: &Path) {
    super::teardown::unmount(netns);
    let _ = std::fs::remove_file(netns);
}

/// A port on loopback whose connections go on to `target`, dialled from inside a namespace.
#[derive(Debug)]
pub struct Forwarder {
    local: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    netns: PathBuf,
    target: SocketAddr,
    stopped: AtomicBool,
    next: AtomicU64,
    /// Both ends of each connection, to hang up when the forwarder goes.
    open: Mutex<BTreeMap<u64, [TcpStream; 2]>>,
}

impl Forwarder {
    pub fn start(netns: &Path, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let local = listener.local_addr()?;
        let shared = Arc::new(Shared {
            netns: netns.to_path_buf(),
            target,
            stopped: AtomicBool::new(false),
            next: AtomicU64::new(0),
            open: Mutex::new(BTreeMap::new()),
        });
        let for_thread = shared.clone();
        std::thread::Builder::new()
            .name(format!("forward-{target}"))
            .spawn(move || accept(listener, for_thread))?;
        Ok(Self { local, shared })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = TcpStream::connect_timeout(&self.local, CONNECT_WITHIN); // wakes accept
        let open = self.shared.open.lock().unwrap_or_else(|e| e.into_inner());
        for stream in open.values().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: TcpListener, shared: Arc<Shared>) {
    for near in listener.incoming() {
        if shared.stopped.load(Ordering::Acquire) {
            return;
        }
        let Ok(near) = near else { continue };
        if shared.open.lock().unwrap_or_else(|e| e.into_inner()).len() >= MOST_CONNECTIONS {
            continue; // dropped: the other end sees it closed
        }
        let shared = shared.clone();
        let _ = std::thread::Builder::new().spawn(move || {
            let _ = carry(near, &shared);
        });
    }
}

fn carry(near: TcpStream, shared: &Shared) -> io::Result<()> {
    // A socket stays in the namespace it was made in, whichever thread uses it.
    let far = enter(&shared.netns, || TcpStream::connect_timeout(&shared.target, CONNECT_WITHIN))??;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    let ends = [near.try_clone()?, far.try_clone()?];
    shared.open.lock().unwrap_or_else(|e| e.into_inner()).insert(number, ends);
    std::thread::scope(|scope| {
        scope.spawn(|| copy(&near, &far));
        copy(&far, &near);
    });
    shared.open.lock().unwrap_or_else(|e| e.into_inner()).remove(&number);
    Ok(())
}

/// Carries one direction of a connection until its end.
pub fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let whole = io::copy(&mut from, &mut to).is_ok();
    // An end of stream is passed on as one; an error ends both directions.
    let _ = to.shutdown(Shutdown::Write);
    if !whole {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
