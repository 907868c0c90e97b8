//! Local PersistentVolumes: folders on a node's disk, bound to the node, as a storage cluster uses them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::{Bed, BedError};

/// The StorageClass of [`Bed::local_volumes`].
pub const STORAGE_CLASS: &str = "local";

impl Bed {
    /// Makes the StorageClass `local` (binding waits for the first pod) and, on every node, `per_node` volumes of so much
    /// capacity, such as `10Gi`, named `local-n1-0`, …. Their folders are open to every user: images run as one without
    /// rights.
    pub fn local_volumes(&self, per_node: usize, capacity: &str) -> Result<(), BedError> {
        let mut items = vec![json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": { "name": STORAGE_CLASS },
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Retain",
        })];
        for (number, node) in (1..).zip(self.node_names()) {
            for index in 0..per_node {
                let folder = self.volume_folder(number, index);
                fs::create_dir_all(&folder)?;
                fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
                let path = folder.display().to_string();
                items.push(volume(&format!("local-{node}-{index}"), &node, &path, capacity));
            }
        }
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.apply(&list.to_string()).map(drop)
    }
}

fn volume(name: &str, node: &str, path: &str, capacity: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": capacity },
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "volumeMode": "Filesystem",
            "local": { "path": path },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [{
                "key": "kubernetes.io/hostname", "operator": "In", "values": [node],
            }]}]}},
        },
    })
}
