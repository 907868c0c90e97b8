//! Collection (R7): a queued generation whose time has come gets tombstones on every holder; then its entry goes.
//!
//! The entry stays until *every* holder has recorded its tombstones durably, so a node that is away now cannot bring
//! the chunks back later: when it returns it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use cairn_placement::{ClusterMap, Generation, NodeId, VolumeId};
use cairn_proto::v1 as proto;
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::{
    chunks::Tombstone,
    cluster::{ClusterState, coordinate::Term},
    meta::{
        Compare, KeyValue, MetaError, Op, RangeRead, SharedMeta, Txn,
        keys::{self, collect::CollectRecord},
        prefix_end,
    },
    replication::{plan::burials, write::Writer},
};

/// Entries looked at in one round.
const ENTRIES_A_ROUND: usize = 500;
/// Chunks in one request to a holder.
const CHUNKS_A_REQUEST: usize = 2_048;
/// Entries removed in one transaction.
const ENTRIES_A_TXN: usize = 50;
const BURY_LIMIT: Duration = Duration::from_secs(20);

/// Whether an entry's rest is over.
pub fn is_due(record: &CollectRecord, tick: u64, after_ticks: u64) -> bool {
    tick >= record.tick.saturating_add(after_ticks)
}

/// The coordinator's collection.
pub struct Collector {
    pub meta: SharedMeta,
    pub writer: Writer,
    /// Ticks that an entry rests, for downloads that have begun (R7: 15 minutes).
    pub after_ticks: u64,
    /// Where the last round stopped.
    cursor: Mutex<Bytes>,
}

struct Due {
    entry: KeyValue,
    generation: Generation,
    record: CollectRecord,
}

impl Collector {
    pub fn new(meta: SharedMeta, writer: Writer, after_ticks: u64) -> Self {
        let cursor = Mutex::new(Bytes::from_static(keys::collect::PREFIX));
        Self { meta, writer, after_ticks, cursor }
    }

    /// One round; gives how many generations it collected.
    pub async fn round(&self, term: &Term, state: &ClusterState) -> Result<usize, MetaError> {
        let Some(map) = state.map.clone() else { return Ok(0) };
        let read = RangeRead {
            start: self.cursor.lock().clone(),
            end: prefix_end(keys::collect::PREFIX),
            limit: ENTRIES_A_ROUND,
            ..RangeRead::default()
        };
        let page = self.meta.range(read).await?;
        let next = page.entries.last().filter(|_| page.more).map(|entry| [&entry.key[..], &[0]].concat());
        *self.cursor.lock() = next.map_or(Bytes::from_static(keys::collect::PREFIX), Bytes::from);
        let mut due = Vec::new();
        for entry in page.entries {
            let record: CollectRecord = keys::from_json(&entry)?;
            if is_due(&record, state.tick, self.after_ticks) {
                due.push(Due { generation: keys::collect::generation(&entry)?, record, entry });
            }
        }
        if due.is_empty() {
            return Ok(0);
        }
        let failed = self.bury(state, &map, &due).await;
        let done: Vec<_> = due
            .into_iter()
            .filter(|due| {
                let holders = burials(&map, due.generation, due.record.chunks, due.record.copies);
                holders.keys().all(|holder| !failed.contains(holder))
            })
            .collect();
        for group in done.chunks(ENTRIES_A_TXN) {
            self.forget(term, group).await?;
        }
        debug!(collected = done.len(), "collected deleted generations");
        Ok(done.len())
    }

    /// Has all chunks buried; gives the holders that did not confirm all of theirs.
    async fn bury(&self, state: &ClusterState, map: &ClusterMap, due: &[Due]) -> BTreeSet<NodeId> {
        let mut by_holder: BTreeMap<NodeId, Vec<Tombstone>> = BTreeMap::new();
        for due in due {
            let (volume, copies) = (VolumeId(due.record.volume), due.record.copies);
            for (holder, ids) in burials(map, due.generation, due.record.chunks, copies) {
                let tombstones = ids.into_iter().map(|id| Tombstone { id, volume, copies });
                by_holder.entry(holder).or_default().extend(tombstones);
            }
        }
        let mut failed = BTreeSet::new();
        for (holder, tombstones) in by_holder {
            for part in tombstones.chunks(CHUNKS_A_REQUEST) {
                if let Err(cause) = self.bury_at(state, holder, part).await {
                    warn!(node = %holder, cause, "deleted chunks wait for a node to confirm");
                    failed.insert(holder);
                    break;
                }
            }
        }
        failed
    }

    async fn bury_at(
        &self,
        state: &ClusterState,
        holder: NodeId,
        chunks: &[Tombstone],
    ) -> Result<(), String> {
        if holder == self.writer.me {
            return self.writer.store.bury(chunks.to_vec()).await.map_err(|error| error.to_string());
        }
        let node = state.nodes.get(&holder).ok_or("it is not registered")?;
        let wire = chunks.iter().map(|tombstone| proto::BuriedChunk {
            generation: Bytes::copy_from_slice(&tombstone.id.generation.0),
            index: tombstone.id.index,
            volume: tombstone.volume.0,
            copies: u32::from(tombstone.copies),
        });
        let buried = self.writer.peers.bury(node, wire.collect(), BURY_LIMIT).await;
        buried.map_err(|error| error.to_string())
    }

    async fn forget(&self, term: &Term, group: &[Due]) -> Result<(), MetaError> {
        let mut compare = vec![term.holds()];
        compare.extend(
            group.iter().map(|due| Compare::unchanged(due.entry.key.clone(), due.entry.mod_revision)),
        );
        let then = group.iter().map(|due| Op::delete(due.entry.key.clone())).collect();
        self.meta.txn(Txn { compare, then, otherwise: vec![] }).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_rest_by_ticks() {
        let record = CollectRecord { volume: 1, copies: 3, chunks: 1, tick: 10 };
        assert!(!is_due(&record, 24, 15));
        assert!(is_due(&record, 25, 15));
        assert!(is_due(&record, 10, 0));
    }
}
