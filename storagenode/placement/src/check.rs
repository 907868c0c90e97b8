//! Judges a map by the rules alone; knows nothing of how [`assign`](crate::assign) works.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::{NodeId, PgId},
    map::{ClusterMap, MAX_COPIES},
};

/// A rule that a map breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The number of groups is not 2^`pg_bits`.
    GroupCount { groups: usize, wanted: u32 },
    /// A group has fewer members than there are nodes (up to the maximum), or more.
    MemberCount { pg: PgId, members: usize, wanted: usize },
    /// A group names a node twice.
    Repeated { pg: PgId, node: NodeId },
    /// A group names a node that is not in the table.
    Unknown { pg: PgId, node: NodeId },
    /// The first `copies` members use fewer zones than they could.
    Zones { pg: PgId, copies: usize, zones: usize, possible: usize },
}

/// Every rule that `map` breaks; empty when it is sound.
pub fn check(map: &ClusterMap) -> Vec<Fault> {
    let mut faults = Vec::new();
    if map.members.len() != map.pg_count() as usize {
        faults.push(Fault::GroupCount { groups: map.members.len(), wanted: map.pg_count() });
    }
    let wanted = map.nodes.len().min(MAX_COPIES);
    let mut by_zone: BTreeMap<&str, usize> = BTreeMap::new();
    map.nodes.values().for_each(|node| *by_zone.entry(&node.zone).or_default() += 1);
    for (pg, members) in (0u32..).map(PgId).zip(&map.members) {
        if members.len() != wanted {
            faults.push(Fault::MemberCount { pg, members: members.len(), wanted });
        }
        let mut seen = BTreeSet::new();
        let mut zones = BTreeSet::new();
        for (place, member) in members.iter().enumerate() {
            if !seen.insert(*member) {
                faults.push(Fault::Repeated { pg, node: *member });
            }
            let Some(node) = map.nodes.get(member) else {
                faults.push(Fault::Unknown { pg, node: *member });
                continue;
            };
            zones.insert(node.zone.as_str());
            let possible = by_zone.len().min(place + 1);
            if zones.len() < possible {
                faults.push(Fault::Zones { pg, copies: place + 1, zones: zones.len(), possible });
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assign, map::MemberNode};

    fn sound() -> ClusterMap {
        let node = |id: u16, zone: &str| MemberNode {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: zone.into(),
            weight: 1,
        };
        assign(&[node(1, "a"), node(2, "b"), node(3, "c"), node(4, "c")], 5, 1).unwrap()
    }

    #[test]
    fn each_broken_rule_is_named() {
        assert_eq!(check(&sound()), vec![]);
        let mut short = sound();
        short.members.pop();
        assert!(matches!(check(&short)[..], [Fault::GroupCount { .. }]));
        let mut repeated = sound();
        let first = repeated.members[3][0];
        repeated.members[3][1] = first;
        assert!(check(&repeated).contains(&Fault::Repeated { pg: PgId(3), node: first }));
        let mut unknown = sound();
        unknown.members[4][2] = NodeId(77);
        assert!(check(&unknown).contains(&Fault::Unknown { pg: PgId(4), node: NodeId(77) }));
        let mut few = sound();
        few.members[5].pop();
        assert_eq!(check(&few), vec![Fault::MemberCount { pg: PgId(5), members: 3, wanted: 4 }]);
        let mut crowded = sound();
        crowded.members[6] = [3, 4, 1, 2].into_iter().map(NodeId).collect();
        assert!(
            check(&crowded)
                .iter()
                .any(|f| matches!(f, Fault::Zones { copies: 2, zones: 1, possible: 2, .. }))
        );
    }
}
