//! Manifests, chart and planned objects before a real Kubernetes API: what our own checks promise, its own confirm.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cairn_crds::{StorageCluster, Volume};
use cairn_planner::contract::{entry, label};
use cairn_planner::{Action, Object, Observed, SecretFact, SecretKind, reconcile};
use cairn_tests::bed::{Bed, BedOptions, Tier};
use cairn_tests::tools::{Need, require};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lives in the repository").to_path_buf()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn install_definitions(bed: &Bed) {
    for plural in ["storageclusters", "volumes"] {
        bed.apply(&text(&format!("crds/{plural}.yaml"))).unwrap();
        let name = format!("crd/{plural}.cairn.storage");
        bed.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &name]).unwrap();
    }
}

fn cluster(name: &str) -> Value {
    json!({
        "apiVersion": "cairn.storage/v1alpha1",
        "kind": "StorageCluster",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "pools": [{
                "name": "main",
                "zones": [{ "name": "a", "nodes": 2 }, { "name": "b" }, { "name": "c" }],
                "storage": { "size": "10240Mi", "storageClassName": "fast" },
                "resources": { "requests": { "cpu": "0.5", "memory": "1024Mi" }, "limits": { "memory": 2147483648_u64 } },
            }],
            "metadata": { "etcd": { "endpoints": ["etcd-0.etcd", "etcd-1.etcd:2379"], "tlsSecretName": "etcd-client" } },
        },
    })
}

fn volume(name: &str) -> Value {
    json!({
        "apiVersion": "cairn.storage/v1alpha1",
        "kind": "Volume",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterRef": { "name": "demo" } },
    })
}

fn with(mut resource: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
    let place = resource.pointer_mut(parent).expect("the parent exists");
    match place {
        Value::Array(items) => items[name.parse::<usize>().expect("an index")] = value,
        other => other[name] = value,
    }
    resource
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_holds_the_rules_of_the_schema() {
    let Ok(tools) = require(&[Need::KubeApi]) else { return };
    let bed = Bed::start(&tools, BedOptions::new(Tier::Api)).unwrap();
    install_definitions(&bed);
    bed.apply(&cluster("demo").to_string()).unwrap();
    bed.apply(&volume("files").to_string()).unwrap();

    let read: Value =
        serde_json::from_str(&bed.kubectl(&["get", "volume", "files", "-o", "json"]).unwrap()).unwrap();
    let spec = json!({ "clusterRef": { "name": "demo" }, "copies": 3, "chunkSizeMiB": 4, "deletionPolicy": "Retain" });
    assert_eq!(read["spec"], spec, "defaults are filled in");

    let zone = "/spec/pools/0/zones/1";
    let long = "z".repeat(15);
    let refused = [
        (with(cluster("x"), "/spec/pools/0/zonez", json!([])), "unknown field"),
        (with(cluster("x"), &format!("{zone}/name"), json!("a")), "Duplicate value"),
        (with(cluster("x"), &format!("{zone}/nodes"), json!(0)), "greater than or equal to 1"),
        (with(cluster("x"), "/spec/pools", json!([])), "at least 1 items"),
        (with(cluster("x"), "/spec/pools/0/storage/size", json!("10GB")), "should match"),
        (with(cluster("x"), "/spec/pools/0/name", json!("a-b")), "should match"),
        (with(cluster("x"), "/spec/ports", json!({ "grpc": 8080 })), "must be different ports"),
        (with(cluster("x"), "/spec/metadata/etcd/endpoints/0", json!("http://etcd:2379")), "without http://"),
        (cluster("1x"), "starting with a letter"),
        (with(cluster(&"x".repeat(32)), &format!("{zone}/name"), json!(long)), "together must be at most 50"),
        (with(volume("x"), "/spec/copies", json!(8)), "less than or equal to 7"),
        (with(volume("x"), "/spec/clusterRef", json!({})), "spec.clusterRef.name"),
        (volume("x.y"), "lowercase letters, digits and hyphens"),
        (with(volume("files"), "/spec/chunkSizeMiB", json!(8)), "chunkSizeMiB cannot be changed"),
        (with(volume("files"), "/spec/clusterRef/name", json!("other")), "clusterRef cannot be changed"),
        (with(cluster("demo"), "/spec/metadata/etcd/prefix", json!("new")), "prefix cannot be changed"),
    ];
    for (resource, words) in refused {
        let error = bed.apply(&resource.to_string()).expect_err(words).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let columns = bed.kubectl(&["get", "cairn"]).unwrap();
    for word in ["READY", "NODES", "SETTLED", "CAPACITY", "COPIES", "FILES", "demo", "files"] {
        assert!(columns.contains(word), "{columns}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn examples_and_chart_are_accepted_under_the_restricted_standard() {
    let Ok(tools) = require(&[Need::KubeControl]) else { return };
    let bed = Bed::start(&tools, BedOptions::new(Tier::Api)).unwrap();
    bed.kubectl(&["label", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted"]).unwrap();
    let chart = repository().join("charts/cairn");
    let chart = chart.to_str().unwrap();
    bed.helm(&["install", "cairn", chart, "--namespace", "default", "--set", "log.format=text"]).unwrap();
    bed.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd/storageclusters.cairn.storage",
    ])
    .unwrap();
    let error =
        bed.helm(&["upgrade", "cairn", chart, "--namespace", "default", "--set", "nope=1"]).unwrap_err();
    assert!(error.to_string().contains("nope"), "{error}");

    for example in ["laptop", "kubernetes/etcd", "kubernetes/cluster", "kubernetes/volume", "kubernetes/job"]
    {
        bed.apply(&text(&format!("docs/examples/{example}.yaml"))).unwrap();
    }
    // Only pods themselves are held to the standard, so each template is tried as one.
    let listed = bed.kubectl(&["get", "deployments,statefulsets,jobs", "-o", "json"]).unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let templates: Vec<Value> = listed["items"].as_array().unwrap().clone();
    assert_eq!(templates.len(), 3, "the operator, etcd and the job");
    for owner in templates {
        judge_pod(&bed, &owner["spec"]["template"]["spec"], owner["metadata"]["name"].as_str().unwrap());
    }
    bed.helm(&["uninstall", "cairn", "--namespace", "default"]).unwrap();
    assert!(
        bed.kubectl(&["get", "storagecluster", "demo"]).is_ok(),
        "uninstalling keeps definitions and clusters"
    );
}

/// Creates a pod of a template. Accepted is what counts: nothing here would run it.
fn judge_pod(bed: &Bed, spec: &Value, name: &str) {
    let mut spec = spec.clone();
    // ServiceAccounts come from a controller that does not run; the standard has no say in them.
    spec["automountServiceAccountToken"] = json!(false);
    for account in ["serviceAccountName", "serviceAccount"] {
        spec.as_object_mut().unwrap().remove(account);
    }
    // Claims of StatefulSets become volumes of pods.
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(json!({ "name": "data", "emptyDir": {} }));
    } else {
        spec["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    }
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    bed.apply(&account.to_string()).unwrap();
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("judged-{name}") }, "spec": spec });
    bed.apply(&pod.to_string()).unwrap_or_else(|error| panic!("{name} is not restricted enough: {error}"));
}

/// What the operator does, with a real API server: observe, plan, apply, and again, until nothing is left to do.
struct Hands {
    client: kube::Client,
    secrets: Vec<(String, SecretFact)>,
}

impl Hands {
    async fn observe(&self) -> Observed {
        let cluster: StorageCluster = self.api().get("demo").await.unwrap();
        let mut seen = Observed::new(cluster, "registry.example/cairn:1");
        seen.config_maps = self.all::<ConfigMap>().await;
        seen.service_accounts = self.all::<ServiceAccount>().await;
        seen.services = self.all::<Service>().await;
        seen.network_policies = self.all::<NetworkPolicy>().await;
        seen.disruption_budgets = self.all::<PodDisruptionBudget>().await;
        seen.stateful_sets = self.all::<StatefulSet>().await;
        seen.secrets = self.secrets.iter().cloned().collect();
        seen
    }

    fn api<K: kube::Resource<Scope = kube::core::NamespaceResourceScope>>(&self) -> Api<K>
    where
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn all<K>(&self) -> Vec<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope> + Clone + std::fmt::Debug,
        K: serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        self.api::<K>().list(&Default::default()).await.unwrap().items
    }

    async fn apply(&self, object: &Object) {
        let body = object.to_value();
        let (group, version) = body["apiVersion"].as_str().unwrap().rsplit_once('/').unwrap_or(("", "v1"));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object.kind()));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), "default", &resource);
        let parameters = PatchParams::apply(label::OPERATOR);
        api.patch(object.name(), &parameters, &Patch::Apply(&body)).await.unwrap();
    }

    fn write(&mut self, name: &str, kind: &SecretKind, now: Timestamp) {
        let entries: &[&str] = match kind {
            SecretKind::Authority => &[entry::CA_CERTIFICATE, entry::CA_KEY],
            SecretKind::NodeCertificate { .. } | SecretKind::OperatorCertificate => {
                &[entry::CERTIFICATE, entry::KEY, entry::CA_CERTIFICATE]
            }
            SecretKind::Key => &[entry::KEK],
            SecretKind::Client => &[entry::TOKEN, entry::CA_CERTIFICATE],
            SecretKind::Tokens => &[entry::TOKENS],
        };
        let fact = SecretFact {
            entries: entries.iter().map(|entry| (*entry).to_owned()).collect(),
            cluster_label: Some("demo".to_owned()),
            not_before: Some(now),
            not_after: Timestamp::from_second(now.as_second() + 90 * 86_400).ok(),
            dns_names: match kind {
                SecretKind::NodeCertificate { dns_names } => dns_names.clone(),
                _ => Vec::new(),
            },
            authority: Some("one".to_owned()),
            token_digests: BTreeSet::from(["digest".to_owned()]),
        };
        self.secrets.push((name.to_owned(), fact));
    }

    /// One reconcile; the steps that it took.
    async fn reconcile(&mut self) -> Vec<String> {
        let now = Timestamp::now();
        let outcome = reconcile(&self.observe().await, now);
        let mut done = Vec::new();
        for step in &outcome.plan.steps {
            match &step.action {
                Action::Apply(object) => {
                    self.apply(object).await;
                    done.push(format!("{} {}: {}", object.kind(), object.name(), step.why));
                }
                Action::WriteSecret(request) => {
                    self.write(&request.name, &request.kind, now);
                    done.push(format!("Secret {}: {}", request.name, step.why));
                }
                Action::RestartPod { name, .. } => panic!("{name} does not exist"),
            }
        }
        if outcome.status_changed {
            done.push("status".to_owned());
            let api = self.api::<StorageCluster>();
            let patch = json!({
                "apiVersion": cairn_crds::API_VERSION, "kind": "StorageCluster", "status": outcome.status,
            });
            let parameters = PatchParams::apply(label::OPERATOR).force();
            api.patch_status("demo", &parameters, &Patch::Apply(&patch)).await.unwrap();
        }
        done
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_objects_come_to_rest_on_a_real_api_server() {
    let Ok(tools) = require(&[Need::KubeApi]) else { return };
    let bed = Bed::start(&tools, BedOptions::new(Tier::Api)).unwrap();
    install_definitions(&bed);
    let client = bed.client().await.unwrap();
    let resource: StorageCluster = serde_json::from_value(cluster("demo")).unwrap();
    let clusters: Api<StorageCluster> = Api::namespaced(client.clone(), "default");
    clusters.create(&PostParams::default(), &resource).await.unwrap();
    let volumes: Api<Volume> = Api::namespaced(client.clone(), "default");
    volumes.create(&PostParams::default(), &serde_json::from_value(volume("files")).unwrap()).await.unwrap();

    let etcd = [entry::CA_CERTIFICATE, entry::CERTIFICATE, entry::KEY].map(str::to_owned);
    let etcd = SecretFact { entries: etcd.into(), ..SecretFact::default() };
    let mut hands = Hands { client, secrets: vec![("etcd-client".to_owned(), etcd)] };
    let first = hands.reconcile().await;
    assert_eq!(first.len(), 16, "six Secrets, nine objects and the status: {first:#?}");
    hands.reconcile().await;
    assert_eq!(hands.reconcile().await, Vec::<String>::new(), "at rest, nothing is written");

    let sets: Api<StatefulSet> = Api::namespaced(hands.client.clone(), "default");
    let template = sets.get("demo-main-a").await.unwrap().spec.unwrap().template.spec.unwrap();
    bed.kubectl(&["label", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted"]).unwrap();
    judge_pod(&bed, &serde_json::to_value(template).unwrap(), "storage");

    // Somebody else's changes: the fields that are ours are put back, the others are left.
    bed.kubectl(&["patch", "service", "demo", "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#]).unwrap();
    assert_eq!(hands.reconcile().await, Vec::<String>::new());
    let patch = json!({ "spec": { "maxUnavailable": 2 } });
    bed.kubectl(&["patch", "pdb", "demo-nodes", "--type=merge", "-p", &patch.to_string()]).unwrap();
    let now = Timestamp::now();
    let plan = reconcile(&hands.observe().await, now).plan;
    assert_eq!(plan.steps.len(), 1, "{plan:?}");
    assert!(plan.steps[0].why.to_string().contains("spec.maxUnavailable"), "{plan:?}");
}
