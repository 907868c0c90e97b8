//! Milestones: where to end a request for a part of a long range.
//!
//! etcd walks the whole range that it is asked for, whatever the limit: it counts it. A page of a thousand names of a volume
//! of a million would cost a thousand times what it gives. So about every 4,096th key, chosen by its hash, has a
//! second, empty one in a space of its own, the milestone. A part of a long range is asked for up to the second milestone
//! after its start, which is one more request for keys of which there are few.
//!
//! A milestone only ever says where a request may end, so wrong ones cost time and nothing else: those of keys that are gone,
//! and those that are missing because an earlier version wrote the keys. Missing ones are made when their keys are read.
//! A key that ends with a lease has none.

use std::{collections::HashSet, sync::atomic::Ordering};

use bytes::Bytes;
use etcd_client::{GetOptions, GetResponse, TxnOp};
use parking_lot::Mutex;

use super::{EtcdStore, Kind, Leader};
use crate::meta::{KeyValue, Op, limits::MAX_TXN_OPS};

/// Keys that a range may have without being long.
const LONG: i64 = 16_384;
/// Ranges that are known to be long; of more, some are found out again.
const MAX_KNOWN: usize = 1_024;

/// Whether a key has a milestone: one in 4,096 has. Part of the stored format.
pub(super) fn is_milestone(key: &[u8]) -> bool {
    let hash = blake3::hash(key);
    let [first, second, ..] = hash.as_bytes();
    *first == 0 && second & 0x0f == 0
}

/// Ranges that were found to be long, by their ends: those of a listing's pages all end at the same key.
#[derive(Default)]
pub(super) struct LongRanges(Mutex<HashSet<Bytes>>);

impl LongRanges {
    pub(super) fn has(&self, end: &Bytes) -> bool {
        self.0.lock().contains(end)
    }

    /// Notes what etcd says about the number of keys up to an end.
    pub(super) fn note(&self, end: &Bytes, answer: &GetResponse) {
        if answer.count() > LONG {
            let mut known = self.0.lock();
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(end.clone());
        }
    }
}

/// The milestones that change with these operations; fewer if there is no room for more.
pub(super) fn ops<'a>(
    ops: &'a [Op],
    milestone: impl Fn(&[u8]) -> Vec<u8> + 'a,
) -> impl Iterator<Item = TxnOp> + 'a {
    let changed = ops.iter().filter_map(move |op| match op {
        Op::Put { key, lease: None, .. } if is_milestone(key) => {
            Some(TxnOp::put(milestone(key), Vec::new(), None))
        }
        Op::Delete { key } if is_milestone(key) => Some(TxnOp::delete(milestone(key), None)),
        _ => None,
    });
    changed.take(MAX_TXN_OPS.saturating_sub(ops.len()))
}

/// Where the next request of a long range ends.
#[derive(Default)]
pub(super) struct Ahead {
    /// Milestones after the start, the next two at most.
    milestones: Vec<Bytes>,
}

impl Ahead {
    /// Not the next one: a page seldom needs more than up to the second, and often more than up to the first.
    pub(super) fn end(&self) -> Option<&Bytes> {
        self.milestones.get(1)
    }

    fn lacks(&self, entry: &KeyValue) -> bool {
        is_milestone(&entry.key) && !self.milestones.contains(&entry.key)
    }
}

impl EtcdStore {
    /// The milestones after `start`. None if they cannot be read, or if the range is not known to be long.
    pub(super) async fn ahead(&self, start: &[u8], end: &Bytes) -> Ahead {
        if !self.inner.long_ranges.has(end) {
            return Ahead::default();
        }
        let prefix = &self.inner.prefix;
        let (from, to) = (prefix.milestone(&[start, &[0]].concat()), prefix.milestone(end));
        let options = GetOptions::new().with_range(to).with_limit(2).with_keys_only().with_serializable();
        let answer = self.call(Kind::Read(Leader::NotRequired), |client| {
            let (from, options) = (from.clone(), options.clone());
            async move { client.kv_client().get(from, Some(options)).await }
        });
        let Ok(answer) = answer.await else { return Ahead::default() };
        self.inner.walked.fetch_add(answer.count() as u64, Ordering::Relaxed);
        let keys = answer.kvs().iter().filter_map(|entry| prefix.strip_milestone(entry.key()));
        Ahead { milestones: keys.collect() }
    }

    /// Makes the milestones of keys that were just read and have none, in the background; for one reader at a time.
    pub(super) fn make_missing(&self, start: &[u8], ahead: &Ahead, end: &Bytes, entries: &[KeyValue]) {
        if !self.inner.long_ranges.has(end) {
            return;
        }
        let missing = entries.iter().filter(|entry| entry.key != start && ahead.lacks(entry));
        let missing: Vec<Vec<u8>> = missing.map(|entry| self.inner.prefix.milestone(&entry.key)).collect();
        if missing.is_empty() {
            return;
        }
        let Ok(turn) = self.inner.making_milestones.clone().try_acquire_owned() else {
            return; // The next reader tries again.
        };
        let store = self.clone();
        tokio::spawn(async move {
            let _turn = turn;
            for key in missing {
                let put = store.call(Kind::Repeatable, |client| {
                    let key = key.clone();
                    async move { client.kv_client().put(key, Vec::new(), None).await }
                });
                if put.await.is_err() {
                    return; // The next reader tries again.
                }
            }
        });
    }

    /// Keys that etcd had to walk for ranges, for tests of what they cost.
    pub fn walked(&self) -> u64 {
        self.inner.walked.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which keys have milestones is a promise: every version must make the same.
    #[test]
    fn one_key_in_4096_has_a_milestone() {
        let with: Vec<u32> = (0..100_000).filter(|n| is_milestone(format!("file/{n}").as_bytes())).collect();
        assert!((10..45).contains(&with.len()), "{with:?}");
        assert_eq!(with[..2], [2_551, 6_102]);
    }

    #[test]
    fn changes_of_keys_change_their_milestones() {
        let key = (0..).map(|n| Bytes::from(format!("file/{n}"))).find(|key| is_milestone(key)).unwrap();
        let put = |key: &Bytes| Op::put(key.clone(), "value");
        let count = |all: &[Op]| ops(all, <[u8]>::to_vec).count();
        assert_eq!(count(&[put(&key), put(&Bytes::from_static(b"other")), Op::get(key.clone())]), 1);
        assert_eq!(count(&[Op::Delete { key: key.clone() }]), 1);
        let leased = Op::Put { key: key.clone(), value: Bytes::new(), lease: Some(crate::meta::LeaseId(1)) };
        assert_eq!(count(&[leased]), 0);
        let mut many = vec![Op::get("x"); MAX_TXN_OPS - 1];
        many.push(put(&key));
        assert_eq!(count(&many), 0, "etcd takes no more");
    }
}
