//! Collection (R7): a queued generation whose time has come, and that nobody pins, gets tombstones on every holder; then its
//! entry goes.
//!
//! The entry is read before the pins, and marked as burying by a transaction that compares it: a pin that was made in between
//! has written it again. When a node is out of room for clients' writes, the rest is only as long as a download needs to be
//! pinned (see `files/pins.rs`).
//!
//! The entry stays until *every* holder has recorded its tombstones durably, so a node that is away now cannot bring
//! the chunks back later: when it returns it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use cairn_placement::{ClusterMap, Generation, NodeId, VolumeId};
use futures::future::join_all;
use parking_lot::Mutex;
use tracing::{debug, info, warn};

use crate::{
    chunks::Tombstone,
    cluster::{ClusterState, NodeInfo, coordinate::Term},
    meta::{
        Compare, Freshness, KeyValue, MetaError, Op, RangeRead, SharedMeta, Txn,
        keys::{self, collect::CollectRecord},
        prefix_end,
    },
    replication::{plan::burials, write::Writer},
    workers::records,
};

/// Entries looked at in one round.
const ENTRIES_A_ROUND: usize = 500;
/// Chunks in one request to a holder.
const CHUNKS_A_REQUEST: usize = 2_048;
/// Entries removed in one transaction.
const ENTRIES_A_TXN: usize = 50;
const BURY_LIMIT: Duration = Duration::from_secs(20);

/// The rest while a node is out of room: after so many ticks every download that had begun before is pinned.
const PRESSED_TICKS: u64 = 3;
/// Between two looks whether a node is out of room.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(10);
const LOOK_LIMIT: Duration = Duration::from_secs(3);

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
    pressed: Mutex<Pressed>,
}

struct Due {
    generation: Generation,
    record: CollectRecord,
    /// Of its entry, as last read or written.
    revision: u64,
}

impl Due {
    fn key(&self) -> Bytes {
        keys::collect::key(&self.generation)
    }

    fn unchanged(&self) -> Compare {
        Compare::unchanged(self.key(), self.revision)
    }
}

/// Whether a node was out of room, and when that was looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Pressed {
    looked: Option<Duration>,
    is: bool,
}

impl Collector {
    pub fn new(meta: SharedMeta, writer: Writer, after_ticks: u64) -> Self {
        let cursor = Mutex::new(Bytes::from_static(keys::collect::PREFIX));
        Self { meta, writer, after_ticks, cursor, pressed: Mutex::default() }
    }

    /// One round; gives how many generations it collected.
    pub async fn round(&self, term: &Term, state: &ClusterState) -> Result<usize, MetaError> {
        let Some(map) = state.map.clone() else { return Ok(0) };
        let queued = self.next_page().await?;
        if queued.is_empty() {
            return Ok(0);
        }
        let rest = match self.is_pressed(state).await {
            true => self.after_ticks.min(PRESSED_TICKS),
            false => self.after_ticks,
        };
        let (burying, waiting): (Vec<_>, Vec<_>) =
            queued.into_iter().partition(|queued| queued.record.buried_tick.is_some());
        let due: Vec<_> =
            waiting.into_iter().filter(|queued| is_due(&queued.record, state.tick, rest)).collect();
        let mut due = self.begin(term, state, due).await?;
        due.extend(burying);
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

    /// The next entries of the queue; from the front again once it was gone through.
    async fn next_page(&self) -> Result<Vec<Due>, MetaError> {
        let read = RangeRead {
            start: self.cursor.lock().clone(),
            end: prefix_end(keys::collect::PREFIX),
            limit: ENTRIES_A_ROUND,
            ..RangeRead::default()
        };
        let page = self.meta.range(read).await?;
        let next = page.entries.last().filter(|_| page.more).map(|entry| [&entry.key[..], &[0]].concat());
        *self.cursor.lock() = next.map_or(Bytes::from_static(keys::collect::PREFIX), Bytes::from);
        let due = |entry: KeyValue| {
            let (generation, record) = (keys::collect::generation(&entry)?, keys::from_json(&entry)?);
            Ok(Due { generation, record, revision: entry.mod_revision })
        };
        page.entries.into_iter().map(due).collect()
    }

    /// Whether clients' writes are refused on some node for want of room.
    async fn is_pressed(&self, state: &ClusterState) -> bool {
        let now = self.writer.env.clock.monotonic();
        let known = *self.pressed.lock();
        if known.looked.is_some_and(|looked| now - looked < LOOK_FOR_ROOM) {
            return known.is;
        }
        let ask = async |node: &NodeInfo| match node.id == self.writer.me {
            true => self.writer.store.usage().out_of_room,
            false => {
                let settled = self.writer.peers.settled(node, 0, LOOK_LIMIT).await;
                settled.is_ok_and(|settled| settled.out_of_room)
            }
        };
        let asked = state.nodes.values().filter(|node| node.is_live()).map(ask);
        let is = join_all(asked).await.contains(&true);
        if is && !known.is {
            info!("a node is out of room: deleted files rest only as long as nobody reads them");
        }
        *self.pressed.lock() = Pressed { looked: Some(now), is };
        is
    }

    /// Marks as burying what nobody pins; gives that.
    async fn begin(&self, term: &Term, state: &ClusterState, due: Vec<Due>) -> Result<Vec<Due>, MetaError> {
        let mut begun = Vec::with_capacity(due.len());
        if due.is_empty() {
            return Ok(begun);
        }
        let pinned = self.pinned().await?;
        let mut free: Vec<_> = due.into_iter().filter(|due| !pinned.contains(&due.generation)).collect();
        while !free.is_empty() {
            let mut group = free.split_off(free.len().saturating_sub(ENTRIES_A_TXN));
            let compare = group.iter().map(Due::unchanged).chain([term.holds()]).collect();
            group.iter_mut().for_each(|due| due.record.buried_tick = Some(state.tick));
            let then = group.iter().map(|due| Op::put(due.key(), keys::to_json(&due.record))).collect();
            let result = self.meta.txn(Txn { compare, then, otherwise: vec![] }).await?;
            // Else one of them was pinned meanwhile: the next round knows.
            if result.succeeded {
                group.iter_mut().for_each(|due| due.revision = result.revision);
                begun.append(&mut group);
            }
        }
        Ok(begun)
    }

    /// What long downloads read.
    async fn pinned(&self) -> Result<BTreeSet<Generation>, MetaError> {
        let mut pinned = BTreeSet::new();
        let take = |entry: &KeyValue| {
            pinned.insert(keys::pin::generation(entry)?);
            Ok(())
        };
        records::each(&*self.meta, keys::pin::PREFIX, Freshness::Linearizable, take).await?;
        Ok(pinned)
    }

    /// Has all chunks buried; gives the holders that did not confirm all of theirs.
    async fn bury(&self, state: &ClusterState, map: &ClusterMap, due: &[Due]) -> BTreeSet<NodeId> {
        let mut by_holder: BTreeMap<NodeId, Vec<Tombstone>> = BTreeMap::new();
        for due in due {
            let (volume, copies) = (VolumeId(due.record.volume), due.record.copies);
            let tick = state.short_tick(due.record.buried_tick);
            for (holder, ids) in burials(map, due.generation, due.record.chunks, copies) {
                let tombstones = ids.into_iter().map(|id| Tombstone { id, volume, copies, tick });
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
        self.writer.peers.bury(node, chunks, BURY_LIMIT).await.map_err(|error| error.to_string())
    }

    async fn forget(&self, term: &Term, group: &[Due]) -> Result<(), MetaError> {
        let compare = group.iter().map(Due::unchanged).chain([term.holds()]).collect();
        let then = group.iter().map(|due| Op::delete(due.key())).collect();
        self.meta.txn(Txn { compare, then, otherwise: vec![] }).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_rest_by_ticks() {
        let record = CollectRecord::waiting(VolumeId(1), 3, 1, 10);
        assert!(!is_due(&record, 24, 15));
        assert!(is_due(&record, 25, 15));
        assert!(is_due(&record, 10, 0));
    }
}
