//! Chunks and errors between nodes, to and from their wire form.

use bytes::{Buf, Bytes, BytesMut};
use cairn_placement::{ChunkId, Generation, VolumeId};
use cairn_proto::v1::{self as proto, ErrorCode};
use tonic_types::StatusExt;

use crate::chunks::{ChunkHeader, FRAME_BYTES, Scope, TAG_BYTES, Tombstone};

/// Bytes of a data message between nodes: 16 sealed frames.
pub const MESSAGE_BYTES: usize = 16 * (FRAME_BYTES + TAG_BYTES);
/// Longest gRPC message that nodes take from each other: an inventory page, or a data message.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// The catalogue's code that a status carries; without one, the nearest to its gRPC code.
pub fn code_of(status: &tonic::Status) -> ErrorCode {
    let info = status.get_details_error_info();
    info.and_then(|info| ErrorCode::from_str_name(&info.reason)).unwrap_or(match status.code() {
        tonic::Code::Unavailable => ErrorCode::Unavailable,
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => ErrorCode::DeadlineExceeded,
        tonic::Code::NotFound => ErrorCode::ChunkNotFound,
        tonic::Code::ResourceExhausted => ErrorCode::Overloaded,
        tonic::Code::DataLoss => ErrorCode::DataCorrupt,
        _ => ErrorCode::Internal,
    })
}

/// A header's wire form.
pub fn header_to_wire(header: &ChunkHeader) -> proto::ChunkHeader {
    proto::ChunkHeader {
        generation: Bytes::copy_from_slice(&header.id.generation.0),
        index: header.id.index,
        volume: header.volume.0,
        copies: u32::from(header.copies),
        plain_length: header.plain_length,
        frame_crc32c: header.frame_crcs.clone(),
    }
}

/// A header from the wire; the reason, if it cannot be one.
pub fn header_from_wire(header: proto::ChunkHeader) -> Result<ChunkHeader, String> {
    let parsed = ChunkHeader {
        id: chunk_id(&header.generation, header.index)?,
        volume: VolumeId(header.volume),
        copies: u8::try_from(header.copies).map_err(|_| format!("{} copies are too many", header.copies))?,
        plain_length: header.plain_length,
        frame_crcs: header.frame_crc32c,
    };
    parsed.validate().map_err(|error| error.to_string())?;
    Ok(parsed)
}

/// A chunk id from the wire.
pub fn chunk_id(generation: &[u8], index: u32) -> Result<ChunkId, String> {
    let generation = Generation::try_from(generation).map_err(|_| "a generation has 16 bytes".to_owned())?;
    Ok(ChunkId { generation, index })
}

/// Groups frames into data messages.
///
/// A single frame travels without being copied; several are joined, because a message is one run of bytes.
pub fn messages(frames: &[Bytes]) -> Vec<Bytes> {
    let per_message = MESSAGE_BYTES / (FRAME_BYTES + TAG_BYTES);
    let join = |group: &[Bytes]| match group {
        [one] => one.clone(),
        many => {
            let mut joined = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|frame| joined.extend_from_slice(frame));
            joined.freeze()
        }
    };
    frames.chunks(per_message).map(join).collect()
}

/// Cuts data messages of any size back into frames of known sizes.
pub struct FrameAssembler {
    sizes: std::vec::IntoIter<usize>,
    wanted: Option<usize>,
    partial: BytesMut,
    frames: Vec<Bytes>,
}

impl FrameAssembler {
    pub fn new(sizes: Vec<usize>) -> Self {
        let mut sizes = sizes.into_iter();
        let wanted = sizes.next();
        Self { sizes, wanted, partial: BytesMut::new(), frames: Vec::new() }
    }

    /// Takes a message; `false` if it holds more bytes than are wanted.
    pub fn push(&mut self, mut data: Bytes) -> bool {
        while !data.is_empty() {
            let Some(wanted) = self.wanted else { return false };
            let missing = wanted - self.partial.len();
            if data.len() < missing {
                self.partial.extend_from_slice(&data);
                return true;
            }
            let frame = if self.partial.is_empty() {
                data.split_to(missing)
            } else {
                self.partial.extend_from_slice(&data[..missing]);
                data.advance(missing);
                self.partial.split().freeze()
            };
            self.frames.push(frame);
            self.wanted = self.sizes.next();
        }
        true
    }

    /// The frames, if all of them came.
    pub fn finish(self) -> Option<Vec<Bytes>> {
        self.wanted.is_none().then_some(self.frames)
    }
}

/// A scope's form in requests: the greatest epoch, and since when tombstones are wanted.
pub fn scope_to_wire(scope: Scope) -> (Option<u32>, u32) {
    match scope {
        Scope::Whole { tombstones_since } => (None, tombstones_since),
        Scope::OnDisk { max_epoch } => (Some(max_epoch), 0),
    }
}

pub fn scope_from_wire(max_epoch: Option<u32>, tombstones_since: u32) -> Scope {
    max_epoch.map_or(Scope::Whole { tombstones_since }, |max_epoch| Scope::OnDisk { max_epoch })
}

/// A deletion's form in requests.
pub fn tombstone_to_wire(tombstone: &Tombstone) -> proto::BuriedChunk {
    let Tombstone { id, volume, copies, tick } = *tombstone;
    proto::BuriedChunk {
        generation: Bytes::copy_from_slice(&id.generation.0),
        index: id.index,
        volume: volume.0,
        copies: u32::from(copies),
        tick,
    }
}

pub fn tombstone_from_wire(chunk: &proto::BuriedChunk) -> Result<Tombstone, String> {
    Ok(Tombstone {
        id: chunk_id(&chunk.generation, chunk.index)?,
        volume: VolumeId(chunk.volume),
        copies: u8::try_from(chunk.copies).map_err(|_| "too many copies".to_owned())?,
        tick: chunk.tick,
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut(sizes in vec(1usize..50, 0..8), cuts in vec(1usize..70, 1..40)) {
            let total: usize = sizes.iter().sum();
            let content: Bytes = (0..total).map(|n| n as u8).collect::<Vec<_>>().into();
            let mut assembler = FrameAssembler::new(sizes.clone());
            let mut rest = content.clone();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let take = (*cut).min(rest.len());
                prop_assert!(assembler.push(rest.split_to(take)));
            }
            let frames = assembler.finish().unwrap();
            prop_assert_eq!(frames.iter().map(Bytes::len).collect::<Vec<_>>(), sizes);
            prop_assert_eq!(frames.concat(), content.to_vec());
        }
    }

    #[test]
    fn too_much_and_too_little_are_noticed() {
        let mut assembler = FrameAssembler::new(vec![3]);
        assert!(assembler.push(Bytes::from_static(b"ab")));
        assert!(!assembler.push(Bytes::from_static(b"cd")));
        assert!(FrameAssembler::new(vec![1]).finish().is_none());
    }
}
