//! The chunk store and bytes that go bad: what rots around a crash, what is remembered, what can be put right.

use std::path::Path;

use cairn_node::chunks::{ChunkStore, Presence, Purpose, PutError, PutOutcome, ReadError};
use cairn_node::env::{Disk as _, OpenMode};
use cairn_tests::sim::{
    disk::{Fault, Operation, SimDisk},
    store::{chunk, id, in_store, is_whole, segments, tombstone},
};
use futures::future::join_all;
use rand::{SeedableRng, rngs::StdRng};

/// Where these bytes are in a file.
fn place_of(disk: &SimDisk, path: &Path, bytes: &[u8]) -> u64 {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut all = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut all, 0).unwrap();
    all.windows(bytes.len()).position(|window| window == bytes).expect("they are there") as u64
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
        let fault = Fault {
            operation: Operation::Sync,
            path: ".seg".into(),
            after: 0,
            times: 1,
            os_error: libc::EIO,
        };
        disk.fail(fault);
        assert!(store.put(chunk(2), Purpose::Write).await.is_err());
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
        let written = async || disk.files().iter().any(|(path, _)| path.ends_with("damage"));
        while !written().await {
            tokio::task::yield_now().await;
        }
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
    // A memory that is damaged itself is no reason not to start.
    disk.rot(Path::new("/disk/data/damage"), 20, 1);
    in_store(&disk, async |store| assert_eq!(store.usage().chunks, 3));
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
        assert!(store.look().await.unwrap_err().to_string().contains("/disk/data was deleted"));
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
