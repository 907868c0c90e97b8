//! `collect/<generation>` → [`CollectRecord`]: a generation that no record refers to any more, and whose chunks wait for
//! their tombstones (R7).

use bytes::Bytes;
use cairn_placement::Generation;
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
}

pub fn key(generation: &Generation) -> Bytes {
    format!("collect/{generation}").into()
}

/// The generation that a key names.
pub fn generation(entry: &KeyValue) -> Result<Generation, MetaError> {
    super::generation(PREFIX, entry)
}
