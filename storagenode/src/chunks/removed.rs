//! Segments that were given back, remembered in `DATA_DIR/removed`.
//!
//! A mark of a segment that is not there means that acknowledged bytes are lost. After a compaction it does not: so before a
//! segment's file is removed, its name is written down here, for as long as another segment has a mark of it. The file only
//! ever silences that alarm: whoever deletes it gets false alarms in the log, and loses nothing. If it cannot be read, a start raises
//! the alarm for all that is not there, once, and writes it anew. The layout is in `docs/formats.md`.

use std::{collections::BTreeSet, io, path::PathBuf};

use super::{OpenError, format::SegmentId, segment::SegmentTable};
use crate::env::{Disk, OpenMode, replace_file};

const FILE: &str = "removed";

/// Format 1. Magic, version and the checksum at the end stay where they are in every later format.
mod v1 {
    use super::*;
    use crate::chunks::header::crc32c;

    pub const VERSION: u32 = 1;
    const MAGIC: &[u8; 8] = b"CAIRNRMD";
    const FIXED_BYTES: usize = 32;
    const LINE_BYTES: usize = 12;
    /// Far above what there can be: every line stands for a mark in a segment that is there.
    pub const MAX_FILE_BYTES: u64 = 64 << 20;

    /// `Some(version)`: intact, but of a newer format. `None`: damaged.
    pub type DecodeError = Option<u32>;

    pub fn encode(incarnation: &[u8; 16], ids: &BTreeSet<SegmentId>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + ids.len() * LINE_BYTES + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(ids.len() as u32).to_le_bytes());
        bytes.extend_from_slice(incarnation);
        for SegmentId { boot, number } in ids {
            bytes.extend_from_slice(&boot.to_le_bytes());
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn decode(incarnation: &[u8; 16], bytes: &[u8]) -> Result<BTreeSet<SegmentId>, DecodeError> {
        let (content, checksum) = bytes.split_last_chunk::<4>().ok_or(None)?;
        let (fixed, lines) = content.split_at_checked(FIXED_BYTES).ok_or(None)?;
        if &fixed[..8] != MAGIC || crc32c(content) != u32::from_le_bytes(*checksum) {
            return Err(None);
        }
        let number = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes"));
        if number(8) != VERSION {
            return Err(Some(number(8)));
        }
        if number(12) as usize * LINE_BYTES != lines.len() || &fixed[16..32] != incarnation {
            return Err(None);
        }
        let id = |line: &[u8]| SegmentId {
            boot: u64::from_le_bytes(line[..8].try_into().expect("8 bytes")),
            number: u32::from_le_bytes(line[8..].try_into().expect("4 bytes")),
        };
        Ok(lines.chunks_exact(LINE_BYTES).map(id).collect())
    }
}

fn path(table: &SegmentTable) -> PathBuf {
    table.folder().with_file_name(FILE)
}

/// What was given back by this disk's earlier lives; `None` if that cannot be read. Blocks.
pub fn read(disk: &dyn Disk, table: &SegmentTable) -> Result<Option<BTreeSet<SegmentId>>, OpenError> {
    let path = path(table);
    let decoded = match read_file(disk, &path) {
        Ok(bytes) => v1::decode(&table.identity().incarnation.0, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(BTreeSet::new())),
        Err(_) => Err(None),
    };
    match decoded {
        Ok(ids) => Ok(Some(ids)),
        Err(Some(found)) => Err(OpenError::NewerFormat { path, found, known: v1::VERSION }),
        Err(None) => {
            tracing::error!(
                path = %path.display(),
                "cannot be read: segments that were given back are reported as missing, once"
            );
            Ok(None)
        }
    }
}

fn read_file(disk: &dyn Disk, path: &std::path::Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; file.size()?.min(v1::MAX_FILE_BYTES) as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes down that a segment is about to be removed. Blocks.
pub fn note(disk: &dyn Disk, table: &SegmentTable, slot: u32) -> io::Result<()> {
    write(disk, table, &table.marked_and_gone(slot))
}

/// Writes down what is gone, in place of what could not be read. Blocks.
pub fn write(disk: &dyn Disk, table: &SegmentTable, gone: &BTreeSet<SegmentId>) -> io::Result<()> {
    replace_file(disk, &path(table), &v1::encode(&table.identity().incarnation.0, gone))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    const DISK: [u8; 16] = [5; 16];

    fn id((boot, number): (u64, u32)) -> SegmentId {
        SegmentId { boot, number }
    }

    /// The bytes are a promise: every later version reads them.
    #[test]
    fn the_layout_is_what_the_documentation_says() {
        let ids = BTreeSet::from([id((3, 1))]);
        let bytes = v1::encode(&DISK, &ids);
        let expected = "434149524e524d44\
            01000000\
            01000000\
            05050505050505050505050505050505\
            0300000000000000\
            01000000";
        assert_eq!(hex::encode(&bytes[..bytes.len() - 4]), expected);
        assert_eq!(v1::decode(&DISK, &bytes), Ok(ids));
        assert_eq!(v1::decode(&[6; 16], &bytes), Err(None), "of another disk");
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut bytes = v1::encode(&DISK, &BTreeSet::new());
        bytes[8] = 2;
        let end = bytes.len() - 4;
        let checksum = crate::chunks::header::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(v1::decode(&DISK, &bytes), Err(Some(2)));
    }

    proptest! {
        #[test]
        fn changed_bytes_are_noticed(
            ids in btree_set((any::<u64>(), any::<u32>()), 0..20), at: prop::sample::Index, flip in 1u8..
        ) {
            let ids: BTreeSet<SegmentId> = ids.into_iter().map(id).collect();
            let mut bytes = v1::encode(&DISK, &ids);
            prop_assert_eq!(v1::decode(&DISK, &bytes), Ok(ids));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert_eq!(v1::decode(&DISK, &bytes), Err(None));
            prop_assert_eq!(v1::decode(&DISK, &bytes[..at]), Err(None));
        }
    }
}
