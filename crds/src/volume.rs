//! `Volume`: a named file namespace in a cluster.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;

/// What a Volume should be.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "cairn.storage",
    version = "v1alpha1",
    kind = "Volume",
    plural = "volumes",
    namespaced,
    category = "cairn",
    status = "VolumeStatus",
    derive = "PartialEq",
    doc = "A Volume is a named file namespace in a StorageCluster, with its own number of copies and its own data key.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Copies", type_ = "integer", json_path = ".spec.copies"),
    printcolumn(name = "Files", type_ = "integer", json_path = ".status.files"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size", description = "Bytes of all files, once"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be at most 63 characters: lowercase letters, digits and hyphens; clients address the volume by it")
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// The StorageCluster, in the same namespace, that holds the volume. Cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf").message("clusterRef cannot be changed: create another Volume and copy the files"))]
    pub cluster_ref: ClusterRef,

    /// Copies of each chunk, every one in another zone. With 3, a write needs 2 durable copies to succeed and files
    /// survive the loss of two zones once settled. Cannot be changed for now.
    #[serde(default = "default_copies")]
    #[schemars(range(min = 1, max = 7))]
    pub copies: i32,

    /// Size of chunks in MiB: the unit in which files are cut, spread and repaired. Small files take no more room than
    /// their bytes. Cannot be changed.
    #[serde(default = "default_chunk_size_mib", rename = "chunkSizeMiB")]
    #[schemars(range(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("chunkSizeMiB cannot be changed: create another Volume and copy the files"))]
    pub chunk_size_mib: i32,

    /// What deleting this resource does to the files. `Retain` (the default) keeps them in the cluster, where a Volume of
    /// the same name finds them again; `Delete` deletes them, for ever.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// A StorageCluster in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of the StorageCluster.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
}

/// What deleting a Volume does to its files.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}

/// What was observed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready, Reconciling and Stalled, as kstatus defines them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Identity of the volume inside the cluster; two volumes of one name at different times differ in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub volume_id: Option<String>,

    /// Files in the volume, as last counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<i64>,

    /// Bytes of all files, each counted once, as last counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,

    /// `bytes`, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub size: Option<String>,
}

const fn default_copies() -> i32 {
    3
}

const fn default_chunk_size_mib() -> i32 {
    4
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::schema::testing::{cel_errors, patched};

    fn volume() -> Value {
        json!({
            "apiVersion": crate::API_VERSION,
            "kind": "Volume",
            "metadata": { "name": "files" },
            "spec": { "clusterRef": { "name": "demo" }, "copies": 3, "chunkSizeMiB": 4, "deletionPolicy": "Retain" },
        })
    }

    #[test]
    fn a_good_volume_passes_every_rule() {
        assert_eq!(cel_errors::<Volume>(&volume(), None), Vec::<String>::new());
        let changed =
            patched(volume(), &[("/spec/deletionPolicy", json!("Delete")), ("/spec/copies", json!(2))]);
        assert_eq!(cel_errors::<Volume>(&changed, Some(&volume())), Vec::<String>::new());
    }

    #[test]
    fn what_is_fixed_stays() {
        for (pointer, value, words) in [
            ("/spec/chunkSizeMiB", json!(8), "chunkSizeMiB cannot be changed"),
            ("/spec/clusterRef/name", json!("other"), "clusterRef cannot be changed"),
        ] {
            let errors = cel_errors::<Volume>(&patched(volume(), &[(pointer, value)]), Some(&volume()));
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(words), "{errors:?}");
        }
    }

    #[test]
    fn names_are_labels() {
        for name in ["a.b", "A", "-a", &"a".repeat(64)] {
            let errors = cel_errors::<Volume>(&patched(volume(), &[("/metadata/name", json!(name))]), None);
            assert!(errors.iter().any(|e| e.contains("metadata.name")), "{name}: {errors:?}");
        }
    }

    #[test]
    fn defaults_are_filled() {
        let spec: VolumeSpec = serde_json::from_value(json!({ "clusterRef": { "name": "demo" } })).unwrap();
        assert_eq!((spec.copies, spec.chunk_size_mib, spec.deletion_policy), (3, 4, DeletionPolicy::Retain));
        assert_eq!(serde_json::to_value(&spec).unwrap(), volume()["spec"]);
    }
}
