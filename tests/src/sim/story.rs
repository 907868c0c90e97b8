//! One history of a simulated cluster: clients that put, create, get, list, move and delete a few files through whichever node
//! they find, while nodes die, disks forget, fail and are slow, networks fall silent and the store's messages get lost. At the end everything
//! is healed, everything is read through every node, and what all clients were told must have an order.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_node::{
    api::ports::Cluster as _,
    env::Clock,
    files::{CopyState, FileError, FilePath, ReadSpec, SharedFiles, VolumeName},
};
use futures::StreamExt;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

mod client;
mod patient;

use client::Client;
use patient::Patient;

use super::{
    cluster::{SimCluster, runtime},
    disk::{self, Fault},
    leftovers::Leftovers,
    linear::{self, Act, Operation, Value},
    memory::Gauge,
    meta::Odds,
    plants::Plant,
};

const ZONES: [&str; 3] = ["a", "b", "c"];
const CLIENTS: u64 = 4;
/// One story in so many has patient clients too: they last for minutes.
const ONE_WITH_PATIENTS_IN: u64 = 4;
const ACTS: usize = 14;
const PATHS: [&str; 4] = ["a", "a/b", "c", "d"];
const DISASTERS: usize = 9;
/// A client waits no longer for one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Everything must be whole again so long after everything was healed.
const HEALED_WITHIN: Duration = Duration::from_secs(1_800);
const CHUNK_BYTES: u32 = 64 << 10;

/// What a whole story may take, with what is on its disks. The first hundred take 3 to 9 MiB.
const MEMORY_BYTES: i64 = 32 << 20;

/// What went wrong, and what led to it.
pub struct Failure {
    pub seed: u64,
    pub why: String,
    pub log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}\n{}", self.seed, self.why, self.log.join("\n"))
    }
}

/// Plays the history of one seed; its log.
pub fn play(seed: u64) -> Result<Vec<String>, Failure> {
    play_planted(seed, Plant::None)
}

/// The same, with a bug.
pub fn play_planted(seed: u64, plant: Plant) -> Result<Vec<String>, Failure> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let memory = Gauge::start();
    let runtime = runtime();
    let ended = runtime.block_on(async {
        let mut story = Story::begin(seed, plant, log.clone()).await;
        story.middle().await;
        story.end().await?;
        let most = memory.most();
        story.stage.note(format_args!("{} MiB at most", most >> 20));
        if most > MEMORY_BYTES { Err(format!("it took {most} bytes of memory")) } else { Ok(()) }
    });
    drop(runtime);
    let log = log.lock().clone();
    ended.map(|()| log.clone()).map_err(|why| Failure { seed, why, log })
}

/// What all parts of a story share.
#[derive(Clone)]
struct Stage {
    clock: Arc<dyn Clock>,
    /// The gateways that are there now.
    doors: Arc<Mutex<Vec<Option<SharedFiles>>>>,
    seen: Arc<Mutex<Seen>>,
    log: Arc<Mutex<Vec<String>>>,
}

#[derive(Default)]
struct Seen {
    operations: Vec<Operation>,
    /// Which operation wrote a content.
    values: HashMap<[u8; 32], Value>,
    next_value: Value,
}

impl Stage {
    fn note(&self, what: impl fmt::Display) {
        let now = self.clock.monotonic();
        self.log.lock().push(format!("{:>11.4} {what}", now.as_secs_f64()));
    }

    /// A new content of so many bytes, and its number.
    fn content(&self, length: usize, random: &mut StdRng) -> (Value, Bytes) {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes[..]);
        let mut seen = self.seen.lock();
        seen.next_value += 1;
        let value = seen.next_value;
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        seen.values.insert(*blake3::hash(&bytes).as_bytes(), value);
        (value, bytes.into())
    }

    /// Which operation wrote a content; one that nobody wrote is a value that no operation explains.
    fn value_of(&self, blake3: &[u8; 32]) -> Value {
        self.seen.lock().values.get(blake3).copied().unwrap_or(Value::MAX)
    }

    fn record(&self, path: &'static str, called: Duration, answered: bool, act: Act) {
        self.record_until(path, called, answered.then(|| self.clock.monotonic()), act);
    }

    fn record_until(&self, path: &'static str, called: Duration, answered: Option<Duration>, act: Act) {
        self.seen.lock().operations.push(Operation { path, called, answered, act });
    }

    async fn patiently<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.within(PATIENCE, work).await
    }

    /// None if it takes longer.
    async fn within<T>(&self, patience: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            result = work => Some(result),
            () = self.clock.sleep(patience) => None,
        }
    }
}

fn volume() -> VolumeName {
    VolumeName::parse("files").expect("a name")
}

fn file_path(path: &str) -> FilePath {
    FilePath::parse(path).expect("a path")
}

async fn read(files: &SharedFiles, path: &str) -> Result<Vec<u8>, FileError> {
    let mut download = files.download(&volume(), &file_path(path), ReadSpec::default()).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = download.content.next().await {
        bytes.extend_from_slice(&piece?);
    }
    match bytes.len() as u64 == download.length {
        true => Ok(bytes),
        false => Err(FileError::Internal(format!("{} bytes of {}", bytes.len(), download.length))),
    }
}

struct Story {
    cluster: SimCluster,
    stage: Stage,
    random: StdRng,
    seed: u64,
    lost_a_disk: bool,
}

impl Story {
    async fn begin(seed: u64, plant: Plant, log: Arc<Mutex<Vec<String>>>) -> Self {
        let cluster = SimCluster::start_planted(seed, &ZONES, plant).await;
        let stage = Stage { clock: cluster.clock.clone(), doors: Arc::default(), seen: Arc::default(), log };
        let story = Self { cluster, stage, random: StdRng::seed_from_u64(!seed), seed, lost_a_disk: false };
        story.open_doors();
        let files = story.cluster.files(0).expect("n1 runs");
        loop {
            match files.create_volume(&volume(), 3, CHUNK_BYTES).await {
                Ok(_) => break,
                Err(error) => story.stage.note(format_args!("no volume yet: {error}")),
            }
            story.stage.clock.sleep(Duration::from_millis(200)).await;
        }
        story
    }

    fn open_doors(&self) {
        *self.stage.doors.lock() = (0..self.cluster.len()).map(|index| self.cluster.files(index)).collect();
    }

    /// Whether this story has clients that are slower than everything that is removed.
    fn has_patients(&self) -> bool {
        self.seed.is_multiple_of(ONE_WITH_PATIENTS_IN)
    }

    /// Clients and disasters, until the clients have done what they came for.
    async fn middle(&mut self) {
        let random = |name| StdRng::seed_from_u64(self.seed.wrapping_mul(31).wrapping_add(name + 1));
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|name| tokio::spawn(Client { stage: self.stage.clone(), name, random: random(name) }.run()))
            .collect();
        if self.has_patients() {
            let patient = |name| Patient { stage: self.stage.clone(), name, random: random(name) };
            clients.push(tokio::spawn(patient(CLIENTS).upload()));
            clients.push(tokio::spawn(patient(CLIENTS + 1).download()));
        }
        for _ in 0..DISASTERS {
            let pause = Duration::from_millis(self.random.random_range(0..7_000));
            self.stage.clock.sleep(pause).await;
            self.disaster().await;
        }
        for client in clients {
            client.await.expect("a client does not panic");
        }
    }

    async fn disaster(&mut self) {
        let index = self.random.random_range(0..self.cluster.len());
        let name = self.cluster.name(index).to_owned();
        let lasts = Duration::from_millis(self.random.random_range(1..25_000));
        match self.random.random_range(0..14) {
            0..4 if self.cluster.is_running(index) => self.death(index),
            0..5 if !self.cluster.is_running(index) => self.boot(index).await,
            5 => {
                let other = self.cluster.name((index + 1) % self.cluster.len()).to_owned();
                self.stage.note(format_args!("{name} and {other} do not hear each other"));
                self.cluster.net.cut(&name, &other);
                let net = self.cluster.net.clone();
                self.later(lasts, move || net.heal());
            }
            6..9 => self.failing_disk(index, lasts),
            9 => {
                let by = Duration::from_millis(self.random.random_range(10..3_000));
                self.stage.note(format_args!("{name}'s disk is slow for {lasts:?}: {by:?}"));
                let slow = self.cluster.slow_disk(index, by);
                self.later(lasts, move || slow.heal());
            }
            kind => {
                let odds = match kind {
                    10 => Odds { away: true, ..Odds::default() },
                    11 => Odds { slow: Duration::from_secs(4), ..Odds::default() },
                    _ => Odds { lost_request: 60, lost_answer: 60, late_request: 40, ..Odds::default() },
                };
                self.stage.note(format_args!("the store for {lasts:?}: {odds:?}"));
                self.cluster.faults.set(odds);
                let faults = self.cluster.faults.clone();
                self.later(lasts, move || faults.set(Odds::default()));
            }
        }
    }

    fn later(&self, pause: Duration, heal: impl FnOnce() + Send + 'static) {
        let clock = self.stage.clock.clone();
        tokio::spawn(async move {
            clock.sleep(pause).await;
            heal();
        });
    }

    fn death(&mut self, index: usize) {
        let name = self.cluster.name(index).to_owned();
        let power = self.random.random_bool(0.6);
        self.stage.note(format_args!("{name} {}", if power { "loses its power" } else { "is killed" }));
        match power {
            true => self.cluster.cut_power(index),
            false => self.cluster.kill(index),
        }
        if !self.lost_a_disk && self.random.random_bool(0.15) {
            self.stage.note(format_args!("{name} loses its disk"));
            self.cluster.lose_disk(index);
            self.lost_a_disk = true;
        }
        self.open_doors();
    }

    /// A disk's operations fail: those of one kind, once or for as long as it lasts, or all that change something.
    fn failing_disk(&mut self, index: usize, lasts: Duration) {
        use disk::Operation::{Allocate, Create, Read, Sync, SyncFolder, Write};
        let changes = [Write, Allocate, Create];
        let (operations, os_error) = match self.random.random_range(0..4) {
            0 => (changes.to_vec(), libc::EROFS),
            1 => (vec![*changes.choose(&mut self.random).expect("not empty")], libc::ENOSPC),
            _ => {
                let all = [Read, Write, Sync, SyncFolder, Allocate, Create];
                (vec![*all.choose(&mut self.random).expect("not empty")], libc::EIO)
            }
        };
        let once = os_error != libc::EROFS && self.random.random_bool(0.5);
        let after = self.random.random_range(0..20);
        let name = self.cluster.name(index);
        self.stage.note(format_args!(
            "{name}'s disk fails for {lasts:?}: {operations:?}, after {after}, {} error {os_error}",
            if once { "one" } else { "each" },
        ));
        let disk = self.cluster.disk(index).clone();
        for operation in operations {
            let times = if once { 1 } else { u64::MAX };
            disk.fail(Fault { operation, path: "/data".into(), after, times, os_error });
        }
        self.later(lasts, move || disk.heal());
    }

    async fn boot(&mut self, index: usize) {
        let name = self.cluster.name(index).to_owned();
        match self.cluster.boot(index).await {
            Ok(()) => self.stage.note(format_args!("{name} is back")),
            Err(error) => self.stage.note(format_args!("{name} does not start: {error}")),
        }
        self.open_doors();
    }

    /// Heals everything; then everything must be there, through every node, on every disk.
    async fn end(&mut self) -> Result<(), String> {
        self.stage.note("everything is healed");
        self.cluster.net.heal();
        self.cluster.faults.set(Odds::default());
        for index in 0..self.cluster.len() {
            self.cluster.disk(index).heal();
            self.cluster.slow_disk(index, Duration::ZERO);
        }
        for _ in 0..20 {
            for index in 0..self.cluster.len() {
                if !self.cluster.is_running(index) {
                    self.boot(index).await;
                }
            }
        }
        let left = Leftovers::of(&self.cluster).await.unnamed.len();
        if left > 0 {
            self.stage.note(format_args!("{left} chunks are left behind"));
        }
        self.settle().await?;
        // Requests that were late have arrived: what they did is part of the history.
        self.stage.clock.sleep(Duration::from_secs(60)).await;
        for index in 0..self.cluster.len() {
            let files = self.cluster.files(index).ok_or_else(|| format!("n{} does not start", index + 1))?;
            for path in PATHS {
                self.must_be_whole(&files, path).await?;
            }
        }
        if self.has_patients() {
            let random = StdRng::seed_from_u64(self.seed);
            Patient { stage: self.stage.clone(), name: CLIENTS, random }.read_what_is_deleted().await?;
        }
        self.nothing_is_left_behind().await?;
        let running = (0..self.cluster.len()).filter_map(|index| self.cluster.node(index));
        let compacted: u64 = running.map(|node| node.node().store.counters().compacted_segments).sum();
        if compacted > 0 {
            self.stage.note(format_args!("{compacted} segments are compacted"));
        }
        let seen = self.stage.seen.lock();
        linear::check(&seen.operations).map_err(|error| format!("what was seen has no order:\n{error}"))
    }

    async fn settle(&self) -> Result<(), String> {
        let healed = self.stage.clock.monotonic();
        let mut last = String::new();
        while self.stage.clock.monotonic() < healed + HEALED_WITHIN {
            if let Some(node) = self.cluster.node(0) {
                match node.node().cluster.status().await {
                    Ok(status)
                        if status.placement_groups > 0
                            && status.settled == status.placement_groups
                            && status.collecting == 0 =>
                    {
                        self.stage.note("settled");
                        return Ok(());
                    }
                    other => last = format!("{other:?}"),
                }
            }
            self.stage.clock.sleep(Duration::from_secs(1)).await;
        }
        Err(format!("not settled {HEALED_WITHIN:?} after everything was healed: {last}"))
    }

    /// What uploads began and nobody finished goes away, and nothing else does.
    async fn nothing_is_left_behind(&self) -> Result<(), String> {
        let began = self.stage.clock.monotonic();
        loop {
            let Leftovers { unnamed, missing, .. } = Leftovers::of(&self.cluster).await;
            if !missing.is_empty() {
                return Err(format!("the sweep took what files name: {missing:?}"));
            }
            if unnamed.is_empty() {
                return Ok(());
            }
            if self.stage.clock.monotonic() > began + HEALED_WITHIN {
                return Err(format!("left behind for {HEALED_WITHIN:?}: {unnamed:?}"));
            }
            self.stage.clock.sleep(Duration::from_secs(5)).await;
        }
    }

    async fn must_be_whole(&self, files: &SharedFiles, path: &'static str) -> Result<(), String> {
        let called = self.stage.clock.monotonic();
        let seen = match read(files, path).await {
            Ok(bytes) => Some(self.stage.value_of(blake3::hash(&bytes).as_bytes())),
            Err(FileError::FileNotFound { .. }) => None,
            Err(error) => return Err(format!("{path:?} cannot be read: {error}")),
        };
        self.stage.note(format_args!("at last {path}: {seen:?}"));
        self.stage.record(path, called, true, Act::Read(seen));
        if seen.is_some() {
            let (_, chunks) =
                files.locate(&volume(), &file_path(path), None).await.map_err(|e| e.to_string())?;
            let missing =
                chunks.iter().flat_map(|chunk| &chunk.copies).any(|(_, copy)| *copy != CopyState::Present);
            if missing {
                return Err(format!("{path:?} is settled, but copies are missing: {chunks:?}"));
            }
        }
        Ok(())
    }
}
