//! `c/refused/<node>` → [`RefusedRecord`]: why that node did not start when it last tried. Removed when it registers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const PREFIX: &[u8] = b"c/refused/";

/// A start that ended in a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    /// As the node's log says it.
    pub why: String,
}

pub fn key(node: &str) -> Bytes {
    [PREFIX, node.as_bytes()].concat().into()
}
