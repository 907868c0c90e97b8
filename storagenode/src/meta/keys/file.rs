//! `file/<volume id, 8 hexadecimal digits>/<path>` → [`FileRecord`].
//!
//! # Record (v2)
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version `2` |
//! | varint | chunk size in units of 64 KiB |
//! | 1 | copies of each chunk |
//! | 32 | BLAKE3 of the content |
//! | varint | milliseconds since 1970 |
//! | 1 + n | content type |
//! | varint | number of extents |
//! | 16 + varint each | extent: generation, length |
//! | 4 | CRC-32C of all before it, little-endian |
//!
//! Varints are LEB128. The first extent's generation is the file's. About 80 bytes, whatever the size of the file.
//!
//! Version 1 is the same without the checksum. It is read, and it is written as long as a node of the cluster knows no other: each
//! registers with the newest that it reads ([`super::node::NodeRecord::file_format`]).

use bytes::Bytes;
use cairn_placement::{Generation, VolumeId};

use crate::meta::{KeyValue, MetaError};

pub const PREFIX: &[u8] = b"file/";
/// The versions of a record.
pub const V1: u8 = 1;
pub const V2: u8 = 2;
/// The newest that this program reads and writes.
pub const NEWEST: u8 = V2;
const CHECKSUM_BYTES: usize = 4;
const CHUNK_UNIT: u32 = 65_536;
/// Far above what any writer makes; bounds what a damaged record can cost.
const MAX_EXTENTS: u64 = 10_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    pub chunk_size_bytes: u32,
    pub copies: u8,
    pub blake3: [u8; 32],
    pub modified_unix_ms: i64,
    /// At most 127 bytes.
    pub content_type: String,
    /// At least one.
    pub extents: Vec<Extent>,
}

/// Consecutive content kept as one generation's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub generation: Generation,
    pub length_bytes: u64,
}

impl FileRecord {
    pub fn generation(&self) -> Generation {
        self.extents[0].generation
    }

    pub fn size_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length_bytes).sum()
    }

    /// The record in a version that every node of the cluster reads.
    pub fn encode(&self, version: u8) -> Bytes {
        let version = version.clamp(V1, NEWEST);
        let mut out = vec![version];
        put_varint(&mut out, u64::from(self.chunk_size_bytes / CHUNK_UNIT));
        out.push(self.copies);
        out.extend_from_slice(&self.blake3);
        put_varint(&mut out, self.modified_unix_ms.max(0) as u64);
        out.push(self.content_type.len() as u8);
        out.extend_from_slice(self.content_type.as_bytes());
        put_varint(&mut out, self.extents.len() as u64);
        for extent in &self.extents {
            out.extend_from_slice(&extent.generation.0);
            put_varint(&mut out, extent.length_bytes);
        }
        if version >= V2 {
            let checksum = crc_fast::crc32_iscsi(&out);
            out.extend_from_slice(&checksum.to_le_bytes());
        }
        out.into()
    }

    pub fn decode(entry: &KeyValue) -> Result<Self, MetaError> {
        let damaged = || {
            let name = super::name(&entry.key);
            MetaError::Damaged(format!(
                "{name} holds no file record; uploading the file again, without a condition, replaces it"
            ))
        };
        let content = match entry.value.first() {
            Some(&V1) => Some(&entry.value[1..]),
            Some(&V2) => checked(&entry.value),
            Some(version) => return Err(super::newer(&entry.key, *version)),
            None => None,
        };
        content.and_then(parse).ok_or_else(damaged)
    }
}

/// What is between a record's version and its checksum, if that is right.
fn checked(record: &[u8]) -> Option<&[u8]> {
    let (content, checksum) = record.split_last_chunk::<CHECKSUM_BYTES>()?;
    (crc_fast::crc32_iscsi(content) == u32::from_le_bytes(*checksum)).then(|| content.get(1..))?
}

fn parse(mut rest: &[u8]) -> Option<FileRecord> {
    let units = u32::try_from(get_varint(&mut rest)?).ok().filter(|units| (1..=256).contains(units))?;
    let copies = take(&mut rest, 1)?[0];
    let blake3 = take(&mut rest, 32)?.try_into().ok()?;
    let modified_unix_ms = i64::try_from(get_varint(&mut rest)?).ok()?;
    let length = take(&mut rest, 1)?[0];
    let content_type = String::from_utf8(take(&mut rest, usize::from(length))?.to_vec()).ok()?;
    let count = get_varint(&mut rest).filter(|count| (1..=MAX_EXTENTS).contains(count))?;
    let mut extents = Vec::new();
    let mut size = 0u64;
    for _ in 0..count {
        let generation = Generation(take(&mut rest, 16)?.try_into().ok()?);
        let length_bytes = get_varint(&mut rest)?;
        size = size.checked_add(length_bytes)?;
        extents.push(Extent { generation, length_bytes });
    }
    let whole = rest.is_empty() && copies > 0;
    let chunk_size_bytes = units * CHUNK_UNIT;
    whole.then_some(FileRecord { chunk_size_bytes, copies, blake3, modified_unix_ms, content_type, extents })
}

/// Where a volume's records begin.
pub fn prefix(volume: VolumeId) -> Bytes {
    format!("file/{:08x}/", volume.0).into()
}

pub fn key(volume: VolumeId, path: &str) -> Bytes {
    [&prefix(volume)[..], path.as_bytes()].concat().into()
}

/// The volume that a key belongs to.
pub fn volume(entry: &KeyValue) -> Result<VolumeId, MetaError> {
    let digits =
        entry.key.get(PREFIX.len()..PREFIX.len() + 8).and_then(|digits| std::str::from_utf8(digits).ok());
    let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let damaged = || MetaError::Damaged(format!("{} belongs to no volume", super::name(&entry.key)));
    number.map(VolumeId).ok_or_else(damaged)
}

/// The path that a key names.
pub fn path(entry: &KeyValue) -> Result<&str, MetaError> {
    let rest = entry.key.get(PREFIX.len() + 9..).and_then(|rest| std::str::from_utf8(rest).ok());
    rest.ok_or_else(|| MetaError::Damaged(format!("{} names no file", super::name(&entry.key))))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn entry(value: Bytes) -> KeyValue {
        KeyValue { key: key(VolumeId(7), "a/b"), value, create_revision: 1, mod_revision: 2 }
    }

    proptest! {
        #[test]
        fn records_round_trip(
            units in 1u32..=256, copies in 1u8..=7, blake3: [u8; 32], modified in 0i64..i64::MAX,
            content_type in "[ -~]{0,127}", extents in vec((any::<[u8; 16]>(), 0u64..1 << 50), 1..5),
        ) {
            let extents: Vec<Extent> = extents
                .into_iter()
                .map(|(generation, length_bytes)| Extent { generation: Generation(generation), length_bytes })
                .collect();
            let record = FileRecord {
                chunk_size_bytes: units * CHUNK_UNIT, copies, blake3, modified_unix_ms: modified, content_type, extents,
            };
            for version in [V1, V2] {
                prop_assert_eq!(FileRecord::decode(&entry(record.encode(version))), Ok(record.clone()));
            }
            // One bit, anywhere: the record is refused, and its file named.
            let mut bytes = record.encode(V2).to_vec();
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let error = FileRecord::decode(&entry(bytes.clone().into())).unwrap_err().to_string();
                prop_assert!(error.contains("a/b"), "{}: {}", bit, error);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }

        #[test]
        fn damaged_records_never_panic(mut bytes in vec(any::<u8>(), 0..120)) {
            let _ = FileRecord::decode(&entry(bytes.clone().into()));
            bytes.insert(0, V1);
            let _ = FileRecord::decode(&entry(bytes.clone().into()));
            bytes[0] = V2;
            let checksum = crc_fast::crc32_iscsi(&bytes);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            let _ = FileRecord::decode(&entry(bytes.into()));
        }
    }

    #[test]
    fn a_usual_record_is_small_and_names_its_file() {
        const USUAL: &str =
            "projects/2026/survey of the north/measurements/run-0042/frame-000123.original.tiff";
        let record = |length_bytes| FileRecord {
            chunk_size_bytes: 4 << 20,
            copies: 3,
            blake3: [1; 32],
            modified_unix_ms: 1_790_000_000_000,
            content_type: "application/octet-stream".into(),
            extents: vec![Extent { generation: Generation([3; 16]), length_bytes }],
        };
        // However many chunks it has: one, a thousand, a million.
        for length_bytes in [1, 4 << 30, 4 << 40] {
            let entry =
                KeyValue { key: key(VolumeId(7), USUAL), ..entry(record(length_bytes).encode(NEWEST)) };
            let bytes = entry.key.len() + entry.value.len();
            assert!(bytes <= 200, "{bytes} bytes, of which the path takes {}", USUAL.len());
            assert_eq!(path(&entry), Ok(USUAL));
            assert_eq!(volume(&entry), Ok(VolumeId(7)));
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let error = FileRecord::decode(&entry(Bytes::from_static(&[9, 0]))).unwrap_err();
        assert!(error.to_string().contains("format version 9"), "{error}");
    }
}
