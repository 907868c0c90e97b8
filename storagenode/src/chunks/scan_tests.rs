//! Scans of segments in memory: whole, cut off, damaged anywhere.

use std::io::{IoSlice, Result};

use cairn_placement::{Generation, Incarnation, VolumeId};
use parking_lot::Mutex;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::chunks::{
    format::{Body, SegmentId, Sequence, Tombstone, encode_record},
    header::{ChunkHeader, frame_count},
};

/// A file that is only read, with a part that the device cannot read.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    unreadable: Range<u64>,
}

impl DiskFile for Memory {
    fn size(&self) -> Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buffer.len() as u64;
        if offset < self.unreadable.end && end > self.unreadable.start {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let bytes = self.bytes.lock();
        buffer.copy_from_slice(bytes.get(offset as usize..end as usize).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> Result<()> {
        unreachable!("a scan only reads")
    }
    fn allocate(&self, _: u64) -> Result<()> {
        unreachable!("a scan only reads")
    }
    fn punch_hole(&self, _: u64, _: u64) -> Result<()> {
        unreachable!("a scan only reads")
    }
    fn truncate(&self, _: u64) -> Result<()> {
        unreachable!("a scan only reads")
    }
    fn sync_data(&self) -> Result<()> {
        unreachable!("a scan only reads")
    }
    fn sync_all(&self) -> Result<()> {
        unreachable!("a scan only reads")
    }
    fn has_name(&self) -> Result<bool> {
        unreachable!("a scan only reads")
    }
    fn forget_cached(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn lock(&self) -> Result<()> {
        unreachable!("a scan only reads")
    }
}

const POSITION: Position =
    Position { incarnation: Incarnation([1; 16]), segment: SegmentId { boot: 1, number: 2 }, offset: 0 };

fn scan_bytes(bytes: Vec<u8>, unreadable: Range<u64>) -> Scan {
    let size = bytes.len() as u64;
    scan(&Memory { bytes: Mutex::new(bytes), unreadable }, size, POSITION).unwrap()
}

/// A segment with a record for each length (0: a tombstone), then `spare` zeros.
fn segment(lengths: &[u32], spare: usize) -> (Vec<u8>, Vec<Found>) {
    let mut bytes = vec![0; FIRST_RECORD as usize];
    let mut found = Vec::new();
    for (number, length) in (0u32..).zip(lengths) {
        let id = ChunkId { generation: Generation([number as u8; 16]), index: number };
        let body = match *length {
            0 => Body::Tombstone(Tombstone { id, volume: VolumeId(1), copies: 3, tick: 5 }),
            plain_length => {
                let frame_crcs = vec![number; frame_count(plain_length) as usize];
                Body::Put(ChunkHeader { id, volume: VolumeId(1), copies: 3, plain_length, frame_crcs })
            }
        };
        let sequence = Sequence { boot: 1, number: u64::from(number) };
        let record = Record { sequence, durable_end: FIRST_RECORD, body };
        let offset = bytes.len() as u64;
        encode_record(&record, &Position { offset, ..POSITION }, &mut bytes);
        // Frames full of what looks like records, which a search must not take for any.
        let mut content = b"CREC\x01\x01\x03\x00\x4c\0\0\0".iter().copied().cycle();
        bytes.resize_with((offset + record.total_length()) as usize, || content.next().unwrap());
        found.push(Found { offset, record, corrected: false });
    }
    bytes.resize(bytes.len() + spare, 0);
    (bytes, found)
}

#[test]
fn an_empty_segment_is_empty() {
    let scan = scan_bytes(vec![0; 300_000], 0..0);
    assert_eq!(scan, Scan { content_end: FIRST_RECORD, ..Scan::default() });
    assert_eq!(scan_bytes(Vec::new(), 0..0).found, []);
}

#[test]
fn a_newer_record_stops_everything() {
    let (mut bytes, _) = segment(&[10], 0);
    let at = FIRST_RECORD as usize;
    bytes[at + 4] = 2;
    let mut covered = [1; 36];
    covered[16..24].copy_from_slice(&1u64.to_le_bytes());
    covered[24..28].copy_from_slice(&2u32.to_le_bytes());
    covered[28..].copy_from_slice(&FIRST_RECORD.to_le_bytes());
    let checksum = crate::chunks::crc32c(&[&covered, &bytes[at..at + 72]].concat());
    bytes[at + 72..at + 76].copy_from_slice(&checksum.to_le_bytes());
    let memory = Memory { bytes: Mutex::new(bytes.clone()), unreadable: 0..0 };
    assert_eq!(scan(&memory, bytes.len() as u64, POSITION), Err(Newer { version: 2 }));
}

#[test]
fn a_place_that_cannot_be_read_costs_only_what_is_there() {
    let (bytes, found) = segment(&[9000, 9000, 9000, 100], 50_000);
    let second = found[1].offset;
    let scan = scan_bytes(bytes, second..second + 1);
    let rest: Vec<Found> = found.iter().filter(|found| found.offset != second).cloned().collect();
    assert_eq!(scan.found, rest);
    assert_eq!(scan.gaps, [Gap { range: second..found[2].offset, seems: None }]);
}

/// One wrong byte of a header costs nothing but trust.
#[test]
fn a_header_with_one_wrong_byte_is_found() {
    let (sound, found) = segment(&[9000, 100_000, 0, 70_000], 50_000);
    for (n, wrong) in [(0, 2), (1, 70), (1, 9), (3, 75)] {
        let mut bytes = sound.clone();
        bytes[found[n].offset as usize + wrong] ^= 0x10;
        let mut expected = found.clone();
        expected[n].corrected = true;
        let scan = scan_bytes(bytes, 0..0);
        assert_eq!((scan.found, scan.gaps), (expected, vec![]), "byte {wrong} of record {n}");
    }
}

fn lengths() -> impl Strategy<Value = Vec<u32>> {
    vec(prop_oneof![Just(0), 1u32..300, 1u32..200_000], 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_records_are_found(lengths in lengths(), spare in 0usize..100_000) {
        let (bytes, found) = segment(&lengths, spare);
        let scan = scan_bytes(bytes, 0..0);
        prop_assert_eq!(scan.content_end, found.last().unwrap().end());
        prop_assert_eq!(scan.found, found);
        prop_assert_eq!(scan.gaps, []);
    }

    #[test]
    fn damage_costs_only_the_records_it_hits(
        lengths in lengths(),
        spare in 0usize..1000,
        at: prop::sample::Index,
        damage in vec(1u8.., 1..2000),
    ) {
        let (mut bytes, found) = segment(&lengths, spare);
        let first = FIRST_RECORD as usize;
        let from = first + at.index(bytes.len() - first);
        let to = (from + damage.len()).min(bytes.len());
        bytes[from..to].iter_mut().zip(&damage).for_each(|(byte, flip)| *byte ^= flip);
        let hit = |found: &Found| {
            let header_end = found.offset + found.record.header_length();
            (found.offset as usize) < to && header_end as usize > from
        };
        let rest: Vec<Found> = found.iter().filter(|found| !hit(found)).cloned().collect();
        let scan = scan_bytes(bytes, 0..0);
        // If only one byte of a header was hit, it may have been corrected.
        let (corrected, sound): (Vec<Found>, Vec<Found>) = scan.found.into_iter().partition(|found| found.corrected);
        prop_assert_eq!(&sound, &rest);
        let is_corrected = |found: &&Found| corrected.contains(&Found { corrected: true, ..(*found).clone() });
        prop_assert_eq!(found.iter().filter(is_corrected).count(), corrected.len());
        for lost in found.iter().filter(|found| hit(found) && !is_corrected(found)) {
            prop_assert!(scan.gaps.iter().any(|gap| gap.range.contains(&lost.offset)), "{:?}", scan.gaps);
        }
    }

    #[test]
    fn a_cut_anywhere_leaves_what_is_before(lengths in lengths(), at: prop::sample::Index) {
        let (mut bytes, found) = segment(&lengths, 0);
        let cut = FIRST_RECORD as usize + at.index(bytes.len() - FIRST_RECORD as usize);
        bytes.truncate(cut);
        let rest: Vec<Found> = found.into_iter().filter(|found| found.end() <= cut as u64).collect();
        prop_assert_eq!(scan_bytes(bytes, 0..0).found, rest);
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..20_000)) {
        scan_bytes(bytes, 0..0);
    }
}
