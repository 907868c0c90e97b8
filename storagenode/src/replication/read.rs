//! The read that falls over: frames of a chunk from the nearest holder, from another at once when one fails, and from
//! a second one in parallel when the first is slow; and when no copy is whole, put together from several.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use cairn_placement::{ChunkId, ClusterMap, NodeId};
use cairn_proto::v1::ErrorCode;
use futures::{StreamExt, stream::FuturesUnordered};
use tracing::warn;

use super::{
    gather,
    peers::{PeerError, Peers},
    plan::{Source, read_order},
};
use crate::{
    chunks::{ChunkHeader, ChunkStore, ReadError},
    cluster::{ClusterState, View},
    env::Env,
};

/// A holder that has not answered by then has failed, for this read.
const HOLDER_LIMIT: Duration = Duration::from_secs(15);
/// A second holder is asked when the first has not answered by then.
const HEDGE_DELAY: Duration = Duration::from_millis(500);

/// Why no copy could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Some holders could not be asked; they may have it.
    #[error("no copy can be reached")]
    Unavailable,
    /// All holders answered, and some had a damaged copy.
    #[error("every copy is damaged")]
    Corrupt,
    /// All holders answered, and none has it.
    #[error("no node has a copy")]
    Missing,
}

/// What holders answered that did not give a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    pub unreachable: bool,
    pub corrupt: bool,
}

impl Failures {
    pub fn note(&mut self, error: &PeerError) {
        self.corrupt |= error.code == ErrorCode::DataCorrupt;
        self.unreachable |= !matches!(error.code, ErrorCode::DataCorrupt | ErrorCode::ChunkNotFound);
    }

    /// What they amount to.
    pub fn sum(self) -> FetchError {
        match (self.unreachable, self.corrupt) {
            (true, _) => FetchError::Unavailable,
            (false, true) => FetchError::Corrupt,
            (false, false) => FetchError::Missing,
        }
    }
}

/// Reads chunks from their holders.
#[derive(Clone)]
pub struct Reader {
    pub env: Env,
    pub me: NodeId,
    pub zone: String,
    pub store: ChunkStore,
    pub peers: Peers,
    pub view: View,
}

impl Reader {
    /// Reads frames of a chunk from its members. `open` makes of header and sealed frames what the caller wants, or says why that copy
    /// is no good, which sends the read to another one.
    pub async fn read<T>(
        &self,
        map: &ClusterMap,
        id: ChunkId,
        copies: u8,
        frames: Range<u32>,
        open: impl Fn(&ChunkHeader, Vec<Bytes>) -> Result<T, String>,
    ) -> Result<T, FetchError> {
        self.read_from(map.holders(map.pg_of(&id), copies), id, frames, open).await
    }

    /// The same, from nodes that may have it.
    pub async fn read_from<T>(
        &self,
        holders: &[NodeId],
        id: ChunkId,
        frames: Range<u32>,
        open: impl Fn(&ChunkHeader, Vec<Bytes>) -> Result<T, String>,
    ) -> Result<T, FetchError> {
        let failures = match self.read_one(holders, id, frames.clone(), &open).await {
            Ok(content) => return Ok(content),
            Err(failures) => failures,
        };
        if !failures.corrupt {
            return Err(failures.sum());
        }
        let (header, sealed) = self.gather_from(holders, id, frames).await?;
        open(&header, sealed).map_err(|cause| {
            warn!(chunk = %id, cause, "frames of several copies do not make a chunk");
            failures.sum()
        })
    }

    /// Puts frames of a chunk together from its copies, none of which need be whole.
    pub async fn gather(
        &self,
        map: &ClusterMap,
        id: ChunkId,
        copies: u8,
        frames: Range<u32>,
    ) -> Result<(ChunkHeader, Vec<Bytes>), FetchError> {
        self.gather_from(map.holders(map.pg_of(&id), copies), id, frames).await
    }

    async fn gather_from(
        &self,
        holders: &[NodeId],
        id: ChunkId,
        frames: Range<u32>,
    ) -> Result<(ChunkHeader, Vec<Bytes>), FetchError> {
        let state = self.view.current();
        let order = self.order(&state, holders);
        let copies = CopiesOf { reader: self, state: &state, id };
        gather::gather(&copies, order, frames).await.map_err(Failures::sum)
    }

    /// Reads frames of a chunk that has them all.
    async fn read_one<T>(
        &self,
        holders: &[NodeId],
        id: ChunkId,
        frames: Range<u32>,
        open: &impl Fn(&ChunkHeader, Vec<Bytes>) -> Result<T, String>,
    ) -> Result<T, Failures> {
        let state = self.view.current();
        let mut order = self.order(&state, holders).into_iter();
        let mut asked = FuturesUnordered::new();
        let mut failures = Failures::default();
        if let Some(first) = order.next() {
            asked.push(self.ask(&state, first, id, frames.clone()));
        }
        loop {
            if asked.is_empty() {
                break;
            }
            let answer = match self.env.timeout(HEDGE_DELAY, asked.next()).await {
                Some(Some(answer)) => answer,
                Some(None) => break,
                None => {
                    match order.next() {
                        Some(next) => asked.push(self.ask(&state, next, id, frames.clone())),
                        // Everybody has been asked; each request has its own limit.
                        None => self.env.clock.sleep(Duration::from_millis(1)).await,
                    }
                    continue;
                }
            };
            let (node, result) = answer;
            let opened = result.and_then(|(header, sealed)| {
                open(&header, sealed).map_err(|cause| PeerError::new(ErrorCode::DataCorrupt, cause))
            });
            match opened {
                Ok(content) => return Ok(content),
                Err(error) => {
                    failures.note(&error);
                    warn!(chunk = %id, node = %node, %error, "a copy could not be read");
                    if let Some(next) = order.next() {
                        asked.push(self.ask(&state, next, id, frames.clone()));
                    }
                }
            }
        }
        Err(failures)
    }

    fn order(&self, state: &ClusterState, holders: &[NodeId]) -> Vec<NodeId> {
        let source = |holder: &NodeId| {
            let node = state.nodes.get(holder);
            Source {
                node: *holder,
                is_self: *holder == self.me,
                is_live: node.is_some_and(|node| node.is_live()),
                same_zone: node.is_some_and(|node| node.zone == self.zone),
                in_flight: node.map_or(0, |node| self.peers.in_flight(node)),
            }
        };
        read_order(holders.iter().map(source).collect())
    }

    async fn ask(
        &self,
        state: &ClusterState,
        holder: NodeId,
        id: ChunkId,
        frames: Range<u32>,
    ) -> (NodeId, Result<(ChunkHeader, Vec<Bytes>), PeerError>) {
        if holder == self.me {
            let read = self.env.timeout(HOLDER_LIMIT, self.store.read(id, frames)).await;
            let late = || PeerError::new(ErrorCode::DeadlineExceeded, "this node's disk gave no answer");
            let read = read.ok_or_else(late);
            return (holder, read.and_then(|r| r.map(|(h, f)| ((*h).clone(), f)).map_err(own_error)));
        }
        let answer = match state.nodes.get(&holder) {
            Some(node) => self.peers.get_chunk(node, id, frames, HOLDER_LIMIT).await,
            None => Err(PeerError::new(ErrorCode::Unavailable, "the node is not registered")),
        };
        (holder, answer)
    }
}

/// The copies of one chunk, at the nodes that there are.
struct CopiesOf<'a> {
    reader: &'a Reader,
    state: &'a ClusterState,
    id: ChunkId,
}

impl gather::Copies for CopiesOf<'_> {
    async fn read(&self, holder: NodeId, frames: Range<u32>) -> Result<(ChunkHeader, Vec<Bytes>), PeerError> {
        self.reader.ask(self.state, holder, self.id, frames).await.1
    }
}

/// This node's own refusal, in the form that another node's has.
pub fn own_error(error: ReadError) -> PeerError {
    let code = match &error {
        ReadError::NotFound | ReadError::Buried => ErrorCode::ChunkNotFound,
        ReadError::Corrupt(_) => ErrorCode::DataCorrupt,
        ReadError::Failed(_) => ErrorCode::Unavailable,
    };
    PeerError::new(code, format!("this node: {error}"))
}
