//! `quarantine/<generation>` → [`QuarantineRecord`]: chunks that a sweep found and no file names (R2). They are removed when
//! a later sweep finds them again, a day later or more.

use bytes::Bytes;
use cairn_placement::Generation;
use serde::{Deserialize, Serialize};

use crate::meta::{KeyValue, MetaError};

pub const PREFIX: &[u8] = b"quarantine/";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRecord {
    pub volume: u32,
    pub copies: u8,
    /// Chunks of the generation: indices below this.
    pub chunks: u32,
    /// The tick at which it was found.
    pub tick: u64,
    /// The sweep that found it.
    pub sweep: u32,
}

pub fn key(generation: &Generation) -> Bytes {
    format!("quarantine/{generation}").into()
}

/// The generation that a key names.
pub fn generation(entry: &KeyValue) -> Result<Generation, MetaError> {
    super::generation(PREFIX, entry)
}
