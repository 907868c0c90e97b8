//! `c/truth` → [`TruthRecord`]: what the latest comparison of the metadata with the disks found (R3).
//!
//! Written only when it says something else than before, or when nodes have started since. It says nothing once the map or
//! a disk is another one than it names. What can be read also depends on who is there: `down` and `revision` tell who was.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TruthRecord {
    /// The map it was found under.
    pub map_generation: u64,
    /// Digest of the disks that the map's nodes had.
    #[serde(with = "super::hex16")]
    pub disks: [u8; 16],
    /// How far the metadata store was when the comparison began: a node that registered later was asked before it started
    /// anew. 0 from a version that did not say.
    #[serde(default)]
    pub revision: u64,
    /// Nodes of the map, in order, that were away: nothing is known of what they hold.
    #[serde(default)]
    pub down: Vec<u16>,
    /// Groups, in order, in which a chunk of a file was on no node that could be asked; [`MAX_GROUPS`] at most.
    pub missing: Vec<u32>,
    /// Files with a chunk that no node has, and every node that could have it was asked.
    pub lost_files: u64,
    /// The first of them by volume and path, as `volume/path`; [`MAX_NAMES`] at most.
    pub lost: Vec<String>,
}

impl TruthRecord {
    /// Whether something is missing in a group. If there are more such groups than can be named, any may be one.
    pub fn lacks(&self, group: u32) -> bool {
        self.missing.len() >= MAX_GROUPS || self.missing.binary_search(&group).is_ok()
    }

    /// Whether a node with this number was away.
    pub fn was_down(&self, node: u16) -> bool {
        self.down.binary_search(&node).is_ok()
    }

    /// Whether the comparison began after a node registered, which it does at each start and when it finds damage.
    pub fn is_after(&self, registered: u64) -> bool {
        self.revision == 0 || registered <= self.revision
    }
}

/// Groups named at most.
pub const MAX_GROUPS: usize = 8_192;
/// Files named at most: keeps the record below 32 KiB of names.
pub const MAX_NAMES: usize = 20;

pub fn key() -> Bytes {
    Bytes::from_static(b"c/truth")
}
