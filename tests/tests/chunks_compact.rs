//! Compaction of a chunk store on a simulated disk: garbage gives its space back, and nothing else goes. What crashes do to it, the
//! histories of `chunks_crash.rs` try.

use std::{path::PathBuf, time::Duration};

use cairn_node::{
    chunks::{ChunkStore, Compaction, Presence, Purpose, PutOutcome, ReadError, Sighting, Tombstone},
    env::{Disk as _, OpenMode},
};
use cairn_tests::sim::{
    disk::{Fault, Operation, SimDisk},
    store::{TOMBSTONE_TICKS, chunk, id, in_store, is_whole, segments, tombstone},
};
use rand::{SeedableRng, rngs::StdRng};

/// Puts chunks with these numbers.
async fn put(store: &ChunkStore, numbers: impl IntoIterator<Item = u32>) {
    for n in numbers {
        assert_eq!(store.put(chunk(n), Purpose::Write).await, Ok(PutOutcome::Stored), "{n}");
    }
}

async fn bury(store: &ChunkStore, numbers: impl IntoIterator<Item = u32>) {
    store.bury(numbers.into_iter().map(tombstone).collect()).await.unwrap();
}

/// Compacts until there is nothing to do, and removes what was emptied; how many segments that were.
async fn compact(store: &ChunkStore) -> usize {
    let mut emptied = 0;
    while let Compaction::Emptied { .. } = store.compact().await {
        emptied += 1;
    }
    store.remove_emptied(Duration::ZERO).await;
    emptied
}

fn paths(disk: &SimDisk) -> Vec<PathBuf> {
    segments(disk).into_iter().map(|(path, _)| path).collect()
}

/// Numbers of chunks that are too small for a hole.
fn small(count: usize) -> Vec<u32> {
    (0..).filter(|n| n % 11 < 7).take(count).collect()
}

#[test]
fn small_chunks_that_are_deleted_give_their_space_back() {
    let disk = SimDisk::new(64 << 20);
    let numbers = small(600);
    let (kept, gone): (Vec<u32>, Vec<u32>) = numbers.iter().partition(|n| *n % 10 == 0);
    in_store(&disk, async |store| {
        put(&store, numbers.iter().copied()).await;
        let full = store.usage();
        bury(&store, gone.iter().copied()).await;
        assert!(store.usage().used_bytes >= full.used_bytes, "nothing of it is a page long");
        assert!(compact(&store).await > 2);
        let after = store.usage();
        assert!(after.used_bytes < full.used_bytes / 3, "{full:?} {after:?}");
        assert!(after.segments < full.segments && after.chunks == kept.len() as u64, "{full:?} {after:?}");
        assert_eq!(store.compact().await, Compaction::Nothing, "and then it is done");
        for n in &kept {
            assert_eq!(is_whole(&store, *n).await, Ok(true), "{n}");
        }
        store.close().await;
    });
    in_store(&disk, async |store| {
        assert_eq!(store.recovery().corrupt, []);
        let usage = store.usage();
        assert_eq!((usage.chunks, usage.tombstones), (kept.len() as u64, gone.len() as u64));
        for n in &kept {
            assert_eq!(is_whole(&store, *n).await, Ok(true), "{n}");
        }
        assert!(gone.iter().all(|n| store.contains(id(*n)) == Presence::Buried));
        // What the disk says is what was counted.
        let on_disk: u64 = segments(&disk).iter().map(|(_, size)| size).sum();
        assert!(usage.used_bytes <= on_disk, "{usage:?} {on_disk}");
    });
}

/// The coordinator's minutes go on.
async fn wait_until(store: &ChunkStore, tick: u32) {
    store.saw(Sighting { tick: tick.into(), ..Sighting::default() });
    store.forget_old_tombstones().await;
}

/// A deletion is remembered for so long, and on the disk for as long as something there needs it.
#[test]
fn old_deletions_are_given_back_too() {
    let disk = SimDisk::new(64 << 20);
    let numbers = small(300);
    in_store(&disk, async |store| {
        put(&store, numbers.iter().copied()).await;
        bury(&store, numbers.iter().copied()).await;
        wait_until(&store, TOMBSTONE_TICKS).await;
        assert_eq!(store.usage().tombstones, 300, "they are young");
        assert_eq!(store.tombstones_since(), TOMBSTONE_TICKS - TOMBSTONE_TICKS / 7 * 6);
        store.close().await;
    });
    for life in 1..=2 {
        in_store(&disk, async |store| {
            wait_until(&store, 1 + life * TOMBSTONE_TICKS).await;
            assert_eq!(store.usage().tombstones, 0, "nobody has to hear of them any more");
            assert!(compact(&store).await > 0);
            store.close().await;
        });
    }
    in_store(&disk, async |store| {
        let usage = store.usage();
        assert_eq!((usage.chunks, usage.tombstones), (0, 0), "nor is any left on the disk");
        assert_eq!(store.recovery().corrupt, []);
    });
}

/// A segment that is not emptied has a record that a deletion keeps from counting: however old, the deletion is copied.
#[test]
fn a_deletion_outlives_every_older_record_of_its_chunk() {
    let disk = SimDisk::new(64 << 20);
    // A large chunk that stays, beside a small one that goes.
    let (large, gone) = (21, 2);
    let close = async |store: ChunkStore| store.close().await;
    in_store(&disk, async |store| {
        put(&store, [large, gone]).await;
        close(store).await;
    });
    in_store(&disk, async |store| {
        bury(&store, [gone]).await;
        close(store).await;
    });
    for life in 1..=3 {
        in_store(&disk, async |store| {
            assert_eq!(store.contains(id(gone)), Presence::Buried, "before life {life}");
            wait_until(&store, 1 + life * TOMBSTONE_TICKS).await;
            assert_eq!(store.contains(id(gone)), Presence::Absent);
            assert!(compact(&store).await > 0);
            assert_eq!(is_whole(&store, large).await, Ok(true));
            close(store).await;
        });
    }
    // Once the older record goes, so does the deletion.
    in_store(&disk, async |store| {
        let tick = 1 + 3 * TOMBSTONE_TICKS;
        store.bury(vec![Tombstone { tick, ..tombstone(large) }]).await.unwrap();
        close(store).await;
    });
    for life in 4..=6 {
        in_store(&disk, async |store| {
            wait_until(&store, 1 + life * TOMBSTONE_TICKS).await;
            compact(&store).await;
            close(store).await;
        });
    }
    in_store(&disk, async |store| {
        let usage = store.usage();
        assert_eq!((usage.chunks, usage.tombstones), (0, 0));
    });
}

/// Each start makes a segment: many short lives leave many, and the next life takes them together.
#[test]
fn segments_of_short_lives_are_put_together() {
    let disk = SimDisk::new(64 << 20);
    let numbers: Vec<u32> = (0..).filter(|n| n % 11 == 6).take(60).collect();
    for n in &numbers {
        in_store(&disk, async |store| {
            put(&store, [*n]).await;
            store.close().await;
        });
    }
    assert_eq!(segments(&disk).len(), 60);
    in_store(&disk, async |store| {
        assert!(compact(&store).await >= 28);
        for n in &numbers {
            assert_eq!(is_whole(&store, *n).await, Ok(true), "{n}");
        }
        assert!(segments(&disk).len() <= 33, "{:?}", segments(&disk));
        store.close().await;
    });
    in_store(&disk, async |store| assert_eq!(store.recovery().corrupt, []));
}

/// The mark that tells where a segment ends was in one that is gone: its loss would still be noticed.
#[test]
fn marks_outlive_the_segments_that_they_were_in() {
    let disk = SimDisk::new(64 << 20);
    for (life, number) in [(0, 10), (1, 2), (2, 21)] {
        in_store(&disk, async |store| {
            put(&store, [number]).await;
            if life == 1 {
                bury(&store, [2]).await;
            }
        });
        // Killed: no segment has its own mark.
        disk.kill();
    }
    let before = paths(&disk);
    in_store(&disk, async |store| {
        assert_eq!(compact(&store).await, 1, "the second life's");
        store.close().await;
    });
    assert!(!paths(&disk).contains(&before[1]) && paths(&disk).contains(&before[0]));
    let first = disk.open(&before[0], OpenMode::ReadWrite).unwrap();
    first.truncate(4096).unwrap();
    in_store(&disk, async |store| {
        let named: Vec<_> = store.recovery().corrupt.iter().map(|corrupt| corrupt.segment.clone()).collect();
        assert_eq!(named, [before[0].file_name().unwrap().to_string_lossy()]);
    });
}

/// What says which segments were given back is damaged: they are called missing, and not again, however often the disk is started.
#[test]
fn segments_that_were_given_back_are_called_missing_at_most_once() {
    let disk = SimDisk::new(64 << 20);
    let numbers = small(600);
    in_store(&disk, async |store| {
        put(&store, numbers.iter().copied()).await;
        bury(&store, numbers.iter().copied().skip(1)).await;
        assert!(compact(&store).await > 2);
        store.close().await;
    });
    let removed = paths(&disk)[0].parent().unwrap().with_file_name("removed");
    disk.open(&removed, OpenMode::ReadWrite).unwrap().write_at(&[std::io::IoSlice::new(b"?")], 8).unwrap();
    in_store(&disk, async |store| {
        let report = store.recovery();
        assert!(report.removed_unreadable);
        assert!(!report.corrupt.is_empty() && report.corrupt.iter().all(|range| range.missing), "{report:?}");
        store.close().await;
    });
    // Also after another segment was given back, which writes it down with all that are gone.
    for first in [10_000, 20_000, 30_000] {
        in_store(&disk, async |store| {
            let report = store.recovery();
            assert!(!report.removed_unreadable);
            assert_eq!(report.corrupt, []);
            let more = || small(300).into_iter().map(|n| n + 11 * first);
            put(&store, more()).await;
            bury(&store, more()).await;
            assert!(compact(&store).await > 0);
            store.close().await;
        });
    }
}

/// What a killed life wrote is to be marked by the next one; a segment that is removed before that is not.
#[test]
fn a_segment_that_is_gone_is_marked_no_more() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        put(&store, [2]).await;
        bury(&store, [2]).await;
    });
    disk.kill();
    let before = paths(&disk);
    in_store(&disk, async |store| {
        wait_until(&store, 1 + TOMBSTONE_TICKS).await;
        assert_eq!(compact(&store).await, 1);
        assert!(!paths(&disk).contains(&before[0]), "nothing of it is wanted");
        put(&store, [21]).await;
        store.close().await;
    });
    in_store(&disk, async |store| assert_eq!(store.recovery().corrupt, []));
}

/// The same within one life: what the start would find is known without a start.
#[test]
fn a_deletion_outlives_a_record_that_it_has_just_met() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        // Two large chunks, and not three, have room in a segment.
        put(&store, [2, 21, 32, 43]).await;
        bury(&store, [2]).await;
        put(&store, [54, 65]).await;
        bury(&store, [43, 54]).await;
        bury(&store, [9_999]).await;
        wait_until(&store, 1 + TOMBSTONE_TICKS).await;
        assert_eq!(compact(&store).await, 1, "the second segment, with the deletion of a chunk in the first");
        assert_eq!(store.contains(id(2)), Presence::Absent);
        store.close().await;
    });
    in_store(&disk, async |store| {
        assert_eq!(store.contains(id(2)), Presence::Buried);
        assert_eq!(is_whole(&store, 21).await, Ok(true));
    });
}

/// Nine chunks of several pages each, of which most are deleted again; gives those that stay.
fn mostly_garbage(disk: &SimDisk) -> Vec<u32> {
    let (kept, gone): (Vec<u32>, Vec<u32>) = (0..).filter(|n| n % 11 == 7).take(9).partition(|n| *n % 3 == 0);
    in_store(disk, async |store| {
        put(&store, kept.iter().chain(&gone).copied()).await;
        bury(&store, gone.iter().copied()).await;
        store.close().await;
    });
    kept
}

/// Whatever the disk fails to read meanwhile, the next start has every chunk whole: a copy that was found bad is not preferred to
/// what it was copied from.
#[test]
fn a_copy_that_was_rejected_does_not_count() {
    let mut rejected = 0;
    for after in 0..60 {
        let disk = SimDisk::new(64 << 20);
        let kept = mostly_garbage(&disk);
        let set_apart = in_store_with(&disk, async |store| {
            let (operation, path) = (Operation::Read, ".seg".into());
            disk.fail(Fault { operation, path, after, times: 1, os_error: libc::EIO });
            rejected += usize::from(store.compact().await == Compaction::Refused);
            // And once more, which succeeds: into the same segment.
            store.remove_emptied(Duration::ZERO).await;
            compact(&store).await;
            put(&store, [1_000 * 11]).await;
            let set_apart = store.counters().corrupt_chunks > 0;
            store.close().await;
            set_apart
        });
        disk.kill();
        in_store(&disk, async |store| {
            assert_eq!(store.recovery().corrupt, [], "after {after} reads");
            for n in kept.iter().filter(|_| !set_apart) {
                assert_eq!(is_whole(&store, *n).await, Ok(true), "{n}, after {after} reads");
            }
        });
    }
    assert!(rejected > 3, "only {rejected} were rejected");
}

/// A byte of a copy gets wrong onto the medium, nobody is told, and the page cache has it right: what was copied stays until all
/// was read back from the device.
#[test]
fn a_copy_that_the_disk_stored_wrong_costs_nothing() {
    let mut rejected = 0;
    // Behind what begins a segment, and anywhere in the records that are copied: headers and content.
    for at in (4_200..60_000).step_by(211) {
        let disk = SimDisk::new(64 << 20);
        let kept = mostly_garbage(&disk);
        in_store(&disk, async |store| {
            disk.spoil_next_write(".seg", at);
            rejected += usize::from(store.compact().await == Compaction::Refused);
            store.remove_emptied(Duration::ZERO).await;
            // In half of the cases again, which succeeds: into the same segment.
            if at % 2 == 0 {
                compact(&store).await;
            }
            // The next start has no reason to doubt what is before this.
            put(&store, [1_000 * 11]).await;
            assert_eq!(store.counters().corrupt_chunks, 0, "nothing wrong was believed, {at}");
        });
        disk.crash(&mut StdRng::seed_from_u64(at));
        in_store(&disk, async |store| {
            for n in &kept {
                assert_eq!(is_whole(&store, *n).await, Ok(true), "{n}, byte {at}");
            }
        });
    }
    assert!(rejected > 200, "only {rejected} were rejected");
}

/// The same of a deletion: an older record of the chunk, in a segment that stays, would count again.
#[test]
fn a_deletion_that_the_disk_stored_wrong_stays_a_deletion() {
    let mut rejected = 0;
    // Behind the content of the one chunk that is copied: four deletions.
    for at in (20_000..20_700).step_by(6) {
        let disk = SimDisk::new(64 << 20);
        in_store(&disk, async |store| {
            put(&store, [21, 2]).await;
            store.close().await;
        });
        in_store(&disk, async |store| {
            put(&store, [7, 18, 29, 40]).await;
            bury(&store, [2, 18, 29, 40]).await;
            store.close().await;
        });
        in_store(&disk, async |store| {
            // One wrong byte would be put right.
            disk.spoil_next_write(".seg", at);
            disk.spoil_next_write(".seg", at + 1);
            rejected += usize::from(store.compact().await == Compaction::Refused);
            store.remove_emptied(Duration::ZERO).await;
        });
        disk.crash(&mut StdRng::seed_from_u64(at));
        in_store(&disk, async |store| {
            assert_eq!(store.contains(id(2)), Presence::Buried, "byte {at}");
            assert_eq!(is_whole(&store, 7).await, Ok(true), "byte {at}");
        });
    }
    assert!(rejected > 50, "only {rejected} were rejected");
}

/// As `in_store`, and gives what the work gives.
fn in_store_with<T>(disk: &SimDisk, work: impl AsyncFnOnce(ChunkStore) -> T) -> T {
    let mut result = None;
    in_store(disk, async |store| result = Some(work(store).await));
    result.expect("the work was done")
}

/// A segment whose removal did not become durable comes back with the power, and what it marks may be long gone.
#[test]
fn a_removal_that_was_not_synced_raises_no_alarm() {
    for seed in 0..20 {
        let disk = SimDisk::new(64 << 20);
        for number in [5, 2, 3, 4] {
            in_store(&disk, async |store| put(&store, [number]).await);
            // Killed: each life marks the segment of the one before.
            disk.kill();
        }
        // The second life's goes first; then the third life's, which has a mark of it, and the first life's.
        for gone in [vec![2], vec![3, 5]] {
            in_store(&disk, async |store| {
                bury(&store, gone.iter().copied()).await;
                store.close().await;
            });
            in_store(&disk, async |store| {
                let mut emptied = 0;
                while let Compaction::Emptied { .. } = store.compact().await {
                    emptied += 1;
                }
                assert!(emptied >= gone.len(), "{emptied}");
                if gone.len() > 1 {
                    let (operation, path) = (Operation::SyncFolder, "segments".into());
                    disk.fail(Fault { operation, path, after: 0, times: 9, os_error: libc::EIO });
                }
                store.remove_emptied(Duration::ZERO).await;
            });
        }
        disk.crash(&mut StdRng::seed_from_u64(seed));
        in_store(&disk, async |store| assert_eq!(store.recovery().corrupt, [], "seed {seed}"));
    }
}

/// A chunk was damaged and replaced, and what replaced it is copied: the damaged one, in an older segment, does not count again.
#[test]
fn a_copy_keeps_its_place_in_the_order() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        // The second one keeps the segment from being emptied.
        put(&store, [9, 20]).await;
        store.close().await;
    });
    disk.rot(&paths(&disk)[0], 4096 + 200, 0x20);
    in_store(&disk, async |store| {
        assert!(matches!(store.read(id(9), 0..9).await, Err(ReadError::Corrupt(_))));
        put(&store, [9, 21]).await;
        bury(&store, [21]).await;
        store.close().await;
    });
    in_store(&disk, async |store| {
        let Compaction::Emptied { copied_bytes } = store.compact().await else {
            panic!("nothing is emptied")
        };
        assert!(copied_bytes > 65_536, "the second life's segment, with the chunk");
        store.remove_emptied(Duration::ZERO).await;
        store.close().await;
    });
    in_store(&disk, async |store| {
        assert_eq!(is_whole(&store, 9).await, Ok(true));
        assert_eq!(store.counters().corrupt_chunks, 0);
    });
}

/// Perhaps nobody has more of what is damaged.
#[test]
fn a_segment_with_damage_stays() {
    for at in [4096 + 30, 4096 + 300] {
        let disk = SimDisk::new(64 << 20);
        in_store(&disk, async |store| {
            put(&store, [4, 10, 21]).await;
            bury(&store, [10, 21]).await;
            store.close().await;
        });
        let segment = paths(&disk)[0].clone();
        in_store(&disk, async |store| {
            disk.rot(&segment, at, 0x11);
            disk.rot(&segment, at + 3, 0x12);
            assert_eq!(store.compact().await, Compaction::Refused, "{at}");
            assert_eq!(store.compact().await, Compaction::Nothing, "it is not tried again and again");
            store.remove_emptied(Duration::ZERO).await;
        });
        assert!(paths(&disk).contains(&segment), "{at}");
    }
}

#[test]
fn whoever_reads_meanwhile_reads_on() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        let numbers = small(400);
        put(&store, numbers.iter().copied()).await;
        bury(&store, numbers.iter().copied().filter(|n| n % 4 != 0)).await;
        let kept: Vec<u32> = numbers.into_iter().filter(|n| n % 4 == 0).collect();
        let reading = async {
            for round in 0..20 {
                for n in &kept {
                    assert_eq!(is_whole(&store, *n).await, Ok(true), "{n} in round {round}");
                }
            }
        };
        let (emptied, ()) = tokio::join!(compact(&store), reading);
        assert!(emptied > 1);
        assert_eq!((store.counters().corrupt_chunks, store.usage().chunks), (0, kept.len() as u64));
    });
}

/// An emptied segment stays until it has rested.
#[test]
fn an_emptied_segment_rests() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        put(&store, [10]).await;
        bury(&store, [10]).await;
        store.close().await;
    });
    let segment = paths(&disk)[0].clone();
    in_store(&disk, async |store| {
        assert!(matches!(store.compact().await, Compaction::Emptied { .. }));
        assert_eq!(store.remove_emptied(Duration::from_secs(60)).await, 0);
        assert!(paths(&disk).contains(&segment));
        assert_eq!(store.compact().await, Compaction::Nothing, "it is not emptied again");
        assert!(store.remove_emptied(Duration::ZERO).await > 0);
        assert!(!paths(&disk).contains(&segment));
    });
}

/// What is deleted in the group that it came with lies after the last durable end: a start takes what is not whole there for torn, and the
/// deletion with it. So its space is given back only when the next group has told that this one is durable.
#[test]
fn a_chunk_that_is_deleted_in_its_own_group_keeps_its_content_until_the_next_group() {
    let disk = SimDisk::new(64 << 20);
    // Many pages long.
    let large = 19;
    // The writer punches holes as soon as nobody wants anything of it.
    let idle = async || {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
    };
    in_store(&disk, async |store| {
        put(&store, [2]).await;
        let before = disk.counts().syncs;
        let (put, buried) =
            futures::join!(store.put(chunk(large), Purpose::Write), store.bury(vec![tombstone(large)]));
        assert_eq!((put, buried), (Ok(PutOutcome::Stored), Ok(())));
        assert_eq!(disk.counts().syncs, before + 1, "one group");
        idle().await;
    });
    disk.kill();
    in_store(&disk, async |store| {
        let report = store.recovery();
        assert_eq!((report.torn_records, report.torn_bytes, &report.corrupt[..]), (0, 0, &[][..]));
        assert_eq!(store.contains(id(large)), Presence::Buried);
        assert_eq!(is_whole(&store, 2).await, Ok(true));
        let full = store.usage().used_bytes;
        put(&store, [13, 24]).await;
        put(&store, [35]).await;
        idle().await;
        let left = store.usage().used_bytes;
        assert!(left + 50_000 < full, "and then it is given back: {full} {left}");
        store.close().await;
    });
}
