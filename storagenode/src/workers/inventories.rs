//! What nodes hold, asked in one way for this node and others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cairn_placement::{ClusterMap, NodeId, PgId, VolumeId};
use cairn_proto::v1 as proto;
use futures::{StreamExt, stream};
use tracing::debug;

use super::repair::plan::{self, Digest, Digests, Held};
use crate::{
    chunks::Scope,
    cluster::{ClusterState, NodeInfo},
    replication::{peers::PeerError, wire, write::Writer},
};

/// Groups asked for in one request.
pub const GROUPS_A_REQUEST: usize = 256;
/// Lines of one group's inventory at most: bounds memory.
const MAX_INVENTORY: usize = 1_000_000;
/// Nodes asked at the same time.
const NODES_AT_ONCE: usize = 16;
/// Looks at groups in which nodes differ.
const LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
const SUMMARY_LIMIT: Duration = Duration::from_secs(10);
const INVENTORY_LIMIT: Duration = Duration::from_secs(60);

/// Count and digest of what this node holds of `groups`.
pub fn own_digests(writer: &Writer, map: &ClusterMap, groups: &[PgId], scope: Scope) -> Digests {
    let mut digests = Digests::new();
    for pg in groups {
        for summary in writer.store.summarize(map.pg_bits, *pg, scope) {
            let digest = Digest {
                chunks: summary.chunks,
                chunk_digest: summary.chunk_digest,
                tombstones: summary.tombstones,
                tombstone_digest: summary.tombstone_digest,
            };
            digests.insert((*pg, summary.copies), digest);
        }
    }
    digests
}

/// Count and digest of what a node holds of `groups`, [`GROUPS_A_REQUEST`] at most.
pub async fn digests(
    writer: &Writer,
    map: &ClusterMap,
    node: &NodeInfo,
    groups: &[PgId],
    scope: Scope,
) -> Result<Digests, PeerError> {
    if node.id == writer.me {
        return Ok(own_digests(writer, map, groups, scope));
    }
    let answer = writer.peers.summarize(node, map.pg_bits, groups, scope, SUMMARY_LIMIT).await?;
    Ok(digests_from_wire(&answer))
}

/// The summaries of all live nodes of the map; without those of nodes that did not answer for all of their groups.
pub async fn all_digests(
    writer: &Writer,
    state: &ClusterState,
    map: &ClusterMap,
    scope: Scope,
) -> BTreeMap<NodeId, Digests> {
    let every: BTreeSet<PgId> = (0..map.pg_count()).map(PgId).collect();
    digests_of(writer, state, map, &every, scope).await
}

/// What the live nodes hold of those of `groups` that are theirs; without nodes that did not answer for all of these.
async fn digests_of(
    writer: &Writer,
    state: &ClusterState,
    map: &ClusterMap,
    groups: &BTreeSet<PgId>,
    scope: Scope,
) -> BTreeMap<NodeId, Digests> {
    let ask = |node: NodeInfo| async move {
        let theirs: Vec<PgId> = map.groups_of(node.id).filter(|pg| groups.contains(pg)).collect();
        let mut all = Digests::new();
        for groups in theirs.chunks(GROUPS_A_REQUEST) {
            match digests(writer, map, &node, groups, scope).await {
                Ok(part) => all.extend(part),
                Err(error) => {
                    debug!(node = node.name, %error, "gave no summary");
                    return None;
                }
            }
        }
        Some((node.id, all))
    };
    let nodes = map.nodes.keys().filter_map(|id| state.nodes.get(id)).filter(|node| node.is_live()).cloned();
    let nodes: Vec<NodeInfo> = nodes.collect();
    stream::iter(nodes)
        .map(ask)
        .buffer_unordered(NODES_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// Those of `groups` whose holders all hold the same now. Writes on their way make a difference for a moment: what differs is
/// looked at again, [`LOOKS`] times in all.
pub async fn agreeing(
    writer: &Writer,
    state: &ClusterState,
    map: &ClusterMap,
    groups: BTreeSet<PgId>,
) -> BTreeSet<PgId> {
    let scope = Scope::Whole { tombstones_since: writer.store.tombstones_since() };
    let (mut agreed, mut differing) = (BTreeSet::new(), groups);
    for look in 1..=LOOKS {
        let answers = digests_of(writer, state, map, &differing, scope).await;
        let same = plan::agreeing(map, &differing, &answers);
        differing.retain(|pg| !same.contains(pg));
        agreed.extend(same);
        if differing.is_empty() || look == LOOKS {
            break;
        }
        writer.env.clock.sleep(BETWEEN_LOOKS).await;
    }
    agreed
}

/// Everything that this node holds of one group.
pub fn own_inventory(writer: &Writer, map: &ClusterMap, pg: PgId, scope: Scope) -> Vec<Held> {
    let lines = writer.store.inventory(map.pg_bits, pg, scope, None, usize::MAX).into_iter();
    let held =
        lines.map(|line| Held { id: line.id, volume: line.volume, copies: line.copies, buried: line.buried });
    held.collect()
}

/// Everything that a node holds of one group.
pub async fn inventory(
    writer: &Writer,
    map: &ClusterMap,
    node: &NodeInfo,
    pg: PgId,
    scope: Scope,
) -> Result<Vec<Held>, PeerError> {
    if node.id == writer.me {
        return Ok(own_inventory(writer, map, pg, scope));
    }
    let lines = writer.peers.inventory(node, map.pg_bits, pg, scope, MAX_INVENTORY, INVENTORY_LIMIT).await?;
    Ok(lines.into_iter().filter_map(held_from_wire).collect())
}

fn digests_from_wire(answer: &proto::SummarizeResponse) -> Digests {
    let mut digests = Digests::new();
    for group in &answer.summaries {
        for summary in &group.by_copies {
            let Ok(copies) = u8::try_from(summary.copies) else { continue };
            let digest = Digest {
                chunks: summary.chunks,
                chunk_digest: summary.chunk_digest,
                tombstones: summary.tombstones,
                tombstone_digest: summary.tombstone_digest,
            };
            digests.insert((PgId(group.placement_group), copies), digest);
        }
    }
    digests
}

fn held_from_wire(entry: proto::InventoryEntry) -> Option<Held> {
    Some(Held {
        id: wire::chunk_id(&entry.generation, entry.index).ok()?,
        volume: VolumeId(entry.volume),
        copies: u8::try_from(entry.copies).ok()?,
        buried: entry.tombstone.then_some(entry.tick),
    })
}
