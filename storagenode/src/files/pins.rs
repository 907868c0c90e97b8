//! What keeps a file's chunks from being collected while it is read for long (R7).
//!
//! A file that is deleted or replaced rests for 15 minutes before its chunks go, so a download that has begun before usually
//! ends in time. One that goes on for longer than [`Pins::delay`] pins what it reads: a leased key for each generation, made
//! by a transaction that compares the generation's entry in the collection queue (see `keys/collect.rs`). The keys of a gateway
//! share one lease. One task compares, again and again, what is being read with what is pinned:
//!
//! * being read for long, not pinned: pinned;
//! * pinned, not read any more: unpinned; with the last one the lease is given back;
//! * the lease has ended, since the store was away for so long: all anew.
//!
//! While the store is away a download goes on (R13). If its chunks are collected all the same, since the lease ended, it is told that
//! the file was deleted, as any late reader is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use cairn_placement::Generation;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    cluster::View,
    env::Env,
    meta::{
        Compare, LeaseId, MetaError, Op, SharedMeta, Txn,
        keys::{
            self,
            collect::{self, CollectRecord},
            file::FileRecord,
            pin::{self, PinRecord},
        },
    },
};

/// Pins outlive so long a silence of their gateway or of the store.
const LEASE: Duration = Duration::from_secs(60);
/// Between two comparisons, at most: several in the life of the lease.
const PERIOD: Duration = Duration::from_secs(10);
const PERIOD_MIN: Duration = Duration::from_millis(250);
/// Of a download that is pinned.
const DELAY: Duration = Duration::from_secs(60);
/// Attempts at a pin whose entry keeps changing; another round comes soon.
const ATTEMPTS: usize = 3;

/// What a gateway's downloads read.
pub struct Pins {
    env: Env,
    meta: SharedMeta,
    view: View,
    node: String,
    /// Downloads older than this are pinned.
    delay: Duration,
    reading: Mutex<Reading>,
}

#[derive(Default)]
struct Reading {
    next: u64,
    downloads: BTreeMap<u64, (Duration, Vec<Generation>)>,
}

/// A download that goes on until this is dropped.
pub(super) struct ReadGuard {
    pins: Arc<Pins>,
    number: u64,
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        self.pins.reading.lock().downloads.remove(&self.number);
    }
}

/// What is known of a generation's pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pin {
    Made,
    /// An attempt had no answer.
    Unsure,
    /// The generation is being buried: there is none, and there will be none.
    Late,
}

/// What is pinned, as far as known.
#[derive(Default)]
struct Pinned {
    lease: Option<LeaseId>,
    pins: BTreeMap<Generation, Pin>,
}

impl Pins {
    /// `rest` is for how long deleted files are kept at least.
    pub fn new(env: Env, meta: SharedMeta, view: View, node: &str, rest: Duration) -> Self {
        Self { env, meta, view, node: node.to_owned(), delay: DELAY.min(rest / 8), reading: Mutex::default() }
    }

    /// Notes that a file's content begins to be read.
    pub(super) fn begin(self: &Arc<Self>, record: &FileRecord) -> ReadGuard {
        let generations = record.extents.iter().map(|extent| extent.generation).collect();
        let mut reading = self.reading.lock();
        let number = reading.next;
        reading.next += 1;
        reading.downloads.insert(number, (self.env.clock.monotonic(), generations));
        ReadGuard { pins: self.clone(), number }
    }

    /// Pins and unpins until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut pinned = Pinned::default();
        let task = async {
            loop {
                self.env.clock.sleep((self.delay / 4).clamp(PERIOD_MIN, PERIOD)).await;
                if let Err(error) = self.round(&mut pinned).await {
                    warn!(%error, "long downloads are not kept from being collected at the moment");
                }
            }
        };
        stop.run_until_cancelled(task).await;
        if let Some(lease) = pinned.lease {
            let _ = self.meta.revoke(lease).await;
        }
    }

    fn long_read(&self) -> BTreeSet<Generation> {
        let now = self.env.clock.monotonic();
        let reading = self.reading.lock();
        let long = reading.downloads.values().filter(|(since, _)| now.saturating_sub(*since) >= self.delay);
        long.flat_map(|(_, generations)| generations.iter().copied()).collect()
    }

    /// Makes what is pinned what is read.
    async fn round(&self, pinned: &mut Pinned) -> Result<(), MetaError> {
        let wanted = self.long_read();
        if wanted.is_empty() {
            // The keys go with it.
            if let Some(lease) = pinned.lease {
                self.meta.revoke(lease).await?;
            }
            *pinned = Pinned::default();
            return Ok(());
        }
        let lease = self.live_lease(pinned).await?;
        let ended: Vec<_> = pinned.pins.keys().filter(|pinned| !wanted.contains(pinned)).copied().collect();
        for generation in ended {
            let then = vec![Op::delete(pin::key(&generation, &self.node))];
            self.meta.txn(Txn { then, ..Txn::default() }).await?;
            pinned.pins.remove(&generation);
        }
        for generation in wanted {
            if !matches!(pinned.pins.get(&generation), None | Some(Pin::Unsure)) {
                continue;
            }
            pinned.pins.insert(generation, Pin::Unsure);
            let made = self.pin(generation, lease).await?;
            pinned.pins.insert(generation, if made { Pin::Made } else { Pin::Late });
            match made {
                true => debug!(%generation, "a long download is pinned"),
                false => {
                    warn!(%generation, "a file was deleted; its download comes too late to keep its content")
                }
            }
        }
        Ok(())
    }

    /// The lease of all pins, renewed or made.
    async fn live_lease(&self, pinned: &mut Pinned) -> Result<LeaseId, MetaError> {
        if let Some(lease) = pinned.lease {
            match self.meta.keep_alive(lease).await {
                Err(MetaError::LeaseNotFound) => *pinned = Pinned::default(),
                renewed => return renewed.map(|()| lease),
            }
        }
        let lease = self.meta.grant(LEASE).await?;
        pinned.lease = Some(lease);
        Ok(lease)
    }

    /// Makes a pin; `false` if the generation is being buried.
    async fn pin(&self, generation: Generation, lease: LeaseId) -> Result<bool, MetaError> {
        let (key, queued_key) = (pin::key(&generation, &self.node), collect::key(&generation));
        let value = keys::to_json(&PinRecord { tick: self.view.current().tick });
        for _ in 0..ATTEMPTS {
            let queued = self.meta.get(&queued_key).await?;
            let record = queued.as_ref().map(keys::from_json::<CollectRecord>).transpose()?;
            if record.is_some_and(|record| record.buried_tick.is_some()) {
                return Ok(false);
            }
            let mut txn = Txn {
                compare: vec![Compare::unchanged(
                    queued_key.clone(),
                    queued.as_ref().map_or(0, |entry| entry.mod_revision),
                )],
                then: vec![Op::Put { key: key.clone(), value: value.clone(), lease: Some(lease) }],
                otherwise: vec![],
            };
            // Whoever has read the entry, and no pin, is to find it changed.
            txn.then.extend(queued.map(|entry| Op::put(queued_key.clone(), entry.value)));
            if self.meta.txn(txn).await?.succeeded {
                return Ok(true);
            }
        }
        Err(MetaError::Unavailable("the collection queue changes too fast".into()))
    }
}
