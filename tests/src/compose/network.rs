//! The network of a project: a machine of its own (a namespace with a bridge and no way out), a cable for each service,
//! names by DNS as an engine answers them, and published ports.
//!
//! The namespaces have no names and go with the last thing that holds them: nothing is left, also after `kill -9`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::bed::netns;

const BRIDGE: &str = "compose0";
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 1);
/// Where containers of an engine find its name server.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a server's thread may take to notice that it is to end.
const GLANCE: Duration = Duration::from_millis(200);

/// A network namespace.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    fn new() -> io::Result<Self> {
        let made = std::thread::spawn(|| {
            // SAFETY: changes this thread alone.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        made.join().map_err(|_| io::Error::other("a thread panicked"))?.map(Self)
    }

    /// Where programs started by us find it, as long as this value is there.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    fn ip(&self, program: &Path, arguments: &str) -> io::Result<()> {
        netns::enter(&self.path(), || netns::ip(program, arguments))?
    }
}

/// Names of the containers that run now.
type Names = Arc<Mutex<BTreeMap<String, Ipv4Addr>>>;

/// Ends the threads of the network.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
pub struct Network {
    ip: PathBuf,
    machine: Arc<Namespace>,
    names: Names,
    stop: Stop,
    cables: usize,
}

/// A service's place in the network.
#[derive(Debug)]
pub struct Plug {
    pub namespace: Namespace,
    pub address: Ipv4Addr,
    names: Names,
}

impl Network {
    /// `ip` is the program.
    pub fn new(ip: &Path) -> io::Result<Self> {
        let machine = Namespace::new()?;
        for arguments in [
            "link set lo up".to_string(),
            format!("link add {BRIDGE} type bridge"),
            format!("addr add {MACHINE}/24 dev {BRIDGE}"),
            format!("link set {BRIDGE} up"),
        ] {
            machine.ip(ip, &arguments)?;
        }
        let (names, stop) = Default::default();
        Ok(Self { ip: ip.to_path_buf(), machine: Arc::new(machine), names, stop, cables: 0 })
    }

    /// The namespace of the machine that runs the containers.
    pub fn machine(&self) -> PathBuf {
        self.machine.path()
    }

    /// Makes a namespace with an address, and a name server at [`NAME_SERVER`].
    pub fn plug(&mut self) -> io::Result<Plug> {
        self.cables += 1;
        let cable = format!("v{}", self.cables);
        let [a, b, c, _] = MACHINE.octets();
        let last = u8::try_from(10 + self.cables).map_err(io::Error::other)?;
        let address = Ipv4Addr::new(a, b, c, last);
        let namespace = Namespace::new()?;
        let inside = namespace.path();
        let peer = format!("link add {cable} type veth peer name eth0 netns {}", inside.display());
        self.machine.ip(&self.ip, &peer)?;
        self.machine.ip(&self.ip, &format!("link set {cable} master {BRIDGE} up"))?;
        for arguments in ["link set lo up", &format!("addr add {address}/24 dev eth0"), "link set eth0 up"] {
            namespace.ip(&self.ip, arguments)?;
        }
        let socket = netns::enter(&inside, || UdpSocket::bind((NAME_SERVER, 53)))??;
        socket.set_read_timeout(Some(GLANCE))?;
        let (names, stop) = (self.names.clone(), self.stop.clone());
        std::thread::Builder::new().name("dns".into()).spawn(move || answer(&socket, &names, &stop))?;
        Ok(Plug { namespace, address, names: self.names.clone() })
    }

    /// Makes a port of the machine lead to one of a container.
    pub fn publish(&self, port: u16, to: SocketAddr) -> io::Result<()> {
        let listener = netns::enter(&self.machine(), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        listener.set_nonblocking(true)?;
        let (machine, stop) = (self.machine.clone(), self.stop.clone());
        std::thread::Builder::new().name(format!("port-{port}")).spawn(move || {
            // Threads that it starts are in the same namespace.
            netns::enter(&machine.path(), || accept(&listener, to, &stop))
        })?;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Release);
    }
}

impl Plug {
    /// The container runs: its names lead to it.
    pub fn announce(&self, names: &[String]) {
        let mut known = self.names.lock().unwrap_or_else(|e| e.into_inner());
        known.extend(names.iter().map(|name| (name.clone(), self.address)));
    }

    /// It has ended: nobody finds it any more.
    pub fn withdraw(&self) {
        self.names.lock().unwrap_or_else(|e| e.into_inner()).retain(|_, address| *address != self.address);
    }
}

fn accept(listener: &TcpListener, to: SocketAddr, stop: &Stop) {
    while !stop.asked() {
        let mut waiting = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which stays open.
        unsafe { libc::poll(&mut waiting, 1, GLANCE.as_millis() as i32) };
        if let Ok((near, _)) = listener.accept() {
            let _ = std::thread::Builder::new().spawn(move || carry(&near, to));
        }
    }
}

fn carry(near: &TcpStream, to: SocketAddr) -> io::Result<()> {
    near.set_nonblocking(false)?;
    near.set_nodelay(true)?;
    let far = TcpStream::connect_timeout(&to, CONNECT_WITHIN)?;
    far.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| netns::copy(near, &far));
        netns::copy(&far, near);
    });
    Ok(())
}

fn answer(socket: &UdpSocket, names: &Names, stop: &Stop) {
    let mut packet = [0; 512];
    while !stop.asked() {
        let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
        let known = names.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(reply) = reply(&packet[..length], |name| known.get(name).copied()) {
            let _ = socket.send_to(&reply, from);
        }
    }
}

/// The answer to a question of one name (RFC 1035, 4.1): its address; nothing for other kinds of record; or that there
/// is no such name.
fn reply(question: &[u8], find: impl Fn(&str) -> Option<Ipv4Addr>) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const TYPE_A: [u8; 2] = [0, 1];
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8(question.get(at..at + length)?.to_ascii_lowercase()).ok()?);
        at += length;
    }
    let kind = question.get(at..at + 2)?;
    let end = at + 4; // type and class
    let address = find(&labels.join("."));
    let answers = u8::from(address.is_some() && kind == TYPE_A);
    let no_such_name = if address.is_some() { 0 } else { 3 };
    let mut reply = question.get(..2)?.to_vec();
    reply.extend([0x81, 0x80 | no_such_name, 0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(question.get(HEADER..end)?);
    if let (Some(address), 1) = (address, answers) {
        // The name as in the question, type A, class IN, for no time to be kept, four bytes.
        reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_answered() {
        let ask = |name: &[u8], kind: u8| {
            let mut question = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            question.extend(name);
            question.extend([0, kind, 0, 1]);
            reply(&question, |name| (name == "a.b").then_some(MACHINE)).unwrap()
        };
        let known = ask(b"\x01A\x01b\x00", 1);
        assert!(known.starts_with(&[7, 8, 0x81, 0x80, 0, 1, 0, 1]) && known.ends_with(&MACHINE.octets()));
        assert!(ask(b"\x01a\x01b\x00", 28).starts_with(&[7, 8, 0x81, 0x80, 0, 1, 0, 0]));
        assert!(ask(b"\x01a\x00", 1).starts_with(&[7, 8, 0x81, 0x83, 0, 1, 0, 0]));
        assert!(reply(b"short", |_| None).is_none());
    }
}
