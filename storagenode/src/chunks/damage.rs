//! Known damage, remembered beyond the process: `DATA_DIR/damage`.
//!
//! Bytes that rotted are found when somebody reads them. Without this file a start would forget that, and a chunk that is
//! damaged on every disk would pass for whole until it is read again. The file is a hint that only ever takes something out of
//! the inventory, and only what is still at the place that it names; whoever deletes it loses nothing but the memory. The layout
//! is in `docs/formats.md`.

use std::{io, path::Path};

use cairn_placement::ChunkId;

use super::{
    OpenError,
    format::SegmentId,
    index::{Index, Place},
    segment::SegmentTable,
};
use crate::env::{Disk, OpenMode, replace_file};

const FILE: &str = "damage";
/// More are not remembered: a disk with so many is read again anyway.
pub const MAX_REMEMBERED: usize = 65_536;

/// A chunk that was damaged, and where its record was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub id: ChunkId,
    pub segment: SegmentId,
    pub offset: u64,
}

/// Format 1. Magic, version and the checksum at the end stay where they are in every later format.
mod v1 {
    use cairn_placement::Generation;

    use super::*;
    use crate::chunks::header::crc32c;

    pub const VERSION: u32 = 1;
    const MAGIC: &[u8; 8] = b"CAIRNDMG";
    const FIXED_BYTES: usize = 16;
    const LINE_BYTES: usize = 40;
    pub const MAX_FILE_BYTES: usize = FIXED_BYTES + MAX_REMEMBERED * LINE_BYTES + 4;

    /// `Some(version)`: intact, but of a newer format. `None`: damaged.
    pub type DecodeError = Option<u32>;

    pub fn encode(lines: &[Remembered]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + lines.len() * LINE_BYTES + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(lines.len() as u32).to_le_bytes());
        for Remembered { id, segment, offset } in lines {
            bytes.extend_from_slice(&segment.boot.to_le_bytes());
            bytes.extend_from_slice(&segment.number.to_le_bytes());
            bytes.extend_from_slice(&id.index.to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&id.generation.0);
        }
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Vec<Remembered>, DecodeError> {
        let (content, checksum) = bytes.split_last_chunk::<4>().ok_or(None)?;
        let (fixed, lines) = content.split_at_checked(FIXED_BYTES).ok_or(None)?;
        if &fixed[..8] != MAGIC || crc32c(content) != u32::from_le_bytes(*checksum) {
            return Err(None);
        }
        let number =
            |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let long =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if number(fixed, 8) != VERSION {
            return Err(Some(number(fixed, 8)));
        }
        if number(fixed, 12) as usize * LINE_BYTES != lines.len() {
            return Err(None);
        }
        let line = |line: &[u8]| Remembered {
            id: ChunkId {
                generation: Generation(line[24..40].try_into().expect("16 bytes")),
                index: number(line, 12),
            },
            segment: SegmentId { boot: long(line, 0), number: number(line, 8) },
            offset: long(line, 16),
        };
        Ok(lines.chunks_exact(LINE_BYTES).map(line).collect())
    }
}

/// Sets apart what is remembered and still there; gives how many chunks that are. Blocks.
pub fn recall(
    disk: &dyn Disk,
    folder: &Path,
    table: &SegmentTable,
    index: &mut Index,
) -> Result<usize, OpenError> {
    let path = folder.join(FILE);
    let lines = match read(disk, &path) {
        Ok(bytes) => v1::decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        // A hint is no reason not to start.
        Err(_) => Err(None),
    };
    let lines = match lines {
        Ok(lines) => lines,
        Err(Some(found)) => return Err(OpenError::NewerFormat { path, found, known: v1::VERSION }),
        Err(None) => {
            tracing::error!(
                path = %path.display(),
                "cannot be read, and is left alone: what was known of damaged chunks is found again when they are read"
            );
            return Ok(0);
        }
    };
    let slots = table.slots();
    let is_there = |line: &&Remembered| {
        let slot = slots.get(&line.segment);
        let place = slot.and_then(|slot| Place::checked(*slot, line.offset));
        place.is_some_and(|place| index.recall(line.id, place))
    };
    Ok(lines.iter().filter(is_there).count())
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; file.size()?.min(v1::MAX_FILE_BYTES as u64) as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes down what is damaged now, as far as it was whole before. Blocks.
pub fn remember(disk: &dyn Disk, folder: &Path, lines: &[Remembered]) -> io::Result<()> {
    replace_file(disk, &folder.join(FILE), &v1::encode(lines))
}

#[cfg(test)]
mod tests {
    use cairn_placement::Generation;
    use proptest::prelude::*;

    use super::*;

    fn line(n: u8) -> Remembered {
        Remembered {
            id: ChunkId { generation: Generation([n; 16]), index: u32::from(n) + 7 },
            segment: SegmentId { boot: 3, number: u32::from(n) },
            offset: 4096 + 8 * u64::from(n),
        }
    }

    /// The bytes are a promise: every later version reads them.
    #[test]
    fn the_layout_is_what_the_documentation_says() {
        let bytes = v1::encode(&[line(1)]);
        let expected = "434149524e444d47\
            01000000\
            01000000\
            0300000000000000\
            01000000\
            08000000\
            0810000000000000\
            01010101010101010101010101010101";
        assert_eq!(hex::encode(&bytes[..bytes.len() - 4]), expected);
        assert_eq!(v1::decode(&bytes), Ok(vec![line(1)]));
        assert_eq!(v1::decode(&v1::encode(&[])), Ok(vec![]));
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut bytes = v1::encode(&[line(1)]);
        bytes[8] = 2;
        let end = bytes.len() - 4;
        let checksum = crate::chunks::header::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(v1::decode(&bytes), Err(Some(2)));
    }

    proptest! {
        #[test]
        fn changed_bytes_are_noticed(lines in 0u8..20, at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = v1::encode(&(0..lines).map(line).collect::<Vec<_>>());
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert_eq!(v1::decode(&bytes), Err(None));
            prop_assert_eq!(v1::decode(&bytes[..at]), Err(None));
        }
    }
}
