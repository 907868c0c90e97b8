//! The metadata store: an ordered map of keys with revisions, transactions, watches and leases.
//!
//! [`MetaStore`] is the one seam; `etcd` (clusters) and `embedded` (one process, no other parts) pass one
//! conformance suite. Semantics are etcd's: one revision counter for the whole store, raised by every transaction that
//! writes; a key has the revision that created it and the one that last changed it; reads are linearizable unless
//! they say `stale`.
//!
//! What is stored, and under which keys, is in [`keys`]: one file per stored key.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::env::Env;

pub mod conformance;
pub mod embedded;
pub mod etcd;
pub mod keys;
pub mod limits;
pub mod url;

pub use limits::{MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES};
pub use url::DatabaseUrl;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// Revision that created the key.
    pub create_revision: u64,
    /// Revision that last changed it.
    pub mod_revision: u64,
}

/// Keys in order, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<KeyValue>,
    /// Keys are left in the range after the last entry.
    pub more: bool,
    /// Revision of the store at which this was read.
    pub revision: u64,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// Sees every write that was answered before the read began.
    #[default]
    Linearizable,
    /// May be a little behind; works while the store has lost its quorum.
    Stale,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was last changed at this revision; 0: the key does not exist.
    ModRevision { key: Bytes, equals: u64 },
    /// The key exists with this value.
    Value { key: Bytes, equals: Bytes },
    /// No key is in the range (start included, end not). Costs as much as reading the range: for those in which little can be.
    Vacant { range: Range<Bytes> },
}

impl Compare {
    /// The key does not exist.
    pub fn absent(key: impl Into<Bytes>) -> Self {
        Self::ModRevision { key: key.into(), equals: 0 }
    }

    /// The key was last changed at `revision`.
    pub fn unchanged(key: impl Into<Bytes>, revision: u64) -> Self {
        Self::ModRevision { key: key.into(), equals: revision }
    }

    /// No key begins with `prefix`.
    pub fn vacant(prefix: &[u8]) -> Self {
        Self::Vacant { range: Bytes::copy_from_slice(prefix)..prefix_end(prefix) }
    }

    /// The key exists with this value.
    pub fn value(key: impl Into<Bytes>, equals: impl Into<Bytes>) -> Self {
        Self::Value { key: key.into(), equals: equals.into() }
    }
}

/// A lease: keys bound to it vanish when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// One operation of a transaction. A transaction names each key at most once among its puts and deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    /// Deleting what does not exist is no error.
    Delete {
        key: Bytes,
    },
    /// Answered in [`TxnResult::reads`], in order, as of before the transaction's writes.
    Get {
        key: Bytes,
    },
}

impl Op {
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { key: key.into() }
    }

    pub fn get(key: impl Into<Bytes>) -> Self {
        Self::Get { key: key.into() }
    }
}

/// If all of `compare` hold, all of `then` happen at one revision, else all of `otherwise`. At most [`MAX_TXN_OPS`] in
/// each list, at most [`MAX_TXN_BYTES`] together.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResult {
    /// The conditions held.
    pub succeeded: bool,
    /// The store's revision after it. Raised by every put and every delete of something that existed, by nothing else.
    pub revision: u64,
    /// One for each `Get` of the list that was carried out, in order.
    pub reads: Vec<Option<KeyValue>>,
}

/// What a watch saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put(KeyValue),
    Delete { key: Bytes, revision: u64 },
}

impl Event {
    /// The revision that made it.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Events of a range of keys, in order, none left out and none twice, also over lost connections.
#[async_trait]
pub trait Watch: Send {
    /// The next events, at least one. Dropping the future loses none.
    ///
    /// [`MetaError::Compacted`] if some were lost: read everything again and watch from there. [`MetaError::Unavailable`]
    /// if the store has been away for a while: calling again goes on where it was.
    async fn next(&mut self) -> Result<Vec<Event>, MetaError>;
}

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Nothing has happened.
    #[error("the metadata store cannot be reached: {0}")]
    Unavailable(String),
    /// A write may have happened, or may still happen.
    #[error("the metadata store gave no answer; the write may have happened: {0}")]
    Unknown(String),
    /// The wanted revision is no longer kept.
    #[error("the metadata store no longer keeps the revision asked for")]
    Compacted,
    #[error("the metadata store is full: {0}")]
    Full(String),
    #[error("the lease has ended")]
    LeaseNotFound,
    /// A request that the store never takes.
    #[error("the metadata store refused the request: {0}")]
    Refused(String),
    /// What is stored is not what was written.
    #[error("the metadata store is damaged: {0}")]
    Damaged(String),
}

/// An ordered, transactional store of small values. Every call ends in bounded time.
#[async_trait]
pub trait MetaStore: Send + Sync {
    /// Keys in `range` (start included, end not), in order, `limit` at most (0: no limit).
    ///
    /// `at`: as of that revision, else of now. Reading at an old revision fails with `Compacted` once it is gone; the
    /// embedded store keeps none but the newest. A revision that is yet to come is refused.
    async fn range(&self, read: RangeRead) -> Result<Page, MetaError>;

    /// After [`MetaError::Unknown`] it may have happened, or may happen *later*. To settle it, look whether it has; if not,
    /// write something that it compares: it cannot happen after that.
    async fn txn(&self, txn: Txn) -> Result<TxnResult, MetaError>;

    /// Events of `range` whose revision is at least `from` (which is not 0).
    async fn watch(&self, range: Range<Bytes>, from: u64) -> Result<Box<dyn Watch>, MetaError>;

    /// A lease that ends `ttl` after its last renewal, or somewhat later: etcd counts whole seconds, two at least, and
    /// starts anew when its leader changes.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError>;

    /// Renews a lease. `LeaseNotFound` once it has ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError>;

    /// Ends a lease, and deletes its keys, now. No error if it has ended already.
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError>;

    /// Lets go of files and connections; later calls fail.
    async fn close(&self) {}

    /// One key's value.
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        let page = self.range(RangeRead::key(key)).await?;
        Ok(page.entries.into_iter().next())
    }
}

/// A read of a range.
#[derive(Debug, Clone, Default)]
pub struct RangeRead {
    pub start: Bytes,
    pub end: Bytes,
    pub limit: usize,
    pub keys_only: bool,
    pub freshness: Freshness,
    pub at: Option<u64>,
}

impl RangeRead {
    /// One key.
    pub fn key(key: &[u8]) -> Self {
        let end = [key, &[0]].concat();
        Self { start: Bytes::copy_from_slice(key), end: end.into(), limit: 1, ..Self::default() }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { start: Bytes::copy_from_slice(prefix), end: prefix_end(prefix), ..Self::default() }
    }
}

/// The first key after all that begin with `prefix`. A prefix must have a byte below 255.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 255 {
            *last += 1;
            return end.into();
        }
        end.pop();
    }
    panic!("a prefix of nothing but 255 has no end");
}

/// A shared store.
pub type SharedMeta = Arc<dyn MetaStore>;

/// Why the store of a URL was not opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Embedded(#[from] embedded::OpenError),
    #[error(transparent)]
    Etcd(#[from] etcd::OptionsError),
}

/// Opens the store that `url` names. An etcd that is away is no error: calls wait for it.
pub async fn connect(url: &DatabaseUrl, env: Env) -> Result<SharedMeta, ConnectError> {
    Ok(match url {
        DatabaseUrl::Embedded { folder } => Arc::new(embedded::EmbeddedStore::open(env, folder).await?),
        DatabaseUrl::Etcd(address) => Arc::new(etcd::EtcdStore::open(env, address.clone()).await?),
    })
}
