//! The cluster map: placement group → ordered members, with the node table, in pages.
//!
//! # Page format (v1)
//!
//! The map is stored in pages of [`PAGE_PGS`] groups. A page is: version byte `1`; then per group a member count
//! (`u8`, ≤ [`MAX_COPIES`]) followed by that many node numbers (`u16`, little endian). The node table and the numbers
//! that belong to the whole map are stored beside it by whoever keeps the map.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use crate::ids::{ChunkId, NodeId, PgId};

/// Placement groups in one stored page.
pub const PAGE_PGS: usize = 256;
/// Copies of a chunk at most, and so members of a group at most.
pub const MAX_COPIES: usize = 7;
/// log2 of the largest number of placement groups: enough for 8,192 nodes at 128 a node.
pub const MAX_PG_BITS: u8 = 20;
const PAGE_VERSION: u8 = 1;

/// Ordered members of one group.
pub type Members = SmallVec<[NodeId; MAX_COPIES]>;

/// A node as the map knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberNode {
    pub id: NodeId,
    /// Unique in the cluster; in Kubernetes the pod's name.
    pub name: String,
    /// Failure domain.
    pub zone: String,
    /// Relative share of data; usually the capacity in bytes.
    pub weight: u64,
}

/// A stored page or map that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("map page has format version {0}; this program reads version 1: run the release that wrote it")]
    Version(u8),
    #[error("map page is damaged: {0}")]
    Damaged(&'static str),
}

/// Which nodes should hold which placement group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterMap {
    /// Only grows.
    pub generation: u64,
    /// log2 of the number of groups.
    pub pg_bits: u8,
    pub nodes: BTreeMap<NodeId, MemberNode>,
    /// Indexed by group.
    pub members: Vec<Members>,
}

impl ClusterMap {
    /// Number of groups.
    pub fn pg_count(&self) -> u32 {
        1 << self.pg_bits
    }

    /// Number of stored pages.
    pub fn page_count(&self) -> u32 {
        self.members.len().div_ceil(PAGE_PGS) as u32
    }

    /// The group of a chunk.
    pub fn pg_of(&self, chunk: &ChunkId) -> PgId {
        chunk.pg(self.pg_bits)
    }

    /// All members of a group, in order; empty for a group that does not exist.
    pub fn members_of(&self, pg: PgId) -> &[NodeId] {
        self.members.get(pg.0 as usize).map_or(&[], |members| members.as_slice())
    }

    /// The members that hold chunks of volumes with `copies` copies.
    pub fn holders(&self, pg: PgId, copies: u8) -> &[NodeId] {
        let members = self.members_of(pg);
        &members[..members.len().min(usize::from(copies))]
    }

    /// The groups that a node is a member of.
    pub fn groups_of(&self, node: NodeId) -> impl Iterator<Item = PgId> + '_ {
        (0u32..)
            .zip(&self.members)
            .filter(move |(_, members)| members.contains(&node))
            .map(|(pg, _)| PgId(pg))
    }

    /// Page `page` in its stored form.
    pub fn encode_page(&self, page: u32) -> Vec<u8> {
        let mut bytes = vec![PAGE_VERSION];
        for members in self.members.iter().skip(page as usize * PAGE_PGS).take(PAGE_PGS) {
            bytes.push(members.len() as u8);
            members.iter().for_each(|member| bytes.extend_from_slice(&member.0.to_le_bytes()));
        }
        bytes
    }

    /// Reads a stored page: the members of up to [`PAGE_PGS`] groups.
    pub fn decode_page(bytes: &[u8]) -> Result<Vec<Members>, MapError> {
        let (&version, mut rest) = bytes.split_first().ok_or(MapError::Damaged("it is empty"))?;
        if version != PAGE_VERSION {
            return Err(MapError::Version(version));
        }
        let mut page = Vec::new();
        while let Some((&count, tail)) = rest.split_first() {
            let length = usize::from(count) * 2;
            if usize::from(count) > MAX_COPIES || tail.len() < length || page.len() == PAGE_PGS {
                return Err(MapError::Damaged("a group's member list does not fit"));
            }
            let (list, tail) = tail.split_at(length);
            page.push(
                list.chunks_exact(2).map(|pair| NodeId(u16::from_le_bytes([pair[0], pair[1]]))).collect(),
            );
            rest = tail;
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn pages_round_trip(groups in vec(vec(any::<u16>(), 0..=MAX_COPIES), 0..600)) {
            let map = ClusterMap {
                members: groups.iter().map(|g| g.iter().copied().map(NodeId).collect()).collect(),
                ..ClusterMap::default()
            };
            let mut read = Vec::new();
            for page in 0..map.page_count() {
                read.extend(ClusterMap::decode_page(&map.encode_page(page)).unwrap());
            }
            prop_assert_eq!(read, map.members);
        }

        #[test]
        fn damaged_pages_never_panic(bytes in vec(any::<u8>(), 0..64)) {
            let _ = ClusterMap::decode_page(&bytes);
        }
    }

    #[test]
    fn another_version_is_refused() {
        assert_eq!(ClusterMap::decode_page(&[2]), Err(MapError::Version(2)));
    }
}
