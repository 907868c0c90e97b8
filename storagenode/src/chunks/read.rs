//! Reading records: only the frames asked for, each verified.

use std::{io, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use cairn_placement::ChunkId;

use super::{
    correct::correct_record,
    format::{Body, Position, Record, Sequence, decode_record, record_header_length},
    group::MARK_BYTES,
    header::{ChunkHeader, frame_count},
    index::{Entry, Place},
    segment::SegmentTable,
};
use crate::env::DiskFile;

/// Frames that begin this near to the header are read together with it.
const NEAR_BYTES: u64 = 65_536;

/// Why a record was not read.
#[derive(Debug, thiserror::Error)]
pub enum RecordFault {
    /// The bytes are wrong, or the disk cannot read them any more.
    #[error("{0}")]
    Corrupt(String),
    /// Something else, which says nothing about the bytes.
    #[error("{0}")]
    Disk(io::Error),
}

impl From<io::Error> for RecordFault {
    fn from(error: io::Error) -> Self {
        let lost = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
            || error.raw_os_error() == Some(libc::EIO);
        if lost { Self::Corrupt(error.to_string()) } else { Self::Disk(error) }
    }
}

fn corrupt(text: impl Into<String>) -> RecordFault {
    RecordFault::Corrupt(text.into())
}

/// Reads frames of a chunk (clamped), verified. Of a chunk that is known to be damaged one byte of the header may be wrong.
/// Blocks.
pub fn read_chunk(
    table: &SegmentTable,
    id: ChunkId,
    entry: &Entry,
    is_damaged: bool,
    frames: Range<u32>,
) -> Result<(Arc<ChunkHeader>, Vec<Bytes>), RecordFault> {
    let file = table.file(entry.place.slot)?;
    let position = table.position(entry.place);
    let header_length = record_header_length(entry.plain_length);
    let count = frame_count(entry.plain_length);
    let frames = frames.start.min(count)..frames.end.min(count).max(frames.start.min(count));

    let sealed_start = sealed_offset(entry.plain_length, frames.start);
    let near = sealed_start <= NEAR_BYTES;
    let length =
        if near { header_length + sealed_offset(entry.plain_length, frames.end) } else { header_length };
    let mut bytes = read_bytes(&*file, position.offset, length)?;
    let record = decode(&bytes.split_to(header_length as usize), &position, is_damaged)?;
    let header = header_of(record, id, entry)?;
    let range = header.sealed_range(frames.clone());
    let sealed = if near {
        bytes.slice(range.start as usize..)
    } else {
        read_bytes(&*file, position.offset + header_length + range.start, range.end - range.start)?
    };
    let first = frames.start;
    let frames = header.cut(frames, sealed);
    header.check_frames(first, &frames).map_err(|error| corrupt(error.to_string()))?;
    Ok((Arc::new(header), frames))
}

/// Where a frame begins among the sealed bytes; the end of all for the frame after the last.
fn sealed_offset(plain_length: u32, frame: u32) -> u64 {
    let plain = (u64::from(frame) * super::FRAME_BYTES as u64).min(u64::from(plain_length));
    plain + u64::from(frame) * super::TAG_BYTES as u64
}

/// Reads the header of a record that the index knows, and its sequence; of one that is known to be damaged, one byte of it may
/// be wrong. Blocks.
pub fn read_header(
    table: &SegmentTable,
    id: ChunkId,
    entry: &Entry,
    is_damaged: bool,
) -> Result<(ChunkHeader, Sequence), RecordFault> {
    let file = table.file(entry.place.slot)?;
    let position = table.position(entry.place);
    let bytes = read_bytes(&*file, position.offset, record_header_length(entry.plain_length))?;
    let record = decode(&bytes, &position, is_damaged)?;
    let sequence = record.sequence;
    Ok((header_of(record, id, entry)?, sequence))
}

/// Reads a record's frames, if it has any, and verifies them. Blocks.
pub fn verify_record(file: &dyn DiskFile, record: &Record, position: Position) -> Result<(), RecordFault> {
    let Body::Put(header) = &record.body else { return Ok(()) };
    verify_frames(file, header, position.offset + record.header_length())
}

fn verify_frames(file: &dyn DiskFile, header: &ChunkHeader, offset: u64) -> Result<(), RecordFault> {
    let sealed = read_bytes(file, offset, header.sealed_length())?;
    let frames = header.cut(0..header.frames(), sealed);
    header.check_frames(0, &frames).map_err(|error| corrupt(error.to_string()))
}

/// Reads a whole record from the device, not from the page cache, and verifies it. What is cached around it goes as well: where many are
/// read, their file is forgotten first, and then [`verify_chunk`] does. Blocks.
pub fn verify_on_device(table: &SegmentTable, id: ChunkId, entry: &Entry) -> Result<(), RecordFault> {
    let (file, offset) = (table.file(entry.place.slot)?, entry.place.offset());
    let sealed_bytes = sealed_offset(entry.plain_length, frame_count(entry.plain_length));
    file.forget_cached(offset, record_header_length(entry.plain_length) + sealed_bytes)?;
    verify_chunk(table, id, entry)
}

/// Reads a whole record, as it may be cached, and verifies it. Blocks.
pub fn verify_chunk(table: &SegmentTable, id: ChunkId, entry: &Entry) -> Result<(), RecordFault> {
    let file = table.file(entry.place.slot)?;
    let (header, _) = read_header(table, id, entry, false)?;
    verify_frames(&*file, &header, entry.place.offset() + record_header_length(entry.plain_length))
}

/// Reads records without content, all of one segment, and compares them. Blocks.
pub fn verify_bodies(table: &SegmentTable, bodies: &[(Place, Body)]) -> Result<(), RecordFault> {
    let Some((first, _)) = bodies.first() else { return Ok(()) };
    let file = table.file(first.slot)?;
    for (place, body) in bodies {
        let bytes = read_bytes(&*file, place.offset(), MARK_BYTES)?;
        if decode(&bytes, &table.position(*place), false)?.body != *body {
            return Err(corrupt("another record is in its place"));
        }
    }
    Ok(())
}

fn read_bytes(file: &dyn DiskFile, offset: u64, length: u64) -> io::Result<Bytes> {
    let mut bytes = BytesMut::zeroed(length as usize);
    file.read_at(&mut bytes, offset)?;
    Ok(bytes.freeze())
}

fn decode(bytes: &[u8], position: &Position, is_damaged: bool) -> Result<Record, RecordFault> {
    let record = match decode_record(bytes, position) {
        Err(_) if is_damaged => correct_record(bytes, position),
        record => record.ok(),
    };
    record.ok_or_else(|| corrupt("its header does not match its checksum"))
}

fn header_of(record: Record, id: ChunkId, entry: &Entry) -> Result<ChunkHeader, RecordFault> {
    match record.body {
        Body::Put(header) if header.id == id && header.plain_length == entry.plain_length => Ok(header),
        _ => Err(corrupt("another record is in its place")),
    }
}
