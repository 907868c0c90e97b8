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
use tokio::sync::Semaphore;
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
        plan::{Quorum, Verdict, min_write},
        read::FetchError,
        write::WriteError,
    },
};

/// Chunks that are asked for at the same time.
const AT_ONCE: usize = 16;
/// Chunks that are read and given to others at the same time: each takes memory from the gateway's budget.
const SUPPLIED_AT_ONCE: usize = 2;
/// For all asking and supplying before a commit. Clients give an upload up that has not moved for 45 s.
pub(super) const CONFIRM_LIMIT: Duration = Duration::from_secs(30);
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

    /// Goes over to a newer state: what the change puts in doubt is noted.
    pub(super) fn follow(&mut self, now: &Arc<ClusterState>) {
        let Some(map) = now.map.clone() else { return };
        if Arc::ptr_eq(&self.state, now) {
            return;
        }
        // Disks are looked at one by one: a node of an earlier version writes its own record alone.
        let same_disks = || map.nodes.keys().all(|id| disk(&self.state, *id) == disk(now, *id));
        if self.state.map_revision != now.map_revision || !same_disks() {
            let groups = (0..map.pg_count()).map(PgId);
            self.doubted = groups.filter_map(|pg| Some((pg, self.doubt(pg, &map, now)?))).collect();
        }
        (self.state, self.map) = (now.clone(), map);
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

/// Of the map's head, and of the latest start.
fn revisions(state: &ClusterState) -> (u64, u64) {
    (state.map_revision, state.starts_revision)
}

/// Whether a commit that is refused again would be refused for something else. What was compared is ahead of what was found only
/// in a store that was put back (R10): then this node has to hear of just that.
fn has_heard(known: (u64, u64), compared: (u64, u64), found: (u64, u64)) -> bool {
    let is_restored = compared.0 > found.0 || compared.1 > found.1;
    known == found || !is_restored && known.0 >= found.0 && known.1 >= found.1
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
    /// Goes over to a state with the map and the starts that a refused commit has read, or to a later one.
    pub(super) async fn catch_up(&mut self, found: (u64, u64)) -> Result<(), FileError> {
        let gateway = self.gateway;
        let compared = revisions(&self.basis.state);
        let heard = |state: &ClusterState| has_heard(revisions(state), compared, found).then_some(());
        let heard = gateway.env.timeout(META_PATIENCE, gateway.view.wait_for(heard)).await;
        heard.ok_or(FileError::NotReady(
            "this node has not heard of the cluster's latest change yet".into(),
        ))?;
        self.basis.follow(&gateway.view.current());
        Ok(())
    }

    /// Sees to it that most holders have each chunk that is in doubt. A node that has just started is waited for.
    pub(super) async fn confirm(&mut self, deadline: Duration) -> Result<(), FileError> {
        let env = &self.gateway.env;
        let mut last = None;
        while !self.basis.doubted.is_empty() {
            let left = deadline.saturating_sub(env.clock.monotonic());
            match env.timeout(left, self.confirm_all()).await {
                Some(Ok(supplied)) => {
                    if supplied > 0 {
                        info!(generation = %self.generation, supplied, "copies were made before a commit");
                    }
                    self.basis.doubted.clear();
                }
                Some(Err(error @ (FileError::NotEnoughNodes { .. } | FileError::Overloaded(_))))
                    if left > PAUSE =>
                {
                    last = Some(error);
                    env.clock.sleep(PAUSE).await;
                    self.basis.follow(&self.gateway.view.current());
                }
                Some(Err(error)) => return Err(error),
                None => {
                    let late = || {
                        FileError::UploadIncomplete(format!(
                            "nodes started or groups moved, and within {CONFIRM_LIMIT:?} not all of it could be found again, \
                             or given to those who hold it now"
                        ))
                    };
                    return Err(last.unwrap_or_else(late));
                }
            }
        }
        Ok(())
    }

    /// Says how many copies it has made.
    async fn confirm_all(&self) -> Result<u32, FileError> {
        let ids = (0..self.chunks).map(|index| ChunkId { generation: self.generation, index });
        let doubted = ids.filter(|id| self.basis.doubted.contains_key(&self.basis.map.pg_of(id)));
        let supplying = Semaphore::new(SUPPLIED_AT_ONCE);
        let confirming =
            stream::iter(doubted).map(|id| self.confirm_one(id, &supplying)).buffer_unordered(AT_ONCE);
        confirming.try_fold(0, async |sum, given| Ok(sum + given)).await
    }

    /// Asks who has a chunk, and gives it to others until most of its holders do; says to how many.
    async fn confirm_one(&self, id: ChunkId, supplying: &Semaphore) -> Result<u32, FileError> {
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
            let _turn = supplying.acquire().await.expect("it is never closed");
            let _room = self.gateway.budget.take(self.volume.record.chunk_size_bytes as usize).await?;
            let earlier = doubted.get(&pg).into_iter().flatten();
            let sources: BTreeSet<_> = earlier.chain(holders).copied().collect();
            let sources: Vec<_> = sources.into_iter().collect();
            let chunk = self.fetch(id, &sources, quorum.durable()).await?;
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
    async fn fetch(&self, id: ChunkId, sources: &[NodeId], reached: usize) -> Result<SealedChunk, FileError> {
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
            warn!(chunk = %id, %error, "what an upload had written cannot be read for those who lack it");
            match error {
                FetchError::Unavailable => {
                    let needed = min_write(usize::from(self.basis.copies));
                    let cause = "others that have it cannot be reached".into();
                    FileError::NotEnoughNodes { reached, needed, cause }
                }
                FetchError::Corrupt | FetchError::Missing => {
                    FileError::UploadIncomplete("a disk has lost what had been written".into())
                }
            }
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
            file_format: crate::meta::keys::file::NEWEST,
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
        basis.follow(&before);
        assert_eq!(basis.doubted, BTreeMap::new());
        basis.follow(&state(&map, 9, &[(1, 5), (2, 20), (3, 7), (4, 8)]));
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
        basis.follow(&state(&map, 9, &[(1, 5), (2, 20), (3, 7), (4, 8), (5, 21)]));
        assert_eq!(basis.doubted, doubted, "a node that holds nothing changes nothing");
    }

    #[test]
    fn a_disk_that_is_gone_is_in_doubt() {
        let map = map_of(&[1, 2, 3], 1);
        let mut basis = basis(&state(&map, 9, &[(1, 5), (2, 6), (3, 7)]), 3);
        basis.follow(&Arc::new(ClusterState {
            starts_revision: 20,
            ..(*state(&map, 9, &[(1, 5), (2, 6)])).clone()
        }));
        assert_eq!(basis.doubted.len(), 1 << BITS);
    }

    /// Nodes of an earlier version write no `c/starts`.
    #[test]
    fn a_registration_alone_is_enough_for_doubt() {
        let map = map_of(&[1, 2, 3], 1);
        let before = state(&map, 9, &[(1, 5), (2, 6), (3, 7)]);
        let mut basis = basis(&before, 3);
        let after = state(&map, 9, &[(1, 5), (2, 20), (3, 7)]);
        basis.follow(&Arc::new(ClusterState { starts_revision: before.starts_revision, ..(*after).clone() }));
        assert_eq!(basis.doubted.len(), 1 << BITS);
    }

    #[test]
    fn a_refused_commit_waits_for_what_refused_it() {
        let (compared, found) = ((5, 8), (5, 43));
        assert_eq!(
            [(5, 8), (5, 43), (50, 60)].map(|known| has_heard(known, compared, found)),
            [false, true, true]
        );
        // The store was put back.
        let (compared, found) = ((5, 43), (5, 8));
        assert_eq!(
            [(5, 43), (5, 8), (5, 50)].map(|known| has_heard(known, compared, found)),
            [false, true, false]
        );
        assert!(has_heard((5, 8), (5, 8), (5, 8)), "it was refused for something else");
    }

    #[test]
    fn every_former_holder_is_a_source() {
        let registered = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)];
        let mut basis = basis(&state(&map_of(&[1], 1), 10, &registered), 1);
        for (generation, node) in [(2, 2), (3, 3)] {
            basis.follow(&state(&map_of(&[node], generation), 10 + generation, &registered));
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
                basis.follow(&state(&map, at, &listed(&registered)));
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
