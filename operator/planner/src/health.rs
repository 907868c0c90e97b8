//! What is the matter with a storage pod, in words that help.

use cairn_crds::Condition;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;

use crate::contract::{label, pod};

/// A pod waits this long for a place before that is called a problem: disks take a moment to be made.
pub const SCHEDULING_GRACE_S: i64 = 60;
/// A container that ended this often does not merely start slowly.
const RESTARTS_MAX: i32 = 3;

/// The state of one storage pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodState {
    Ready,
    /// On its way; nothing is wrong yet.
    Starting,
    /// Runs, and is not ready.
    NotReady,
    Terminating,
    /// Cannot go on without somebody's help.
    Problem {
        reason: &'static str,
        message: String,
    },
}

impl PodState {
    /// Is a process of the node running, or about to? Deleting such a pod disturbs something.
    pub fn may_serve(&self) -> bool {
        matches!(self, Self::Ready | Self::NotReady | Self::Terminating)
    }
}

/// Reads a pod's state.
pub fn pod_state(pod: &Pod, now: Timestamp) -> PodState {
    if pod.metadata.deletion_timestamp.is_some() {
        return PodState::Terminating;
    }
    let Some(status) = &pod.status else {
        return PodState::Starting;
    };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    if condition("Ready").is_some_and(|ready| ready.status == "True") {
        return PodState::Ready;
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let container = containers.iter().find(|container| container.name == self::pod::CONTAINER);
    if let Some(problem) = container.and_then(container_problem) {
        return problem;
    }
    if let Some(scheduled) = condition("PodScheduled")
        && scheduled.status == "False"
    {
        return unscheduled(scheduled, now);
    }
    let running = container.and_then(|c| c.state.as_ref()).is_some_and(|state| state.running.is_some());
    if running { PodState::NotReady } else { PodState::Starting }
}

fn unscheduled(scheduled: &PodCondition, now: Timestamp) -> PodState {
    let since = scheduled.last_transition_time.as_ref().map_or(now, |time| time.0);
    if now.as_second() - since.as_second() < SCHEDULING_GRACE_S {
        return PodState::Starting;
    }
    let message = scheduled.message.as_deref().unwrap_or("no machine fits");
    PodState::Problem {
        reason: "Unschedulable",
        message: format!(
            "{message}; check that machines carry the zone's label and that a disk can be made there"
        ),
    }
}

fn container_problem(container: &ContainerStatus) -> Option<PodState> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let said = waiting.message.as_deref().unwrap_or("no details");
    let image = &container.image;
    let (reason, message) = match waiting.reason.as_deref().unwrap_or_default() {
        "ImagePullBackOff"
        | "ErrImagePull"
        | "ErrImageNeverPull"
        | "InvalidImageName"
        | "ImageInspectError"
        | "RegistryUnavailable" => (
            "ImageNotFound",
            format!("image {image} cannot be pulled ({said}); correct spec.image, or make it available"),
        ),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            ("ContainerNotCreated", format!("the container cannot be made: {said}"))
        }
        "CrashLoopBackOff" if container.restart_count >= RESTARTS_MAX => {
            let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            let last = ended.map_or_else(String::new, |end| {
                let message = end.message.as_deref().unwrap_or_default().trim();
                format!(
                    ", last with exit code {}{}{message}",
                    end.exit_code,
                    if message.is_empty() { "" } else { ": " }
                )
            });
            let hint = "see its log: kubectl logs --previous";
            ("NodeCrashes", format!("the node ended {} times{last}; {hint}", container.restart_count))
        }
        _ => return None,
    };
    Some(PodState::Problem { reason, message })
}

/// The zone of a storage pod.
pub fn zone_of(pod: &Pod) -> &str {
    label_of(pod, label::ZONE)
}

/// The revision of the template that a pod was made from.
pub fn revision_of(pod: &Pod) -> &str {
    label_of(pod, label::REVISION)
}

fn label_of<'a>(pod: &'a Pod, key: &str) -> &'a str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str).unwrap_or_default()
}

/// Is a condition of the given type there and true?
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    fn state(status: Value) -> PodState {
        let pod = serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": status })).unwrap();
        pod_state(&pod, Timestamp::from_second(NOW_S).unwrap())
    }

    fn waiting(reason: &str, restarts: i32) -> PodState {
        state(json!({ "containerStatuses": [{
            "name": "node", "image": "x:1", "imageID": "", "ready": false, "restartCount": restarts,
            "state": { "waiting": { "reason": reason, "message": "said so" } },
            "lastState": { "terminated": { "exitCode": 2, "message": "KEK_FILE is missing\n" } },
        }] }))
    }

    fn reason(state: &PodState) -> &'static str {
        match state {
            PodState::Problem { reason, .. } => reason,
            _ => "",
        }
    }

    #[test]
    fn images_that_cannot_be_had() {
        for kubelet_says in ["ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"] {
            let state = waiting(kubelet_says, 0);
            assert_eq!(reason(&state), "ImageNotFound");
            assert!(!state.may_serve());
            assert!(
                matches!(state, PodState::Problem { message, .. } if message.contains("x:1") && message.contains("said so"))
            );
        }
    }

    #[test]
    fn crashes_become_a_problem_when_they_go_on() {
        assert_eq!(waiting("CrashLoopBackOff", 1), PodState::Starting);
        let PodState::Problem { reason, message } = waiting("CrashLoopBackOff", 3) else {
            panic!("a problem")
        };
        assert_eq!(reason, "NodeCrashes");
        assert!(message.contains("3 times, last with exit code 2: KEK_FILE is missing"), "{message}");
    }

    #[test]
    fn places_are_waited_for() {
        let unscheduled = |ago_s: i64| {
            let since = Timestamp::from_second(NOW_S - ago_s).unwrap().to_string();
            state(json!({ "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/3 nodes are available", "lastTransitionTime": since,
            }] }))
        };
        assert_eq!(unscheduled(5), PodState::Starting);
        assert_eq!(reason(&unscheduled(61)), "Unschedulable");
    }

    #[test]
    fn ordinary_states() {
        assert_eq!(state(json!({})), PodState::Starting);
        assert_eq!(state(json!({ "conditions": [{ "type": "Ready", "status": "True" }] })), PodState::Ready);
        let running = json!({ "containerStatuses": [{
            "name": "node", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": { "running": {} },
        }] });
        assert_eq!(state(running), PodState::NotReady);
        assert!(PodState::NotReady.may_serve() && !PodState::Starting.may_serve());
    }
}
