//! Uploads during which nodes come back with other disks, or groups go to other nodes (R4): they commit all the same, and at that
//! very moment most of those who hold each chunk *then* have it. Leaving out what makes it so is found.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_node::{
    api::ports::Cluster,
    chunks::Scope,
    files::{Condition, CopyState, FileError, FileInfo, FilePath, ReadSpec, SharedFiles, UploadSpec},
    meta::{
        Txn,
        keys::{self, map::MapHead},
    },
    workers::truth::plan::chunks_of,
};
use cairn_placement::{ChunkId, ClusterMap, NodeId, PgId};
use cairn_proto::v1::{Readable, StatusResponse};
use cairn_tests::sim::{
    cluster::{SimCluster, runtime},
    content::{CHUNK_BYTES, content, make_volume, rot_frames, volume},
    disk::Operation,
    plants::Plant,
};
use futures::{SinkExt, StreamExt, channel::mpsc};
use tokio::task::JoinHandle;

const CHUNKS: usize = 12;

fn path() -> FilePath {
    FilePath::parse("long").unwrap()
}

async fn start(seed: u64, zones: &[&str], copies: u8, plant: Plant) -> SimCluster {
    let cluster = SimCluster::start_planted(seed, zones, plant).await;
    make_volume(&cluster, copies).await;
    cluster
}

/// An upload that has sent all its content, and not that this is all.
struct Pending {
    content: mpsc::Sender<Result<Bytes, FileError>>,
    upload: JoinHandle<Result<FileInfo, FileError>>,
}

impl Pending {
    async fn begin(files: SharedFiles) -> Self {
        let spec = UploadSpec {
            volume: volume(),
            path: path(),
            size_bytes: None,
            blake3: None,
            condition: Condition::Always,
            content_type: String::new(),
        };
        let (mut sender, taken) = mpsc::channel(0);
        let upload = tokio::spawn(async move { files.upload(spec, taken.boxed()).await });
        for piece in content(CHUNKS).chunks(CHUNK_BYTES) {
            sender.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        Self { content: sender, upload }
    }

    async fn end(self) -> Result<FileInfo, FileError> {
        drop(self.content);
        self.upload.await.unwrap()
    }
}

/// The chunks that are whole on each running node's disk.
fn held(cluster: &SimCluster) -> BTreeMap<NodeId, Vec<ChunkId>> {
    let nodes = (0..cluster.len()).filter_map(|index| cluster.node(index)).map(|node| node.node());
    nodes
        .map(|node| {
            let lines = node.store.inventory(0, PgId(0), Scope::ALL, None, usize::MAX);
            (node.id, lines.iter().filter(|line| line.buried.is_none()).map(|line| line.id).collect())
        })
        .collect()
}

/// Waits until so many nodes that run have all chunks of the upload, and have said so.
async fn until_written(cluster: &SimCluster, nodes: usize) {
    for _ in 0..600 {
        let having = held(cluster).values().filter(|chunks| chunks.len() >= CHUNKS).count();
        if having >= nodes {
            return cluster.clock.sleep(Duration::from_secs(1)).await;
        }
        cluster.clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("not written on {nodes} nodes");
}

/// For each chunk of the file, how many of its holders have it.
async fn copies(cluster: &SimCluster) -> Vec<usize> {
    let held = held(cluster);
    let node = (0..cluster.len()).find_map(|index| cluster.node(index)).unwrap().node();
    let head = keys::map::key();
    let entry = cluster.meta().get(&head).await.unwrap().unwrap();
    let generation = keys::from_json::<MapHead>(&entry).unwrap().generation;
    let map = node.view.wait_for(|state| state.map.clone().filter(|map| map.generation == generation)).await;
    let known = cluster.meta().range(cairn_node::meta::RangeRead::prefix(keys::file::PREFIX)).await.unwrap();
    let record = keys::file::FileRecord::decode(&known.entries[0]).unwrap();
    let has = |id: &ChunkId, node: &NodeId| held.get(node).is_some_and(|chunks| chunks.contains(id));
    let holders = |id: &ChunkId| map.holders(map.pg_of(id), record.copies).to_vec();
    chunks_of(&record).map(|id| holders(&id).iter().filter(|node| has(&id, node)).count()).collect()
}

async fn read(files: &SharedFiles) -> Vec<u8> {
    let mut download = files.download(&volume(), &path(), ReadSpec::default()).await.expect("it is there");
    let mut bytes = Vec::new();
    while let Some(piece) = download.content.next().await {
        bytes.extend_from_slice(&piece.expect("it is whole"));
    }
    bytes
}

/// All groups go to the nodes that were last in line, at once; as when a cluster is replanned.
async fn turn_round(cluster: &SimCluster) -> Arc<ClusterMap> {
    let node = cluster.node(0).unwrap().node();
    let mut map = (*node.view.current().map.clone().unwrap()).clone();
    map.generation += 1;
    for members in &mut map.members {
        members.reverse();
    }
    cluster.meta().txn(Txn { then: keys::map::ops(&map), ..Txn::default() }).await.unwrap();
    Arc::new(map)
}

/// Two of three nodes have taken an upload, whose end has not come; then the second one loses its disk, and neither it nor the third
/// one runs.
async fn one_copy_left(cluster: &mut SimCluster) -> Pending {
    cluster.kill(2);
    let pending = Pending::begin(cluster.files(0).unwrap()).await;
    until_written(cluster, 2).await;
    cluster.kill(1);
    cluster.lose_disk(1);
    pending
}

/// A node of two that have taken an upload comes back with an empty disk, and the third one with it, which has nothing either.
async fn an_empty_disk(seed: u64, plant: Plant) -> Vec<usize> {
    let mut cluster = start(seed, &["a", "b", "c"], 3, plant).await;
    let pending = one_copy_left(&mut cluster).await;
    cluster.boot(1).await.unwrap();
    cluster.boot(2).await.unwrap();
    pending.end().await.expect("it is committed");
    let copies = copies(&cluster).await;
    assert!(read(&cluster.files(0).unwrap()).await == content(CHUNKS));
    copies
}

#[test]
fn a_disk_that_was_replaced_during_an_upload_counts_for_nothing() {
    for seed in 0..10 {
        let copies = runtime().block_on(an_empty_disk(seed, Plant::None));
        assert!(copies.iter().all(|copies| *copies >= 2), "{seed}: {copies:?}");
    }
}

#[test]
fn a_start_of_which_the_gateway_has_not_heard_yet_counts() {
    let copies = runtime().block_on(an_empty_disk(1, Plant::StartsComeLate));
    assert!(copies.iter().all(|copies| *copies >= 2), "{copies:?}");
}

/// One of the two that have taken an upload comes back with an empty disk, and the gateway neither hears of it in time nor reaches
/// it: one copy is all there is.
async fn an_unnoticed_start(seed: u64, plant: Plant) -> Result<FileInfo, FileError> {
    let mut cluster = start(seed, &["a", "b", "c"], 3, plant).await;
    // Until it has heard of the first starts; and at different times between two sweeps.
    cluster.clock.sleep(Duration::from_secs(20 + seed)).await;
    let pending = one_copy_left(&mut cluster).await;
    cluster.net.cut("n1", "n2");
    let (meta, clock) = (cluster.meta().clone(), cluster.clock.clone());
    let starts = async || meta.get(&keys::starts_key()).await.unwrap().unwrap().mod_revision;
    let before = starts().await;
    let as_it_registers = async {
        while starts().await == before {
            clock.sleep(Duration::from_millis(1)).await;
        }
        pending.end().await
    };
    let (booted, ended) = tokio::join!(cluster.boot(1), as_it_registers);
    booted.unwrap();
    ended
}

#[test]
fn a_start_that_comes_before_a_commit_is_never_overlooked() {
    for seed in 0..15 {
        let ended = runtime().block_on(an_unnoticed_start(seed, Plant::StartsComeLate));
        let error = ended.expect_err("one copy is not enough");
        assert!(matches!(error, FileError::NotEnoughNodes { reached: 1, needed: 2, .. }), "{seed}: {error}");
    }
}

#[test]
fn a_commit_that_does_not_compare_starts_is_found() {
    // Where a sweep begins meanwhile, a commit that compares that one hears of the start too.
    let overlooked = |seed| runtime().block_on(an_unnoticed_start(seed, Plant::StartsNotCompared)).is_ok();
    assert!((0..15).any(overlooked));
}

/// The disk stays the same, but has lost what it had acknowledged: it had been told to sync, and had not.
#[test]
fn what_a_disk_has_acknowledged_and_lost_counts_for_nothing() {
    let mut lost = 0;
    for seed in 0..10 {
        runtime().block_on(async {
            let mut cluster = start(seed, &["a", "b", "c"], 3, Plant::None).await;
            cluster.kill(2);
            cluster.disk(1).lie_about(Operation::Sync);
            let pending = Pending::begin(cluster.files(0).unwrap()).await;
            until_written(&cluster, 2).await;
            cluster.cut_power(1);
            cluster.disk(1).tell_the_truth();
            cluster.boot(1).await.unwrap();
            lost += CHUNKS.saturating_sub(held(&cluster)[&NodeId(2)].len());
            cluster.boot(2).await.unwrap();
            pending.end().await.expect("it is committed");
            let copies = copies(&cluster).await;
            assert!(copies.iter().all(|copies| *copies >= 2), "{seed}: {copies:?}");
        });
    }
    assert!(lost > 0, "the disks forgot something");
}

/// Its header can still be read, and the frames that are sound, for whoever puts it together again.
#[test]
fn a_copy_that_is_known_to_be_damaged_is_no_copy() {
    runtime().block_on(async {
        let cluster = start(1, &["a", "b", "c"], 3, Plant::None).await;
        Pending::begin(cluster.files(0).unwrap()).await.end().await.expect("it is stored");
        until_written(&cluster, 3).await;
        let node = cluster.node(1).unwrap().node();
        rot_frames(cluster.disk(1), CHUNKS);
        let mut damaged = 0;
        for id in &held(&cluster)[&node.id] {
            damaged += usize::from(node.store.read(*id, 0..u32::MAX).await.is_err());
            let (_, chunks) = cluster.files(0).unwrap().locate(&volume(), &path(), None).await.unwrap();
            let copies = chunks.iter().flat_map(|chunk| &chunk.copies);
            let missing: Vec<_> = copies.filter(|(_, state)| *state == CopyState::Missing).collect();
            assert!(missing.iter().all(|(id, _)| *id == node.id), "{missing:?}");
            assert!(missing.len() == damaged || damaged > 1, "{damaged}: {missing:?}");
        }
        assert!(damaged > CHUNKS / 2, "{damaged}");
    });
}

/// Whoever has gone may have stored something newer meanwhile.
#[test]
fn what_nobody_waits_for_any_more_is_not_committed() {
    runtime().block_on(async {
        let mut cluster = start(1, &["a", "b", "c"], 3, Plant::None).await;
        let pending = one_copy_left(&mut cluster).await;
        cluster.net.cut("n1", "n2");
        cluster.boot(1).await.unwrap();
        let Pending { content, upload } = pending;
        drop(content);
        cluster.clock.sleep(Duration::from_secs(5)).await;
        assert!(!upload.is_finished(), "it waits for a second copy");
        upload.abort();
        cluster.net.heal();
        cluster.clock.sleep(Duration::from_secs(60)).await;
        let found = cluster.files(0).unwrap().stat(&volume(), &path(), None).await;
        assert!(matches!(found, Err(FileError::FileNotFound { .. })), "{found:?}");
    });
}

#[test]
fn what_goes_to_other_nodes_during_an_upload_is_supplied_to_them_before_its_commit() {
    for seed in 0..5 {
        runtime().block_on(async {
            let cluster = start(seed, &["a", "b", "c", "d", "e", "f"], 3, Plant::None).await;
            let before = cluster.node(0).unwrap().node().view.current().map.clone().unwrap();
            let pending = Pending::begin(cluster.files(0).unwrap()).await;
            cluster.clock.sleep(Duration::from_secs(1)).await;
            let after = turn_round(&cluster).await;
            let apart = |pg| before.holders(pg, 3).iter().all(|node| !after.holders(pg, 3).contains(node));
            assert!((0..after.pg_count()).map(PgId).all(apart), "nobody keeps what it has");
            pending.end().await.expect("it is committed");
            let copies = copies(&cluster).await;
            assert!(copies.iter().all(|copies| *copies >= 2), "{seed}: {copies:?}");
            assert!(read(&cluster.files(0).unwrap()).await == content(CHUNKS));
        });
    }
}

/// Until members compare again they do not know of it themselves.
#[test]
fn what_a_holder_has_missed_never_counts_as_settled() {
    runtime().block_on(async {
        let cluster = start(1, &["a", "b", "c"], 3, Plant::None).await;
        let status = async || cluster.node(1).unwrap().node().cluster.status().await.expect("it answers");
        let is_settled = |status: &StatusResponse| {
            status.placement_groups > 0 && status.settled == status.placement_groups
        };
        while !is_settled(&status().await) {
            cluster.clock.sleep(Duration::from_millis(100)).await;
        }
        cluster.net.cut("n1", "n3");
        Pending::begin(cluster.files(0).unwrap()).await.end().await.expect("two of three are enough");
        let mut looks = 0;
        loop {
            let settled = is_settled(&status().await);
            let copies = copies(&cluster).await;
            let all = copies.iter().all(|copies| *copies == 3);
            assert!(all || !settled, "settled with {copies:?}");
            if settled {
                break;
            }
            looks += usize::from(!all);
            cluster.clock.sleep(Duration::from_millis(20)).await;
            if looks == 10 {
                cluster.net.heal();
            }
        }
        assert!(looks > 0, "nothing was ever missing");
    });
}

/// What it knew of itself before is void: it may have lost anything meanwhile.
#[test]
fn a_node_that_starts_says_nothing_by_what_was_compared_before() {
    runtime().block_on(async {
        let mut cluster = start(1, &["a", "b", "c"], 3, Plant::StartsComeLate).await;
        let readable = async |cluster: &SimCluster| {
            let node = cluster.node(1).unwrap().node();
            node.cluster.status().await.expect("it answers").readable()
        };
        while readable(&cluster).await != Readable::All {
            cluster.clock.sleep(Duration::from_millis(500)).await;
        }
        cluster.kill(1);
        cluster.boot(1).await.unwrap();
        assert_eq!(readable(&cluster).await, Readable::BeingChecked);
    });
}
