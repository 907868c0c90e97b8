//! The quorum write: a sealed chunk to all its holders in parallel, written when a majority has it durably.
//!
//! Answers that come after the majority are still waited for, in the background and for a bounded time, so that a
//! healthy cluster is left with all copies; what then is still missing is repair's business. The bytes in flight hold
//! permits of the caller's budget until the last of them is done.

use std::{sync::Arc, time::Duration};

use cairn_placement::{ClusterMap, Incarnation, NodeId};
use cairn_proto::v1::ErrorCode;
use tokio::task::JoinSet;
use tracing::debug;

use super::{
    peers::{PeerError, Peers},
    plan::{Quorum, Verdict},
};
use crate::{
    chunks::{ChunkStore, Purpose, PutError, SealedChunk, Usage},
    cluster::{ClusterState, View},
    env::Env,
};

/// A member that has not answered by then has failed, for this write.
const MEMBER_LIMIT: Duration = Duration::from_secs(15);
/// Members that come after the majority are given this long.
const STRAGGLER_LIMIT: Duration = Duration::from_secs(5);
/// When too few are left for a majority, the others get so long to be counted.
const COUNT_LIMIT: Duration = Duration::from_secs(1);
/// When room that others have made on a disk begins to count.
const LOOKED_AT_AGAIN: &str = "a node looks at its free space again every few seconds";

/// Why a chunk was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("{reached} of {needed} nodes took the chunk; {cause}")]
    NotEnoughNodes { reached: usize, needed: usize, cause: String },
    #[error("the disks are full: {0}")]
    OutOfSpace(String),
}

impl WriteError {
    /// What a failed quorum and its members' errors amount to.
    pub fn of(quorum: &Quorum, errors: &[PeerError]) -> Self {
        let cause = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if errors.iter().any(|error| error.code == ErrorCode::OutOfSpace) {
            return Self::OutOfSpace(format!("{cause}; {LOOKED_AT_AGAIN}"));
        }
        Self::NotEnoughNodes { reached: quorum.durable(), needed: quorum.needed(), cause }
    }
}

/// Writes chunks to their holders.
#[derive(Clone)]
pub struct Writer {
    pub env: Env,
    /// This node's number.
    pub me: NodeId,
    pub incarnation: Incarnation,
    pub store: ChunkStore,
    pub peers: Peers,
    pub view: View,
}

impl Writer {
    /// Writes one chunk under `map`. `held` is dropped when no member needs the bytes any more.
    pub async fn write(
        &self,
        map: &ClusterMap,
        chunk: SealedChunk,
        held: Arc<dyn Send + Sync>,
    ) -> Result<(), WriteError> {
        let state = self.view.current();
        let copies = chunk.header.copies;
        let holders = map.holders(map.pg_of(&chunk.header.id), copies);
        let mut quorum = Quorum::new(holders.len(), usize::from(copies));
        let mut members = JoinSet::new();
        for holder in holders {
            let (writer, chunk, state) = (self.clone(), chunk.clone(), state.clone());
            let holder = *holder;
            members.spawn(async move { writer.put(&state, holder, &chunk).await });
        }
        let mut errors = Vec::new();
        while quorum.verdict() == Verdict::Pending {
            match members.join_next().await {
                Some(Ok(Ok(_))) => quorum.succeeded(),
                Some(Ok(Err(error))) => {
                    debug!(chunk = %chunk.header.id, %error, "a member did not take a chunk");
                    errors.push(error);
                    quorum.failed();
                }
                Some(Err(_)) | None => quorum.failed(),
            }
        }
        if quorum.verdict() == Verdict::Written {
            self.leave_to_finish(members, held);
            return Ok(());
        }
        // The first failures may come before the first success: who is counted must not hang on that.
        let rest = async {
            while let Some(answer) = members.join_next().await {
                match answer {
                    Ok(Ok(())) => quorum.succeeded(),
                    Ok(Err(error)) => errors.push(error),
                    Err(_) => {}
                }
            }
        };
        let _ = self.env.timeout(COUNT_LIMIT, rest).await;
        Err(WriteError::of(&quorum, &errors))
    }

    /// Lets the rest of the members finish in the background.
    fn leave_to_finish(&self, mut members: JoinSet<Result<(), PeerError>>, held: Arc<dyn Send + Sync>) {
        if members.is_empty() {
            return;
        }
        let env = self.env.clone();
        tokio::spawn(async move {
            let all = async { while members.join_next().await.is_some() {} };
            let _ = env.timeout(STRAGGLER_LIMIT, all).await;
            drop(held);
        });
    }

    /// Stores a chunk on one node; durable when this returns.
    pub async fn put(
        &self,
        state: &ClusterState,
        holder: NodeId,
        chunk: &SealedChunk,
    ) -> Result<(), PeerError> {
        if holder == self.me {
            let stored = self.env.timeout(MEMBER_LIMIT, self.store.put(chunk.clone(), Purpose::Write)).await;
            let late = || PeerError::new(ErrorCode::DeadlineExceeded, "this node's disk gave no answer");
            let stored = stored.ok_or_else(late)?;
            return stored.map(|_| ()).map_err(|error| own_error(&self.store, error));
        }
        let unknown = || PeerError::new(ErrorCode::Unavailable, format!("node {holder} is not registered"));
        let node = state.nodes.get(&holder).ok_or_else(unknown)?;
        let stored = self.peers.put_chunk(node, chunk, false, MEMBER_LIMIT).await;
        stored.map_err(|error| PeerError::new(error.code, format!("node {}: {}", node.name, error.cause)))
    }
}

/// This node's own refusal, in the form that another node's has.
pub fn own_error(store: &ChunkStore, error: PutError) -> PeerError {
    let code = match &error {
        PutError::Full => ErrorCode::OutOfSpace,
        PutError::Conflict | PutError::Buried => ErrorCode::ChunkRefused,
        PutError::BadChunk(_) => ErrorCode::InvalidArgument,
        PutError::Failed(_) | PutError::Closed => ErrorCode::Unavailable,
    };
    let found = if error == PutError::Full { room(&store.usage()) } else { String::new() };
    PeerError::new(code, format!("this node: {error}{found}"))
}

/// What was found when the disk was last looked at.
fn room(usage: &Usage) -> String {
    let Usage { capacity_bytes, used_bytes, writable_bytes, .. } = usage;
    format!(
        " (of {capacity_bytes} bytes it stores {used_bytes}, and clients may write {writable_bytes} more)"
    )
}
