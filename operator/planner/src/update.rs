//! Which pod may be restarted next, so that it gets the present template.
//!
//! A pod that never got to work is restarted at once: nothing is lost with it, and waiting for it to become ready would
//! be for ever. A pod that works is restarted alone, unhealthy ones first, one zone at a time, and only while the nodes
//! themselves say that all data is safe without it.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::health::{PodState, pod_state, revision_of, zone_of};
use crate::observed::Observed;
use crate::plan::{Action, Plan, Step, Why};
use crate::record::Held;

struct Candidate<'a> {
    pod: &'a Pod,
    state: PodState,
    outdated: bool,
}

/// Adds the restarts that are allowed now, and what the others wait for.
pub fn plan(observed: &Observed, held: &Held, now: Timestamp, plan: &mut Plan) {
    let pods = candidates(observed, now);
    let outdated = pods.iter().filter(|pod| pod.outdated).count();
    if outdated == 0 {
        return;
    }
    let stuck: Vec<_> = pods.iter().filter(|pod| pod.outdated && !pod.state.may_serve()).collect();
    if !stuck.is_empty() {
        plan.steps.extend(stuck.iter().map(|pod| restart(pod.pod, Why::PodStuck)));
        return;
    }
    match next(&pods, observed, held) {
        Ok((pod, why)) => {
            plan.steps.push(restart(pod, why));
            if outdated > 1 {
                let Hindrance { reason, message, blocked } =
                    Hindrance::passing("OneAtATime", "one pod restarts at a time");
                plan.waits.push(Why::UpdateWaits { pods: outdated - 1, reason, message, blocked });
            }
        }
        Err(Hindrance { reason, message, blocked }) => {
            plan.waits.push(Why::UpdateWaits { pods: outdated, reason, message, blocked });
        }
    }
}

/// Why no pod may be restarted now.
struct Hindrance {
    reason: &'static str,
    message: String,
    /// It does not pass by itself.
    blocked: bool,
}

impl Hindrance {
    fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), blocked: false }
    }

    fn lasting(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), blocked: true }
    }
}

fn candidates(observed: &Observed, now: Timestamp) -> Vec<Candidate<'_>> {
    let mut pods: Vec<_> = observed
        .pods
        .iter()
        .map(|pod| Candidate { pod, state: pod_state(pod, now), outdated: is_outdated(observed, pod) })
        .collect();
    pods.sort_by(|a, b| a.pod.metadata.name.cmp(&b.pod.metadata.name));
    pods
}

/// Was the pod made from an older template than its StatefulSet has? Unknown (no) until the set's controller has seen
/// the template.
fn is_outdated(observed: &Observed, pod: &Pod) -> bool {
    let Some(owner) =
        pod.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "StatefulSet")
    else {
        return false;
    };
    let set = observed.stateful_sets.iter().find(|set| set.metadata.uid.as_ref() == Some(&owner.uid));
    let Some((set, status)) = set.and_then(|set| set.status.as_ref().map(|status| (set, status))) else {
        return false;
    };
    let seen = status.observed_generation >= set.metadata.generation;
    seen && status.update_revision.as_deref().is_some_and(|revision| revision != revision_of(pod))
}

fn next<'a>(
    pods: &'a [Candidate<'a>],
    observed: &Observed,
    held: &Held,
) -> Result<(&'a Pod, Why), Hindrance> {
    let wanted = usize::try_from(held.cluster.node_count()).unwrap_or_default();
    if pods.len() < wanted {
        return Err(Hindrance::passing("NodesMissing", format!("{} of {wanted} pods exist", pods.len())));
    }
    if let Some(pod) = pods.iter().find(|pod| pod.state == PodState::Terminating) {
        return Err(Hindrance::passing("PodTerminating", format!("{} is ending", name(pod.pod))));
    }
    let unhealthy: Vec<_> = pods.iter().filter(|pod| pod.state != PodState::Ready).collect();
    if let Some(other) = unhealthy.iter().find(|pod| !pod.outdated) {
        let message = format!("{} is not ready yet", name(other.pod));
        return Err(Hindrance {
            reason: "NodeNotReady",
            message,
            blocked: matches!(other.state, PodState::Problem { .. }),
        });
    }
    if let Some(first) = unhealthy.first() {
        // It runs the older template and does not serve: the update may be what mends it.
        let elsewhere = unhealthy.iter().find(|pod| zone_of(pod.pod) != zone_of(first.pod));
        return match elsewhere {
            Some(other) => {
                let message =
                    format!("{} and {} in different zones are not ready", name(first.pod), name(other.pod));
                Err(Hindrance::lasting("ZonesDisturbed", message))
            }
            None => Ok((first.pod, Why::PodUnhealthy)),
        };
    }
    data_is_safe(observed, held)?;
    let first = pods.iter().find(|pod| pod.outdated);
    let nothing = || Hindrance::passing("NothingOutdated", "every pod has the present template");
    first.map(|pod| (pod.pod, Why::PodOutdated)).ok_or_else(nothing)
}

fn data_is_safe(observed: &Observed, held: &Held) -> Result<(), Hindrance> {
    let Some(report) = &observed.report else {
        let message = "the nodes cannot be asked whether their data is safe";
        return Err(Hindrance::lasting("NodesNotReached", message));
    };
    let groups = report.placement_groups;
    if groups.settled < groups.total {
        let message = format!("{} of {} placement groups are settled", groups.settled, groups.total);
        return Err(Hindrance::passing("NotSettled", message));
    }
    if let Some(absent) = held.cluster.nodes().iter().find(|node| !report.live.contains(&node.name)) {
        return Err(Hindrance::lasting("NodeNotLive", format!("the nodes do not see {}", absent.name)));
    }
    Ok(())
}

fn restart(pod: &Pod, why: Why) -> Step {
    let action = Action::RestartPod {
        name: name(pod).to_owned(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        zone: zone_of(pod).to_owned(),
    };
    Step { action, why }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}
