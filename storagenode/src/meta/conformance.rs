//! What every [`MetaStore`](super::MetaStore) must do: one suite, run over each backend.
//!
//! Cases use keys below their own name, so they may share a store, also with other keys in it and with writers that they
//! do not know of. A case fails by panicking; [`run`] names it.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;

use super::{Event, MetaError, Op, RangeRead, SharedMeta, Txn, TxnResult, Watch, prefix_end};
use crate::env::{BoxFuture, Env};

mod leases;
mod ranges;
mod txns;
mod watches;

/// A store to be judged.
#[derive(Clone)]
pub struct Subject {
    pub store: SharedMeta,
    pub env: Env,
    /// Shortest lease that the store keeps to.
    pub lease_ttl: Duration,
    /// Whether it can read at old revisions.
    pub keeps_history: bool,
}

/// One case.
pub struct Case {
    pub name: &'static str,
    pub run: fn(Run) -> BoxFuture<'static, ()>,
}

/// A case being run.
#[derive(Clone)]
pub struct Run {
    subject: Subject,
    prefix: String,
}

/// All cases.
pub fn cases() -> Vec<Case> {
    [txns::cases(), ranges::cases(), watches::cases(), leases::cases()].into_iter().flatten().collect()
}

/// Runs all cases, each on its own.
///
/// # Panics
/// If one fails, after all have run.
pub async fn run(subject: &Subject) {
    let mut failed = Vec::new();
    for Case { name, run } in cases() {
        let run = run(Run { subject: subject.clone(), prefix: format!("case/{name}/") });
        if let Err(panic) = std::panic::AssertUnwindSafe(run).catch_unwind().await {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
            failed.push(format!("{name}: {}", why.unwrap_or_default()));
        }
    }
    assert!(failed.is_empty(), "cases that fail:\n{}", failed.join("\n"));
}

macro_rules! named {
    ($($name:ident),* $(,)?) => {
        vec![$(super::Case { name: stringify!($name), run: |run| Box::pin($name(run)) }),*]
    };
}
use named;

/// How long a case waits for what must come.
const SOON: Duration = Duration::from_secs(10);

impl Run {
    fn key(&self, name: impl AsRef<[u8]>) -> Bytes {
        [self.prefix.as_bytes(), name.as_ref()].concat().into()
    }

    /// A key without the case's prefix.
    fn name(&self, key: &[u8]) -> String {
        let name = key.strip_prefix(self.prefix.as_bytes()).expect("only keys of this case");
        String::from_utf8_lossy(name).into_owned()
    }

    fn all(&self) -> RangeRead {
        RangeRead::prefix(self.prefix.as_bytes())
    }

    async fn txn(&self, txn: Txn) -> TxnResult {
        self.subject.store.txn(txn).await.expect("the transaction is carried out")
    }

    /// Carries out operations without a condition; gives the revision.
    async fn write(&self, then: Vec<Op>) -> u64 {
        self.txn(Txn { then, ..Txn::default() }).await.revision
    }

    async fn put(&self, name: &str, value: &str) -> u64 {
        self.write(vec![Op::put(self.key(name), value.to_owned())]).await
    }

    async fn delete(&self, name: &str) -> u64 {
        self.write(vec![Op::delete(self.key(name))]).await
    }

    async fn value(&self, name: impl AsRef<[u8]>) -> Option<Bytes> {
        let found = self.subject.store.get(&self.key(name)).await.expect("the key is read");
        found.map(|entry| entry.value)
    }

    async fn revision(&self) -> u64 {
        self.subject.store.range(self.all()).await.expect("the range is read").revision
    }

    async fn refused(&self, txn: Txn) {
        let answer = self.subject.store.txn(txn).await;
        assert!(matches!(answer, Err(MetaError::Refused(_))), "not refused: {answer:?}");
    }

    async fn watch(&self, prefix: &str, from: u64) -> Seen {
        let start = self.key(prefix);
        let range = start.clone()..prefix_end(&start);
        let watch = self.subject.store.watch(range, from).await.expect("the watch is taken");
        Seen { run: self.clone(), watch, events: Vec::new() }
    }

    async fn sleep(&self, duration: Duration) {
        self.subject.env.clock.sleep(duration).await;
    }
}

/// A watch and what it has shown.
struct Seen {
    run: Run,
    watch: Box<dyn Watch>,
    events: Vec<Event>,
}

impl Seen {
    /// The first `count` events, as `revision name=value` or `revision name gone`.
    async fn first(&mut self, count: usize) -> Vec<String> {
        while self.events.len() < count {
            let next = self.run.subject.env.timeout(SOON, self.watch.next()).await;
            let events = next.unwrap_or_else(|| panic!("only {:?} came", self.events));
            let events = events.expect("the watch goes on");
            assert!(!events.is_empty(), "an answer without events");
            self.events.extend(events);
        }
        let text = |event: &Event| match event {
            Event::Put(entry) => {
                let value = String::from_utf8_lossy(&entry.value);
                format!("{} {}={value}", entry.mod_revision, self.run.name(&entry.key))
            }
            Event::Delete { key, revision } => format!("{revision} {} gone", self.run.name(key)),
        };
        self.events[..count].iter().map(text).collect()
    }

    async fn nothing_more(&mut self, count: usize) {
        let next = self.run.subject.env.timeout(Duration::from_millis(200), self.watch.next()).await;
        assert!(next.is_none() && self.events.len() == count, "more came: {next:?} after {:?}", self.events);
    }
}
