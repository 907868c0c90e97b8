//! `c/intent` → [`IntentRecord`]: which nodes the cluster should have, as its operator says.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// Only grows; older ones are refused.
    pub generation: u64,
    pub nodes: Vec<IntendedNode>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntendedNode {
    pub name: String,
    pub zone: String,
}

pub fn key() -> Bytes {
    Bytes::from_static(b"c/intent")
}
