//! The chunks on this node's disk: sealed, checksummed, durable when acknowledged.
//!
//! ```text
//! DATA_DIR/lock                                held while the folder is open
//! DATA_DIR/identity, identity.copy             cluster, node, incarnation, boot counter (R9), twice
//! DATA_DIR/damage                              chunks that are known to be damaged
//! DATA_DIR/removed                             segments that were given back
//! DATA_DIR/segments/BOOT-NUMBER.seg            records, appended in groups (R8)
//! ```
//!
//! Vocabulary:
//!
//! * A **record** is a chunk with its header, a tombstone, or a mark; a **segment** is a file of records, only appended
//!   to, and never again after the boot that made it, or after a failed write.
//! * A **group** is what one `fdatasync` makes durable: everything that waited when the last one returned. Each record of
//!   a group carries the **durable end**: how much of the segment was durable before that group. A bad record before the
//!   greatest durable end is corrupt; after it, it is torn: never acknowledged, or damaged since.
//! * A **mark** says the same of another segment, once nothing more is written there.
//! * The **index** is in memory: what is present, what is buried, in order of the chunks' hashes, so that a placement
//!   group is a range for any number of groups.
//!
//! | file | what |
//! |---|---|
//! | `header`, `seal`, `kek` | a chunk's header; sealing frames; wrapping keys |
//! | `identity`, `format` | the files' bytes |
//! | `correct` | headers of which one byte is wrong |
//! | `segment`, `scan`, `recover` | segment files: making, reading through, taking up again after a crash |
//! | `index`, `space`, `damage` | what is here; how much room is left (R16); what is known to be damaged |
//! | `inspect`, `verify` | looking whether the disk and its chunks are still what they were |
//! | `open`, `store`, `flight` | taking up a folder; [`ChunkStore`]; one write at a time of each chunk |
//! | `write`, `group`, `layout`, `read` | the one task that writes; what it is asked for; a group's bytes; reading |
//! | `hole`, `compact`, `removed`, `expiry` | space given back: inside segments, whole ones; deletions that are old |

use std::{
    io,
    path::{Path, PathBuf},
};

use cairn_placement::{ChunkId, Generation, VolumeId};

mod compact;
mod correct;
mod damage;
mod expiry;
mod flight;
mod format;
mod group;
mod header;
mod hint;
mod hole;
mod identity;
mod index;
mod inspect;
mod kek;
mod layout;
mod leaves;
mod open;
mod read;
mod recover;
mod removed;
mod scan;
mod seal;
mod segment;
mod space;
mod store;
mod verify;
mod write;

pub use compact::Compaction;
pub use format::{Sighting, Tombstone};
pub use header::{ChunkError, ChunkHeader, SealedChunk, crc32c, frame_count, plain_frame_length};
pub use identity::{Identity, holds_disk, peek_identity};
pub use inspect::{Checked, ChunkState};
pub use kek::{Kek, KekError, KekId, UnwrapError, wrapped_with};
pub use recover::{CorruptRange, RecoveryReport};
pub use seal::{FrameError, GenerationKey, VolumeKey, open_frame, seal_chunk};
pub use store::{ChunkStore, Prepared, Ticket};
pub use verify::{Verified, verify};

/// Content of a frame: the unit of sealing, of checksums and of ranged reads.
pub const FRAME_BYTES: usize = 65_536;
/// What sealing adds to a frame.
pub const TAG_BYTES: usize = 16;
/// The longest content of a chunk.
pub const MAX_PLAIN_BYTES: u32 = 64 << 20;

/// What a folder is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A node's life: its boot counter is raised.
    Serve,
    /// A look at it: nothing may be put. A disk that was rolled back must not catch up by being looked at often.
    Inspect,
}

/// How a [`ChunkStore`] is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub folder: PathBuf,
    pub cluster_id: [u8; 16],
    /// This node's name: 1 to 253 bytes.
    pub node: String,
    /// How much of the disk may be used; `None` for the whole file system.
    pub capacity_bytes: Option<u64>,
    /// Percent of the capacity kept for deletes and repair (R16).
    pub reserve_percent: u8,
    /// Size of a segment file, made smaller on small disks.
    pub segment_bytes: u64,
    /// A group is closed at this many bytes, or records.
    pub group_bytes: u64,
    pub group_records: usize,
    /// Chunks that wait to be written: the member's buffer budget. More senders wait.
    pub queue_bytes: u64,
    /// For how many of the coordinator's minutes a deletion is remembered (R7).
    pub tombstone_ticks: u32,
    pub opening: Opening,
}

impl StoreOptions {
    /// With the usual limits.
    pub fn new(folder: impl Into<PathBuf>, cluster_id: [u8; 16], node: impl Into<String>) -> Self {
        Self {
            folder: folder.into(),
            cluster_id,
            node: node.into(),
            capacity_bytes: None,
            reserve_percent: 8,
            segment_bytes: 256 << 20,
            group_bytes: 16 << 20,
            group_records: 4096,
            queue_bytes: 64 << 20,
            tombstone_ticks: 7 * 1_440,
            opening: Opening::Serve,
        }
    }
}

/// Why a folder was not opened. Nothing was changed in it, except that the boot counter may have been raised.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{folder} is in use by another process: stop it first, or give this node its own folder")]
    Locked { folder: PathBuf },
    #[error("{folder} belongs to cluster {found}, not to {wanted}: give this node its own disk")]
    OtherCluster { folder: PathBuf, found: String, wanted: String },
    #[error(
        "{folder} belongs to node {found}, not to {wanted}: start that node on it, or give this one its own disk"
    )]
    OtherNode { folder: PathBuf, found: String, wanted: String },
    #[error(
        "{folder} has no folder named segments: everything that this disk stored is gone from it, unless it never stored anything; look \
         whether the right disk is mounted there, and whether somebody has moved the folder away"
    )]
    SegmentsMissing { folder: PathBuf },
    #[error("{folder} holds no node's data: name the folder that is the node's DATA_DIR")]
    NoIdentity { folder: PathBuf },
    #[error("{folder} was retired: its data is no longer part of the cluster; give this node an empty disk")]
    Retired { folder: PathBuf },
    #[error("{path} has format {found}, this version knows up to {known}: upgrade this node")]
    NewerFormat { path: PathBuf, found: u32, known: u32 },
    #[error(
        "{path} is damaged, and there is no sound one of `identity` and `identity.copy` in its folder: restore one of them from a \
         backup. If there is none, and all other nodes are well, move the folder away (do not delete it) and start with a new \
         one: what the others have is fetched from them"
    )]
    Damaged { path: PathBuf },
    #[error(
        "the two identities in {folder} differ: `identity` is of {first}; `identity.copy` is of {copy}. Move the one away that \
         does not belong to this disk"
    )]
    IdentitiesDiffer { folder: PathBuf, first: String, copy: String },
    #[error(
        "{folder} has segments but no identity: put the file `identity` or `identity.copy` back. If there is none, and all other nodes \
         are well, move the folder away (do not delete it) and start with a new one: what the others have is fetched from them"
    )]
    IdentityLost { folder: PathBuf },
    #[error(
        "{folder} has segment {segment}, which is newer than its identity (boot {boot}): the identity was restored from a \
         copy: restore the whole folder. If you cannot, and all other nodes are well, move it away (do not delete it) and \
         start with a new one: what the others have is fetched from them"
    )]
    IdentityOld { folder: PathBuf, segment: String, boot: u64 },
    #[error("{path} was written on another disk: move it out of this folder")]
    ForeignSegment { path: PathBuf },
    #[error("cannot open the chunk store: {0}")]
    Options(String),
    #[error("cannot {action} {path}: {source}; check the disk and its permissions")]
    Disk { action: &'static str, path: PathBuf, source: io::Error },
}

/// Gives an I/O error its place.
fn disk_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Disk { action, path, source }
}

/// What a chunk is written for: it decides how much of the reserve may be used (R16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client's upload: stops at the reserve.
    Write,
    /// Repair: may use half of the reserve.
    Repair,
    /// What gives back more than it takes, a little later: may use three quarters of the reserve.
    Compact,
}

/// A chunk that is durable here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    Stored,
    /// The same bytes were here before.
    Present,
}

/// Why nothing was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    #[error("another content is stored under this chunk's id: upload again, under a new generation")]
    Conflict,
    #[error("the chunk was deleted: upload again, under a new generation")]
    Buried,
    #[error("the node's disk is full up to its reserve: delete files, or add disks or nodes")]
    Full,
    #[error("the node's disk failed: {0}; try another node, and check this one's disk")]
    Failed(String),
    #[error("the chunk store is closed: try another node")]
    Closed,
    #[error("not a sound chunk: {0}")]
    BadChunk(#[from] ChunkError),
}

/// Why a chunk was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the chunk is not on this node: read another copy")]
    NotFound,
    #[error("the chunk was deleted")]
    Buried,
    #[error("the chunk is damaged on this node ({0}): read another copy; repair will replace it")]
    Corrupt(String),
    #[error("the node's disk failed: {0}; read another copy, and check this one's disk")]
    Failed(String),
}

/// Whether a chunk is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Present,
    Buried,
    Absent,
}

/// What of a disk a summary or an inventory tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Chunks that are whole, and tombstones that are at least so young: what members of a group compare.
    Whole { tombstones_since: u32 },
    /// Every chunk of these sweep epochs, damaged ones too, and no tombstones: what a sweep looks at.
    OnDisk { max_epoch: u32 },
}

impl Scope {
    /// Chunks that are whole, and all tombstones.
    pub const ALL: Self = Self::Whole { tombstones_since: 0 };

    /// Whether chunks of a generation are in it.
    pub fn has(self, generation: Generation) -> bool {
        match self {
            Self::Whole { .. } => true,
            Self::OnDisk { max_epoch } => generation.epoch() <= max_epoch,
        }
    }
}

/// What is here of one placement group, for volumes that keep `copies` copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopySummary {
    pub copies: u8,
    pub chunks: u64,
    /// Wrapping sum of the ids' hashes.
    pub chunk_digest: u64,
    pub tombstones: u64,
    pub tombstone_digest: u64,
}

/// One line of an inventory. In order of (hash, id).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InventoryEntry {
    pub id: ChunkId,
    pub volume: VolumeId,
    pub copies: u8,
    /// 0 for a tombstone.
    pub plain_length: u32,
    /// The tick of a tombstone; absent: the chunk is here.
    pub buried: Option<u32>,
}

/// A chunk of which only a part can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedChunk {
    pub id: ChunkId,
    pub volume: VolumeId,
    pub copies: u8,
    /// Of the last group before a crash: perhaps it never was whole, and nobody was told that it is here.
    pub torn: bool,
}

/// The data folder, or something in it that must be there, was deleted under the running store: what is written goes with the last open file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{folder}, or `lock` or `segments` in it, was deleted while this node was running: put it back from a backup, or start the node on a new disk"
)]
pub struct FolderGone {
    pub folder: PathBuf,
}

/// How full the disk is, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub capacity_bytes: u64,
    /// By this store.
    pub used_bytes: u64,
    /// What clients may still write: up to the reserve.
    pub writable_bytes: u64,
    /// Clients are refused for want of room.
    pub out_of_room: bool,
    pub chunks: u64,
    pub tombstones: u64,
    /// Chunks of which only a part can be read any more; not among `chunks`.
    pub damaged_chunks: u64,
    /// Chunks of the last groups before crashes that are not whole, and perhaps never were; among neither of these.
    pub torn_chunks: u64,
    pub segments: u64,
    /// Memory that the index of all of them takes.
    pub index_bytes: u64,
}

/// What happened since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Groups made durable, and what was in them.
    pub groups: u64,
    pub records: u64,
    pub bytes: u64,
    /// Groups that a write or sync error undid.
    pub failed_groups: u64,
    /// Chunks that left the inventory because their bytes were wrong.
    pub corrupt_chunks: u64,
    /// Segments that compaction has emptied, and bytes of those that it has removed.
    pub compacted_segments: u64,
    pub compacted_bytes: u64,
}
