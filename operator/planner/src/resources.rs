//! Renders a cluster's objects. A function of the held spec alone: nothing observed has a say in what should be.
//!
//! Whatever changes a pod template here would restart every storage pod of every cluster, so such a change is a new
//! renderer ([`crate::contract::RENDERER`] lists them), and a cluster keeps the one it was installed with;
//! `scenarios/first-install.objects.yaml` shows the newest.

use k8s_openapi::api::apps::v1::StatefulSet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::contract::{entry, env, label, pod};
use crate::object::{Object, mark};
use crate::record::Held;
use crate::validate::{MetadataStore, ValidCluster, ValidZone};

/// Every object of a cluster, in the order in which they are applied: the record first, what pods need before the pods.
pub fn render(held: &Held) -> Vec<Object> {
    let cluster = &held.cluster;
    let mut objects = vec![
        record(held),
        service_account(cluster),
        peer_service(cluster),
        client_service(cluster),
        network_policy(cluster),
        disruption_budget(cluster),
    ];
    for zone in &cluster.pool.zones {
        objects.push(Object::StatefulSet(Box::new(stateful_set(held, zone))));
    }
    objects.iter_mut().for_each(mark);
    objects
}

/// From JSON, which reads like the manifests it becomes. A wrong field name would vanish silently, so debug builds check
/// that nothing did.
fn typed<T: DeserializeOwned + Serialize>(value: Value) -> T {
    let object: T = serde_json::from_value(value.clone()).expect("the rendered object fits its type");
    debug_assert_eq!(serde_json::to_value(&object).ok(), Some(value), "a field is not known to Kubernetes");
    object
}

/// Labels of every object of a cluster.
fn labels(cluster: &ValidCluster) -> Value {
    json!({
        label::NAME: label::CAIRN,
        label::INSTANCE: cluster.name,
        label::MANAGED_BY: label::OPERATOR,
        label::CLUSTER: cluster.name,
    })
}

/// Labels that select the storage pods of the cluster.
fn pod_selector(cluster: &ValidCluster) -> Value {
    json!({ label::CLUSTER: cluster.name, label::COMPONENT: label::STORAGE })
}

fn merged(mut labels: Value, more: &Value) -> Value {
    if let (Some(into), Some(more)) = (labels.as_object_mut(), more.as_object()) {
        into.extend(more.clone());
    }
    labels
}

/// Metadata of an object that goes when the StorageCluster goes.
fn owned(cluster: &ValidCluster, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": cluster.namespace,
        "labels": labels(cluster),
        "ownerReferences": [{
            "apiVersion": cairn_crds::API_VERSION,
            "kind": "StorageCluster",
            "name": cluster.name,
            "uid": cluster.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

/// No owner: it stays with the disks and the key.
fn record(held: &Held) -> Object {
    let cluster = &held.cluster;
    Object::ConfigMap(typed(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": cluster.names().record(), "namespace": cluster.namespace, "labels": labels(cluster) },
        "data": { entry::RECORD: held.record.to_text() },
    })))
}

/// Storage pods ask nothing of the API server, so they get no token.
fn service_account(cluster: &ValidCluster) -> Object {
    Object::ServiceAccount(typed(json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": owned(cluster, &cluster.names().service_account()),
        "automountServiceAccountToken": false,
    })))
}

fn ports(cluster: &ValidCluster) -> Value {
    json!([
        { "name": pod::GRPC_PORT_NAME, "port": cluster.grpc_port, "targetPort": pod::GRPC_PORT_NAME, "protocol": "TCP" },
        { "name": pod::HTTP_PORT_NAME, "port": cluster.http_port, "targetPort": pod::HTTP_PORT_NAME, "protocol": "TCP" },
    ])
}

/// Gives every node a DNS name. Also those that are not ready: a node becomes ready by talking to its peers.
fn peer_service(cluster: &ValidCluster) -> Object {
    Object::Service(typed(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned(cluster, &cluster.names().peer_service()),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": pod_selector(cluster),
            "ports": ports(cluster),
        },
    })))
}

fn client_service(cluster: &ValidCluster) -> Object {
    Object::Service(typed(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned(cluster, &cluster.names().client_service()),
        "spec": { "type": "ClusterIP", "selector": pod_selector(cluster), "ports": ports(cluster) },
    })))
}

/// Nothing but the two ports, which demand certificates and tokens, can be reached.
fn network_policy(cluster: &ValidCluster) -> Object {
    Object::NetworkPolicy(typed(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owned(cluster, &cluster.names().network_policy()),
        "spec": {
            "podSelector": { "matchLabels": pod_selector(cluster) },
            "policyTypes": ["Ingress"],
            "ingress": [{ "ports": [
                { "port": pod::GRPC_PORT_NAME, "protocol": "TCP" },
                { "port": pod::HTTP_PORT_NAME, "protocol": "TCP" },
            ] }],
        },
    })))
}

/// One for the whole cluster: whoever drains machines takes one storage pod at a time.
fn disruption_budget(cluster: &ValidCluster) -> Object {
    Object::PodDisruptionBudget(typed(json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": owned(cluster, &cluster.names().disruption_budget()),
        "spec": { "maxUnavailable": 1, "selector": { "matchLabels": pod_selector(cluster) } },
    })))
}

/// `OnDelete`, so that the operator alone decides which pod restarts and when; `Parallel`, because nodes of a zone do not
/// wait for each other. Disks are kept whatever happens to the set.
fn stateful_set(held: &Held, zone: &ValidZone) -> StatefulSet {
    let cluster = &held.cluster;
    let pool = &cluster.pool;
    let names = cluster.names();
    let selector = merged(pod_selector(cluster), &json!({ label::POOL: pool.name, label::ZONE: zone.name }));
    let all_labels = merged(labels(cluster), &selector);
    let mut metadata = owned(cluster, &names.stateful_set(&pool.name, &zone.name));
    metadata["labels"] = all_labels.clone();
    let mut claim_spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": pool.disk.size.0 } },
    });
    if let Some(class) = &pool.disk.storage_class {
        claim_spec["storageClassName"] = json!(class);
    }
    typed(json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {
            "replicas": zone.nodes,
            "serviceName": names.peer_service(),
            "podManagementPolicy": "Parallel",
            "updateStrategy": { "type": "OnDelete" },
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
            "selector": { "matchLabels": selector },
            "template": {
                "metadata": { "labels": all_labels },
                "spec": pod_spec(held, zone, &selector),
            },
            "volumeClaimTemplates": [{
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": { "name": "data", "labels": labels(cluster) },
                "spec": claim_spec,
            }],
        },
    }))
}

fn pod_spec(held: &Held, zone: &ValidZone, selector: &Value) -> Value {
    let cluster = &held.cluster;
    json!({
        "serviceAccountName": cluster.names().service_account(),
        "automountServiceAccountToken": false,
        // A Service called `grpc` would otherwise put its own GRPC_PORT into the environment.
        "enableServiceLinks": false,
        "nodeSelector": { cluster.pool.zone_label.as_str(): zone.name },
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": selector },
        }],
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": pod::USER_ID,
            "runAsGroup": pod::USER_ID,
            "fsGroup": pod::USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(held, zone)],
        "volumes": volumes(cluster),
    })
}

fn container(held: &Held, zone: &ValidZone) -> Value {
    let cluster = &held.cluster;
    let probe = |path: &str, period_s: i32, failures: i32| {
        json!({
            "httpGet": { "path": path, "port": pod::HTTP_PORT_NAME, "scheme": "HTTPS" },
            "periodSeconds": period_s,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        })
    };
    json!({
        "name": pod::CONTAINER,
        "image": held.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [pod::COMMAND],
        "env": environment(held, zone),
        "ports": [
            { "name": pod::GRPC_PORT_NAME, "containerPort": cluster.grpc_port, "protocol": "TCP" },
            { "name": pod::HTTP_PORT_NAME, "containerPort": cluster.http_port, "protocol": "TCP" },
        ],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
        },
        // Recovery reads what was written last before it serves: up to ten minutes are allowed.
        "startupProbe": probe(pod::HEALTH_PATH, 2, 300),
        "livenessProbe": probe(pod::HEALTH_PATH, 10, 6),
        "readinessProbe": probe(pod::READY_PATH, 3, 2),
        "resources": resources(cluster),
        "volumeMounts": mounts(cluster),
    })
}

/// What the spec says; where it says nothing, requests that let a small cluster start anywhere, and no limits, because
/// running into one looks like a dead node.
fn resources(cluster: &ValidCluster) -> Value {
    let given = &cluster.pool.resources;
    if given.requests.is_none() && given.limits.is_none() {
        return json!({ "requests": { "cpu": "100m", "memory": "256Mi" } });
    }
    serde_json::to_value(given).expect("amounts are plain data")
}

fn environment(held: &Held, zone: &ValidZone) -> Value {
    let cluster = &held.cluster;
    let names = cluster.names();
    let file = |folder: &str, name: &str| format!("{folder}/{name}");
    let mut variables = vec![
        json!({ "name": env::NODE_NAME, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } }),
    ];
    let mut set = |name: &str, value: String| variables.push(json!({ "name": name, "value": value }));
    set(env::ZONE, zone.name.clone());
    set(env::CLUSTER_NAME, cluster.name.clone());
    set(env::ADVERTISE_HOST, names.node_host(&format!("$({})", env::NODE_NAME)));
    set(env::GRPC_PORT, cluster.grpc_port.to_string());
    set(env::HTTP_PORT, cluster.http_port.to_string());
    set(env::DATA_DIR, pod::DATA_DIR.to_owned());
    set(env::EXPECTED_NODES, cluster.node_count().to_string());
    set(env::TLS_CERT_FILE, file(pod::TLS_DIR, entry::CERTIFICATE));
    set(env::TLS_KEY_FILE, file(pod::TLS_DIR, entry::KEY));
    set(env::TLS_CA_FILE, file(pod::TLS_DIR, entry::CA_CERTIFICATE));
    set(env::KEK_FILE, file(pod::KEK_DIR, entry::KEK));
    set(env::CLIENT_TOKENS_FILE, file(pod::TOKENS_DIR, entry::TOKENS));
    if held.record.renderer >= 2 {
        set(env::CAPACITY, cluster.pool.disk.bytes.to_string());
    }
    if held.record.renderer >= 3 {
        set(env::NEW_DISK, true.to_string());
    }
    if let MetadataStore::Etcd { endpoints, prefix, tls_secret } = &cluster.metadata {
        let mut url = format!("etcd://{}/{prefix}", endpoints.join(","));
        if tls_secret.is_some() {
            let path = |name| file(pod::ETCD_TLS_DIR, name);
            let (ca, certificate) = (path(entry::CA_CERTIFICATE), path(entry::CERTIFICATE));
            url.push_str(&format!("?ca={ca}&cert={certificate}&key={}", path(entry::KEY)));
        }
        set(env::DATABASE_URL, url);
    }
    Value::Array(variables)
}

fn etcd_tls_secret(cluster: &ValidCluster) -> Option<&String> {
    match &cluster.metadata {
        MetadataStore::Etcd { tls_secret, .. } => tls_secret.as_ref(),
        MetadataStore::Embedded => None,
    }
}

fn mounts(cluster: &ValidCluster) -> Value {
    let mut mounts = vec![json!({ "name": "data", "mountPath": pod::DATA_DIR })];
    let mut folders = vec![("tls", pod::TLS_DIR), ("kek", pod::KEK_DIR), ("tokens", pod::TOKENS_DIR)];
    if etcd_tls_secret(cluster).is_some() {
        folders.push(("etcd-tls", pod::ETCD_TLS_DIR));
    }
    mounts.extend(
        folders.iter().map(|(name, path)| json!({ "name": name, "mountPath": path, "readOnly": true })),
    );
    Value::Array(mounts)
}

fn volumes(cluster: &ValidCluster) -> Value {
    let names = cluster.names();
    let mut secrets = vec![
        ("tls", names.node_certificate_secret()),
        ("kek", cluster.key_secret()),
        ("tokens", names.tokens_secret()),
    ];
    if let Some(secret) = etcd_tls_secret(cluster) {
        secrets.push(("etcd-tls", secret.clone()));
    }
    // Mode 0440: readable by the group that fsGroup sets, and by nobody else.
    let volume = |(name, secret): &(&str, String)| json!({ "name": name, "secret": { "secretName": secret, "defaultMode": 0o440 } });
    secrets.iter().map(volume).collect()
}
