//! `c/cluster` → [`ClusterRecord`]: what makes the cluster this one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Random; also in every disk's identity file (R9).
    #[serde(with = "super::hex16")]
    pub id: [u8; 16],
    pub name: String,
    pub created_unix_ms: i64,
}

pub fn key() -> Bytes {
    Bytes::from_static(b"c/cluster")
}
