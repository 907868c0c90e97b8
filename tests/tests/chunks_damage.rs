//! The chunk store and bytes that go bad: what rots around a crash, what is remembered, what can be put right.

use std::{path::Path, time::Duration};

use cairn_node::chunks::{ChunkState, ChunkStore, Presence, Purpose, PutError, PutOutcome, ReadError};
use cairn_node::env::{Disk as _, OpenMode};
use cairn_node::workers::scrub::Scrub;
use cairn_tests::sim::{
    disk::{Fault, Operation, SimDisk},
    env::{SimTime, env},
    store::{chunk, id, in_store, is_whole, options, segments, tombstone},
};
use futures::future::join_all;
use rand::{SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

/// Where these bytes are in a file.
fn place_of(disk: &SimDisk, path: &Path, bytes: &[u8]) -> u64 {
    find(disk, path, bytes).expect("they are there")
}

fn find(disk: &SimDisk, path: &Path, bytes: &[u8]) -> Option<u64> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut all = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut all, 0).unwrap();
    all.windows(bytes.len()).position(|window| window == bytes).map(|place| place as u64)
}

/// Waits until what is known to be damaged is written down.
async fn until_remembered(disk: &SimDisk) {
    for _ in 0..10_000 {
        if disk.files().iter().any(|(path, _)| path.ends_with("damage")) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it is never written down");
}

/// What is known of one number: its presence, and whether its first frame can be read.
async fn seen(store: &ChunkStore, number: u32) -> (Presence, bool) {
    (store.contains(id(number)), store.read(id(number), 0..1).await.is_ok())
}

/// Nobody can tell a chunk that was torn in the last group before a crash from one that rotted there: it does not count, what is
/// left of it can be read, and what was written with it counts. At every later start, too.
#[test]
fn a_torn_chunk_is_set_apart_and_the_rest_of_its_group_counts() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        let puts = [3, 9, 1, 2].map(|n| store.put(chunk(n), Purpose::Write));
        assert!(join_all(puts).await.iter().all(Result::is_ok));
        assert_eq!(store.counters().groups, 1);
    });
    disk.kill();
    let (segment, _) = segments(&disk).remove(0);
    disk.rot(&segment, place_of(&disk, &segment, &chunk(9).frames[1]), 1);
    let torn = |store: &ChunkStore| {
        assert_eq!(store.recovery().corrupt, []);
        let usage = store.usage();
        (usage.chunks, usage.damaged_chunks, usage.torn_chunks)
    };
    for written in 3..6 {
        in_store(&disk, async |store| {
            assert_eq!(torn(&store), (written, 0, 1));
            assert!(store.damaged(None, 9).iter().all(|chunk| chunk.torn && chunk.id == id(9)));
            assert_eq!(seen(&store, 9).await, (Presence::Absent, true));
            assert!(matches!(is_whole(&store, 9).await, Err(ReadError::Corrupt(_))));
            assert_eq!((is_whole(&store, 1).await, is_whole(&store, 2).await), (Ok(true), Ok(true)));
            store.put(chunk(19 + written as u32), Purpose::Write).await.unwrap();
        });
        disk.crash(&mut StdRng::seed_from_u64(1));
    }
    in_store(&disk, async |store| {
        assert_eq!(store.put(chunk(9), Purpose::Repair).await, Ok(PutOutcome::Stored));
        store.bury(vec![tombstone(1)]).await.unwrap();
    });
    disk.kill();
    in_store(&disk, async |store| {
        assert_eq!(torn(&store), (6, 0, 0));
        assert_eq!(is_whole(&store, 9).await, Ok(true));
        assert_eq!(store.contains(id(1)), Presence::Buried);
        store.bury(vec![tombstone(9)]).await.unwrap();
    });
    disk.kill();
    in_store(&disk, async |store| assert_eq!(torn(&store), (5, 0, 0)));
}

/// As `a_group_whose_sync_failed_is_not_believed_from_the_cache`, with a later segment that tells where the first one ends.
#[test]
fn what_a_failed_sync_left_behind_a_mark_is_not_believed_from_the_cache() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        store.put(chunk(1), Purpose::Write).await.unwrap();
        disk.fail_once(Operation::Sync, ".seg");
        // The pages of the first chunk are read again at once; the second of the group is beyond them.
        let failed = [7, 2].map(|n| store.put(chunk(n), Purpose::Write));
        assert!(join_all(failed).await.iter().all(Result::is_err));
        store.put(chunk(3), Purpose::Write).await.unwrap();
    });
    disk.kill();
    in_store(&disk, async |store| {
        assert_eq!(store.contains(id(2)), Presence::Absent);
        assert_eq!((is_whole(&store, 1).await, is_whole(&store, 3).await), (Ok(true), Ok(true)));
    });
}

/// Damage that was met is known after the next start, however the process ended, until the chunk is stored anew.
#[test]
fn known_damage_is_remembered() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        for n in [10, 1, 2] {
            store.put(chunk(n), Purpose::Write).await.unwrap();
        }
        store.close().await;
    });
    let (segment, _) = segments(&disk).remove(0);
    disk.rot(&segment, place_of(&disk, &segment, &chunk(10).frames[1]) + 100, 1);
    in_store(&disk, async |store| {
        assert_eq!(store.usage().damaged_chunks, 0, "nobody has read it");
        assert!(is_whole(&store, 10).await.is_err());
        until_remembered(&disk).await;
    });
    disk.crash(&mut StdRng::seed_from_u64(1));
    in_store(&disk, async |store| {
        let usage = store.usage();
        assert_eq!((usage.chunks, usage.damaged_chunks), (2, 1));
        assert_eq!(seen(&store, 10).await, (Presence::Absent, true));
        // Found, and closed before the next writing down is due.
        disk.rot(&segment, place_of(&disk, &segment, &chunk(1).frames[0]), 1);
        assert!(is_whole(&store, 1).await.is_err());
        store.close().await;
    });
    in_store(&disk, async |store| {
        assert_eq!(store.usage().damaged_chunks, 2);
        for n in [1, 10] {
            assert_eq!(store.put(chunk(n), Purpose::Repair).await, Ok(PutOutcome::Stored));
        }
    });
    disk.kill();
    in_store(&disk, async |store| {
        let usage = store.usage();
        assert_eq!((usage.chunks, usage.damaged_chunks), (3, 0), "what was stored anew is whole");
        assert_eq!((is_whole(&store, 1).await, is_whole(&store, 10).await), (Ok(true), Ok(true)));
    });
    // A memory that is damaged itself, or cannot be read, is no reason not to start.
    disk.rot(Path::new("/disk/data/damage"), 20, 1);
    in_store(&disk, async |store| assert_eq!(store.usage().chunks, 3));
    disk.fail(Fault {
        operation: Operation::Read,
        path: "/damage".into(),
        after: 0,
        times: 9,
        os_error: libc::EIO,
    });
    in_store(&disk, async |store| assert_eq!(store.usage().chunks, 3));
}

/// What a start finds, because a sync failed and everything is read, the next start knows, whose sync goes well.
#[test]
fn damage_that_a_start_finds_is_remembered() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        for n in [10, 1] {
            store.put(chunk(n), Purpose::Write).await.unwrap();
        }
    });
    disk.kill();
    let (segment, _) = segments(&disk).remove(0);
    disk.rot(&segment, place_of(&disk, &segment, &chunk(10).frames[1]) + 100, 1);
    disk.fail_once(Operation::Sync, ".seg");
    for _ in 0..2 {
        in_store(&disk, async |store| {
            assert_eq!((store.usage().damaged_chunks, store.usage().torn_chunks), (1, 0));
            assert_eq!(seen(&store, 10).await, (Presence::Absent, true));
            until_remembered(&disk).await;
        });
        disk.kill();
    }
}

/// A damaged chunk was stored anew, the old record's frames were given back, and the new record is damaged: the old one's header
/// is whole, but there is nothing behind it, and the new one is what can be read.
#[test]
fn a_replaced_record_does_not_take_the_place_of_the_one_that_replaced_it() {
    for byte in [20, 70] {
        let disk = SimDisk::new(64 << 20);
        in_store(&disk, async |store| {
            store.put(chunk(10), Purpose::Write).await.unwrap();
            store.close().await;
        });
        let (old, _) = segments(&disk).remove(0);
        disk.rot(&old, place_of(&disk, &old, &chunk(10).frames[1]) + 100, 1);
        in_store(&disk, async |store| {
            assert!(is_whole(&store, 10).await.is_err());
            let used = store.usage().used_bytes;
            assert_eq!(store.put(chunk(10), Purpose::Repair).await, Ok(PutOutcome::Stored));
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
            assert!(store.usage().used_bytes < used + 100_000, "the old frames are given back");
            store.close().await;
        });
        let (new, _) = segments(&disk).remove(1);
        disk.rot(&new, place_of(&disk, &new, &chunk(10).frames[0]) - 84 + byte, 0x42);
        for _ in 0..2 {
            in_store(&disk, async |store| {
                assert_eq!(seen(&store, 10).await, (Presence::Absent, true), "byte {byte}");
                assert_eq!(is_whole(&store, 10).await, Ok(true), "byte {byte}");
                store.close().await;
            });
        }
    }
}

/// Damage where nobody reads is found within about a period, and nothing else changes.
#[test]
fn a_scrub_finds_what_nobody_reads() {
    let (disk, time) = (SimDisk::new(64 << 20), SimTime::default());
    let world = env(1, disk.clone(), &time);
    time.runtime().block_on(async {
        let (store, _) = ChunkStore::open(world.clone(), options()).await.unwrap();
        // In several segments, and some of them gone again.
        for n in 0..40 {
            store.put(chunk(n), Purpose::Write).await.unwrap();
        }
        store.bury((0..40).step_by(5).map(tombstone).collect()).await.unwrap();
        assert!(store.segment_count() > 1);
        let found = || store.usage().damaged_chunks;
        let period = Duration::from_secs(1_000);
        let scrub = Scrub { env: world.clone(), store: store.clone(), period };
        let stop = CancellationToken::new();
        let running = tokio::spawn(scrub.run(stop.clone()));
        world.clock.sleep(period * 2).await;
        assert_eq!((found(), store.usage().chunks), (0, 32), "nothing is wrong");
        for n in [21, 32] {
            let places = segments(&disk).into_iter().map(|(path, _)| path);
            let (path, place) = places
                .filter_map(|path| Some((path.clone(), find(&disk, &path, &chunk(n).frames[0])?)))
                .next()
                .expect("it is somewhere");
            disk.rot(&path, place, 1);
        }
        world.clock.sleep(period * 2 + period / 10).await;
        assert_eq!((found(), store.usage().chunks), (2, 30));
        assert!(store.damaged(None, 9).iter().all(|chunk| [id(21), id(32)].contains(&chunk.id)));
        stop.cancel();
        running.await.unwrap();
    });
}

/// A chunk of which a byte is wrong on the medium, and right in the cache.
async fn put_spoiled(disk: &SimDisk, store: &ChunkStore, number: u32) {
    disk.spoil_next_write(".seg", 70_000);
    assert_eq!(store.put(chunk(number), Purpose::Write).await, Ok(PutOutcome::Stored));
    assert_eq!(is_whole(store, number).await, Ok(true), "it is read from the cache");
}

/// What the cache has is no proof that the disk has it.
#[test]
fn a_scrub_reads_the_device() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        put_spoiled(&disk, &store, 10).await;
        assert_eq!(store.chunks_of_segment(0).await, [id(10)]);
        assert_eq!(store.check(id(10)).await.unwrap().state, ChunkState::Damaged);
        assert_eq!(store.contains(id(10)), Presence::Absent);
    });
}

/// A sync that failed says nothing of what the ones before it have done: the cache may hold what never arrived.
#[test]
fn after_a_failed_sync_the_device_is_asked_what_it_has() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        put_spoiled(&disk, &store, 10).await;
        store.put(chunk(2), Purpose::Write).await.unwrap();
        disk.fail_once(Operation::Sync, ".seg");
        assert!(store.put(chunk(13), Purpose::Write).await.is_err());
        // The sender is told first.
        for _ in 0..10_000 {
            if store.contains(id(10)) == Presence::Absent {
                break;
            }
            tokio::task::yield_now().await;
        }
        let held = [10, 2, 13].map(|n| store.contains(id(n)));
        assert_eq!(held, [Presence::Absent, Presence::Present, Presence::Absent]);
    });
}

/// An error may pass, and bytes be right again: then the chunk need not be stored anew.
#[test]
fn what_reads_well_again_counts_again() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        store.put(chunk(10), Purpose::Write).await.unwrap();
        let (segment, _) = segments(&disk).remove(0);
        let place = place_of(&disk, &segment, &chunk(10).frames[1]);
        disk.rot(&segment, place, 1);
        assert!(is_whole(&store, 10).await.is_err());
        assert!(!store.recheck(id(10)).await);
        assert_eq!(store.contains(id(10)), Presence::Absent);
        disk.rot(&segment, place, 1);
        assert!(store.recheck(id(10)).await);
        assert_eq!((store.contains(id(10)), store.usage().damaged_chunks), (Presence::Present, 0));
        assert!(!store.recheck(id(10)).await, "nothing is wrong with it");
    });
}

/// A chunk behind a mark counts once it was read whole; if it rots then, that is damage, also after the next start.
#[test]
fn what_was_whole_behind_a_mark_is_damaged_not_torn() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        let puts = [3, 9, 1].map(|n| store.put(chunk(n), Purpose::Write));
        assert!(join_all(puts).await.iter().all(Result::is_ok));
    });
    disk.kill();
    let (segment, _) = segments(&disk).remove(0);
    disk.rot(&segment, place_of(&disk, &segment, &chunk(9).frames[1]), 1);
    in_store(&disk, async |store| {
        store.put(chunk(20), Purpose::Write).await.unwrap();
        disk.rot(&segment, place_of(&disk, &segment, &chunk(1).frames[0]), 1);
        assert!(is_whole(&store, 1).await.is_err());
        store.close().await;
    });
    in_store(&disk, async |store| {
        assert_eq!((store.usage().damaged_chunks, store.usage().torn_chunks), (1, 1));
    });
}

#[test]
fn a_deleted_folder_is_noticed() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        store.put(chunk(1), Purpose::Write).await.unwrap();
        assert_eq!(store.look().await, Ok(()));
        for (path, _) in disk.files() {
            disk.remove(&path).unwrap();
        }
        assert!(
            store
                .look()
                .await
                .unwrap_err()
                .to_string()
                .contains("/disk/data, or `lock` or `segments` in it, was deleted")
        );
        assert!(matches!(store.put(chunk(2), Purpose::Write).await, Err(PutError::Failed(_))));
    });
}

/// One wrong byte of a header is computed: while the store runs, and at a start. The chunk is not trusted, but not lost either.
#[test]
fn a_wrong_byte_of_a_header_costs_nothing_but_trust() {
    for (round, byte) in [2, 9, 20, 70, 76, 83].into_iter().enumerate() {
        let disk = SimDisk::new(64 << 20);
        let check = async |store: &ChunkStore| {
            assert_eq!(seen(store, 10).await, (Presence::Absent, true), "byte {byte}");
            assert_eq!(is_whole(store, 10).await, Ok(true), "byte {byte}");
            assert_eq!(store.damaged(None, 9).iter().map(|chunk| chunk.id).collect::<Vec<_>>(), [id(10)]);
        };
        in_store(&disk, async |store| {
            for n in [10, 1] {
                store.put(chunk(n), Purpose::Write).await.unwrap();
            }
            if round % 2 == 0 {
                return store.close().await;
            }
            disk.rot(&segments(&disk)[0].0, 4096 + byte, 0x42);
            assert!(matches!(is_whole(&store, 10).await, Err(ReadError::Corrupt(_))));
            check(&store).await;
        });
        disk.kill();
        if round % 2 == 0 {
            disk.rot(&segments(&disk)[0].0, 4096 + byte, 0x42);
        }
        in_store(&disk, async |store| {
            assert_eq!(store.recovery().corrupt, []);
            check(&store).await;
            assert_eq!(store.put(chunk(10), Purpose::Repair).await, Ok(PutOutcome::Stored));
            assert_eq!(is_whole(&store, 1).await, Ok(true));
        });
        disk.kill();
        in_store(&disk, async |store| {
            let usage = store.usage();
            assert_eq!((usage.chunks, usage.damaged_chunks, usage.torn_chunks), (2, 0, 0));
            assert_eq!(is_whole(&store, 10).await, Ok(true));
        });
    }
}
