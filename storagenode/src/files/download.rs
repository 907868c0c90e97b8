//! Downloads: read the record, then the frames that the range needs, a few pieces ahead of a fast reader.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_placement::{ClusterMap, VolumeId};
use futures::{StreamExt, stream};

use super::{
    Download, FileError, FilePath, RangeSpec, ReadSpec, VolumeName,
    damage::Spot,
    gateway::{Gateway, OpenVolume, file_info},
    pieces::{Piece, Pieces, bytes_of},
    readahead::ReadAhead,
    recent::Said,
    upload::not_found,
};
use crate::{
    chunks::{self, ChunkHeader, FRAME_BYTES, GenerationKey},
    env::BoxFuture,
    meta::{
        KeyValue, Op, Txn,
        keys::{self, file::FileRecord},
    },
    replication::read::FetchError,
};

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
        let pinned = self.pins.begin(&found.record);
        let file = file_info(volume, path, &found.record);
        if spec.if_match.is_some_and(|wanted| wanted != file.generation) {
            let message = format!("{path:?} has the etag {} now", file.generation);
            return Err(found.refused(FileError::PreconditionFailed(message)));
        }
        let bytes = resolve(spec.range, file.size_bytes).map_err(|error| found.refused(error))?;
        let (_, map) = self.placed()?;
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
        let fetch = move |piece: Piece| {
            let source = sources[piece.extent].clone();
            Box::pin(async move { source.fetch(piece).await }) as BoxFuture<'static, _>
        };
        let pieces = Pieces::new(&found.record, bytes.clone());
        let reading = ReadAhead::begin(&self.budget, pieces, fetch, pinned).await?;
        let ended = reading.ended();
        let mut content = reading.content();
        // What cannot be read is refused as long as it can be, not broken off in the middle.
        let content = match content.next().await.transpose()? {
            Some(first) => stream::once(std::future::ready(Ok(first))).chain(content).boxed(),
            // It has ended, and must not be asked again.
            None => stream::empty().boxed(),
        };
        Ok(Download { file, stale: found.stale, offset: bytes.start, length, content, ended })
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
                for piece in Pieces::new(record, wanted.clone()) {
                    let _room = self.budget.take(piece.frames.len() * FRAME_BYTES).await?;
                    sources[piece.extent].fetch(piece).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
