//! Repair in action: asks, fetches, stores, and keeps the board of what is settled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use cairn_placement::{ClusterMap, NodeId, PgId};
use cairn_proto::v1::ErrorCode;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    super::inventories::{self, GROUPS_A_REQUEST},
    plan::{self, Held, Step},
};
use crate::{
    chunks::{DamagedChunk, Purpose, PutError, Scope, SealedChunk, Tombstone},
    cluster::{ClusterState, NodeInfo},
    replication::{peers::PeerError, read::Reader, write::Writer},
};

/// Damaged chunks looked at in one go.
const MENDED_AT_ONCE: usize = 1_000;
/// Mending is broken off after so long, and left for the next time.
const MEND_LIMIT: Duration = Duration::from_secs(60);
/// Between two times at most, while nothing changes.
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);
/// Chunks fetched at the same time.
const FETCHES_AT_ONCE: usize = 4;
const FETCH_LIMIT: Duration = Duration::from_secs(30);
/// The pause after a pass that found something to do.
const BUSY_PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Between passes that found nothing to do.
    pub interval: Duration,
}

/// What the latest pass found, under one map.
#[derive(Debug, Clone, Default)]
pub struct Settled {
    pub map_generation: u64,
    pub groups: BTreeSet<PgId>,
    /// Chunks fetched since the node started.
    pub repaired_chunks: u64,
}

/// What became of a chunk that this disk lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetched {
    Stored,
    /// Nobody gave it, or not whole.
    Absent,
    /// This disk does not take it, nor anything else.
    Refused,
}

/// This node's repair.
#[derive(Clone)]
pub struct Repair {
    writer: Writer,
    reader: Reader,
    options: RepairOptions,
    board: Arc<Mutex<Settled>>,
}

impl Repair {
    pub fn new(writer: Writer, reader: Reader, options: RepairOptions) -> Self {
        Self { writer, reader, options, board: Arc::default() }
    }

    /// What the latest pass found, without the groups in which damage was found since.
    pub fn settled(&self) -> Settled {
        let mut settled = self.board.lock().clone();
        if let Some(map) = &self.writer.view.current().map {
            // What was torn by a crash was perhaps never acknowledged; the comparison with the metadata knows whether it is missed.
            let damaged = self.writer.store.damaged(None, usize::MAX).into_iter().filter(|chunk| !chunk.torn);
            for held in damaged.filter_map(|chunk| self.to_mend(map, chunk)) {
                settled.groups.remove(&map.pg_of(&held.id));
            }
        }
        settled
    }

    /// Passes, again and again, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let clock = self.writer.env.clock.clone();
        let task = async {
            // What could not be mended is not tried with every pass: it may never go, and costs reading all that is left of it.
            let (mut mend_at, mut patience) = (clock.monotonic(), self.options.interval);
            let mut damage = 0;
            loop {
                let state = self.writer.view.current();
                let busy = match &state.map {
                    Some(map) => {
                        if clock.monotonic() >= mend_at {
                            self.writer.env.timeout(MEND_LIMIT, self.mend(map)).await;
                            mend_at = clock.monotonic() + patience;
                            patience = (patience * 2).min(LONGEST_PATIENCE);
                        }
                        self.pass(&state, map).await
                    }
                    None => false,
                };
                let pause = if busy { BUSY_PAUSE } else { self.options.interval };
                let nodes = liveness(&state);
                tokio::select! {
                    biased;
                    () = clock.sleep(pause) => continue,
                    found = self.writer.store.damage_beyond(damage) => damage = found,
                    // A node that comes or goes is looked at now, not at the end of the pause.
                    _ = self.writer.view.wait_for(|state| (liveness(state) != nodes).then_some(())) => {}
                }
                (mend_at, patience) = (clock.monotonic(), self.options.interval);
            }
        };
        stop.run_until_cancelled(task).await;
    }

    /// Puts damaged chunks of this disk together anew, from what is sound of all copies, its own among them. Members that
    /// have all lost a part of the same chunk agree that none has it: comparing them would not tell.
    async fn mend(&self, map: &ClusterMap) {
        let mut after = None;
        loop {
            let damaged = self.writer.store.damaged(after, MENDED_AT_ONCE);
            let Some(last) = damaged.last() else { return };
            after = Some(last.id);
            let mended = stream::iter(damaged.into_iter().filter_map(|chunk| self.to_mend(map, chunk)))
                .map(|held| self.mend_one(map, held))
                .buffer_unordered(FETCHES_AT_ONCE)
                .filter(|mended| std::future::ready(*mended))
                .count()
                .await;
            if mended > 0 {
                info!(chunks = mended, "mended damaged chunks");
                self.board.lock().repaired_chunks += mended as u64;
            }
        }
    }

    /// A damaged chunk, if this node should have it.
    fn to_mend(&self, map: &ClusterMap, chunk: DamagedChunk) -> Option<Held> {
        let DamagedChunk { id, volume, copies, .. } = chunk;
        let holds = map.holders(map.pg_of(&id), copies).contains(&self.writer.me);
        holds.then_some(Held { id, volume, copies, buried: None })
    }

    /// Makes a damaged chunk of this disk whole: by reading it again, or from all copies.
    async fn mend_one(&self, map: &ClusterMap, held: Held) -> bool {
        self.writer.store.recheck(held.id).await || self.gather(map, held).await == Fetched::Stored
    }

    /// Stores a chunk that is put together from all copies.
    async fn gather(&self, map: &ClusterMap, held: Held) -> Fetched {
        match self.reader.gather(map, held.id, held.copies, 0..u32::MAX).await {
            Ok((header, frames)) => self.store(SealedChunk { header: Arc::new(header), frames }).await,
            Err(error) => {
                debug!(chunk = %held.id, %error, "could not put a chunk together");
                Fetched::Absent
            }
        }
    }

    /// Compares with every live member and fetches what is missing; `true` if there was anything to do.
    async fn pass(&self, state: &ClusterState, map: &ClusterMap) -> bool {
        let me = self.writer.me;
        let mut agreed = BTreeMap::new();
        let mut busy = false;
        for peer in map.nodes.keys().copied().filter(|peer| *peer != me) {
            let groups = plan::shared_groups(map, me, peer);
            let node = state.nodes.get(&peer).filter(|node| node.is_live());
            let (Some(node), false) = (node, groups.is_empty()) else { continue };
            match self.compare(map, node, &groups).await {
                Ok((agreeing, worked)) => {
                    busy |= worked;
                    agreed.insert(peer, agreeing);
                }
                Err(error) => debug!(node = %peer, %error, "could not compare inventories"),
            }
        }
        let settled = plan::settled(map, me, &agreed);
        let mut board = self.board.lock();
        board.map_generation = map.generation;
        board.groups = settled;
        busy
    }

    /// The groups in which the peer agreed, and whether there was a difference about which this node can do something.
    async fn compare(
        &self,
        map: &ClusterMap,
        peer: &NodeInfo,
        groups: &[PgId],
    ) -> Result<(BTreeSet<PgId>, bool), PeerError> {
        let mut agreeing = BTreeSet::new();
        let (mut differences, mut refused) = (false, false);
        for groups in groups.chunks(GROUPS_A_REQUEST) {
            let scope = Scope::Whole { tombstones_since: self.writer.store.tombstones_since() };
            let theirs = inventories::digests(&self.writer, map, peer, groups, scope).await?;
            let mine = inventories::own_digests(&self.writer, map, groups, scope);
            let differing = plan::differing(map, self.writer.me, peer.id, groups, &mine, &theirs);
            agreeing.extend(groups.iter().copied().filter(|pg| !differing.contains(pg)));
            for pg in &differing {
                differences = true;
                refused |= self.fetch_group(map, peer, *pg, refused).await?;
            }
        }
        Ok((agreeing, differences && !refused))
    }

    /// Copies what this node lacks of one group from one member; only deletions, if this disk has `refused` chunks. Whether it
    /// does.
    async fn fetch_group(
        &self,
        map: &ClusterMap,
        peer: &NodeInfo,
        pg: PgId,
        mut refused: bool,
    ) -> Result<bool, PeerError> {
        let theirs = inventories::inventory(&self.writer, map, peer, pg, Scope::ALL).await?;
        let mine = inventories::own_inventory(&self.writer, map, pg, Scope::ALL);
        let since = self.writer.store.tombstones_since();
        let steps = plan::steps(map, (self.writer.me, peer.id), pg, &mine, &theirs, since);
        let buried = steps.iter().filter_map(|step| match *step {
            Step::Bury(Held { id, volume, copies, buried }) => {
                Some(Tombstone { id, volume, copies, tick: buried.unwrap_or(0) })
            }
            Step::Fetch(_) => None,
        });
        let buried: Vec<_> = buried.collect();
        // What others have deleted, too, waits while the metadata store may be an older copy of itself (R10).
        if !buried.is_empty()
            && self.writer.view.current().may_delete()
            && let Err(error) = self.writer.store.bury(buried).await
        {
            debug!(%pg, %error, "could not record deletions");
        }
        let fetches = steps.into_iter().filter_map(|step| match step {
            Step::Fetch(held) => Some(held),
            Step::Bury(_) => None,
        });
        let mut results =
            stream::iter(fetches).map(|held| self.fetch(map, peer, held)).buffer_unordered(FETCHES_AT_ONCE);
        let mut fetched = 0;
        // What a disk does not take is not fetched for it again and again.
        while !refused && let Some(result) = results.next().await {
            fetched += u64::from(result == Fetched::Stored);
            refused = result == Fetched::Refused;
        }
        if fetched > 0 {
            info!(%pg, from = peer.name, chunks = fetched, "repaired");
            self.board.lock().repaired_chunks += fetched;
        }
        Ok(refused)
    }

    async fn fetch(&self, map: &ClusterMap, peer: &NodeInfo, held: Held) -> Fetched {
        let result = self.writer.peers.get_chunk(peer, held.id, 0..u32::MAX, FETCH_LIMIT).await;
        let (header, frames) = match result {
            Ok(found) => found,
            // Its copy is not whole either.
            Err(error) if error.code == ErrorCode::DataCorrupt => return self.gather(map, held).await,
            Err(error) => {
                debug!(chunk = %held.id, %error, "could not fetch a chunk");
                return Fetched::Absent;
            }
        };
        self.store(SealedChunk { header: Arc::new(header), frames }).await
    }

    async fn store(&self, chunk: SealedChunk) -> Fetched {
        let id = chunk.header.id;
        match self.writer.store.put(chunk, Purpose::Repair).await {
            Ok(_) => Fetched::Stored,
            // The store has said so.
            Err(error @ (PutError::Failed(_) | PutError::Full | PutError::Closed)) => {
                debug!(chunk = %id, %error, "could not store a repaired chunk");
                Fetched::Refused
            }
            Err(error) => {
                warn!(chunk = %id, %error, "could not store a repaired chunk");
                Fetched::Absent
            }
        }
    }
}

/// Who is there, by disk.
fn liveness(state: &ClusterState) -> Vec<(NodeId, bool, cairn_placement::Incarnation)> {
    state.nodes.values().map(|node| (node.id, node.is_live(), node.incarnation)).collect()
}
