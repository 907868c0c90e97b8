//! A make-believe Kubernetes: just enough of its controllers, kubelets and API server to play a cluster's life.

use std::collections::{BTreeMap, BTreeSet};

use cairn_crds::StorageCluster;
use cairn_crds::manifest::{self, Manifest};
use cairn_planner::contract::{entry, label};
use cairn_planner::{
    Action, NodesReport, Object, Observed, Outcome, PlacementGroups, Readable, SecretFact, SecretKind, Step,
    reconcile,
};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

pub const PGS: i32 = 128;
const START_S: i64 = 1_800_000_000;
const CERTIFICATE_DAYS: i64 = 90;

/// How a pod of the world is.
#[derive(Clone, Debug, PartialEq)]
pub enum Life {
    Starting,
    Ready,
    /// Runs, not ready.
    Sick,
    /// Waits, with a reason and a message of the kubelet.
    Waiting(String, String),
    /// Pending, with the scheduler's message, since a second.
    Unplaced(String, i64),
    Terminating,
}

/// Everything outside the planner.
pub struct World {
    pub observed: Observed,
    pub now_s: i64,
    pub bad_images: BTreeSet<String>,
    pub lives: BTreeMap<String, Life>,
    /// What the nodes say; `None`: it follows from the pods.
    pub groups: Option<PlacementGroups>,
    pub silent: bool,
    pub metadata_problem: Option<String>,
    uids: u64,
    authority: u64,
    token: u64,
    map_published: bool,
}

impl World {
    pub fn new(text: &str) -> Self {
        let cluster = match manifest::parse(text).expect("the cluster of the story is readable").pop() {
            Some(Manifest::StorageCluster(cluster)) => *cluster,
            other => panic!("a story has one StorageCluster, not {other:?}"),
        };
        Self {
            observed: Observed::new(created(cluster), "registry.example/cairn:1"),
            now_s: START_S,
            bad_images: BTreeSet::new(),
            lives: BTreeMap::new(),
            groups: None,
            silent: false,
            metadata_problem: None,
            uids: 0,
            authority: 0,
            token: 0,
            map_published: false,
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_second(self.now_s).expect("a time of our days")
    }

    /// One look of the operator, which changes nothing.
    pub fn look(&mut self) -> Outcome {
        self.refresh();
        reconcile(&self.observed, self.now())
    }

    /// Executes an outcome as the operator does, then lets Kubernetes act once.
    pub fn execute(&mut self, outcome: &Outcome) {
        for step in &outcome.plan.steps {
            self.step(step);
        }
        if outcome.status_changed {
            self.observed.cluster.status = Some(outcome.status.clone());
        }
        self.controllers();
        self.now_s += 1;
    }

    /// Time passes: what starts becomes ready, what ends is gone.
    pub fn kubelets(&mut self) {
        let ended: Vec<String> = self.in_life(&Life::Terminating);
        for name in ended {
            self.remove_pod(&name);
        }
        for name in self.in_life(&Life::Starting) {
            self.lives.insert(name, Life::Ready);
        }
        self.controllers();
        self.now_s += 5;
        self.refresh();
    }

    pub fn edit(&mut self, pointer: &str, value: Value) {
        let mut cluster = serde_json::to_value(&self.observed.cluster).expect("a cluster is plain data");
        set(&mut cluster, pointer, value);
        let mut cluster: StorageCluster =
            serde_json::from_value(cluster).expect("the edited cluster is readable");
        if pointer.starts_with("/spec") {
            cluster.metadata.generation = cluster.metadata.generation.map(|generation| generation + 1);
        }
        self.observed.cluster = cluster;
    }

    /// The StorageCluster is deleted and made again: what it owned is collected, the rest stays.
    pub fn recreate(&mut self) {
        let owned = |object: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            object.owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
        };
        let seen = &mut self.observed;
        seen.config_maps.retain(|o| !owned(&o.metadata));
        seen.services.retain(|o| !owned(&o.metadata));
        seen.service_accounts.retain(|o| !owned(&o.metadata));
        seen.network_policies.retain(|o| !owned(&o.metadata));
        seen.disruption_budgets.retain(|o| !owned(&o.metadata));
        seen.stateful_sets.clear();
        seen.pods.clear();
        seen.secrets.retain(|name, _| name.ends_with("-kek"));
        self.lives.clear();
        self.uids += 1;
        let cluster = &mut self.observed.cluster;
        cluster.metadata.uid = Some(format!("cluster-uid-{}", self.uids));
        cluster.metadata.generation = Some(1);
        cluster.status = None;
    }

    pub fn delete(&mut self, kind: &str, name: &str) {
        let seen = &mut self.observed;
        let named = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            metadata.name.as_deref() == Some(name)
        };
        match kind {
            "Secret" => drop(seen.secrets.remove(name)),
            "ConfigMap" => seen.config_maps.retain(|o| !named(&o.metadata)),
            "Service" => seen.services.retain(|o| !named(&o.metadata)),
            "Pod" => self.remove_pod(name),
            "StatefulSet" => seen.stateful_sets.retain(|o| !named(&o.metadata)),
            other => panic!("nobody deletes a {other} here"),
        }
    }

    /// Somebody else changes or makes an object.
    pub fn meddle(&mut self, kind: &str, name: &str, pointer: &str, value: Value) {
        let metadata = json!({ "name": name, "namespace": "default" });
        match kind {
            "Service" => {
                let fresh = serde_json::from_value(json!({ "metadata": metadata })).expect("a Service");
                let at = index_or_push(&mut self.observed.services, fresh, |o| {
                    o.metadata.name.as_deref() == Some(name)
                });
                patch(&mut self.observed.services[at], pointer, value);
            }
            "StatefulSet" => {
                let at =
                    self.observed.stateful_sets.iter().position(|o| o.metadata.name.as_deref() == Some(name));
                patch(&mut self.observed.stateful_sets[at.expect("the set exists")], pointer, value);
            }
            other => panic!("nobody meddles with a {other} here"),
        }
    }

    fn in_life(&self, life: &Life) -> Vec<String> {
        self.lives.iter().filter(|(_, l)| *l == life).map(|(name, _)| name.clone()).collect()
    }

    fn remove_pod(&mut self, name: &str) {
        self.observed.pods.retain(|pod| pod.metadata.name.as_deref() != Some(name));
        self.lives.remove(name);
    }

    fn step(&mut self, step: &Step) {
        match &step.action {
            Action::WriteSecret(request) => {
                let fact = self.secret(&request.kind);
                self.observed.secrets.insert(request.name.clone(), fact);
            }
            Action::Apply(object) => self.apply(object),
            Action::RestartPod { name, .. } => drop(self.lives.insert(name.clone(), Life::Terminating)),
        }
    }

    fn secret(&mut self, kind: &SecretKind) -> SecretFact {
        let entries = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let at = |second| Timestamp::from_second(second).ok();
        let signed = [entry::CERTIFICATE, entry::KEY, entry::CA_CERTIFICATE];
        let mut fact = SecretFact {
            cluster_label: self.observed.cluster.metadata.name.clone(),
            not_before: at(self.now_s),
            not_after: at(self.now_s + CERTIFICATE_DAYS * 86_400),
            ..SecretFact::default()
        };
        match kind {
            SecretKind::Authority => {
                self.authority += 1;
                fact.entries = entries(&[entry::CA_CERTIFICATE, entry::CA_KEY]);
                fact.not_after = at(self.now_s + 3650 * 86_400);
            }
            SecretKind::NodeCertificate { dns_names } => {
                fact.entries = entries(&signed);
                fact.dns_names.clone_from(dns_names);
            }
            SecretKind::OperatorCertificate => fact.entries = entries(&signed),
            SecretKind::Key => fact.entries = entries(&[entry::KEK]),
            SecretKind::Client => {
                let kept = self.observed.secrets.iter().any(|(name, _)| name.ends_with("-client"));
                self.token += u64::from(!kept);
                fact.entries = entries(&[entry::TOKEN, entry::CA_CERTIFICATE]);
                fact.token_digests = BTreeSet::from([format!("digest-{}", self.token)]);
            }
            SecretKind::Tokens => {
                fact.entries = entries(&[entry::TOKENS]);
                fact.token_digests = BTreeSet::from([format!("digest-{}", self.token)]);
            }
        }
        fact.authority = Some(format!("authority-{}", self.authority));
        fact
    }

    fn apply(&mut self, object: &Object) {
        let seen = &mut self.observed;
        match object {
            Object::ConfigMap(o) => upsert(&mut seen.config_maps, o, |o| &o.metadata.name),
            Object::ServiceAccount(o) => upsert(&mut seen.service_accounts, o, |o| &o.metadata.name),
            Object::Service(o) => upsert(&mut seen.services, o, |o| &o.metadata.name),
            Object::NetworkPolicy(o) => upsert(&mut seen.network_policies, o, |o| &o.metadata.name),
            Object::PodDisruptionBudget(o) => upsert(&mut seen.disruption_budgets, o, |o| &o.metadata.name),
            Object::StatefulSet(o) => {
                let old = seen.stateful_sets.iter().find(|set| set.metadata.name == o.metadata.name).cloned();
                let mut new = (**o).clone();
                self.uids += 1;
                let (uid, generation, status) = match old {
                    Some(old) => (old.metadata.uid, old.metadata.generation.map(|g| g + 1), old.status),
                    None => (Some(format!("set-uid-{}", self.uids)), Some(1), None),
                };
                (new.metadata.uid, new.metadata.generation, new.status) = (uid, generation, status);
                upsert(&mut seen.stateful_sets, &new, |o| &o.metadata.name);
            }
        }
    }

    /// The StatefulSet controller: revisions, missing pods and their disks.
    fn controllers(&mut self) {
        let mut sets = std::mem::take(&mut self.observed.stateful_sets);
        for set in &mut sets {
            let revision = revision(set);
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            set.status = Some(StatefulSetStatus {
                replicas,
                observed_generation: set.metadata.generation,
                update_revision: Some(revision.clone()),
                ..StatefulSetStatus::default()
            });
            for ordinal in 0..replicas {
                let name = format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default());
                if !self.lives.contains_key(&name) {
                    self.create_pod(set, &name, &revision);
                }
            }
        }
        self.observed.stateful_sets = sets;
    }

    fn create_pod(&mut self, set: &StatefulSet, name: &str, revision: &str) {
        self.uids += 1;
        let template = &set.spec.as_ref().expect("a set has a spec").template;
        let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(label::REVISION.to_owned(), revision.to_owned());
        let image = template.spec.as_ref().and_then(|s| s.containers[0].image.clone()).unwrap_or_default();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "uid": format!("pod-uid-{}", self.uids),
                "labels": labels,
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "StatefulSet", "controller": true,
                    "name": set.metadata.name, "uid": set.metadata.uid,
                }],
            },
            "spec": { "containers": [{ "name": "node", "image": image }] },
        }))
        .expect("a pod");
        self.observed.pods.push(pod);
        let life = if self.bad_images.contains(&image) {
            Life::Waiting("ImagePullBackOff".into(), format!("Back-off pulling image \"{image}\""))
        } else {
            Life::Starting
        };
        self.lives.insert(name.to_owned(), life);
        let claim = format!("data-{name}");
        if !self.observed.volume_claims.iter().any(|c| c.metadata.name.as_ref() == Some(&claim)) {
            let claim: PersistentVolumeClaim =
                serde_json::from_value(json!({ "metadata": { "name": claim } })).expect("a claim");
            self.observed.volume_claims.push(claim);
        }
    }

    /// Pods' statuses and the nodes' report, from how the pods live.
    fn refresh(&mut self) {
        for pod in &mut self.observed.pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let life = self.lives.get(&name).unwrap_or(&Life::Starting);
            let image =
                pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
            let status = pod_status(life, &image);
            pod.status = serde_json::from_value(status).expect("a pod's status");
            let ending = *life == Life::Terminating;
            let stamp = Timestamp::from_second(START_S).expect("a time");
            pod.metadata.deletion_timestamp =
                ending.then_some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(stamp));
        }
        let live: BTreeSet<String> = self.in_life(&Life::Ready).into_iter().collect();
        let all = !self.lives.is_empty() && live.len() == self.lives.len();
        self.map_published |= all;
        self.observed.report = (!self.silent && !live.is_empty()).then(|| NodesReport {
            readable: Readable::All,
            lost_files: 0,
            lost: Vec::new(),
            metadata_restored: false,
            capacity_bytes: 10 * (1 << 30) * live.len() as i64,
            used_bytes: 0,
            placement_groups: self.groups.unwrap_or_else(|| groups(self.map_published, all)),
            metadata_problem: self.metadata_problem.clone(),
            live,
        });
    }
}

fn groups(published: bool, all: bool) -> PlacementGroups {
    match (published, all) {
        (false, _) => PlacementGroups::default(),
        (true, true) => PlacementGroups { total: PGS, settled: PGS, degraded: 0, unavailable: 0 },
        (true, false) => PlacementGroups { total: PGS, settled: 32, degraded: PGS - 32, unavailable: 0 },
    }
}

fn pod_status(life: &Life, image: &str) -> Value {
    let container = |state: Value| json!([{ "name": "node", "image": image, "imageID": "", "ready": *life == Life::Ready, "restartCount": 5, "state": state }]);
    let ready = json!([{ "type": "Ready", "status": if *life == Life::Ready { "True" } else { "False" } }]);
    match life {
        Life::Starting => json!({ "conditions": ready }),
        Life::Ready | Life::Sick | Life::Terminating => {
            json!({ "conditions": ready, "containerStatuses": container(json!({ "running": {} })) })
        }
        Life::Waiting(reason, message) => json!({
            "conditions": ready,
            "containerStatuses": container(json!({ "waiting": { "reason": reason, "message": message } })),
        }),
        Life::Unplaced(message, since_s) => json!({ "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": Timestamp::from_second(*since_s).expect("a time").to_string(),
        }] }),
    }
}

/// As an API server would have stored it.
fn created(mut cluster: StorageCluster) -> StorageCluster {
    cluster.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    cluster.metadata.uid = Some("cluster-uid".to_owned());
    cluster.metadata.generation = Some(1);
    cluster
}

fn revision(set: &StatefulSet) -> String {
    let template = serde_json::to_string(&set.spec.as_ref().map(|spec| &spec.template)).expect("plain data");
    let sum = template.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    format!("{sum:x}")
}

fn upsert<T: Clone>(objects: &mut Vec<T>, new: &T, name: impl Fn(&T) -> &Option<String>) {
    match objects.iter().position(|object| name(object) == name(new)) {
        Some(index) => objects[index] = new.clone(),
        None => objects.push(new.clone()),
    }
}

fn index_or_push<T>(objects: &mut Vec<T>, fresh: T, is: impl Fn(&T) -> bool) -> usize {
    objects.iter().position(is).unwrap_or_else(|| {
        objects.push(fresh);
        objects.len() - 1
    })
}

fn patch<T: serde::Serialize + serde::de::DeserializeOwned>(object: &mut T, pointer: &str, value: Value) {
    let mut whole = serde_json::to_value(&*object).expect("plain data");
    set(&mut whole, pointer, value);
    *object = serde_json::from_value(whole).expect("the changed object is readable");
}

/// Sets (or, with null, removes) what a JSON pointer names; missing parents are made.
fn set(whole: &mut Value, pointer: &str, value: Value) {
    let mut place = whole;
    let names: Vec<&str> = pointer.trim_start_matches('/').split('/').collect();
    let (last, parents) = names.split_last().expect("a pointer names something");
    for name in parents {
        place = match place {
            Value::Array(items) => &mut items[name.parse::<usize>().expect("an index")],
            other => &mut other[name.replace("~1", "/")],
        };
    }
    match (place, value) {
        (Value::Array(items), Value::Null) => drop(items.remove(last.parse().expect("an index"))),
        (Value::Array(items), value) if *last == "-" => items.push(value),
        (Value::Array(items), value) => items[last.parse::<usize>().expect("an index")] = value,
        (Value::Object(fields), Value::Null) => drop(fields.remove(*last)),
        (other, value) => other[last.replace("~1", "/")] = value,
    }
}
