//! Several whole nodes in one thread: the real code of `cairn-node` above TLS, on simulated disks, a simulated network, a
//! store whose messages get lost, and a clock that jumps when nobody has anything to do.

use std::{
    io::IoSlice,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use cairn_node::{
    api,
    chunks::Kek,
    env::{BoxFuture, Clock, Disk, Env, OpenMode, Protocol, real::NoNetwork},
    files::SharedFiles,
    meta::{SharedMeta, embedded::EmbeddedStore},
    node::{Budgets, NodeOptions, RunningNode, ServeError, ServeOptions, Timings, serve},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{runtime::Runtime, time::Instant};

use super::{
    disk::SimDisk,
    env::{InlineThreads, SimRandom},
    life::{Life, LifeClock, LifeThreads},
    meta::MetaFaults,
    network::SimNet,
    plants::Plant,
};

/// 2026-01-01, so that dates look like dates.
const UNIX_START_MS: i64 = 1_767_225_600_000;
const TOKENS: &str = "/tokens";
/// Memory for content of a node as gateway, and as much of one as member.
pub const BUDGET_BYTES: usize = 4 << 20;

/// A runtime in which time jumps to the next sleeper when nothing can run.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets needs nothing from the system")
}

/// The runtime's paused time.
pub struct PausedClock {
    start: Instant,
    /// What people or a time server have set it forward by since, in milliseconds.
    set: Arc<AtomicI64>,
}

impl PausedClock {
    /// Must be made inside the runtime.
    pub fn start(set: Arc<AtomicI64>) -> Arc<dyn Clock> {
        Arc::new(Self { start: Instant::now(), set })
    }
}

impl Clock for PausedClock {
    fn monotonic(&self) -> Duration {
        Instant::now() - self.start
    }

    fn unix_ms(&self) -> i64 {
        UNIX_START_MS + self.monotonic().as_millis() as i64 + self.set.load(Ordering::Relaxed)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

struct SimNode {
    name: String,
    zone: String,
    disk: SimDisk,
    /// Its disk was taken from it, and it is told so.
    new_disk: bool,
    boots: u64,
    /// Milliseconds that its disk may take longer for anything.
    slow: Arc<AtomicU64>,
    running: Option<(Life, RunningNode)>,
}

/// A disk that was slowed down.
pub struct SlowDisk(Arc<AtomicU64>);

impl SlowDisk {
    pub fn heal(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The cluster. Must be made and used inside [`runtime`].
pub struct SimCluster {
    pub clock: Arc<dyn Clock>,
    clock_set: Arc<AtomicI64>,
    /// Nodes whose life is over.
    dead: Vec<RunningNode>,
    plant: Plant,
    budget_bytes: usize,
    pub net: SimNet,
    pub faults: MetaFaults,
    seed: u64,
    random: StdRng,
    store: SharedMeta,
    kek: Arc<Kek>,
    nodes: Vec<SimNode>,
}

impl SimCluster {
    /// Starts a store and a node in each of `zones`.
    pub async fn start(seed: u64, zones: &[&str]) -> Self {
        Self::start_planted(seed, zones, Plant::None).await
    }

    /// The same with a bug in it.
    pub async fn start_planted(seed: u64, zones: &[&str], plant: Plant) -> Self {
        let budget_bytes = if plant == Plant::NoBudgets { 1 << 30 } else { BUDGET_BYTES };
        Self::start_with(seed, zones, plant, budget_bytes).await
    }

    /// The same with so much memory for content of a node as gateway, and as much of one as member.
    pub async fn start_with(seed: u64, zones: &[&str], plant: Plant, budget_bytes: usize) -> Self {
        let clock_set = Arc::new(AtomicI64::new(0));
        let clock = PausedClock::start(clock_set.clone());
        let store_env = Env {
            clock: clock.clone(),
            random: Arc::new(SimRandom::new(seed)),
            disk: Arc::new(SimDisk::new(256 << 20)),
            network: Arc::new(NoNetwork),
            threads: Arc::new(InlineThreads),
        };
        let store =
            EmbeddedStore::open(store_env, Path::new("/meta")).await.expect("an empty disk takes a store");
        let node = |(index, zone): (usize, &&str)| SimNode {
            name: format!("n{}", index + 1),
            zone: (*zone).to_owned(),
            disk: SimDisk::new(512 << 20),
            new_disk: false,
            boots: 0,
            slow: Arc::default(),
            running: None,
        };
        let mut cluster = Self {
            net: SimNet::new(seed, clock.clone()),
            faults: MetaFaults::new(seed, clock.clone()),
            clock,
            clock_set,
            seed,
            random: StdRng::seed_from_u64(seed),
            store: plant.in_store(Arc::new(store)),
            plant,
            budget_bytes,
            dead: Vec::new(),
            kek: Arc::new(Kek::from_bytes([9; 32])),
            nodes: zones.iter().enumerate().map(node).collect(),
        };
        // One after the other would wait for the others' places on the map.
        for index in 0..zones.len() {
            cluster.boot(index).await.expect("a fresh node starts");
        }
        cluster
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn name(&self, index: usize) -> &str {
        &self.nodes[index].name
    }

    pub fn is_running(&self, index: usize) -> bool {
        self.nodes[index].running.is_some()
    }

    pub fn node(&self, index: usize) -> Option<&RunningNode> {
        self.nodes[index].running.as_ref().map(|(_, node)| node)
    }

    /// The gateway of a node that runs.
    pub fn files(&self, index: usize) -> Option<SharedFiles> {
        self.node(index).map(RunningNode::files)
    }

    /// The store itself, through which no message gets lost.
    pub fn meta(&self) -> &SharedMeta {
        &self.store
    }

    pub fn disk(&self, index: usize) -> &SimDisk {
        &self.nodes[index].disk
    }

    /// Starts a node that does not run.
    pub async fn boot(&mut self, index: usize) -> Result<(), ServeError> {
        let nodes = self.nodes.len();
        let node = &mut self.nodes[index];
        assert!(node.running.is_none(), "{} runs", node.name);
        node.boots += 1;
        let life = Life::default();
        let seed = self.seed ^ (index as u64 + 1) << 32 ^ node.boots << 48;
        let (delays, slow) = (Mutex::new(StdRng::seed_from_u64(seed)), node.slow.clone());
        let threads = LifeThreads {
            clock: self.clock.clone(),
            life: life.clone(),
            delay: Box::new(move || {
                let most = 2_500 + slow.load(Ordering::Relaxed) * 1_000;
                Duration::from_micros(delays.lock().random_range(0..most))
            }),
        };
        let env = Env {
            clock: Arc::new(LifeClock { clock: self.clock.clone(), life: life.clone() }),
            random: self.plant.in_random(Arc::new(SimRandom::new(seed))),
            disk: Arc::new(node.disk.clone()),
            network: self.net.of(&node.name, &life),
            threads: Arc::new(threads),
        };
        write_tokens(&node.disk);
        let listen = async |protocol| env.network.listen("", protocol).await.expect("a simulated port");
        let (grpc, http) = (listen(Protocol::Grpc).await, listen(Protocol::Http).await);
        let options = NodeOptions {
            cluster: "sim".into(),
            name: node.name.clone(),
            zone: node.zone.clone(),
            folder: "/data".into(),
            new_disk: node.new_disk,
            advertise: grpc.address(),
            capacity_bytes: None,
            kek: self.kek.clone(),
            expected_nodes: nodes,
            timings: timings(),
            budgets: Budgets { gateway_bytes: self.budget_bytes, member_bytes: self.budget_bytes as u64 },
        };
        let serving = ServeOptions { grpc, http, tokens: TOKENS.into(), limits: api::Limits::default() };
        let meta = self.faults.of(self.store.clone(), &life);
        let running = serve(env, options, meta, serving).await?;
        self.nodes[index].running = Some((life, running));
        Ok(())
    }

    /// From now on, whatever a node's disk does takes so much longer, at most.
    pub fn slow_disk(&self, index: usize, by: Duration) -> SlowDisk {
        self.nodes[index].slow.store(by.as_millis() as u64, Ordering::Relaxed);
        SlowDisk(self.nodes[index].slow.clone())
    }

    /// Sets the clocks of all machines forward, or back. What measures time does not hear of it.
    pub fn set_clocks_forward(&self, milliseconds: i64) {
        self.clock_set.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// `kill -9`: what was written stays in the disk's cache.
    pub fn kill(&mut self, index: usize) {
        if self.end(index) {
            self.nodes[index].disk.kill();
        }
    }

    /// Cuts the machine's power: of what was not synced, anything may be lost.
    pub fn cut_power(&mut self, index: usize) {
        if self.end(index) {
            self.nodes[index].disk.crash(&mut self.random);
        }
    }

    /// Replaces the disk of a node that does not run by an empty one.
    pub fn lose_disk(&mut self, index: usize) {
        assert!(!self.is_running(index));
        self.nodes[index].disk = SimDisk::new(512 << 20);
        self.nodes[index].new_disk = true;
    }

    fn end(&mut self, index: usize) -> bool {
        let Some((life, node)) = self.nodes[index].running.take() else { return false };
        life.end();
        // Its tasks stay, and get no answers any more; see `life`. Dropped now, it would tell them to end.
        self.dead.push(node);
        true
    }
}

/// A story lasts a minute or two; sweeps come often enough to see several.
fn timings() -> Timings {
    Timings {
        tick: Duration::from_secs(5),
        sweep_every_ticks: 3,
        quarantine_ticks: 12,
        collect_after_ticks: 6,
        tombstone_ticks: 14,
        compact: Some(Duration::from_secs(20)),
        ..Timings::default()
    }
}

/// Nodes want to know who may come in; nobody does here.
fn write_tokens(disk: &SimDisk) {
    let path = Path::new(TOKENS);
    let line = cairn_node::secrets::token_line("sim", "a token of the simulation");
    let _ = disk.remove(path);
    let file = disk.open(path, OpenMode::CreateNew).expect("room for the tokens");
    file.write_at(&[IoSlice::new(line.as_bytes())], 0).expect("room for the tokens");
}
