//! `c/restored/<node>` → [`RestoredRecord`]: how far that node had seen the metadata store, which is behind that now (R10);
//! nothing is deleted anywhere while one is there. `c/accepted` → the tick at which `cairn-node recover` accepted a store as
//! it was, in decimal digits: records of ticks before that are void.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const PREFIX: &[u8] = b"c/restored/";

/// The numbers that must be exceeded before anything may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredRecord {
    pub tick: u64,
    pub revision: u64,
    pub map_generation: u64,
    pub epoch: u32,
}

pub fn key(node: &str) -> Bytes {
    [PREFIX, node.as_bytes()].concat().into()
}

pub fn accepted_key() -> Bytes {
    Bytes::from_static(b"c/accepted")
}
