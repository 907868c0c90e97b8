//! `c/node/<name>` → [`NodeRecord`], for ever; `c/live/<name>` → [`LiveRecord`], as long as the node's lease.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const NODE_PREFIX: &[u8] = b"c/node/";
pub const LIVE_PREFIX: &[u8] = b"c/live/";

/// A node that has registered once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number in the cluster map.
    pub id: u16,
    pub zone: String,
    /// The disk it has now (R9).
    #[serde(with = "super::hex16")]
    pub incarnation: [u8; 16],
    /// The disk's boot counter when it last registered.
    pub boot: u64,
    /// Disks it had before: they may not come back. Newest last, at most [`MAX_RETIRED`].
    #[serde(default)]
    pub retired: Vec<String>,
    pub capacity_bytes: u64,
    /// The newest version of file records that it reads. Nodes that do not say so read the first.
    #[serde(default = "first_file_format")]
    pub file_format: u8,
}

fn first_file_format() -> u8 {
    super::file::V1
}

/// Former disks that are remembered for each node.
pub const MAX_RETIRED: usize = 32;

/// A node that is there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRecord {
    /// `host:port` of its gRPC services.
    pub address: String,
    #[serde(with = "super::hex16")]
    pub incarnation: [u8; 16],
    /// Differs between two processes of one node.
    #[serde(with = "super::hex16")]
    pub process: [u8; 16],
    pub version: String,
}

pub fn key(name: &str) -> Bytes {
    [NODE_PREFIX, name.as_bytes()].concat().into()
}

pub fn live_key(name: &str) -> Bytes {
    [LIVE_PREFIX, name.as_bytes()].concat().into()
}
