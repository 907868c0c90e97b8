//! A network in memory between simulated nodes: connections take time, break when an end dies, and fall silent while the
//! way between two nodes is cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use cairn_node::env::{Accepted, Clock, Listener, Network, PeerIdentity, Protocol, Stream};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
};

use super::life::Life;

/// Bytes that a connection holds in each direction.
const IN_FLIGHT: usize = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: usize = 256;
/// How often a silent way is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The wires. Clones are the same.
#[derive(Clone)]
pub struct SimNet {
    hub: Arc<Hub>,
}

struct Hub {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    doors: BTreeMap<String, Door>,
    /// Pairs of nodes that do not hear each other, in order of names.
    cut: BTreeSet<(String, String)>,
    random: StdRng,
    next_port: u32,
}

struct Door {
    node: String,
    life: Life,
    sender: mpsc::Sender<Accepted>,
}

impl SimNet {
    pub fn new(seed: u64, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            doors: BTreeMap::new(),
            cut: BTreeSet::new(),
            random: StdRng::seed_from_u64(seed),
            next_port: 1,
        };
        Self { hub: Arc::new(Hub { clock, state: Mutex::new(state) }) }
    }

    /// The network as one life of a node has it.
    pub fn of(&self, node: &str, life: &Life) -> Arc<dyn Network> {
        Arc::new(NodeNetwork { hub: self.hub.clone(), node: node.to_owned(), life: life.clone() })
    }

    /// From now on neither hears the other.
    pub fn cut(&self, one: &str, other: &str) {
        self.hub.state.lock().cut.insert(pair(one, other));
    }

    pub fn heal(&self) {
        self.hub.state.lock().cut.clear();
    }
}

fn pair(one: &str, other: &str) -> (String, String) {
    let (low, high) = if one < other { (one, other) } else { (other, one) };
    (low.to_owned(), high.to_owned())
}

impl Hub {
    /// A packet's way.
    fn latency(&self) -> Duration {
        Duration::from_micros(self.state.lock().random.random_range(20..1_500))
    }

    fn is_cut(&self, ends: &(String, String)) -> bool {
        self.state.lock().cut.contains(ends)
    }

    /// Ends when a packet has got through.
    async fn travel(&self, ends: &(String, String)) {
        self.clock.sleep(self.latency()).await;
        while self.is_cut(ends) {
            self.clock.sleep(LOOK_AGAIN).await;
        }
    }
}

struct NodeNetwork {
    hub: Arc<Hub>,
    node: String,
    life: Life,
}

#[async_trait::async_trait]
impl Network for NodeNetwork {
    async fn listen(&self, address: &str, _: Protocol) -> io::Result<Arc<dyn Listener>> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut state = self.hub.state.lock();
        let address = match address {
            "" => {
                state.next_port += 1;
                format!("{}:{}", self.node, state.next_port)
            }
            address => address.to_owned(),
        };
        let door = Door { node: self.node.clone(), life: self.life.clone(), sender };
        state.doors.insert(address.clone(), door);
        Ok(Arc::new(SimListener { address, receiver: tokio::sync::Mutex::new(receiver) }))
    }

    async fn connect(&self, address: &str, _: &str) -> io::Result<Box<dyn Stream>> {
        self.life.go_on().await;
        let found = {
            let state = self.hub.state.lock();
            state.doors.get(address).map(|door| (door.node.clone(), door.life.clone(), door.sender.clone()))
        };
        let Some((node, life, sender)) = found.filter(|(_, life, _)| !life.is_over()) else {
            self.hub.clock.sleep(self.hub.latency()).await;
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let ends = pair(&self.node, &node);
        self.life.of(self.hub.travel(&ends)).await;
        let (mine, my_wire) = tokio::io::duplex(IN_FLIGHT);
        let (theirs, their_wire) = tokio::io::duplex(IN_FLIGHT);
        let lives = [self.life.clone(), life];
        let wire = Wire { hub: self.hub.clone(), ends, lives };
        wire.join(my_wire, their_wire);
        let accepted = Accepted {
            stream: Box::new(theirs),
            peer: PeerIdentity::Node { name: self.node.clone() },
            remote: self.node.clone(),
        };
        sender.try_send(accepted).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Box::new(mine))
    }
}

struct SimListener {
    address: String,
    receiver: tokio::sync::Mutex<mpsc::Receiver<Accepted>>,
}

#[async_trait::async_trait]
impl Listener for SimListener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self.receiver.lock().await.recv().await {
            Some(accepted) => Ok(accepted),
            None => std::future::pending().await,
        }
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}

/// What lies between the ends of one connection.
#[derive(Clone)]
struct Wire {
    hub: Arc<Hub>,
    ends: (String, String),
    lives: [Life; 2],
}

impl Wire {
    fn join(self, one: DuplexStream, other: DuplexStream) {
        let (from_one, to_one) = tokio::io::split(one);
        let (from_other, to_other) = tokio::io::split(other);
        let back = self.clone();
        tokio::spawn(async move {
            let there = self.clone().pump(from_one, to_other);
            let back = back.pump(from_other, to_one);
            let both = async { tokio::join!(biased; there, back) };
            // A dead end's kernel resets its connections; one that is still there sees the end of the stream.
            tokio::select! {
                biased;
                () = self.lives[0].over() => {}
                () = self.lives[1].over() => {}
                _ = both => {}
            }
        });
    }

    async fn pump(self, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let mut buffer = vec![0; IN_FLIGHT];
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            self.hub.travel(&self.ends).await;
            if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    }
}
