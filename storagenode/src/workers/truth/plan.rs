//! Pure decisions of the comparison: what should be there, which groups are in doubt, what is missing.

use std::collections::{BTreeMap, BTreeSet};

use cairn_placement::{ChunkId, ClusterMap, Generation, NodeId, PgId};

use super::super::repair::plan::{Digests, Held};
use crate::meta::keys::file::FileRecord;

/// Count and digest of a set of chunks, as in a node's summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub chunks: u64,
    pub digest: u64,
}

impl Sum {
    fn add(&mut self, hash: u64) {
        self.chunks += 1;
        self.digest = self.digest.wrapping_add(hash);
    }

    fn and(self, other: Self) -> Self {
        Self { chunks: self.chunks + other.chunks, digest: self.digest.wrapping_add(other.digest) }
    }
}

/// What one group should hold for volumes with one number of copies.
#[derive(Debug, Clone, Copy, Default)]
struct Expected {
    files: Sum,
    /// Deleted, and not collected yet.
    resting: Sum,
}

/// What all groups should hold.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<(PgId, u8), Expected>);

impl Tally {
    pub fn add_file(&mut self, map: &ClusterMap, record: &FileRecord) {
        self.add_file_until(map, record, u32::MAX);
    }

    /// Adds those of its chunks that are of this sweep epoch or an older one.
    pub fn add_file_until(&mut self, map: &ClusterMap, record: &FileRecord, max_epoch: u32) {
        for id in chunks_of(record).filter(|id| id.generation.epoch() <= max_epoch) {
            self.0.entry((map.pg_of(&id), record.copies)).or_default().files.add(id.hash());
        }
    }

    pub fn add_resting(&mut self, map: &ClusterMap, generation: Generation, chunks: u32, copies: u8) {
        for index in 0..chunks {
            let id = ChunkId { generation, index };
            self.0.entry((map.pg_of(&id), copies)).or_default().resting.add(id.hash());
        }
    }

    /// The groups in which some node that answered has something else than is expected of it, with how many chunks are there.
    pub fn unequal(&self, map: &ClusterMap, answers: &BTreeMap<NodeId, Digests>) -> BTreeMap<PgId, u64> {
        let mut unequal: BTreeMap<PgId, u64> = BTreeMap::new();
        // A group is as much work as its fullest member has, whoever differs.
        let weigh = |pg: PgId| {
            let chunks =
                |digests: &Digests| digests.range((pg, 0)..=(pg, u8::MAX)).map(|(_, sum)| sum.chunks).sum();
            answers.values().map(chunks).max().unwrap_or(0)
        };
        for (node, digests) in answers {
            let expected = self.0.iter().filter(|((pg, copies), _)| map.holders(*pg, *copies).contains(node));
            let kinds: BTreeSet<(PgId, u8)> =
                digests.keys().copied().chain(expected.map(|(kind, _)| *kind)).collect();
            for kind in kinds {
                let digest = digests.get(&kind).copied().unwrap_or_default();
                let sum = Sum { chunks: digest.chunks, digest: digest.chunk_digest };
                let Expected { files, resting } = match map.holders(kind.0, kind.1).contains(node) {
                    true => self.0.get(&kind).copied().unwrap_or_default(),
                    false => Expected::default(),
                };
                if sum != files && sum != files.and(resting) {
                    unequal.entry(kind.0).or_insert_with(|| weigh(kind.0));
                }
            }
        }
        unequal
    }

    /// The groups in which no holder that answered has just what is expected, with how many chunks files name there.
    pub fn doubtful(&self, map: &ClusterMap, answers: &BTreeMap<NodeId, Digests>) -> BTreeMap<PgId, u64> {
        let mut doubtful = BTreeMap::new();
        for (&(pg, copies), expected) in self.0.iter().filter(|(_, expected)| expected.files.chunks > 0) {
            let held = |holder: &NodeId| {
                let digest = answers.get(holder)?.get(&(pg, copies)).copied().unwrap_or_default();
                Some(Sum { chunks: digest.chunks, digest: digest.chunk_digest })
            };
            let mut sums = map.holders(pg, copies).iter().filter_map(held);
            if !sums.any(|sum| sum == expected.files || sum == expected.files.and(expected.resting)) {
                *doubtful.entry(pg).or_default() += expected.files.chunks;
            }
        }
        doubtful
    }
}

/// Every chunk that a record names.
pub fn chunks_of(record: &FileRecord) -> impl Iterator<Item = ChunkId> + '_ {
    let size = u64::from(record.chunk_size_bytes);
    record.extents.iter().flat_map(move |extent| {
        let chunks = extent.length_bytes.div_ceil(size) as u32;
        (0..chunks).map(|index| ChunkId { generation: extent.generation, index })
    })
}

/// Cuts groups into portions of `most` chunks; a group alone may have more.
pub fn portions(doubtful: &BTreeMap<PgId, u64>, most: u64) -> Vec<BTreeSet<PgId>> {
    let (mut portions, mut filled): (Vec<BTreeSet<PgId>>, u64) = (Vec::new(), 0);
    for (&pg, &chunks) in doubtful {
        match portions.last_mut() {
            Some(portion) if filled + chunks <= most => {
                portion.insert(pg);
                filled += chunks;
            }
            _ => {
                portions.push(BTreeSet::from([pg]));
                filled = chunks;
            }
        }
    }
    portions
}

/// Chunks that are looked for, each with the number of the file that names it.
#[derive(Debug, Default)]
pub struct Wanted {
    by_group: BTreeMap<PgId, BTreeMap<ChunkId, u32>>,
}

impl Wanted {
    /// Notes the chunks of a file in `groups`; `false` if there are none.
    pub fn add(&mut self, map: &ClusterMap, groups: &BTreeSet<PgId>, record: &FileRecord, file: u32) -> bool {
        let mut any = false;
        for id in chunks_of(record) {
            let pg = map.pg_of(&id);
            if groups.contains(&pg) {
                self.by_group.entry(pg).or_default().insert(id, file);
                any = true;
            }
        }
        any
    }

    /// Strikes out what a node holds where it should be read from.
    pub fn found(&mut self, map: &ClusterMap, pg: PgId, node: NodeId, held: &[Held]) {
        let Some(wanted) = self.by_group.get_mut(&pg) else { return };
        for line in held.iter().filter(|line| line.buried.is_none()) {
            if map.holders(pg, line.copies).contains(&node) {
                wanted.remove(&line.id);
            }
        }
    }

    /// Nothing is left to look for in this group.
    pub fn is_done(&self, pg: PgId) -> bool {
        self.by_group.get(&pg).is_none_or(BTreeMap::is_empty)
    }

    /// The files with chunks that were not found.
    pub fn left(self) -> BTreeMap<u32, Vec<ChunkId>> {
        let mut left: BTreeMap<u32, Vec<ChunkId>> = BTreeMap::new();
        for (id, file) in self.by_group.into_values().flatten() {
            left.entry(file).or_default().push(id);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::{MemberNode, VolumeId, assign};
    use proptest::prelude::*;

    use super::{super::super::repair::plan::Digest, *};
    use crate::meta::keys::file::Extent;

    fn map() -> ClusterMap {
        let node =
            |id: u16| MemberNode { id: NodeId(id), name: id.to_string(), zone: id.to_string(), weight: 1 };
        assign(&[1, 2, 3].map(node), 4, 1).unwrap()
    }

    fn record(n: u8, chunks: u64) -> FileRecord {
        FileRecord {
            chunk_size_bytes: 65_536,
            copies: 2,
            blake3: [0; 32],
            modified_unix_ms: 0,
            content_type: String::new(),
            extents: vec![Extent { generation: Generation([n; 16]), length_bytes: chunks * 65_536 }],
        }
    }

    /// Every node's digests, when each chunk is on the holders that `keeps` says.
    fn answers(
        map: &ClusterMap,
        ids: impl Iterator<Item = ChunkId>,
        keeps: impl Fn(ChunkId, NodeId) -> bool,
    ) -> BTreeMap<NodeId, Digests> {
        let mut answers: BTreeMap<NodeId, Digests> =
            map.nodes.keys().map(|node| (*node, Digests::new())).collect();
        for id in ids {
            let pg = map.pg_of(&id);
            for holder in map.holders(pg, 2).iter().filter(|holder| keeps(id, **holder)) {
                let digest: &mut Digest = answers.get_mut(holder).unwrap().entry((pg, 2)).or_default();
                digest.chunks += 1;
                digest.chunk_digest = digest.chunk_digest.wrapping_add(id.hash());
            }
        }
        answers
    }

    fn held(id: ChunkId, tombstone: bool) -> Held {
        Held { id, volume: VolumeId(1), copies: 2, buried: tombstone.then_some(1) }
    }

    proptest! {
        /// A chunk that no holder has puts its group in doubt, whatever else is there; with every chunk on one whole
        /// holder, and what rests on all or none, nothing is.
        #[test]
        fn what_is_lost_is_doubted(files in 1u8..20, lost in any::<prop::sample::Index>(), resting: bool) {
            let map = map();
            let mut tally = Tally::default();
            let ids: Vec<ChunkId> = (0..files).flat_map(|n| chunks_of(&record(n, 3)).collect::<Vec<_>>()).collect();
            (0..files).for_each(|n| tally.add_file(&map, &record(n, 3)));
            tally.add_resting(&map, Generation([99; 16]), 5, 2);
            let rests = (0..5).map(|index| ChunkId { generation: Generation([99; 16]), index });
            let there = || ids.iter().copied().chain(rests.clone().filter(|_| resting));
            let first = |id: ChunkId, node| map.holders(map.pg_of(&id), 2)[0] == node;
            prop_assert!(tally.doubtful(&map, &answers(&map, there(), first)).is_empty());
            let lost = *lost.get(&ids);
            let doubtful = tally.doubtful(&map, &answers(&map, there(), |id, _| id != lost));
            prop_assert_eq!(doubtful.keys().copied().collect::<Vec<_>>(), vec![map.pg_of(&lost)]);
        }
    }

    proptest! {
        /// What one node has too much or lacks shows in its group, which weighs what its fullest member has; nothing else does,
        /// and what is newer than the epoch is not looked at.
        #[test]
        fn what_is_left_behind_is_unequal(files in 1u8..20, until in 0u8..20, which in any::<prop::sample::Index>(), lacks: bool) {
            let map = map();
            let max_epoch = Generation([until; 16]).epoch();
            let mut tally = Tally::default();
            (0..files).for_each(|n| tally.add_file_until(&map, &record(n, 3), max_epoch));
            let old = (0..files.min(until + 1)).flat_map(|n| chunks_of(&record(n, 3)).collect::<Vec<_>>());
            let old: Vec<ChunkId> = old.collect();
            prop_assert!(tally.unequal(&map, &answers(&map, old.iter().copied(), |_, _| true)).is_empty());
            let leaked = ChunkId { generation: Generation([0; 16]), index: 77 };
            let odd = if lacks { *which.get(&old) } else { leaked };
            let there = || old.iter().copied().chain((!lacks).then_some(leaked));
            // The odd one is at one of its two holders only.
            let at_one = |id: ChunkId, node| id != odd || map.holders(map.pg_of(&id), 2)[0] == node;
            let unequal = tally.unequal(&map, &answers(&map, there(), at_one));
            prop_assert_eq!(unequal.keys().copied().collect::<Vec<_>>(), vec![map.pg_of(&odd)]);
            let most = there().filter(|id| map.pg_of(id) == map.pg_of(&odd)).count() as u64;
            prop_assert_eq!(unequal[&map.pg_of(&odd)], most);
        }
    }

    #[test]
    fn two_holders_may_have_everything_together() {
        let map = map();
        let file = record(1, 40);
        let mut tally = Tally::default();
        tally.add_file(&map, &file);
        let ids: Vec<ChunkId> = chunks_of(&file).collect();
        let even = |id: ChunkId, node: NodeId| {
            (map.holders(map.pg_of(&id), 2)[0] == node) == id.index.is_multiple_of(2)
        };
        let doubtful = tally.doubtful(&map, &answers(&map, ids.iter().copied(), even));
        assert!(!doubtful.is_empty());
        let groups: BTreeSet<PgId> = doubtful.keys().copied().collect();
        let mut wanted = Wanted::default();
        assert!(wanted.add(&map, &groups, &file, 7));
        for pg in &groups {
            for holder in map.holders(*pg, 2) {
                let here = ids.iter().filter(|id| map.pg_of(id) == *pg && even(**id, *holder));
                wanted.found(&map, *pg, *holder, &here.map(|id| held(*id, false)).collect::<Vec<_>>());
            }
            assert!(wanted.is_done(*pg));
        }
        assert!(wanted.left().is_empty());
    }

    #[test]
    fn tombstones_and_copies_at_strangers_do_not_count() {
        let map = map();
        let file = record(1, 1);
        let id = chunks_of(&file).next().unwrap();
        let pg = map.pg_of(&id);
        let holders = map.holders(pg, 2).to_vec();
        let stranger = *map.nodes.keys().find(|node| !holders.contains(node)).unwrap();
        let mut wanted = Wanted::default();
        wanted.add(&map, &BTreeSet::from([pg]), &file, 3);
        wanted.found(&map, pg, holders[0], &[held(id, true)]);
        wanted.found(&map, pg, stranger, &[held(id, false)]);
        assert!(!wanted.is_done(pg));
        assert_eq!(wanted.left(), BTreeMap::from([(3, vec![id])]));
    }

    #[test]
    fn portions_are_bounded() {
        let doubtful = BTreeMap::from([(PgId(1), 5), (PgId(2), 5), (PgId(3), 20), (PgId(4), 1)]);
        let portions = portions(&doubtful, 10);
        assert_eq!(
            portions,
            [BTreeSet::from([PgId(1), PgId(2)]), BTreeSet::from([PgId(3)]), BTreeSet::from([PgId(4)])]
        );
    }
}
