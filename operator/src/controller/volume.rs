//! One look at a Volume.

use std::time::Duration;

use cairn_client::Client;
use cairn_crds::{StorageCluster, Volume};
use cairn_planner::{
    Mode,
    contract::Names,
    volume::{Stored, VolumeAction, VolumeObserved, VolumeOutcome},
};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{Api, ResourceExt};

use super::{ReconcileError, Shared};
use crate::{apply::Applier, nodes};

/// After steps were done, the next look shows what came of them.
const AGAIN_AFTER_STEPS: Duration = Duration::from_secs(1);

/// Observe, plan, apply, status. Gives the time until the next look.
pub async fn reconcile(volume: &Volume, shared: &Shared) -> Result<Duration, ReconcileError> {
    let namespace = volume.namespace().unwrap_or_default();
    // needs Kubernetes
    let clusters: Api<StorageCluster> = Api::namespaced(shared.client.clone(), &namespace);
    let cluster = clusters.get_opt(&volume.spec.cluster_ref.name).await?;
    let client = match &cluster {
        Some(cluster) => client(cluster, shared, &namespace).await?,
        None => Err("it does not exist".to_owned()),
    };
    // needs the nodes
    let stored = match &client {
        Ok(client) => nodes::stored(client, &volume.name_any()).await,
        Err(problem) => Stored::Unknown(problem.clone()),
    };
    // pure
    let observed = VolumeObserved { mode: Mode::Kubernetes, volume: volume.clone(), cluster, stored };
    let outcome = cairn_planner::volume::reconcile(&observed, Timestamp::now());
    // needs both
    let applier = Applier { client: &shared.client, counters: &shared.counters, namespace: &namespace };
    let steps = execute(volume, &outcome, client.as_ref().ok(), &applier).await;
    let gone = outcome.steps.contains(&VolumeAction::RemoveFinalizer)
        && volume.metadata.deletion_timestamp.is_some();
    // Removing or adding a finalizer has changed the resource: its status is written at the next look.
    if outcome.status_changed && !gone {
        shared.events.volume_changed(volume, &outcome.status).await;
        applier.volume_status(volume, outcome.status).await?;
    }
    steps?;
    let planned = Duration::from_secs(u64::from(outcome.recheck_after_s));
    Ok(if outcome.steps.is_empty() { planned } else { planned.min(AGAIN_AFTER_STEPS) })
}

/// A client of the volume's cluster, if that has been set up far enough.
async fn client(
    cluster: &StorageCluster,
    shared: &Shared,
    namespace: &str,
) -> Result<Result<Client, String>, ReconcileError> {
    // Until a node is ready there is nobody to ask, and asking takes its time.
    let ready =
        cluster.status.as_ref().and_then(|status| status.nodes.as_ref()).map_or(0, |nodes| nodes.ready);
    if ready == 0 {
        return Ok(Err("none of its nodes is ready".to_owned()));
    }
    let name = cluster.name_any();
    let names = Names { cluster: &name, namespace };
    let secrets: Api<Secret> = Api::namespaced(shared.client.clone(), namespace);
    let certificate = secrets.get_opt(&names.operator_certificate_secret()).await?;
    Ok(shared.clusters.client(cluster, certificate.as_ref()))
}

async fn execute(
    volume: &Volume,
    outcome: &VolumeOutcome,
    client: Option<&Client>,
    applier: &Applier<'_>,
) -> Result<(), ReconcileError> {
    let failed = |error: cairn_client::Error| ReconcileError::Nodes(error.to_string());
    for step in &outcome.steps {
        match (step, client) {
            (VolumeAction::AddFinalizer, _) => applier.finalizer(volume, true).await?,
            (VolumeAction::RemoveFinalizer, _) => applier.finalizer(volume, false).await?,
            (VolumeAction::Create { name, copies, chunk_size_bytes }, Some(client)) => {
                let wanted = nodes::new_volume(name.clone(), *copies, *chunk_size_bytes);
                let (made, new) = client.create_volume(wanted).await.map_err(failed)?;
                tracing::info!(volume = made.name, new, "the volume exists");
            }
            (VolumeAction::Delete { name }, Some(client)) => {
                client.delete_volume(name, true).await.map_err(failed)?;
                tracing::info!(volume = name, "the volume is being emptied, as its deletionPolicy says");
            }
            (VolumeAction::Create { .. } | VolumeAction::Delete { .. }, None) => {}
        }
    }
    Ok(())
}
