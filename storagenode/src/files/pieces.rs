//! The pieces that a download asks holders for.

use std::ops::Range;

use cairn_placement::ChunkId;

use super::damage::Spot;
use crate::{
    chunks::FRAME_BYTES,
    meta::keys::file::{Extent, FileRecord},
};

/// Frames of one piece at most: what one request to a holder asks for.
pub(super) const PIECE_FRAMES: usize = 16;

/// Part of one chunk that a download wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of its extent in the file's record.
    pub extent: usize,
    pub id: ChunkId,
    /// Content bytes of the whole chunk.
    pub plain_length: u32,
    pub frames: Range<u32>,
    /// Bytes wanted, counted from the first byte of the first frame.
    pub wanted: Range<usize>,
}

/// The pieces, in order, that cover a range of a file. Made one by one: a large file has many.
pub(super) struct Pieces {
    extents: Vec<Extent>,
    /// Where each extent begins in the file.
    starts: Vec<u64>,
    chunk_bytes: u64,
    left: Range<u64>,
}

impl Pieces {
    pub(super) fn new(record: &FileRecord, bytes: Range<u64>) -> Self {
        let extents: Vec<_> = record.extents.clone();
        let mut starts = Vec::with_capacity(extents.len());
        let mut total = 0;
        for extent in &extents {
            starts.push(total);
            total += extent.length_bytes;
        }
        Self { extents, starts, chunk_bytes: u64::from(record.chunk_size_bytes), left: bytes }
    }

    pub(super) fn bytes_left(&self) -> u64 {
        self.left.end.saturating_sub(self.left.start)
    }

    /// The next one has been seen to.
    pub(super) fn pass(&mut self, piece: &Piece) {
        self.left.start += piece.wanted.len() as u64;
    }

    /// The next one, of so many frames at most.
    pub(super) fn peek(&self, most_frames: usize) -> Option<Piece> {
        let position = self.left.start;
        if position >= self.left.end {
            return None;
        }
        let number = self.starts.partition_point(|start| *start <= position) - 1;
        // Extents of no length share their start with the next; the last of them is the one with content.
        let extent = &self.extents[number];
        let within = position - self.starts[number];
        let index = within / self.chunk_bytes;
        let chunk_start = index * self.chunk_bytes;
        let plain_length = (extent.length_bytes - chunk_start).min(self.chunk_bytes);
        let offset = within - chunk_start;
        let frame_start = offset / FRAME_BYTES as u64 * FRAME_BYTES as u64;
        let chunk_end = self.starts[number] + chunk_start + plain_length;
        let piece_bytes = (most_frames.clamp(1, PIECE_FRAMES) * FRAME_BYTES) as u64;
        let end = self.left.end.min(chunk_end).min(position - offset + frame_start + piece_bytes);
        let last = offset + (end - position);
        Some(Piece {
            extent: number,
            id: ChunkId { generation: extent.generation, index: index as u32 },
            plain_length: plain_length as u32,
            frames: (frame_start / FRAME_BYTES as u64) as u32..last.div_ceil(FRAME_BYTES as u64) as u32,
            wanted: (offset - frame_start) as usize..(last - frame_start) as usize,
        })
    }
}

/// As large as they may be.
impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let piece = self.peek(PIECE_FRAMES)?;
        self.pass(&piece);
        Some(piece)
    }
}

/// The bytes of a spot, in an extent of this length.
pub(super) fn bytes_of(spot: &Spot, length_bytes: u64, chunk_size_bytes: u32) -> Range<u64> {
    let chunk_start = u64::from(spot.id.index) * u64::from(chunk_size_bytes);
    let chunk_end = (chunk_start + u64::from(chunk_size_bytes)).min(length_bytes);
    let at = |frame: u32| (chunk_start + u64::from(frame) * FRAME_BYTES as u64).min(chunk_end);
    at(spot.frames.start)..at(spot.frames.end)
}

#[cfg(test)]
mod tests {
    use cairn_placement::Generation;
    use proptest::prelude::*;

    use super::*;

    fn record(lengths: &[u64], chunk_size_bytes: u32) -> FileRecord {
        let extent = |(n, length_bytes): (usize, &u64)| Extent {
            generation: Generation([n as u8; 16]),
            length_bytes: *length_bytes,
        };
        FileRecord {
            chunk_size_bytes,
            copies: 3,
            blake3: [0; 32],
            modified_unix_ms: 0,
            content_type: String::new(),
            extents: lengths.iter().enumerate().map(extent).collect(),
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_exactly_the_range(
            lengths in prop::collection::vec(0u64..5_000_000, 1..4), units in 1u32..70, from: u64, count: u64,
            most in prop::collection::vec(0usize..20, 1..5),
        ) {
            let record = record(&lengths, units * FRAME_BYTES as u32);
            let size = record.size_bytes();
            prop_assume!(size > 0);
            let from = from % size;
            let to = from + 1 + count % (size - from);
            let mut at = from;
            let (mut pieces, mut most) = (Pieces::new(&record, from..to), most.into_iter().cycle());
            while let Some(piece) = pieces.peek(most.next().unwrap()) {
                pieces.pass(&piece);
                let extent = piece.extent;
                let start: u64 = lengths[..extent].iter().sum();
                let chunk_start = start + u64::from(piece.id.index) * u64::from(record.chunk_size_bytes);
                let first = chunk_start + u64::from(piece.frames.start) * FRAME_BYTES as u64;
                prop_assert_eq!(first + piece.wanted.start as u64, at);
                prop_assert!(piece.wanted.start < FRAME_BYTES);
                prop_assert!(piece.frames.len() <= PIECE_FRAMES && !piece.frames.is_empty());
                prop_assert!(u64::from(piece.frames.end - 1) * (FRAME_BYTES as u64) < u64::from(piece.plain_length));
                prop_assert_eq!(piece.id.generation, record.extents[extent].generation);
                at += piece.wanted.len() as u64;
            }
            prop_assert_eq!(at, to);
        }
    }

    proptest! {
        #[test]
        fn the_bytes_of_a_spot_are_those_of_its_piece(
            length in 1u64..9_000_000, units in 1u32..70, from: u64, count: u64,
        ) {
            let record = record(&[length], units * FRAME_BYTES as u32);
            let from = from % length;
            let to = from + 1 + count % (length - from);
            let mut at = from;
            for piece in Pieces::new(&record, from..to) {
                let spot = Spot { id: piece.id, frames: piece.frames.clone() };
                let bytes = bytes_of(&spot, length, record.chunk_size_bytes);
                prop_assert_eq!(bytes.start + piece.wanted.start as u64, at);
                at += piece.wanted.len() as u64;
                prop_assert!(at <= bytes.end && bytes.end <= length);
                let again: Vec<_> = Pieces::new(&record, bytes).map(|piece| (piece.id, piece.frames)).collect();
                prop_assert_eq!(again, [(spot.id, spot.frames)]);
            }
        }
    }
}
