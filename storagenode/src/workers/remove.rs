//! Removal of deleted volumes (R18): their files go in batches, each queued for collection like any deleted file; the
//! volume's record goes last. Interrupted anywhere, the next coordinator goes on.

use cairn_placement::VolumeId;
use tracing::info;

use crate::{
    cluster::{ClusterState, coordinate::Term},
    meta::{
        Compare, KeyValue, MetaError, Op, RangeRead, SharedMeta, Txn,
        keys::{
            self,
            collect::CollectRecord,
            file::FileRecord,
            volume::{State, VolumeRecord},
        },
    },
};

/// Files removed in one transaction: each is a delete and usually one put.
const FILES_A_TXN: usize = 50;
/// Transactions in one round.
const TXNS_A_ROUND: usize = 20;

pub struct Remover {
    pub meta: SharedMeta,
}

impl Remover {
    /// One round over all volumes that are being deleted.
    pub async fn round(&self, term: &Term, state: &ClusterState) -> Result<(), MetaError> {
        for entry in self.meta.range(RangeRead::prefix(keys::volume::PREFIX)).await?.entries {
            let volume: VolumeRecord = keys::from_json(&entry)?;
            if volume.state == State::Deleting {
                self.remove(term, state, &entry, &volume).await?;
            }
        }
        Ok(())
    }

    async fn remove(
        &self,
        term: &Term,
        state: &ClusterState,
        entry: &KeyValue,
        volume: &VolumeRecord,
    ) -> Result<(), MetaError> {
        let prefix = keys::file::prefix(VolumeId(volume.id));
        for _ in 0..TXNS_A_ROUND {
            let read = RangeRead { limit: FILES_A_TXN, ..RangeRead::prefix(&prefix) };
            let files = self.meta.range(read).await?.entries;
            let mut txn = Txn { compare: vec![term.holds()], ..Txn::default() };
            txn.compare.push(Compare::unchanged(entry.key.clone(), entry.mod_revision));
            if files.is_empty() {
                txn.then.push(Op::delete(entry.key.clone()));
                if self.meta.txn(txn).await?.succeeded {
                    info!(volume = keys::name(&entry.key), "volume removed");
                }
                return Ok(());
            }
            for file in &files {
                txn.compare.push(Compare::unchanged(file.key.clone(), file.mod_revision));
                txn.then.push(Op::delete(file.key.clone()));
                let record = FileRecord::decode(file)?;
                for extent in record.extents.iter().filter(|extent| extent.length_bytes > 0) {
                    let chunks = extent.length_bytes.div_ceil(u64::from(record.chunk_size_bytes)) as u32;
                    let volume = VolumeId(volume.id);
                    let queued = CollectRecord::waiting(volume, record.copies, chunks, state.tick);
                    txn.then.push(Op::put(keys::collect::key(&extent.generation), keys::to_json(&queued)));
                }
            }
            if !self.meta.txn(txn).await?.succeeded {
                return Ok(());
            }
        }
        Ok(())
    }
}
