//! `StorageCluster`: storage nodes in zones, and where their metadata lives.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, Quantity};

/// What a StorageCluster should be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "cairn.storage",
    version = "v1alpha1",
    kind = "StorageCluster",
    plural = "storageclusters",
    namespaced,
    category = "cairn",
    status = "StorageClusterStatus",
    derive = "PartialEq",
    doc = "A StorageCluster is a set of storage nodes in failure domains (zones). Files are cut into chunks, sealed, and kept as copies in different zones.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.nodes.summary",
        description = "Nodes that are ready, of those wanted"
    ),
    printcolumn(
        name = "Settled",
        type_ = "string",
        json_path = ".status.placementGroups.summary",
        description = "Placement groups whose members all hold everything, of all"
    ),
    printcolumn(
        name = "Capacity",
        type_ = "string",
        json_path = ".status.capacity.summary",
        description = "Bytes used, of all bytes"
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 32 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be at most 32 characters: lowercase letters, digits and hyphens, starting with a letter; Services are named after it"),
    validation = Rule::new("self.spec.pools.all(p, p.zones.all(z, size(self.metadata.name) + size(p.name) + size(z.name) <= 50))").message("the names of the cluster, a pool and a zone together must be at most 50 characters, because StatefulSets are named cluster-pool-zone")
)]
#[serde(rename_all = "camelCase")]
pub struct StorageClusterSpec {
    /// Container image with the programs of Cairn. Without it, the operator's own default at the time of the first
    /// installation is used and kept: upgrading the operator alone does not restart storage nodes. Set or change it to
    /// upgrade the nodes; they are restarted one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$"))]
    pub image: Option<String>,

    /// Sets of like storage nodes. For now a cluster has exactly one.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pools: Vec<PoolSpec>,

    /// Where the metadata (file records, cluster map) lives. Required in Kubernetes. `cairn-operator local` always uses
    /// its embedded store and ignores this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MetadataSpec>,

    /// Ports on which every node listens.
    #[serde(default)]
    pub ports: PortsSpec,

    /// How the keys of volumes are protected. All data is encrypted, whether this is given or not.
    #[serde(default)]
    pub encryption: EncryptionSpec,
}

/// A set of like storage nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// Name of the pool: lowercase letters and digits, starting with a letter. No hyphens, so that names of the form
    /// cluster-pool-zone can be read in one way only.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[a-z][a-z0-9]*$"))]
    pub name: String,

    /// Failure domains. Copies of a chunk are in different zones, so a cluster needs at least as many zones as the
    /// `copies` of its volumes. For now, zones and their nodes cannot be changed after the installation.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub zones: Vec<ZoneSpec>,

    /// Key of the Kubernetes node label whose value is the zone's name. Use `kubernetes.io/hostname` (and host names as
    /// zone names) where machines are the failure domains.
    #[serde(default = "default_zone_label")]
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[a-zA-Z0-9]([-a-zA-Z0-9_.]*[a-zA-Z0-9])?$")
    )]
    pub zone_label: String,

    /// The disk of each node.
    pub storage: StorageSpec,

    /// CPU and memory of each node's container. Without it, small requests and no limits are set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ComputeResources>,
}

/// A failure domain of a pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ZoneSpec {
    /// Name of the zone, as in the nodes' zone label: lowercase letters, digits and hyphens.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// Storage nodes in this zone. Zones may differ; a volume's usable capacity is bounded by its smallest zones.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub nodes: i32,
}

/// A node's disk.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Size of each node's disk, at least 1Gi; for example `500Gi`. Cannot be changed for now.
    pub size: Quantity,

    /// StorageClass of the disks. Without it, the cluster's default class is used. Cannot be changed for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
}

/// CPU and memory of a container.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ComputeResources {
    /// What the scheduler reserves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,

    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
}

/// Amounts of CPU and memory.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResourceAmounts {
    /// Cores, such as `2` or `500m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,

    /// Bytes, such as `2Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// Where metadata lives.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MetadataSpec {
    /// An etcd cluster. Cairn does not install it; docs/examples/kubernetes/etcd.yaml does.
    pub etcd: EtcdSpec,
}

/// An etcd cluster, or a part of one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.prefix) == has(oldSelf.prefix) && (!has(self.prefix) || self.prefix == oldSelf.prefix)").message("prefix cannot be changed: all metadata of the cluster is stored under it"),
)]
pub struct EtcdSpec {
    /// Members, as `host:port` (the port is 2379 if left out). No scheme: TLS is used when `tlsSecretName` is given.
    #[schemars(length(min = 1, max = 9), inner(length(min = 1, max = 260)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.all(e, e.matches('^([a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?|\\\\[[0-9a-fA-F:.]+\\\\])(:[0-9]{1,5})?$'))").message("each endpoint is host or host:port, such as etcd-0.etcd:2379, without http:// or https:// (tlsSecretName switches TLS on)"))]
    pub endpoints: Vec<String>,

    /// Prefix of all keys, for an etcd shared by several clusters. Without it: `cairn/<namespace>/<name>`. Cannot be
    /// changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 120),
        regex(pattern = r"^[a-z0-9]([-a-z0-9_.]*[a-z0-9])?(/[a-z0-9]([-a-z0-9_.]*[a-z0-9])?)*$")
    )]
    pub prefix: Option<String>,

    /// Secret with the CA of etcd (`ca.crt`) and a client certificate (`tls.crt`, `tls.key`). Without it, connections to
    /// etcd are not encrypted: only for an etcd that nobody else can reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub tls_secret_name: Option<String>,
}

/// Ports of a node. Both speak TLS only.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.grpc != self.http").message("grpc and http must be different ports"))]
pub struct PortsSpec {
    /// gRPC, for clients and peers.
    #[serde(default = "default_grpc_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub grpc: i32,

    /// HTTP, for cURL, browsers, probes and metrics.
    #[serde(default = "default_http_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub http: i32,
}

impl Default for PortsSpec {
    fn default() -> Self {
        Self { grpc: default_grpc_port(), http: default_http_port() }
    }
}

/// Keys.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionSpec {
    /// Secret whose entry `kek` holds the key that wraps the keys of all volumes: 32 random bytes, as base64 text. Without
    /// it, the operator makes one, named `<cluster>-kek`, and never deletes it. Back it up: without this key, no data can
    /// be read. Cannot be changed for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub key_secret_name: Option<String>,
}

/// What was observed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageClusterStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready, Reconciling and Stalled (as kstatus defines them), Available, DataProtected, MetadataHealthy,
    /// UpdateBlocked, ScaleDownBlocked and CertificatesValid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Storage nodes of the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesStatus>,

    /// Storage nodes by zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pool".into(), "name".into()]))]
    pub zones: Vec<ZoneStatus>,

    /// Disk space as the nodes report it; absent until they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityStatus>,

    /// Placement groups (the units in which data is placed) as the nodes report them; absent until they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_groups: Option<PlacementGroupsStatus>,

    /// Where clients inside Kubernetes connect with gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,

    /// Secret for clients, in the cluster's namespace: `ca.crt` to verify the nodes and `token` to be let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub client_secret_name: Option<String>,

    /// Image that the storage nodes run or are being moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
}

/// Counts of nodes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodesStatus {
    /// Nodes wanted.
    pub desired: i32,
    /// Nodes that serve.
    pub ready: i32,
    /// Both, as `ready/desired`.
    #[schemars(length(max = 32))]
    pub summary: String,
}

/// A zone and its nodes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ZoneStatus {
    /// Name of the pool.
    #[schemars(length(max = 16))]
    pub pool: String,
    /// Name of the zone.
    #[schemars(length(max = 32))]
    pub name: String,
    /// Nodes wanted.
    pub desired: i32,
    /// Nodes that serve.
    pub ready: i32,
}

/// Disk space.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CapacityStatus {
    /// Bytes of all nodes' disks.
    pub total_bytes: i64,
    /// Bytes used, rounded to a thousandth of the total so that the status stays still when little changes.
    pub used_bytes: i64,
    /// Both, for people.
    #[schemars(length(max = 64))]
    pub summary: String,
}

/// Counts of placement groups.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementGroupsStatus {
    /// All.
    pub total: i32,
    /// Every member has everything.
    pub settled: i32,
    /// Fewer copies than wanted; readable.
    pub degraded: i32,
    /// Fewer copies than needed to read.
    pub unavailable: i32,
    /// Settled groups, as `settled/total`.
    #[schemars(length(max = 32))]
    pub summary: String,
}

fn default_zone_label() -> String {
    "topology.kubernetes.io/zone".to_owned()
}

const fn one() -> i32 {
    1
}

const fn default_grpc_port() -> i32 {
    50051
}

const fn default_http_port() -> i32 {
    8080
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::schema::testing::{cel_errors, patched};

    fn cluster() -> Value {
        json!({
            "apiVersion": crate::API_VERSION,
            "kind": "StorageCluster",
            "metadata": { "name": "demo" },
            "spec": {
                "pools": [{
                    "name": "main",
                    "zones": [{ "name": "a", "nodes": 2 }, { "name": "b", "nodes": 1 }],
                    "zoneLabel": "topology.kubernetes.io/zone",
                    "storage": { "size": "1Gi" },
                }],
                "metadata": { "etcd": { "endpoints": ["etcd-0.etcd:2379", "[::1]:2379", "10.0.0.1"] } },
                "ports": { "grpc": 50051, "http": 8080 },
                "encryption": {},
            },
        })
    }

    fn errors(changes: &[(&str, Value)], old: Option<&Value>) -> Vec<String> {
        cel_errors::<StorageCluster>(&patched(cluster(), changes), old)
    }

    #[test]
    fn a_good_cluster_passes_every_rule() {
        assert_eq!(errors(&[], None), Vec::<String>::new());
        assert_eq!(errors(&[], Some(&cluster())), Vec::<String>::new());
    }

    #[test]
    fn names_that_services_cannot_have() {
        for name in ["1demo", "Demo", "de.mo", "demo-", &"d".repeat(33)] {
            let errors = errors(&[("/metadata/name", json!(name))], None);
            assert!(errors.iter().any(|e| e.contains("metadata.name must be")), "{name}: {errors:?}");
        }
    }

    #[test]
    fn joined_names_are_bounded() {
        let changes = [
            ("/metadata/name", json!("d".repeat(32))),
            ("/spec/pools/0/zones/1/name", json!("z".repeat(15))),
        ];
        assert!(errors(&changes, None)[0].contains("together"), "32 + 4 + 15 = 51");
        let changes = [
            ("/metadata/name", json!("d".repeat(32))),
            ("/spec/pools/0/zones/1/name", json!("z".repeat(14))),
        ];
        assert_eq!(errors(&changes, None), Vec::<String>::new());
    }

    #[test]
    fn ports_differ() {
        assert!(errors(&[("/spec/ports/http", json!(50051))], None)[0].contains("different ports"));
    }

    #[test]
    fn endpoints_are_hosts() {
        for bad in
            ["http://etcd:2379", "https://etcd", "etcd:2379/x", "etcd:port", "a b", "etcd:123456", "::1"]
        {
            let errors = errors(&[("/spec/metadata/etcd/endpoints/0", json!(bad))], None);
            assert!(errors.iter().any(|e| e.contains("host:port")), "{bad}: {errors:?}");
        }
    }

    #[test]
    fn the_prefix_stays() {
        let with = |prefix: &str| patched(cluster(), &[("/spec/metadata/etcd/prefix", json!(prefix))]);
        let judged = |new: &Value, old: &Value| cel_errors::<StorageCluster>(new, Some(old));
        assert_eq!(judged(&with("a"), &with("a")), Vec::<String>::new());
        for (new, old) in [(with("a"), with("b")), (with("a"), cluster()), (cluster(), with("a"))] {
            assert!(judged(&new, &old)[0].contains("prefix cannot be changed"));
        }
    }

    #[test]
    fn defaults_are_filled() {
        let text = json!({
            "pools": [{ "name": "main", "zones": [{ "name": "a" }], "storage": { "size": "1Gi" } }],
        });
        let spec: StorageClusterSpec = serde_json::from_value(text).expect("a minimal spec is complete");
        assert_eq!(spec.pools[0].zones[0].nodes, 1);
        assert_eq!(spec.pools[0].zone_label, "topology.kubernetes.io/zone");
        assert_eq!(spec.ports, PortsSpec { grpc: 50051, http: 8080 });
    }
}
