//! What the operator saw, as plain data. Everything that the planner decides follows from this and the time.

use std::collections::{BTreeMap, BTreeSet};

use cairn_crds::StorageCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;

/// A cluster and all that belongs to it, read at one time.
///
/// Objects are those that carry the cluster's label, *and* those that have one of its names ([`crate::contract::Names`])
/// whether labelled or not: a foreign object in the way must be seen, or it would be overwritten.
#[derive(Clone, Debug)]
pub struct Observed {
    pub cluster: StorageCluster,
    /// Image for clusters that name none.
    pub default_image: String,
    pub config_maps: Vec<ConfigMap>,
    pub service_accounts: Vec<ServiceAccount>,
    pub services: Vec<Service>,
    pub network_policies: Vec<NetworkPolicy>,
    pub disruption_budgets: Vec<PodDisruptionBudget>,
    pub stateful_sets: Vec<StatefulSet>,
    pub pods: Vec<Pod>,
    pub volume_claims: Vec<PersistentVolumeClaim>,
    /// By name; also the Secrets that the spec names.
    pub secrets: BTreeMap<String, SecretFact>,
    /// What the nodes said this time; `None` if none could be asked.
    pub report: Option<NodesReport>,
}

impl Observed {
    /// A cluster of which nothing exists yet.
    pub fn new(cluster: StorageCluster, default_image: &str) -> Self {
        Self {
            cluster,
            default_image: default_image.to_owned(),
            config_maps: Vec::new(),
            service_accounts: Vec::new(),
            services: Vec::new(),
            network_policies: Vec::new(),
            disruption_budgets: Vec::new(),
            stateful_sets: Vec::new(),
            pods: Vec::new(),
            volume_claims: Vec::new(),
            secrets: BTreeMap::new(),
            report: None,
        }
    }
}

/// What the planner may know of a Secret: never its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretFact {
    /// Entries that exist and are not empty.
    pub entries: BTreeSet<String>,
    /// Value of the label [`crate::contract::label::CLUSTER`].
    pub cluster_label: Option<String>,
    /// Of the certificate in `tls.crt` (or, in the CA's Secret, `ca.crt`).
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    /// DNS names in the certificate in `tls.crt`, sorted.
    pub dns_names: Vec<String>,
    /// SHA-256 of `ca.crt`, hex.
    pub authority: Option<String>,
    /// SHA-256 of `token`, or every digest in `tokens`; hex.
    pub token_digests: BTreeSet<String>,
}

/// What the storage nodes say of themselves, from `Admin.Status` of one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodesReport {
    /// Nodes whose lease is alive, by name.
    pub live: BTreeSet<String>,
    pub capacity_bytes: i64,
    pub used_bytes: i64,
    pub placement_groups: PlacementGroups,
    pub readable: Readable,
    /// Files with content that no disk has any more.
    pub lost_files: u64,
    /// The first of them, as volume/path.
    pub lost: Vec<String>,
    /// The metadata store is an older copy of what it was.
    pub metadata_restored: bool,
    /// `None`: the metadata store answers. Otherwise, what it (or the node) said.
    pub metadata_problem: Option<String>,
}

/// Whether every file can be read from the nodes that are live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readable {
    /// A node has started or gone, and what is there is being compared with the metadata.
    #[default]
    BeingChecked,
    All,
    /// In so many placement groups, content that files name is on no live node.
    Without(i32),
}

/// Placement groups by state; the three states add up to `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlacementGroups {
    pub total: i32,
    pub settled: i32,
    pub degraded: i32,
    pub unavailable: i32,
}
