//! `disk/<node>` → [`DiskRecord`]: how far that node's disk durably remembers the metadata store, written after each tick
//! (R9). A disk that remembers less than that has lost what was written to it since. Outside of `c/`: nobody mirrors it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const PREFIX: &[u8] = b"disk/";

/// What a disk remembered when it last said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Which disk; of another one this says nothing.
    #[serde(with = "super::hex16")]
    pub incarnation: [u8; 16],
    /// The coordinator's count of minutes.
    pub tick: u64,
    /// The highest revision seen during that minute.
    pub revision: u64,
}

pub fn key(node: &str) -> Bytes {
    [PREFIX, node.as_bytes()].concat().into()
}
