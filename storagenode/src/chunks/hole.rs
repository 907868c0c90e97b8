//! Space given back inside segments.

use super::{TAG_BYTES, format::record_header_length, header::frame_count, index::Entry};

/// Holes are punched in units of this.
const PAGE_BYTES: u64 = 4096;

/// Content that nobody needs any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    pub slot: u32,
    pub offset: u64,
    pub length: u64,
}

/// The whole pages inside a chunk's frames.
pub fn hole(entry: &Entry) -> Option<Hole> {
    let header_length = record_header_length(entry.plain_length);
    let frames = u64::from(frame_count(entry.plain_length));
    let start = entry.place.offset() + header_length;
    let end = start + u64::from(entry.plain_length) + frames * TAG_BYTES as u64;
    let (start, end) = (start.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
    (start < end).then(|| Hole { slot: entry.place.slot, offset: start, length: end - start })
}
