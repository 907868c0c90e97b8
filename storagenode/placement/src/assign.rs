//! Makes a map: zone-aware, balanced by weight, deterministic.
//!
//! For each group, in order, members are picked one rank at a time. A pick goes to the zone that this group uses
//! least (constraints first), then to the node that is furthest below its share (balance), where a node's share of
//! each rank is proportional to its weight, capped so that no zone must hold two copies while another holds none. Ties
//! fall to a hash of group and node, which scatters partners. Filling rank by rank keeps every prefix of the member
//! list balanced, because a volume with n copies uses the first n members.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    ids::NodeId,
    map::{ClusterMap, MAX_COPIES, MAX_PG_BITS, MemberNode, Members},
};

/// Groups per node that the first map aims at.
const PGS_PER_NODE: usize = 128;

/// Why no map can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    #[error("there is no node to place on; start at least one storage node")]
    NoNodes,
    #[error("two nodes have the number {0}")]
    DuplicateNode(NodeId),
    #[error("{0} placement-group bits are more than {MAX_PG_BITS}")]
    TooManyGroups(u8),
}

/// log2 of the number of groups for a new cluster of `nodes` nodes: 128 a node, a power of two, at least 128.
pub fn pg_bits_for(nodes: usize) -> u8 {
    let groups = (nodes.max(1) * PGS_PER_NODE).next_power_of_two();
    (groups.trailing_zeros() as u8).min(MAX_PG_BITS)
}

/// Assigns every group to as many nodes as there are, [`MAX_COPIES`] at most.
///
/// The same input gives the same map on every machine. `generation` becomes the map's.
pub fn assign(nodes: &[MemberNode], pg_bits: u8, generation: u64) -> Result<ClusterMap, AssignError> {
    if nodes.is_empty() {
        return Err(AssignError::NoNodes);
    }
    if pg_bits > MAX_PG_BITS {
        return Err(AssignError::TooManyGroups(pg_bits));
    }
    let mut table = BTreeMap::new();
    for node in nodes {
        if table.insert(node.id, node.clone()).is_some() {
            return Err(AssignError::DuplicateNode(node.id));
        }
    }
    let groups = 1usize << pg_bits;
    let mut members = vec![Members::new(); groups];
    let mut loads: BTreeMap<NodeId, u64> = table.keys().map(|id| (*id, 0)).collect();
    for _rank in 0..table.len().min(MAX_COPIES) {
        for (pg, chosen) in members.iter_mut().enumerate() {
            let pick = pick(&table, &loads, chosen, pg as u32);
            *loads.get_mut(&pick).expect("every node has a load") += 1;
            chosen.push(pick);
        }
    }
    Ok(ClusterMap { generation, pg_bits, nodes: table, members })
}

/// The best next member of one group.
fn pick(
    table: &BTreeMap<NodeId, MemberNode>,
    loads: &BTreeMap<NodeId, u64>,
    chosen: &Members,
    pg: u32,
) -> NodeId {
    let in_zone = |zone: &str| chosen.iter().filter(|id| table[id].zone == zone).count();
    table
        .values()
        .filter(|node| !chosen.contains(&node.id))
        .min_by_key(|node| {
            (in_zone(&node.zone), relative_load(loads[&node.id], node.weight), tie(pg, node.id), node.id)
        })
        .map(|node| node.id)
        .expect("a rank is filled only while nodes are left")
}

/// Groups held per weight, scaled to compare as integers.
fn relative_load(load: u64, weight: u64) -> u128 {
    ((u128::from(load) + 1) << 64) / u128::from(weight.max(1))
}

fn tie(pg: u32, node: NodeId) -> u64 {
    let mut bytes = [0; 6];
    bytes[..4].copy_from_slice(&pg.to_le_bytes());
    bytes[4..].copy_from_slice(&node.0.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::check;

    fn nodes(zones: &[usize]) -> Vec<MemberNode> {
        let mut all = Vec::new();
        for (zone, &count) in zones.iter().enumerate() {
            for _ in 0..count {
                let id = NodeId(all.len() as u16 + 1);
                all.push(MemberNode {
                    id,
                    name: format!("n{id}"),
                    zone: format!("z{zone}"),
                    weight: 1 << 30,
                });
            }
        }
        all
    }

    fn spread(map: &ClusterMap, copies: u8) -> (usize, usize) {
        let held: Vec<usize> = map
            .nodes
            .keys()
            .map(|id| {
                (0..map.pg_count()).filter(|pg| map.holders(crate::PgId(*pg), copies).contains(id)).count()
            })
            .collect();
        (*held.iter().min().unwrap(), *held.iter().max().unwrap())
    }

    #[test]
    fn equal_nodes_get_equal_shares_in_every_prefix() {
        let map = assign(&nodes(&[2, 2, 2]), 10, 1).unwrap();
        for copies in [1, 3, 6] {
            let (least, most) = spread(&map, copies);
            assert!(most - least <= most / 50 + 1, "{copies} copies: {least}..{most}");
        }
    }

    #[test]
    fn four_nodes_in_three_zones_keep_three_zones_for_three_copies() {
        let map = assign(&nodes(&[2, 1, 1]), 9, 1).unwrap();
        assert_eq!(check(&map), vec![]);
        for pg in 0..map.pg_count() {
            let zones: std::collections::BTreeSet<_> =
                map.holders(crate::PgId(pg), 3).iter().map(|id| &map.nodes[id].zone).collect();
            assert_eq!(zones.len(), 3);
        }
    }

    #[test]
    fn weights_shift_shares() {
        let mut nodes = nodes(&[1, 1, 1]);
        nodes[0].weight *= 2;
        let map = assign(&nodes, 10, 1).unwrap();
        let held = map.groups_of(NodeId(1)).filter(|pg| map.holders(*pg, 1) == [NodeId(1)]).count();
        assert!((500..=524).contains(&held), "half of 1,024 first places, got {held}");
    }

    #[test]
    fn errors_are_named() {
        assert_eq!(assign(&[], 7, 1), Err(AssignError::NoNodes));
        let mut twice = nodes(&[2]);
        twice[1].id = NodeId(1);
        assert_eq!(assign(&twice, 7, 1), Err(AssignError::DuplicateNode(NodeId(1))));
        assert_eq!(assign(&nodes(&[1]), 21, 1), Err(AssignError::TooManyGroups(21)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_map_passes_the_checker(zones in prop::collection::vec(1usize..5, 1..6), bits in 5u8..9) {
            let map = assign(&nodes(&zones), bits, 3).unwrap();
            prop_assert_eq!(check(&map), vec![]);
            prop_assert_eq!(assign(&nodes(&zones), bits, 3).unwrap(), map);
        }
    }
}
