//! Bytes of segment files: a header page, then records (R8, R20). Layouts are in `docs/formats.md`.
//!
//! A record's checksum also covers where it is (disk, segment, offset), so that bytes that ended up somewhere else, or are
//! left from another life of the file, are no records.

use std::{cmp::Ordering, fmt};

use cairn_placement::{ChunkId, Generation, Incarnation, VolumeId};

use super::{
    MAX_PLAIN_BYTES,
    header::{ChunkHeader, frame_count},
};

pub use v1::{BRIEF_BYTES, decode_brief, encode_brief, kind_and_copies};
pub use v1::{
    MAX_RECORD_HEADER_BYTES, RECORD_ALIGNMENT, SEGMENT_HEADER_BYTES, checksum, decode_record, encode_record,
};
pub use v1::{SegmentHeader, decode_segment_header, encode_segment_header};

/// Names a segment: the boot of the store that wrote it, and a number within that boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    pub boot: u64,
    pub number: u32,
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}.seg", self.boot, self.number)
    }
}

impl SegmentId {
    /// The segment whose file has this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let (boot, number) = name.strip_suffix(".seg")?.split_once('-')?;
        let id =
            Self { boot: u64::from_str_radix(boot, 16).ok()?, number: u32::from_str_radix(number, 16).ok()? };
        (id.to_string() == name).then_some(id)
    }

    /// Of its hint.
    pub fn hint_name(self) -> String {
        let Self { boot, number } = self;
        format!("{boot:016x}-{number:08x}.hint")
    }

    /// The segment whose hint has this name.
    pub fn from_hint_name(name: &str) -> Option<Self> {
        Self::from_name(&format!("{}.seg", name.strip_suffix(".hint")?))
    }
}

/// Order of all records of one disk: the boot that first wrote them, then a number within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence {
    pub boot: u64,
    pub number: u64,
}

/// A chunk's deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tombstone {
    pub id: ChunkId,
    pub volume: VolumeId,
    /// As in the chunk's header: inventories are per placement group and number of copies.
    pub copies: u8,
    /// When it was made, in the coordinator's minutes; 0 if that is not known, and then it is as old as can be.
    pub tick: u32,
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub incarnation: Incarnation,
    pub segment: SegmentId,
    pub offset: u64,
}

/// How far the metadata store had come when a group was written (R10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sighting {
    /// The coordinator's count of minutes.
    pub tick: u64,
    /// The highest revision seen during that minute. It may go back from one tick to another: when a restored store was
    /// accepted, its ticks go on above all that were seen, its revisions do not.
    pub revision: u64,
    pub map_generation: u64,
    pub epoch: u32,
}

impl Sighting {
    /// The furthest of two.
    pub fn furthest(self, other: Self) -> Self {
        let revision = match self.tick.cmp(&other.tick) {
            Ordering::Less => other.revision,
            Ordering::Equal => self.revision.max(other.revision),
            Ordering::Greater => self.revision,
        };
        Self {
            tick: self.tick.max(other.tick),
            revision,
            map_generation: self.map_generation.max(other.map_generation),
            epoch: self.epoch.max(other.epoch),
        }
    }

    /// Whether a store that was seen so far cannot have come to be `now`, if `accepted` is the tick at which a restored
    /// store was last accepted.
    pub fn is_ahead_of(&self, now: &Self, accepted: u64) -> bool {
        let revision = self.revision > now.revision && accepted <= self.tick;
        revision || self.tick > now.tick || self.map_generation > now.map_generation || self.epoch > now.epoch
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A chunk; its sealed frames follow the record's header.
    Put(ChunkHeader),
    Tombstone(Tombstone),
    /// All of `segment` up to `end` is durable, and nothing after it was acknowledged.
    Mark {
        segment: SegmentId,
        end: u64,
    },
    Sighting(Sighting),
}

/// What a start needs to know of a record: all that it says, but for the checksums of a chunk's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brief {
    Put { id: ChunkId, volume: VolumeId, copies: u8, plain_length: u32 },
    Tombstone(Tombstone),
    Mark { segment: SegmentId, end: u64 },
    Sighting(Sighting),
}

impl Body {
    pub fn brief(&self) -> Brief {
        match self {
            Self::Put(ChunkHeader { id, volume, copies, plain_length, .. }) => {
                Brief::Put { id: *id, volume: *volume, copies: *copies, plain_length: *plain_length }
            }
            Self::Tombstone(tombstone) => Brief::Tombstone(*tombstone),
            Self::Mark { segment, end } => Brief::Mark { segment: *segment, end: *end },
            Self::Sighting(sighting) => Brief::Sighting(*sighting),
        }
    }
}

/// One record without its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub sequence: Sequence,
    /// How much of this segment was durable before the group that this record was written with.
    pub durable_end: u64,
    pub body: Body,
}

/// Why there is no record at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// Not even the first bytes of one.
    Nothing,
    /// The header is longer than the bytes given.
    Incomplete { needed: usize },
    /// It begins like one, but its checksum or its fields are wrong. The id is what it seems to have been.
    Damaged { seems: ChunkId },
    /// Intact, and of a kind that this version does not know.
    Newer { version: u8, kind: u8 },
}

impl Record {
    /// Bytes of the record's header: frames begin after it.
    pub fn header_length(&self) -> u64 {
        match &self.body {
            Body::Put(header) => record_header_length(header.plain_length),
            _ => v1::FIXED_BYTES as u64,
        }
    }

    /// Bytes of the record, frames and padding included.
    pub fn total_length(&self) -> u64 {
        let body = match &self.body {
            Body::Put(header) => header.sealed_length(),
            _ => 0,
        };
        align(self.header_length() + body)
    }
}

/// Bytes of the header of a record that holds a chunk.
pub fn record_header_length(plain_length: u32) -> u64 {
    v1::FIXED_BYTES as u64 + 4 * u64::from(frame_count(plain_length))
}

/// The next place where a record may begin.
pub fn align(offset: u64) -> u64 {
    offset.next_multiple_of(RECORD_ALIGNMENT)
}

/// Little-endian numbers at fixed places.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("N bytes")
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// Format 1.
mod v1 {
    use crc_fast::{CrcAlgorithm, Digest};

    use super::*;
    use crate::chunks::header::crc32c;

    pub const VERSION: u8 = 1;
    const SEGMENT_MAGIC: &[u8; 8] = b"CAIRNSEG";
    pub const SEGMENT_HEADER_BYTES: u64 = 4096;
    const NAME_AT: usize = 64;

    const RECORD_MAGIC: &[u8; 4] = b"CREC";
    /// Records begin at multiples of this.
    pub const RECORD_ALIGNMENT: u64 = 8;
    /// Header without the table of checksums.
    pub const FIXED_BYTES: usize = 72;
    /// The longest header.
    pub const MAX_RECORD_HEADER_BYTES: usize =
        FIXED_BYTES + 4 * (MAX_PLAIN_BYTES as usize).div_ceil(super::super::FRAME_BYTES);
    const POSITION_BYTES: usize = 36;
    const BRIEF_AT: usize = 40;
    /// What differs by kind, of every record.
    pub const BRIEF_BYTES: usize = 28;
    const CRCS_AT: usize = BRIEF_AT + BRIEF_BYTES;

    const PUT: u8 = 1;
    const TOMBSTONE: u8 = 2;
    const MARK: u8 = 3;
    const SIGHTING: u8 = 4;

    /// The first page of a segment file.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct SegmentHeader {
        pub cluster_id: [u8; 16],
        pub node: String,
        pub incarnation: Incarnation,
        pub segment: SegmentId,
    }

    pub fn encode_segment_header(header: &SegmentHeader) -> Vec<u8> {
        let mut page = vec![0; SEGMENT_HEADER_BYTES as usize];
        page[..8].copy_from_slice(SEGMENT_MAGIC);
        page[8..12].copy_from_slice(&u32::from(VERSION).to_le_bytes());
        page[12..16].copy_from_slice(&(SEGMENT_HEADER_BYTES as u32).to_le_bytes());
        page[16..32].copy_from_slice(&header.cluster_id);
        page[32..48].copy_from_slice(&header.incarnation.0);
        page[48..56].copy_from_slice(&header.segment.boot.to_le_bytes());
        page[56..60].copy_from_slice(&header.segment.number.to_le_bytes());
        page[60..62].copy_from_slice(&(header.node.len() as u16).to_le_bytes());
        page[NAME_AT..NAME_AT + header.node.len()].copy_from_slice(header.node.as_bytes());
        let end = page.len() - 4;
        let checksum = crc32c(&page[..end]);
        page[end..].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    /// `Err(Some(version))`: intact, but of a newer format. `Err(None)`: damaged.
    pub fn decode_segment_header(page: &[u8]) -> Result<SegmentHeader, Option<u32>> {
        let fields = Fields(page);
        let end = SEGMENT_HEADER_BYTES as usize - 4;
        if page.len() != end + 4 || &page[..8] != SEGMENT_MAGIC || crc32c(&page[..end]) != fields.u32(end) {
            return Err(None);
        }
        if fields.u32(8) != u32::from(VERSION) {
            return Err(Some(fields.u32(8)));
        }
        let name_length = usize::from(u16::from_le_bytes(fields.array(60)));
        let name = page[..end].get(NAME_AT..NAME_AT + name_length).ok_or(None)?;
        Ok(SegmentHeader {
            cluster_id: fields.array(16),
            node: String::from_utf8(name.to_vec()).map_err(|_| None)?,
            incarnation: Incarnation(fields.array(32)),
            segment: SegmentId { boot: fields.u64(48), number: fields.u32(56) },
        })
    }

    fn position_bytes(position: &Position) -> [u8; POSITION_BYTES] {
        let mut bytes = [0; POSITION_BYTES];
        bytes[..16].copy_from_slice(&position.incarnation.0);
        bytes[16..24].copy_from_slice(&position.segment.boot.to_le_bytes());
        bytes[24..28].copy_from_slice(&position.segment.number.to_le_bytes());
        bytes[28..].copy_from_slice(&position.offset.to_le_bytes());
        bytes
    }

    /// Appends the record's header to `to`.
    pub fn encode_record(record: &Record, position: &Position, to: &mut Vec<u8>) {
        let start = to.len();
        let body_length = match &record.body {
            Body::Put(header) => header.sealed_length() as u32,
            _ => 0,
        };
        let brief = record.body.brief();
        let (kind, copies) = kind_and_copies(&brief);
        to.extend_from_slice(RECORD_MAGIC);
        to.extend_from_slice(&[VERSION, kind, copies, 0]);
        to.extend_from_slice(&(record.header_length() as u32).to_le_bytes());
        to.extend_from_slice(&body_length.to_le_bytes());
        to.extend_from_slice(&record.sequence.boot.to_le_bytes());
        to.extend_from_slice(&record.sequence.number.to_le_bytes());
        to.extend_from_slice(&record.durable_end.to_le_bytes());
        encode_brief(&brief, to);
        if let Body::Put(header) = &record.body {
            header.frame_crcs.iter().for_each(|crc| to.extend_from_slice(&crc.to_le_bytes()));
        }
        let checksum = checksum(position, &to[start..]);
        to.extend_from_slice(&checksum.to_le_bytes());
        debug_assert_eq!((to.len() - start) as u64, record.header_length());
    }

    /// The kind of a record, and how many copies its volume keeps.
    pub fn kind_and_copies(brief: &Brief) -> (u8, u8) {
        match brief {
            Brief::Put { copies, .. } => (PUT, *copies),
            Brief::Tombstone(tombstone) => (TOMBSTONE, tombstone.copies),
            Brief::Mark { .. } => (MARK, 0),
            Brief::Sighting(_) => (SIGHTING, 0),
        }
    }

    /// Appends [`BRIEF_BYTES`].
    pub fn encode_brief(brief: &Brief, to: &mut Vec<u8>) {
        match brief {
            Brief::Put { id, volume, plain_length, .. } => encode_id(*volume, *id, *plain_length, to),
            Brief::Tombstone(tombstone) => encode_id(tombstone.volume, tombstone.id, tombstone.tick, to),
            Brief::Mark { segment, end } => {
                to.extend_from_slice(&segment.boot.to_le_bytes());
                to.extend_from_slice(&segment.number.to_le_bytes());
                to.extend_from_slice(&[0; 4]);
                to.extend_from_slice(&end.to_le_bytes());
                to.extend_from_slice(&[0; 4]);
            }
            Brief::Sighting(sighting) => {
                to.extend_from_slice(&sighting.tick.to_le_bytes());
                to.extend_from_slice(&sighting.revision.to_le_bytes());
                to.extend_from_slice(&sighting.map_generation.to_le_bytes());
                to.extend_from_slice(&sighting.epoch.to_le_bytes());
            }
        }
    }

    /// Of a kind that this version knows, from [`BRIEF_BYTES`] at least.
    pub fn decode_brief(kind: u8, copies: u8, bytes: &[u8]) -> Option<Brief> {
        let fields = Fields(bytes);
        let id = ChunkId { generation: Generation(fields.array(8)), index: fields.u32(4) };
        let volume = VolumeId(fields.u32(0));
        Some(match kind {
            PUT => Brief::Put { id, volume, copies, plain_length: fields.u32(24) },
            TOMBSTONE => Brief::Tombstone(Tombstone { id, volume, copies, tick: fields.u32(24) }),
            MARK => Brief::Mark {
                segment: SegmentId { boot: fields.u64(0), number: fields.u32(8) },
                end: fields.u64(16),
            },
            SIGHTING => Brief::Sighting(Sighting {
                tick: fields.u64(0),
                revision: fields.u64(8),
                map_generation: fields.u64(16),
                epoch: fields.u32(24),
            }),
            _ => return None,
        })
    }

    fn encode_id(volume: VolumeId, id: ChunkId, length_or_tick: u32, to: &mut Vec<u8>) {
        to.extend_from_slice(&volume.0.to_le_bytes());
        to.extend_from_slice(&id.index.to_le_bytes());
        to.extend_from_slice(&id.generation.0);
        to.extend_from_slice(&length_or_tick.to_le_bytes());
    }

    /// Of a record's header without its last four bytes, which hold it.
    pub fn checksum(position: &Position, header: &[u8]) -> u32 {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&position_bytes(position));
        digest.update(header);
        digest.finalize() as u32
    }

    /// The record whose header is at the start of `bytes`, if there is one for this position.
    pub fn decode_record(bytes: &[u8], position: &Position) -> Result<Record, RecordError> {
        if bytes.len() < FIXED_BYTES || &bytes[..4] != RECORD_MAGIC {
            return Err(RecordError::Nothing);
        }
        let fields = Fields(bytes);
        let seems = ChunkId { generation: Generation(fields.array(48)), index: fields.u32(44) };
        let damaged = RecordError::Damaged { seems };
        let header_length = fields.u32(8) as usize;
        if !(FIXED_BYTES..=MAX_RECORD_HEADER_BYTES).contains(&header_length)
            || !header_length.is_multiple_of(4)
        {
            return Err(damaged);
        }
        if bytes.len() < header_length {
            return Err(RecordError::Incomplete { needed: header_length });
        }
        let end = header_length - 4;
        if checksum(position, &bytes[..end]) != fields.u32(end) {
            return Err(damaged);
        }
        let (version, kind, copies) = (bytes[4], bytes[5], bytes[6]);
        let brief = decode_brief(kind, copies, &bytes[BRIEF_AT..]);
        let Some(brief) = brief.filter(|_| version == VERSION) else {
            return Err(RecordError::Newer { version, kind });
        };
        let body = match brief {
            Brief::Put { id, volume, copies, plain_length } => Body::Put(ChunkHeader {
                id,
                volume,
                copies,
                plain_length,
                frame_crcs: (CRCS_AT..end).step_by(4).map(|at| fields.u32(at)).collect(),
            }),
            Brief::Tombstone(tombstone) => Body::Tombstone(tombstone),
            Brief::Mark { segment, end } => Body::Mark { segment, end },
            Brief::Sighting(sighting) => Body::Sighting(sighting),
        };
        let record = Record {
            sequence: Sequence { boot: fields.u64(16), number: fields.u64(24) },
            durable_end: fields.u64(32),
            body,
        };
        // The checksum says that these were written so; no version of ours writes what fails here.
        let sound = match &record.body {
            Body::Put(header) => {
                header.validate().is_ok() && header.sealed_length() == u64::from(fields.u32(12))
            }
            _ => header_length == FIXED_BYTES && fields.u32(12) == 0,
        };
        if sound { Ok(record) } else { Err(damaged) }
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
