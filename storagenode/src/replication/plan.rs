//! Pure decisions of replication: when a chunk counts as written, and whom to read from first.

use std::collections::BTreeMap;

use cairn_placement::{ChunkId, ClusterMap, Generation, NodeId};

/// Durable copies that make a chunk written: a majority of the copies wanted.
pub fn min_write(copies: usize) -> usize {
    copies / 2 + 1
}

/// What a quorum write has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Too early to say.
    Pending,
    Written,
    /// Even if all others succeed there are too few.
    Failed,
}

/// Counts answers of the members of one chunk's group.
#[derive(Debug, Clone, Copy)]
pub struct Quorum {
    members: usize,
    needed: usize,
    durable: usize,
    failed: usize,
}

impl Quorum {
    /// `copies` wanted on `members` nodes. Fewer members than copies do not lower what is needed.
    pub fn new(members: usize, copies: usize) -> Self {
        Self { members, needed: min_write(copies), durable: 0, failed: 0 }
    }

    pub fn succeeded(&mut self) {
        self.durable += 1;
    }

    pub fn failed(&mut self) {
        self.failed += 1;
    }

    pub fn durable(&self) -> usize {
        self.durable
    }

    pub fn needed(&self) -> usize {
        self.needed
    }

    pub fn verdict(&self) -> Verdict {
        if self.durable >= self.needed {
            Verdict::Written
        } else if self.members - self.failed < self.needed {
            Verdict::Failed
        } else {
            Verdict::Pending
        }
    }
}

/// A node that might have a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub node: NodeId,
    pub is_self: bool,
    pub is_live: bool,
    pub same_zone: bool,
    /// Requests to it that have not been answered.
    pub in_flight: usize,
}

/// The order in which to ask: this node, then live nodes of this zone, then other live ones, each group by fewest in
/// flight; nodes without a lease last, since a lease may have lapsed while the store was away.
pub fn read_order(mut sources: Vec<Source>) -> Vec<NodeId> {
    sources.sort_by_key(|source| (!source.is_self, !source.is_live, !source.same_zone, source.in_flight));
    sources.into_iter().map(|source| source.node).collect()
}

/// Which chunks each holder has to bury when a generation goes.
pub fn burials(
    map: &ClusterMap,
    generation: Generation,
    chunks: u32,
    copies: u8,
) -> BTreeMap<NodeId, Vec<ChunkId>> {
    let mut burials: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    for index in 0..chunks {
        let id = ChunkId { generation, index };
        for holder in map.holders(map.pg_of(&id), copies) {
            burials.entry(*holder).or_default().push(id);
        }
    }
    burials
}

#[cfg(test)]
mod tests {
    use cairn_placement::{MemberNode, assign};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn majorities() {
        assert_eq!([1, 2, 3, 4, 5, 7].map(min_write), [1, 2, 2, 3, 3, 4]);
    }

    #[test]
    fn fewer_members_than_copies_need_the_same_majority() {
        assert_eq!(Quorum::new(1, 3).verdict(), Verdict::Failed);
        assert_eq!(Quorum::new(2, 3).verdict(), Verdict::Pending);
    }

    proptest! {
        #[test]
        fn a_write_is_written_exactly_with_a_majority(copies in 1usize..=7, answers in prop::collection::vec(any::<bool>(), 7)) {
            let mut quorum = Quorum::new(copies, copies);
            for success in &answers[..copies] {
                if *success { quorum.succeeded() } else { quorum.failed() }
            }
            let durable = answers[..copies].iter().filter(|success| **success).count();
            let expected = if durable * 2 > copies { Verdict::Written } else { Verdict::Failed };
            prop_assert_eq!(quorum.verdict(), expected);
        }
    }

    #[test]
    fn near_and_idle_sources_come_first() {
        let source = |node, is_self, is_live, same_zone, in_flight| Source {
            node: NodeId(node),
            is_self,
            is_live,
            same_zone,
            in_flight,
        };
        let order = read_order(vec![
            source(1, false, false, true, 0),
            source(2, false, true, false, 0),
            source(3, false, true, true, 5),
            source(4, false, true, true, 1),
            source(5, true, true, true, 9),
        ]);
        assert_eq!(order, [5, 4, 3, 2, 1].map(NodeId));
    }

    #[test]
    fn every_holder_of_every_chunk_is_told() {
        let node = |id: u16| MemberNode {
            id: NodeId(id),
            name: id.to_string(),
            zone: (id % 3).to_string(),
            weight: 1,
        };
        let map = assign(&[1, 2, 3, 4].map(node), 7, 1).unwrap();
        let generation = Generation([9; 16]);
        let told = burials(&map, generation, 100, 3);
        assert_eq!(told.values().map(Vec::len).sum::<usize>(), 300);
        for index in 0..100 {
            let id = ChunkId { generation, index };
            for holder in map.holders(map.pg_of(&id), 3) {
                assert!(told[holder].contains(&id));
            }
        }
    }
}
