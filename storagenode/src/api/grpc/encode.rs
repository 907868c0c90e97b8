//! From the gateway's types to the wire's, and conditions the other way.

use std::time::Duration;

use cairn_proto::v1;

use crate::{
    api::{decode, ports::NodeLabel, status::Refusal},
    files::{ChunkLocation, Condition, CopyState, FileInfo, Listing, VolumeInfo, VolumeState},
};

pub(super) fn file(info: FileInfo) -> v1::FileInfo {
    v1::FileInfo {
        volume: info.volume.to_string(),
        path: info.path.to_string(),
        size_bytes: info.size_bytes,
        etag: info.generation.to_string(),
        blake3: info.blake3.to_vec().into(),
        modified_unix_ms: info.modified_unix_ms,
        content_type: info.content_type,
    }
}

/// How old an answer is, if it is not the present state.
pub(super) fn stale_ms(stale: Option<Duration>) -> Option<u64> {
    stale.map(|age| age.as_millis().try_into().unwrap_or(u64::MAX))
}

pub(super) fn listing(listing: Listing) -> v1::ListResponse {
    v1::ListResponse {
        files: listing.files.into_iter().map(file).collect(),
        prefixes: listing.prefixes,
        next_page_token: listing.next_token,
    }
}

pub(super) fn volume(info: VolumeInfo) -> v1::Volume {
    let state = match info.state {
        VolumeState::Active => v1::VolumeState::VolumeActive,
        VolumeState::Deleting => v1::VolumeState::VolumeBeingDeleted,
    };
    v1::Volume {
        name: info.name.to_string(),
        id: info.id.0,
        copies: info.copies.into(),
        chunk_size_bytes: info.chunk_size_bytes,
        state: state.into(),
        created_unix_ms: info.created_unix_ms,
        files: info.count.map(|count| count.files),
        size_bytes: info.count.map(|count| count.bytes),
    }
}

/// `label` names a node; one that is not known any more goes by its number.
pub(super) fn chunk(
    location: ChunkLocation,
    label: impl Fn(cairn_placement::NodeId) -> Option<NodeLabel>,
) -> v1::ChunkLocation {
    let copy = |(node, state)| {
        let label: NodeLabel =
            label(node).unwrap_or_else(|| NodeLabel { name: format!("node #{node}"), zone: String::new() });
        let state = match state {
            CopyState::Present => v1::CopyState::CopyPresent,
            CopyState::Missing => v1::CopyState::CopyMissing,
            CopyState::Unreachable => v1::CopyState::CopyUnreachable,
        };
        v1::ChunkCopy { node: label.name, zone: label.zone, state: state.into() }
    };
    v1::ChunkLocation {
        index: location.index,
        offset: location.offset,
        length: location.length,
        placement_group: location.pg.0,
        copies: location.copies.into_iter().map(copy).collect(),
    }
}

pub(super) fn condition(condition: Option<v1::Condition>) -> Result<Condition, Refusal> {
    use v1::condition::Kind;
    let Some(condition) = condition else { return Ok(Condition::Always) };
    match condition.kind {
        Some(Kind::IfMatch(etag)) => Ok(Condition::IfMatch(decode::etag(&etag)?)),
        Some(Kind::IfAbsent(true)) => Ok(Condition::IfAbsent),
        Some(Kind::IfExists(true)) => Ok(Condition::IfExists),
        // Guessing what a condition that says nothing was meant to prevent could destroy a file.
        Some(Kind::IfAbsent(false) | Kind::IfExists(false)) | None => Err(Refusal::invalid(
            "the condition says nothing: leave it out, or set if_match, if_absent or if_exists",
        )),
    }
}
