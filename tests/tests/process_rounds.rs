//! Rounds of `kill -9` under load, on both metadata stores: whatever was acknowledged is there afterwards, nothing that was
//! deleted returns, and every disk is whole. `make soak` plays many more rounds than `make test`.
//!
//! Each writer has files of its own, so what may be read of each is known: what its last acknowledged change left, or what one
//! without an answer may have left since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use cairn_client::{Client, Condition, Effect, Error, MoveOptions, UploadOptions};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    etcd::EtcdCluster,
    files::{VOLUME, content, get, make_volume},
    process::run,
    scratch::Scratch,
    tools::{Need, require},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Rounds on each store in `make test`.
const ROUNDS: u64 = 40;
const WRITERS: u64 = 4;
const FILES_EACH: u64 = 6;
/// How long a node is left alone before it is killed.
const LEFT_ALONE_MS: std::ops::Range<u64> = 50..1_200;

fn rounds() -> u64 {
    std::env::var("CAIRN_ROUNDS").ok().map_or(ROUNDS, |text| text.parse().expect("a number of rounds"))
}

/// Which content: the seed it is made from; `None` is no file.
type Content = Option<u64>;

fn bytes_of(seed: u64) -> bytes::Bytes {
    let lengths = [0, 10, 3_000, 4_096, 70_000, 300_000, 5_000_000];
    content(seed, lengths[seed as usize % lengths.len()])
}

/// What one writer knows of its files.
struct Writer {
    client: Client,
    random: StdRng,
    paths: Vec<String>,
    /// What each may hold.
    may_hold: BTreeMap<String, BTreeSet<Content>>,
    next_seed: u64,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    fn new(client: Client, number: u64, acknowledged: Arc<AtomicU64>) -> Self {
        let paths: Vec<String> = (0..FILES_EACH).map(|file| format!("w{number}/f{file}")).collect();
        let may_hold = paths.iter().map(|path| (path.clone(), BTreeSet::from([None]))).collect();
        let random = StdRng::seed_from_u64(number);
        Self { client, random, paths, may_hold, next_seed: number << 32, acknowledged }
    }

    /// Writes and reads until it is told to stop.
    async fn run(mut self, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Ordering::Relaxed) {
            let path = self.paths.choose(&mut self.random).expect("not empty").clone();
            match self.random.random_range(0..10) {
                0..5 => self.put(path).await,
                5 => self.delete(path).await,
                6 => self.move_file(path).await,
                _ => self.look(&path).await,
            }
        }
        self
    }

    /// Notes what a change did: `after` if it was acknowledged, either if nobody knows.
    fn note<T>(&mut self, path: &str, outcome: Result<T, Error>, after: Content) {
        let may_hold = self.may_hold.get_mut(path).expect("a file of this writer");
        match outcome {
            Ok(_) => {
                *may_hold = BTreeSet::from([after]);
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.effect() == Effect::Unknown => _ = may_hold.insert(after),
            Err(_) => {}
        }
    }

    async fn put(&mut self, path: String) {
        self.next_seed += 1;
        let seed = self.next_seed;
        let outcome = self.client.upload_bytes(VOLUME, &path, UploadOptions::default(), bytes_of(seed)).await;
        self.note(&path, outcome, Some(seed));
    }

    async fn delete(&mut self, path: String) {
        match self.client.delete(VOLUME, &path, Condition::Always).await {
            Err(error) if error.is_not_found() => self.must_hold(&path, None),
            outcome => self.note(&path, outcome, None),
        }
    }

    /// Moves a file of which it is known what it holds.
    async fn move_file(&mut self, path: String) {
        let to = self.paths.choose(&mut self.random).expect("not empty").clone();
        let known = |path: &String| match self.may_hold[path].iter().collect::<Vec<_>>()[..] {
            [only] => Some(*only),
            _ => None,
        };
        let (Some(Some(seed)), false) = (known(&path), path == to) else { return };
        let outcome = self.client.move_file(VOLUME, &path, &to, MoveOptions::default()).await;
        self.note(&path, outcome.as_ref().map_err(Clone::clone), None);
        self.note(&to, outcome, Some(seed));
    }

    async fn look(&self, path: &str) {
        match get(&self.client, path).await {
            Ok(bytes) => {
                let fits = |held: &Content| held.is_some_and(|seed| bytes_of(seed) == bytes);
                let may_hold = &self.may_hold[path];
                assert!(may_hold.iter().any(fits), "{path}: {} bytes are none of {may_hold:?}", bytes.len());
            }
            Err(error) if error.is_not_found() => self.must_hold(path, None),
            Err(_) => {}
        }
    }

    fn must_hold(&self, path: &str, held: Content) {
        assert!(self.may_hold[path].contains(&held), "{path}: {held:?} is none of {:?}", self.may_hold[path]);
    }

    /// Reads every file, through one node; it must answer.
    async fn check(&self, client: &Client) {
        for path in &self.paths {
            match get(client, path).await {
                Ok(_) => self.look(path).await,
                Err(error) if error.is_not_found() => self.must_hold(path, None),
                Err(error) => panic!("{path}: {error}"),
            }
        }
    }
}

/// Kills nodes, one after the other, at moments of chance; `beside` is called in each round.
async fn play(cluster: &mut CairnCluster, mut beside: impl FnMut(u64)) {
    let acknowledged = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| Writer::new(cluster.client(), number, acknowledged.clone()).run(stop.clone()))
        .map(tokio::spawn)
        .collect();
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..rounds() {
        let before = acknowledged.load(Ordering::Relaxed);
        until("the load goes on", async || match acknowledged.load(Ordering::Relaxed) {
            now if now > before => Ok(()),
            now => Err(now),
        })
        .await;
        tokio::time::sleep(Duration::from_millis(random.random_range(LEFT_ALONE_MS))).await;
        let node = random.random_range(0..cluster.len());
        cluster.kill(node);
        beside(round);
        cluster.restart(node);
        // This very process: the old one's lease may still count.
        let client = cluster.client_of(&[node]);
        until("the node is back", async || client.status().await).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut ended = Vec::new();
    for writer in writers {
        ended.push(writer.await.expect("what a writer read was right"));
    }
    let status = cluster.wait_settled().await;
    assert_eq!(status.lost_files, 0, "{status:?}");
    for writer in &ended {
        for node in 0..cluster.len() {
            writer.check(&cluster.client_of(&[node])).await;
        }
    }
    println!("{} acknowledged changes in {} rounds", acknowledged.load(Ordering::Relaxed), rounds());
    for node in 0..cluster.len() {
        cluster.stop(node);
        let verified = run(cluster.spec(node).args(["verify"]), None, Duration::from_secs(120)).unwrap();
        // But for what a kill cut off before anybody was told of it.
        assert!(
            verified.success && verified.stdout.contains("; all of it is whole"),
            "n{}: {verified:?}",
            node + 1
        );
    }
}

/// Ages and rests are short, so that collection and compaction are under way when nodes are killed; a small disk has small segments.
fn restless(options: ClusterOptions) -> ClusterOptions {
    options
        .with("CAPACITY", "1Gi")
        .with("TICK_SECONDS", "1")
        .with("COLLECT_AFTER_TICKS", "3")
        .with("COMPACT_SECONDS", "2")
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_under_load_on_etcd() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let mut cluster =
        CairnCluster::start(restless(ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t")))).await;
    make_volume(&cluster.client(), 3).await;
    play(&mut cluster, |round| {
        // One member now and then: the others go on.
        if round % 4 == 1 {
            let member = (round / 4) as usize % etcd.len();
            etcd.kill(member);
            etcd.restart(member).expect("the member starts");
            etcd.wait_healthy(member).expect("the member is back");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_under_load_on_the_embedded_store() {
    let scratch = Scratch::new("rounds").unwrap();
    let url = format!("embedded://{}/metadata", scratch.path().display());
    let mut cluster = CairnCluster::start(restless(ClusterOptions::new(&["a"], url))).await;
    make_volume(&cluster.client(), 1).await;
    play(&mut cluster, |_| {}).await;
}
