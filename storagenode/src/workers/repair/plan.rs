//! Pure decisions of repair: where two members differ, and what this one lacks.

use std::collections::{BTreeMap, BTreeSet};

use cairn_placement::{ChunkId, ClusterMap, NodeId, PgId, VolumeId};

/// What a node holds of one group, for volumes with one number of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest {
    pub chunks: u64,
    pub chunk_digest: u64,
    pub tombstones: u64,
    pub tombstone_digest: u64,
}

/// By group and number of copies; what is absent is empty.
pub type Digests = BTreeMap<(PgId, u8), Digest>;

/// One line of an inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub id: ChunkId,
    pub volume: VolumeId,
    pub copies: u8,
    /// The tick of a tombstone; absent: the chunk is there.
    pub buried: Option<u32>,
}

/// What this node has to do to agree with another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Bury(Held),
    Fetch(Held),
}

/// Groups of which both nodes are members.
pub fn shared_groups(map: &ClusterMap, me: NodeId, peer: NodeId) -> Vec<PgId> {
    map.groups_of(me).filter(|pg| map.members_of(*pg).contains(&peer)).collect()
}

/// Whether both nodes should hold chunks of this group with this number of copies.
pub fn both_hold(map: &ClusterMap, pg: PgId, copies: u8, me: NodeId, peer: NodeId) -> bool {
    let holders = map.holders(pg, copies);
    holders.contains(&me) && holders.contains(&peer)
}

/// Of `groups`, those in which the two nodes differ in something that both should hold.
pub fn differing(
    map: &ClusterMap,
    me: NodeId,
    peer: NodeId,
    groups: &[PgId],
    mine: &Digests,
    theirs: &Digests,
) -> BTreeSet<PgId> {
    let differs = |pg: &PgId| {
        let kinds = mine.range((*pg, 0)..=(*pg, u8::MAX)).chain(theirs.range((*pg, 0)..=(*pg, u8::MAX)));
        let copies: BTreeSet<u8> = kinds.map(|((_, copies), _)| *copies).collect();
        copies.into_iter().any(|copies| {
            let key = (*pg, copies);
            let of = |digests: &Digests| digests.get(&key).copied().unwrap_or_default();
            both_hold(map, *pg, copies, me, peer) && of(mine) != of(theirs)
        })
    };
    groups.iter().copied().filter(differs).collect()
}

/// Of `groups`, those whose holders all answered, and hold the same.
pub fn agreeing(
    map: &ClusterMap,
    groups: &BTreeSet<PgId>,
    answers: &BTreeMap<NodeId, Digests>,
) -> BTreeSet<PgId> {
    let agree = |pg: &PgId| {
        let answers: Option<Vec<(NodeId, &Digests)>> =
            map.members_of(*pg).iter().map(|member| Some((*member, answers.get(member)?))).collect();
        let Some(answers) = answers else { return false };
        let kinds = answers.iter().flat_map(|(_, digests)| digests.range((*pg, 0)..=(*pg, u8::MAX)));
        let copies: BTreeSet<u8> = kinds.map(|((_, copies), _)| *copies).collect();
        copies.into_iter().all(|copies| {
            let holders = map.holders(*pg, copies);
            let held = answers.iter().filter(|(member, _)| holders.contains(member));
            let mut held = held.map(|(_, digests)| digests.get(&(*pg, copies)).copied().unwrap_or_default());
            let first = held.next();
            held.all(|digest| Some(digest) == first)
        })
    };
    groups.iter().copied().filter(agree).collect()
}

/// What this node lacks of what another member holds of one group. Tombstones come first: they beat presence. Those that were
/// made before `since` and have nothing to beat here are left to be forgotten.
pub fn steps(
    map: &ClusterMap,
    (me, peer): (NodeId, NodeId),
    pg: PgId,
    mine: &[Held],
    theirs: &[Held],
    since: u32,
) -> Vec<Step> {
    let have: BTreeMap<ChunkId, Option<u32>> = mine.iter().map(|held| (held.id, held.buried)).collect();
    let relevant = |held: &&Held| map.pg_of(&held.id) == pg && both_hold(map, pg, held.copies, me, peer);
    let mut steps: Vec<Step> = theirs
        .iter()
        .filter(relevant)
        .filter_map(|held| match (held.buried, have.get(&held.id)) {
            (Some(_), Some(None)) => Some(Step::Bury(*held)),
            (Some(tick), None) => (tick >= since).then_some(Step::Bury(*held)),
            // A later burial is remembered for longer.
            (Some(tick), Some(Some(mine))) => (tick > *mine && tick >= since).then_some(Step::Bury(*held)),
            (None, None) => Some(Step::Fetch(*held)),
            (None, Some(_)) => None,
        })
        .collect();
    steps.sort_by_key(|step| matches!(step, Step::Fetch(_)));
    steps
}

/// The groups of this node in which every other member is alive and agrees.
pub fn settled(map: &ClusterMap, me: NodeId, agreed: &BTreeMap<NodeId, BTreeSet<PgId>>) -> BTreeSet<PgId> {
    let agrees = |pg: PgId, member: &NodeId| {
        *member == me || agreed.get(member).is_some_and(|groups| groups.contains(&pg))
    };
    map.groups_of(me).filter(|pg| map.members_of(*pg).iter().all(|member| agrees(*pg, member))).collect()
}

#[cfg(test)]
mod tests {
    use cairn_placement::{Generation, MemberNode, assign};
    use proptest::prelude::*;

    use super::*;

    const ME: NodeId = NodeId(1);
    const PEER: NodeId = NodeId(2);

    fn map() -> ClusterMap {
        let node =
            |id: u16| MemberNode { id: NodeId(id), name: id.to_string(), zone: id.to_string(), weight: 1 };
        assign(&[1, 2, 3, 4].map(node), 5, 1).unwrap()
    }

    fn held(n: u8, buried: Option<u32>) -> Held {
        let id = ChunkId { generation: Generation([n; 16]), index: 0 };
        Held { id, volume: VolumeId(1), copies: 4, buried }
    }

    fn of(pg: PgId, all: impl IntoIterator<Item = Held>) -> Vec<Held> {
        all.into_iter().filter(|held| map().pg_of(&held.id) == pg).collect()
    }

    fn follow(mine: &mut Vec<Held>, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Fetch(chunk) => mine.push(chunk),
                Step::Bury(chunk) => {
                    mine.retain(|held| held.id != chunk.id);
                    mine.push(chunk);
                }
            }
        }
        mine.sort_by_key(|held| held.id);
    }

    const SINCE: u32 = 5;

    fn holdings() -> impl Strategy<Value = BTreeMap<u8, Option<u32>>> {
        prop::collection::btree_map(0u8..40, prop::option::of(0u32..10), 0..30)
    }

    proptest! {
        /// Following the steps, in both directions, makes two inventories equal but for old tombstones, and none is lost.
        #[test]
        fn two_members_converge(a in holdings(), b in holdings()) {
            let map = map();
            for pg in (0..map.pg_count()).map(PgId) {
                let all = |held_by: &BTreeMap<u8, Option<u32>>| of(pg, held_by.iter().map(|(n, t)| held(*n, *t)));
                let (mut mine, mut theirs) = (all(&a), all(&b));
                let to_me = steps(&map, (ME, PEER), pg, &mine, &theirs, SINCE);
                let to_them = steps(&map, (PEER, ME), pg, &theirs, &mine, SINCE);
                follow(&mut mine, to_me);
                follow(&mut theirs, to_them);
                let compared = |all: &[Held]| -> Vec<Held> {
                    all.iter().filter(|held| held.buried.is_none_or(|tick| tick >= SINCE)).copied().collect()
                };
                prop_assert_eq!(compared(&mine), compared(&theirs));
                for (n, tick) in a.iter().chain(&b).filter_map(|(n, buried)| Some((n, (*buried)?))) {
                    let id = held(*n, None).id;
                    if map.pg_of(&id) != pg {
                        continue;
                    }
                    let is_there = |all: &[Held]| all.iter().any(|held| held.id == id && held.buried >= Some(tick));
                    let is_present = |all: &[Held]| all.iter().any(|held| held.id == id && held.buried.is_none());
                    prop_assert!(!is_present(&mine) && !is_present(&theirs));
                    prop_assert!(is_there(&mine) || is_there(&theirs));
                    prop_assert!(tick < SINCE || is_there(&mine) && is_there(&theirs));
                }
            }
        }
    }

    #[test]
    fn copies_that_only_one_of_two_holds_do_not_matter() {
        let map = map();
        let pg = (0..map.pg_count()).map(PgId).find(|pg| map.holders(*pg, 1) == [PEER]).unwrap();
        let one = Digest { chunks: 1, chunk_digest: 5, ..Digest::default() };
        let theirs = Digests::from([((pg, 1), one)]);
        assert!(differing(&map, ME, PEER, &[pg], &Digests::new(), &theirs).is_empty());
        let theirs = Digests::from([((pg, 4), one)]);
        assert_eq!(differing(&map, ME, PEER, &[pg], &Digests::new(), &theirs), BTreeSet::from([pg]));
    }

    #[test]
    fn one_absent_member_unsettles_its_groups() {
        let map = map();
        let all: BTreeSet<PgId> = map.groups_of(ME).collect();
        let mut agreed: BTreeMap<_, _> = [2, 3, 4].map(|id| (NodeId(id), all.clone())).into();
        assert_eq!(settled(&map, ME, &agreed), all);
        agreed.remove(&NodeId(3));
        assert!(settled(&map, ME, &agreed).is_empty());
    }

    #[test]
    fn a_group_agrees_when_all_its_holders_answered_and_hold_the_same() {
        let map = map();
        let all: BTreeSet<PgId> = map.groups_of(ME).collect();
        let pg = *all.first().unwrap();
        let others: BTreeSet<PgId> = all.iter().copied().skip(1).collect();
        let digest = |chunks| Digest { chunks, chunk_digest: chunks, ..Digest::default() };
        let mut answers: BTreeMap<NodeId, Digests> =
            map.nodes.keys().map(|node| (*node, Digests::new())).collect();
        assert_eq!(agreeing(&map, &all, &answers), all, "all hold nothing");
        let (first, last) = (map.members_of(pg)[0], *map.holders(pg, 3).last().unwrap());
        answers.get_mut(&first).unwrap().insert((pg, 1), digest(1));
        assert_eq!(agreeing(&map, &all, &answers), all, "the only holder of what has one copy");
        answers.get_mut(&last).unwrap().insert((pg, 1), digest(2));
        assert_eq!(agreeing(&map, &all, &answers), all, "what is left at a node that is no holder");
        for node in map.members_of(pg) {
            answers.get_mut(node).unwrap().insert((pg, 3), digest(1));
        }
        assert_eq!(agreeing(&map, &all, &answers), all);
        answers.get_mut(&last).unwrap().remove(&(pg, 3));
        assert_eq!(agreeing(&map, &all, &answers), others, "one has missed it");
        answers.get_mut(&last).unwrap().insert((pg, 3), digest(2));
        assert_eq!(agreeing(&map, &all, &answers), others, "one has something else");
        answers.remove(&last);
        let without = all.iter().copied().filter(|pg| !map.members_of(*pg).contains(&last)).collect();
        assert_eq!(agreeing(&map, &all, &answers), without, "one gave no answer");
    }
}
