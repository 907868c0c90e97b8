//! What deleted files leave, in simulated clusters: it goes when its rest is over, and stays while a download that had begun
//! before goes on, however long that lasts (R7). Each half of that promise is left out once, and must be missed.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use cairn_node::{
    files::{Condition, Download, FileError, FilePath, MoveSpec, ReadSpec, SharedFiles, UploadSpec},
    meta::{Op, RangeRead, Txn, keys},
};
use cairn_placement::ChunkId;
use cairn_tests::sim::{
    cluster::{SimCluster, runtime},
    content::{content, make_volume, rot_frames, volume},
    leftovers::Leftovers,
    meta::Odds,
    plants::{GUEST, LOOK_TAKES, Plant},
};
use futures::{StreamExt, stream};

const CHUNKS: usize = 16;
/// For how long a deleted file rests in a simulated cluster, and somewhat more.
const REST: Duration = Duration::from_secs(60);

fn path() -> FilePath {
    FilePath::parse("long").unwrap()
}

/// Three nodes, a volume, a file.
async fn cluster(plant: Plant) -> SimCluster {
    let cluster = SimCluster::start_planted(11, &["a", "b", "c"], plant).await;
    make_volume(&cluster, 3).await;
    upload(&cluster.files(0).unwrap()).await;
    cluster
}

async fn upload(files: &SharedFiles) {
    upload_of(files, content(CHUNKS)).await;
}

async fn upload_of(files: &SharedFiles, content: Vec<u8>) {
    let spec = UploadSpec {
        volume: volume(),
        path: path(),
        size_bytes: None,
        blake3: None,
        condition: Condition::Always,
        content_type: String::new(),
    };
    files.upload(spec, stream::iter([Ok(Bytes::from(content))]).boxed()).await.expect("a file is stored");
}

async fn delete(files: &SharedFiles) {
    files.delete(&volume(), &path(), Condition::Always).await.expect("the file is there");
}

/// Reads the file, a chunk every 20 s, and deletes it `after` so many chunks.
async fn long_download(plant: Plant, after: usize) -> Result<(), FileError> {
    let cluster = cluster(plant).await;
    let files = cluster.files(0).unwrap();
    let mut download = files.download(&volume(), &path(), ReadSpec::default()).await?;
    let mut bytes = Vec::new();
    for chunk in 0.. {
        if chunk == after {
            delete(&cluster.files(1).unwrap()).await;
        }
        let Some(piece) = download.content.next().await else { break };
        bytes.extend_from_slice(&piece?);
        cluster.clock.sleep(Duration::from_secs(20)).await;
    }
    assert!(bytes == content(CHUNKS));
    assert!(!resting(&cluster).await.is_empty(), "it is kept as long as it is read");
    drop(download);
    // The pin goes, and then the chunks.
    cluster.clock.sleep(REST).await;
    assert_eq!(pins(&cluster).await, 0);
    assert!(resting(&cluster).await.is_empty(), "and then it goes");
    Ok(())
}

/// Chunks of deleted files that are still on disks.
async fn resting(cluster: &SimCluster) -> BTreeSet<ChunkId> {
    Leftovers::of(cluster).await.resting
}

async fn pins(cluster: &SimCluster) -> usize {
    cluster.meta().range(RangeRead::prefix(keys::pin::PREFIX)).await.unwrap().entries.len()
}

/// A pin that is made when the collector has just looked for pins.
async fn late_pin(plant: Plant) -> Result<(), String> {
    let cluster = cluster(plant).await;
    let read = cluster.files(0).unwrap().download(&volume(), &path(), ReadSpec::default()).await;
    let generation = read.expect("it is there").file.generation;
    delete(&cluster.files(0).unwrap()).await;
    cluster.clock.sleep(REST * 2).await;
    assert_eq!(pins(&cluster).await, 1, "the collector has looked");
    if resting(&cluster).await.is_empty() {
        return Err("collected although it is pinned".into());
    }
    let then = vec![Op::delete(keys::pin::key(&generation, GUEST))];
    cluster.meta().txn(Txn { then, ..Txn::default() }).await.unwrap();
    Ok(())
}

#[test]
fn a_long_download_reads_a_file_that_is_deleted_meanwhile() {
    for after in [0, 1, 10] {
        assert_eq!(runtime().block_on(long_download(Plant::None, after)), Ok(()), "deleted after {after}");
    }
}

#[test]
fn a_collection_that_ignores_pins_is_found() {
    let error = runtime().block_on(long_download(Plant::PinsIgnored, 1)).unwrap_err();
    assert!(matches!(error, FileError::Conflict(_)), "{error}");
}

#[test]
fn a_pin_that_is_made_while_the_collector_looks_holds() {
    assert_eq!(runtime().block_on(late_pin(Plant::PinnedBehindTheLook)), Ok(()));
}

#[test]
fn a_queue_that_is_not_compared_is_found() {
    let error = runtime().block_on(late_pin(Plant::QueueNotCompared)).unwrap_err();
    assert_eq!(error, "collected although it is pinned");
}

#[test]
fn deletions_are_remembered_and_forgotten() {
    runtime().block_on(async {
        let cluster = cluster(Plant::None).await;
        let tombstones = || {
            let of = |node| cluster.node(node).unwrap().node().store.usage().tombstones;
            [0, 1, 2].map(of)
        };
        delete(&cluster.files(0).unwrap()).await;
        cluster.clock.sleep(REST).await;
        assert_eq!(tombstones(), [CHUNKS as u64; 3]);
        // 14 ticks, and until somebody looks.
        cluster.clock.sleep(Duration::from_secs(70 + 30)).await;
        assert_eq!(tombstones(), [0; 3]);
    });
}

/// A gateway that is killed while a download is pinned holds nothing back for longer than its lease.
#[test]
fn what_a_killed_gateway_pinned_goes() {
    runtime().block_on(async {
        let mut cluster = cluster(Plant::None).await;
        let files = cluster.files(0).unwrap();
        let download = files.download(&volume(), &path(), ReadSpec::default()).await.expect("it is there");
        cluster.clock.sleep(Duration::from_secs(20)).await;
        assert_eq!(pins(&cluster).await, 1);
        delete(&cluster.files(1).unwrap()).await;
        cluster.clock.sleep(REST).await;
        assert!(!resting(&cluster).await.is_empty(), "it is pinned");
        cluster.kill(0);
        drop(download);
        cluster.clock.sleep(Duration::from_secs(90)).await;
        cluster.boot(0).await.unwrap();
        cluster.clock.sleep(Duration::from_secs(30)).await;
        assert_eq!(pins(&cluster).await, 0);
        assert!(resting(&cluster).await.is_empty());
    });
}

async fn content_of(mut download: Download) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(piece) = download.content.next().await {
        bytes.extend_from_slice(&piece.expect("what has begun to come"));
    }
    bytes
}

/// Whoever takes an old answer while the store is away gets the whole file as this gateway last knew it, or the reason why not;
/// never other content (R13).
#[test]
fn an_old_answer_is_the_old_file_or_a_clear_refusal() {
    runtime().block_on(async {
        let cluster = cluster(Plant::None).await;
        let (here, there) = (cluster.files(0).unwrap(), cluster.files(1).unwrap());
        let away = |away| cluster.faults.set(Odds { away, ..Odds::default() });
        let read = async |files: &SharedFiles, spec| files.download(&volume(), &path(), spec).await.map(|download| (download.stale, download));
        let refusal = async |files: &SharedFiles, spec| match read(files, spec).await {
            Ok((stale, _)) => panic!("read, {stale:?}"),
            Err(error) => error,
        };
        let stale = ReadSpec { max_stale: Some(Duration::MAX), ..ReadSpec::default() };
        // Here the old one is known, since it was uploaded here; there the newer one is.
        let newer: Vec<u8> = content(CHUNKS).into_iter().map(|byte| !byte).collect();
        let old = read(&here, ReadSpec::default()).await.unwrap().1.file.generation;
        upload_of(&there, newer.clone()).await;
        away(true);
        cluster.clock.sleep(Duration::from_secs(10)).await;
        for (files, expected) in [(&here, &content(CHUNKS)), (&there, &newer)] {
            let begun = cluster.clock.monotonic();
            let (age, download) = read(files, stale).await.expect("it is remembered");
            let took = cluster.clock.monotonic() - begun;
            assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(3), "{took:?}");
            assert!(age.is_some_and(|age| age >= Duration::from_secs(10)), "{age:?}");
            assert!(content_of(download).await == *expected);
        }
        let unavailable = |error: FileError, what: &str| {
            assert!(matches!(&error, FileError::MetadataUnavailable(why) if why.contains(what)), "{what}: {error}");
        };
        unavailable(refusal(&cluster.files(2).unwrap(), stale).await, "remembers nothing of \"long\"");
        let young = ReadSpec { max_stale: Some(Duration::from_secs(10)), ..stale };
        unavailable(refusal(&here, young).await, "more than the request allows");
        // What is remembered may be out of date: it is no reason to say that another version is not there.
        let of_old = ReadSpec { if_match: Some(old), ..stale };
        unavailable(refusal(&there, of_old).await, "is not what is asked for");
        assert!(content_of(read(&here, of_old).await.unwrap().1).await == content(CHUNKS));
        unavailable(refusal(&here, ReadSpec::default()).await, "");
        unavailable(here.delete(&volume(), &path(), Condition::Always).await.unwrap_err(), "");

        away(false);
        while !resting(&cluster).await.is_empty() {
            cluster.clock.sleep(REST).await;
        }
        away(true);
        // The old one was replaced there, and its chunks are gone: here nobody knows.
        let gone = refusal(&here, stale).await;
        assert!(matches!(&gone, FileError::Conflict(why) if why.contains("is not stored any more as it was known")), "{gone}");
        away(false);
        let (age, download) = read(&here, stale).await.expect("the store is there");
        assert_eq!((age, content_of(download).await == newer), (None, true));
        delete(&there).await;
        assert!(matches!(refusal(&here, stale).await, FileError::FileNotFound { .. }));
        away(true);
        for files in [&here, &there] {
            unavailable(refusal(files, stale).await, "remembers nothing");
        }
    });
}

/// Damage in every copy is called so, also when the file has got another name meanwhile; a file that was deleted is called deleted.
#[test]
fn a_file_that_is_moved_while_it_is_read_and_damaged_is_not_called_deleted() {
    for moved in [true, false] {
        runtime().block_on(async {
            let cluster = cluster(Plant::None).await;
            let files = cluster.files(0).unwrap();
            let mut download = files.download(&volume(), &path(), ReadSpec::default()).await.unwrap();
            download.content.next().await.unwrap().expect("it is whole so far");
            if moved {
                let to = FilePath::parse("elsewhere").unwrap();
                let (if_match, condition) = (None, Condition::Always);
                let spec = MoveSpec { volume: volume(), path: path(), to, if_match, condition };
                files.move_file(spec).await.expect("it is moved");
            } else {
                delete(&files).await;
            }
            for disk in (0..cluster.len()).map(|index| cluster.disk(index)) {
                rot_frames(disk, CHUNKS);
            }
            let error = loop {
                match download.content.next().await.expect("it does not end well") {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            match &error {
                FileError::DataCorrupt { path, .. } => assert!(moved && path == "long", "{error}"),
                FileError::Conflict(why) => assert!(!moved && why.contains("deleted"), "{error}"),
                _ => panic!("{error}"),
            }
        });
    }
}

/// What is stored, deleted and given back while the clocks of all machines are set back and forward by days.
#[test]
fn a_clock_that_jumps_by_days_changes_nothing() {
    runtime().block_on(async {
        let cluster = cluster(Plant::None).await;
        let files = cluster.files(0).unwrap();
        let stored = || async { files.download(&volume(), &path(), ReadSpec::default()).await };
        for days in [-1, 3, -30, 28] {
            let first = stored().await.expect("it is there").file.generation;
            cluster.set_clocks_forward(days * 86_400_000);
            cluster.clock.sleep(Duration::from_secs(30)).await;
            assert_eq!(stored().await.expect("it is still there").file.generation, first);
            upload(&files).await;
            let second = stored().await.expect("it is replaced").file.generation;
            assert_ne!(first, second, "the later one is read, whatever time it has");
            let mut download = stored().await.unwrap();
            let mut bytes = Vec::new();
            while let Some(piece) = download.content.next().await {
                bytes.extend_from_slice(&piece.unwrap());
            }
            assert!(bytes == content(CHUNKS));
            drop(download);
            // Neither at once nor never: what was replaced rests for its ticks, and goes.
            assert!(!resting(&cluster).await.is_empty(), "{days}");
            cluster.clock.sleep(REST * 2).await;
            assert!(resting(&cluster).await.is_empty(), "{days}");
        }
        delete(&files).await;
        cluster.set_clocks_forward(-86_400_000);
        cluster.clock.sleep(REST * 2).await;
        assert!(matches!(stored().await, Err(FileError::FileNotFound { .. })));
        assert!(Leftovers::of(&cluster).await.resting.is_empty());
    });
}

/// A volume is to be deleted if it is empty, and a file is stored after the look whether it is.
async fn an_upload_behind_the_look(plant: Plant) -> Result<(), String> {
    let cluster = SimCluster::start_planted(11, &["a", "b", "c"], plant).await;
    make_volume(&cluster, 3).await;
    let [files, others] = [0, 1].map(|index| cluster.files(index).unwrap());
    let deleting = tokio::spawn({
        let files = files.clone();
        async move { files.delete_volume(&volume(), false).await }
    });
    cluster.clock.sleep(LOOK_TAKES / 4).await;
    upload(&others).await;
    let deleted = deleting.await.unwrap();
    if !matches!(deleted, Err(FileError::VolumeNotEmpty(_))) {
        return Err(format!("{deleted:?}"));
    }
    files.stat(&volume(), &path(), None).await.map_err(|error| error.to_string())?;
    // And once it is empty, it goes.
    delete(&others).await;
    files.delete_volume(&volume(), false).await.map_err(|error| error.to_string())
}

#[test]
fn a_volume_that_is_deleted_if_empty_takes_no_file_along() {
    assert_eq!(runtime().block_on(an_upload_behind_the_look(Plant::LooksTakeLong)), Ok(()));
    let error = runtime().block_on(an_upload_behind_the_look(Plant::FilesNotCompared)).unwrap_err();
    assert!(error.contains("Ok"), "{error}");
}

/// A bit of a file's record in the metadata store is wrong: it is refused and named, and the next upload puts it right.
#[test]
fn a_damaged_record_is_named_and_can_be_replaced() {
    runtime().block_on(async {
        let cluster = cluster(Plant::None).await;
        let (files, meta) = (cluster.files(0).unwrap(), cluster.meta());
        let entry = meta.range(RangeRead::prefix(keys::file::PREFIX)).await.unwrap().entries.remove(0);
        assert_eq!(entry.value[0], keys::file::NEWEST);
        let mut value = entry.value.to_vec();
        // Of its time.
        value[40] ^= 1;
        meta.txn(Txn { then: vec![Op::put(entry.key, value)], ..Txn::default() }).await.unwrap();
        let refused = files.download(&volume(), &path(), ReadSpec::default()).await.map(drop);
        assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("long")), "{refused:?}");
        let listed = files.stat(&volume(), &path(), None).await;
        assert!(listed.is_err(), "{listed:?}");
        upload(&files).await;
        let mut download = files.download(&volume(), &path(), ReadSpec::default()).await.unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = download.content.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        assert!(bytes == content(CHUNKS));
    });
}

/// As long as a node is there, or may come back, that knows only the first version of records, nothing else is written.
#[test]
fn records_are_written_as_the_oldest_node_reads_them() {
    runtime().block_on(async {
        let cluster = cluster(Plant::None).await;
        let (files, meta) = (cluster.files(0).unwrap(), cluster.meta());
        let written = async || {
            upload(&files).await;
            meta.range(RangeRead::prefix(keys::file::PREFIX)).await.unwrap().entries.remove(0).value[0]
        };
        assert_eq!(written().await, keys::file::NEWEST);
        // One of them, as a node of an earlier version registers.
        let nodes = RangeRead::prefix(keys::node::NODE_PREFIX);
        let entry = meta.range(nodes).await.unwrap().entries.pop().expect("it is registered");
        let newest: keys::node::NodeRecord = keys::from_json(&entry).unwrap();
        let old = keys::node::NodeRecord { file_format: keys::file::V1, ..newest };
        meta.txn(Txn { then: vec![Op::put(entry.key, keys::to_json(&old))], ..Txn::default() })
            .await
            .unwrap();
        cluster.clock.sleep(Duration::from_secs(5)).await;
        assert_eq!(written().await, keys::file::V1);
        let stat = files.stat(&volume(), &path(), None).await;
        assert!(stat.is_ok(), "{stat:?}");
    });
}
