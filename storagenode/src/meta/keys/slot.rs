//! `slot/<node>/<number>` → version byte `1` and the 16-byte token of the last commit made through this slot (R4).
//!
//! A commit compares the slot's revision and writes its own token: when an answer is lost, the same transaction is
//! sent again, and either it happens for the first time, or the slot shows that it has happened.

use bytes::Bytes;

use crate::meta::{KeyValue, MetaError};

/// Slots of one gateway: so many commits in flight.
pub const SLOTS: u16 = 256;
const VERSION: u8 = 1;

pub fn key(node: &str, slot: u16) -> Bytes {
    format!("slot/{node}/{slot:03}").into()
}

pub fn encode(token: &[u8; 16]) -> Bytes {
    [&[VERSION], token.as_slice()].concat().into()
}

pub fn decode(entry: &KeyValue) -> Result<[u8; 16], MetaError> {
    match entry.value.split_first() {
        Some((&VERSION, token)) => token
            .try_into()
            .map_err(|_| MetaError::Damaged(format!("{} is cut off", super::name(&entry.key)))),
        Some((version, _)) => Err(super::newer(&entry.key, *version)),
        None => Err(MetaError::Damaged(format!("{} is empty", super::name(&entry.key)))),
    }
}
