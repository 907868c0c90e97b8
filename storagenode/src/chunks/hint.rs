//! Hint files: what is in the segments that have ended, so that a start need not read through them.
//!
//! A start needs a hundredth of a disk's bytes, the headers of its records, and they lie everywhere. So when a segment ends
//! the headers' content goes into a file beside it, `DATA_DIR/hints/…`, one for each segment, written at once.
//!
//! A hint only ever saves reading. It is not synced; whether it is there, torn, or of another segment is decided at
//! each start, and without a hint the segment itself is read through, and a hint is made of what was found.
//! It counts only if
//!
//! - its checksum is right, and it names this disk and this segment;
//! - a mark in a *newer* segment names the same end: all before it was durable when that was written. Hints are of what
//!   was written, and a write may be lost;
//! - the segment's file has the same size: nothing was lost of it, and nothing was written behind its end.
//!
//! What a hint does not tell is whether the records are still as they were. Reading verifies every chunk, scrub reads all
//! of them, and `cairn-node verify` and compaction read segments through without hints.
//!
//! Decided in `docs/decisions/0011-hint-files.md`; the layout is in `docs/formats.md`.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    path::PathBuf,
};

use super::{
    format::{Brief, Record, SegmentId, Sequence},
    scan::Found,
    segment::SegmentTable,
};
use crate::env::{Disk, OpenMode};

use v1::FIXED_BYTES;

/// Lines of one hint: more of them are not kept in memory for it. Segments of more records, of 1 KiB each and less, are read
/// through at each start.
const MAX_LINES: usize = 1 << 18;

/// One record of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    pub offset: u64,
    pub sequence: Sequence,
    pub brief: Brief,
}

impl Line {
    pub fn of(found: &Found) -> Self {
        let Record { sequence, body, .. } = &found.record;
        Self { offset: found.offset, sequence: *sequence, brief: body.brief() }
    }
}

/// What is in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// Where the segment is marked to end.
    pub end: u64,
    /// Of its file: there is more than its end if it has a mark of itself.
    pub size: u64,
    /// In the order of their offsets.
    pub lines: Vec<Line>,
}

/// The lines of a segment that is being written.
pub struct Lines {
    bytes: Vec<u8>,
    count: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self { bytes: vec![0; FIXED_BYTES], count: 0 }
    }
}

impl Lines {
    pub fn push(&mut self, line: &Line) {
        self.count += 1;
        if self.count <= MAX_LINES {
            v1::encode_line(line, &mut self.bytes);
        } else {
            self.bytes = Vec::new();
        }
    }

    /// Of lines that were gathered apart.
    pub fn append(&mut self, other: &Self) {
        self.count += other.count;
        if self.count <= MAX_LINES {
            self.bytes.extend_from_slice(&other.bytes[FIXED_BYTES..]);
        } else {
            self.bytes = Vec::new();
        }
    }

    /// Writes the hint of a segment with these records. Blocks.
    pub fn write(self, disk: &dyn Disk, table: &SegmentTable, id: SegmentId, end: u64, size: u64) {
        if self.count > MAX_LINES {
            return;
        }
        let bytes = v1::finish(self.bytes, &table.identity().incarnation.0, id, end, size);
        if let Err(error) = write(disk, table, id, &bytes) {
            tracing::info!(segment = %id, %error, "no hint is written: the next start reads the segment through");
            remove(disk, table, id);
        }
    }
}

fn path(table: &SegmentTable, id: SegmentId) -> PathBuf {
    table.hints_folder().join(id.hint_name())
}

fn write(disk: &dyn Disk, table: &SegmentTable, id: SegmentId, bytes: &[u8]) -> io::Result<()> {
    remove(disk, table, id);
    let file = disk.open(&path(table, id), OpenMode::CreateNew)?;
    file.write_at(&[IoSlice::new(bytes)], 0)
}

/// Removes a segment's hint, if there is one. Blocks.
pub fn remove(disk: &dyn Disk, table: &SegmentTable, id: SegmentId) {
    match disk.remove(&path(table, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::info!(segment = %id, %error, "its hint is not removed");
        }
        _ => {}
    }
}

/// The hint of a segment that a newer one marks to end at `end`, if there is one that counts. Blocks.
pub fn read(disk: &dyn Disk, table: &SegmentTable, id: SegmentId, end: u64, size: u64) -> Option<Hint> {
    let bytes = read_file(disk, &path(table, id)).ok()?;
    match v1::decode(&table.identity().incarnation.0, id, &bytes) {
        Some(hint) if hint.end == end && hint.size == size => Some(hint),
        _ => {
            tracing::info!(segment = %id, "its hint does not count: the segment is read through");
            None
        }
    }
}

/// Files among the hints that are none. Blocks.
pub fn damaged(disk: &dyn Disk, table: &SegmentTable) -> Vec<String> {
    let names = disk.list(&table.hints_folder()).unwrap_or_default();
    let incarnation = table.identity().incarnation.0;
    let is_damaged = |name: &String| {
        SegmentId::from_hint_name(name).is_none_or(|id| {
            let bytes = read_file(disk, &path(table, id));
            bytes.map_or(true, |bytes| v1::decode(&incarnation, id, &bytes).is_none())
        })
    };
    names.into_iter().filter(is_damaged).collect()
}

fn read_file(disk: &dyn Disk, path: &std::path::Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; file.size()?.min(v1::MAX_FILE_BYTES) as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Removes hints of segments that are not there. Blocks.
pub fn remove_others(disk: &dyn Disk, table: &SegmentTable, segments: &BTreeSet<SegmentId>) {
    let Ok(names) = disk.list(&table.hints_folder()) else { return };
    for name in names {
        match SegmentId::from_hint_name(&name) {
            Some(id) if segments.contains(&id) => {}
            Some(id) => remove(disk, table, id),
            None => tracing::warn!(name, "not a hint: left alone"),
        }
    }
}

/// Format 1. Magic, version and the checksum at the end stay where they are in every later format; a hint of a format
/// that is not known is as good as none.
mod v1 {
    use super::*;
    use crate::chunks::{
        format::{BRIEF_BYTES, decode_brief, encode_brief, kind_and_copies},
        header::crc32c,
    };

    pub const VERSION: u32 = 1;
    const MAGIC: &[u8; 8] = b"CAIRNHNT";
    pub const FIXED_BYTES: usize = 64;
    pub const LINE_BYTES: usize = 24 + BRIEF_BYTES;
    pub const MAX_FILE_BYTES: u64 = (FIXED_BYTES + MAX_LINES * LINE_BYTES + 4) as u64;

    pub fn encode_line(line: &Line, to: &mut Vec<u8>) {
        let (kind, copies) = kind_and_copies(&line.brief);
        to.extend_from_slice(&[kind, copies, 0, 0]);
        to.extend_from_slice(&((line.offset / 8) as u32).to_le_bytes());
        to.extend_from_slice(&line.sequence.boot.to_le_bytes());
        to.extend_from_slice(&line.sequence.number.to_le_bytes());
        encode_brief(&line.brief, to);
    }

    /// Fills in what is before and after the lines.
    pub fn finish(mut bytes: Vec<u8>, incarnation: &[u8; 16], id: SegmentId, end: u64, size: u64) -> Vec<u8> {
        let lines = (bytes.len() - FIXED_BYTES) / LINE_BYTES;
        let mut fixed = Vec::with_capacity(FIXED_BYTES);
        fixed.extend_from_slice(MAGIC);
        fixed.extend_from_slice(&VERSION.to_le_bytes());
        fixed.extend_from_slice(&(lines as u32).to_le_bytes());
        fixed.extend_from_slice(incarnation);
        fixed.extend_from_slice(&id.boot.to_le_bytes());
        fixed.extend_from_slice(&id.number.to_le_bytes());
        fixed.extend_from_slice(&[0; 4]);
        fixed.extend_from_slice(&end.to_le_bytes());
        fixed.extend_from_slice(&size.to_le_bytes());
        bytes[..FIXED_BYTES].copy_from_slice(&fixed);
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None`: damaged, of a newer format, or of another segment.
    pub fn decode(incarnation: &[u8; 16], id: SegmentId, bytes: &[u8]) -> Option<Hint> {
        let (content, checksum) = bytes.split_last_chunk::<4>()?;
        let (fixed, lines) = content.split_at_checked(FIXED_BYTES)?;
        if &fixed[..8] != MAGIC || crc32c(content) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
        let is_ours = &fixed[16..32] == incarnation && (u64_at(32), u32_at(40)) == (id.boot, id.number);
        if u32_at(8) != VERSION || !is_ours || u32_at(12) as usize * LINE_BYTES != lines.len() {
            return None;
        }
        let line = |bytes: &[u8]| {
            let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
            let eighth = u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes"));
            Some(Line {
                offset: u64::from(eighth) * 8,
                sequence: Sequence { boot: number(8), number: number(16) },
                brief: decode_brief(bytes[0], bytes[1], &bytes[24..])?,
            })
        };
        let lines = lines.chunks_exact(LINE_BYTES).map(line).collect::<Option<_>>()?;
        Some(Hint { end: u64_at(48), size: u64_at(56), lines })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cairn_placement::{ChunkId, Generation, Incarnation, VolumeId};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        chunks::{
            format::{Sighting, Tombstone},
            identity::Identity,
        },
        env::real::RealDisk,
    };

    const DISK: [u8; 16] = [5; 16];
    const SEGMENT: SegmentId = SegmentId { boot: 3, number: 1 };

    fn id(n: u8) -> ChunkId {
        ChunkId { generation: Generation([n; 16]), index: u32::from(n) }
    }

    fn lines() -> Vec<Line> {
        let volume = VolumeId(2);
        let briefs = [
            Brief::Put { id: id(7), volume, copies: 3, plain_length: 70_000 },
            Brief::Tombstone(Tombstone { id: id(8), volume, copies: 2, tick: 9 }),
            Brief::Mark { segment: SegmentId { boot: 2, number: 4 }, end: 8_192 },
            Brief::Sighting(Sighting { tick: 1, revision: 2, map_generation: 3, epoch: 4 }),
        ];
        let line = |(n, brief)| Line {
            offset: 4_096 + 80_000 * n,
            sequence: Sequence { boot: 3, number: n },
            brief,
        };
        (0..).zip(briefs).map(line).collect()
    }

    fn encoded(lines: &[Line]) -> Vec<u8> {
        let (mut first, mut second) = (Lines::default(), Lines::default());
        let (early, late) = lines.split_at(lines.len() / 2);
        early.iter().for_each(|line| first.push(line));
        late.iter().for_each(|line| second.push(line));
        first.append(&second);
        v1::finish(first.bytes, &DISK, SEGMENT, 300_000, 300_072)
    }

    /// The bytes are a promise: every later version reads them, or knows that it does not.
    #[test]
    fn the_layout_is_what_the_documentation_says() {
        let bytes = encoded(&lines()[..2]);
        let expected = "434149524e484e54\
            01000000\
            02000000\
            05050505050505050505050505050505\
            0300000000000000\
            01000000\
            00000000\
            e093040000000000\
            2894040000000000\
            01030000\
            00020000\
            0300000000000000\
            0000000000000000\
            02000000\
            07000000\
            07070707070707070707070707070707\
            70110100\
            02020000\
            10290000\
            0300000000000000\
            0100000000000000\
            02000000\
            08000000\
            08080808080808080808080808080808\
            09000000";
        assert_eq!(hex::encode(&bytes[..bytes.len() - 4]), expected);
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = encoded(&lines());
        let hint = Hint { end: 300_000, size: 300_072, lines: lines() };
        assert_eq!(v1::decode(&DISK, SEGMENT, &bytes), Some(hint));
        assert_eq!(v1::decode(&[6; 16], SEGMENT, &bytes), None, "of another disk");
        assert_eq!(v1::decode(&DISK, SegmentId { number: 2, ..SEGMENT }, &bytes), None, "of another segment");
        let newer = |mut bytes: Vec<u8>| {
            bytes[8] = 2;
            bytes.truncate(bytes.len() - 4);
            let checksum = crate::chunks::header::crc32c(&bytes);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            bytes
        };
        assert_eq!(v1::decode(&DISK, SEGMENT, &newer(bytes)), None);
    }

    #[test]
    fn a_hint_of_another_end_or_size_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let identity =
            Identity { cluster_id: [1; 16], node: "n".into(), incarnation: Incarnation(DISK), boot: 4 };
        let disk = Arc::new(RealDisk);
        let table = SegmentTable::new(disk.clone(), folder.path(), identity);
        disk.create_folder(&table.hints_folder()).unwrap();
        let write = |lines: &[Line]| {
            let mut all = Lines::default();
            lines.iter().for_each(|line| all.push(line));
            all.write(&*disk, &table, SEGMENT, 300_000, 300_072);
        };
        let read = |end, size| read(&*disk, &table, SEGMENT, end, size).map(|hint| hint.lines.len());
        assert_eq!(read(300_000, 300_072), None, "there is none");
        write(&lines());
        assert_eq!(read(300_000, 300_072), Some(4));
        assert_eq!(read(299_992, 300_072), None);
        assert_eq!(read(300_072, 300_072), None);
        assert_eq!(read(300_000, 300_080), None, "something was written behind it");
        assert_eq!(read(300_000, 300_000), None, "something of it is lost");
        write(&lines()[..1]);
        assert_eq!(read(300_000, 300_072), Some(1), "a new one takes its place");
        let other = SegmentId { number: 9, ..SEGMENT };
        remove_others(&*disk, &table, &BTreeSet::from([SEGMENT, other]));
        assert_eq!(read(300_000, 300_072), Some(1));
        remove_others(&*disk, &table, &BTreeSet::from([other]));
        assert_eq!(read(300_000, 300_072), None);
    }

    proptest! {
        #[test]
        fn changed_bytes_are_noticed(at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = encoded(&lines());
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert_eq!(v1::decode(&DISK, SEGMENT, &bytes), None);
            prop_assert_eq!(v1::decode(&DISK, SEGMENT, &bytes[..at]), None);
        }
    }

    #[test]
    fn more_lines_than_are_kept_make_no_hint() {
        let mut all = Lines::default();
        let line = lines()[0];
        (0..MAX_LINES).for_each(|_| all.push(&line));
        assert_eq!(all.bytes.len(), FIXED_BYTES + MAX_LINES * v1::LINE_BYTES);
        let mut one = Lines::default();
        one.push(&line);
        all.append(&one);
        assert!(all.bytes.is_empty() && all.count > MAX_LINES);
    }
}
