//! The `Peer` service: what this node does for other nodes. Who may call is checked before (role "node").
//!
//! Chunks on their way in hold room of the store's budget, which is another one than the gateway's: with one for both, two nodes that are each other's gateway and member could wait for each other for ever.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_placement::{ChunkId, Incarnation, MAX_PG_BITS, PgId};
use cairn_proto::v1::{self as proto, ErrorCode, peer_server::Peer};
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::status::peer_status;
use crate::{
    chunks::{ChunkStore, InventoryEntry, Prepared, Presence, Purpose, ReadError},
    cluster::View,
    env::Env,
    replication::{
        peers::disk_asked,
        read,
        wire::{self, FrameAssembler},
        write,
    },
    warnings::Warnings,
    workers::Repair,
};

/// How long a chunk waits for memory before its sender is told to come back later.
const BUDGET_WAIT: Duration = Duration::from_secs(10);
/// A sender that is silent for so long in the middle of a chunk has failed.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// Groups that one request may ask for.
const MAX_GROUPS: usize = 4_096;
/// Entries in one message of an inventory.
const INVENTORY_PAGE: usize = 4_096;
/// Tombstones in one request.
const MAX_BURIED: usize = 16_384;

/// The service over this node's store.
#[derive(Clone)]
pub struct PeerService {
    env: Env,
    store: ChunkStore,
    view: View,
    own: OwnState,
    me: Arc<Me>,
}

/// Who this node is, for [`Peer::hello`].
#[derive(Debug, Clone)]
pub struct Me {
    pub cluster_id: [u8; 16],
    pub node: String,
    pub incarnation: Incarnation,
}

/// What this node says of itself to whoever asks.
#[derive(Clone)]
pub struct OwnState {
    pub repair: Repair,
    pub store: ChunkStore,
    pub warnings: Warnings,
}

impl OwnState {
    pub fn answer(&self) -> proto::SettledResponse {
        let (settled, usage) = (self.repair.settled(), self.store.usage());
        let failing =
            |why| format!("its disk does not take writes: {why}; look at the disk and its file system");
        let warnings = self.store.failing().map(failing).into_iter().chain(self.warnings.list());
        proto::SettledResponse {
            map_generation: settled.map_generation,
            placement_groups: settled.groups.iter().map(|pg| pg.0).collect(),
            used_bytes: usage.used_bytes,
            capacity_bytes: usage.capacity_bytes,
            chunks: usage.chunks,
            out_of_room: usage.out_of_room,
            warnings: warnings.collect(),
        }
    }
}

impl PeerService {
    pub fn new(env: Env, view: View, own: OwnState, me: Me) -> Self {
        Self { env, store: own.store.clone(), view, own, me: Arc::new(me) }
    }

    /// Refuses what is meant for another disk: whoever sends it read this node's address when another node had it, or
    /// this node had another disk.
    fn check_disk<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match disk_asked(request.metadata()) {
            Some(disk) if disk == self.me.incarnation => Ok(()),
            Some(_) => {
                let cause =
                    format!("another disk is meant than that of node {}, which answers", self.me.node);
                Err(peer_status(ErrorCode::Unavailable, cause))
            }
            None => Err(invalid("the request does not say which disk it is for")),
        }
    }

    async fn take_chunk(
        &self,
        header: proto::PutChunkHeader,
        mut parts: Streaming<proto::PutChunkRequest>,
    ) -> Result<(), Status> {
        let purpose = if header.repair { Purpose::Repair } else { Purpose::Write };
        let header = header.chunk.ok_or_else(|| invalid("the chunk's header is missing"))?;
        let header = Arc::new(wire::header_from_wire(header).map_err(invalid)?);
        let prepared = self.env.timeout(BUDGET_WAIT, self.store.prepare(header.clone(), purpose)).await;
        let busy = || peer_status(ErrorCode::Overloaded, "this node's memory for chunks is in use");
        let ticket =
            match prepared.ok_or_else(busy)?.map_err(|error| status(write::own_error(&self.store, error)))? {
                Prepared::Ready(ticket) => ticket,
                Prepared::Present => return Ok(()),
            };
        let sizes = (0..header.frames()).map(|frame| header.sealed_frame_length(frame)).collect();
        let mut assembler = FrameAssembler::new(sizes);
        loop {
            let silent = || peer_status(ErrorCode::DeadlineExceeded, "the chunk's sender fell silent");
            let Some(part) = self.env.timeout(SILENCE_LIMIT, parts.next()).await.ok_or_else(silent)? else {
                break;
            };
            let Some(proto::put_chunk_request::Part::Data(data)) = part?.part else {
                return Err(invalid("a second header"));
            };
            if !assembler.push(data) {
                return Err(invalid("more bytes than the header says"));
            }
        }
        let frames = assembler.finish().ok_or_else(|| invalid("fewer bytes than the header says"))?;
        let stored = self.store.write(ticket, frames).await;
        stored.map(|_| ()).map_err(|error| status(write::own_error(&self.store, error)))
    }
}

fn invalid(cause: impl Into<String>) -> Status {
    peer_status(ErrorCode::InvalidArgument, cause)
}

fn status(error: crate::replication::peers::PeerError) -> Status {
    peer_status(error.code, error.cause)
}

fn pg_bits(bits: u32) -> Result<u8, Status> {
    let bits = u8::try_from(bits).ok().filter(|bits| *bits <= MAX_PG_BITS);
    bits.ok_or_else(|| invalid("more placement groups than there can be"))
}

fn group(number: u32, bits: u8) -> Result<PgId, Status> {
    match u64::from(number) < 1 << bits {
        true => Ok(PgId(number)),
        false => Err(invalid(format!("there is no placement group {number}"))),
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type GetChunkStream = Responses<proto::GetChunkResponse>;
    type InventoryStream = Responses<proto::InventoryResponse>;

    async fn put_chunk(
        &self,
        request: Request<Streaming<proto::PutChunkRequest>>,
    ) -> Result<Response<proto::PutChunkResponse>, Status> {
        self.check_disk(&request)?;
        let mut parts = request.into_inner();
        let first = parts.next().await.transpose()?.and_then(|first| first.part);
        let Some(proto::put_chunk_request::Part::Header(header)) = first else {
            return Err(invalid("the first message is not a header"));
        };
        self.take_chunk(header, parts).await?;
        Ok(Response::new(proto::PutChunkResponse {}))
    }

    async fn get_chunk(
        &self,
        request: Request<proto::GetChunkRequest>,
    ) -> Result<Response<Self::GetChunkStream>, Status> {
        self.check_disk(&request)?;
        let request = request.into_inner();
        let id = wire::chunk_id(&request.generation, request.index).map_err(invalid)?;
        if request.whole && self.store.contains(id) != Presence::Present {
            return Err(status(read::own_error(ReadError::NotFound)));
        }
        let end = match request.frame_count {
            0 => u32::MAX,
            count => request.first_frame.saturating_add(count),
        };
        let read = self.store.read(id, request.first_frame..end).await;
        let (header, frames) = read.map_err(|error| status(read::own_error(error)))?;
        let header = proto::get_chunk_response::Part::Header(wire::header_to_wire(&header));
        let data = wire::messages(&frames).into_iter().map(proto::get_chunk_response::Part::Data);
        let parts: Vec<_> = std::iter::once(header)
            .chain(data)
            .map(|part| Ok(proto::GetChunkResponse { part: Some(part) }))
            .collect();
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn summarize(
        &self,
        request: Request<proto::SummarizeRequest>,
    ) -> Result<Response<proto::SummarizeResponse>, Status> {
        self.check_disk(&request)?;
        let request = request.into_inner();
        let bits = pg_bits(request.pg_bits)?;
        if request.placement_groups.len() > MAX_GROUPS {
            return Err(invalid(format!("ask for at most {MAX_GROUPS} groups at once")));
        }
        let scope = wire::scope_from_wire(request.max_epoch, request.tombstones_since);
        let mut summaries = Vec::with_capacity(request.placement_groups.len());
        for number in request.placement_groups {
            let by_copies = self.store.summarize(bits, group(number, bits)?, scope).into_iter();
            let by_copies = by_copies.map(|summary| proto::CopySummary {
                copies: u32::from(summary.copies),
                chunks: summary.chunks,
                chunk_digest: summary.chunk_digest,
                tombstones: summary.tombstones,
                tombstone_digest: summary.tombstone_digest,
            });
            summaries.push(proto::PgSummary { placement_group: number, by_copies: by_copies.collect() });
        }
        Ok(Response::new(proto::SummarizeResponse { summaries }))
    }

    async fn inventory(
        &self,
        request: Request<proto::InventoryRequest>,
    ) -> Result<Response<Self::InventoryStream>, Status> {
        self.check_disk(&request)?;
        let request = request.into_inner();
        let bits = pg_bits(request.pg_bits)?;
        let pg = group(request.placement_group, bits)?;
        let scope = wire::scope_from_wire(request.max_epoch, 0);
        let store = self.store.clone();
        let pages = stream::unfold(Some(None), move |after| {
            let store = store.clone();
            async move {
                let after: Option<(u64, ChunkId)> = after?;
                let entries = store.inventory(bits, pg, scope, after, INVENTORY_PAGE);
                let last = entries.last().filter(|_| entries.len() == INVENTORY_PAGE);
                let next = last.map(|entry| Some((entry.id.hash(), entry.id)));
                let entries = entries.iter().map(entry_to_wire).collect();
                Some((Ok(proto::InventoryResponse { entries }), next))
            }
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn bury(
        &self,
        request: Request<proto::BuryRequest>,
    ) -> Result<Response<proto::BuryResponse>, Status> {
        self.check_disk(&request)?;
        if !self.view.current().may_delete() {
            let cause = "nothing is deleted while the metadata store may be an older copy of itself";
            return Err(peer_status(ErrorCode::Unavailable, cause));
        }
        let chunks = request.into_inner().chunks;
        if chunks.len() > MAX_BURIED {
            return Err(invalid(format!("bury at most {MAX_BURIED} chunks at once")));
        }
        let tombstones: Result<Vec<_>, String> = chunks.iter().map(wire::tombstone_from_wire).collect();
        let buried = self.store.bury(tombstones.map_err(invalid)?).await;
        buried.map_err(|error| status(write::own_error(&self.store, error)))?;
        Ok(Response::new(proto::BuryResponse {}))
    }

    async fn settled(
        &self,
        request: Request<proto::SettledRequest>,
    ) -> Result<Response<proto::SettledResponse>, Status> {
        self.check_disk(&request)?;
        pg_bits(request.into_inner().pg_bits)?;
        Ok(Response::new(self.own.answer()))
    }

    async fn hello(&self, _: Request<proto::HelloRequest>) -> Result<Response<proto::HelloResponse>, Status> {
        let map = self.view.current().map.clone();
        Ok(Response::new(proto::HelloResponse {
            cluster_id: hex::encode(self.me.cluster_id),
            node: self.me.node.clone(),
            incarnation: Bytes::copy_from_slice(&self.me.incarnation.0),
            map_generation: map.map_or(0, |map| map.generation),
        }))
    }
}

fn entry_to_wire(entry: &InventoryEntry) -> proto::InventoryEntry {
    proto::InventoryEntry {
        generation: Bytes::copy_from_slice(&entry.id.generation.0),
        index: entry.id.index,
        volume: entry.volume.0,
        copies: u32::from(entry.copies),
        plain_length: entry.plain_length,
        tombstone: entry.buried.is_some(),
        tick: entry.buried.unwrap_or(0),
    }
}
