//! Free TCP ports on loopback for servers that cannot pick one by themselves.
//!
//! A port from `bind(0)` lies where the kernel also takes the near ends of outgoing connections from, so one that is given
//! back may be gone when the server (or, after a kill, its successor) wants it. These lie below that range.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;

use rand::Rng;

const LOWEST: u16 = 12_000;
const HIGHEST: u16 = 30_000;
const ROWS_END: u16 = 32_000;

/// `count` different ports that nothing listens on and that this process has not handed out before.
pub fn free(count: usize) -> Vec<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(|e| e.into_inner());
    let given = given.get_or_insert_with(HashSet::new);
    let mut rng = rand::rng();
    let mut ports = Vec::with_capacity(count);
    for _ in 0..100_000 {
        if ports.len() == count {
            return ports;
        }
        let port = rng.random_range(LOWEST..HIGHEST);
        if !given.contains(&port) && is_free(port) {
            given.insert(port);
            ports.push(port);
        }
    }
    panic!(
        "no {count} free TCP ports between {LOWEST} and {HIGHEST}: end what listens there (see `ss -ltn`)"
    );
}

/// The first of `count` ports in a row that nothing listens on and that this process gives to nobody else: for clusters whose
/// nodes are away for a while, in which whoever looks for a free port would find theirs. Above what [`free`] gives.
pub fn row(count: u16) -> u16 {
    static NEXT: Mutex<u16> = Mutex::new(HIGHEST);
    let mut next = NEXT.lock().unwrap_or_else(|e| e.into_inner());
    while *next + count <= ROWS_END {
        let first = *next;
        *next += count;
        if (first..first + count).all(is_free) {
            return first;
        }
    }
    panic!("no {count} free TCP ports in a row between {HIGHEST} and {ROWS_END}");
}

/// One free port.
pub fn free_one() -> u16 {
    free(1)[0]
}

/// `127.0.0.1:port`.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_differ_and_can_be_bound() {
        let ports = super::free(20);
        let different: std::collections::HashSet<_> = ports.iter().collect();
        assert_eq!(different.len(), 20);
        // A child that another test forks holds our sockets until it has become its program.
        let freed = |port: &u16| {
            let free = || super::is_free(*port).then_some(());
            crate::process::poll(std::time::Duration::from_secs(5), std::time::Duration::from_millis(5), free)
        };
        assert!(ports.iter().all(|port| freed(port).is_some()));
    }
}
