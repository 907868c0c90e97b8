//! `volume/<name>` → [`VolumeRecord`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const PREFIX: &[u8] = b"volume/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    pub id: u32,
    pub copies: u8,
    pub chunk_size_bytes: u32,
    pub state: State,
    pub created_unix_ms: i64,
    /// The data key, wrapped by the cluster's key-encryption key (R14), in hexadecimal.
    pub wrapped_key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Active,
    /// No commit succeeds any more; the records go in batches (R18).
    Deleting,
}

pub fn key(name: &str) -> Bytes {
    [PREFIX, name.as_bytes()].concat().into()
}
