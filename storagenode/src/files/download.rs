//! Downloads: read the record, then the frames that the range needs, a bounded number of pieces ahead.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_placement::{ChunkId, ClusterMap, VolumeId};
use futures::{StreamExt, stream};

use super::{
    Download, FileError, FilePath, RangeSpec, ReadSpec, VolumeName,
    damage::Spot,
    gateway::{Gateway, OpenVolume, file_info},
    recent::Said,
    upload::not_found,
};
use crate::{
    chunks::{self, ChunkHeader, FRAME_BYTES, GenerationKey},
    meta::{
        KeyValue, Op, Txn,
        keys::{self, file::FileRecord},
    },
    replication::{read::FetchError, wire::MESSAGE_BYTES},
};

/// Frames of one piece: what one request to a holder asks for.
const PIECE_FRAMES: u32 = 16;
/// Pieces of one download that are fetched at the same time.
const PIECES_AHEAD: usize = 4;
/// Times that a record is read again because its volume had changed.
const FIND_ATTEMPTS: usize = 8;

/// A file's record, with the volume it is in.
pub(super) struct Found {
    pub volume: Arc<OpenVolume>,
    pub record: FileRecord,
    pub entry: KeyValue,
}

impl Found {
    fn new(volume: Arc<OpenVolume>, entry: Option<KeyValue>, path: &FilePath) -> Result<Self, FileError> {
        let entry = entry.ok_or_else(|| not_found(&volume.name, path))?;
        let record = FileRecord::decode(&entry)?;
        Ok(Self { volume, record, entry })
    }
}

/// Part of one chunk that a download wants.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    id: ChunkId,
    /// Content bytes of the whole chunk.
    plain_length: u32,
    frames: Range<u32>,
    /// Bytes wanted, counted from the first byte of the first frame.
    wanted: Range<usize>,
}

/// What a download's pieces have in common.
struct Source {
    gateway: Gateway,
    map: Arc<ClusterMap>,
    volume: VolumeId,
    volume_name: VolumeName,
    copies: u8,
    key: GenerationKey,
    path: FilePath,
    /// How old its record was when the download began, if it was not the present one.
    stale: Option<Duration>,
}

impl Gateway {
    /// Reads a file's record linearizably, in one round trip if the volume is known.
    pub(super) async fn find(&self, volume: &VolumeName, path: &FilePath) -> Result<Found, FileError> {
        let (known, [entry]) = self.look(volume, [path]).await?;
        Found::new(known, entry, path)
    }

    /// As [`Self::find`], and what has another name at the same moment.
    pub(super) async fn find_beside(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        other: &FilePath,
    ) -> Result<(Found, Option<KeyValue>), FileError> {
        let (known, [entry, beside]) = self.look(volume, [path, other]).await?;
        Ok((Found::new(known, entry, path)?, beside))
    }

    /// What has some names in a volume, at one revision.
    async fn look<const N: usize>(
        &self,
        volume: &VolumeName,
        paths: [&FilePath; N],
    ) -> Result<(Arc<OpenVolume>, [Option<KeyValue>; N]), FileError> {
        let mut known = self.known_volume(volume).await?;
        for _ in 0..FIND_ATTEMPTS {
            let keys = paths.map(|path| Op::get(keys::file::key(known.id(), path.as_str())));
            let reads = [Op::get(keys::volume::key(volume.as_str()))].into_iter().chain(keys).collect();
            let txn = Txn { then: reads, ..Txn::default() };
            let mut asked = Duration::ZERO;
            let read = || {
                asked = self.env.clock.monotonic();
                self.meta.txn(txn.clone())
            };
            let result = self.retry_read(read).await?;
            let said = Said { revision: result.revision, asked, answered: self.env.clock.monotonic() };
            let mut reads = result.reads.into_iter();
            let stored_volume = reads.next().flatten();
            if stored_volume.is_none_or(|stored| stored.mod_revision != known.revision) {
                known = self.fresh_volume(volume).await?;
                continue;
            }
            return Ok((
                known.clone(),
                paths.map(|path| {
                    let entry = reads.next().flatten();
                    let key = keys::file::key(known.id(), path.as_str());
                    self.recent.note(&key, entry.as_ref().map(|entry| &entry.value[..]), said);
                    entry
                }),
            ));
        }
        Err(FileError::Conflict(format!("volume {volume} keeps changing")))
    }

    pub(super) async fn do_download(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        spec: ReadSpec,
    ) -> Result<Download, FileError> {
        let found = self.find_known(volume, path, spec.max_stale).await?;
        let reading = self.pins.begin(&found.record);
        let file = file_info(volume, path, &found.record);
        if spec.if_match.is_some_and(|wanted| wanted != file.generation) {
            let message = format!("{path:?} has the etag {} now", file.generation);
            return Err(found.refused(FileError::PreconditionFailed(message)));
        }
        let bytes = resolve(spec.range, file.size_bytes).map_err(|error| found.refused(error))?;
        let (_, map) = self.placed()?;
        let permit = self
            .reserve((bytes.end - bytes.start).min((PIECES_AHEAD * MESSAGE_BYTES) as u64) as usize)
            .await?;
        let length = bytes.end - bytes.start;
        let sources = found.record.extents.iter().map(|extent| {
            Arc::new(Source {
                gateway: self.clone(),
                map: map.clone(),
                volume: found.volume.id(),
                volume_name: volume.clone(),
                copies: found.record.copies,
                key: found.volume.key.derive(extent.generation),
                path: path.clone(),
                stale: found.stale,
            })
        });
        let sources: Vec<_> = sources.collect();
        self.read_damage_again(&found.record, &bytes, &sources).await?;
        let pieces = pieces(&found.record, bytes.clone());
        let content = stream::iter(pieces)
            .map(move |(extent, piece)| {
                let source = sources[extent].clone();
                async move { source.fetch(piece).await }
            })
            .buffered(PIECES_AHEAD)
            .flat_map(move |result| {
                let _held = (&permit, &reading);
                stream::iter(match result {
                    Ok(frames) => frames.into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error)],
                })
            });
        let mut content = content.boxed();
        // What cannot be read is refused as long as it can be, not broken off in the middle.
        let content = match content.next().await.transpose()? {
            Some(first) => stream::once(std::future::ready(Ok(first))).chain(content).boxed(),
            None => content,
        };
        Ok(Download { file, stale: found.stale, offset: bytes.start, length, content })
    }
}

impl Gateway {
    /// Reads first what could not be read before and is wanted now.
    async fn read_damage_again(
        &self,
        record: &FileRecord,
        bytes: &Range<u64>,
        sources: &[Arc<Source>],
    ) -> Result<(), FileError> {
        let mut start = 0;
        for extent in &record.extents {
            for spot in self.damage.of(extent.generation) {
                let within = bytes_of(&spot, extent.length_bytes, record.chunk_size_bytes);
                let known = start + within.start..start + within.end;
                let wanted = known.start.max(bytes.start)..known.end.min(bytes.end);
                for (extent, piece) in pieces(record, wanted.clone()) {
                    sources[extent].fetch(piece).await?;
                }
                if wanted == known {
                    self.damage.forget(&spot);
                }
            }
            start += extent.length_bytes;
        }
        Ok(())
    }
}

impl Source {
    async fn fetch(&self, piece: Piece) -> Result<Vec<Bytes>, FileError> {
        let open = |header: &ChunkHeader, sealed: Vec<Bytes>| self.open(&piece, header, &sealed);
        let read =
            self.gateway.reader.read(&self.map, piece.id, self.copies, piece.frames.clone(), open).await;
        match read {
            Ok(content) => Ok(content),
            Err(FetchError::Unavailable) => {
                Err(FileError::ChunkUnavailable { path: self.path.to_string(), index: piece.id.index })
            }
            // A damaged copy is thrown away when it is found, so the next reader finds none.
            Err(error @ (FetchError::Corrupt | FetchError::Missing)) => {
                Err(self.lost(&piece, error == FetchError::Corrupt).await)
            }
        }
    }

    /// Why a piece is nowhere: its file is another one by now and this one's chunks were collected, or it is damage.
    async fn lost(&self, piece: &Piece, corrupt: bool) -> FileError {
        let found = match self.stale {
            None => self.gateway.find(&self.volume_name, &self.path).await,
            Some(_) => self.gateway.find_soon(&self.volume_name, &self.path).await,
        };
        let became = match found {
            Ok(found) => {
                let mut extents = found.record.extents.iter();
                if extents.any(|extent| extent.generation == piece.id.generation) {
                    return self.damaged(piece);
                }
                "replaced"
            }
            Err(FileError::FileNotFound { .. } | FileError::VolumeNotFound(_)) => "deleted",
            Err(FileError::MetadataUnavailable(why)) => return self.unexplained(why),
            Err(error) => return error,
        };
        // What was deleted or replaced is queued for collection; what has another name by now is not.
        let queued = keys::collect::key(&piece.id.generation);
        if corrupt && matches!(self.gateway.meta.get(&queued).await, Ok(None)) {
            return self.damaged(piece);
        }
        FileError::Conflict(format!("{:?} was {became} while it was read; get it again", self.path))
    }

    fn damaged(&self, piece: &Piece) -> FileError {
        self.gateway.damage.note(Spot { id: piece.id, frames: piece.frames.clone() });
        FileError::DataCorrupt { path: self.path.to_string(), index: piece.id.index }
    }

    /// A piece is nowhere, and the store cannot be asked why. Of an old record, that it is out of date explains it.
    fn unexplained(&self, why: String) -> FileError {
        let Some(age) = self.stale else { return FileError::MetadataUnavailable(why) };
        FileError::Conflict(format!(
            "{:?} is not stored any more as it was known {} s ago: it was replaced or deleted since, or is lost; \
             get it again when the metadata store can be reached ({why})",
            self.path,
            age.as_secs()
        ))
    }

    /// Opens the frames of a piece, and cuts what is wanted out of them.
    fn open(&self, piece: &Piece, header: &ChunkHeader, sealed: &[Bytes]) -> Result<Vec<Bytes>, String> {
        if header.plain_length != piece.plain_length || header.volume != self.volume {
            return Err("the copy's header is of another chunk".into());
        }
        let mut opened = Vec::with_capacity(sealed.len());
        let mut position = 0;
        for (frame, sealed) in piece.frames.clone().zip(sealed) {
            let plain =
                chunks::open_frame(&self.key, self.volume, piece.id, frame, piece.plain_length, sealed)
                    .map_err(|error| error.to_string())?;
            let from = piece.wanted.start.clamp(position, position + plain.len()) - position;
            let to = piece.wanted.end.clamp(position, position + plain.len()) - position;
            position += plain.len();
            if from < to {
                opened.push(plain.slice(from..to));
            }
        }
        match opened.iter().map(Bytes::len).sum::<usize>() == piece.wanted.len() {
            true => Ok(opened),
            false => Err("the copy has fewer frames than it should".into()),
        }
    }
}

/// The bytes that a range means for a file of this size.
fn resolve(range: RangeSpec, size_bytes: u64) -> Result<Range<u64>, FileError> {
    match range {
        RangeSpec::All => Ok(0..size_bytes),
        RangeSpec::Last(count) if size_bytes > 0 && count > 0 => {
            Ok(size_bytes.saturating_sub(count)..size_bytes)
        }
        RangeSpec::Last(_) => Err(FileError::RangeNotSatisfiable { offset: size_bytes, size_bytes }),
        RangeSpec::From { offset: 0, length: None } => Ok(0..size_bytes),
        RangeSpec::From { offset, length } if offset < size_bytes => {
            Ok(offset..length.map_or(size_bytes, |length| offset.saturating_add(length).min(size_bytes)))
        }
        RangeSpec::From { offset, .. } => Err(FileError::RangeNotSatisfiable { offset, size_bytes }),
    }
}

/// The bytes of a spot, in an extent of this length.
fn bytes_of(spot: &Spot, length_bytes: u64, chunk_size_bytes: u32) -> Range<u64> {
    let chunk_start = u64::from(spot.id.index) * u64::from(chunk_size_bytes);
    let chunk_end = (chunk_start + u64::from(chunk_size_bytes)).min(length_bytes);
    let at = |frame: u32| (chunk_start + u64::from(frame) * FRAME_BYTES as u64).min(chunk_end);
    at(spot.frames.start)..at(spot.frames.end)
}

/// The pieces, in order, that cover `bytes` of a file; each with the number of its extent. Made one by one: a large file
/// has many.
fn pieces(record: &FileRecord, bytes: Range<u64>) -> impl Iterator<Item = (usize, Piece)> + Send + use<> {
    let chunk_bytes = u64::from(record.chunk_size_bytes);
    let extents: Vec<_> = record.extents.clone();
    let mut starts = Vec::with_capacity(extents.len());
    let mut total = 0;
    for extent in &extents {
        starts.push(total);
        total += extent.length_bytes;
    }
    let piece_bytes = u64::from(PIECE_FRAMES) * FRAME_BYTES as u64;
    let mut position = bytes.start;
    std::iter::from_fn(move || {
        if position >= bytes.end {
            return None;
        }
        let number = starts.partition_point(|start| *start <= position) - 1;
        // Extents of no length share their start with the next; the last of them is the one with content.
        let extent = &extents[number];
        let within = position - starts[number];
        let index = within / chunk_bytes;
        let chunk_start = index * chunk_bytes;
        let plain_length = (extent.length_bytes - chunk_start).min(chunk_bytes);
        let offset = within - chunk_start;
        let frame_start = offset / FRAME_BYTES as u64 * FRAME_BYTES as u64;
        let chunk_end = starts[number] + chunk_start + plain_length;
        let end = bytes.end.min(chunk_end).min(position - offset + frame_start + piece_bytes);
        let last = offset + (end - position);
        let piece = Piece {
            id: ChunkId { generation: extent.generation, index: index as u32 },
            plain_length: plain_length as u32,
            frames: (frame_start / FRAME_BYTES as u64) as u32..last.div_ceil(FRAME_BYTES as u64) as u32,
            wanted: (offset - frame_start) as usize..(last - frame_start) as usize,
        };
        position = end;
        Some((number, piece))
    })
}

#[cfg(test)]
mod tests {
    use cairn_placement::Generation;
    use proptest::prelude::*;

    use super::*;
    use crate::meta::keys::file::Extent;

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
        ) {
            let record = record(&lengths, units * FRAME_BYTES as u32);
            let size = record.size_bytes();
            prop_assume!(size > 0);
            let from = from % size;
            let to = from + 1 + count % (size - from);
            let mut at = from;
            for (extent, piece) in pieces(&record, from..to) {
                let start: u64 = lengths[..extent].iter().sum();
                let chunk_start = start + u64::from(piece.id.index) * u64::from(record.chunk_size_bytes);
                let first = chunk_start + u64::from(piece.frames.start) * FRAME_BYTES as u64;
                prop_assert_eq!(first + piece.wanted.start as u64, at);
                prop_assert!(piece.wanted.start < FRAME_BYTES);
                prop_assert!(piece.frames.len() <= PIECE_FRAMES as usize && !piece.frames.is_empty());
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
            for (_, piece) in pieces(&record, from..to) {
                let spot = Spot { id: piece.id, frames: piece.frames.clone() };
                let bytes = bytes_of(&spot, length, record.chunk_size_bytes);
                prop_assert_eq!(bytes.start + piece.wanted.start as u64, at);
                at += piece.wanted.len() as u64;
                prop_assert!(at <= bytes.end && bytes.end <= length);
                let again: Vec<_> = pieces(&record, bytes).map(|(_, piece)| (piece.id, piece.frames)).collect();
                prop_assert_eq!(again, [(spot.id, spot.frames)]);
            }
        }
    }

    #[test]
    fn ranges_resolve_as_http_says() {
        let from = |offset, length| RangeSpec::From { offset, length };
        assert_eq!(resolve(RangeSpec::All, 0), Ok(0..0));
        assert_eq!(resolve(from(0, None), 0), Ok(0..0));
        assert_eq!(resolve(from(3, Some(4)), 10), Ok(3..7));
        assert_eq!(resolve(from(3, Some(u64::MAX)), 10), Ok(3..10));
        assert_eq!(resolve(RangeSpec::Last(3), 10), Ok(7..10));
        assert_eq!(resolve(RangeSpec::Last(30), 10), Ok(0..10));
        let unsatisfiable = |offset, size_bytes| Err(FileError::RangeNotSatisfiable { offset, size_bytes });
        assert_eq!(resolve(from(10, None), 10), unsatisfiable(10, 10));
        assert_eq!(resolve(from(0, Some(1)), 0), unsatisfiable(0, 0));
        assert_eq!(resolve(RangeSpec::Last(0), 10), unsatisfiable(10, 10));
    }
}
