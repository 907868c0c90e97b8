//! `pin/<generation>/<node>` → [`PinRecord`], leased: a download through that gateway has been reading the generation for long
//! (R7), so its chunks are not collected.
//!
//! Made by a transaction that compares the generation's entry in the collection queue, and writes that entry again if there is
//! one. So whoever read the entry before, and no pin, finds the entry changed.

use bytes::Bytes;
use cairn_placement::Generation;
use serde::{Deserialize, Serialize};

use crate::meta::{KeyValue, MetaError};

pub const PREFIX: &[u8] = b"pin/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRecord {
    /// The tick at which it was made.
    pub tick: u64,
}

pub fn key(generation: &Generation, node: &str) -> Bytes {
    format!("pin/{generation}/{node}").into()
}

/// The generation that a key names.
pub fn generation(entry: &KeyValue) -> Result<Generation, MetaError> {
    let rest = entry.key.strip_prefix(PREFIX).and_then(|rest| rest.split(|byte| *byte == b'/').next());
    let text = rest.and_then(|rest| std::str::from_utf8(rest).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| MetaError::Damaged(format!("{} names no generation", super::name(&entry.key))))
}
