//! What a chunk looks like once it is sealed: a header, and frames of 64 KiB that are sealed one by one.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use cairn_placement::{ChunkId, MAX_COPIES, VolumeId};

use super::{FRAME_BYTES, MAX_PLAIN_BYTES, TAG_BYTES};

/// Everything about a chunk but its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHeader {
    pub id: ChunkId,
    pub volume: VolumeId,
    /// Copies the volume keeps of each chunk: the first so many members of the placement group have it.
    pub copies: u8,
    /// Length of the content before sealing.
    pub plain_length: u32,
    /// CRC-32C of each sealed frame, tag included.
    pub frame_crcs: Vec<u32>,
}

/// Why a chunk is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("a chunk holds between 1 and {MAX_PLAIN_BYTES} bytes, not {0}")]
    Length(u32),
    #[error("a chunk has between 1 and {MAX_COPIES} copies, not {0}")]
    Copies(u8),
    #[error("a chunk of {plain_length} bytes has {expected} frames; {given} checksums were given")]
    Checksums { plain_length: u32, expected: u32, given: usize },
    #[error("{given} frames were given instead of {expected}")]
    FrameCount { expected: u32, given: usize },
    #[error("frame {frame} has {given} bytes instead of {expected}")]
    FrameLength { frame: u32, expected: usize, given: usize },
    #[error("the bytes of frame {frame} do not match their checksum")]
    Checksum { frame: u32 },
}

/// Frames of a chunk with this many bytes of content.
pub fn frame_count(plain_length: u32) -> u32 {
    plain_length.div_ceil(FRAME_BYTES as u32)
}

/// Bytes of content in one frame; 0 if there is no such frame.
pub fn plain_frame_length(plain_length: u32, frame: u32) -> usize {
    let before = u64::from(frame) * FRAME_BYTES as u64;
    u64::from(plain_length).saturating_sub(before).min(FRAME_BYTES as u64) as usize
}

/// CRC-32C (Castagnoli).
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

impl ChunkHeader {
    /// Refuses a header that no honest sender makes. Everything else here takes a valid one.
    pub fn validate(&self) -> Result<(), ChunkError> {
        if self.plain_length == 0 || self.plain_length > MAX_PLAIN_BYTES {
            return Err(ChunkError::Length(self.plain_length));
        }
        if self.copies == 0 || usize::from(self.copies) > MAX_COPIES {
            return Err(ChunkError::Copies(self.copies));
        }
        if self.frame_crcs.len() != self.frames() as usize {
            return Err(ChunkError::Checksums {
                plain_length: self.plain_length,
                expected: self.frames(),
                given: self.frame_crcs.len(),
            });
        }
        Ok(())
    }

    /// How many frames.
    pub fn frames(&self) -> u32 {
        frame_count(self.plain_length)
    }

    /// Bytes of all sealed frames.
    pub fn sealed_length(&self) -> u64 {
        u64::from(self.plain_length) + u64::from(self.frames()) * TAG_BYTES as u64
    }

    /// Bytes of one sealed frame; 0 if there is no such frame.
    pub fn sealed_frame_length(&self, frame: u32) -> usize {
        match plain_frame_length(self.plain_length, frame) {
            0 => 0,
            plain => plain + TAG_BYTES,
        }
    }

    /// The part of `frames` that exists.
    pub fn clamp(&self, frames: Range<u32>) -> Range<u32> {
        let end = frames.end.min(self.frames());
        frames.start.min(end)..end
    }

    /// Where frames lie among the sealed bytes (clamped).
    pub fn sealed_range(&self, frames: Range<u32>) -> Range<u64> {
        let frames = self.clamp(frames);
        let sealed_frame = (FRAME_BYTES + TAG_BYTES) as u64;
        let at = |frame: u32| (u64::from(frame) * sealed_frame).min(self.sealed_length());
        at(frames.start)..at(frames.end)
    }

    /// The frames that hold content from `offset`, `length` bytes long (clamped).
    pub fn frames_of(&self, offset: u32, length: u32) -> Range<u32> {
        let end = u64::from(offset) + u64::from(length);
        self.clamp(offset / FRAME_BYTES as u32..end.div_ceil(FRAME_BYTES as u64) as u32)
    }

    /// Cuts sealed bytes, which begin with frame `first`, into frames without copying.
    pub(super) fn cut(&self, frames: Range<u32>, mut sealed: Bytes) -> Vec<Bytes> {
        frames.map(|frame| sealed.split_to(self.sealed_frame_length(frame))).collect()
    }

    /// The first of these frames, which begin with frame `first`, that is not what the header says.
    pub fn check_frames(&self, first: u32, frames: &[Bytes]) -> Result<(), ChunkError> {
        for (frame, bytes) in (first..).zip(frames) {
            let expected = self.sealed_frame_length(frame);
            if bytes.len() != expected || expected == 0 {
                return Err(ChunkError::FrameLength { frame, expected, given: bytes.len() });
            }
            if crc32c(bytes) != self.frame_crcs[frame as usize] {
                return Err(ChunkError::Checksum { frame });
            }
        }
        Ok(())
    }
}

/// A whole chunk, sealed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SealedChunk {
    pub header: Arc<ChunkHeader>,
    /// Each one a sealed frame: ciphertext, then tag.
    pub frames: Vec<Bytes>,
}

impl SealedChunk {
    /// The header is valid, every frame is there, and each matches its checksum.
    pub fn verify_checksums(&self) -> Result<(), ChunkError> {
        self.header.validate()?;
        if self.frames.len() != self.header.frames() as usize {
            return Err(ChunkError::FrameCount { expected: self.header.frames(), given: self.frames.len() });
        }
        self.header.check_frames(0, &self.frames)
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::Generation;
    use proptest::prelude::*;

    use super::*;

    fn header(plain_length: u32) -> ChunkHeader {
        ChunkHeader {
            id: ChunkId { generation: Generation([1; 16]), index: 0 },
            volume: VolumeId(1),
            copies: 3,
            plain_length,
            frame_crcs: vec![0; frame_count(plain_length) as usize],
        }
    }

    #[test]
    fn crc_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(header(0).validate(), Err(ChunkError::Length(0)));
        assert_eq!(header(MAX_PLAIN_BYTES + 1).validate(), Err(ChunkError::Length(MAX_PLAIN_BYTES + 1)));
        assert!(ChunkHeader { copies: 0, ..header(1) }.validate().is_err());
        assert!(ChunkHeader { copies: 8, ..header(1) }.validate().is_err());
        assert!(ChunkHeader { frame_crcs: vec![], ..header(1) }.validate().is_err());
        assert!(header(MAX_PLAIN_BYTES).validate().is_ok());
    }

    proptest! {
        #[test]
        fn frames_cover_the_chunk(plain_length in 1u32..=MAX_PLAIN_BYTES, from: u32, to: u32) {
            let header = header(plain_length);
            let lengths: Vec<u64> =
                (0..header.frames()).map(|frame| header.sealed_frame_length(frame) as u64).collect();
            prop_assert!(lengths.iter().all(|length| *length > TAG_BYTES as u64));
            prop_assert_eq!(lengths.iter().sum::<u64>(), header.sealed_length());
            prop_assert_eq!(header.sealed_frame_length(header.frames()), 0);
            let range = header.clamp(from..to);
            let bytes = header.sealed_range(from..to);
            let expected: u64 = lengths[range.start as usize..range.end as usize].iter().sum();
            prop_assert_eq!(bytes.end - bytes.start, expected);
        }
    }
}
