//! What unit tests here share.

use cairn_crds::manifest::{self, Manifest};

use crate::validate::{self, Mode, ValidCluster};

/// Four nodes in three zones.
pub const CLUSTER: &str = "
apiVersion: cairn.storage/v1alpha1
kind: StorageCluster
metadata: {name: demo, namespace: default, uid: uid-of-demo, generation: 1}
spec:
  pools:
  - name: main
    zones: [{name: a, nodes: 2}, {name: b}, {name: c}]
    storage: {size: 10Gi}
  metadata: {etcd: {endpoints: [etcd-0.etcd, etcd-1.etcd, etcd-2.etcd]}}
";

pub fn valid_cluster() -> ValidCluster {
    match manifest::parse(CLUSTER).unwrap().pop() {
        Some(Manifest::StorageCluster(cluster)) => validate::cluster(&cluster, Mode::Kubernetes).unwrap(),
        other => panic!("a cluster, not {other:?}"),
    }
}
