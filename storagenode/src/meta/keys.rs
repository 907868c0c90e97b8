//! Stored keys: one file each, with its schema in the doc comment.
//!
//! | key | what | written by |
//! |---|---|---|
//! | `c/cluster` | [`cluster::ClusterRecord`] | the first node |
//! | `c/node/<name>` | [`node::NodeRecord`] | that node |
//! | `c/node-id` | the last number given to a node | a registering node |
//! | `c/starts` | changes with each registration; its value says whose was the last | a registering node |
//! | `c/live/<name>` | [`node::LiveRecord`], leased | that node |
//! | `c/coordinator` | name of the coordinator, leased | the coordinator |
//! | `c/intent` | [`intent::IntentRecord`] | the node that the operator told |
//! | `c/map/gen` | [`map::MapHead`] | the coordinator |
//! | `c/map/page/<number>` | a page of the map | the coordinator |
//! | `c/epoch` | the sweep epoch | the coordinator |
//! | `c/restored/<node>` | [`restored::RestoredRecord`]: the store is behind what that node had seen | that node |
//! | `c/refused/<node>` | [`refused::RefusedRecord`]: why it did not start | that node |
//! | `c/accepted` | tick at which a restored store was accepted | `cairn-node recover` |
//! | `c/truth` | [`truth::TruthRecord`], what comparing metadata and disks found | the coordinator |
//! | `c/sweep` | [`sweep::SweepRecord`], the latest sweep | the coordinator |
//! | `c/tick` | the minutes counted (R10) | the coordinator |
//! | `volume/<name>` | [`volume::VolumeRecord`] | gateways |
//! | `count/<volume>` | [`count::CountRecord`]: files and bytes when last counted | the coordinator |
//! | `volume-id` | the last number given to a volume | gateways |
//! | `file/<volume id>/<path>` | [`file::FileRecord`] | gateways |
//! | `disk/<node>` | [`disk::DiskRecord`]: how far its disk remembers the store | that node |
//! | `slot/<node>/<number>` | [`slot`]: what the gateway last committed there | that gateway |
//! | `file:sweep` | a marker behind a scan of the records, see [`sweep::marker_key`] | the coordinator |
//! | `upload/<generation>` | [`upload::UploadRecord`], leased: a long upload | that gateway |
//! | `pin/<generation>/<node>` | [`pin::PinRecord`], leased: a long download | that gateway |
//! | `quarantine/<generation>` | [`quarantine::QuarantineRecord`], found without a file | the coordinator |
//! | `collect/<generation>` | [`collect::CollectRecord`] | gateways, removed by the coordinator |
//!
//! Everything under `c/` is small and watched by every node. Values are JSON with a version `v`, except file records,
//! map pages and slots, which are binary and begin with a version byte.

use bytes::Bytes;
use cairn_placement::Generation;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{KeyValue, MetaError};

pub mod cluster;
pub mod collect;
pub mod count;
pub mod disk;
pub mod file;
pub mod intent;
pub mod map;
pub mod node;
pub mod pin;
pub mod quarantine;
pub mod refused;
pub mod restored;
pub mod slot;
pub mod sweep;
pub mod truth;
pub mod upload;
pub mod volume;

/// Everything that each node mirrors.
pub const CLUSTER_PREFIX: &[u8] = b"c/";
/// Version of the JSON records.
const RECORD_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u8,
    #[serde(flatten)]
    body: T,
}

/// The stored form of a JSON record.
pub fn to_json<T: Serialize>(body: &T) -> Bytes {
    let text = serde_json::to_vec(&Versioned { v: RECORD_VERSION, body });
    text.expect("records are plain data").into()
}

/// Reads a JSON record.
pub fn from_json<T: DeserializeOwned>(entry: &KeyValue) -> Result<T, MetaError> {
    #[derive(Deserialize)]
    struct Version {
        v: u8,
    }
    let damaged = |error: serde_json::Error| MetaError::Damaged(format!("{}: {error}", name(&entry.key)));
    let version: Version = serde_json::from_slice(&entry.value).map_err(damaged)?;
    if version.v != RECORD_VERSION {
        return Err(newer(&entry.key, version.v));
    }
    serde_json::from_slice::<Versioned<T>>(&entry.value).map(|record| record.body).map_err(damaged)
}

/// Reads a number stored as decimal digits.
pub fn number(entry: &KeyValue) -> Result<u64, MetaError> {
    let text = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| MetaError::Damaged(format!("{} is not a number", name(&entry.key))))
}

pub(crate) fn newer(key: &[u8], version: u8) -> MetaError {
    MetaError::Damaged(format!(
        "{} has format version {version}; this program reads version {RECORD_VERSION}: run the release that wrote it",
        name(key)
    ))
}

/// A key for messages.
pub(crate) fn name(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// The generation that a key names behind its prefix.
pub(crate) fn generation(prefix: &[u8], entry: &KeyValue) -> Result<Generation, MetaError> {
    let text = entry.key.strip_prefix(prefix).and_then(|rest| std::str::from_utf8(rest).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| MetaError::Damaged(format!("{} names no generation", name(&entry.key))))
}

/// The last number given to a node.
pub fn node_id_key() -> Bytes {
    Bytes::from_static(b"c/node-id")
}

/// Written whenever a node registers, or says that it found damage: what its disk has acknowledged before may not be there. Its
/// value, the node's name, is for people.
pub fn starts_key() -> Bytes {
    Bytes::from_static(b"c/starts")
}

/// The coordinator's name, leased.
pub fn coordinator_key() -> Bytes {
    Bytes::from_static(b"c/coordinator")
}

/// The sweep epoch, as decimal digits; absent means 0.
pub fn epoch_key() -> Bytes {
    Bytes::from_static(b"c/epoch")
}

/// Ticks counted by coordinators, as decimal digits.
pub fn tick_key() -> Bytes {
    Bytes::from_static(b"c/tick")
}

/// The last number given to a volume.
pub fn volume_id_key() -> Bytes {
    Bytes::from_static(b"volume-id")
}

/// 16 bytes as hexadecimal text in JSON.
pub(crate) mod hex16 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 16], D::Error> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(String::deserialize(deserializer)?, &mut bytes).map_err(D::Error::custom)?;
        Ok(bytes)
    }
}
