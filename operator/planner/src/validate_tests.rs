//! Tests of `validate.rs`.

use cairn_crds::manifest::{self, Manifest};

use super::*;

const CLUSTER: &str = "
apiVersion: cairn.storage/v1alpha1
kind: StorageCluster
metadata: {name: demo, namespace: default, uid: u, generation: 3}
spec:
  pools:
  - name: main
    zones: [{name: a, nodes: 2}, {name: b}, {name: c}]
    storage: {size: 10Gi}
  metadata: {etcd: {endpoints: [etcd-0.etcd, 'etcd-1.etcd:2380', '[::1]']}}
";

fn resource(change: impl FnOnce(&mut StorageCluster)) -> StorageCluster {
    let Some(Manifest::StorageCluster(mut cluster)) = manifest::parse(CLUSTER).unwrap().pop() else {
        panic!("the manifest is a cluster");
    };
    change(&mut cluster);
    *cluster
}

fn refused(change: impl FnOnce(&mut StorageCluster)) -> (&'static str, String) {
    let refusal = cluster(&resource(change), Mode::Kubernetes).expect_err("the cluster is refused");
    (refusal.reason(), refusal.to_string())
}

#[test]
fn a_good_cluster_is_parsed() {
    let valid = cluster(&resource(|_| {}), Mode::Kubernetes).unwrap();
    let nodes: Vec<_> = valid.nodes().into_iter().map(|n| (n.name, n.zone)).collect();
    let expected =
        [("demo-main-a-0", "a"), ("demo-main-a-1", "a"), ("demo-main-b-0", "b"), ("demo-main-c-0", "c")];
    assert_eq!(nodes, expected.map(|(n, z)| (n.to_owned(), z.to_owned())));
    assert_eq!(valid.node_count(), 4);
    let MetadataStore::Etcd { endpoints, prefix, .. } = &valid.metadata else { panic!("etcd is given") };
    assert_eq!(endpoints, &["etcd-0.etcd:2379", "etcd-1.etcd:2380", "[::1]:2379"]);
    assert_eq!(prefix, "cairn/default/demo");
    assert_eq!(valid.key_secret(), "demo-kek");
}

#[test]
fn local_clusters_use_the_embedded_store_whatever_is_given() {
    for keep in [true, false] {
        let resource = resource(|c| {
            if !keep {
                c.spec.metadata = None;
            }
        });
        assert_eq!(cluster(&resource, Mode::Local).unwrap().metadata, MetadataStore::Embedded);
    }
}

#[test]
fn etcd_is_required_in_kubernetes() {
    let (reason, message) = refused(|c| c.spec.metadata = None);
    assert_eq!(reason, "EtcdMissing");
    assert!(message.contains("give its endpoints"), "{message}");
}

#[test]
fn bad_specs_are_refused_with_what_to_do() {
    type Change = fn(&mut StorageCluster);
    let cases: [(Change, &str, &str); 13] = [
        (|c| c.metadata.name = Some("1x".into()), "InvalidName", "starting with a letter"),
        (|c| c.metadata.name = None, "InvalidName", "metadata.name"),
        (|c| c.spec.pools[0].name = "a-b".into(), "InvalidName", "letters and digits"),
        (|c| c.spec.pools[0].zones[0].name = "..".into(), "InvalidName", "zones"),
        (|c| c.spec.pools[0].zones[1].name = "a".into(), "DuplicateName", "remove one"),
        (|c| c.spec.pools[0].zones[1].nodes = 0, "OutOfBounds", "1 to 64"),
        (|c| c.spec.pools[0].zones.clear(), "OutOfBounds", "1 to 16"),
        (|c| c.spec.pools[0].storage.size = "ten".into(), "InvalidAmount", "like 500Gi"),
        (|c| c.spec.pools[0].storage.size = "1Mi".into(), "DiskTooSmall", "at least 1Gi"),
        (|c| c.spec.pools.push(c.spec.pools[0].clone()), "OnePoolOnly", "into one pool"),
        (|c| c.spec.ports.http = c.spec.ports.grpc, "PortsEqual", "different ports"),
        (|c| c.spec.ports.http = 80, "OutOfBounds", "1024"),
        (|c| c.spec.encryption.key_secret_name = Some("../x".into()), "InvalidName", "keySecretName"),
    ];
    for (change, reason, words) in cases {
        let (found, message) = refused(change);
        assert_eq!(found, reason, "{message}");
        assert!(message.contains(words), "{message}");
    }
    let etcd = |change: fn(&mut cairn_crds::EtcdSpec)| {
        refused(|c| change(&mut c.spec.metadata.as_mut().expect("etcd is given").etcd)).0
    };
    assert_eq!(etcd(|etcd| etcd.endpoints = vec!["a".into(), "a:2379".into()]), "DuplicateName");
    assert_eq!(etcd(|etcd| etcd.endpoints = vec!["http://a".into()]), "InvalidEndpoint");
    assert_eq!(etcd(|etcd| etcd.endpoints.clear()), "EtcdMissing");
    for prefix in ["a//b", "/a", "a/", "..", "a?ca=/x", "ä"] {
        let mut seen = resource(|_| {});
        seen.spec.metadata.as_mut().expect("etcd is given").etcd.prefix = Some(prefix.to_owned());
        assert_eq!(cluster(&seen, Mode::Kubernetes).map_err(|r| r.reason()), Err("InvalidName"), "{prefix}");
    }
    let (reason, _) = refused(|c| {
        c.metadata.name = Some("d".repeat(32));
        c.spec.pools[0].zones[0].name = "z".repeat(15);
    });
    assert_eq!(reason, "InvalidName");
}

#[test]
fn endpoints_are_hosts_with_ports() {
    for (text, good) in [
        ("etcd", Some("etcd:2379")),
        ("10.0.0.1:1", Some("10.0.0.1:1")),
        ("[2001:db8::1]:2380", Some("[2001:db8::1]:2380")),
        ("::1", None),
        ("http://etcd:2379", None),
        ("etcd:2379/x", None),
        ("etcd:0", None),
        ("etcd:99999", None),
        ("", None),
        (":2379", None),
        ("[nonsense]:1", None),
        ("a,b", None),
    ] {
        assert_eq!(endpoint(text).ok().as_deref(), good, "{text}");
    }
}
