//! The harness itself: a real etcd, a real Kubernetes API, real kubelets. Everything else builds on these.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cairn_tests::bed::{Bed, BedOptions, Tier};
use cairn_tests::etcd::{EtcdCluster, EtcdOptions};
use cairn_tests::tools::{Need, require};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use serde_json::json;

async fn put_and_get(endpoints: &[String], options: Option<etcd_client::ConnectOptions>, key: &str) {
    let mut client = etcd_client::Client::connect(endpoints, options).await.unwrap();
    client.put(key, "value", None).await.unwrap();
    let got = client.get(key, None).await.unwrap();
    assert_eq!(got.kvs()[0].value_str().unwrap(), "value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_cluster_survives_one_member() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).unwrap();
    put_and_get(&etcd.endpoints(), None, "three").await;

    etcd.kill(0);
    // A write that was on its way to a dead leader fails after seven seconds: it is for the client to ask again.
    let two = &etcd.endpoints()[1..];
    wait_for("a write with two of three members", async || {
        let mut client = etcd_client::Client::connect(two, None).await.unwrap();
        client.put("two", "value", None).await.is_ok()
    })
    .await;

    etcd.pause(1);
    assert!(!etcd.is_healthy(2), "one of three members has no quorum");
    etcd.resume(1);
    etcd.wait_healthy(2).unwrap();

    etcd.restart(0).unwrap();
    put_and_get(&etcd.endpoints()[..1], None, "again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_speaks_tls_when_asked() {
    use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let options = EtcdOptions { members: 1, tls: true, ..EtcdOptions::default() };
    let etcd = EtcdCluster::start_with(&tools, options).unwrap();
    let tls = etcd.tls().unwrap();
    let options = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(&tls.authority_pem))
        .identity(Identity::from_pem(&tls.client.certificate_pem, &tls.client.key_pem));
    put_and_get(&etcd.endpoints(), Some(ConnectOptions::new().with_tls(options)), "sealed").await;
}

fn map_of(namespace: &str, name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace }, "data": { "key": value },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_tier_serves() {
    let Ok(tools) = require(&[Need::KubeApi]) else { return };
    let bed = Bed::start(&tools, BedOptions::new(Tier::Api)).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(bed.client().await.unwrap(), "default");
    maps.create(&Default::default(), &map_of("default", "made", "here")).await.unwrap();
    let read = bed.kubectl(&["get", "configmap", "made", "-o", "jsonpath={.data.key}"]).unwrap();
    assert_eq!(read, "here");
    let error = bed.kubectl(&["get", "configmap", "absent"]).unwrap_err();
    assert!(error.to_string().contains("NotFound"), "{error}");
    let folder = bed.folder().to_path_buf();
    bed.down();
    assert!(!folder.exists(), "a bed leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_tier_makes_pods_of_a_stateful_set() {
    let Ok(tools) = require(&[Need::KubeControl]) else { return };
    let bed = Bed::start(&tools, BedOptions::new(Tier::Control)).unwrap();
    bed.apply(&pause_set(2).to_string()).unwrap();
    let pods: Api<Pod> = Api::namespaced(bed.client().await.unwrap(), "default");
    wait_for("the first pod", async || pods.get_opt("pause-0").await.unwrap().is_some()).await;
}

/// Pods that do nothing, one in each zone, each with a local volume and a name.
fn pause_set(replicas: usize) -> serde_json::Value {
    let labels = json!({ "app": "pause" });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": "pause" },
          "spec": { "clusterIP": "None", "selector": labels, "ports": [{ "port": 1 }] } },
        { "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "pause" }, "spec": {
            "replicas": replicas, "serviceName": "pause", "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": {
                "terminationGracePeriodSeconds": 1,
                "securityContext": { "runAsNonRoot": true },
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": labels },
                }],
                "containers": [{ "name": "pause", "image": "localhost/pause:1", "imagePullPolicy": "Never",
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }],
            }},
            "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
                "resources": { "requests": { "storage": "1Gi" } },
            }}],
        }},
    ]})
}

async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(120), asking).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within two minutes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_kubelets_run_pods() {
    let Ok(tools) = require(&[Need::Kubelets]) else { return };
    let start = Instant::now();
    let bed = Bed::start(&tools, BedOptions::new(Tier::Kubelets(3))).unwrap();
    println!("three kubelets ready after {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(bed.node_names(), ["n1", "n2", "n3"]);

    bed.local_volumes(1, "1Gi").unwrap();
    bed.apply(&pause_set(3).to_string()).unwrap();
    let sets: Api<StatefulSet> = Api::namespaced(bed.client().await.unwrap(), "default");
    let ready = async || {
        let set = sets.get("pause").await.unwrap();
        set.status.and_then(|s| s.ready_replicas).unwrap_or(0)
    };
    wait_for("three ready pods", async || ready().await == 3).await;
    println!("three pods ready after {:.1} s", start.elapsed().as_secs_f64());
    let nodes = bed.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"]).unwrap();
    let nodes: BTreeSet<&str> = nodes.split(' ').collect();
    assert_eq!(nodes.len(), 3, "one pod in each zone: {nodes:?}");
    // The name service hears of a pod's address after the pod is ready, from the API server.
    wait_for("a pod's name", async || name_resolves(&bed)).await;
    services_answer(&bed);

    bed.kill_node(2).unwrap();
    bed.wait_node(2, false).unwrap();
    println!("a killed node is seen after {:.1} s", start.elapsed().as_secs_f64());
    wait_for("two ready pods", async || ready().await == 2).await;

    bed.start_node(2).unwrap();
    bed.wait_node(2, true).unwrap();
    wait_for("three ready pods again", async || ready().await == 3).await;
    println!("all is well again after {:.1} s", start.elapsed().as_secs_f64());
    bed.down();
    println!("and gone after {:.1} s", start.elapsed().as_secs_f64());
}

/// The API server's own service, as pods reach it: through a node's kube-proxy.
fn services_answer(bed: &Bed) {
    let local = bed.forward("10.96.0.1".parse().unwrap(), 443).unwrap();
    let mut stream = TcpStream::connect(local).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP request to an HTTPS server"), "{answer}");
}

/// The answer's code when there is no such name.
const NO_SUCH_NAME: u8 = 3;

/// Asks the cluster's name service for a pod's name, over TCP and from outside; `false` while it knows none.
fn name_resolves(bed: &Bed) -> bool {
    let local = bed.forward("10.201.0.1".parse().unwrap(), 53).unwrap();
    let mut question = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in "pause-0.pause.default.svc.cluster.local".split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let mut stream = TcpStream::connect(local).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&(question.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&question).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    match answer[3] & 15 {
        NO_SUCH_NAME => return false,
        code => assert_eq!(code, 0, "no error: {answer:?}"),
    }
    assert_eq!(&answer[answer.len() - 4..][..2], [10, 244], "ends in a pod's address: {answer:?}");
    true
}
