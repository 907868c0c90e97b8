//! Our keys and transactions as etcd's, and back.

use bytes::Bytes;
use etcd_client::{Compare as EtcdCompare, CompareOp, PutOptions, TxnOp, TxnOpResponse};

use super::milestones;
use crate::meta::{Compare, KeyValue, MetaError, Op, Txn};

/// What stands before each of our keys, and before its milestone.
pub(super) struct Prefix {
    keys: Vec<u8>,
    milestones: Vec<u8>,
}

impl Prefix {
    /// After `name`, a sign that no name has: `a/b` must not lie within `a`.
    pub(super) fn new(name: &str) -> Self {
        Self { keys: format!("{name}:").into_bytes(), milestones: format!("{name};").into_bytes() }
    }

    pub(super) fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.keys, key].concat()
    }

    pub(super) fn milestone(&self, key: &[u8]) -> Vec<u8> {
        [&self.milestones, key].concat()
    }

    /// The key of a milestone.
    pub(super) fn strip_milestone(&self, key: &[u8]) -> Option<Bytes> {
        key.strip_prefix(&self.milestones[..]).map(Bytes::copy_from_slice)
    }

    pub(super) fn strip(&self, key: &[u8]) -> Result<Bytes, MetaError> {
        match key.strip_prefix(&self.keys[..]) {
            Some(key) => Ok(Bytes::copy_from_slice(key)),
            None => Err(MetaError::Damaged("etcd has answered with a key that was not asked for".to_owned())),
        }
    }

    pub(super) fn key_value(&self, entry: etcd_client::KeyValue) -> Result<KeyValue, MetaError> {
        let (create_revision, mod_revision) = (entry.create_revision() as u64, entry.mod_revision() as u64);
        let (key, value) = entry.into_key_value();
        Ok(KeyValue { key: self.strip(&key)?, value: value.into(), create_revision, mod_revision })
    }

    pub(super) fn txn(&self, txn: &Txn) -> etcd_client::Txn {
        etcd_client::Txn::new()
            .when(txn.compare.iter().map(|compare| self.compare(compare)).collect::<Vec<_>>())
            .and_then(self.ops(&txn.then))
            .or_else(self.ops(&txn.otherwise))
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        match compare {
            Compare::ModRevision { key, equals } => {
                EtcdCompare::mod_revision(self.key(key), CompareOp::Equal, *equals as i64)
            }
            Compare::Value { key, equals } => {
                EtcdCompare::value(self.key(key), CompareOp::Equal, equals.to_vec())
            }
            // It holds if it does for every key of the range; for a range without any, if it does for one that was never there.
            Compare::Vacant { range } => {
                EtcdCompare::create_revision(self.key(&range.start), CompareOp::Equal, 0)
                    .with_range(self.key(&range.end))
            }
        }
    }

    /// Reads first: etcd carries out operations in order, and ours see nothing of the transaction's writes.
    fn ops(&self, ops: &[Op]) -> Vec<TxnOp> {
        let reads = ops.iter().filter(|op| is_read(op));
        let writes = ops.iter().filter(|op| !is_read(op));
        let milestones = milestones::ops(ops, |key| self.milestone(key));
        reads.chain(writes).map(|op| self.op(op)).chain(milestones).collect()
    }

    fn op(&self, op: &Op) -> TxnOp {
        match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.key(key), value.to_vec(), options)
            }
            Op::Delete { key } => TxnOp::delete(self.key(key), None),
            Op::Get { key } => TxnOp::get(self.key(key), None),
        }
    }

    /// What the reads among `ops` have read.
    pub(super) fn reads(
        &self,
        ops: &[Op],
        answers: Vec<TxnOpResponse>,
    ) -> Result<Vec<Option<KeyValue>>, MetaError> {
        let wanted = ops.iter().filter(|op| is_read(op)).count();
        let mut reads = Vec::with_capacity(wanted);
        for answer in answers.into_iter().take(wanted) {
            let TxnOpResponse::Get(mut answer) = answer else { break };
            reads.push(answer.take_kvs().into_iter().next().map(|entry| self.key_value(entry)).transpose()?);
        }
        if reads.len() < wanted {
            return Err(MetaError::Damaged("etcd has not answered all reads of a transaction".to_owned()));
        }
        Ok(reads)
    }
}

fn is_read(op: &Op) -> bool {
    matches!(op, Op::Get { .. })
}

/// Whether a transaction may change anything.
pub(super) fn writes(txn: &Txn) -> bool {
    txn.then.iter().chain(&txn.otherwise).any(|op| !is_read(op))
}
