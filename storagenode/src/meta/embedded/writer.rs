//! The one writer: everything that changes the store goes through its queue, in order.
//!
//! It takes all that waits (bounded) into one redb transaction, and answers when that is durable; meanwhile the next group
//! gathers. When a commit fails, the file is looked at again: if the group is there, it is answered as done; if not, as not
//! done; if the file cannot be opened, as unknown, and looked at again later, before anything else is done.

use std::{future, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{
    apply::{self, Applied, ApplyError, Step},
    events::Ring,
    file::{DatabaseFile, Fault, Position},
    leases::Leases,
    weight,
};
use crate::{
    env::{BoxFuture, Env},
    meta::{LeaseId, MetaError, Op, Txn, TxnResult},
};

/// Transactions in one commit.
const MAX_GROUP: usize = 256;
/// Bytes in one commit, roughly.
const MAX_GROUP_BYTES: usize = 4 << 20;
/// Between two attempts to open a file that failed.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

pub(super) type Answer<T> = oneshot::Sender<Result<T, MetaError>>;

/// What callers ask for.
pub(super) enum Job {
    /// `room` is its share of the bytes that may wait.
    Txn {
        txn: Txn,
        room: OwnedSemaphorePermit,
        answer: Answer<TxnResult>,
    },
    Grant {
        ttl: Duration,
        answer: Answer<LeaseId>,
    },
    KeepAlive {
        lease: LeaseId,
        answer: Answer<()>,
    },
    Revoke {
        lease: LeaseId,
        answer: Answer<()>,
    },
    /// A read has failed: see whether the file can be opened afresh.
    LookAgain,
    Close {
        answer: Answer<()>,
    },
}

/// Whom to tell about a step.
enum Asker {
    Txn(Answer<TxnResult>, OwnedSemaphorePermit),
    Revoke(LeaseId, Answer<()>),
    Expiry(LeaseId),
}

#[derive(Default)]
struct Group {
    steps: Vec<Step>,
    askers: Vec<Asker>,
    bytes: usize,
}

impl Group {
    fn push(&mut self, step: Step, asker: Asker) {
        self.steps.push(step);
        self.askers.push(asker);
    }

    fn has_room(&self) -> bool {
        self.steps.len() < MAX_GROUP && self.bytes < MAX_GROUP_BYTES
    }
}

pub(super) struct Writer {
    env: Env,
    file: Arc<DatabaseFile>,
    ring: Arc<Ring>,
    jobs: mpsc::Receiver<Job>,
    leases: Leases,
    position: Position,
    /// The file must be looked at before it is used again.
    suspect: Option<Suspect>,
    /// After a failure, keys of ended leases wait until then.
    leases_wait_until: Duration,
    closers: Vec<Answer<()>>,
}

struct Suspect {
    /// What may be on disk although its commit failed.
    applied: Option<Applied>,
    /// Not looked at again before.
    look_at: Duration,
    why: MetaError,
}

impl Writer {
    pub(super) fn new(
        env: Env,
        file: Arc<DatabaseFile>,
        ring: Arc<Ring>,
        jobs: mpsc::Receiver<Job>,
        position: Position,
    ) -> Self {
        Self {
            env,
            file,
            ring,
            jobs,
            leases: Leases::default(),
            position,
            suspect: None,
            leases_wait_until: Duration::ZERO,
            closers: Vec::new(),
        }
    }

    /// Ends when the store is closed or dropped, and everything that waited is answered.
    pub(super) async fn run(mut self) {
        loop {
            let mut group = Group::default();
            let due = self.next_due();
            tokio::select! {
                biased;
                job = self.jobs.recv() => match job {
                    Some(job) => self.take(job, &mut group),
                    None => break,
                },
                () = due => {}
            }
            while group.has_room()
                && let Ok(job) = self.jobs.try_recv()
            {
                self.take(job, &mut group);
            }
            // After the renewals that waited: those were in time.
            let now = self.env.clock.monotonic();
            if now >= self.leases_wait_until {
                for lease in self.leases.due(now) {
                    self.leases.end(lease);
                    group.push(Step::EndLease(lease), Asker::Expiry(lease));
                }
            }
            self.carry_out(group).await;
        }
        self.ring.close();
        let file = self.file.clone();
        self.env.blocking(move || file.close()).await;
        for answer in self.closers {
            let _ = answer.send(Ok(()));
        }
    }

    /// Ends when something must be done although nobody asks.
    fn next_due(&self) -> BoxFuture<'static, ()> {
        let look_at = self.suspect.as_ref().map(|suspect| suspect.look_at);
        let due = match (look_at, self.leases.next_due()) {
            // While the file is unusable, leases wait for it.
            (Some(look_at), _) => look_at,
            (None, Some(due)) => due.max(self.leases_wait_until),
            (None, None) => return Box::pin(future::pending()),
        };
        self.env.clock.sleep(due.saturating_sub(self.env.clock.monotonic()))
    }

    /// Answers what needs no disk, and adds the rest to the group.
    fn take(&mut self, job: Job, group: &mut Group) {
        // A caller who has gone away hears nothing: `send` may fail.
        match job {
            Job::Txn { txn, room, answer } => {
                group.bytes += weight(&txn) as usize;
                let ended = |ops: &[Op]| ops.iter().any(|op| self.names_ended_lease(op));
                let (then_lease_ended, otherwise_lease_ended) = (ended(&txn.then), ended(&txn.otherwise));
                let step = Step::Txn { txn, then_lease_ended, otherwise_lease_ended };
                group.push(step, Asker::Txn(answer, room));
            }
            Job::Grant { ttl, answer } => {
                let lease = self.grant(ttl);
                let _ = answer.send(Ok(lease));
            }
            Job::KeepAlive { lease, answer } => {
                let alive = self.leases.renew(lease, self.env.clock.monotonic());
                let _ = answer.send(if alive { Ok(()) } else { Err(MetaError::LeaseNotFound) });
            }
            Job::Revoke { lease, answer } => {
                if self.leases.end(lease) {
                    group.push(Step::EndLease(lease), Asker::Revoke(lease, answer));
                } else {
                    let _ = answer.send(Ok(()));
                }
            }
            Job::LookAgain => {
                if self.suspect.is_none() {
                    let why = MetaError::Unavailable("a read has failed".to_owned());
                    self.suspect = Some(Suspect { applied: None, look_at: Duration::ZERO, why });
                }
            }
            Job::Close { answer } => {
                self.jobs.close();
                self.closers.push(answer);
            }
        }
    }

    fn names_ended_lease(&self, op: &Op) -> bool {
        matches!(op, Op::Put { lease: Some(lease), .. } if !self.leases.is_live(*lease))
    }

    fn grant(&mut self, ttl: Duration) -> LeaseId {
        loop {
            let id = LeaseId(i64::from_le_bytes(self.env.random.bytes()) & i64::MAX);
            if id.0 != 0 && self.leases.grant(id, ttl, self.env.clock.monotonic()) {
                return id;
            }
        }
    }

    async fn carry_out(&mut self, group: Group) {
        let Group { steps, askers, .. } = group;
        if self.suspect.is_some()
            && let Err(why) = self.settle().await
        {
            return self.answer_all(askers, &why);
        }
        if steps.is_empty() {
            return;
        }
        let (file, position) = (self.file.clone(), self.position);
        let applying = move || match file.read(|database| Ok(apply::apply(database, position, &steps))) {
            Ok(result) => result,
            Err(fault) => Err(ApplyError::Before(fault)),
        };
        match self.env.blocking(applying).await {
            Ok(applied) => match self.file.check_name() {
                Ok(()) => self.done(applied, askers),
                Err(gone) => {
                    self.publish(applied);
                    self.answer_all(askers, &MetaError::Unknown(gone.not_done().to_string()));
                }
            },
            Err(ApplyError::Before(fault)) => {
                let why = fault.not_done();
                if !matches!(fault, Fault::Closed | Fault::Gone(_)) {
                    self.suspect(None, why.clone());
                    // Answered as not done in any case.
                    let _ = self.settle().await;
                }
                self.answer_all(askers, &why);
            }
            Err(ApplyError::Commit(fault, applied)) => self.look(fault, applied, askers).await,
        }
    }

    /// A commit has failed: finds out what it did.
    async fn look(&mut self, fault: Fault, applied: Applied, askers: Vec<Asker>) {
        let results = applied.results.clone();
        self.suspect(Some(applied), fault.not_done());
        match self.settle().await {
            Ok(true) => self.answer(results, askers),
            Ok(false) => self.answer_all(askers, &fault.not_done()),
            Err(why) => self.answer_all(askers, &MetaError::Unknown(why.to_string())),
        }
    }

    fn suspect(&mut self, applied: Option<Applied>, why: MetaError) {
        tracing::warn!(%why, "the metadata file failed and is opened afresh");
        self.suspect = Some(Suspect { applied, look_at: Duration::ZERO, why });
    }

    /// Opens the file afresh. Says whether what was in doubt is there; the error if that cannot be told yet.
    async fn settle(&mut self) -> Result<bool, MetaError> {
        let Some(suspect) = &self.suspect else { return Ok(false) };
        if self.env.clock.monotonic() < suspect.look_at {
            return Err(suspect.why.clone());
        }
        let file = self.file.clone();
        let looked = self.env.blocking(move || file.look_again()).await;
        let Some(mut suspect) = self.suspect.take() else { return Ok(false) };
        let why = match looked {
            Ok(found) if found == self.position => return Ok(false),
            Ok(found) => match suspect.applied.take() {
                Some(applied) if applied.after == found => {
                    self.publish(applied);
                    return Ok(true);
                }
                other => {
                    suspect.applied = other;
                    MetaError::Damaged(format!("it is at {found:?} after {:?}", self.position))
                }
            },
            Err(fault) => fault.not_done(),
        };
        if suspect.why != why {
            tracing::error!(%why, "the metadata file cannot be used");
        }
        suspect.look_at = self.env.clock.monotonic() + LOOK_AGAIN_AFTER;
        suspect.why = why.clone();
        self.suspect = Some(suspect);
        Err(why)
    }

    fn done(&mut self, applied: Applied, askers: Vec<Asker>) {
        let results = self.publish(applied);
        self.answer(results, askers);
    }

    fn publish(&mut self, applied: Applied) -> Vec<Result<TxnResult, MetaError>> {
        self.position = applied.after;
        if !applied.events.is_empty() {
            self.ring.publish(applied.events, applied.after.revision);
        }
        applied.results
    }

    fn answer(&mut self, results: Vec<Result<TxnResult, MetaError>>, askers: Vec<Asker>) {
        debug_assert_eq!(results.len(), askers.len());
        for (result, asker) in results.into_iter().zip(askers) {
            match asker {
                Asker::Txn(answer, _room) => {
                    let _ = answer.send(result);
                }
                Asker::Revoke(lease, answer) => {
                    self.leases.forget(lease);
                    let _ = answer.send(result.map(|_| ()));
                }
                Asker::Expiry(lease) => self.leases.forget(lease),
            }
        }
    }

    /// Ended leases stay in memory, so that their keys are deleted later.
    fn answer_all(&mut self, askers: Vec<Asker>, why: &MetaError) {
        self.leases_wait_until = self.env.clock.monotonic() + LOOK_AGAIN_AFTER;
        for asker in askers {
            match asker {
                Asker::Txn(answer, _room) => {
                    let _ = answer.send(Err(why.clone()));
                }
                Asker::Revoke(_, answer) => {
                    let _ = answer.send(Err(why.clone()));
                }
                Asker::Expiry(_) => {}
            }
        }
    }
}
