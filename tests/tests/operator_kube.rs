//! `cairn-operator run` against a real API server with the real controllers, and no kubelets: pods are what the test says.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use cairn_crds::{Condition, StorageCluster, Volume};
use cairn_tests::{
    bed::{Bed, BedOptions, Tier},
    ports,
    process::{Process, Spec, run},
    programs,
    tools::{Need, require},
};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    coordination::v1::Lease,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NAMESPACE: &str = "default";
const LIMIT: Duration = Duration::from_secs(120);
/// What "at rest" is watched for: once for long, else briefly.
const LONG_REST: Duration = Duration::from_secs(20);
const SHORT_REST: Duration = Duration::from_secs(5);

fn cluster(zones: Value) -> String {
    json!({
        "apiVersion": "cairn.storage/v1alpha1", "kind": "StorageCluster", "metadata": { "name": "demo" },
        "spec": {
            "pools": [{ "name": "main", "zones": zones, "storage": { "size": "1Gi" } }],
            "metadata": { "etcd": { "endpoints": ["etcd-0.etcd:2379"] } },
        },
    })
    .to_string()
}

fn volume(name: &str, copies: i32) -> String {
    json!({
        "apiVersion": "cairn.storage/v1alpha1", "kind": "Volume", "metadata": { "name": name },
        "spec": { "clusterRef": { "name": "demo" }, "copies": copies },
    })
    .to_string()
}

fn three_zones() -> Value {
    json!([{ "name": "a", "nodes": 2 }, { "name": "b" }, { "name": "c" }])
}

/// An operator as a process.
struct Operator {
    process: Process,
    health: SocketAddr,
}

impl Operator {
    fn start(bed: &Bed, name: &str, more: &[&str]) -> Self {
        let health = ports::loopback(ports::free_one());
        let spec = Spec::new("cairn-operator", programs::built("cairn-operator"))
            .arg("run")
            .args(["--default-image", "registry.example/cairn:1", "--identity", name])
            .args(["--health-address", &health.to_string()])
            .args(more)
            .env("KUBECONFIG", bed.kubeconfig())
            .log(bed.folder().join(format!("{name}.log")));
        Self { process: spec.spawn().unwrap(), health }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.health).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in {text:?}:\n{}", self.process.log_tail(20)))
    }

    fn leads(&self) -> bool {
        self.get("/metrics").is_some_and(|text| text.contains("\ncairn_operator_leading 1"))
    }

    /// Writes of any kind, the Lease aside.
    fn writes(&self) -> [u64; 3] {
        ["cairn_operator_writes_total", "cairn_operator_status_writes_total", "cairn_operator_events_total"]
            .map(|name| self.metric(name))
    }

    fn stop(self) {
        let status = self.process.terminate(Duration::from_secs(30));
        assert_eq!(status.code(), Some(0), "{}", self.process.log_tail(30));
    }
}

async fn until(what: &str, operator: &Operator, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        if begun.elapsed() > LIMIT {
            panic!(
                "{what}: not within {} s; the operator's log:\n{}",
                LIMIT.as_secs(),
                operator.process.log_tail(40)
            );
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

fn install_definitions(bed: &Bed) {
    let printed = run(Spec::new("crd", programs::built("cairn-operator")).arg("crd"), None, LIMIT).unwrap();
    assert!(printed.success, "{}", printed.stderr);
    bed.apply(&printed.stdout).unwrap();
    let names = ["crd/storageclusters.cairn.storage", "crd/volumes.cairn.storage"];
    bed.kubectl(&["wait", "--for=condition=Established", names[0], names[1], "--timeout=60s"]).unwrap();
}

/// Everything in the namespace, by kind.
struct World {
    client: Client,
}

impl World {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        self.api::<K>().get_opt(name).await.unwrap()
    }

    async fn condition(&self, kind: &str) -> Option<Condition> {
        let cluster: StorageCluster = self.get("demo").await?;
        cluster.status?.conditions.into_iter().find(|condition| condition.type_ == kind)
    }

    /// `status/reason` of a condition of the cluster.
    async fn says(&self, kind: &str) -> String {
        let condition = self.condition(kind).await;
        condition.map_or_else(String::new, |condition| format!("{}/{}", condition.status, condition.reason))
    }

    async fn volume_says(&self, name: &str, kind: &str) -> String {
        let volume: Option<Volume> = self.get(name).await;
        let conditions =
            volume.and_then(|volume| volume.status).map(|status| status.conditions).unwrap_or_default();
        let condition = conditions.into_iter().find(|condition| condition.type_ == kind);
        condition.map_or_else(String::new, |condition| format!("{}/{}", condition.status, condition.reason))
    }

    async fn pods(&self) -> Vec<String> {
        let params = ListParams::default().labels("cairn.storage/cluster=demo");
        let mut names: Vec<_> =
            self.api::<Pod>().list(&params).await.unwrap().into_iter().map(|pod| pod.name_any()).collect();
        names.sort();
        names
    }

    /// What a kubelet would say of every pod.
    async fn kubelet_says(&self, status: Value) {
        for name in self.pods().await {
            let patch = Patch::Strategic(json!({ "status": status }));
            self.api::<Pod>().patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
        }
    }

    /// Versions of all that the operator writes.
    async fn versions(&self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        self.add_versions::<ConfigMap>(&mut versions).await;
        self.add_versions::<Secret>(&mut versions).await;
        self.add_versions::<Service>(&mut versions).await;
        self.add_versions::<NetworkPolicy>(&mut versions).await;
        self.add_versions::<StatefulSet>(&mut versions).await;
        self.add_versions::<PodDisruptionBudget>(&mut versions).await;
        self.add_versions::<StorageCluster>(&mut versions).await;
        self.add_versions::<Volume>(&mut versions).await;
        versions
    }

    async fn add_versions<K>(&self, versions: &mut BTreeMap<String, String>)
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        for object in self.api::<K>().list(&ListParams::default()).await.unwrap() {
            let key = format!("{}/{}", K::kind(&()), object.name_any());
            versions.insert(key, object.resource_version().unwrap_or_default());
        }
    }
}

/// Nothing is written while nothing happens.
async fn rests(world: &World, operator: &Operator, watched_for: Duration) {
    let mut versions = world.versions().await;
    let mut writes = operator.writes();
    // What is under way comes to its end first.
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let now = (world.versions().await, operator.writes());
        if now == (versions.clone(), writes) {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "it never rests:\n{}", operator.process.log_tail(40));
        (versions, writes) = now;
    }
    let (looks, leases) = (
        operator.metric("cairn_operator_reconciles_total"),
        operator.metric("cairn_operator_lease_writes_total"),
    );
    tokio::time::sleep(watched_for).await;
    assert_eq!(operator.writes(), writes, "writes at rest:\n{}", operator.process.log_tail(40));
    assert_eq!(world.versions().await, versions);
    assert!(operator.metric("cairn_operator_reconciles_total") > looks, "it looks all the same");
    assert!(operator.metric("cairn_operator_lease_writes_total") > leases);
}

fn ready_pod() -> Value {
    let now = "2026-01-01T00:00:00Z";
    json!({
        "phase": "Running",
        "conditions": [
            { "type": "Ready", "status": "True", "lastTransitionTime": now },
            { "type": "PodScheduled", "status": "True", "lastTransitionTime": now },
        ],
        "containerStatuses": [{
            "name": "node", "image": "x", "imageID": "x", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": now }, "waiting": null },
        }],
    })
}

fn pod_without_image() -> Value {
    json!({
        "phase": "Pending",
        "containerStatuses": [{
            "name": "node", "image": "registry.example/cairn:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such host" } },
        }],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_a_cluster() {
    let Ok(tools) = require(&[Need::KubeControl]) else { return };
    let bed = Bed::start(&tools, BedOptions::new(Tier::Control)).unwrap();
    install_definitions(&bed);
    let world = World { client: bed.client().await.unwrap() };
    let operator = Operator::start(&bed, "first", &[]);
    until("leading", &operator, async || operator.leads()).await;
    assert!(operator.get("/healthz").unwrap().contains("200 OK"));

    bed.apply(&cluster(three_zones())).unwrap();
    objects_appear(&world, &operator).await;
    pods_decide_the_conditions(&bed, &world, &operator).await;
    rests(&world, &operator, LONG_REST).await;
    volumes_are_judged(&bed, &world, &operator).await;
    refused_changes_change_nothing(&bed, &world, &operator).await;

    // Meddling is undone.
    world.api::<Service>().delete("demo-nodes", &DeleteParams::default()).await.unwrap();
    until("the Service again", &operator, async || world.get::<Service>("demo-nodes").await.is_some()).await;

    // A new operator finds everything as it should be.
    rests(&world, &operator, SHORT_REST).await;
    let versions = world.versions().await;
    operator.stop();
    let operator = Operator::start(&bed, "second", &[]);
    until("leading", &operator, async || {
        operator.leads() && operator.metric("cairn_operator_reconciles_total") >= 3
    })
    .await;
    rests(&world, &operator, SHORT_REST).await;
    assert_eq!(world.versions().await, versions, "a restart of the operator changes nothing");

    the_key_and_the_disks_outlive_the_cluster(&bed, &world, &operator).await;
    operator.stop();
    bed.down();
}

async fn objects_appear(world: &World, operator: &Operator) {
    for zone in ["a", "b", "c"] {
        let name = format!("demo-main-{zone}");
        until(&name, operator, async || world.get::<StatefulSet>(&name).await.is_some()).await;
    }
    let uid = world.get::<StorageCluster>("demo").await.unwrap().uid().unwrap();
    let owner = |object: Option<kube::core::ObjectMeta>, what: &str| {
        let metadata = object.unwrap_or_else(|| panic!("{what} does not exist"));
        metadata.owner_references.unwrap_or_default().first().map(|owner| owner.uid.clone())
    };
    let meta = |found: Option<Secret>| found.map(|secret| secret.metadata);
    for name in ["demo-ca", "demo-node-tls", "demo-operator-tls", "demo-tokens", "demo-client"] {
        assert_eq!(owner(meta(world.get(name).await), name), Some(uid.clone()), "{name}");
    }
    assert_eq!(owner(meta(world.get("demo-kek").await), "demo-kek"), None, "the key outlives the cluster");
    let record = world.get::<ConfigMap>("demo-installed").await.map(|map| map.metadata);
    assert_eq!(owner(record, "demo-installed"), None, "and so does the record");
    for name in ["demo", "demo-nodes"] {
        let service = world.get::<Service>(name).await.map(|service| service.metadata);
        assert_eq!(owner(service, name), Some(uid.clone()));
    }
    let budget = world.get::<PodDisruptionBudget>("demo-nodes").await.map(|budget| budget.metadata);
    assert_eq!(owner(budget, "demo-nodes"), Some(uid.clone()));
    let policy = world.get::<NetworkPolicy>("demo-nodes").await.map(|policy| policy.metadata);
    assert_eq!(owner(policy, "demo-nodes"), Some(uid.clone()));
    let set: StatefulSet = world.get("demo-main-a").await.unwrap();
    assert_eq!(set.spec.unwrap().replicas, Some(2));
    let names = ["demo-main-a-0", "demo-main-a-1", "demo-main-b-0", "demo-main-c-0"];
    until("four pods", operator, async || world.pods().await == names).await;
}

async fn pods_decide_the_conditions(bed: &Bed, world: &World, operator: &Operator) {
    until("a status", operator, async || world.says("Ready").await == "False/NodesNotReady").await;
    world.kubelet_says(pod_without_image()).await;
    until("ImageNotFound", operator, async || world.says("Stalled").await == "True/ImageNotFound").await;
    let condition = world.condition("Stalled").await.unwrap();
    assert!(
        condition.message.contains("registry.example/cairn:1") && condition.message.contains("no such host"),
        "{condition:?}"
    );
    until("an event", operator, async || {
        let query = ["get", "events", "--field-selector", "reason=ImageNotFound", "-o", "name"];
        !bed.kubectl(&query).unwrap().trim().is_empty()
    })
    .await;
    world.kubelet_says(ready_pod()).await;
    until("no stall", operator, async || world.says("Stalled").await == "False/NotStalled").await;
    // Nobody answers behind these pods.
    until("an honest answer", operator, async || world.says("Ready").await == "False/NodesNotReached").await;
    let status = world.get::<StorageCluster>("demo").await.unwrap().status.unwrap();
    assert_eq!(status.nodes.unwrap().summary, "4/4");
    assert_eq!(status.endpoint.as_deref(), Some("https://demo.default.svc:50051"));
    assert_eq!(status.client_secret_name.as_deref(), Some("demo-client"));
}

async fn volumes_are_judged(bed: &Bed, world: &World, operator: &Operator) {
    bed.apply(&format!("{}\n---\n{}", volume("files", 3), volume("wide", 4))).unwrap();
    until("a verdict", operator, async || {
        world.volume_says("wide", "Stalled").await == "True/FewerZonesThanCopies"
    })
    .await;
    until("patience", operator, async || {
        world.volume_says("files", "Ready").await == "False/ClusterNotReached"
    })
    .await;
    bed.kubectl(&["delete", "volume", "files", "wide", "--timeout=30s"]).unwrap();
}

async fn refused_changes_change_nothing(bed: &Bed, world: &World, operator: &Operator) {
    for (zones, reason) in [
        (json!([{ "name": "a", "nodes": 1 }, { "name": "b" }, { "name": "c" }]), "ShrinkingRefused"),
        (json!([{ "name": "a", "nodes": 2 }, { "name": "b" }]), "ShrinkingRefused"),
        (json!([{ "name": "a", "nodes": 3 }, { "name": "b" }, { "name": "c" }]), "PoolChangeRefused"),
    ] {
        bed.apply(&cluster(zones)).unwrap();
        until(reason, operator, async || {
            let cluster: StorageCluster = world.get("demo").await.unwrap();
            let seen = cluster.status.as_ref().and_then(|status| status.observed_generation);
            seen == cluster.metadata.generation && world.says("Stalled").await == format!("True/{reason}")
        })
        .await;
        let set: StatefulSet = world.get("demo-main-a").await.unwrap();
        assert_eq!(set.spec.unwrap().replicas, Some(2));
        assert!(world.get::<StatefulSet>("demo-main-c").await.is_some());
    }
    bed.apply(&cluster(three_zones())).unwrap();
    until("no stall", operator, async || world.says("Stalled").await == "False/NotStalled").await;
}

async fn the_key_and_the_disks_outlive_the_cluster(bed: &Bed, world: &World, operator: &Operator) {
    let key = world.get::<Secret>("demo-kek").await.unwrap().data;
    let claims = async || {
        let claims = world.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.unwrap();
        claims.into_iter().map(|claim| claim.name_any()).collect::<Vec<_>>()
    };
    let before = claims().await;
    assert_eq!(before.len(), 4, "{before:?}");
    bed.kubectl(&["delete", "storagecluster", "demo", "--timeout=60s"]).unwrap();
    for name in ["demo-main-a", "demo-main-b", "demo-main-c"] {
        until("sets to go", operator, async || world.get::<StatefulSet>(name).await.is_none()).await;
    }
    until("the CA to go", operator, async || world.get::<Secret>("demo-ca").await.is_none()).await;
    assert_eq!(claims().await, before);
    assert_eq!(world.get::<Secret>("demo-kek").await.unwrap().data, key);
    assert!(world.get::<ConfigMap>("demo-installed").await.is_some());
    // Created again, it must fit its old disks.
    bed.apply(&cluster(json!([{ "name": "a" }]))).unwrap();
    until("a refusal", operator, async || world.says("Stalled").await == "True/ShrinkingRefused").await;
    bed.apply(&cluster(three_zones())).unwrap();
    until("the sets again", operator, async || world.get::<StatefulSet>("demo-main-c").await.is_some()).await;
    assert_eq!(world.get::<Secret>("demo-kek").await.unwrap().data, key, "the same key for the same disks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_operators_leads() {
    let Ok(tools) = require(&[Need::KubeApi]) else { return };
    let bed = Bed::start(&tools, BedOptions::new(Tier::Api)).unwrap();
    install_definitions(&bed);
    let world = World { client: bed.client().await.unwrap() };
    let short = ["--lease-seconds", "5"];
    let first = Operator::start(&bed, "first", &short);
    until("a leader", &first, async || first.leads()).await;
    let second = Operator::start(&bed, "second", &short);
    until("a second one", &second, async || {
        second.get("/readyz").is_some_and(|answer| answer.contains("200 OK"))
    })
    .await;
    bed.apply(&cluster(three_zones())).unwrap();
    until("objects", &first, async || world.get::<StatefulSet>("demo-main-c").await.is_some()).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        assert!(first.leads() && !second.leads());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(second.metric("cairn_operator_reconciles_total"), 0, "it stands by");

    // Asked to end, the leader gives the Lease back, and the other one need not wait until it runs out.
    first.stop();
    let holder = async || world.get::<Lease>("cairn-operator").await.unwrap().spec.unwrap().holder_identity;
    until("the second one to lead", &second, async || second.leads()).await;
    assert!(holder().await.unwrap().starts_with("second-"));

    // Killed, it gives nothing back.
    let third = Operator::start(&bed, "third", &short);
    until("a third one", &third, async || {
        third.get("/readyz").is_some_and(|answer| answer.contains("200 OK"))
    })
    .await;
    second.process.kill();
    let killed = Instant::now();
    until("the third one to lead", &third, async || third.leads()).await;
    assert!(killed.elapsed() >= Duration::from_secs(2), "not before the Lease has run out");
    assert!(holder().await.unwrap().starts_with("third-"));

    // A leader that hangs finds out that it leads no more, and ends.
    let fourth = Operator::start(&bed, "fourth", &short);
    until("a fourth one", &fourth, async || {
        fourth.get("/readyz").is_some_and(|answer| answer.contains("200 OK"))
    })
    .await;
    third.process.pause();
    until("the fourth one to lead", &fourth, async || fourth.leads()).await;
    third.process.resume();
    until("the third one to end", &fourth, async || third.process.exited().is_some()).await;
    assert_eq!(third.process.exited().unwrap().code(), Some(1), "{}", third.process.log_tail(20));
    fourth.stop();
    bed.down();
}
