//! A metadata store between which and its clients messages get lost, as on a real network: a request that never arrives, an
//! answer that never comes, a request that arrives long after its sender has given up.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_node::{
    env::Clock,
    meta::{Event, LeaseId, MetaError, MetaStore, Op, Page, RangeRead, SharedMeta, Txn, TxnResult, Watch},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::life::Life;

/// How long a client waits for an answer that does not come, as `meta::etcd` does.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request that is late arrives within this.
const LATEST: Duration = Duration::from_secs(30);

/// How likely it is, of 1,000 requests, that something goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Odds {
    pub lost_request: u32,
    pub lost_answer: u32,
    pub late_request: u32,
    /// Nothing gets through: the store is away.
    pub away: bool,
    /// Each way takes so much longer, at most.
    pub slow: Duration,
}

/// What goes wrong between the store and all its clients. Clones are the same.
#[derive(Clone)]
pub struct MetaFaults {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<(Odds, StdRng)>>,
    planned: Arc<Mutex<Vec<Planned>>>,
    /// Of those that were planned, how many have been given to be sent, and are not on their way yet.
    to_send: Arc<AtomicUsize>,
}

/// A transaction that will be late.
struct Planned {
    writes: Bytes,
    delay: Duration,
}

enum Fate {
    Fine,
    Away,
    LostRequest,
    LostAnswer,
    Late(Duration),
}

impl MetaFaults {
    pub fn new(seed: u64, clock: Arc<dyn Clock>) -> Self {
        let state = (Odds::default(), StdRng::seed_from_u64(seed));
        Self { clock, state: Arc::new(Mutex::new(state)), planned: Arc::default(), to_send: Arc::default() }
    }

    /// The next transaction that writes this key arrives only after `delay`, and its sender hears nothing.
    pub fn delay_next(&self, key: impl Into<Bytes>, delay: Duration) {
        self.planned.lock().push(Planned { writes: key.into(), delay });
    }

    fn planned_for(&self, txn: &Txn) -> Option<Duration> {
        let mut planned = self.planned.lock();
        let writes = |planned: &Planned| {
            txn.then.iter().any(|op| matches!(op, Op::Put { key, .. } if *key == planned.writes))
        };
        let position = planned.iter().position(writes)?;
        self.to_send.fetch_add(1, Ordering::Relaxed);
        Some(planned.remove(position).delay)
    }

    /// Whether everything that was planned is on its way: its sender may die now.
    pub fn plan_is_done(&self) -> bool {
        self.planned.lock().is_empty() && self.to_send.load(Ordering::Relaxed) == 0
    }

    pub fn set(&self, odds: Odds) {
        self.state.lock().0 = odds;
    }

    /// The store as one life of a node has it.
    pub fn of(&self, store: SharedMeta, life: &Life) -> SharedMeta {
        Arc::new(LossyMeta { store, faults: self.clone(), life: life.clone() })
    }

    fn is_away(&self) -> bool {
        self.state.lock().0.away
    }

    fn fate(&self) -> Fate {
        let (odds, random) = &mut *self.state.lock();
        if odds.away {
            return Fate::Away;
        }
        let thrown = random.random_range(0..1_000);
        let Odds { lost_request, lost_answer, late_request, .. } = *odds;
        match thrown {
            n if n < lost_request => Fate::LostRequest,
            n if n < lost_request + lost_answer => Fate::LostAnswer,
            n if n < lost_request + lost_answer + late_request => {
                Fate::Late(Duration::from_millis(random.random_range(1..LATEST.as_millis() as u64)))
            }
            _ => Fate::Fine,
        }
    }

    fn way(&self) -> Duration {
        let (odds, random) = &mut *self.state.lock();
        Duration::from_micros(random.random_range(50..3_000 + odds.slow.as_micros() as u64))
    }
}

struct LossyMeta {
    store: SharedMeta,
    faults: MetaFaults,
    life: Life,
}

impl LossyMeta {
    /// Sends a request on its way, and its answer back. `is_write`: it is not known then whether it has happened.
    async fn carry<T: Send + 'static>(
        &self,
        is_write: bool,
        planned: Option<Duration>,
        request: impl Future<Output = Result<T, MetaError>> + Send + 'static,
    ) -> Result<T, MetaError> {
        let clock = &self.faults.clock;
        self.life.of(clock.sleep(self.faults.way())).await;
        let silence = |why: &str| match is_write {
            true => MetaError::Unknown(why.to_owned()),
            false => MetaError::Unavailable(why.to_owned()),
        };
        let result = match planned.map_or_else(|| self.faults.fate(), Fate::Late) {
            Fate::Fine => request.await,
            Fate::Away => {
                clock.sleep(PATIENCE).await;
                Err(silence("the store is away"))
            }
            Fate::LostRequest => {
                clock.sleep(PATIENCE).await;
                Err(silence("the request was lost"))
            }
            Fate::LostAnswer => {
                let _ = request.await;
                clock.sleep(PATIENCE).await;
                Err(silence("the answer was lost"))
            }
            Fate::Late(delay) => {
                let arrival = clock.sleep(delay);
                // What is on its way arrives also if its sender is dead by then.
                tokio::spawn(async move {
                    arrival.await;
                    let _ = request.await;
                });
                if planned.is_some() {
                    self.faults.to_send.fetch_sub(1, Ordering::Relaxed);
                }
                clock.sleep(PATIENCE).await;
                Err(silence("the request is late"))
            }
        };
        self.life.of(clock.sleep(self.faults.way())).await;
        result
    }
}

#[async_trait]
impl MetaStore for LossyMeta {
    async fn range(&self, read: RangeRead) -> Result<Page, MetaError> {
        let store = self.store.clone();
        self.carry(false, None, async move { store.range(read).await }).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, MetaError> {
        let store = self.store.clone();
        let planned = self.faults.planned_for(&txn);
        self.carry(true, planned, async move { store.txn(txn).await }).await
    }

    async fn watch(&self, range: Range<Bytes>, from: u64) -> Result<Box<dyn Watch>, MetaError> {
        let store = self.store.clone();
        let watch = self.carry(false, None, async move { store.watch(range, from).await }).await?;
        Ok(Box::new(LossyWatch { watch, held: None, faults: self.faults.clone(), life: self.life.clone() }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        let store = self.store.clone();
        self.carry(false, None, async move { store.grant(ttl).await }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        let store = self.store.clone();
        self.carry(false, None, async move { store.keep_alive(lease).await }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        let store = self.store.clone();
        self.carry(true, None, async move { store.revoke(lease).await }).await
    }
}

/// Events come late, and while the store is away none.
struct LossyWatch {
    watch: Box<dyn Watch>,
    /// On their way: whoever drops the future gets them from the next one.
    held: Option<Result<Vec<Event>, MetaError>>,
    faults: MetaFaults,
    life: Life,
}

#[async_trait]
impl Watch for LossyWatch {
    async fn next(&mut self) -> Result<Vec<Event>, MetaError> {
        if self.held.is_none() {
            self.held = Some(self.watch.next().await);
        }
        self.faults.clock.sleep(self.faults.way()).await;
        while self.faults.is_away() {
            self.faults.clock.sleep(PATIENCE).await;
        }
        self.life.go_on().await;
        self.held.take().expect("held since above")
    }
}
