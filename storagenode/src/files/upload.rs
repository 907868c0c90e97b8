//! Uploads: cut, seal, write to a quorum, confirm, commit.
//!
//! Memory: every chunk in flight holds room for its bytes, from before its first byte is gathered until the last member
//! needs them no more ([`super::budget`]). So a slow cluster slows the client down, and nothing grows.

use std::sync::Arc;

use bytes::Bytes;
use cairn_placement::{ChunkId, ClusterMap, Generation};
use futures::StreamExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Condition, ContentIn, FileError, FileInfo, FilePath, UploadSpec, VolumeName,
    budget::Room,
    claim::{Claim, is_young, lapsed, too_old},
    commit::{self, Outcome, Proposal},
    confirm::{Basis, CONFIRM_LIMIT},
    gateway::{Gateway, OpenVolume, file_info},
};
use crate::{
    chunks::{self, GenerationKey, Tombstone},
    cluster::ClusterState,
    meta::{
        Compare, KeyValue, MetaError, Op,
        keys::{
            self,
            collect::CollectRecord,
            file::{Extent, FileRecord},
        },
    },
    replication::{plan, write::WriteError},
};

/// Chunks of one upload that are written at the same time.
const CHUNKS_IN_FLIGHT: usize = 4;
/// Longest content type.
const MAX_CONTENT_TYPE_BYTES: usize = 127;
/// A file has at most this many chunks (a chunk's index has 32 bits; this keeps sums small).
const MAX_CHUNKS: u64 = 1 << 31;

/// An upload under way.
pub(super) struct Upload<'a> {
    pub gateway: &'a Gateway,
    pub volume: Arc<OpenVolume>,
    /// The map and the disks by which its chunks are where they should be.
    pub basis: Basis,
    pub generation: Generation,
    pub key: GenerationKey,
    writes: JoinSet<Result<(), WriteError>>,
    pub chunks: u32,
    received: u64,
    hasher: blake3::Hasher,
    /// Held once the sweep epoch was raised since it began.
    claim: Option<Claim>,
}

impl Gateway {
    /// Uploads in a task of its own: when the caller goes away, the task sees it, stops taking content, and has what
    /// was written buried; a commit that has begun is seen through.
    pub(super) async fn do_upload(
        &self,
        spec: UploadSpec,
        content: ContentIn,
    ) -> Result<FileInfo, FileError> {
        let caller_gone = CancellationToken::new();
        let _guard = caller_gone.clone().drop_guard();
        let gateway = self.clone();
        let task = tokio::spawn(async move { gateway.upload_until(spec, content, caller_gone).await });
        task.await.map_err(|error| FileError::Internal(format!("the upload's task failed: {error}")))?
    }

    async fn upload_until(
        &self,
        spec: UploadSpec,
        content: ContentIn,
        caller_gone: CancellationToken,
    ) -> Result<FileInfo, FileError> {
        check_spec(&spec)?;
        let volume = self.known_volume(&spec.volume).await?;
        Self::must_be_active(&volume)?;
        let (state, map) = self.placed()?;
        fits(spec.size_bytes, volume.record.copies, &state, &map)?;
        let file_key = keys::file::key(volume.id(), spec.path.as_str());
        let present = self.retry_read(|| self.meta.get(&file_key)).await?;
        holds(spec.condition, present.as_ref(), &spec.path)?;
        let generation = Generation::mint(state.epoch, self.env.random.bytes());
        let mut upload = Upload {
            gateway: self,
            key: volume.key.derive(generation),
            basis: Basis::new(state.clone(), map, volume.record.copies),
            volume,
            generation,
            writes: JoinSet::new(),
            chunks: 0,
            received: 0,
            hasher: blake3::Hasher::new(),
            claim: None,
        };
        let result = async {
            let taken = caller_gone.run_until_cancelled(upload.take(&spec, content)).await;
            taken.unwrap_or_else(|| Err(gone()))?;
            let record = upload.record(&spec)?;
            let began = (state.epoch_revision, present);
            self.commit_file(&mut upload, began, &spec, record, &caller_gone).await
        }
        .await;
        if let Err(error) = &result
            && !matches!(error, FileError::CommitUnknown(_))
        {
            // Nobody can commit this generation any more: what was written of it is only in the way.
            upload.abandon().await;
        }
        result
    }

    async fn commit_file(
        &self,
        upload: &mut Upload<'_>,
        (mut epoch_revision, mut present): (u64, Option<KeyValue>),
        spec: &UploadSpec,
        record: FileRecord,
        caller_gone: &CancellationToken,
    ) -> Result<FileInfo, FileError> {
        let volume = &upload.volume.clone();
        let file_key = keys::file::key(volume.id(), spec.path.as_str());
        let volume_key = keys::volume::key(spec.volume.as_str());
        let info = file_info(&spec.volume, &spec.path, &record);
        // As long as its age alone allows the commit, a claim is not needed, and may lapse.
        let mut needs_claim = false;
        let mut volume_revision = volume.revision;
        upload.basis.follow(&self.view.current());
        let deadline = self.env.clock.monotonic() + CONFIRM_LIMIT;
        let _turn = self.turns.take(&self.env, file_key.clone()).await;
        for attempt in 0..commit::ATTEMPTS {
            // Who has gone may have stored something newer by now; what was sent before is seen through.
            let confirmed = caller_gone.run_until_cancelled(upload.confirm(deadline)).await;
            confirmed.unwrap_or_else(|| Err(gone()))?;
            let old = replaced(spec.condition, present.as_ref())?;
            let mut then = vec![Op::put(file_key.clone(), record.encode(self.view.current().file_format()))];
            if let Some(old) = &old {
                then.extend(collect_ops(volume, old, self.view.current().tick));
            }
            let file_revision = present.as_ref().map_or(0, |entry| entry.mod_revision);
            let mut compare = vec![
                Compare::unchanged(file_key.clone(), file_revision),
                Compare::unchanged(volume_key.clone(), volume_revision),
                Compare::unchanged(keys::epoch_key(), epoch_revision),
            ];
            compare.extend(upload.basis.holds());
            let claim_key = keys::upload::key(&upload.generation);
            if let Some(claim) = &upload.claim {
                if needs_claim {
                    compare.push(Compare::unchanged(claim_key.clone(), claim.revision));
                }
                then.push(Op::delete(claim_key.clone()));
            }
            let look = vec![
                file_key.clone(),
                volume_key.clone(),
                keys::epoch_key(),
                claim_key,
                keys::map::key(),
                keys::starts_key(),
            ];
            let proposal = Proposal { compare, then, look };
            let found = match self.commit(upload.generation.0, proposal).await? {
                Outcome::Committed => return Ok(info),
                Outcome::Refused(found) => found,
            };
            let [file, stored_volume, epoch, claim, map, starts] = <[_; 6]>::try_from(found)
                .map_err(|_| FileError::Internal("a commit answered with too few reads".into()))?;
            volume_revision = self.same_volume(volume, stored_volume).await?;
            holds(spec.condition, file.as_ref(), &spec.path)?;
            present = file;
            let revision = |entry: &Option<KeyValue>| entry.as_ref().map_or(0, |entry| entry.mod_revision);
            epoch_revision = revision(&epoch);
            needs_claim = upload.needs_claim(epoch.as_ref(), claim.as_ref())?;
            upload.catch_up((revision(&map), revision(&starts))).await?;
            self.step_aside(attempt).await;
        }
        Err(FileError::Conflict(format!(
            "{:?} is being written by many at once, or nodes start all the time: upload it again",
            spec.path
        )))
    }

    /// The volume's present revision, if it is still the volume that the upload began in.
    async fn same_volume(&self, volume: &OpenVolume, stored: Option<KeyValue>) -> Result<u64, FileError> {
        let Some(stored) = stored else { return Err(FileError::VolumeNotFound(volume.name.to_string())) };
        if stored.mod_revision != volume.revision {
            let fresh = self.fresh_volume(&volume.name).await?;
            Self::must_be_active(&fresh)?;
            if fresh.id() != volume.id() {
                return Err(FileError::Conflict(format!("volume {} was deleted and made anew", volume.name)));
            }
        }
        Ok(stored.mod_revision)
    }
}

impl Upload<'_> {
    /// Takes the whole content and writes its chunks.
    async fn take(&mut self, spec: &UploadSpec, mut content: ContentIn) -> Result<(), FileError> {
        let chunk_bytes = self.volume.record.chunk_size_bytes as usize;
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut gathered = 0;
        let mut room = self.gateway.budget.gathering();
        while let Some(mut piece) = room.wait_for(self.next_piece(&mut content)).await? {
            self.received += piece.len() as u64;
            if spec.size_bytes.is_some_and(|declared| self.received > declared) {
                return Err(self.wrong_size(spec));
            }
            self.hasher.update(&piece);
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(chunk_bytes - gathered));
                // A small file asks for no more than it needs.
                let after = self.received - piece.len() as u64;
                let left = spec.size_bytes.map_or(u64::MAX, |declared| declared - after) as usize;
                let whole = chunk_bytes.min((gathered + part.len()).saturating_add(left));
                room.grow(part.len(), whole).await?;
                gathered += part.len();
                pieces.push(part);
                if gathered == chunk_bytes {
                    self.write_chunk(std::mem::take(&mut pieces), room.complete()).await?;
                    gathered = 0;
                }
            }
        }
        if spec.size_bytes.is_some_and(|declared| self.received != declared) {
            return Err(self.wrong_size(spec));
        }
        if gathered > 0 {
            self.write_chunk(pieces, room.complete()).await?;
        }
        while !self.writes.is_empty() {
            self.one_written().await?;
        }
        Ok(())
    }

    fn wrong_size(&self, spec: &UploadSpec) -> FileError {
        FileError::SizeMismatch { declared: spec.size_bytes.unwrap_or(0), received: self.received }
    }

    async fn write_chunk(&mut self, plain: Vec<Bytes>, room: Option<Room>) -> Result<(), FileError> {
        if u64::from(self.chunks) >= MAX_CHUNKS {
            return Err(FileError::InvalidArgument(
                "the file has too many chunks for this volume's chunk size".into(),
            ));
        }
        let id = ChunkId { generation: self.generation, index: self.chunks };
        self.chunks += 1;
        let (volume, copies) = (self.volume.id(), self.volume.record.copies);
        let chunk = chunks::seal_chunk(&self.key, volume, copies, id, &plain)
            .map_err(|error| FileError::Internal(error.to_string()))?;
        drop(plain);
        while self.writes.len() >= CHUNKS_IN_FLIGHT {
            self.one_written().await?;
        }
        // What is written from now on need not be moved before the commit.
        self.basis.follow(&self.gateway.view.current());
        let (writer, map) = (self.gateway.writer.clone(), self.basis.map().clone());
        self.writes.spawn(async move { writer.write(&map, chunk, Arc::new(room)).await });
        Ok(())
    }

    async fn one_written(&mut self) -> Result<(), FileError> {
        match self.writes.join_next().await {
            Some(Ok(Ok(()))) | None => Ok(()),
            Some(Ok(Err(error))) => Err(write_failed(self.generation, error)),
            Some(Err(error)) => Err(FileError::Internal(format!("writing a chunk failed: {error}"))),
        }
    }

    /// The record to commit, if the content is what was declared.
    fn record(&self, spec: &UploadSpec) -> Result<FileRecord, FileError> {
        let digest = self.hasher.finalize();
        if let Some(declared) = spec.blake3
            && digest != blake3::Hash::from_bytes(declared)
        {
            let (declared, actual) = (hex::encode(declared), digest.to_hex().to_string());
            return Err(FileError::DigestMismatch { declared, actual });
        }
        Ok(FileRecord {
            chunk_size_bytes: self.volume.record.chunk_size_bytes,
            copies: self.volume.record.copies,
            blake3: *digest.as_bytes(),
            modified_unix_ms: self.gateway.env.clock.unix_ms(),
            content_type: spec.content_type.clone(),
            extents: vec![Extent { generation: self.generation, length_bytes: self.received }],
        })
    }

    /// More content, if there is more. Claims the upload's generation when a sweep begins meanwhile, before the next one does.
    async fn next_piece(&mut self, content: &mut ContentIn) -> Result<Option<Bytes>, FileError> {
        while self.claim.is_none() {
            let raised = |state: &ClusterState| (state.epoch > self.generation.epoch()).then_some(());
            tokio::select! {
                biased;
                () = self.gateway.view.wait_for(raised) => {}
                piece = content.next() => return piece.transpose(),
            }
            match self.gateway.claim(self.generation).await {
                Ok(claim) => self.claim = Some(claim),
                Err(error @ FileError::UploadIncomplete(_)) => return Err(error),
                // The store is away: there is time until the next sweep.
                Err(error) => {
                    warn!(generation = %self.generation, %error, "a long upload could not be claimed yet");
                    break;
                }
            }
        }
        content.next().await.transpose()
    }

    /// R2: a commit that is more than one sweep behind needs a claim, and it must have lasted.
    fn needs_claim(&self, epoch: Option<&KeyValue>, claim: Option<&KeyValue>) -> Result<bool, FileError> {
        if is_young(self.generation, epoch.map(keys::number).transpose()?.unwrap_or(0)) {
            return Ok(false);
        }
        let held = self.claim.as_ref().ok_or_else(too_old)?;
        let lasted = claim.is_some_and(|stored| stored.mod_revision == held.revision);
        lasted.then_some(true).ok_or_else(lapsed)
    }

    /// Has what was written buried, as far as that is possible now.
    async fn abandon(&mut self) {
        self.writes.abort_all();
        while self.writes.join_next().await.is_some() {}
        if self.chunks == 0 {
            return;
        }
        debug!(generation = %self.generation, chunks = self.chunks, "an upload is abandoned");
        let (volume, copies) = (self.volume.id(), self.volume.record.copies);
        self.gateway.bury_generation(self.basis.map(), self.generation, self.chunks, volume, copies).await;
    }
}

impl Gateway {
    /// Buries chunks on all their holders; what fails is left.
    async fn bury_generation(
        &self,
        map: &ClusterMap,
        generation: Generation,
        chunks: u32,
        volume: cairn_placement::VolumeId,
        copies: u8,
    ) {
        let state = self.view.current();
        if !state.may_delete() {
            return;
        }
        let tick = state.short_tick(None);
        for (holder, buried) in plan::burials(map, generation, chunks, copies) {
            let tombstone = |id: &ChunkId| Tombstone { id: *id, volume, copies, tick };
            let tombstones: Vec<_> = buried.iter().map(tombstone).collect();
            if holder == self.writer.me {
                let _ = self.writer.store.bury(tombstones).await;
            } else if let Some(node) = state.nodes.get(&holder) {
                let limit = std::time::Duration::from_secs(5);
                let _ = self.writer.peers.bury(node, &tombstones, limit).await;
            }
        }
    }
}

fn gone() -> FileError {
    FileError::UploadIncomplete("the client went away".into())
}

/// Why a chunk of this generation is not on most of its holders, for the caller.
pub(super) fn write_failed(generation: Generation, error: WriteError) -> FileError {
    match error {
        WriteError::NotEnoughNodes { reached, needed, cause } => {
            warn!(%generation, reached, needed, cause, "a chunk found too few nodes");
            FileError::NotEnoughNodes { reached, needed, cause }
        }
        WriteError::OutOfSpace(cause) => FileError::OutOfSpace(cause),
    }
}

/// The collection entries that a replaced or deleted record leaves behind.
pub(super) fn collect_ops(volume: &OpenVolume, old: &FileRecord, tick: u64) -> Vec<Op> {
    let entry = |extent: &Extent| {
        let chunks = extent.length_bytes.div_ceil(u64::from(old.chunk_size_bytes)) as u32;
        let record = CollectRecord::waiting(volume.id(), old.copies, chunks, tick);
        Op::put(keys::collect::key(&extent.generation), keys::to_json(&record))
    };
    old.extents.iter().filter(|extent| extent.length_bytes > 0).map(entry).collect()
}

/// What an upload replaces. Of a damaged record nothing is known: its chunks are the sweep's.
fn replaced(condition: Condition, present: Option<&KeyValue>) -> Result<Option<FileRecord>, FileError> {
    match present.map(FileRecord::decode).transpose() {
        Err(MetaError::Damaged(reason)) if condition == Condition::Always => {
            tracing::warn!(reason, "a damaged record is replaced");
            Ok(None)
        }
        old => Ok(old?),
    }
}

/// Whether the caller's condition holds of the record that is there.
pub(super) fn holds(
    condition: Condition,
    present: Option<&KeyValue>,
    path: &FilePath,
) -> Result<(), FileError> {
    if condition == Condition::Always {
        // Also if what is there cannot be read: that is how it is put right.
        return Ok(());
    }
    let generation = present.map(FileRecord::decode).transpose()?.map(|record| record.generation());
    let refuse = |what: String| Err(FileError::PreconditionFailed(format!("{path:?} {what}")));
    match (condition, generation) {
        (Condition::Always, _) | (Condition::IfAbsent, None) | (Condition::IfExists, Some(_)) => Ok(()),
        (Condition::IfMatch(wanted), Some(found)) if wanted == found => Ok(()),
        (Condition::IfMatch(_), Some(found)) => refuse(format!("has the etag {found} now")),
        (Condition::IfMatch(_) | Condition::IfExists, None) => refuse("does not exist".into()),
        (Condition::IfAbsent, Some(_)) => refuse("exists".into()),
    }
}

fn check_spec(spec: &UploadSpec) -> Result<(), FileError> {
    let visible = spec.content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if spec.content_type.len() > MAX_CONTENT_TYPE_BYTES || !visible {
        let message =
            format!("the content type is longer than {MAX_CONTENT_TYPE_BYTES} bytes, or not visible ASCII");
        return Err(FileError::InvalidArgument(message));
    }
    Ok(())
}

/// Refuses at once what the nodes' disks, all empty, could not hold as often as a write needs.
fn fits(
    size_bytes: Option<u64>,
    copies: u8,
    state: &ClusterState,
    map: &ClusterMap,
) -> Result<(), FileError> {
    let capacities = map.nodes.keys().map(|id| state.nodes.get(id).map(|node| node.capacity_bytes));
    // A node whose size is not known could hold anything.
    let Some(sum) = capacities.map(|bytes| bytes.map(u128::from)).sum::<Option<u128>>() else {
        return Ok(());
    };
    let Some(size_bytes) = size_bytes else { return Ok(()) };
    let needed = plan::min_write(usize::from(copies));
    match u128::from(size_bytes) * needed as u128 > sum {
        true => Err(FileError::OutOfSpace(format!(
            "{size_bytes} bytes, stored {needed} times at least, are more than all nodes could ever hold ({sum} bytes)"
        ))),
        false => Ok(()),
    }
}

/// A name for messages.
pub(super) fn not_found(volume: &VolumeName, path: &FilePath) -> FileError {
    FileError::FileNotFound { volume: volume.to_string(), path: path.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cairn_placement::{Incarnation, MemberNode, NodeId};

    use super::*;
    use crate::cluster::NodeInfo;

    fn cluster(capacities: &[u64]) -> (ClusterState, ClusterMap) {
        let node = |(number, capacity_bytes): (usize, &u64)| NodeInfo {
            id: NodeId(number as u16),
            name: format!("n{number}"),
            zone: "a".into(),
            incarnation: Incarnation([0; 16]),
            capacity_bytes: *capacity_bytes,
            registered: 0,
            address: None,
            version: String::new(),
            file_format: crate::meta::keys::file::NEWEST,
        };
        let nodes: Vec<_> = capacities.iter().enumerate().map(node).collect();
        let member = |node: &NodeInfo| MemberNode {
            id: node.id,
            name: node.name.clone(),
            zone: node.zone.clone(),
            weight: 1,
        };
        let map = ClusterMap {
            generation: 1,
            pg_bits: 0,
            nodes: nodes.iter().map(|node| (node.id, member(node))).collect(),
            members: Vec::new(),
        };
        let nodes: BTreeMap<_, _> = nodes.into_iter().map(|node| (node.id, node)).collect();
        (ClusterState { nodes, ..ClusterState::default() }, map)
    }

    #[test]
    fn what_no_disk_could_hold_is_refused_at_once() {
        let (state, map) = cluster(&[100, 200, 300]);
        for (size, copies, fit) in [
            (Some(600), 1, true),
            (Some(601), 1, false),
            (Some(300), 3, true),
            (Some(301), 3, false),
            (Some(u64::MAX), 1, false),
            (None, 3, true),
        ] {
            assert_eq!(fits(size, copies, &state, &map).is_ok(), fit, "{size:?} {copies}");
        }
        let (mut state, map) = cluster(&[100]);
        state.nodes.clear();
        assert_eq!(fits(Some(u64::MAX), 1, &state, &map), Ok(()));
    }
}
