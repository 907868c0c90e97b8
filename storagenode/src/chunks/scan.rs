//! Reading through one segment: its records in order, and what lies between them.
//!
//! A bad place does not end the scan: the next record is looked for, eight bytes by eight bytes. A record's checksum covers its
//! place, so nothing else is taken for one.

use std::{io, ops::Range};

use cairn_placement::ChunkId;

use super::{
    correct::correct_record,
    format::{MAX_RECORD_HEADER_BYTES, Position, RECORD_ALIGNMENT, Record, RecordError, decode_record},
    segment::FIRST_RECORD,
};
use crate::env::DiskFile;

/// Read at once when records are short, so that many are got with one call.
const READ_AHEAD_BYTES: u64 = 65_536;
/// Read at once when the last record was longer than that: a header is all that is wanted.
const HEADER_READ_BYTES: u64 = 8_192;
/// What is skipped when the disk cannot read a place.
const UNREADABLE_BYTES: u64 = 4_096;

/// One record and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub offset: u64,
    pub record: Record,
    /// One byte of its header is wrong on the disk.
    pub corrected: bool,
}

impl Found {
    pub fn end(&self) -> u64 {
        self.offset + self.record.total_length()
    }
}

/// Bytes that are no record although something was written there, or records follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub range: Range<u64>,
    /// The chunk whose damaged header seems to be at the gap's start.
    pub seems: Option<ChunkId>,
}

/// All of one segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    pub found: Vec<Found>,
    pub gaps: Vec<Gap>,
    /// Only zeros follow.
    pub content_end: u64,
}

/// An intact record of a kind that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newer {
    pub version: u8,
}

/// Reads the segment through. `position.offset` is ignored.
pub fn scan(file: &dyn DiskFile, size: u64, position: Position) -> Result<Scan, Newer> {
    let mut scanner =
        Scanner { file, size, position, window: Window { start: 0, bytes: Vec::new() }, nonzero_end: 0 };
    let mut scan = Scan { content_end: FIRST_RECORD, ..Scan::default() };
    let mut at = FIRST_RECORD;
    let mut ahead = READ_AHEAD_BYTES;
    while at < size {
        let found = match scanner.record_at(at, ahead) {
            Err(error @ (RecordError::Damaged { .. } | RecordError::Nothing)) => scanner
                .corrected_at(at)
                .map(|record| Found { offset: at, record, corrected: true })
                .ok_or(error),
            record => record.map(|record| Found { offset: at, record, corrected: false }),
        };
        match found {
            Ok(found) => {
                ahead = if found.record.total_length() > READ_AHEAD_BYTES {
                    HEADER_READ_BYTES
                } else {
                    READ_AHEAD_BYTES
                };
                at = found.end();
                scan.content_end = at;
                scan.found.push(found);
            }
            Err(RecordError::Newer { version, .. }) => return Err(Newer { version }),
            Err(error) => {
                let seems = match error {
                    RecordError::Damaged { seems } => Some(seems),
                    _ => None,
                };
                let next = scanner.next_record(at + RECORD_ALIGNMENT)?;
                let end = next.unwrap_or(scanner.nonzero_end.next_multiple_of(RECORD_ALIGNMENT).min(size));
                if end > at {
                    scan.gaps.push(Gap { range: at..end, seems });
                    scan.content_end = end;
                }
                ahead = READ_AHEAD_BYTES;
                at = next.unwrap_or(size);
            }
        }
    }
    Ok(scan)
}

struct Scanner<'a> {
    file: &'a dyn DiskFile,
    size: u64,
    position: Position,
    window: Window,
    /// Where the last byte that is not zero ends, as far as was searched.
    nonzero_end: u64,
}

struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn fill(&mut self, file: &dyn DiskFile, start: u64, end: u64) -> io::Result<()> {
        self.start = start;
        self.bytes.resize((end - start) as usize, 0);
        file.read_at(&mut self.bytes, start).inspect_err(|_| self.bytes.clear())
    }
}

impl Scanner<'_> {
    /// Up to `length` bytes at `at`, fewer at the end of the file; reads `ahead` bytes if it must read.
    fn bytes(&mut self, at: u64, length: u64, ahead: u64) -> io::Result<&[u8]> {
        let end = (at + length).min(self.size);
        let window = &mut self.window;
        if at < window.start || end > window.start + window.bytes.len() as u64 {
            // What was not asked for may be what cannot be read.
            let further = (at + ahead.max(length)).min(self.size);
            if let Err(error) = window.fill(self.file, at, further)
                && (further == end || window.fill(self.file, at, end).is_err())
            {
                return Err(error);
            }
        }
        let from = (at - window.start) as usize;
        Ok(&window.bytes[from..from + (end - at) as usize])
    }

    fn record_at(&mut self, at: u64, ahead: u64) -> Result<Record, RecordError> {
        let position = Position { offset: at, ..self.position };
        let mut length = 512;
        loop {
            let Ok(bytes) = self.bytes(at, length, ahead) else { return Err(RecordError::Nothing) };
            let given = bytes.len();
            match decode_record(bytes, &position) {
                Err(RecordError::Incomplete { needed }) if needed > given && given as u64 == length => {
                    length = needed.min(MAX_RECORD_HEADER_BYTES) as u64;
                }
                Err(RecordError::Incomplete { .. }) => return Err(RecordError::Nothing),
                Ok(record) if at + record.total_length() > self.size => return Err(RecordError::Nothing),
                result => return result,
            }
        }
    }

    fn correctable_at(&mut self, at: u64) -> Option<Record> {
        let position = Position { offset: at, ..self.position };
        correct_record(self.bytes(at, MAX_RECORD_HEADER_BYTES as u64, 0).ok()?, &position)
    }

    /// The record there, if one wrong byte of its header is all that is wrong, and it ends where another one begins, or where
    /// nothing follows.
    fn corrected_at(&mut self, at: u64) -> Option<Record> {
        let record = self.correctable_at(at)?;
        let end = at + record.total_length();
        let fits = end == self.size
            || end < self.size
                && (self.record_at(end, HEADER_READ_BYTES).is_ok()
                    || self.correctable_at(end).is_some()
                    || self
                        .bytes(end, UNREADABLE_BYTES, 0)
                        .is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0)));
        fits.then_some(record)
    }

    /// The next place with a record; notes on the way what is not zero.
    fn next_record(&mut self, from: u64) -> Result<Option<u64>, Newer> {
        // The place before was no record: at least its first bytes must be looked at.
        let mut at = from - RECORD_ALIGNMENT;
        let mut first = true;
        while at < self.size {
            // Up to the next whole block, if more cannot be read.
            let block = (at + 1).next_multiple_of(UNREADABLE_BYTES) - at;
            let length = if self.bytes(at, READ_AHEAD_BYTES, 0).is_ok() { READ_AHEAD_BYTES } else { block };
            let Ok(bytes) = self.bytes(at, length, 0) else {
                at = (at + 1).next_multiple_of(UNREADABLE_BYTES);
                first = false;
                self.nonzero_end = at.min(self.size);
                continue;
            };
            let length = bytes.len() as u64;
            let mut nonzero_end = None;
            let mut candidates = Vec::new();
            for (n, word) in bytes.chunks(RECORD_ALIGNMENT as usize).enumerate() {
                let zero = match word.try_into() {
                    Ok(word) => u64::from_ne_bytes(word) == 0,
                    Err(_) => word.iter().all(|byte| *byte == 0),
                };
                if !zero {
                    nonzero_end = Some(at + (n + 1) as u64 * RECORD_ALIGNMENT);
                    if word.starts_with(b"CREC") && !(first && n == 0) {
                        candidates.push(at + n as u64 * RECORD_ALIGNMENT);
                    }
                }
            }
            for candidate in candidates {
                match self.record_at(candidate, READ_AHEAD_BYTES) {
                    Ok(_) => return Ok(Some(candidate)),
                    Err(RecordError::Newer { version, .. }) => return Err(Newer { version }),
                    Err(_) => {}
                }
            }
            self.nonzero_end = nonzero_end.unwrap_or(self.nonzero_end);
            first = false;
            at += length;
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
