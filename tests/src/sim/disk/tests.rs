//! The simulated disk must lose what it may lose, and nothing else.

use std::io::IoSlice;

use rand::SeedableRng;

use super::*;

fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

fn file(disk: &SimDisk, name: &str) -> Arc<dyn DiskFile> {
    disk.open(Path::new(name), OpenMode::CreateNew).unwrap()
}

fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    let file = disk.open(Path::new(name), OpenMode::Read).ok()?;
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn what_was_synced_stays() {
    for seed in 0..50 {
        let disk = SimDisk::new(1 << 20);
        let f = file(&disk, "/f");
        f.write_at(&[IoSlice::new(&[7; 10_000])], 0).unwrap();
        f.sync_all().unwrap();
        disk.sync_folder(Path::new("/")).unwrap();
        disk.crash(&mut random(seed));
        assert_eq!(content(&disk, "/f").unwrap(), [7; 10_000]);
        assert!(f.size().is_err(), "open files are dead");
    }
}

#[test]
fn what_was_not_synced_is_torn_and_reordered() {
    let (mut kept, mut lost, mut torn, mut unnamed) = (0, 0, 0, 0);
    for seed in 0..200 {
        let disk = SimDisk::new(1 << 20);
        let f = file(&disk, "/f");
        f.write_at(&[IoSlice::new(&[1; 8192])], 0).unwrap();
        f.sync_all().unwrap();
        f.write_at(&[IoSlice::new(&[2; 8192])], 0).unwrap();
        disk.crash(&mut random(seed));
        match content(&disk, "/f") {
            None => unnamed += 1,
            Some(bytes) => {
                assert!(bytes.chunks(512).all(|sector| sector == [1; 512] || sector == [2; 512]));
                match bytes.chunks(512).filter(|sector| sector[0] == 2).count() {
                    0 => lost += 1,
                    16 => kept += 1,
                    _ => torn += 1,
                }
            }
        }
    }
    assert!(kept > 10 && lost > 10 && torn > 10 && unnamed > 10, "{kept} {lost} {torn} {unnamed}");
}

#[test]
fn a_killed_process_leaves_its_cache() {
    let disk = SimDisk::new(1 << 20);
    file(&disk, "/f").write_at(&[IoSlice::new(b"cached")], 0).unwrap();
    disk.kill();
    assert_eq!(content(&disk, "/f").unwrap(), b"cached");
}

#[test]
fn a_failed_sync_loses_the_bytes_without_telling_twice() {
    let disk = SimDisk::new(1 << 20);
    let f = file(&disk, "/f");
    f.allocate(4096).unwrap();
    f.sync_all().unwrap();
    f.write_at(&[IoSlice::new(&[5; 512])], 0).unwrap();
    let fault =
        Fault { operation: Operation::Sync, path: "f".into(), after: 0, times: 1, os_error: libc::EIO };
    disk.fail(fault);
    assert!(f.sync_data().is_err());
    f.sync_data().unwrap();
    let mut byte = [0];
    f.read_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [5], "still in the cache");
    f.forget_cached(0, 4096).unwrap();
    f.read_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [0], "never on the medium");
}

#[test]
fn blocks_run_out_and_holes_give_them_back() {
    let disk = SimDisk::new(10 * 4096);
    let f = file(&disk, "/f");
    f.allocate(8 * 4096).unwrap();
    assert_eq!(disk.space(Path::new("/")).unwrap().available_bytes, 2 * 4096);
    assert_eq!(f.allocate(11 * 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
    f.punch_hole(4096, 2 * 4096).unwrap();
    f.truncate(6 * 4096).unwrap();
    assert_eq!(disk.space(Path::new("/")).unwrap().available_bytes, 6 * 4096);
}

#[test]
fn locks_end_with_the_process_or_the_handle() {
    let disk = SimDisk::new(1 << 20);
    let first = file(&disk, "/lock");
    first.lock().unwrap();
    let second = disk.open(Path::new("/lock"), OpenMode::ReadWrite).unwrap();
    assert_eq!(second.lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(first);
    second.lock().unwrap();
    disk.kill();
    disk.open(Path::new("/lock"), OpenMode::ReadWrite).unwrap().lock().unwrap();
}

#[test]
fn the_power_cut_comes_after_the_counted_changes() {
    let disk = SimDisk::new(1 << 20);
    let f = file(&disk, "/f");
    disk.cut_power_after(2);
    f.write_at(&[IoSlice::new(b"a")], 0).unwrap();
    f.sync_all().unwrap();
    assert!(f.write_at(&[IoSlice::new(b"b")], 1).is_err());
    assert!(f.size().is_err());
    disk.crash(&mut random(1));
}

#[test]
fn what_is_stored_wrong_looks_right_until_it_leaves_the_cache() {
    let disk = SimDisk::new(1 << 20);
    let f = file(&disk, "/f");
    disk.spoil_next_write("f", 5_000);
    f.write_at(&[IoSlice::new(&[3; 4_096])], 0).unwrap();
    f.write_at(&[IoSlice::new(&[7; 9_000])], 4_096).unwrap();
    f.sync_all().unwrap();
    disk.kill();
    let wrong = || content(&disk, "/f").unwrap()[4_096..].iter().position(|byte| *byte != 7);
    assert_eq!(wrong(), None, "the first write is too short, and the second one is in the cache");
    disk.open(Path::new("/f"), OpenMode::Read).unwrap().forget_cached(0, 20_000).unwrap();
    assert_eq!(wrong(), Some(5_000));
}
