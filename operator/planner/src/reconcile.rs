//! The stages together: everything about a cluster that follows from what was observed.

use std::collections::BTreeSet;

use cairn_crds::{StorageCluster, StorageClusterStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::check;
use crate::contract::Names;
use crate::health::{PodState, pod_state};
use crate::observed::{NodesReport, Observed};
use crate::plan::{self, Action, Plan, SecretKind, Why};
use crate::record::{Held, Record, hold, recovered};
use crate::refusal::Refusal;
use crate::status::{Finding, Situation, cluster_status};
use crate::validate::{self, Mode, PlannedNode, ValidCluster};

/// While something is under way, look again after this long even if nothing was heard.
const BUSY_RECHECK_S: u32 = 5;
/// At rest: the nodes are asked how they are. Nothing is written unless the answer is another.
const REST_RECHECK_S: u32 = 30;

/// What follows from an observation.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub plan: Plan,
    /// What to tell the nodes; `None` while the spec cannot be followed at all.
    pub intent: Option<Intent>,
    pub status: StorageClusterStatus,
    /// Does `status` differ from the resource's? Only then is it written.
    pub status_changed: bool,
    pub recheck_after_s: u32,
}

/// The nodes that a cluster should have, for `Admin.SetIntent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The resource's generation. Nodes refuse an older one.
    pub generation: i64,
    pub nodes: Vec<PlannedNode>,
}

/// Decides what to do about a cluster in Kubernetes.
pub fn reconcile(observed: &Observed, now: Timestamp) -> Outcome {
    if observed.cluster.metadata.deletion_timestamp.is_some() {
        return being_deleted(observed);
    }
    let held = match held(observed) {
        Ok(held) => held,
        Err(refusal) => return refused(observed, None, refusal, now),
    };
    let plan = match plan::plan(observed, &held, now) {
        Ok(plan) => plan,
        Err(refusal) => return refused(observed, Some(&held), refusal, now),
    };
    let violations = check::check(observed, &plan);
    if !violations.is_empty() {
        let text = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return refused(observed, Some(&held), Refusal::UnsafePlan(text), now);
    }
    let situation = situation(observed, Some(&held), &plan, held.refusal.as_ref(), now);
    finish(observed, plan, Some(intent(&held.cluster)), &situation, now)
}

fn held(observed: &Observed) -> Result<Held, Refusal> {
    let wanted = validate::cluster(&observed.cluster, Mode::Kubernetes)?;
    let name = wanted.names().record();
    let record = observed.config_maps.iter().find(|map| map.metadata.name.as_ref() == Some(&name));
    let record = match record {
        Some(map) => Some(Record::read(map)?),
        None => recovered(observed, &wanted),
    };
    hold(wanted, record.as_ref(), &observed.default_image)
}

fn intent(cluster: &ValidCluster) -> Intent {
    Intent { generation: cluster.generation, nodes: cluster.nodes() }
}

fn finish(
    observed: &Observed,
    plan: Plan,
    intent: Option<Intent>,
    situation: &Situation,
    now: Timestamp,
) -> Outcome {
    let before = observed.cluster.status.clone().unwrap_or_default();
    let status = cluster_status(situation, &before.conditions, now);
    let resting = situation.reconciling.is_none() && situation.stalled.is_none();
    let settled =
        situation.report.as_ref().is_some_and(|r| r.placement_groups.settled == r.placement_groups.total);
    let recheck_after_s = if resting && settled { REST_RECHECK_S } else { BUSY_RECHECK_S };
    Outcome { plan, intent, status_changed: status != before, status, recheck_after_s }
}

/// Kubernetes removes what the resource owns; the record, the key and the disks have no owner and stay.
fn being_deleted(observed: &Observed) -> Outcome {
    let plan = Plan { steps: Vec::new(), waits: vec![Why::BeingDeleted] };
    let status = observed.cluster.status.clone().unwrap_or_default();
    Outcome { plan, intent: None, status, status_changed: false, recheck_after_s: REST_RECHECK_S }
}

fn refused(observed: &Observed, held: Option<&Held>, refusal: Refusal, now: Timestamp) -> Outcome {
    let plan = Plan { steps: Vec::new(), waits: vec![Why::Refused(refusal.clone())] };
    let mut situation = situation(observed, held, &plan, Some(&refusal), now);
    // Nothing is done until somebody helps.
    situation.reconciling = None;
    finish(observed, plan, None, &situation, now)
}

fn situation(
    observed: &Observed,
    held: Option<&Held>,
    plan: &Plan,
    refusal: Option<&Refusal>,
    now: Timestamp,
) -> Situation {
    let states: Vec<_> = observed.pods.iter().map(|pod| (pod_name(pod), pod_state(pod, now))).collect();
    let in_state = |state: PodState| states.iter().filter(move |(_, s)| *s == state);
    let refused = refusal.map(|refusal| Finding::new(refusal.reason(), refusal.to_string()));
    let problem = states.iter().find_map(|(name, state)| match state {
        PodState::Problem { reason, message } => Some(Finding::new(reason, format!("{name}: {message}"))),
        _ => None,
    });
    let cluster = held.map(|held| &held.cluster);
    let nodes = cluster.map(ValidCluster::nodes).unwrap_or_default();
    let ready: BTreeSet<String> = in_state(PodState::Ready).map(|(name, _)| (*name).to_owned()).collect();
    let names = cluster.map(ValidCluster::names);
    let waits = |f: fn(&Why) -> bool| {
        plan.waits.iter().find(|why| f(why)).map(|why| Finding::new(why.reason(), why.to_string()))
    };
    Situation {
        generation: observed.cluster.metadata.generation,
        report: observed.report.clone(),
        reconciling: reconciling(plan, &nodes, &ready, problem.is_some()),
        stalled: refused.or(problem),
        update_blocked: waits(|why| matches!(why, Why::UpdateWaits { blocked: true, .. })),
        scale_down_blocked: refusal
            .filter(|refusal| matches!(refusal, Refusal::Shrinking { .. }))
            .map(|refusal| Finding::new(refusal.reason(), refusal.to_string())),
        certificates: names.as_ref().and_then(|names| certificates(observed, names, plan, now)),
        endpoint: cluster.map(|c| format!("https://{}:{}", c.names().client_host(), c.grpc_port)),
        client_secret_name: names.map(|names| names.client_secret()),
        image: held.map(|held| held.image.clone()),
        nodes,
        ready,
    }
}

/// Steps to do, or nodes that are on their way. A node that cannot start is not on its way.
fn reconciling(
    plan: &Plan,
    nodes: &[PlannedNode],
    ready: &BTreeSet<String>,
    problem: bool,
) -> Option<Finding> {
    if let Some(step) = plan.steps.iter().find(|step| matches!(step.action, Action::RestartPod { .. })) {
        let Action::RestartPod { name, .. } = &step.action else { unreachable!("it was found as such") };
        return Some(Finding::new("UpdatingPods", format!("{name} restarts: {}", step.why)));
    }
    if !plan.steps.is_empty() {
        let objects = match plan.steps.len() {
            1 => "one object is".to_owned(),
            count => format!("{count} objects are"),
        };
        return Some(Finding::new("ApplyingObjects", format!("{objects} being applied")));
    }
    if let Some(why) = plan.waits.iter().find(|why| matches!(why, Why::UpdateWaits { .. })) {
        return Some(Finding::new(why.reason(), why.to_string()));
    }
    let absent: Vec<&str> =
        nodes.iter().map(|node| node.name.as_str()).filter(|name| !ready.contains(*name)).collect();
    if absent.is_empty() || problem {
        return None;
    }
    let shown = absent.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    let more = if absent.len() > 3 { format!(" and {} more", absent.len() - 3) } else { String::new() };
    Some(Finding::new("NodesStarting", format!("waiting for {shown}{more}")))
}

fn certificates(
    observed: &Observed,
    names: &Names<'_>,
    plan: &Plan,
    now: Timestamp,
) -> Option<Result<(), Finding>> {
    let fact = observed.secrets.get(&names.node_certificate_secret())?;
    let ended = fact.not_after.is_none_or(|end| end <= now);
    let warned = plan.waits.iter().find(|why| matches!(why, Why::AuthorityExpires { .. }));
    let renewing = plan.steps.iter().any(|step| {
        matches!(&step.action, Action::WriteSecret(request) if matches!(request.kind, SecretKind::NodeCertificate { .. }))
    });
    Some(if ended {
        Err(Finding::new(
            "Expired",
            "the nodes' certificate has ended; it is renewed as soon as the cluster can be changed",
        ))
    } else if let Some(why) = warned {
        Err(Finding::new(why.reason(), why.to_string()))
    } else if renewing {
        Err(Finding::new("Renewing", "the nodes' certificate is being renewed"))
    } else {
        Ok(())
    })
}

fn pod_name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// A cluster in local mode: what to run, and what to say.
#[derive(Clone, Debug)]
pub struct LocalCluster {
    /// What to run, and the record to keep beside the data; `Err`: nothing may run.
    pub cluster: Result<(ValidCluster, Record), Refusal>,
    /// Why the spec is not followed in something; what is installed runs on.
    pub refusal: Option<Refusal>,
    pub status: StorageClusterStatus,
}

/// Decides what to do about a cluster in local mode. `installed` is the record kept since the first start; `ready` names
/// the nodes that serve.
pub fn local(
    resource: &StorageCluster,
    installed: Option<&Record>,
    ready: &BTreeSet<String>,
    report: Option<&NodesReport>,
    now: Timestamp,
) -> LocalCluster {
    let held = validate::cluster(resource, Mode::Local).and_then(|wanted| hold(wanted, installed, "local"));
    let refusal = match &held {
        Ok(held) => held.refusal.clone(),
        Err(refusal) => Some(refusal.clone()),
    };
    let nodes = held.as_ref().map(|held| held.cluster.nodes()).unwrap_or_default();
    let situation = Situation {
        generation: resource.metadata.generation,
        reconciling: reconciling(&Plan::default(), &nodes, ready, false),
        stalled: refusal.as_ref().map(|refusal| Finding::new(refusal.reason(), refusal.to_string())),
        scale_down_blocked: refusal
            .as_ref()
            .filter(|refusal| matches!(refusal, Refusal::Shrinking { .. }))
            .map(|refusal| Finding::new(refusal.reason(), refusal.to_string())),
        nodes,
        ready: ready.clone(),
        report: report.cloned(),
        ..Situation::default()
    };
    let before = resource.status.clone().unwrap_or_default();
    let status = cluster_status(&situation, &before.conditions, now);
    LocalCluster { cluster: held.map(|held| (held.cluster, held.record)), refusal, status }
}
