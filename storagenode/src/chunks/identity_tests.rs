//! Identities on a real disk, and what is refused.

use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::*;
use crate::env::real::{RealDisk, RealRandom};

fn open(folder: &Path, cluster: u8, node: &str) -> Result<Identity, OpenError> {
    open_identity(&RealDisk, &RealRandom, folder, [cluster; 16], node)
}

fn stored() -> Stored {
    let identity =
        Identity { cluster_id: [1; 16], node: "node-0".into(), incarnation: Incarnation([2; 16]), boot: 3 };
    Stored { identity, retired: false }
}

fn folder_with(bytes: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = RealDisk.open(&folder.path().join(FILE), OpenMode::CreateNew).unwrap();
    file.write_at(&[io::IoSlice::new(bytes)], 0).unwrap();
    folder
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

    let mut newer = v1::encode(&stored());
    newer[8] = 2;
    let end = newer.len() - 4;
    let checksum = crate::chunks::header::crc32c(&newer[..end]);
    newer[end..].copy_from_slice(&checksum.to_le_bytes());
    let newer = folder_with(&newer);
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
    RealDisk.remove(&folder.path().join(FILE)).unwrap();
    RealDisk.open(&folder.path().join(SEGMENTS_FOLDER).join("x"), OpenMode::CreateNew).unwrap();
    assert!(matches!(open(folder.path(), 1, "a"), Err(OpenError::IdentityLost { .. })));
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
