//! Files and volumes: what a gateway does, whatever the protocol.
//!
//! [`Files`] is the one door: `api::grpc` and `api::http` decode a request, call it, and encode the answer. It
//! depends on `replication` (chunks on other nodes) and `meta` (records), never the other way round.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_placement::{Generation, NodeId, PgId, VolumeId};
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;

mod budget;
mod claim;
mod commit;
mod confirm;
mod damage;
mod download;
pub mod gateway;
mod moves;
mod namespace;
mod page;
pub mod path;
mod pieces;
mod pins;
mod readahead;
mod recent;
mod turns;
mod upload;
mod volumes;

pub use gateway::{Gateway, GatewayLimits};
pub use pins::Pins;
pub use recent::doubted;

pub use path::{FilePath, VolumeName};

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    pub volume: VolumeName,
    pub path: FilePath,
    pub size_bytes: u64,
    /// Changes with every overwrite; its text form is the ETag.
    pub generation: Generation,
    pub blake3: [u8; 32],
    pub modified_unix_ms: i64,
    /// Empty if none was given.
    pub content_type: String,
}

/// What must hold of the file that is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    #[default]
    Always,
    /// It exists with this generation.
    IfMatch(Generation),
    IfAbsent,
    IfExists,
}

/// An upload, before its content.
#[derive(Debug, Clone)]
pub struct UploadSpec {
    pub volume: VolumeName,
    pub path: FilePath,
    pub size_bytes: Option<u64>,
    pub blake3: Option<[u8; 32]>,
    pub condition: Condition,
    pub content_type: String,
}

/// A file's new name.
#[derive(Debug, Clone)]
pub struct MoveSpec {
    pub volume: VolumeName,
    pub path: FilePath,
    pub to: FilePath,
    /// Only this version of the file.
    pub if_match: Option<Generation>,
    /// What must hold of the file that has the new name; if there is one, it is replaced.
    pub condition: Condition,
}

/// Content on its way in; an error ends the upload and nothing has changed.
pub type ContentIn = BoxStream<'static, Result<Bytes, FileError>>;
/// Content on its way out.
pub type ContentOut = BoxStream<'static, Result<Bytes, FileError>>;

/// Which bytes of a file are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RangeSpec {
    #[default]
    All,
    /// From `offset`, `length` bytes or up to the end.
    From { offset: u64, length: Option<u64> },
    /// The last bytes; more than there are means all.
    Last(u64),
}

/// What of a file is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadSpec {
    pub range: RangeSpec,
    /// Only this version of the file.
    pub if_match: Option<Generation>,
    /// While the metadata store cannot be reached, the file as it was known at most so long ago will do (R13). Absent: only
    /// the present one will.
    pub max_stale: Option<Duration>,
}

/// A file, and how current that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub file: FileInfo,
    /// How long ago this was true for certain, by what this node remembers; absent: it is the present state.
    pub stale: Option<Duration>,
}

/// A download that has begun.
pub struct Download {
    pub file: FileInfo,
    /// As in [`Stat`].
    pub stale: Option<Duration>,
    pub offset: u64,
    pub length: u64,
    pub content: ContentOut,
    /// Set when it is slow and others need the memory that it holds. Its content fails then, and should be dropped.
    pub ended: CancellationToken,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListSpec {
    pub prefix: String,
    /// Roll up at "/".
    pub delimited: bool,
    /// 1 to [`MAX_PAGE`].
    pub limit: usize,
    pub token: String,
}

pub const DEFAULT_PAGE: usize = 1_000;
pub const MAX_PAGE: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    pub files: Vec<FileInfo>,
    pub prefixes: Vec<String>,
    pub next_token: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    Active,
    Deleting,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    pub name: VolumeName,
    pub id: VolumeId,
    pub copies: u8,
    pub chunk_size_bytes: u32,
    pub state: VolumeState,
    pub created_unix_ms: i64,
    /// Absent before the first count.
    pub count: Option<VolumeCount>,
}

/// What a volume held when it was last counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeCount {
    pub files: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    Present,
    Missing,
    Unreachable,
}

/// Where a chunk of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkLocation {
    pub index: u32,
    pub offset: u64,
    pub length: u64,
    pub pg: PgId,
    pub copies: Vec<(NodeId, CopyState)>,
}

/// Why something was not done. `api::status` maps each to the wire, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error("{0}")]
    InvalidArgument(String),
    #[error(transparent)]
    InvalidPath(#[from] path::PathError),
    #[error(transparent)]
    InvalidVolumeName(#[from] path::VolumeNameError),
    #[error("volume {0:?} does not exist")]
    VolumeNotFound(String),
    #[error("volume {0:?} exists with other settings")]
    VolumeExists(String),
    #[error("volume {0:?} is being deleted")]
    VolumeDeleting(String),
    #[error("volume {0:?} still has files in it")]
    VolumeNotEmpty(String),
    #[error("file {path:?} does not exist in volume {volume:?}")]
    FileNotFound { volume: String, path: String },
    #[error("the file is not in the state that the request requires: {0}")]
    PreconditionFailed(String),
    #[error("the range begins at byte {offset}, the file has {size_bytes}")]
    RangeNotSatisfiable { offset: u64, size_bytes: u64 },
    #[error("{declared} bytes were declared, {received} came")]
    SizeMismatch { declared: u64, received: u64 },
    #[error("the content's BLAKE3 digest is {actual}, {declared} was declared")]
    DigestMismatch { declared: String, actual: String },
    #[error("the upload broke off: {0}")]
    UploadIncomplete(String),
    #[error("{reached} of {needed} nodes needed took it: {cause}")]
    NotEnoughNodes { reached: usize, needed: usize, cause: String },
    #[error("the metadata store cannot be reached: {0}")]
    MetadataUnavailable(String),
    #[error("whether the file was stored could not be found out: {0}")]
    CommitUnknown(String),
    #[error("another writer changed the same thing at the same time: {0}")]
    Conflict(String),
    #[error("the storage nodes are full: {0}")]
    OutOfSpace(String),
    #[error("no copy of chunk {index} of {path:?} can be reached")]
    ChunkUnavailable { path: String, index: u32 },
    #[error("every copy of chunk {index} of {path:?} is damaged or lost")]
    DataCorrupt { path: String, index: u32 },
    #[error("this node is not ready: {0}")]
    NotReady(String),
    #[error("too much at once: {0}")]
    Overloaded(String),
    #[error("the deadline has passed")]
    DeadlineExceeded,
    #[error("internal error: {0}")]
    Internal(String),
}

impl FileError {
    /// What ends a stream whose memory others need.
    pub fn crowded_out() -> Self {
        Self::Overloaded("this node's memory for transfers is in use, and this one was the slowest".into())
    }
}

/// The gateway's operations.
#[async_trait::async_trait]
pub trait Files: Send + Sync {
    async fn upload(&self, spec: UploadSpec, content: ContentIn) -> Result<FileInfo, FileError>;

    /// Begins a download; the content stream ends early with an error if a chunk cannot be read.
    async fn download(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        spec: ReadSpec,
    ) -> Result<Download, FileError>;

    /// `max_stale` as in [`ReadSpec`].
    async fn stat(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<Stat, FileError>;

    /// Where each chunk of the file should be and is.
    async fn locate(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<(Stat, Vec<ChunkLocation>), FileError>;

    async fn list(&self, volume: &VolumeName, spec: ListSpec) -> Result<Listing, FileError>;

    /// Gives what was deleted.
    async fn delete(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        condition: Condition,
    ) -> Result<FileInfo, FileError>;

    /// Gives a file another name in its volume, at one moment; gives it under the new one.
    async fn move_file(&self, spec: MoveSpec) -> Result<FileInfo, FileError>;

    /// Creates a volume, or answers the one that exists with the same settings (`false`). `copies` 0: three, or as
    /// many as there are zones (nodes, if all are in one zone); `chunk_size_bytes` 0: 4 MiB.
    async fn create_volume(
        &self,
        name: &VolumeName,
        copies: u8,
        chunk_size_bytes: u32,
    ) -> Result<(VolumeInfo, bool), FileError>;

    async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo, FileError>;

    /// All volumes by name, from after `token`, `limit` at most, with the next token (empty at the end).
    async fn volumes(&self, limit: usize, token: &str) -> Result<(Vec<VolumeInfo>, String), FileError>;

    async fn delete_volume(&self, name: &VolumeName, with_files: bool) -> Result<(), FileError>;
}

/// The shared door.
pub type SharedFiles = Arc<dyn Files>;
