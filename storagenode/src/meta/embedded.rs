//! The metadata store in this process: local mode and single-node installations, no other parts.
//!
//! One redb file in one folder, opened by one process (`meta.lock`). A single [`writer`] takes all waiting transactions
//! into one durable redb transaction, judges each in order, and answers them when it is on disk; so many in flight share
//! one sync. Reads use redb's snapshots and see what was answered before. Watches are served from a bounded [`events`]
//! ring, which starts empty when the folder is opened; [`leases`] live in memory and end when it is closed.
//!
//! | file | what |
//! |---|---|
//! | [`file`] | lock, creation, format, and looking again after a failed commit |
//! | [`backend`] | redb's storage over [`crate::env::DiskFile`] |
//! | [`v1`] | tables and records |
//! | [`apply`] | what a transaction does to them |
//! | [`writer`] | group commit, leases, failures |

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    Event, LeaseId, MetaError, MetaStore, Op, Page, RangeRead, Txn, TxnResult, Watch, limits::check_txn,
};
use crate::env::Env;

mod apply;
mod backend;
mod events;
mod file;
mod leases;
#[cfg(test)]
mod tests;
mod v1;
mod writer;

use events::{EmbeddedWatch, Ring};
pub use file::OpenError;
use file::{DatabaseFile, Fault};
use writer::{Job, Writer};

/// The file that everything in the store is in. Opening the store makes it where it is missing.
pub fn file_in(folder: &Path) -> PathBuf {
    folder.join(file::FILE_NAME)
}

/// How long a call waits for the disk. Far beyond any healthy one: requests end by their own deadlines before.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Calls that may wait for the writer.
const MAX_WAITING_JOBS: usize = 1024;
/// Bytes of keys and values that may wait for the writer.
const MAX_WAITING_BYTES: usize = 32 << 20;

/// The store. Dropping it closes it a little later; [`MetaStore::close`] waits until the folder is free.
pub struct EmbeddedStore {
    env: Env,
    file: Arc<DatabaseFile>,
    ring: Arc<Ring>,
    jobs: mpsc::Sender<Job>,
    waiting_bytes: Arc<Semaphore>,
}

impl EmbeddedStore {
    /// Opens the store in `folder`, or creates it. Keys of leases that were alive when it was closed are deleted.
    pub async fn open(env: Env, folder: &Path) -> Result<Self, OpenError> {
        let opened = env
            .blocking({
                let (disk, folder) = (env.disk.clone(), folder.to_owned());
                move || {
                    let (file, position) = DatabaseFile::open(disk, &folder)?;
                    let position = file.end_stale_leases(position)?;
                    Ok::<_, OpenError>((Arc::new(file), position))
                }
            })
            .await?;
        let (file, position) = opened;
        let ring = Arc::new(Ring::new(position.revision));
        let (jobs, receiver) = mpsc::channel(MAX_WAITING_JOBS);
        let writer = Writer::new(env.clone(), file.clone(), ring.clone(), receiver, position);
        tokio::spawn(writer.run());
        Ok(Self { env, file, ring, jobs, waiting_bytes: Arc::new(Semaphore::new(MAX_WAITING_BYTES)) })
    }

    /// Gives the writer a job and its answer back. The outer result says whether the writer has taken it.
    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, MetaError>>) -> Job,
        unanswered: impl FnOnce(String) -> MetaError,
    ) -> Result<T, MetaError> {
        let (sender, receiver) = oneshot::channel();
        match self.env.timeout(CALL_LIMIT, self.jobs.send(job(sender))).await {
            Some(Ok(())) => {}
            Some(Err(_)) => return Err(closed()),
            None => return Err(MetaError::Unavailable(waited())),
        }
        match self.env.timeout(CALL_LIMIT, receiver).await {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(unanswered("the store was closed".to_owned())),
            None => Err(unanswered(waited())),
        }
    }
}

fn waited() -> String {
    format!("its disk has not answered for {} s", CALL_LIMIT.as_secs())
}

fn closed() -> MetaError {
    MetaError::Unavailable("the store was closed".to_owned())
}

/// Bytes of keys and values, at least 1.
fn weight(txn: &Txn) -> u32 {
    let of = |op: &Op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key } | Op::Get { key } => key.len(),
    };
    let bytes: usize = txn.then.iter().chain(&txn.otherwise).map(of).sum();
    u32::try_from(bytes.clamp(1, MAX_WAITING_BYTES)).unwrap_or(u32::MAX)
}

#[async_trait]
impl MetaStore for EmbeddedStore {
    async fn range(&self, read: RangeRead) -> Result<Page, MetaError> {
        let file = self.file.clone();
        let reading = self.env.blocking(move || file.read(|database| apply::range(database, &read)));
        let Some(result) = self.env.timeout(CALL_LIMIT, reading).await else {
            return Err(MetaError::Unavailable(waited()));
        };
        match result {
            Ok(page) => page,
            Err(fault @ (Fault::Closed | Fault::Gone(_))) => Err(fault.not_done()),
            Err(fault) => {
                // The writer looks at the file again; if it is busy, a later read asks it again.
                let _ = self.jobs.try_send(Job::LookAgain);
                Err(fault.not_done())
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, MetaError> {
        check_txn(&txn)?;
        let room = self.waiting_bytes.clone().acquire_many_owned(weight(&txn));
        let Some(Ok(room)) = self.env.timeout(CALL_LIMIT, room).await else {
            return Err(MetaError::Unavailable(waited()));
        };
        self.ask(|answer| Job::Txn { txn, room, answer }, MetaError::Unknown).await
    }

    async fn watch(&self, range: Range<Bytes>, from: u64) -> Result<Box<dyn Watch>, MetaError> {
        if from == 0 {
            return Err(MetaError::Refused("a watch from revision 0".to_owned()));
        }
        Ok(Box::new(EmbeddedWatch::new(self.ring.clone(), range, from)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        if ttl.is_zero() {
            return Err(MetaError::Refused("a lease of no time".to_owned()));
        }
        self.ask(|answer| Job::Grant { ttl, answer }, MetaError::Unavailable).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.ask(|answer| Job::KeepAlive { lease, answer }, MetaError::Unavailable).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.ask(|answer| Job::Revoke { lease, answer }, MetaError::Unknown).await
    }

    async fn close(&self) {
        // Fails when it is closed already.
        let _ = self.ask(|answer| Job::Close { answer }, MetaError::Unavailable).await;
    }
}

/// Bytes that an event keeps in memory.
fn event_bytes(event: &Event) -> usize {
    const OVERHEAD: usize = 128;
    OVERHEAD
        + match event {
            Event::Put(entry) => entry.key.len() + entry.value.len(),
            Event::Delete { key, .. } => key.len(),
        }
}
