//! What keeps a long upload's chunks from being swept (R2).
//!
//! A commit wants its generation to be of the present sweep epoch or the one before. An upload that goes on when the epoch has
//! been raised once makes a leased key for its generation, in a transaction that compares that same rule; its commit then
//! compares that key instead. If the key has gone with its lease, the chunks may be gone too, and the upload is refused.

use std::time::Duration;

use cairn_placement::Generation;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::{
    FileError,
    gateway::{Gateway, META_PATIENCE},
};
use crate::meta::{
    Compare, LeaseId, MetaError, Op, Txn,
    keys::{
        self,
        upload::{self, UploadRecord},
    },
};

/// A claim outlives so long a silence of its gateway or of the store.
const LEASE: Duration = Duration::from_secs(60);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// An upload's right to be committed however long it takes; given up when dropped.
pub(super) struct Claim {
    /// At which its key was made.
    pub revision: u64,
    _keeper: DropGuard,
}

/// Whether a generation may be committed, or claimed, while the sweep epoch is this (R2).
pub(super) fn is_young(generation: Generation, epoch: u64) -> bool {
    u64::from(generation.epoch()) + 1 >= epoch
}

pub(super) fn too_old() -> FileError {
    FileError::UploadIncomplete("it took so long that its parts may have been swept: upload again".into())
}

pub(super) fn lapsed() -> FileError {
    let why = "this gateway lost touch with the metadata store for so long that its parts may have been swept: upload again";
    FileError::UploadIncomplete(why.into())
}

impl Gateway {
    /// Claims a generation, if it is young enough.
    pub(super) async fn claim(&self, generation: Generation) -> Result<Claim, FileError> {
        let deadline = self.env.clock.monotonic() + META_PATIENCE;
        loop {
            let error = match self.try_claim(generation).await {
                Ok(claim) => return claim.ok_or_else(too_old),
                Err(error) => error,
            };
            if self.env.clock.monotonic() + PAUSE >= deadline {
                return Err(error.into());
            }
            self.env.clock.sleep(PAUSE).await;
        }
    }

    /// One attempt; `None` if the generation is too old.
    async fn try_claim(&self, generation: Generation) -> Result<Option<Claim>, MetaError> {
        let (key, epoch_key) = (upload::key(&generation), keys::epoch_key());
        let epoch = self.meta.get(&epoch_key).await?;
        if !is_young(generation, epoch.as_ref().map(keys::number).transpose()?.unwrap_or(0)) {
            return Ok(None);
        }
        let lease = self.meta.grant(LEASE).await?;
        let keeper = self.keep(lease);
        let value = keys::to_json(&UploadRecord { node: self.slots.node().to_owned() });
        let txn = Txn {
            compare: vec![Compare::unchanged(epoch_key, epoch.map_or(0, |entry| entry.mod_revision))],
            // An attempt without an answer may have made one, under a lease that ends.
            then: vec![Op::Put { key, value, lease: Some(lease) }],
            otherwise: vec![],
        };
        let result = self.meta.txn(txn).await?;
        if !result.succeeded {
            return Err(MetaError::Unavailable("the sweep epoch changed meanwhile".into()));
        }
        debug!(%generation, "a long upload is claimed");
        Ok(Some(Claim { revision: result.revision, _keeper: keeper }))
    }

    /// Renews a lease until the guard is dropped, then ends it.
    fn keep(&self, lease: LeaseId) -> DropGuard {
        let stop = CancellationToken::new();
        let (guard, meta, env) = (stop.clone().drop_guard(), self.meta.clone(), self.env.clone());
        tokio::spawn(async move {
            let renewing = async {
                loop {
                    env.clock.sleep(LEASE / 6).await;
                    if let Err(MetaError::LeaseNotFound) = meta.keep_alive(lease).await {
                        return;
                    }
                }
            };
            if stop.run_until_cancelled(renewing).await.is_none() {
                let _ = meta.revoke(lease).await;
            }
        });
        guard
    }
}
