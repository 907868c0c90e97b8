//! Identities on a real disk, and what is refused.

use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::*;
use crate::env::real::{RealDisk, RealRandom};

fn open(folder: &Path, cluster: u8, node: &str) -> Result<Identity, OpenError> {
    open_identity(&RealDisk, &RealRandom, folder, ([cluster; 16], node), Opening::Serve)
}

fn stored() -> Stored {
    let identity =
        Identity { cluster_id: [1; 16], node: "node-0".into(), incarnation: Incarnation([2; 16]), boot: 3 };
    Stored { identity, retired: false }
}

fn folder_with(bytes: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    put(&folder.path().join(FILES[0]), bytes);
    folder
}

/// Makes the file have this content, however that was not done by us.
fn put(path: &Path, bytes: &[u8]) {
    let _ = RealDisk.remove(path);
    RealDisk.open(path, OpenMode::CreateNew).unwrap().write_at(&[io::IoSlice::new(bytes)], 0).unwrap();
}

/// What both files say, if they say the same.
fn kept(folder: &Path) -> Stored {
    let [one, two] =
        FILES.map(|file| v1::decode(&read_file(&RealDisk, &folder.join(file)).unwrap()).unwrap());
    assert_eq!(one, two);
    one
}

fn newer(stored: &Stored) -> Vec<u8> {
    let mut newer = v1::encode(stored);
    newer[8] = 2;
    let end = newer.len() - 4;
    let checksum = crate::chunks::header::crc32c(&newer[..end]);
    newer[end..].copy_from_slice(&checksum.to_le_bytes());
    newer
}

#[test]
fn the_boot_counter_rises_and_the_incarnation_stays() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), 1, "a").unwrap();
    let second = open(folder.path(), 1, "a").unwrap();
    assert_eq!(first.boot, 1);
    assert_eq!(second, Identity { boot: 2, ..first });
}

#[test]
fn other_peoples_disks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), 1, "a").unwrap();
    assert!(matches!(open(folder.path(), 2, "a"), Err(OpenError::OtherCluster { .. })));
    let error = open(folder.path(), 1, "b").unwrap_err();
    assert!(matches!(error, OpenError::OtherNode { .. }), "{error}");
    assert_eq!(open(folder.path(), 1, "a").unwrap().boot, 2, "a refused open changes nothing");
}

#[test]
fn retired_newer_and_damaged_disks_are_refused() {
    let retired = folder_with(&v1::encode(&Stored { retired: true, ..stored() }));
    assert!(matches!(open(retired.path(), 1, "node-0"), Err(OpenError::Retired { .. })));

    let newer = folder_with(&newer(&stored()));
    assert!(matches!(
        open(newer.path(), 1, "node-0"),
        Err(OpenError::NewerFormat { found: 2, known: 1, .. })
    ));

    for bytes in [&b""[..], b"something else", &vec![7; 100_000]] {
        assert!(matches!(open(folder_with(bytes).path(), 1, "node-0"), Err(OpenError::Damaged { .. })));
    }
}

#[test]
fn segments_without_an_identity_are_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    RealDisk.create_folder(&folder.path().join(SEGMENTS_FOLDER)).unwrap();
    open(folder.path(), 1, "a").unwrap();
    RealDisk.open(&folder.path().join(SEGMENTS_FOLDER).join("x"), OpenMode::CreateNew).unwrap();
    for file in FILES {
        RealDisk.remove(&folder.path().join(file)).unwrap();
        assert!(open(folder.path(), 1, "a").is_ok(), "one without the other is enough");
    }
    FILES.iter().for_each(|file| RealDisk.remove(&folder.path().join(file)).unwrap());
    assert!(matches!(open(folder.path(), 1, "a"), Err(OpenError::IdentityLost { .. })));
    assert!(matches!(peek_identity(&RealDisk, folder.path()), Err(OpenError::IdentityLost { .. })));
    assert!(FILES.iter().all(|file| !folder.path().join(file).exists()), "a refused open changes nothing");
}

/// Every byte of either file, and every byte of the one with some byte of the other.
#[test]
fn one_damaged_identity_is_enough_and_two_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = open(folder.path(), 1, "node-0").unwrap();
    let paths = FILES.map(|file| folder.path().join(file));
    let length = v1::encode(&kept(folder.path())).len();
    let flipped = |at: usize| {
        let mut bytes = v1::encode(&kept(folder.path()));
        bytes[at] ^= 0x10;
        bytes
    };
    for at in 0..length {
        for path in &paths {
            put(path, &flipped(at));
            let found = open(folder.path(), 1, "node-0").unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(found, Identity { boot: last.boot + 1, ..last });
            assert_eq!(kept(folder.path()).identity, found, "the damaged one is mended");
            last = found;
        }
        let sound = v1::encode(&kept(folder.path()));
        let other = (at * 31 + 7) % length;
        let damaged = [flipped(at), flipped(other)];
        paths.iter().zip(&damaged).for_each(|(path, bytes)| put(path, bytes));
        let error = open(folder.path(), 1, "node-0").unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{at}, {other}: {error}");
        for (path, bytes) in paths.iter().zip(&damaged) {
            assert_eq!(read_file(&RealDisk, path).unwrap(), *bytes, "a refused open changes nothing");
            put(path, &sound);
        }
    }
}

#[test]
fn the_later_of_two_identities_counts_and_a_folder_of_one_gets_the_other() {
    for later in [0, 1] {
        // As a crash between the two leaves them, or an earlier version, which knows the first one only.
        let folder = folder_with(&v1::encode(&stored()));
        let identity = Identity { boot: 9, ..stored().identity };
        put(&folder.path().join(FILES[later]), &v1::encode(&Stored { identity, retired: false }));
        put(&folder.path().join(FILES[1 - later]), &v1::encode(&stored()));
        assert_eq!(open(folder.path(), 1, "node-0").unwrap().boot, 10);
        assert_eq!(kept(folder.path()).identity.boot, 10);
    }
    let folder = folder_with(&v1::encode(&stored()));
    assert_eq!(open(folder.path(), 1, "node-0").unwrap().boot, 4);
    assert_eq!(kept(folder.path()).identity.boot, 4);
}

#[test]
fn two_identities_that_differ_or_one_that_must_not_be_are_refused() {
    let differs = |change: fn(&mut Identity)| {
        let mut stored = stored();
        change(&mut stored.identity);
        v1::encode(&stored)
    };
    let retired = v1::encode(&Stored { retired: true, ..stored() });
    let others = [
        differs(|identity| identity.cluster_id = [9; 16]),
        differs(|identity| identity.node = "node-1".into()),
        differs(|identity| identity.incarnation = Incarnation([9; 16])),
    ];
    for which in [0, 1] {
        let refused = |bytes: &[u8]| {
            let folder = folder_with(&v1::encode(&stored()));
            put(&folder.path().join(FILES[1]), &v1::encode(&stored()));
            put(&folder.path().join(FILES[which]), bytes);
            open(folder.path(), 1, "node-0").unwrap_err()
        };
        for other in &others {
            let error = refused(other);
            assert!(matches!(error, OpenError::IdentitiesDiffer { .. }), "{error}");
            let said = error.to_string();
            assert!(
                said.contains("`identity` is of node") && said.contains("`identity.copy` is of"),
                "{said}"
            );
        }
        assert!(matches!(refused(&retired), OpenError::Retired { .. }));
        let error = refused(&newer(&stored()));
        assert!(
            matches!(&error, OpenError::NewerFormat { path, .. } if path.ends_with(FILES[which])),
            "{error}"
        );
    }
}

/// Each refused open would raise the counter, and one of them would find that it has caught up.
#[test]
fn an_identity_older_than_a_segment_is_refused_however_often_it_is_tried() {
    let folder = folder_with(&v1::encode(&stored()));
    let segments = folder.path().join(SEGMENTS_FOLDER);
    RealDisk.create_folder(&segments).unwrap();
    put(&segments.join(SegmentId { boot: 5, number: 0 }.to_string()), b"");
    for _ in 0..5 {
        let error = open(folder.path(), 1, "node-0").unwrap_err();
        assert!(matches!(error, OpenError::IdentityOld { boot: 3, .. }), "{error}");
    }
}

#[test]
fn what_is_no_disk_is_told_from_what_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let holds = || holds_disk(&RealDisk, &path).unwrap();
    assert!(!holds() && peek_identity(&RealDisk, &path).unwrap().is_none(), "no folder");
    RealDisk.create_folder(&path.join("lost+found")).unwrap();
    RealDisk.create_folder(&path.join(SEGMENTS_FOLDER)).unwrap();
    put(&path.join(LOCK_FILE), b"");
    assert!(!holds() && peek_identity(&RealDisk, &path).unwrap().is_none(), "nothing of a disk");
    for name in [FILES[0], FILES[1], "segments/x"] {
        put(&path.join(name), b"?");
        assert!(holds(), "{name}");
        RealDisk.remove(&path.join(name)).unwrap();
    }
}

#[test]
fn a_folder_has_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er");
    let lock = lock_folder(&RealDisk, &path).unwrap();
    let error = lock_folder(&RealDisk, &path).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(lock);
    lock_folder(&RealDisk, &path).unwrap();
}

/// Format 1 is for ever.
#[test]
fn bytes_never_change() {
    assert_eq!(
        hex::encode(v1::encode(&stored())),
        "434149524e49445401000000440000000101010101010101010101010101010102020202020202020202020202020202030000000000000000066e6f64652d30ef521c01"
    );
}

proptest! {
    #[test]
    fn round_trip(cluster_id: [u8; 16], incarnation: [u8; 16], boot: u64, node in "[a-z0-9.-]{1,253}", retired: bool) {
        let identity = Identity { cluster_id, node, incarnation: Incarnation(incarnation), boot };
        let stored = Stored { identity, retired };
        prop_assert_eq!(v1::decode(&v1::encode(&stored)), Ok(stored));
    }

    #[test]
    fn any_flipped_bit_is_seen(at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = v1::encode(&stored());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(v1::decode(&bytes), Err(v1::DecodeError::Damaged));
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(v1::decode(&bytes), Err(v1::DecodeError::Damaged));
    }
}
