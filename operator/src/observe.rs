//! Reads all of a cluster from Kubernetes, as plain data for the planner. Reads only.
//!
//! Objects are read anew at every look, not from caches of different ages: a plan must not mix times. Watches only say
//! when to look.

use std::{collections::BTreeMap, fmt::Debug};

use cairn_crds::StorageCluster;
use cairn_planner::{
    Observed,
    contract::{Names, label},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use crate::secrets;

/// A cluster as it is, and the Secrets whose bytes the planner must not see.
pub struct Look {
    pub observed: Observed,
    pub secrets: BTreeMap<String, Secret>,
}

/// Reads everything that belongs to a cluster, or has one of its names.
pub async fn look(client: &Client, cluster: &StorageCluster, default_image: &str) -> kube::Result<Look> {
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    let names = Names { cluster: &name, namespace: &namespace };
    let all = Reader {
        client,
        namespace: &namespace,
        params: ListParams::default().labels(&format!("{}={name}", label::CLUSTER)),
    };
    let mut observed = Observed::new(cluster.clone(), default_image);
    (
        observed.config_maps,
        observed.service_accounts,
        observed.services,
        observed.network_policies,
        observed.disruption_budgets,
        observed.stateful_sets,
        observed.pods,
        observed.volume_claims,
    ) = tokio::try_join!(
        all.read::<ConfigMap>(vec![names.record()]),
        all.read::<ServiceAccount>(vec![names.service_account()]),
        all.read::<Service>(vec![names.client_service(), names.peer_service()]),
        all.read::<NetworkPolicy>(vec![names.network_policy()]),
        all.read::<PodDisruptionBudget>(vec![names.disruption_budget()]),
        all.read::<StatefulSet>(set_names(cluster, &names)),
        all.read::<Pod>(Vec::new()),
        all.read::<PersistentVolumeClaim>(Vec::new()),
    )?;
    let secrets = all.secrets(cluster, &names).await?;
    observed.secrets = secrets.iter().map(|(name, secret)| (name.clone(), secrets::fact(secret))).collect();
    Ok(Look { observed, secrets })
}

/// As the spec names them, valid or not: bounded by the schema.
fn set_names(cluster: &StorageCluster, names: &Names<'_>) -> Vec<String> {
    let pools = &cluster.spec.pools;
    pools
        .iter()
        .flat_map(|pool| pool.zones.iter().map(|zone| names.stateful_set(&pool.name, &zone.name)))
        .collect()
}

struct Reader<'a> {
    client: &'a Client,
    namespace: &'a str,
    params: ListParams,
}

impl Reader<'_> {
    /// Those with the cluster's label, and of those without it the ones that have these names.
    async fn read<K>(&self, names: Vec<String>) -> kube::Result<Vec<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        let mut found = api.list(&self.params).await?.items;
        for name in names {
            let missing = !found.iter().any(|object| object.meta().name.as_ref() == Some(&name));
            if missing && let Some(object) = api.get_opt(&name).await? {
                found.push(object);
            }
        }
        Ok(found)
    }

    /// Each by its name: no right to list the Secrets of a namespace is needed for this.
    async fn secrets(
        &self,
        cluster: &StorageCluster,
        names: &Names<'_>,
    ) -> kube::Result<BTreeMap<String, Secret>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), self.namespace);
        let mut wanted = vec![
            names.authority_secret(),
            names.node_certificate_secret(),
            names.operator_certificate_secret(),
            names.generated_kek_secret(),
            names.tokens_secret(),
            names.client_secret(),
        ];
        wanted.extend(cluster.spec.encryption.key_secret_name.clone());
        wanted.extend(
            cluster.spec.metadata.as_ref().and_then(|metadata| metadata.etcd.tls_secret_name.clone()),
        );
        let reads = wanted.iter().map(|name| api.get_opt(name));
        let found = futures::future::try_join_all(reads).await?;
        Ok(wanted.into_iter().zip(found).filter_map(|(name, secret)| Some((name, secret?))).collect())
    }
}
