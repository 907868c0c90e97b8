//! What a node counts of itself: gauges are sampled, errors of the metadata store are counted as they pass.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::Node;
use crate::{
    meta::{KeyValue, LeaseId, MetaError, MetaStore, Page, RangeRead, SharedMeta, Txn, TxnResult, Watch},
    metrics::Metrics,
};

/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// A store whose errors are counted.
pub(super) struct CountedMeta {
    pub inner: SharedMeta,
    pub metrics: Arc<Metrics>,
}

impl CountedMeta {
    fn count<T>(&self, result: Result<T, MetaError>) -> Result<T, MetaError> {
        if result.is_err() {
            self.metrics.meta_errors.inc();
        }
        result
    }
}

#[async_trait]
impl MetaStore for CountedMeta {
    async fn range(&self, read: RangeRead) -> Result<Page, MetaError> {
        self.count(self.inner.range(read).await)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        self.count(self.inner.get(key).await)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, MetaError> {
        self.count(self.inner.txn(txn).await)
    }

    async fn watch(&self, range: Range<Bytes>, from: u64) -> Result<Box<dyn Watch>, MetaError> {
        self.count(self.inner.watch(range, from).await)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        self.count(self.inner.grant(ttl).await)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.count(self.inner.keep_alive(lease).await)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.count(self.inner.revoke(lease).await)
    }
}

impl Node {
    /// Samples until the node stops.
    pub(super) fn start_sampling(&self) {
        let (env, metrics) = (self.env.clone(), self.metrics.clone());
        let (store, repair, view) = (self.store.clone(), self.repair.clone(), self.view.clone());
        let (me, name) = (self.id, self.options.name.clone());
        let sampling = async move {
            let (mut repaired, mut corrupt, mut compacted) = (0, 0, 0);
            loop {
                let (usage, settled, state) = (store.usage(), repair.settled(), view.current());
                let groups = state.map.as_ref().map_or(0, |map| map.groups_of(me).count());
                metrics.store_capacity_bytes.set(usage.capacity_bytes as i64);
                metrics.store_used_bytes.set(usage.used_bytes as i64);
                metrics.chunks.set(usage.chunks as i64);
                metrics.chunks_damaged.set(usage.damaged_chunks as i64);
                metrics.tombstones.set(usage.tombstones as i64);
                metrics.store_index_bytes.set(usage.index_bytes as i64);
                metrics.placement_groups.set(groups as i64);
                metrics.placement_groups_settled.set(settled.groups.len() as i64);
                metrics.lost_files.set(state.truth().map_or(0, |truth| truth.lost_files as i64));
                metrics.coordinator.set(i64::from(state.coordinator.as_deref() == Some(name.as_str())));
                metrics.repair_copies.inc_by(settled.repaired_chunks - repaired);
                repaired = settled.repaired_chunks;
                let counters = store.counters();
                metrics.corrupt_copies.inc_by(counters.corrupt_chunks - corrupt);
                corrupt = counters.corrupt_chunks;
                metrics.compacted_bytes.inc_by(counters.compacted_bytes - compacted);
                compacted = counters.compacted_bytes;
                env.clock.sleep(SAMPLE_EVERY).await;
            }
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(sampling).await;
        });
    }
}
