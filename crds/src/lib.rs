//! The resources of Cairn: what people write, and what the operator answers in `status`.
//!
//! | kind | meaning |
//! |---|---|
//! | [`StorageCluster`] | a set of storage nodes in failure domains (zones), and where their metadata lives |
//! | [`Volume`] | a named file namespace in a cluster, with its own number of copies |
//!
//! The Rust types are the source. `cargo run -p cairn-crds` writes the YAML from them ([`generate`]); a test fails
//! when a generated file is stale. Doc comments become the descriptions that `kubectl explain` shows, so they are
//! written for people who run clusters. Rules that the schema can hold (bounds, patterns, CEL) live here; rules that
//! need to know what is already installed live in the planner.
//!
//! Numbers are `i32` and `i64` with a minimum, because Kubernetes knows no unsigned formats. Computed values are in
//! `status`, never in `spec`.

mod cluster;
pub mod generate;
pub mod manifest;
mod quantity;
mod schema;
mod volume;

pub use cluster::{
    CapacityStatus, ComputeResources, EncryptionSpec, EtcdSpec, MetadataSpec, NodesStatus,
    PlacementGroupsStatus, PoolSpec, PortsSpec, ResourceAmounts, StorageCluster, StorageClusterSpec,
    StorageClusterStatus, StorageSpec, ZoneSpec, ZoneStatus,
};
pub use quantity::{Quantity, QuantityError, human_bytes};
pub use volume::{ClusterRef, DeletionPolicy, Volume, VolumeSpec, VolumeStatus};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// API group of all kinds.
pub const GROUP: &str = "cairn.storage";
/// Version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all kinds.
pub const API_VERSION: &str = "cairn.storage/v1alpha1";

/// Longest name of a StorageCluster.
pub const CLUSTER_NAME_MAX: usize = 32;
/// Longest sum of the lengths of a cluster's, a pool's and a zone's name. They are joined, with two hyphens, to the
/// name of a StatefulSet; Kubernetes appends up to 11 characters and puts the result into labels of at most 63.
pub const JOINED_NAME_MAX: usize = 50;
