//! Executes plans: the only place that changes anything in Kubernetes, the Lease aside.
//!
//! Nothing here deletes a disk, a key, or anything else but a pod whose uid is the one that the planner saw.

use std::{collections::BTreeMap, sync::Arc};

use cairn_crds::{StorageCluster, StorageClusterStatus, Volume, VolumeStatus};
use cairn_planner::{
    Action, Object, Plan, SecretKind, SecretRequest, Step,
    contract::{Names, VOLUME_FINALIZER, label},
};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams, Preconditions,
    },
};
use serde_json::json;

use crate::{
    secrets::{self, SecretError, Sources},
    writes::Counters,
};

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{what}: {error}")]
    Kube { what: String, error: kube::Error },
    #[error("Secret {name}: {error}")]
    Secret { name: String, error: SecretError },
}

/// Changes things for one resource.
pub struct Applier<'a> {
    pub client: &'a Client,
    pub counters: &'a Arc<Counters>,
    pub namespace: &'a str,
}

impl Applier<'_> {
    fn kube(what: impl ToString) -> impl FnOnce(kube::Error) -> ApplyError {
        let what = what.to_string();
        move |error| ApplyError::Kube { what, error }
    }

    /// Executes the steps in order, up to the first that fails.
    pub async fn execute(&self, cluster: &StorageCluster, plan: &Plan) -> Result<(), ApplyError> {
        for Step { action, why } in &plan.steps {
            match action {
                Action::Apply(object) => {
                    tracing::info!(kind = object.kind(), name = object.name(), %why, "applying");
                    self.apply(object).await?;
                }
                Action::WriteSecret(request) => {
                    tracing::info!(name = request.name, kind = ?request.kind, %why, "writing a Secret");
                    self.write_secret(cluster, request).await?;
                }
                Action::RestartPod { name, uid, zone } => {
                    tracing::info!(name, zone, %why, "restarting a pod");
                    self.restart(name, uid).await?;
                }
            }
        }
        Ok(())
    }

    async fn apply(&self, object: &Object) -> Result<(), ApplyError> {
        let resource = match object {
            Object::ConfigMap(_) => ApiResource::erase::<ConfigMap>(&()),
            Object::ServiceAccount(_) => ApiResource::erase::<ServiceAccount>(&()),
            Object::Service(_) => ApiResource::erase::<Service>(&()),
            Object::NetworkPolicy(_) => ApiResource::erase::<NetworkPolicy>(&()),
            Object::PodDisruptionBudget(_) => ApiResource::erase::<PodDisruptionBudget>(&()),
            Object::StatefulSet(_) => ApiResource::erase::<StatefulSet>(&()),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), self.namespace, &resource);
        // Ours are the fields that we render: the planner has made sure that the object is the cluster's.
        let params = PatchParams::apply(label::OPERATOR).force();
        let what = format!("{} {}", object.kind(), object.name());
        api.patch(object.name(), &params, &Patch::Apply(object.to_value()))
            .await
            .map_err(Self::kube(what))?;
        Counters::add(&self.counters.writes);
        Ok(())
    }

    /// With the uid that the planner saw: a pod that was made again meanwhile is left alone.
    async fn restart(&self, name: &str, uid: &str) -> Result<(), ApplyError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), self.namespace);
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match pods.delete(name, &params).await {
            Ok(_) => Counters::add(&self.counters.writes),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(Self::kube(format!("pod {name}"))(error)),
        }
        Ok(())
    }

    /// Made from what the other Secrets hold now, and written only over what was read.
    async fn write_secret(
        &self,
        cluster: &StorageCluster,
        request: &SecretRequest,
    ) -> Result<(), ApplyError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), self.namespace);
        let names = cluster.name_any();
        let names = Names { cluster: &names, namespace: self.namespace };
        let read = async |name: &str| api.get_opt(name).await.map_err(Self::kube(format!("Secret {name}")));
        let sources = Sources {
            authority: match request.kind {
                SecretKind::Authority | SecretKind::Key | SecretKind::Tokens => None,
                _ => read(&names.authority_secret()).await?,
            },
            client: match request.kind {
                SecretKind::Tokens => read(&names.client_secret()).await?,
                _ => None,
            },
            present: read(&request.name).await?,
        };
        if request.kind == SecretKind::Key && sources.present.is_some() {
            return Ok(());
        }
        let entries = secrets::make(&request.kind, names.cluster, &sources, Timestamp::now())
            .map_err(|error| ApplyError::Secret { name: request.name.clone(), error })?;
        let what = format!("Secret {}", request.name);
        match sources.present {
            None => {
                let fresh = Secret {
                    metadata: self.secret_metadata(cluster, request),
                    data: Some(entries),
                    type_: Some("Opaque".to_owned()),
                    ..Secret::default()
                };
                match api.create(&PostParams::default(), &fresh).await {
                    // The planner looks at it first.
                    Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
                    other => other.map_err(Self::kube(what))?,
                }
            }
            Some(mut present) => {
                present.data.get_or_insert_default().extend(entries);
                api.replace(&request.name, &PostParams::default(), &present)
                    .await
                    .map_err(Self::kube(what))?
            }
        };
        Counters::add(&self.counters.writes);
        Ok(())
    }

    fn secret_metadata(&self, cluster: &StorageCluster, request: &SecretRequest) -> ObjectMeta {
        let name = cluster.name_any();
        let labels = [
            (label::NAME, label::CAIRN),
            (label::INSTANCE, name.as_str()),
            (label::MANAGED_BY, label::OPERATOR),
            (label::CLUSTER, name.as_str()),
        ];
        let owner = OwnerReference {
            api_version: cairn_crds::API_VERSION.to_owned(),
            kind: "StorageCluster".to_owned(),
            name: name.clone(),
            uid: cluster.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        ObjectMeta {
            name: Some(request.name.clone()),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(
                labels
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
            ),
            owner_references: request.owned.then(|| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// Over the very version that was looked at: a newer one is looked at again first.
    pub async fn cluster_status(
        &self,
        cluster: &StorageCluster,
        status: StorageClusterStatus,
    ) -> Result<(), ApplyError> {
        let api: Api<StorageCluster> = Api::namespaced(self.client.clone(), self.namespace);
        let changed = StorageCluster { status: Some(status), ..cluster.clone() };
        self.status(&api, &changed).await
    }

    pub async fn volume_status(&self, volume: &Volume, status: VolumeStatus) -> Result<(), ApplyError> {
        let api: Api<Volume> = Api::namespaced(self.client.clone(), self.namespace);
        let changed = Volume { status: Some(status), ..volume.clone() };
        self.status(&api, &changed).await
    }

    async fn status<K>(&self, api: &Api<K>, changed: &K) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = ()> + serde::Serialize + serde::de::DeserializeOwned,
    {
        let name = changed.name_any();
        match api.replace_status(&name, &PostParams::default(), changed).await {
            Ok(_) => Counters::add(&self.counters.status_writes),
            // Changed or gone meanwhile: the watch brings it back, or not.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
            Err(error) => return Err(Self::kube(format!("status of {} {name}", K::kind(&())))(error)),
        }
        Ok(())
    }

    /// Adds or removes our finalizer, over the version that was looked at.
    pub async fn finalizer(&self, volume: &Volume, wanted: bool) -> Result<(), ApplyError> {
        let api: Api<Volume> = Api::namespaced(self.client.clone(), self.namespace);
        let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != VOLUME_FINALIZER);
        if wanted {
            finalizers.push(VOLUME_FINALIZER.to_owned());
        }
        let patch = json!({
            "metadata": { "finalizers": finalizers, "resourceVersion": volume.resource_version() },
        });
        let (name, params) = (
            volume.name_any(),
            PatchParams { field_manager: Some(label::OPERATOR.to_owned()), ..PatchParams::default() },
        );
        api.patch(&name, &params, &Patch::Merge(patch))
            .await
            .map_err(Self::kube(format!("Volume {name}")))?;
        Counters::add(&self.counters.writes);
        Ok(())
    }
}
