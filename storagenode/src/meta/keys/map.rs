//! `c/map/gen` → [`MapHead`]; `c/map/page/<number>` → a page in the form of [`cairn_placement::ClusterMap::encode_page`].
//!
//! Head and changed pages are written by one transaction, so whoever reads them at one revision sees one map.

use bytes::Bytes;
use cairn_placement::{ClusterMap, MemberNode, NodeId};
use serde::{Deserialize, Serialize};

use crate::meta::{MetaError, Op};

pub const MAP_PREFIX: &[u8] = b"c/map/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapHead {
    pub generation: u64,
    pub pg_bits: u8,
    pub pages: u32,
    pub nodes: Vec<MapNode>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapNode {
    pub id: u16,
    pub name: String,
    pub zone: String,
    pub weight: u64,
}

pub fn key() -> Bytes {
    Bytes::from_static(b"c/map/gen")
}

pub fn page_key(page: u32) -> Bytes {
    format!("c/map/page/{page:05}").into()
}

/// What stores a map. The head comes last: whoever hears of one revision in parts reads the pages again when it hears of the
/// head.
pub fn ops(map: &ClusterMap) -> Vec<Op> {
    let page = |page| Op::put(page_key(page), map.encode_page(page));
    let head = Op::put(key(), super::to_json(&MapHead::of(map)));
    (0..map.page_count()).map(page).chain([head]).collect()
}

impl MapHead {
    pub fn of(map: &ClusterMap) -> Self {
        let nodes = map.nodes.values().map(|node| MapNode {
            id: node.id.0,
            name: node.name.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
        });
        Self {
            generation: map.generation,
            pg_bits: map.pg_bits,
            pages: map.page_count(),
            nodes: nodes.collect(),
        }
    }

    /// Joins the head with its pages, in order.
    pub fn join<'a>(&self, pages: impl Iterator<Item = &'a [u8]>) -> Result<ClusterMap, MetaError> {
        let mut members = Vec::new();
        for page in pages {
            members.extend(
                ClusterMap::decode_page(page).map_err(|error| MetaError::Damaged(error.to_string()))?,
            );
        }
        if self.pg_bits > cairn_placement::MAX_PG_BITS || members.len() != 1usize << self.pg_bits {
            return Err(MetaError::Damaged(format!(
                "the cluster map has {} placement groups, its head says 2^{}",
                members.len(),
                self.pg_bits
            )));
        }
        let nodes = self.nodes.iter().map(|node| {
            let id = NodeId(node.id);
            (id, MemberNode { id, name: node.name.clone(), zone: node.zone.clone(), weight: node.weight })
        });
        Ok(ClusterMap { generation: self.generation, pg_bits: self.pg_bits, nodes: nodes.collect(), members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_pages_join_to_the_same_map() {
        let node = |id: u16| MemberNode {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: format!("z{}", id % 3),
            weight: 5,
        };
        let map = cairn_placement::assign(&[1, 2, 3, 4].map(node), 9, 12).unwrap();
        let pages: Vec<Vec<u8>> = (0..map.page_count()).map(|page| map.encode_page(page)).collect();
        let head = MapHead::of(&map);
        assert_eq!(head.join(pages.iter().map(Vec::as_slice)), Ok(map));
        assert!(matches!(head.join(pages.iter().take(1).map(Vec::as_slice)), Err(MetaError::Damaged(_))));
    }

    #[test]
    fn the_head_is_written_behind_all_pages() {
        let node =
            |id: u16| MemberNode { id: NodeId(id), name: id.to_string(), zone: id.to_string(), weight: 1 };
        let map = cairn_placement::assign(&[1, 2, 3].map(node), 9, 1).unwrap();
        let written = ops(&map).into_iter().map(|op| match op {
            Op::Put { key, .. } => key,
            other => panic!("{other:?}"),
        });
        assert_eq!(written.collect::<Vec<_>>(), [page_key(0), page_key(1), key()]);
    }
}
