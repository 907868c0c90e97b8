//! What lies on the disks of a simulated cluster although no file names it, and the other way round.

use std::collections::{BTreeMap, BTreeSet};

use cairn_node::{
    chunks::Scope,
    meta::{
        RangeRead,
        keys::{self, file::FileRecord},
    },
    workers::truth::plan::chunks_of,
};
use cairn_placement::{ChunkId, NodeId, PgId};

use super::cluster::SimCluster;

/// Chunks of the nodes that run.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// On a disk, and neither a record nor the collection queue names them.
    pub unnamed: BTreeSet<ChunkId>,
    /// On a disk, and the collection queue names them.
    pub resting: BTreeSet<ChunkId>,
    /// Named, and not on the disk of a node that should hold them.
    pub missing: BTreeMap<NodeId, BTreeSet<ChunkId>>,
}

impl Leftovers {
    /// Compares disks and records, as they are now.
    pub async fn of(cluster: &SimCluster) -> Self {
        let mut leftovers = Self::default();
        let page =
            cluster.meta().range(RangeRead::prefix(keys::file::PREFIX)).await.expect("the store reads");
        let records: Vec<_> =
            page.entries.iter().map(|entry| FileRecord::decode(entry).expect("a sound record")).collect();
        let named: BTreeMap<ChunkId, u8> =
            records.iter().flat_map(|record| chunks_of(record).map(|id| (id, record.copies))).collect();
        let page =
            cluster.meta().range(RangeRead::prefix(keys::collect::PREFIX)).await.expect("the store reads");
        let resting: BTreeSet<_> = page
            .entries
            .iter()
            .map(|entry| keys::collect::generation(entry).expect("a generation"))
            .collect();
        for node in (0..cluster.len()).filter_map(|index| cluster.node(index)).map(|node| node.node()) {
            let Some(map) = node.view.current().map.clone() else { continue };
            let scope = Scope::OnDisk { max_epoch: u32::MAX };
            let lines = node.store.inventory(0, PgId(0), scope, None, usize::MAX);
            let held: BTreeSet<ChunkId> =
                lines.iter().filter(|line| line.buried.is_none()).map(|line| line.id).collect();
            let nobodys = held.iter().filter(|id| !named.contains_key(id)).copied();
            let (queued, unnamed): (Vec<_>, Vec<_>) =
                nobodys.partition(|id| resting.contains(&id.generation));
            leftovers.resting.extend(queued);
            leftovers.unnamed.extend(unnamed);
            let wanted =
                named.iter().filter(|(id, copies)| map.holders(map.pg_of(id), **copies).contains(&node.id));
            let missing: BTreeSet<_> = wanted.map(|(id, _)| *id).filter(|id| !held.contains(id)).collect();
            if !missing.is_empty() {
                leftovers.missing.insert(node.id, missing);
            }
        }
        leftovers
    }
}
