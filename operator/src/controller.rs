//! The loops: when to look at a resource, and what happens then. One reconcile is observe → (planner: validate → plan →
//! check) → apply → status. A resource that fails is looked at again later and later; others do not wait for it.

use std::{
    collections::HashMap,
    fmt::Debug,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use cairn_crds::{StorageCluster, Volume};
use cairn_planner::contract::label;
use futures::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        Controller,
        controller::{self, Action},
        reflector::ObjectRef,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{apply::ApplyError, events::Events, nodes::Clusters, writes::Counters};

mod cluster;
mod volume;

/// One look, from the first read to the last write.
const RECONCILE_LIMIT: Duration = Duration::from_secs(60);
/// Changes of one resource within this time cause one look.
const DEBOUNCE: Duration = Duration::from_millis(200);
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What every reconcile needs.
pub struct Shared {
    pub client: Client,
    /// Image of clusters that name none.
    pub image: String,
    pub clusters: Clusters,
    pub events: Events,
    pub counters: Arc<Counters>,
    /// Resources whose last looks failed, and how often in a row.
    failures: Mutex<HashMap<String, u32>>,
    /// Cancelled when this process leads no more: nothing is begun after that.
    stop: CancellationToken,
}

/// Why a look ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("Kubernetes: {0}")]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("the nodes: {0}")]
    Nodes(String),
    #[error("it took longer than {} s", RECONCILE_LIMIT.as_secs())]
    Slow,
    #[error("this operator leads no more")]
    NotLeading,
}

impl Shared {
    pub fn new(
        client: Client,
        image: String,
        counters: Arc<Counters>,
        identity: &str,
        stop: CancellationToken,
    ) -> Self {
        Self {
            events: Events::new(client.clone(), identity, counters.clone()),
            client,
            image,
            clusters: Clusters::default(),
            counters,
            failures: Mutex::default(),
            stop,
        }
    }

    /// Counts and bounds one look.
    async fn bounded<K: Resource<DynamicType = ()>>(
        &self,
        resource: &K,
        work: impl Future<Output = Result<Duration, ReconcileError>>,
    ) -> Result<Action, ReconcileError> {
        Counters::add(&self.counters.reconciles);
        let result = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(ReconcileError::NotLeading),
            result = tokio::time::timeout(RECONCILE_LIMIT, work) => result.unwrap_or(Err(ReconcileError::Slow)),
        };
        match result {
            Ok(again) => {
                self.failures.lock().expect("nobody panics while holding it").remove(&key(resource));
                Ok(Action::requeue(again))
            }
            Err(error) => {
                Counters::add(&self.counters.failures);
                self.events.failed(resource, &error).await;
                Err(error)
            }
        }
    }

    fn backoff<K: Resource<DynamicType = ()>>(&self, resource: &K, error: &ReconcileError) -> Action {
        let mut failures = self.failures.lock().expect("nobody panics while holding it");
        let count = failures.entry(key(resource)).or_insert(0);
        *count += 1;
        let wait = BACKOFF_FIRST.saturating_mul(1 << (*count - 1).min(10)).min(BACKOFF_MAX);
        let (kind, name) = (K::kind(&()), resource.name_any());
        tracing::warn!(%kind, name, %error, again_in_s = wait.as_secs(), "could not finish");
        Action::requeue(wait)
    }
}

fn key<K: Resource<DynamicType = ()>>(resource: &K) -> String {
    let (namespace, name) = (resource.namespace().unwrap_or_default(), resource.name_any());
    format!("{}/{namespace}/{name}", K::kind(&()))
}

/// In one namespace, or in all.
pub struct Scope(pub Option<String>);

impl Scope {
    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.0 {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }
}

/// Runs both controllers until the token of `shared` is cancelled, then lets looks that are under way end.
pub async fn run(shared: Arc<Shared>, scope: &Scope, concurrency: u16) {
    tokio::join!(clusters(shared.clone(), scope, concurrency), volumes(shared, scope, concurrency));
}

async fn clusters(shared: Arc<Shared>, scope: &Scope, concurrency: u16) {
    let client = shared.client.clone();
    let controller = Controller::new(scope.api::<StorageCluster>(&client), watcher::Config::default());
    // Everything of a cluster has its label, also what has no owner or another one.
    let controller = watch_labelled::<StatefulSet>(controller, scope, &client);
    let controller = watch_labelled::<Pod>(controller, scope, &client);
    let controller = watch_labelled::<Secret>(controller, scope, &client);
    let controller = watch_labelled::<ConfigMap>(controller, scope, &client);
    let controller = watch_labelled::<Service>(controller, scope, &client);
    let controller = watch_labelled::<ServiceAccount>(controller, scope, &client);
    let controller = watch_labelled::<NetworkPolicy>(controller, scope, &client);
    let controller = watch_labelled::<PodDisruptionBudget>(controller, scope, &client);
    let stop = shared.stop.clone();
    controller
        .with_config(controller::Config::default().concurrency(concurrency).debounce(DEBOUNCE))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            |cluster, shared: Arc<Shared>| async move {
                shared.bounded(&*cluster, cluster::reconcile(&cluster, &shared)).await
            },
            |cluster, error, shared| shared.backoff(&*cluster, error),
            shared,
        )
        .for_each(watched)
        .await;
}

async fn volumes(shared: Arc<Shared>, scope: &Scope, concurrency: u16) {
    let client = shared.client.clone();
    let controller = Controller::new(scope.api::<Volume>(&client), watcher::Config::default());
    let store = controller.store();
    let stop = shared.stop.clone();
    controller
        .watches(
            scope.api::<StorageCluster>(&client),
            watcher::Config::default(),
            move |cluster: StorageCluster| {
                let (name, namespace) = (cluster.name_any(), cluster.namespace());
                let refers =
                    |volume: &Volume| volume.spec.cluster_ref.name == name && volume.namespace() == namespace;
                let volumes = store.state().into_iter();
                volumes
                    .filter(|volume| refers(volume))
                    .map(|volume| ObjectRef::from_obj(&*volume))
                    .collect::<Vec<_>>()
            },
        )
        .with_config(controller::Config::default().concurrency(concurrency).debounce(DEBOUNCE))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            |volume, shared: Arc<Shared>| async move {
                shared.bounded(&*volume, volume::reconcile(&volume, &shared)).await
            },
            |volume, error, shared| shared.backoff(&*volume, error),
            shared,
        )
        .for_each(watched)
        .await;
}

/// Looks at the cluster again when one of its objects of kind `K` changes. Only metadata is sent: no bytes of Secrets.
fn watch_labelled<K>(
    controller: Controller<StorageCluster>,
    scope: &Scope,
    client: &Client,
) -> Controller<StorageCluster>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<PartialObjectMeta<K>> = match &scope.0 {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let config = watcher::Config::default().labels(label::CLUSTER);
    controller.watches(api, config, |object: PartialObjectMeta<K>| {
        let name = object.labels().get(label::CLUSTER).cloned();
        name.zip(object.namespace()).map(|(name, namespace)| ObjectRef::new(&name).within(&namespace))
    })
}

/// Errors of reconciles were logged where they arose; those of watches are logged here, and the watch goes on.
async fn watched<K, E>(result: Result<(ObjectRef<K>, Action), controller::Error<E, watcher::Error>>)
where
    K: Resource,
    E: std::error::Error + 'static,
{
    if let Err(controller::Error::QueueError(error)) = result {
        tracing::warn!(%error, "a watch broke off and is begun again");
    }
}
