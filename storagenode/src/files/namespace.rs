//! Names: listing, deleting, and where a file's chunks are.

use std::time::Duration;

use bytes::Bytes;
use cairn_placement::{ChunkId, ClusterMap, NodeId};
use futures::{StreamExt, stream};

use super::{
    ChunkLocation, Condition, CopyState, FileError, FileInfo, FilePath, ListSpec, Listing, MAX_PAGE, Stat,
    VolumeName,
    commit::{self, Outcome, Proposal},
    gateway::{Gateway, OpenVolume, file_info},
    page,
    path::MAX_PATH_BYTES,
    upload::{collect_ops, holds, not_found},
};
use crate::{
    chunks::Presence,
    cluster::ClusterState,
    meta::{
        Compare, KeyValue, Op, RangeRead,
        keys::{self, file::FileRecord},
        prefix_end,
    },
};

/// How long a node is asked whether it has a chunk.
const LOCATE_LIMIT: Duration = Duration::from_secs(3);
/// Nodes asked at the same time.
const LOCATE_AT_ONCE: usize = 16;
/// Chunks that are located at most: enough to see where a file is.
const MAX_LOCATED: u64 = 10_000;

impl Gateway {
    pub(super) async fn do_delete(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        condition: Condition,
    ) -> Result<FileInfo, FileError> {
        for attempt in 0..commit::ATTEMPTS {
            let found = match self.find(volume, path).await {
                Err(FileError::FileNotFound { .. }) if condition != Condition::Always => {
                    holds(condition, None, path)?;
                    return Err(not_found(volume, path));
                }
                other => other?,
            };
            Self::must_be_active(&found.volume)?;
            holds(condition, Some(&found.entry), path)?;
            let key = found.entry.key.clone();
            let mut then = vec![Op::delete(key.clone())];
            then.extend(collect_ops(&found.volume, &found.record, self.view.current().tick));
            let proposal = Proposal {
                compare: vec![
                    Compare::unchanged(key, found.entry.mod_revision),
                    Compare::unchanged(keys::volume::key(volume.as_str()), found.volume.revision),
                ],
                then,
                look: vec![],
            };
            if let Outcome::Committed = self.commit(self.env.random.bytes(), proposal).await? {
                return Ok(file_info(volume, path, &found.record));
            }
            self.step_aside(attempt).await;
        }
        Err(FileError::Conflict(format!("{path:?} is being written by many at once")))
    }

    pub(super) async fn do_list(&self, volume: &VolumeName, spec: ListSpec) -> Result<Listing, FileError> {
        if spec.prefix.len() > MAX_PATH_BYTES {
            return Err(FileError::InvalidArgument(format!(
                "the prefix is over {MAX_PATH_BYTES} bytes long"
            )));
        }
        let limit = spec.limit.clamp(1, MAX_PAGE);
        let volume = self.fresh_volume(volume).await?;
        let base = keys::file::prefix(volume.id());
        let whole = [&base[..], spec.prefix.as_bytes()].concat();
        let end = prefix_end(&whole);
        let mut start = match spec.token.is_empty() {
            true => Bytes::from(whole),
            false => resume(&volume, &base, &spec)?,
        };
        let mut listing = Listing::default();
        let mut last = String::new();
        loop {
            let left = limit - listing.files.len() - listing.prefixes.len();
            let read =
                RangeRead { start: start.clone(), end: end.clone(), limit: left + 1, ..RangeRead::default() };
            let page = self.retry_read(|| self.meta.range(read.clone())).await?;
            for entry in &page.entries {
                if entry.key < start {
                    continue;
                }
                if listing.files.len() + listing.prefixes.len() == limit {
                    listing.next_token = page::token(&pages_of(&volume, &spec), &last);
                    return Ok(listing);
                }
                let (next, name) = self.list_entry(&volume, &spec, entry, &mut listing)?;
                (start, last) = (next, name);
            }
            if !page.more {
                return Ok(listing);
            }
            // Everything read is behind us; if all of it was rolled up, `start` is past it already.
            let read_to = page.entries.last().map_or(start.clone(), |entry| after(&entry.key));
            start = start.max(read_to);
        }
    }

    /// Adds one entry, or the prefix that it is rolled up into; gives where to go on, and the name to resume after.
    fn list_entry(
        &self,
        volume: &OpenVolume,
        spec: &ListSpec,
        entry: &KeyValue,
        listing: &mut Listing,
    ) -> Result<(Bytes, String), FileError> {
        let path = keys::file::path(entry)?;
        let rest = path.get(spec.prefix.len()..).unwrap_or_default();
        if spec.delimited
            && let Some(at) = rest.find('/')
        {
            let prefix = path[..spec.prefix.len() + at + 1].to_owned();
            let next = prefix_end(&[&keys::file::prefix(volume.id())[..], prefix.as_bytes()].concat());
            listing.prefixes.push(prefix.clone());
            return Ok((next, prefix));
        }
        let parsed = FilePath::parse(path).map_err(|error| {
            FileError::Internal(format!("the store holds the file name {path:?}: {error}"))
        })?;
        listing.files.push(file_info(&volume.name, &parsed, &FileRecord::decode(entry)?));
        Ok((after(&entry.key), path.to_owned()))
    }

    pub(super) async fn do_locate(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<(Stat, Vec<ChunkLocation>), FileError> {
        let found = self.find_known(volume, path, max_stale).await?;
        let (state, map) = self.placed()?;
        let mut locations = locations(&found.record, &map);
        let asks: Vec<_> = (0..locations.len())
            .flat_map(|at| (0..locations[at].1.copies.len()).map(move |copy| (at, copy)))
            .map(|(at, copy)| (at, copy, locations[at].0, locations[at].1.copies[copy].0))
            .collect();
        let answers: Vec<_> = stream::iter(asks)
            .map(|(at, copy, id, node)| {
                let state = &state;
                async move { (at, copy, self.copy_state(state, id, node).await) }
            })
            .buffer_unordered(LOCATE_AT_ONCE)
            .collect()
            .await;
        for (at, copy, copy_state) in answers {
            locations[at].1.copies[copy].1 = copy_state;
        }
        let stat = Stat { file: file_info(volume, path, &found.record), stale: found.stale };
        Ok((stat, locations.into_iter().map(|(_, location)| location).collect()))
    }

    /// Whether a node has a chunk, whole as far as it knows.
    pub(super) async fn copy_state(&self, state: &ClusterState, id: ChunkId, node: NodeId) -> CopyState {
        if node == self.writer.me {
            return match self.writer.store.contains(id) {
                Presence::Present => CopyState::Present,
                _ => CopyState::Missing,
            };
        }
        let Some(node) = state.nodes.get(&node) else { return CopyState::Unreachable };
        match self.writer.peers.has_chunk(node, id, LOCATE_LIMIT).await {
            Ok(true) => CopyState::Present,
            Ok(false) => CopyState::Missing,
            Err(_) => CopyState::Unreachable,
        }
    }
}

/// Where each chunk should be; whether it is there is yet to be asked.
fn locations(record: &FileRecord, map: &ClusterMap) -> Vec<(ChunkId, ChunkLocation)> {
    let chunk_bytes = u64::from(record.chunk_size_bytes);
    let mut locations = Vec::new();
    let mut start = 0;
    for extent in &record.extents {
        let chunks = extent.length_bytes.div_ceil(chunk_bytes).min(MAX_LOCATED - locations.len() as u64);
        for index in 0..chunks {
            let id = ChunkId { generation: extent.generation, index: index as u32 };
            let pg = map.pg_of(&id);
            let holders = map.holders(pg, record.copies).iter();
            let location = ChunkLocation {
                index: index as u32,
                offset: start + index * chunk_bytes,
                length: (extent.length_bytes - index * chunk_bytes).min(chunk_bytes),
                pg,
                copies: holders.map(|holder| (*holder, CopyState::Unreachable)).collect(),
            };
            locations.push((id, location));
        }
        start += extent.length_bytes;
    }
    locations
}

/// The first key after `key`.
fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// Which listing a page token is of.
fn pages_of(volume: &OpenVolume, spec: &ListSpec) -> Vec<u8> {
    let delimiter: &[u8] = if spec.delimited { b"/" } else { b"-" };
    [&b"files"[..], &volume.id().0.to_le_bytes(), delimiter, spec.prefix.as_bytes()].concat()
}

/// Where a listing goes on after the name in its token.
fn resume(volume: &OpenVolume, base: &[u8], spec: &ListSpec) -> Result<Bytes, FileError> {
    let name = page::name(&pages_of(volume, spec), &spec.token)?;
    if name.len() > MAX_PATH_BYTES || !name.starts_with(&spec.prefix) {
        return Err(page::foreign());
    }
    let key = [base, name.as_bytes()].concat();
    // A rolled-up prefix ends with the delimiter, a file's name never does.
    Ok(if spec.delimited && name.ends_with('/') { prefix_end(&key) } else { after(&key) })
}
