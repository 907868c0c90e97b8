//! Why a cluster or volume cannot be as its spec says. Each refusal has a CamelCase reason for conditions and a message
//! that says what to do.

use cairn_crds::{QuantityError, human_bytes};

/// A refusal. Conditions show [`Refusal::reason`] and the `Display` text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{field} {value:?} is not allowed: {rule}")]
    BadName { field: String, value: String, rule: &'static str },
    #[error("{field} is {value}, which is out of bounds: {rule}")]
    OutOfBounds { field: String, value: i64, rule: &'static str },
    #[error("{field} lists {value:?} twice; remove one")]
    Duplicate { field: String, value: String },
    #[error("{field}: {problem}")]
    BadAmount { field: String, problem: QuantityError },
    #[error("the disk of {} is too small: give storage.size at least 1Gi", human_bytes(*bytes))]
    DiskTooSmall { bytes: i64 },
    #[error("ports.grpc and ports.http are both {port}; give them different ports")]
    SamePorts { port: i32 },
    #[error("{count} pools are given; for now a cluster has exactly one: put all zones into one pool")]
    OnePoolOnly { count: usize },
    #[error(
        "spec.metadata.etcd is missing: in Kubernetes, a cluster keeps its metadata in etcd; give its endpoints \
         (docs/examples/kubernetes/etcd.yaml installs one)"
    )]
    EtcdMissing,
    #[error(
        "endpoint {endpoint:?} is not host or host:port; write it like etcd-0.etcd:2379, without a scheme"
    )]
    BadEndpoint { endpoint: String },

    #[error(
        "{installed} is installed, and the spec now says {wanted}: shrinking is not supported yet, because data must first \
             be moved off the nodes that go; set the zones back"
    )]
    Shrinking { installed: String, wanted: String },
    #[error(
        "{installed} is installed, and the spec now says {wanted}: changing a pool's nodes is not supported yet; set it \
             back, or install a second cluster and copy the files"
    )]
    PoolChanged { installed: String, wanted: String },
    #[error(
        "disks are installed as {installed}, and the spec now says {wanted}: changing disks is not supported yet; set \
             storage back"
    )]
    StorageChanged { installed: String, wanted: String },
    #[error(
        "the metadata is stored in etcd under {installed}, and the spec now says {wanted}: set the prefix back, or no file \
             would be found"
    )]
    PrefixChanged { installed: String, wanted: String },
    #[error(
        "data is sealed with the key in Secret {installed}, and the spec now says {wanted}: changing the key is not \
             supported yet; set encryption.keySecretName back"
    )]
    KeyChanged { installed: String, wanted: String },
    #[error(
        "ConfigMap {name}, the record of what is installed, cannot be read ({problem}); restore it from a backup"
    )]
    RecordUnreadable { name: String, problem: String },
    #[error(
        "this cluster was installed by a newer operator (renderer {found}, this one knows {known}); upgrade the operator"
    )]
    OperatorTooOld { found: i32, known: i32 },

    #[error(
        "Secret {name} has no entry `{entry}`: create it with 32 random bytes as base64 (kubectl create secret generic \
             {name} --from-literal={entry}=\"$(openssl rand -base64 32)\")"
    )]
    KeyMissing { name: String, entry: &'static str },
    #[error(
        "Secret {name} with the key of this cluster is gone, but its disks exist: restore the Secret from a backup; no \
             other key can read the data, so none is made"
    )]
    KeyLost { name: String },
    #[error(
        "Secret {name}, named in metadata.etcd.tlsSecretName, lacks {entry}: create it with ca.crt, tls.crt and tls.key"
    )]
    EtcdCertificateMissing { name: String, entry: &'static str },
    #[error(
        "{kind} {name} exists and does not belong to this cluster ({owner}): delete or rename it, or give the cluster \
             another name"
    )]
    NameTaken { kind: &'static str, name: String, owner: String },
    #[error(
        "somebody scaled StatefulSet {set} to {found}, and {installed} are installed: the additional nodes may hold data; \
             scale it back (kubectl scale statefulset {set} --replicas {installed}) if they never became ready"
    )]
    ScaledByHand { set: String, found: i32, installed: i32 },

    #[error("StorageCluster {name} does not exist in this namespace; create it, or correct clusterRef.name")]
    ClusterMissing { name: String },
    #[error(
        "{copies} copies need {copies} zones, and cluster {cluster} has {zones}: lower spec.copies to {zones}, or use a \
             cluster with more zones"
    )]
    FewerZonesThanCopies { cluster: String, copies: i32, zones: i32 },
    #[error(
        "volume {volume} exists with {field} {stored}, and the spec says {wanted}: set {field} to {stored} to use it, or \
             choose another name"
    )]
    VolumeDiffers { volume: String, field: &'static str, stored: String, wanted: String },
    #[error("a deleted volume of the name {volume} is still being emptied; this one is created after that")]
    VolumeBeingEmptied { volume: String },

    #[error(
        "the plan broke a safety rule and was dropped ({0}); this is a defect of the operator: please report it"
    )]
    UnsafePlan(String),
}

impl Refusal {
    /// The CamelCase reason for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadName { .. } => "InvalidName",
            Self::OutOfBounds { .. } => "OutOfBounds",
            Self::Duplicate { .. } => "DuplicateName",
            Self::BadAmount { .. } => "InvalidAmount",
            Self::DiskTooSmall { .. } => "DiskTooSmall",
            Self::SamePorts { .. } => "PortsEqual",
            Self::OnePoolOnly { .. } => "OnePoolOnly",
            Self::EtcdMissing => "EtcdMissing",
            Self::BadEndpoint { .. } => "InvalidEndpoint",
            Self::Shrinking { .. } => "ShrinkingRefused",
            Self::PoolChanged { .. } => "PoolChangeRefused",
            Self::StorageChanged { .. } => "StorageChangeRefused",
            Self::PrefixChanged { .. } => "PrefixChangeRefused",
            Self::KeyChanged { .. } => "KeyChangeRefused",
            Self::RecordUnreadable { .. } => "RecordUnreadable",
            Self::OperatorTooOld { .. } => "OperatorTooOld",
            Self::KeyMissing { .. } => "KeyMissing",
            Self::KeyLost { .. } => "KeyLost",
            Self::EtcdCertificateMissing { .. } => "EtcdCertificateMissing",
            Self::NameTaken { .. } => "NameTaken",
            Self::ScaledByHand { .. } => "ScaledByHand",
            Self::ClusterMissing { .. } => "ClusterMissing",
            Self::FewerZonesThanCopies { .. } => "FewerZonesThanCopies",
            Self::VolumeDiffers { .. } => "VolumeDiffers",
            Self::VolumeBeingEmptied { .. } => "VolumeBeingEmptied",
            Self::UnsafePlan(_) => "UnsafePlan",
        }
    }
}
