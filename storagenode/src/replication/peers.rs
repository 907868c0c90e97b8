//! Connections to other nodes: one channel each, made when first needed, kept, and made anew by itself after a loss.
//!
//! Every request names the disk that it is for ([`DISK_HEADER`]), and a node with another disk refuses it. Certificates
//! prove that a node of this cluster answers, not which one: an address may have passed to another node since it was
//! read, and "stored", "buried" or "nothing is missing" from the wrong disk would lose data.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cairn_placement::{ChunkId, Incarnation, PgId};
use cairn_proto::v1::{self as proto, ErrorCode, peer_client::PeerClient};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint, Uri};

use tonic::{
    Request, Status,
    metadata::{BinaryMetadataValue, MetadataMap},
    service::{Interceptor, interceptor::InterceptedService},
};

use super::wire::{self, FrameAssembler, MAX_MESSAGE_BYTES};
use crate::{
    chunks::{ChunkHeader, Scope, SealedChunk, Tombstone},
    cluster::NodeInfo,
    env::Env,
};

/// Metadata of each request between nodes: the incarnation of the disk it is for, 16 bytes.
const DISK_HEADER: &str = "cairn-disk-bin";

/// A connection attempt may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Windows of the connections between nodes: few streams, large messages.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Why another node did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct PeerError {
    pub code: ErrorCode,
    pub cause: String,
}

impl PeerError {
    pub fn new(code: ErrorCode, cause: impl Into<String>) -> Self {
        Self { code, cause: cause.into() }
    }

    fn protocol(cause: &str) -> Self {
        Self::new(ErrorCode::Internal, format!("the peer broke the protocol: {cause}"))
    }

    /// The node could not be asked, or could not answer now.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.code, ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::Overloaded)
    }
}

/// The disk that a request is for; `None` without [`DISK_HEADER`], or if that is malformed.
pub fn disk_asked(metadata: &MetadataMap) -> Option<Incarnation> {
    let bytes = metadata.get_bin(DISK_HEADER)?.to_bytes().ok()?;
    Incarnation::try_from(&bytes[..]).ok()
}

/// Writes into each request which disk it is for.
#[derive(Clone)]
struct ForDisk(Incarnation);

impl Interceptor for ForDisk {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert_bin(DISK_HEADER, BinaryMetadataValue::from_bytes(&self.0.0));
        Ok(request)
    }
}

type Client = PeerClient<InterceptedService<Channel, ForDisk>>;

impl From<tonic::Status> for PeerError {
    fn from(status: tonic::Status) -> Self {
        Self::new(wire::code_of(&status), status.message())
    }
}

struct Connection {
    channel: Channel,
    in_flight: Arc<AtomicUsize>,
}

/// All connections of this node to others.
#[derive(Clone)]
pub struct Peers {
    env: Env,
    connections: Arc<Mutex<HashMap<String, Connection>>>,
}

/// A request in flight; counted until dropped.
struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peers {
    pub fn new(env: Env) -> Self {
        Self { env, connections: Arc::default() }
    }

    /// Requests to a node that have not been answered.
    pub fn in_flight(&self, node: &NodeInfo) -> usize {
        let connections = self.connections.lock();
        let connection = node.address.as_ref().and_then(|address| connections.get(address));
        connection.map_or(0, |connection| connection.in_flight.load(Ordering::Relaxed))
    }

    /// Forgets connections to addresses that no node has any more.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.connections.lock().retain(|address, _| keep(address));
    }

    fn client(&self, node: &NodeInfo) -> Result<(Client, InFlight), PeerError> {
        let down = || PeerError::new(ErrorCode::Unavailable, format!("node {} is down", node.name));
        let address = node.address.as_deref().ok_or_else(down)?;
        let mut connections = self.connections.lock();
        if !connections.contains_key(address) {
            let connection = Connection { channel: self.connect(address)?, in_flight: Arc::default() };
            connections.insert(address.to_owned(), connection);
        }
        let connection = &connections[address];
        connection.in_flight.fetch_add(1, Ordering::Relaxed);
        let client = PeerClient::with_interceptor(connection.channel.clone(), ForDisk(node.incarnation))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok((client, InFlight(connection.in_flight.clone())))
    }

    /// A channel that connects when used, through the node's network seam (which does the TLS).
    fn connect(&self, address: &str) -> Result<Channel, PeerError> {
        let uri: Uri = format!("http://{address}")
            .parse()
            .map_err(|_| PeerError::new(ErrorCode::Unavailable, format!("{address:?} is no address")))?;
        let expected = uri.host().unwrap_or_default().to_owned();
        let (env, target) = (self.env.clone(), address.to_owned());
        let connector = tower::service_fn(move |_: Uri| {
            let (env, target, expected) = (env.clone(), target.clone(), expected.clone());
            async move {
                let connecting = env.network.connect(&target, &expected);
                let stream = env.timeout(CONNECT_TIMEOUT, connecting).await;
                let stream = stream.ok_or(std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from(uri)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        Ok(endpoint.connect_with_connector_lazy(connector))
    }

    async fn bounded<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, PeerError>>,
    ) -> Result<T, PeerError> {
        let late = || PeerError::new(ErrorCode::DeadlineExceeded, format!("no answer within {limit:?}"));
        self.env.timeout(limit, call).await.unwrap_or_else(|| Err(late()))
    }

    /// Stores a sealed chunk on a node; durable when this returns.
    pub async fn put_chunk(
        &self,
        node: &NodeInfo,
        chunk: &SealedChunk,
        repair: bool,
        limit: Duration,
    ) -> Result<(), PeerError> {
        let (mut client, _in_flight) = self.client(node)?;
        let header = proto::PutChunkHeader { chunk: Some(wire::header_to_wire(&chunk.header)), repair };
        let parts = std::iter::once(proto::put_chunk_request::Part::Header(header))
            .chain(wire::messages(&chunk.frames).into_iter().map(proto::put_chunk_request::Part::Data))
            .map(|part| proto::PutChunkRequest { part: Some(part) });
        let parts: Vec<_> = parts.collect();
        self.bounded(limit, async {
            client.put_chunk(futures::stream::iter(parts)).await?;
            Ok(())
        })
        .await
    }

    /// Reads `count` sealed frames from `first` on; a `first` past the end reads the header alone.
    pub async fn get_chunk(
        &self,
        node: &NodeInfo,
        id: ChunkId,
        frames: std::ops::Range<u32>,
        limit: Duration,
    ) -> Result<(ChunkHeader, Vec<Bytes>), PeerError> {
        self.ask_for_chunk(node, id, frames, false, limit).await
    }

    /// Whether a node has a chunk whole, as far as it knows.
    pub async fn has_chunk(&self, node: &NodeInfo, id: ChunkId, limit: Duration) -> Result<bool, PeerError> {
        match self.ask_for_chunk(node, id, 0..0, true, limit).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code, ErrorCode::ChunkNotFound | ErrorCode::DataCorrupt) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn ask_for_chunk(
        &self,
        node: &NodeInfo,
        id: ChunkId,
        frames: std::ops::Range<u32>,
        whole: bool,
        limit: Duration,
    ) -> Result<(ChunkHeader, Vec<Bytes>), PeerError> {
        let (mut client, _in_flight) = self.client(node)?;
        let header_only = frames.is_empty();
        let request = proto::GetChunkRequest {
            generation: Bytes::copy_from_slice(&id.generation.0),
            index: id.index,
            first_frame: if header_only { u32::MAX } else { frames.start },
            frame_count: frames.end.saturating_sub(frames.start),
            whole,
        };
        self.bounded(limit, async {
            let mut stream = client.get_chunk(request).await?.into_inner();
            let first = stream.next().await.ok_or_else(|| PeerError::protocol("no header"))??;
            let Some(proto::get_chunk_response::Part::Header(header)) = first.part else {
                return Err(PeerError::protocol("no header"));
            };
            let header = wire::header_from_wire(header).map_err(|cause| PeerError::protocol(&cause))?;
            if header.id != id {
                return Err(PeerError::protocol("another chunk"));
            }
            let wanted = frames.start.min(header.frames())..frames.end.min(header.frames());
            let sizes = wanted.map(|frame| header.sealed_frame_length(frame)).collect();
            let mut assembler = FrameAssembler::new(if header_only { vec![] } else { sizes });
            while let Some(message) = stream.next().await {
                let Some(proto::get_chunk_response::Part::Data(data)) = message?.part else {
                    return Err(PeerError::protocol("a second header"));
                };
                if !assembler.push(data) {
                    return Err(PeerError::protocol("more than was asked for"));
                }
            }
            let frames = assembler.finish().ok_or_else(|| PeerError::protocol("less than was asked for"))?;
            Ok((header, frames))
        })
        .await
    }

    /// Count and digest of each group, at a node.
    pub async fn summarize(
        &self,
        node: &NodeInfo,
        pg_bits: u8,
        groups: &[PgId],
        scope: Scope,
        limit: Duration,
    ) -> Result<proto::SummarizeResponse, PeerError> {
        let (mut client, _in_flight) = self.client(node)?;
        let (max_epoch, tombstones_since) = wire::scope_to_wire(scope);
        let request = proto::SummarizeRequest {
            pg_bits: u32::from(pg_bits),
            placement_groups: groups.iter().map(|pg| pg.0).collect(),
            max_epoch,
            tombstones_since,
        };
        self.bounded(limit, async { Ok(client.summarize(request).await?.into_inner()) }).await
    }

    /// Everything that a node holds of one group, `most` entries at most; of tombstones, all.
    pub async fn inventory(
        &self,
        node: &NodeInfo,
        pg_bits: u8,
        pg: PgId,
        scope: Scope,
        most: usize,
        limit: Duration,
    ) -> Result<Vec<proto::InventoryEntry>, PeerError> {
        let (mut client, _in_flight) = self.client(node)?;
        let request = proto::InventoryRequest {
            pg_bits: u32::from(pg_bits),
            placement_group: pg.0,
            max_epoch: wire::scope_to_wire(scope).0,
        };
        self.bounded(limit, async {
            let mut stream = client.inventory(request).await?.into_inner();
            let mut entries = Vec::new();
            while let Some(page) = stream.next().await {
                entries.extend(page?.entries);
                if entries.len() > most {
                    return Err(PeerError::new(ErrorCode::Overloaded, "the group's inventory is too long"));
                }
            }
            Ok(entries)
        })
        .await
    }

    /// Records deletions at a node; durable when this returns.
    pub async fn bury(
        &self,
        node: &NodeInfo,
        tombstones: &[Tombstone],
        limit: Duration,
    ) -> Result<(), PeerError> {
        let (mut client, _in_flight) = self.client(node)?;
        let chunks = tombstones.iter().map(wire::tombstone_to_wire).collect();
        self.bounded(limit, async { Ok(client.bury(proto::BuryRequest { chunks }).await.map(|_| ())?) }).await
    }

    /// What a node has found settled.
    pub async fn settled(
        &self,
        node: &NodeInfo,
        pg_bits: u8,
        limit: Duration,
    ) -> Result<proto::SettledResponse, PeerError> {
        let (mut client, _in_flight) = self.client(node)?;
        let request = proto::SettledRequest { pg_bits: u32::from(pg_bits) };
        self.bounded(limit, async { Ok(client.settled(request).await?.into_inner()) }).await
    }
}
