//! The gateway's types as JSON: snake case as in the protocol, digests and etags in hexadecimal, times as RFC 3339.

use cairn_proto::v1::{NodeState, Readable, StatusResponse};
use serde_json::{Value, json};

use crate::files::{FileInfo, Listing, VolumeInfo, VolumeState};

fn time(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).unwrap_or_default().to_string()
}

pub(super) fn file(file: &FileInfo) -> Value {
    json!({
        "volume": file.volume.as_str(),
        "path": file.path.as_str(),
        "size_bytes": file.size_bytes,
        "etag": file.generation.to_string(),
        "blake3": hex::encode(file.blake3),
        "modified": time(file.modified_unix_ms),
        "content_type": file.content_type,
    })
}

pub(super) fn listing(listing: &Listing) -> Value {
    json!({
        "files": listing.files.iter().map(file).collect::<Vec<_>>(),
        "prefixes": listing.prefixes,
        "next_page_token": listing.next_token,
    })
}

pub(super) fn volume(volume: &VolumeInfo) -> Value {
    let state = match volume.state {
        VolumeState::Active => "active",
        VolumeState::Deleting => "deleting",
    };
    json!({
        "name": volume.name.as_str(),
        "id": volume.id.0,
        "copies": volume.copies,
        "chunk_size_bytes": volume.chunk_size_bytes,
        "state": state,
        "created": time(volume.created_unix_ms),
        "files": volume.count.map(|count| count.files),
        "size_bytes": volume.count.map(|count| count.bytes),
    })
}

pub(super) fn volumes(volumes: &[VolumeInfo], next_token: &str) -> Value {
    json!({ "volumes": volumes.iter().map(volume).collect::<Vec<_>>(), "next_page_token": next_token })
}

pub(super) fn status(status: &StatusResponse) -> Value {
    let nodes: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            let state = match node.state() {
                NodeState::NodeLive => "live",
                NodeState::NodeDown => "down",
                NodeState::NodeExpected => "expected",
                NodeState::Unspecified => "unknown",
            };
            json!({
                "name": node.name,
                "zone": node.zone,
                "address": node.address,
                "state": state,
                "capacity_bytes": node.capacity_bytes,
                "used_bytes": node.used_bytes,
                "chunks": node.chunks,
                "placement_groups": node.placement_groups,
                "settled_placement_groups": node.settled_placement_groups,
                "version": node.version,
                "refusal": node.refusal,
                "warnings": node.warnings,
            })
        })
        .collect();
    let readable = match status.readable() {
        Readable::All => "all",
        Readable::NotAll => "not_all",
        Readable::BeingChecked | Readable::Unspecified => "being_checked",
    };
    json!({
        "cluster": status.cluster,
        "cluster_id": status.cluster_id,
        "map_generation": status.map_generation,
        "intent_generation": status.intent_generation,
        "coordinator": status.coordinator,
        "placement_groups": status.placement_groups,
        "settled": status.settled,
        "degraded": status.degraded,
        "unavailable": status.unavailable,
        "nodes": nodes,
        "answered_by": status.answered_by,
        "collecting": status.collecting,
        "compared": status.compared,
        "readable": readable,
        "missing": status.missing,
        "metadata_restored": status.metadata_restored,
        "lost_files": status.lost_files,
        "lost": status.lost,
    })
}
