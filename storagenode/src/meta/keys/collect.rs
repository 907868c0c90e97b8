//! `collect/<generation>` → [`CollectRecord`]: a generation that no record refers to any more, and whose chunks wait for
//! their tombstones (R7).
//!
//! ```text
//! absent ── the file is deleted or replaced ──► waiting ── its rest is over, nobody pins it ──► burying ──► absent
//!                                                │  ▲
//!                                                └──┘ a pin is made: written again
//! ```
//!
//! While it waits, a download may pin the generation; each of the two transactions compares the entry's revision. Once it is
//! burying no pin can be made any more, and tombstones are written, with the tick of that moment.

use bytes::Bytes;
use cairn_placement::{Generation, VolumeId};
use serde::{Deserialize, Serialize};

use crate::meta::{KeyValue, MetaError};

pub const PREFIX: &[u8] = b"collect/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectRecord {
    pub volume: u32,
    pub copies: u8,
    /// Chunks of the generation: indices below this.
    pub chunks: u32,
    /// The tick at which it was queued.
    pub tick: u64,
    /// The tick at which its burial began; absent while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buried_tick: Option<u64>,
}

impl CollectRecord {
    /// An entry whose rest begins.
    pub fn waiting(volume: VolumeId, copies: u8, chunks: u32, tick: u64) -> Self {
        Self { volume: volume.0, copies, chunks, tick, buried_tick: None }
    }
}

pub fn key(generation: &Generation) -> Bytes {
    format!("collect/{generation}").into()
}

/// The generation that a key names.
pub fn generation(entry: &KeyValue) -> Result<Generation, MetaError> {
    super::generation(PREFIX, entry)
}
