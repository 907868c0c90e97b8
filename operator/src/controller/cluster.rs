//! One look at a StorageCluster.

use std::time::Duration;

use cairn_crds::StorageCluster;
use cairn_planner::Plan;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::{ReconcileError, Shared};
use crate::{apply::Applier, nodes, observe};

/// After steps were done, what they caused is looked at soon; watches usually come first.
const AGAIN_AFTER_STEPS: Duration = Duration::from_secs(2);

/// Observe, plan, apply, status. Gives the time until the next look.
pub async fn reconcile(cluster: &StorageCluster, shared: &Shared) -> Result<Duration, ReconcileError> {
    let namespace = cluster.namespace().unwrap_or_default();
    // needs Kubernetes
    let mut look = observe::look(&shared.client, cluster, &shared.image).await?;
    // needs the nodes
    let nodes_client = shared.clusters.client(cluster, nodes::certificate(cluster, &look.secrets));
    let reachable = nodes::any_runs(&look.observed.pods);
    if let (Ok(client), true) = (&nodes_client, reachable) {
        match nodes::report(client).await {
            Ok(report) => look.observed.report = Some(report),
            Err(problem) => {
                tracing::debug!(cluster = cluster.name_any(), problem, "the nodes could not be asked")
            }
        }
    }
    // pure
    let outcome = cairn_planner::reconcile(&look.observed, Timestamp::now());
    // needs Kubernetes
    let applier = Applier { client: &shared.client, counters: &shared.counters, namespace: &namespace };
    let applied = applier.execute(cluster, &outcome.plan).await;
    if outcome.status_changed {
        shared.events.cluster_changed(cluster, &outcome.status).await;
        applier.cluster_status(cluster, outcome.status).await?;
    }
    applied?;
    if cluster.metadata.deletion_timestamp.is_some() {
        shared.clusters.forget(&cluster.uid().unwrap_or_default());
    }
    // needs the nodes
    if let (Ok(client), true, Some(intent)) = (&nodes_client, look.observed.report.is_some(), &outcome.intent)
    {
        let told = shared.clusters.tell(cluster, client, intent).await;
        told.map_err(|problem| {
            ReconcileError::Nodes(format!("they did not take the list of nodes: {problem}"))
        })?;
    }
    Ok(again(&outcome.plan, outcome.recheck_after_s))
}

fn again(plan: &Plan, recheck_after_s: u32) -> Duration {
    let planned = Duration::from_secs(u64::from(recheck_after_s));
    if plan.steps.is_empty() { planned } else { planned.min(AGAIN_AFTER_STEPS) }
}
