//! The identity of a disk whose power goes in the middle of openings: there is always a sound one, and its boot counter never
//! goes back to one that was used.

use std::{io::IoSlice, path::PathBuf};

use cairn_node::{
    chunks::{ChunkStore, Identity, OpenError, StoreOptions},
    env::{Disk as _, OpenMode},
};
use cairn_tests::sim::{
    disk::{Fault, Operation, SimDisk},
    env::{SimTime, env},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const FILES: [&str; 2] = ["/disk/data/identity", "/disk/data/identity.copy"];
const SEEDS: u64 = 12;
/// More than an opening has.
const CHANGES_MAX: u64 = 200;

/// Opens the folder as a node does, and closes it.
fn open(seed: u64, disk: &SimDisk) -> Result<Identity, OpenError> {
    let options = StoreOptions::new("/disk/data", [1; 16], "node-0");
    SimTime::default().runtime().block_on(async {
        let (store, identity) =
            ChunkStore::open(env(seed, disk.clone(), &SimTime::default()), options).await?;
        store.close().await;
        Ok(identity)
    })
}

fn flip_a_byte(disk: &SimDisk, random: &mut StdRng) {
    let path = PathBuf::from(FILES[random.random_range(0..2)]);
    // A first opening that was cut off may have made one of them only.
    let Ok(file) = disk.open(&path, OpenMode::ReadWrite) else { return };
    let mut byte = [0];
    let at = random.random_range(0..file.size().unwrap());
    file.read_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << random.random_range(0..8);
    file.write_at(&[IoSlice::new(&byte)], at).unwrap();
    file.sync_all().unwrap();
}

/// One history: openings, the last of which is cut off after so many changes; then the power is back. Whether that one got to
/// its end, or what was wrong.
fn history(seed: u64, changes: u64, lies: bool) -> Result<bool, String> {
    let mut random = StdRng::seed_from_u64(seed << 16 | changes);
    let disk = SimDisk::new(64 << 20);
    if lies {
        disk.lie_about(Operation::Sync);
    }
    let mut used: Option<Identity> = None;
    let mut judge = |found: Result<Identity, OpenError>| {
        let found = found.map_err(|error| error.to_string())?;
        match &used {
            Some(before) if before.incarnation != found.incarnation || found.boot <= before.boot => {
                return Err(format!("{before:?} was used, and then {found:?}"));
            }
            _ => used = Some(found),
        }
        Ok(())
    };
    for _ in 0..random.random_range(0..3) {
        judge(open(seed, &disk))?;
        match random.random_bool(0.5) {
            true => disk.crash(&mut random),
            false => disk.kill(),
        }
    }
    disk.cut_power_after(changes);
    let cut = open(seed, &disk);
    let done = cut.is_ok();
    if done {
        judge(cut)?;
    }
    disk.crash(&mut random);
    judge(open(seed, &disk))?;
    // Any one of them may rot, whenever that is.
    for _ in 0..3 {
        disk.kill();
        flip_a_byte(&disk, &mut random);
        judge(open(seed, &disk))?;
    }
    Ok(done)
}

#[test]
fn an_identity_survives_the_power_at_any_moment_and_a_damaged_byte() {
    for seed in 0..SEEDS {
        let done = (0..CHANGES_MAX).find(|changes| match history(seed, *changes, false) {
            Ok(done) => done,
            Err(wrong) => panic!("seed {seed}, power lost after {changes} changes: {wrong}"),
        });
        assert!(done.is_some_and(|changes| changes > 8), "openings have changes: {done:?}");
    }
}

/// The bug that the test above is for, planted.
#[test]
fn an_identity_that_is_not_synced_is_found() {
    let found = (0..SEEDS).any(|seed| (0..60).any(|changes| history(seed, changes, true).is_err()));
    assert!(found, "nobody noticed that nothing was synced");
}

#[test]
fn a_start_on_a_full_disk_gives_up_the_hints() {
    let disk = SimDisk::new(64 << 20);
    let before = open(1, &disk).expect("an empty disk is taken up");
    let hint = "/disk/data/hints/0000000000000001-00000000.hint";
    let make = || {
        let made = disk.open(hint.as_ref(), OpenMode::CreateNew).unwrap();
        made.write_at(&[IoSlice::new(b"some block")], 0).unwrap();
    };
    make();
    let full = |times| {
        let (path, os_error) = ("identity".into(), libc::ENOSPC);
        disk.fail(Fault { operation: Operation::Write, path, after: 0, times, os_error });
    };
    full(1);
    let after = open(2, &disk).expect("there is room once the hints are gone");
    assert_eq!((after.incarnation, after.boot), (before.incarnation, before.boot + 1));
    assert!(disk.open(hint.as_ref(), OpenMode::Read).is_err(), "it made room");
    // Where even that is not enough, it is refused, and a later start goes on.
    full(u64::MAX);
    let refused = open(3, &disk).unwrap_err().to_string();
    assert!(refused.contains("cannot write /disk/data/identity"), "{refused}");
    disk.heal();
    assert!(open(4, &disk).expect("there is room").boot > after.boot);
}
