//! `upload/<generation>` → [`UploadRecord`], leased: a long upload is still going on (R2).
//!
//! Made by a transaction that compares the sweep epoch, like a commit: so a generation that a sweep may remove can get none
//! any more. The upload's commit compares that it is there, and removes it.

use bytes::Bytes;
use cairn_placement::Generation;
use serde::{Deserialize, Serialize};

use crate::meta::{KeyValue, MetaError};

pub const PREFIX: &[u8] = b"upload/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// Name of the gateway.
    pub node: String,
}

pub fn key(generation: &Generation) -> Bytes {
    format!("upload/{generation}").into()
}

/// The generation that a key names.
pub fn generation(entry: &KeyValue) -> Result<Generation, MetaError> {
    super::generation(PREFIX, entry)
}
