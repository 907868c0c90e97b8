//! Record headers of which one byte is wrong.
//!
//! A header is a small part of its record, but without it the frames cannot be checked, and the chunk is lost. Its checksum is
//! linear: a wrong byte changes it by something that depends on nothing but the byte's place and the flipped bits. So the one
//! byte that explains a checksum that does not fit can be computed. Two explanations are none.

use super::format::{
    Body, Position, RECORD_ALIGNMENT, Record, checksum, decode_record, record_header_length,
};

const MAGIC: &[u8; 4] = b"CREC";
/// Where a header says how long it is, and how long its chunk is.
const LENGTH_AT: usize = 8;
const PLAIN_LENGTH_AT: usize = 64;
const CHECKSUM_BYTES: usize = 4;
/// CRC-32C, bit by bit, for each byte.
const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// The chunk's record whose header, with one wrong byte, is at the start of `bytes`.
pub fn correct_record(bytes: &[u8], position: &Position) -> Option<Record> {
    let right = bytes.iter().zip(MAGIC).filter(|(byte, magic)| byte == magic).count();
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if right + 1 < MAGIC.len() || !position.offset.is_multiple_of(RECORD_ALIGNMENT) {
        return None;
    }
    // One of the two may be what is wrong.
    let stated = number(LENGTH_AT)? as usize;
    let derived = record_header_length(number(PLAIN_LENGTH_AT)?) as usize;
    let lengths = [Some(stated), Some(derived).filter(|derived| *derived != stated)];
    lengths.into_iter().flatten().find_map(|length| correct(bytes.get(..length)?, position))
}

fn correct(header: &[u8], position: &Position) -> Option<Record> {
    let end = header.len().checked_sub(CHECKSUM_BYTES)?;
    let stored = u32::from_le_bytes(header[end..].try_into().ok()?);
    let difference = checksum(position, &header[..end]) ^ stored;
    let mut patched = header.to_vec();
    let mut record_with = |at: usize, flip: u8| {
        patched[at] ^= flip;
        let record = decode_record(&patched, position).ok();
        patched[at] ^= flip;
        record.filter(|record| matches!(record.body, Body::Put(_)))
    };
    let mut found = None;
    let in_checksum = difference.to_le_bytes();
    if in_checksum.iter().filter(|byte| **byte != 0).count() == 1 {
        let at = in_checksum.iter().position(|byte| *byte != 0)?;
        found = record_with(end + at, in_checksum[at]);
    }
    // What each bit of a byte changes, if so many bytes follow it.
    let mut changes: [u32; 8] = std::array::from_fn(|bit| TABLE[1 << bit]);
    for at in (0..end).rev() {
        if let Some(record) = flip_for(&changes, difference).and_then(|flip| record_with(at, flip))
            && found.replace(record).is_some()
        {
            return None;
        }
        changes = changes.map(|change| (change >> 8) ^ TABLE[change as usize & 0xff]);
    }
    found
}

/// The bits that make this difference together.
fn flip_for(changes: &[u32; 8], difference: u32) -> Option<u8> {
    let (mut flip, mut sum) = (0u8, 0);
    // In Gray's order, where one bit changes from each to the next.
    (1..=u8::MAX).find_map(|n| {
        let bit = n.trailing_zeros();
        flip ^= 1 << bit;
        sum ^= changes[bit as usize];
        (sum == difference).then_some(flip)
    })
}

#[cfg(test)]
mod tests {
    use cairn_placement::{ChunkId, Generation, Incarnation, VolumeId};
    use proptest::prelude::*;

    use super::*;
    use crate::chunks::{
        ChunkHeader, MAX_PLAIN_BYTES,
        format::{MAX_RECORD_HEADER_BYTES, SegmentId, Sequence, Tombstone, encode_record},
        header::frame_count,
    };

    const POSITION: Position = Position {
        incarnation: Incarnation([7; 16]),
        segment: SegmentId { boot: 3, number: 4 },
        offset: 4096,
    };

    fn record(plain_length: u32, seed: u32) -> Record {
        let id = ChunkId { generation: Generation([seed as u8; 16]), index: seed };
        let frame_crcs = (0..frame_count(plain_length)).map(|n| n.wrapping_mul(seed) ^ 0xdead_beef).collect();
        let header = ChunkHeader { id, volume: VolumeId(seed), copies: 3, plain_length, frame_crcs };
        let sequence = Sequence { boot: 3, number: u64::from(seed) };
        Record { sequence, durable_end: 4096, body: Body::Put(header) }
    }

    fn encoded(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_record(record, &POSITION, &mut bytes);
        bytes
    }

    #[test]
    fn any_one_byte_of_a_header_is_corrected() {
        let record = record(200_000, 5);
        let sound = encoded(&record);
        for at in 0..sound.len() {
            for flip in [1, 0x80, 0x5a, 0xff] {
                let mut bytes = sound.clone();
                bytes[at] ^= flip;
                // As it lies on the disk: frames follow.
                bytes.resize(MAX_RECORD_HEADER_BYTES, 0xab);
                assert_eq!(
                    correct_record(&bytes, &POSITION).as_ref(),
                    Some(&record),
                    "byte {at} by {flip:#x}"
                );
            }
        }
    }

    #[test]
    fn the_longest_header_takes_no_time() {
        let record = record(MAX_PLAIN_BYTES, 9);
        let mut bytes = encoded(&record);
        assert_eq!(bytes.len(), MAX_RECORD_HEADER_BYTES);
        bytes[100] ^= 0x11;
        let begun = std::time::Instant::now();
        assert_eq!(correct_record(&bytes, &POSITION), Some(record));
        assert!(begun.elapsed().as_millis() < 500, "{:?}", begun.elapsed());
    }

    #[test]
    fn nothing_but_chunks_is_corrected_and_nothing_of_another_place() {
        let id = ChunkId { generation: Generation([1; 16]), index: 0 };
        let tombstone = Tombstone { id, volume: VolumeId(1), copies: 3, tick: 5 };
        let mut bytes = encoded(&Record { body: Body::Tombstone(tombstone), ..record(1, 1) });
        bytes[50] ^= 1;
        assert_eq!(correct_record(&bytes, &POSITION), None);
        let mut bytes = encoded(&record(1, 1));
        bytes[50] ^= 1;
        assert_eq!(correct_record(&bytes, &Position { offset: 8192, ..POSITION }), None);
    }

    proptest! {
        #[test]
        fn garbage_is_not_corrected(mut bytes in prop::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
            if magic && bytes.len() > 12 {
                bytes[..4].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&[76, 0, 0, 0]);
            }
            prop_assert_eq!(correct_record(&bytes, &POSITION), None);
        }

        #[test]
        fn two_wrong_bytes_are_not_one(plain_length in 1u32..2_000_000, a: prop::sample::Index, b: prop::sample::Index, flip in 1u8..) {
            let mut bytes = encoded(&record(plain_length, 3));
            let (a, b) = (a.index(bytes.len()), b.index(bytes.len()));
            prop_assume!(a != b);
            bytes[a] ^= flip;
            bytes[b] ^= 0x21;
            prop_assert_eq!(correct_record(&bytes, &POSITION), None);
        }
    }
}
