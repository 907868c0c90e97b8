//! What an upload has written, held against the map and the disks at its commit (R4).
//!
//! A chunk is written once most of its holders have it durably: holders by the map of that moment, on the disks of that moment.
//! An upload may last for hours. Meanwhile groups may be given to other nodes, and a node may come back with an empty disk, or
//! with an older copy of its own (R9). So the upload keeps which groups are *in doubt*: those whose holders are others by now, or
//! of whose holders one has registered again. Before the commit every holder of such a group is asked for each chunk of it. Where
//! fewer than most have one, it is read from whoever has it and given to those that lack it, sealed as it is (R1). If that cannot
//! be done, the upload fails and nothing visible has changed.
//!
//! Nothing can come in between: the commit compares the head of the map and the key that every registration writes
//! (`c/starts`), both with the revisions under which the holders were asked. When one has changed, the upload catches up, asks
//! again about what is in doubt now, and tries once more. A node that restarts in good order costs one question for each chunk
//! that it holds of the uploads under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use cairn_placement::{ChunkId, ClusterMap, NodeId, PgId};
use futures::{StreamExt, TryStreamExt, stream, stream::FuturesUnordered};
use tracing::{info, warn};

use super::{
    CopyState, FileError,
    gateway::META_PATIENCE,
    upload::{Upload, write_failed},
};
use crate::{
    chunks::{ChunkHeader, SealedChunk, open_frame},
    cluster::{ClusterState, NodeInfo},
    meta::{Compare, keys},
    replication::{
        plan::{Quorum, Verdict},
        write::WriteError,
    },
};

/// Chunks that are asked for at the same time.
const AT_ONCE: usize = 16;
/// Between two attempts to find enough nodes.
const PAUSE: Duration = Duration::from_millis(250);

/// The map and the disks that an upload relies on.
#[derive(Debug, Clone)]
pub(super) struct Basis {
    state: Arc<ClusterState>,
    map: Arc<ClusterMap>,
    copies: u8,
    /// Groups whose chunks may not be where they were written, and who has held them since the upload began.
    doubted: BTreeMap<PgId, BTreeSet<NodeId>>,
}

impl Basis {
    pub(super) fn new(state: Arc<ClusterState>, map: Arc<ClusterMap>, copies: u8) -> Self {
        Self { state, map, copies, doubted: BTreeMap::new() }
    }

    pub(super) fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// Holds as long as neither the map nor a disk is another one.
    pub(super) fn holds(&self) -> [Compare; 2] {
        [
            Compare::unchanged(keys::map::key(), self.state.map_revision),
            Compare::unchanged(keys::starts_key(), self.state.starts_revision),
        ]
    }

    fn has_seen(&self, map_revision: u64, starts_revision: u64) -> bool {
        self.state.map_revision >= map_revision && self.state.starts_revision >= starts_revision
    }

    /// Goes over to a newer state: what the change puts in doubt is noted.
    pub(super) fn follow(&mut self, now: Arc<ClusterState>) {
        let Some(map) = now.map.clone() else { return };
        let changed = |revision: fn(&ClusterState) -> u64| revision(&self.state) != revision(&now);
        if changed(|state| state.map_revision) || changed(|state| state.starts_revision) {
            let groups = (0..map.pg_count()).map(PgId);
            self.doubted = groups.filter_map(|pg| Some((pg, self.doubt(pg, &map, &now)?))).collect();
        }
        (self.state, self.map) = (now, map);
    }

    /// Who has held what is in this group of the new map, if that is in doubt.
    fn doubt(&self, pg: PgId, map: &ClusterMap, now: &ClusterState) -> Option<BTreeSet<NodeId>> {
        let holders = map.holders(pg, self.copies);
        let mut in_doubt = false;
        let mut sources = BTreeSet::new();
        for before in overlapping(pg, map.pg_bits, self.map.pg_bits).map(PgId) {
            let held = self.map.holders(before, self.copies);
            in_doubt |= held != holders || held.iter().any(|id| disk(&self.state, *id) != disk(now, *id));
            sources.extend(held);
            if let Some(earlier) = self.doubted.get(&before) {
                in_doubt = true;
                sources.extend(earlier);
            }
        }
        in_doubt.then_some(sources)
    }
}

/// What a node's disk has acknowledged is there as long as this is the same.
fn disk(state: &ClusterState, id: NodeId) -> Option<u64> {
    state.nodes.get(&id).map(|node: &NodeInfo| node.registered)
}

/// The groups of a map with `other_bits` that share chunks with a group of one with `bits`: groups are halved in place.
fn overlapping(pg: PgId, bits: u8, other_bits: u8) -> Range<u32> {
    match other_bits.checked_sub(bits) {
        Some(more) => pg.0 << more..(pg.0 + 1) << more,
        None => {
            let whole = pg.0 >> (bits - other_bits);
            whole..whole + 1
        }
    }
}

impl Upload<'_> {
    /// Goes over to the cluster's present state, or to that of a failed commit's reads, which may not have come here yet.
    pub(super) async fn catch_up(
        &mut self,
        map_revision: u64,
        starts_revision: u64,
    ) -> Result<(), FileError> {
        let gateway = self.gateway;
        self.basis.follow(gateway.view.current());
        if self.basis.has_seen(map_revision, starts_revision) {
            return Ok(());
        }
        let newer = |state: &ClusterState| {
            (state.map_revision >= map_revision && state.starts_revision >= starts_revision).then_some(())
        };
        let seen = gateway.env.timeout(META_PATIENCE, gateway.view.wait_for(newer)).await;
        seen.ok_or(FileError::NotReady("this node has not heard of the cluster's latest change yet".into()))?;
        self.basis.follow(gateway.view.current());
        Ok(())
    }

    /// Sees to it that most holders have each chunk that is in doubt. A node that has just started is waited for.
    pub(super) async fn confirm(&mut self) -> Result<(), FileError> {
        let gateway = self.gateway;
        let deadline = gateway.env.clock.monotonic() + META_PATIENCE;
        while !self.basis.doubted.is_empty() {
            match self.confirm_all().await {
                Ok(supplied) => {
                    if supplied > 0 {
                        info!(generation = %self.generation, supplied, "copies were made before a commit");
                    }
                    self.basis.doubted.clear();
                }
                Err(FileError::NotEnoughNodes { .. }) if gateway.env.clock.monotonic() + PAUSE < deadline => {
                    gateway.env.clock.sleep(PAUSE).await;
                    self.basis.follow(gateway.view.current());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says how many copies it has made.
    async fn confirm_all(&self) -> Result<u32, FileError> {
        let ids = (0..self.chunks).map(|index| ChunkId { generation: self.generation, index });
        let doubted = ids.filter(|id| self.basis.doubted.contains_key(&self.basis.map.pg_of(id)));
        let confirming = stream::iter(doubted).map(|id| self.confirm_one(id)).buffer_unordered(AT_ONCE);
        confirming.try_fold(0, async |sum, given| Ok(sum + given)).await
    }

    /// Asks who has a chunk, and gives it to others until most of its holders do; says to how many.
    async fn confirm_one(&self, id: ChunkId) -> Result<u32, FileError> {
        let Basis { state, map, copies, doubted } = &self.basis;
        let pg = map.pg_of(&id);
        let holders = map.holders(pg, *copies);
        let mut quorum = Quorum::new(holders.len(), usize::from(*copies));
        let mut lacking = Vec::new();
        let asked = holders
            .iter()
            .map(|holder| async { (*holder, self.gateway.copy_state(state, id, *holder).await) });
        let mut asked: FuturesUnordered<_> = asked.collect();
        while quorum.verdict() == Verdict::Pending
            && let Some((holder, found)) = asked.next().await
        {
            match found {
                CopyState::Present => quorum.succeeded(),
                CopyState::Missing => lacking.push(holder),
                CopyState::Unreachable => quorum.failed(),
            }
        }
        drop(asked);
        let mut given = 0;
        let mut errors = Vec::new();
        if quorum.verdict() == Verdict::Pending {
            let _permit = self.gateway.reserve(self.volume.record.chunk_size_bytes as usize).await?;
            let earlier = doubted.get(&pg).into_iter().flatten();
            let sources: BTreeSet<_> = earlier.chain(holders).copied().collect();
            let chunk = self.fetch(id, &sources.into_iter().collect::<Vec<_>>()).await?;
            for holder in lacking {
                if quorum.verdict() != Verdict::Pending {
                    break;
                }
                match self.gateway.writer.put(state, holder, &chunk).await {
                    Ok(()) => {
                        given += 1;
                        quorum.succeeded();
                    }
                    Err(error) => {
                        warn!(chunk = %id, node = %holder, %error, "a node did not take a chunk before a commit");
                        quorum.failed();
                        errors.push(error);
                    }
                }
            }
        }
        match quorum.verdict() {
            Verdict::Written => Ok(given),
            _ => Err(write_failed(self.generation, WriteError::of(&quorum, &errors))),
        }
    }

    /// The chunk as it was sealed, from one of those that may have it.
    async fn fetch(&self, id: ChunkId, sources: &[NodeId]) -> Result<SealedChunk, FileError> {
        let whole = |header: &ChunkHeader, frames: Vec<Bytes>| {
            if header.volume != self.volume.id() || header.copies != self.basis.copies {
                return Err("the copy's header is of another chunk".to_owned());
            }
            if frames.len() != header.frames() as usize {
                return Err("the copy has fewer frames than it should".to_owned());
            }
            for (frame, sealed) in (0..).zip(&frames) {
                open_frame(&self.key, header.volume, id, frame, header.plain_length, sealed)
                    .map_err(|error| error.to_string())?;
            }
            Ok(SealedChunk { header: Arc::new(header.clone()), frames })
        };
        self.gateway.reader.read_from(sources, id, 0..u32::MAX, whole).await.map_err(|error| {
            let needed = crate::replication::plan::min_write(usize::from(self.basis.copies));
            warn!(chunk = %id, %error, "what an upload had written is not there any more");
            FileError::NotEnoughNodes { reached: 0, needed }
        })
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::{Incarnation, MemberNode, assign};
    use proptest::prelude::*;

    use super::*;

    const BITS: u8 = 4;

    fn map_of(nodes: &[u16], generation: u64) -> ClusterMap {
        let member =
            |id: &u16| MemberNode { id: NodeId(*id), name: id.to_string(), zone: id.to_string(), weight: 1 };
        assign(&nodes.iter().map(member).collect::<Vec<_>>(), BITS, generation).unwrap()
    }

    /// Nodes registered at the given revisions, by number.
    fn state(map: &ClusterMap, map_revision: u64, registered: &[(u16, u64)]) -> Arc<ClusterState> {
        let node = |(id, registered): &(u16, u64)| NodeInfo {
            id: NodeId(*id),
            name: id.to_string(),
            zone: id.to_string(),
            incarnation: Incarnation([0; 16]),
            capacity_bytes: 1,
            registered: *registered,
            address: None,
            version: String::new(),
        };
        Arc::new(ClusterState {
            map: Some(Arc::new(map.clone())),
            map_revision,
            nodes: registered.iter().map(|entry| (NodeId(entry.0), node(entry))).collect(),
            starts_revision: registered.iter().map(|(_, revision)| *revision).max().unwrap_or(0),
            ..ClusterState::default()
        })
    }

    fn basis(state: &Arc<ClusterState>, copies: u8) -> Basis {
        Basis::new(state.clone(), state.map.clone().unwrap(), copies)
    }

    #[test]
    fn what_a_node_held_that_registers_again_is_in_doubt() {
        let map = map_of(&[1, 2, 3, 4], 1);
        let before = state(&map, 9, &[(1, 5), (2, 6), (3, 7), (4, 8)]);
        let mut basis = basis(&before, 3);
        basis.follow(before.clone());
        assert_eq!(basis.doubted, BTreeMap::new());
        basis.follow(state(&map, 9, &[(1, 5), (2, 20), (3, 7), (4, 8)]));
        let expected: BTreeSet<_> =
            (0..1 << BITS).map(PgId).filter(|pg| map.holders(*pg, 3).contains(&NodeId(2))).collect();
        assert_eq!(basis.doubted.keys().copied().collect::<BTreeSet<_>>(), expected);
        assert!(
            basis
                .doubted
                .iter()
                .all(|(pg, sources)| sources.iter().eq(map.holders(*pg, 3).iter().collect::<BTreeSet<_>>()))
        );
        assert_eq!(basis.holds()[1], Compare::unchanged(keys::starts_key(), 20));
        // Doubt stays until it is settled.
        let doubted = basis.doubted.clone();
        basis.follow(state(&map, 9, &[(1, 5), (2, 20), (3, 7), (4, 8), (5, 21)]));
        assert_eq!(basis.doubted, doubted, "a node that holds nothing changes nothing");
    }

    #[test]
    fn a_disk_that_is_gone_is_in_doubt() {
        let map = map_of(&[1, 2, 3], 1);
        let mut basis = basis(&state(&map, 9, &[(1, 5), (2, 6), (3, 7)]), 3);
        basis.follow(Arc::new(ClusterState {
            starts_revision: 20,
            ..(*state(&map, 9, &[(1, 5), (2, 6)])).clone()
        }));
        assert_eq!(basis.doubted.len(), 1 << BITS);
    }

    #[test]
    fn every_former_holder_is_a_source() {
        let registered = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)];
        let mut basis = basis(&state(&map_of(&[1], 1), 10, &registered), 1);
        for (generation, node) in [(2, 2), (3, 3)] {
            basis.follow(state(&map_of(&[node], generation), 10 + generation, &registered));
        }
        let sources: BTreeSet<_> = [1, 2].map(NodeId).into();
        assert_eq!(basis.doubted, (0..1 << BITS).map(|pg| (PgId(pg), sources.clone())).collect());
        assert_eq!(basis.map().generation, 3);
    }

    proptest! {
        /// Whatever happens on the way: a chunk of no doubted group is where it was written.
        #[test]
        fn what_is_not_in_doubt_is_where_it_was(
            steps in prop::collection::vec((prop::collection::btree_set(1u16..6, 3..5), BITS..BITS + 3, 1u16..6), 1..6),
            hashes in prop::collection::vec(any::<u128>(), 20),
        ) {
            let mut registered: BTreeMap<u16, u64> = (1..6).map(|id| (id, 1)).collect();
            let listed = |registered: &BTreeMap<u16, u64>| registered.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>();
            let member = |id: &u16| MemberNode { id: NodeId(*id), name: id.to_string(), zone: id.to_string(), weight: 1 };
            let first = map_of(&[1, 2, 3, 4], 1);
            let began = state(&first, 1, &listed(&registered));
            let mut basis = basis(&began, 3);
            for (at, (nodes, bits, restarted)) in (2u64..).zip(&steps) {
                registered.insert(*restarted, 100 + at);
                let nodes: Vec<_> = nodes.iter().map(member).collect();
                let map = assign(&nodes, *bits, at).unwrap();
                basis.follow(state(&map, at, &listed(&registered)));
            }
            for hash in hashes {
                let id = ChunkId { generation: cairn_placement::Generation(hash.to_be_bytes()), index: 0 };
                let (was, is) = (first.holders(first.pg_of(&id), 3), basis.map.holders(basis.map.pg_of(&id), 3));
                match basis.doubted.get(&basis.map.pg_of(&id)) {
                    Some(sources) => prop_assert!(was.iter().all(|node| sources.contains(node))),
                    None => {
                        prop_assert_eq!(was, is);
                        prop_assert!(is.iter().all(|node| registered[&node.0] == 1));
                    }
                }
            }
        }
    }
}
