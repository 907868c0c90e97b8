//! The store on a real disk.

use std::{
    io,
    time::{Duration, Instant},
};

use cairn_placement::{Generation, VolumeId};
use tempfile::TempDir;

use super::*;
use crate::{
    chunks::{FRAME_BYTES, VolumeKey, seal_chunk},
    env::{
        Disk, OpenMode,
        real::{RealDisk, without_network},
    },
};

fn env() -> Env {
    without_network()
}

/// The reserve is a part of the capacity (R16): with a small one of their own, these tests do not depend on how full the
/// machine's disk is.
fn options(folder: &TempDir) -> StoreOptions {
    StoreOptions {
        segment_bytes: 1 << 20,
        capacity_bytes: Some(64 << 20),
        ..StoreOptions::new(folder.path().join("data"), [1; 16], "node-0")
    }
}

async fn open(options: &StoreOptions) -> ChunkStore {
    ChunkStore::open(env(), options.clone()).await.unwrap().0
}

/// Drops a store without closing it, and opens the folder as soon as its writer has let it go.
async fn reopen(store: ChunkStore, options: &StoreOptions) -> ChunkStore {
    drop(store);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match ChunkStore::open(env(), options.clone()).await {
            Err(OpenError::Locked { .. }) if Instant::now() < deadline => tokio::task::yield_now().await,
            opened => return opened.unwrap().0,
        }
    }
}

fn id(number: u32) -> ChunkId {
    ChunkId { generation: Generation::mint(1, [number as u8; 12]), index: number }
}

/// A chunk whose content follows from its number.
fn chunk(number: u32, length: usize) -> SealedChunk {
    let plain: Vec<u8> = (0..length).map(|n| (n as u32 * 7 + number) as u8).collect();
    let key = VolumeKey::from_bytes([5; 32]).derive(id(number).generation);
    seal_chunk(&key, VolumeId(1), 3, id(number), &[plain.into()]).unwrap()
}

fn tombstone(number: u32) -> Tombstone {
    Tombstone { id: id(number), volume: VolumeId(1), copies: 3, tick: 1 }
}

async fn read_all(store: &ChunkStore, number: u32) -> Result<SealedChunk, ReadError> {
    let (header, frames) = store.read(id(number), 0..u32::MAX).await?;
    Ok(SealedChunk { header, frames })
}

fn same(a: &SealedChunk, b: &SealedChunk) -> bool {
    a.header == b.header && a.frames == b.frames
}

#[tokio::test]
async fn chunks_survive_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = open(&options).await;
    assert_eq!(store.put(chunk(1, 200_000), Purpose::Write).await, Ok(PutOutcome::Stored));
    assert_eq!(store.put(chunk(1, 200_000), Purpose::Write).await, Ok(PutOutcome::Present));
    assert_eq!(store.put(chunk(1, 200_001), Purpose::Write).await, Err(PutError::Conflict));
    store.put(chunk(2, 1), Purpose::Write).await.unwrap();
    store.bury(vec![tombstone(2), tombstone(3)]).await.unwrap();
    store.close().await;
    assert_eq!(store.put(chunk(4, 1), Purpose::Write).await, Err(PutError::Closed));
    let store = open(&options).await;
    assert!(same(&read_all(&store, 1).await.unwrap(), &chunk(1, 200_000)));
    assert_eq!(read_all(&store, 2).await.unwrap_err(), ReadError::Buried);
    assert_eq!(store.put(chunk(3, 5), Purpose::Write).await, Err(PutError::Buried));
    assert_eq!(store.recovery().open_segments, 0);
    assert_eq!(read_all(&store, 4).await.unwrap_err(), ReadError::NotFound);
}

/// R10: with each group, and by itself if nothing is written; also after a kill, and in every later segment.
#[tokio::test]
async fn how_far_the_metadata_store_was_seen_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let seen = |tick, revision| Sighting { tick, revision, map_generation: 3, epoch: 2 };
    let store = open(&options).await;
    assert_eq!(store.sighting(), Sighting::default());
    store.saw(seen(5, 100));
    store.saw(seen(5, 90));
    store.put(chunk(1, 1_000), Purpose::Write).await.unwrap();
    let store = reopen(store, &options).await;
    assert_eq!(store.sighting(), seen(5, 100));
    store.saw(seen(6, 70));
    store.remember().await.unwrap();
    assert_eq!(store.usage().chunks, 1);
    store.close().await;
    let store = open(&options).await;
    assert_eq!(store.sighting(), seen(6, 70));
    store.put(chunk(2, 1_000), Purpose::Write).await.unwrap();
    // What is not written down is not remembered.
    store.saw(seen(7, 500));
    assert_eq!(reopen(store, &options).await.sighting(), seen(6, 70));
}

#[tokio::test]
async fn only_the_frames_asked_for_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(&folder)).await;
    let whole = chunk(1, 10 * FRAME_BYTES + 5);
    store.put(whole.clone(), Purpose::Write).await.unwrap();
    for frames in [0..1, 0..11, 3..5, 10..11, 10..u32::MAX, 0..0, 11..20, u32::MAX..u32::MAX] {
        let (header, read) = store.read(id(1), frames.clone()).await.unwrap();
        let expected = header.clamp(frames.clone());
        assert_eq!(header, whole.header);
        assert_eq!(read, whole.frames[expected.start as usize..expected.end as usize], "{frames:?}");
    }
}

#[tokio::test]
async fn unsound_chunks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(&folder)).await;
    let sound = chunk(1, 70_000);
    let mut flipped = sound.clone();
    let mut bytes = flipped.frames[1].to_vec();
    bytes[7] ^= 1;
    flipped.frames[1] = bytes.into();
    let mut short = sound.clone();
    short.frames.pop();
    let no_copies = SealedChunk {
        header: Arc::new(ChunkHeader { copies: 0, ..(*sound.header).clone() }),
        ..sound.clone()
    };
    for chunk in [flipped, short, no_copies] {
        assert!(matches!(store.put(chunk, Purpose::Write).await, Err(PutError::BadChunk(_))));
    }
    let nobody = Tombstone { copies: 0, ..tombstone(1) };
    assert!(matches!(store.bury(vec![nobody]).await, Err(PutError::BadChunk(_))));
    assert_eq!(store.usage().chunks + store.usage().tombstones, 0);
}

#[tokio::test]
async fn what_is_here_need_not_be_sent() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(&folder)).await;
    let sound = chunk(1, 70_000);
    let Prepared::Ready(ticket) = store.prepare(sound.header.clone(), Purpose::Write).await.unwrap() else {
        panic!("it is not here yet")
    };
    assert_eq!(store.write(ticket, sound.frames.clone()).await, Ok(PutOutcome::Stored));
    assert!(matches!(store.prepare(sound.header, Purpose::Write).await, Ok(Prepared::Present)));
    assert!(matches!(store.prepare(chunk(1, 70_001).header, Purpose::Write).await, Err(PutError::Conflict)));
}

#[tokio::test]
async fn of_two_contents_under_one_id_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(&folder)).await;
    let (a, b) = (chunk(1, 5000), chunk(1, 6000));
    let puts = (0..20).map(|n| store.put(if n % 2 == 0 { a.clone() } else { b.clone() }, Purpose::Write));
    let outcomes = futures::future::join_all(puts).await;
    let count =
        |wanted: Result<PutOutcome, PutError>| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    assert_eq!(count(Ok(PutOutcome::Stored)), 1);
    assert_eq!(count(Ok(PutOutcome::Present)), 9);
    assert_eq!(count(Err(PutError::Conflict)), 10);
}

/// For 5 seconds; what it waited for is for the caller to check.
async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_damaged_chunk_leaves_the_inventory_and_can_be_put_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = open(&options).await;
    let whole = chunk(1, 3 * FRAME_BYTES);
    store.put(whole.clone(), Purpose::Write).await.unwrap();
    let segments = options.folder.join("segments");
    let segment = segments.join(&RealDisk.list(&segments).unwrap()[0]);
    let file = RealDisk.open(&segment, OpenMode::ReadWrite).unwrap();
    file.write_at(&[io::IoSlice::new(&[0; 3])], 4096 + 84 + FRAME_BYTES as u64 + 100).unwrap();

    assert_eq!(store.read(id(1), 0..1).await.unwrap().1.len(), 1, "that frame is sound");
    assert!(matches!(store.read(id(1), 1..2).await, Err(ReadError::Corrupt(_))));
    assert_eq!(store.contains(id(1)), Presence::Absent);
    let counts = |store: &ChunkStore| {
        let usage = store.usage();
        (store.counters().corrupt_chunks, usage.chunks, usage.damaged_chunks)
    };
    assert_eq!(counts(&store), (1, 0, 1));
    assert_eq!(store.damage_beyond(0).await, 1);
    // What is left of it can be read: perhaps nobody has more.
    assert_eq!(store.read(id(1), 2..3).await.unwrap().1, whole.frames[2..]);
    assert!(matches!(store.read(id(1), 0..3).await, Err(ReadError::Corrupt(_))));
    assert_eq!(counts(&store), (1, 0, 1), "counted once");
    assert_eq!(store.damaged(None, 9).iter().map(|line| line.id).collect::<Vec<_>>(), [id(1)]);
    let other = chunk(1, 3 * FRAME_BYTES - 1);
    assert_eq!(store.put(other, Purpose::Repair).await, Err(PutError::Conflict), "only the same replaces it");
    let used = store.usage().used_bytes;
    assert_eq!(store.put(whole.clone(), Purpose::Repair).await, Ok(PutOutcome::Stored));
    assert_eq!(counts(&store), (1, 1, 0));
    let limit = used + 3 * FRAME_BYTES as u64 / 2;
    wait_for(|| store.usage().used_bytes < limit).await;
    assert!(store.usage().used_bytes < limit, "the damaged one's space is given back");
    store.close().await;
    // Of two records of one chunk the newer counts.
    let store = open(&options).await;
    assert!(same(&read_all(&store, 1).await.unwrap(), &whole));
}

#[tokio::test]
async fn deletes_give_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = open(&options).await;
    let chunks: Vec<u32> = (0..8).collect();
    for n in &chunks {
        store.put(chunk(*n, 300_000), Purpose::Write).await.unwrap();
    }
    let before = store.usage();
    assert!(before.used_bytes > 8 * 300_000 && before.segments > 1, "{before:?}");
    store.bury(chunks.iter().map(|n| tombstone(*n)).collect()).await.unwrap();
    store.bury(vec![tombstone(100)]).await.unwrap();
    wait_for(|| store.usage().used_bytes < 200_000).await;
    let after = store.usage();
    assert!(after.used_bytes < 200_000 && after.tombstones == 9 && after.chunks == 0, "{after:?}");
    drop(store);
}

/// What lies open can still be read, but nothing new can be written, and all of it goes with the process.
#[tokio::test]
async fn deleted_segments_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = open(&options).await;
    store.put(chunk(1, 1_000), Purpose::Write).await.unwrap();
    assert_eq!(store.look().await, Ok(()));
    std::fs::remove_dir_all(options.folder.join("segments")).unwrap();
    let gone = store.look().await.unwrap_err();
    assert_eq!(gone.folder, options.folder);
    assert!(gone.to_string().contains("start the node on a new disk"), "{gone}");
}

#[tokio::test]
async fn capacity_and_reserve_hold() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions { capacity_bytes: Some(10 << 20), ..options(&folder) };
    let store = open(&options).await;
    let mut stored = 0;
    let error = loop {
        match store.put(chunk(stored, 100_000), Purpose::Write).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, PutError::Full);
    let usage = store.usage();
    assert_eq!(usage.capacity_bytes, 10 << 20);
    assert!(usage.writable_bytes < 110_000);
    let reserve = usage.capacity_bytes - usage.used_bytes;
    assert!((838_860..1_000_000).contains(&reserve), "{usage:?}");
    assert_eq!(store.put(chunk(stored, 100_000), Purpose::Repair).await, Ok(PutOutcome::Stored));
    store.bury(vec![tombstone(0)]).await.unwrap();
}

/// What a caller no longer waits for happens all the same, and does not block the next one.
#[tokio::test]
async fn a_caller_may_go_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(&folder)).await;
    for n in 0..20 {
        let put = store.put(chunk(n, 100_000), Purpose::Write);
        tokio::select! {
            biased;
            _ = put => {}
            () = async { for _ in 0..n { tokio::task::yield_now().await } } => {}
        }
    }
    for n in 0..20 {
        store.put(chunk(n, 100_000), Purpose::Write).await.unwrap();
        assert!(same(&read_all(&store, n).await.unwrap(), &chunk(n, 100_000)));
    }
}

#[tokio::test]
async fn bad_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = options(&folder);
    for bad in [
        StoreOptions { node: String::new(), ..good.clone() },
        StoreOptions { node: "x".repeat(254), ..good.clone() },
        StoreOptions { reserve_percent: 90, ..good.clone() },
        StoreOptions { group_records: 0, ..good.clone() },
    ] {
        assert!(matches!(ChunkStore::open(env(), bad).await.err(), Some(OpenError::Options(_))));
    }
}

#[test]
fn a_busy_group_is_summarized_in_no_time() {
    let mut index = Index::default();
    for number in 0..10_000 {
        let entry = Entry {
            volume: VolumeId(1),
            copies: 3,
            plain_length: 4 << 20,
            place: crate::chunks::index::Place::new(0, 4096),
        };
        index.insert(ChunkId { generation: Generation([1; 16]), index: number }, entry).unwrap();
    }
    let start = std::time::Instant::now();
    assert_eq!(index.summarize(0, PgId(0), Scope::ALL)[0].chunks, 10_000);
    assert!(start.elapsed().as_millis() < 50, "{:?}", start.elapsed());
}
