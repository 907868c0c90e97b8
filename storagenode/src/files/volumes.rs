//! Volumes: creating, listing, marking for deletion.

use cairn_placement::{MAX_COPIES, VolumeId};

use super::{
    FileError, VolumeInfo, VolumeName,
    commit::{Outcome, Proposal},
    gateway::{Gateway, volume_info},
};
use crate::{
    chunks::{FRAME_BYTES, VolumeKey},
    meta::{
        Compare, Op, RangeRead,
        keys::{
            self,
            volume::{State, VolumeRecord},
        },
        prefix_end,
    },
};

/// Copies of a volume that asks for none in particular.
const DEFAULT_COPIES: usize = 3;
const DEFAULT_CHUNK_BYTES: u32 = 4 << 20;
const MAX_CHUNK_BYTES: u32 = 16 << 20;
/// Times that a creation is decided afresh because other volumes were created.
const CREATE_ATTEMPTS: usize = 32;

impl Gateway {
    pub(super) async fn do_create_volume(
        &self,
        name: &VolumeName,
        copies: u8,
        chunk_size_bytes: u32,
    ) -> Result<(VolumeInfo, bool), FileError> {
        let (_, map) = self.placed()?;
        let copies = match usize::from(copies) {
            0 => map.nodes.len().min(DEFAULT_COPIES),
            copies => copies,
        };
        if copies > map.nodes.len().min(MAX_COPIES) {
            let most = map.nodes.len().min(MAX_COPIES);
            return Err(FileError::InvalidArgument(format!(
                "this cluster can keep 1 to {most} copies, not {copies}"
            )));
        }
        let chunk_size_bytes = if chunk_size_bytes == 0 { DEFAULT_CHUNK_BYTES } else { chunk_size_bytes };
        if chunk_size_bytes > MAX_CHUNK_BYTES || chunk_size_bytes % FRAME_BYTES as u32 != 0 {
            return Err(FileError::InvalidArgument(format!(
                "a chunk's size is a multiple of {FRAME_BYTES} bytes, at most {MAX_CHUNK_BYTES}"
            )));
        }
        for _ in 0..CREATE_ATTEMPTS {
            match self.fresh_volume(name).await {
                Ok(present) => {
                    Self::must_be_active(&present)?;
                    let same = usize::from(present.record.copies) == copies
                        && present.record.chunk_size_bytes == chunk_size_bytes;
                    let exists = || FileError::VolumeExists(name.to_string());
                    return same.then(|| (present.info(), false)).ok_or_else(exists);
                }
                Err(FileError::VolumeNotFound(_)) => {}
                Err(error) => return Err(error),
            }
            if let Some(info) = self.try_create(name, copies as u8, chunk_size_bytes).await? {
                return Ok((info, true));
            }
        }
        Err(FileError::Conflict("many volumes are being created at once".into()))
    }

    async fn try_create(
        &self,
        name: &VolumeName,
        copies: u8,
        chunk_size_bytes: u32,
    ) -> Result<Option<VolumeInfo>, FileError> {
        let counter = self.retry_read(|| self.meta.get(b"volume-id")).await?;
        let last = counter.as_ref().map(keys::number).transpose()?.unwrap_or(0);
        let id = u32::try_from(last + 1)
            .map_err(|_| FileError::Internal("this cluster has given out all volume numbers".into()))?;
        let key = VolumeKey::random(&*self.env.random);
        let record = VolumeRecord {
            id,
            copies,
            chunk_size_bytes,
            state: State::Active,
            created_unix_ms: self.env.clock.unix_ms(),
            wrapped_key: hex::encode(self.kek.wrap(VolumeId(id), &key, self.env.random.bytes())),
        };
        let volume_key = keys::volume::key(name.as_str());
        let proposal = Proposal {
            compare: vec![
                Compare::absent(volume_key.clone()),
                Compare::unchanged(keys::volume_id_key(), counter.map_or(0, |entry| entry.mod_revision)),
            ],
            then: vec![
                Op::put(volume_key, keys::to_json(&record)),
                Op::put(keys::volume_id_key(), id.to_string()),
            ],
            look: vec![],
        };
        let outcome = self.commit(self.env.random.bytes(), proposal).await?;
        Ok(matches!(outcome, Outcome::Committed).then(|| volume_info(name, &record)))
    }

    pub(super) async fn do_list_volumes(
        &self,
        limit: usize,
        token: &str,
    ) -> Result<(Vec<VolumeInfo>, String), FileError> {
        let start = match token {
            "" => keys::volume::PREFIX.to_vec(),
            after => [keys::volume::PREFIX, VolumeName::parse(after)?.as_str().as_bytes(), &[0]].concat(),
        };
        let read = RangeRead {
            start: start.into(),
            end: prefix_end(keys::volume::PREFIX),
            limit: limit.clamp(1, super::MAX_PAGE),
            ..RangeRead::default()
        };
        let page = self.retry_read(|| self.meta.range(read.clone())).await?;
        let mut volumes = Vec::new();
        for entry in &page.entries {
            let name = String::from_utf8_lossy(&entry.key[keys::volume::PREFIX.len()..]);
            volumes.push(volume_info(&VolumeName::parse(&name)?, &keys::from_json(entry)?));
        }
        let next =
            volumes.last().filter(|_| page.more).map_or_else(String::new, |volume| volume.name.to_string());
        Ok((volumes, next))
    }

    /// Marks the volume; the coordinator removes its files and then its record (R18).
    pub(super) async fn do_delete_volume(
        &self,
        name: &VolumeName,
        with_files: bool,
    ) -> Result<(), FileError> {
        let volume = self.fresh_volume(name).await?;
        if volume.record.state == State::Deleting {
            return Ok(());
        }
        let files = keys::file::prefix(volume.id());
        let read = RangeRead { limit: 1, keys_only: true, ..RangeRead::prefix(&files) };
        if !with_files && !self.retry_read(|| self.meta.range(read.clone())).await?.entries.is_empty() {
            return Err(FileError::VolumeNotEmpty(name.to_string()));
        }
        let key = keys::volume::key(name.as_str());
        let record = VolumeRecord { state: State::Deleting, ..volume.record.clone() };
        let proposal = Proposal {
            compare: vec![Compare::unchanged(key.clone(), volume.revision)],
            then: vec![Op::put(key, keys::to_json(&record))],
            look: vec![],
        };
        match self.commit(self.env.random.bytes(), proposal).await? {
            Outcome::Committed => Ok(()),
            Outcome::Refused(_) => Err(FileError::Conflict(format!("volume {name} changed meanwhile"))),
        }
    }
}
