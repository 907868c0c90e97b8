//! The embedded metadata store on a disk that loses, tears and reorders what was not synced, and on one whose bytes change.
//!
//! Power: each seed is one history of several lives; what was answered must stay, a transaction is whole or not there.
//! Damage: each case is a copy of one sound file with a place that was changed; it is refused in words, or read as it was.

use std::{io::IoSlice, panic::AssertUnwindSafe, path::Path};

use bytes::Bytes;
use cairn_node::{
    env::{Disk as _, OpenMode},
    meta::{
        KeyValue, MetaError, MetaStore, Op, RangeRead, Txn,
        embedded::{EmbeddedStore, OpenError},
    },
};
use cairn_tests::sim::{
    disk::{Operation, SimDisk},
    env::{SimTime, env},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const FOLDER: &str = "/disk/meta";
const FILE: &str = "/disk/meta/meta.redb";
const DISK_BYTES: u64 = 64 << 20;
const LIVES: u64 = 5;
const PAIRS: usize = 8;

/// What writers know of a pair of keys that every transaction changes together: the last value that was answered, and
/// those that were tried since.
#[derive(Default)]
struct Pair {
    answered: Option<String>,
    tried: Vec<Option<String>>,
}

/// Several lives of one store. Gives what was wrong.
fn live(seed: u64, lies: &[Operation]) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = SimDisk::new(DISK_BYTES);
    lies.iter().for_each(|operation| disk.lie_about(*operation));
    let mut pairs: Vec<Pair> = (0..PAIRS).map(|_| Pair::default()).collect();
    for life in 0..LIVES {
        let last = life == LIVES - 1;
        if !last {
            disk.cut_power_after(random.random_range(0..300));
        }
        let time = SimTime::default();
        let env = env(seed * LIVES + life, disk.clone(), &time);
        let lived = time.runtime().block_on(async {
            let store = match EmbeddedStore::open(env, Path::new(FOLDER)).await {
                Ok(store) => store,
                // While the power was going.
                Err(OpenError::Io { .. }) if !last => return Ok(()),
                Err(error) => return Err(format!("life {life}: {error}")),
            };
            for (index, pair) in pairs.iter_mut().enumerate() {
                check(&store, index, pair).await.map_err(|why| format!("life {life}: {why}"))?;
            }
            let value_bytes = random.random_range(0..3000);
            let lives = pairs
                .iter_mut()
                .enumerate()
                .map(|(index, pair)| write(&store, life, index, pair, value_bytes));
            futures::future::join_all(lives).await;
            Ok(())
        });
        lived?;
        // Some processes are killed only: what they left in the cache is seen by the next one, which must not show it
        // before it is durable.
        if random.random_bool(0.3) { disk.kill() } else { disk.crash(&mut random) }
    }
    Ok(())
}

async fn check(store: &EmbeddedStore, index: usize, pair: &mut Pair) -> Result<(), String> {
    let read = async |side: &str| match store.get(format!("{side}/{index}").as_bytes()).await {
        Ok(found) => Ok(found.map(|entry| String::from_utf8_lossy(&entry.value).trim_end().to_owned())),
        Err(_) => Err(()),
    };
    // No power for reading: a later life looks.
    let (Ok(left), Ok(right)) = (read("left").await, read("right").await) else { return Ok(()) };
    if left != right {
        return Err(format!("half a transaction: {left:?} and {right:?}"));
    }
    if left != pair.answered && !pair.tried.contains(&left) {
        return Err(format!("{left:?}, but {:?} was answered, {:?} tried since", pair.answered, pair.tried));
    }
    *pair = Pair { answered: left, tried: Vec::new() };
    Ok(())
}

async fn write(store: &EmbeddedStore, life: u64, index: usize, pair: &mut Pair, value_bytes: usize) {
    for n in 0..12 {
        let (left, right) = (format!("left/{index}"), format!("right/{index}"));
        let value = (n % 5 != 4).then(|| format!("{life}-{n}"));
        let then = match &value {
            Some(value) => {
                let padded = format!("{value:value_bytes$}");
                vec![Op::put(left, padded.clone()), Op::put(right, padded)]
            }
            None => vec![Op::delete(left), Op::delete(right)],
        };
        match store.txn(Txn { then, ..Txn::default() }).await {
            Ok(_) => *pair = Pair { answered: value, tried: Vec::new() },
            Err(MetaError::Unknown(_)) => pair.tried.push(value),
            // Nothing has happened.
            Err(_) => {}
        }
    }
}

fn first_failure(lies: &[Operation]) -> Option<String> {
    (0..200).find_map(|seed| {
        let lived = std::panic::catch_unwind(AssertUnwindSafe(|| live(seed, lies)));
        let why = lived.unwrap_or_else(|_| Err("a panic".to_owned())).err()?;
        Some(format!("seed {seed}: {why}"))
    })
}

#[test]
fn what_was_answered_survives_the_power() {
    assert_eq!(first_failure(&[]), None);
}

/// Tests of the test: it must notice syncs that do nothing.
#[test]
fn a_disk_that_lies_is_noticed() {
    assert!(first_failure(&[Operation::Sync]).is_some());
}

#[test]
fn a_forgotten_folder_sync_is_noticed() {
    assert!(first_failure(&[Operation::SyncFolder]).is_some());
}

/// The file of a store with many keys, some of them of a lease: closed in order, and as it is while it is open.
struct Sound {
    closed: Vec<u8>,
    open: Vec<u8>,
    /// What is read, and what was before the last transaction.
    after: Vec<KeyValue>,
    before: Vec<KeyValue>,
}

fn bytes_of(disk: &SimDisk) -> Vec<u8> {
    let file = disk.open(Path::new(FILE), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn disk_with(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new(DISK_BYTES);
    disk.create_folder(Path::new(FOLDER)).unwrap();
    let file = disk.open(Path::new(FILE), OpenMode::CreateNew).unwrap();
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file.sync_all().unwrap();
    disk
}

async fn everything(store: &EmbeddedStore) -> Result<Vec<KeyValue>, MetaError> {
    let all = RangeRead { end: Bytes::from_static(b"\xff"), ..RangeRead::default() };
    store.range(all).await.map(|page| page.entries)
}

fn sound() -> Sound {
    let (disk, time) = (SimDisk::new(DISK_BYTES), SimTime::default());
    time.runtime().block_on(async {
        let store = EmbeddedStore::open(env(1, disk.clone(), &time), Path::new(FOLDER)).await.unwrap();
        let put = async |n: usize, round: usize| {
            let value = format!("{round}-{n}-").repeat(1 + n % 40);
            let then = vec![Op::put(format!("key/{n:04}"), value)];
            store.txn(Txn { then, ..Txn::default() }).await.unwrap();
        };
        for round in 0..2 {
            futures::future::join_all((0..600).map(|n| put(n, round))).await;
        }
        store.txn(Txn { then: vec![Op::delete("key/0007")], ..Txn::default() }).await.unwrap();
        let before = everything(&store).await.unwrap();
        put(300, 9).await;
        let (after, open) = (everything(&store).await.unwrap(), bytes_of(&disk));
        store.close().await;
        Sound { closed: bytes_of(&disk), open, after, before }
    })
}

/// Opens a file and reads all of it; then the store must also write. The error is a refusal, in words.
fn read(bytes: &[u8]) -> Result<Vec<KeyValue>, String> {
    let (disk, time) = (disk_with(bytes), SimTime::default());
    time.runtime().block_on(async {
        let store = EmbeddedStore::open(env(1, disk, &time), Path::new(FOLDER)).await;
        let store = store.map_err(|error| error.to_string())?;
        let read = everything(&store).await.map_err(|error| error.to_string())?;
        let then = vec![Op::put("key/0300", "new"), Op::delete("key/0000")];
        store.txn(Txn { then, ..Txn::default() }).await.map_err(|error| error.to_string())?;
        assert_eq!(everything(&store).await.unwrap().len(), read.len() - 1);
        store.close().await;
        Ok(read)
    })
}

/// Places that were changed, each alone, in a copy of `sound`.
fn damages(sound: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> {
    const PAGE: usize = 4096;
    let mut random = StdRng::seed_from_u64(5);
    let used: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let mut flips: Vec<usize> = (0..512).collect();
    flips.extend((0..1_200).map(|_| used[random.random_range(0..used.len())]));
    flips.extend((0..100).map(|_| random.random_range(0..sound.len())));
    let flips = flips.into_iter().map(|at| {
        let bit = random.random_range(0..8);
        let mut bytes = sound.to_vec();
        bytes[at] ^= 1 << bit;
        (format!("bit {bit} of byte {at}"), bytes)
    });
    let pages =
        (0..sound.len()).step_by(PAGE).filter(|at| sound[*at..].iter().take(PAGE).any(|byte| *byte != 0));
    let zeros = pages.map(|at| {
        let mut bytes = sound.to_vec();
        let end = bytes.len().min(at + PAGE);
        bytes[at..end].fill(0);
        (format!("zeros from {at}"), bytes)
    });
    let cuts = (0..16).map(|part| {
        let length = sound.len() / 16 * part;
        (format!("cut at {length}"), sound[..length].to_vec())
    });
    flips.collect::<Vec<_>>().into_iter().chain(zeros.collect::<Vec<_>>()).chain(cuts)
}

fn damage(sound: &[u8], allowed: &[&[KeyValue]]) {
    let (mut refused, mut read_on) = (0, 0);
    for (what, bytes) in damages(sound) {
        match std::panic::catch_unwind(AssertUnwindSafe(|| read(&bytes))) {
            Ok(Ok(found)) => {
                assert!(allowed.contains(&&found[..]), "{what}: something else is read");
                read_on += 1;
            }
            Ok(Err(why)) => {
                let words = ["is damaged", "restore the folder from a backup", FILE];
                assert!(words.iter().all(|word| why.contains(word)), "{what}: {why}");
                refused += 1;
            }
            Err(_) => panic!("{what}: a panic"),
        }
    }
    println!("{refused} refused, {read_on} read");
    assert!(refused > 300 && read_on > 300, "{refused} refused, {read_on} read");
}

#[test]
fn a_damaged_file_is_refused_in_words_or_read_as_it_was() {
    let sound = sound();
    assert!(read(&sound.closed) == Ok(sound.after.clone()));
    damage(&sound.closed, &[&sound.after]);
}

/// Nobody can tell a last commit that was damaged from one that was torn: without an orderly end, it may be missing, whole.
#[test]
fn a_damaged_file_without_an_orderly_end_lacks_its_last_commit_at_most() {
    let sound = sound();
    assert!(read(&sound.open) == Ok(sound.after.clone()));
    damage(&sound.open, &[&sound.after, &sound.before]);
}
