//! What is removed from disks, in simulated clusters: what nobody finished goes, nothing that is named or may still be named
//! does. Each rule that keeps it so is left out once, and must be missed.

use std::time::Duration;

use bytes::Bytes;
use cairn_node::{
    files::{Condition, FileError, FileInfo, FilePath, ReadSpec, SharedFiles, UploadSpec},
    meta::{
        Op, RangeRead, Txn,
        keys::{
            self,
            file::{Extent, FileRecord},
            restored::RestoredRecord,
        },
    },
};
use cairn_placement::{Generation, VolumeId};
use cairn_tests::sim::{
    cluster::{SimCluster, runtime},
    content::{CHUNK_BYTES, content, make_volume, volume},
    leftovers::Leftovers,
    plants::{HARE, Plant},
};
use futures::{SinkExt, StreamExt, channel::mpsc, stream};

/// The volume that [`cluster`] makes is the first one.
const VOLUME: VolumeId = VolumeId(1);

fn path(path: &str) -> FilePath {
    FilePath::parse(path).unwrap()
}

/// Three nodes and a volume.
async fn cluster(plant: Plant) -> SimCluster {
    let cluster = SimCluster::start_planted(7, &["a", "b", "c"], plant).await;
    make_volume(&cluster, 3).await;
    cluster
}

fn spec(name: &str) -> UploadSpec {
    UploadSpec {
        volume: volume(),
        path: path(name),
        size_bytes: None,
        blake3: None,
        condition: Condition::Always,
        content_type: String::new(),
    }
}

/// Uploads so many chunks, one every `pause`.
async fn upload(
    cluster: &SimCluster,
    name: &str,
    chunks: usize,
    pause: Duration,
) -> impl Future<Output = Result<FileInfo, FileError>> + Send + 'static {
    let (files, clock) = (cluster.files(0).unwrap(), cluster.clock.clone());
    let spec = spec(name);
    let pieces: Vec<_> =
        content(chunks).chunks(CHUNK_BYTES).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let pieces = stream::iter(pieces).then(move |piece| {
        let clock = clock.clone();
        async move {
            clock.sleep(pause).await;
            piece
        }
    });
    async move { files.upload(spec, pieces.boxed()).await }
}

async fn read(files: &SharedFiles, name: &str) -> Result<Vec<u8>, FileError> {
    let mut download = files.download(&volume(), &path(name), ReadSpec::default()).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = download.content.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// The number of the latest sweep.
fn sweeps(cluster: &SimCluster) -> u32 {
    cluster.node(1).unwrap().node().view.current().epoch
}

/// An upload that lasts for many sweeps.
async fn long_upload(plant: Plant) -> Result<(), String> {
    let cluster = cluster(plant).await;
    let before = sweeps(&cluster);
    let uploaded = upload(&cluster, "long", 7, Duration::from_secs(60)).await.await;
    uploaded.map_err(|error| format!("refused: {error}"))?;
    let during = sweeps(&cluster) - before;
    assert!(during > 10, "only {during} sweeps");
    cluster.clock.sleep(Duration::from_secs(200)).await;
    let bytes = read(&cluster.files(1).unwrap(), "long").await.map_err(|error| format!("lost: {error}"))?;
    assert!(bytes == content(7));
    let leftovers = Leftovers::of(&cluster).await;
    if leftovers.missing.is_empty() && leftovers.unnamed.is_empty() {
        Ok(())
    } else {
        Err(format!("{leftovers:?}"))
    }
}

/// An upload that has lasted for sweeps, and whose claim lapses when it has just been looked at.
async fn lapsed_claim(plant: Plant) -> Result<(), String> {
    let cluster = cluster(plant).await;
    let (files, (mut sender, taken)) = (cluster.files(0).unwrap(), mpsc::channel(0));
    let uploading = tokio::spawn(async move { files.upload(spec("lapsed"), taken.boxed()).await });
    sender.send(Ok(Bytes::from(content(2)))).await.unwrap();
    // It ends as a sweep begins for which it is too old without its claim.
    let before = sweeps(&cluster);
    while sweeps(&cluster) < before + 3 {
        cluster.clock.sleep(Duration::from_millis(1)).await;
    }
    drop(sender);
    let uploaded = uploading.await.unwrap();
    let quarantine = RangeRead::prefix(keys::quarantine::PREFIX);
    let quarantine = cluster.meta().range(quarantine).await.unwrap().entries;
    assert_eq!(quarantine.len(), 1, "the sweep has missed the claim");
    match uploaded {
        Err(FileError::UploadIncomplete(why)) if why.contains("lost touch") => {}
        other => return Err(format!("a file names what a sweep has found: {other:?}")),
    }
    cluster.clock.sleep(Duration::from_secs(200)).await;
    let found = read(&cluster.files(1).unwrap(), "lapsed").await;
    assert!(matches!(found, Err(FileError::FileNotFound { .. })), "{:?}", found.map(|bytes| bytes.len()));
    assert!(Leftovers::of(&cluster).await.unnamed.is_empty());
    Ok(())
}

/// A commit that arrives when its sender is long dead, and what it names is swept.
async fn late_commit(plant: Plant) -> Result<(), String> {
    let mut cluster = cluster(plant).await;
    cluster.faults.delay_next(keys::file::key(VOLUME, "late"), Duration::from_secs(900));
    tokio::spawn(upload(&cluster, "late", 1, Duration::ZERO).await);
    while !cluster.faults.plan_is_done() {
        cluster.clock.sleep(Duration::from_millis(10)).await;
    }
    // It stays away: a commit that compares starts would hear of its own sender's.
    cluster.kill(0);
    assert!(!Leftovers::of(&cluster).await.unnamed.is_empty(), "the chunk is stored");
    cluster.clock.sleep(Duration::from_secs(800)).await;
    assert!(Leftovers::of(&cluster).await.unnamed.is_empty(), "and swept");
    cluster.clock.sleep(Duration::from_secs(200)).await;
    cluster.boot(0).await.unwrap();
    cluster.clock.sleep(Duration::from_secs(60)).await;
    match read(&cluster.files(1).unwrap(), "late").await {
        Err(FileError::FileNotFound { .. }) => Ok(()),
        other => Err(format!("a file without content: {:?}", other.map(|bytes| bytes.len()))),
    }
}

/// A file that is renamed while sweeps read the records, so that none of their pages has it.
async fn renamed_during_scans(plant: Plant) -> Result<(), String> {
    let cluster = cluster(plant).await;
    upload(&cluster, "zz", 2, Duration::ZERO).await.await.expect("a file is stored");
    assert!(cluster.meta().get(HARE).await.unwrap().is_some(), "it is the one that moves");
    // More than a page of empty files.
    let extents = vec![Extent { generation: Generation([0; 16]), length_bytes: 0 }];
    let record = FileRecord {
        chunk_size_bytes: CHUNK_BYTES as u32,
        copies: 3,
        blake3: [0; 32],
        modified_unix_ms: 0,
        content_type: String::new(),
        extents,
    };
    for from in (0..1_500).step_by(100) {
        let put =
            |n: u32| Op::put(keys::file::key(VOLUME, &format!("m{n:04}")), record.encode(keys::file::NEWEST));
        let then = (from..from + 100).map(put).collect();
        cluster.meta().txn(Txn { compare: vec![], then, otherwise: vec![] }).await.unwrap();
    }
    let before = sweeps(&cluster);
    cluster.clock.sleep(Duration::from_secs(400)).await;
    assert!(sweeps(&cluster) > before + 10, "only {} sweeps", sweeps(&cluster));
    for name in ["zz", "!"] {
        match read(&cluster.files(1).unwrap(), name).await {
            Err(FileError::FileNotFound { .. }) => {}
            Ok(bytes) if bytes == content(2) => return Ok(()),
            other => return Err(format!("lost: {:?}", other.map(|bytes| bytes.len()))),
        }
    }
    Err("lost: it has neither name".into())
}

fn play(scenario: impl AsyncFn(Plant) -> Result<(), String>, plant: Plant) -> Result<(), String> {
    runtime().block_on(scenario(plant))
}

#[test]
fn a_long_upload_outlives_sweeps() {
    assert_eq!(play(long_upload, Plant::None), Ok(()));
}

#[test]
fn a_sweep_that_ignores_uploads_is_found() {
    let error = play(long_upload, Plant::UploadsIgnored).unwrap_err();
    assert!(error.starts_with("lost: "), "{error}");
}

#[test]
fn an_upload_whose_claim_lapses_before_its_commit_is_refused() {
    assert_eq!(play(lapsed_claim, Plant::ClaimLapses), Ok(()));
}

#[test]
fn a_claim_that_is_not_compared_is_found() {
    let error = play(lapsed_claim, Plant::ClaimNotCompared).unwrap_err();
    assert!(error.starts_with("a file names what a sweep has found: Ok("), "{error}");
}

#[test]
fn a_late_commit_does_not_bring_back_what_was_swept() {
    assert_eq!(play(late_commit, Plant::None), Ok(()));
}

#[test]
fn an_epoch_that_is_not_compared_is_found() {
    let error = play(late_commit, Plant::EpochNotCompared).unwrap_err();
    assert!(error.starts_with("a file without content: "), "{error}");
}

#[test]
fn a_file_that_is_renamed_during_sweeps_stays() {
    assert_eq!(play(renamed_during_scans, Plant::MovesDuringScans), Ok(()));
}

#[test]
fn a_sweep_that_does_not_watch_is_found() {
    let error = play(renamed_during_scans, Plant::WatchIgnored).unwrap_err();
    assert!(error.starts_with("lost: "), "{error}");
}

/// A commit without an answer may have happened, whatever the store says next: what it names is not taken back.
#[test]
fn a_store_that_fills_up_after_a_lost_answer_costs_no_file() {
    runtime().block_on(async {
        let cluster = cluster(Plant::FullAfterLostAnswer).await;
        let answer = upload(&cluster, "full", 2, Duration::ZERO).await.await;
        assert!(matches!(answer, Err(FileError::CommitUnknown(_))), "{answer:?}");
        cluster.clock.sleep(Duration::from_secs(200)).await;
        assert!(read(&cluster.files(1).unwrap(), "full").await.expect("it was stored") == content(2));
        assert!(Leftovers::of(&cluster).await.missing.is_empty());
    });
}

/// R10: after a restoration everything newer than the backup looks left behind.
#[test]
fn nothing_is_swept_while_the_store_may_be_an_older_copy() {
    runtime().block_on(async {
        let mut cluster = cluster(Plant::None).await;
        tokio::spawn(upload(&cluster, "left", 5, Duration::from_secs(5)).await);
        while Leftovers::of(&cluster).await.unnamed.len() < 3 {
            cluster.clock.sleep(Duration::from_millis(100)).await;
        }
        cluster.kill(0);
        cluster.boot(0).await.unwrap();
        let seen = RestoredRecord { tick: 2, revision: 1_000_000, map_generation: 1, epoch: 1 };
        let txn = |op: Op| Txn { compare: vec![], then: vec![op], otherwise: vec![] };
        let told = txn(Op::put(keys::restored::key("n9"), keys::to_json(&seen)));
        cluster.meta().txn(told).await.unwrap();
        // What had begun ends.
        cluster.clock.sleep(Duration::from_secs(10)).await;
        let before = sweeps(&cluster);
        cluster.clock.sleep(Duration::from_secs(400)).await;
        assert_eq!(sweeps(&cluster), before, "no sweep begins");
        assert!(Leftovers::of(&cluster).await.unnamed.len() >= 3);
        // As `cairn-node recover` accepts it.
        let tick = cluster.node(1).unwrap().node().view.current().tick + 1;
        let accepted = txn(Op::put(keys::restored::accepted_key(), tick.to_string()));
        cluster.meta().txn(accepted).await.unwrap();
        cluster.clock.sleep(Duration::from_secs(400)).await;
        assert!(Leftovers::of(&cluster).await.unnamed.is_empty(), "and then it goes on");
    });
}

/// What a killed gateway left is removed, and not before it has rested for a minute (12 ticks).
#[test]
fn what_a_killed_gateway_left_is_removed_after_its_quarantine() {
    runtime().block_on(async {
        let mut cluster = cluster(Plant::None).await;
        let kept = upload(&cluster, "kept", 3, Duration::ZERO).await.await;
        kept.expect("a file is stored");
        tokio::spawn(upload(&cluster, "left", 5, Duration::from_secs(5)).await);
        while Leftovers::of(&cluster).await.unnamed.len() < 3 {
            cluster.clock.sleep(Duration::from_millis(100)).await;
        }
        cluster.kill(0);
        cluster.boot(0).await.unwrap();
        // Its claim has ended after a minute; found and queued without a rest, it would be gone by now.
        cluster.clock.sleep(Duration::from_secs(130)).await;
        let unnamed = Leftovers::of(&cluster).await.unnamed;
        assert!(unnamed.len() >= 3, "it rests: {unnamed:?}");
        let mut waited = Duration::ZERO;
        while !Leftovers::of(&cluster).await.unnamed.is_empty() {
            waited += Duration::from_secs(5);
            assert!(waited < Duration::from_secs(600), "it is not removed");
            cluster.clock.sleep(Duration::from_secs(5)).await;
        }
        assert!(Leftovers::of(&cluster).await.missing.is_empty());
        assert!(read(&cluster.files(2).unwrap(), "kept").await.unwrap() == content(3));
    });
}
