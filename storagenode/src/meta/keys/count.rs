//! `count/<volume name>` → [`CountRecord`]: what a volume held when it was last counted.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const PREFIX: &[u8] = b"count/";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CountRecord {
    /// The volume's number: another one than the volume has now means that it was counted before it was made anew.
    pub volume: u32,
    pub files: u64,
    pub bytes: u64,
}

pub fn key(name: &str) -> Bytes {
    [PREFIX, name.as_bytes()].concat().into()
}
