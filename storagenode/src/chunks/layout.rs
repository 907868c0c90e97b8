//! A group's records, laid out to be written at once.

use std::io::{self, IoSlice};

use bytes::Bytes;

use super::{
    format::{Body, Position, Record, SegmentId, Sequence, encode_record},
    hint::{Line, Lines},
    identity::Identity,
};
use crate::env::DiskFile;

/// Bytes that belong at one place of one segment.
pub struct Layout {
    pub start: u64,
    pub end: u64,
    /// Where in its segment a record is, but for the offset.
    position: Position,
    boot: u64,
    headers: Vec<u8>,
    /// For each record: its header's end among `headers`, its frames, and the padding after them.
    records: Vec<(usize, Vec<Bytes>, usize)>,
    /// For the segment's hint.
    pub lines: Lines,
}

impl Layout {
    /// Nothing yet, at `start` of `segment`: all before it is durable.
    pub fn new(identity: &Identity, segment: SegmentId, start: u64) -> Self {
        let position = Position { incarnation: identity.incarnation, segment, offset: start };
        Self {
            start,
            end: start,
            position,
            boot: identity.boot,
            headers: Vec::new(),
            records: Vec::new(),
            lines: Lines::default(),
        }
    }

    /// Adds a record, this boot's `number`th, and gives its offset in the segment.
    pub fn append(&mut self, number: u64, body: Body, frames: Vec<Bytes>) -> u64 {
        self.append_as(Sequence { boot: self.boot, number }, body, frames)
    }

    /// Adds a record that keeps the sequence it was first written with.
    pub fn append_as(&mut self, sequence: Sequence, body: Body, frames: Vec<Bytes>) -> u64 {
        let position = Position { offset: self.end, ..self.position };
        let record = Record { sequence, durable_end: self.start, body };
        encode_record(&record, &position, &mut self.headers);
        self.lines.push(&Line { offset: self.end, sequence, brief: record.body.brief() });
        let content = record.header_length() + frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        self.end += record.total_length();
        let padding = record.total_length() - content;
        self.records.push((self.headers.len(), frames, padding as usize));
        position.offset
    }

    pub fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        const ZEROS: [u8; 8] = [0; 8];
        let mut parts = Vec::with_capacity(self.records.iter().map(|(_, frames, _)| frames.len() + 2).sum());
        let mut from = 0;
        for (to, frames, padding) in &self.records {
            parts.push(IoSlice::new(&self.headers[from..*to]));
            parts.extend(frames.iter().map(|frame| IoSlice::new(frame)));
            parts.push(IoSlice::new(&ZEROS[..*padding]));
            from = *to;
        }
        file.write_at(&parts, self.start)
    }
}
