//! `c/sweep` → [`SweepRecord`]: the latest sweep (R2).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SweepRecord {
    /// Its number, which is the sweep epoch that it began with.
    pub number: u32,
    /// The tick at which it began.
    pub tick: u64,
    /// `false`: it is under way, or its coordinator ended before it did.
    pub finished: bool,
    /// Generations that it found without a file, and that rest.
    pub quarantined: u64,
    /// Generations whose rest was over, and that are removed now.
    pub removed: u64,
}

pub fn key() -> Bytes {
    Bytes::from_static(b"c/sweep")
}

/// Written behind the last page of a scan, so that a watch of the records knows when it has seen all that came before.
/// It sorts behind every `file/…`.
pub fn marker_key() -> Bytes {
    Bytes::from_static(b"file:sweep")
}
