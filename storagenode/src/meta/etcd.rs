//! The metadata store in an etcd cluster.
//!
//! Every call has a deadline. Reads are tried at one member after the other until it passes. Writes are sent again only if
//! they certainly have not happened ([`errors`]); else the answer is [`MetaError::Unknown`]. Connections are made when
//! needed and again when lost, so an etcd that was away needs no restart here.

use std::{
    future::Future,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, GetOptions, GetResponse};
use tokio::sync::Semaphore;

use super::{
    LeaseId, MetaError, MetaStore, Page, RangeRead, Txn, TxnResult, Watch, limits::check_txn,
    url::EtcdAddress,
};
use crate::{
    env::Env,
    meta::{Freshness, KeyValue},
};

mod convert;
mod endpoints;
mod errors;
mod milestones;
mod reads;
mod watch;

use convert::Prefix;
pub use endpoints::OptionsError;
use endpoints::{Endpoints, Leader};
use errors::{Failure, classify};
use milestones::LongRanges;
use reads::Reads;
use watch::EtcdWatch;

/// How long a call may take. Callers with less time give up before.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one member may take for a read, before another is asked.
const READ_ATTEMPT: Duration = Duration::from_millis(1500);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
/// Largest answer that is taken. Larger ranges are read in smaller pieces.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Keys asked for at once.
const MAX_PIECE: usize = 8192;

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    endpoints: Endpoints,
    prefix: Prefix,
    reads: Reads,
    long_ranges: LongRanges,
    /// Keys in the ranges that were asked for.
    walked: AtomicU64,
    /// Taken by who makes milestones that are missing.
    making_milestones: Arc<Semaphore>,
}

/// What may be done when an answer is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ask again.
    Read(Leader),
    /// Do it again, but in the end say that it may have happened.
    Repeatable,
    /// Once only.
    Write,
}

/// Why a call has failed.
enum CallError {
    /// The answer has more than [`MAX_ANSWER_BYTES`].
    TooLarge,
    Meta(MetaError),
}

impl From<CallError> for MetaError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::TooLarge => {
                Self::Refused(format!("the answer has more than {MAX_ANSWER_BYTES} bytes"))
            }
            CallError::Meta(error) => error,
        }
    }
}

impl EtcdStore {
    /// Checks what it is given; connects later.
    pub async fn open(env: Env, address: EtcdAddress) -> Result<Self, OptionsError> {
        let prefix = Prefix::new(&address.prefix);
        let endpoints = Endpoints::new(env.clone(), address).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                env,
                endpoints,
                prefix,
                reads: Reads::default(),
                long_ranges: LongRanges::default(),
                making_milestones: Arc::new(Semaphore::new(1)),
                walked: AtomicU64::new(0),
            }),
        })
    }

    /// Has `work` done by some member within [`CALL_TIMEOUT`].
    async fn call<T, F>(&self, kind: Kind, work: impl Fn(Client) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let Inner { env, endpoints, .. } = &*self.inner;
        let deadline = env.clock.monotonic() + CALL_TIMEOUT;
        let leader = if let Kind::Read(leader) = kind { leader } else { Leader::Required };
        let mut pauses = Pauses::default();
        let mut may_have_happened = false;
        loop {
            let left = deadline.saturating_sub(env.clock.monotonic());
            let limit = if kind == Kind::Write { left } else { left.min(READ_ATTEMPT) };
            let picked = endpoints.pick(leader).await;
            let failure = match &picked {
                Err(why) => Failure::NotDone(why.clone()),
                Ok(picked) => match env.timeout(limit, work(picked.client.clone())).await {
                    Some(Ok(result)) => return Ok(result),
                    Some(Err(error)) => classify(&error),
                    None => Failure::Hung(format!("no answer within {limit:?}")),
                },
            };
            if let Ok(picked) = &picked {
                endpoints.failed(picked, &failure);
            }
            let why = match failure {
                Failure::Final(error) => return Err(CallError::Meta(error)),
                Failure::TooLarge => return Err(CallError::TooLarge),
                Failure::NotDone(why) => why,
                Failure::Unknown(why) | Failure::Hung(why) => {
                    if kind == Kind::Write {
                        return Err(CallError::Meta(MetaError::Unknown(why)));
                    }
                    may_have_happened |= kind == Kind::Repeatable;
                    why
                }
            };
            let pause = pauses.next(endpoints);
            if env.clock.monotonic() + pause >= deadline {
                return Err(CallError::Meta(match may_have_happened {
                    true => MetaError::Unknown(why),
                    false => MetaError::Unavailable(why),
                }));
            }
            env.clock.sleep(pause).await;
        }
    }

    /// One request for a piece of a range.
    async fn piece(
        &self,
        read: &RangeRead,
        (start, end): (&[u8], &[u8]),
        at: u64,
        limit: usize,
    ) -> Result<GetResponse, CallError> {
        let (key, end) = (self.inner.prefix.key(start), self.inner.prefix.key(end));
        let mut options = GetOptions::new().with_range(end).with_limit(limit as i64).with_revision(at as i64);
        if read.keys_only {
            options = options.with_keys_only();
        }
        let leader = match read.freshness {
            Freshness::Linearizable => Leader::Required,
            Freshness::Stale => {
                options = options.with_serializable();
                Leader::NotRequired
            }
        };
        self.call(Kind::Read(leader), |client| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                let mut client = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
                client.get(key, Some(options)).await
            }
        })
        .await
    }

    fn entries(&self, answer: &mut GetResponse) -> Result<Vec<KeyValue>, MetaError> {
        answer.take_kvs().into_iter().map(|entry| self.inner.prefix.key_value(entry)).collect()
    }
}

/// Longer and longer pauses between attempts: none until each member was tried once.
#[derive(Default)]
struct Pauses {
    attempts: usize,
    last: Duration,
}

impl Pauses {
    fn next(&mut self, endpoints: &Endpoints) -> Duration {
        self.attempts += 1;
        if !self.attempts.is_multiple_of(endpoints.len()) {
            return Duration::ZERO;
        }
        self.last = (self.last * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        endpoints.jitter(self.last)
    }
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> Result<u64, MetaError> {
    header
        .and_then(|header| u64::try_from(header.revision()).ok())
        .ok_or_else(|| MetaError::Damaged("etcd has answered without a revision".to_owned()))
}

#[async_trait]
impl MetaStore for EtcdStore {
    async fn range(&self, read: RangeRead) -> Result<Page, MetaError> {
        let mut page = Page { entries: Vec::new(), more: false, revision: read.at.unwrap_or(0) };
        // An empty range is asked for too: it has a revision.
        let mut start = read.start.clone();
        let mut piece_limit = MAX_PIECE;
        loop {
            let wanted = if read.limit == 0 { usize::MAX } else { read.limit - page.entries.len() };
            // With all that is wanted at hand, it is only looked whether more follows.
            let limit = wanted.clamp(1, piece_limit);
            let ahead = self.ahead(&start, &read.end).await;
            let end = ahead.end().unwrap_or(&read.end);
            let mut answer = match self.piece(&read, (&start, end), page.revision, limit).await {
                Ok(answer) => answer,
                Err(CallError::TooLarge) if piece_limit > 1 => {
                    piece_limit /= 4;
                    continue;
                }
                // A member that lags behind the one that read the piece before.
                Err(CallError::Meta(MetaError::Refused(why))) if !page.entries.is_empty() => {
                    return Err(MetaError::Unavailable(why));
                }
                Err(error) => return Err(error.into()),
            };
            self.inner.walked.fetch_add(answer.count() as u64, Ordering::Relaxed);
            if ahead.end().is_none() {
                self.inner.long_ranges.note(end, &answer);
            }
            if page.revision == 0 {
                page.revision = revision(answer.header())?;
            }
            let entries = self.entries(&mut answer)?;
            self.make_missing(&start, &ahead, &read.end, &entries);
            let last = entries.last().map(|entry| entry.key.clone());
            if wanted > 0 {
                page.entries.extend(entries);
            } else if last.is_some() {
                page.more = true;
                return Ok(page);
            }
            start = match (answer.more(), last, ahead.end()) {
                (true, Some(_), _) if page.entries.len() == read.limit => {
                    page.more = true;
                    return Ok(page);
                }
                (true, Some(last), _) => [&last[..], &[0]].concat().into(),
                (_, _, Some(end)) => end.clone(),
                _ => return Ok(page),
            };
        }
    }

    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, MetaError> {
        self.shared_get(key).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, MetaError> {
        check_txn(&txn)?;
        let prefix = &self.inner.prefix;
        let kind = if convert::writes(&txn) { Kind::Write } else { Kind::Read(Leader::Required) };
        let request = prefix.txn(&txn);
        let mut answer = self
            .call(kind, |client| {
                let request = request.clone();
                async move { client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES).txn(request).await }
            })
            .await?;
        let succeeded = answer.succeeded();
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let reads = prefix.reads(ops, answer.op_responses())?;
        Ok(TxnResult { succeeded, revision: revision(answer.take_header().as_ref())?, reads })
    }

    async fn watch(&self, range: Range<Bytes>, from: u64) -> Result<Box<dyn Watch>, MetaError> {
        if from == 0 {
            return Err(MetaError::Refused("a watch from revision 0".to_owned()));
        }
        Ok(Box::new(EtcdWatch::new(self.clone(), range, from)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        if ttl.is_zero() {
            return Err(MetaError::Refused("a lease of no time".to_owned()));
        }
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        // One that was granted without our hearing of it ends by itself, with no keys: so this repeats like a read.
        let kind = Kind::Read(Leader::Required);
        let grant = |client: Client| async move { client.lease_client().grant(seconds as i64, None).await };
        Ok(LeaseId(self.call(kind, grant).await?.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        let kind = Kind::Read(Leader::Required);
        let renew = |client: Client| async move { client.lease_client().keep_alive(lease.0).await };
        self.call(kind, renew).await?;
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        let revoke = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        match self.call(Kind::Repeatable, revoke).await {
            Ok(_) | Err(CallError::Meta(MetaError::LeaseNotFound)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
