//! Events: one when a resource's Ready or Stalled changes its reason, one when looks at it begin to fail with another
//! error. Nothing at rest.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use cairn_crds::{Condition, StorageCluster, StorageClusterStatus, Volume, VolumeStatus};
use cairn_planner::{contract::label, health::is_true};
use kube::{
    Client, Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::{controller::ReconcileError, writes::Counters};

/// Longest note that Kubernetes takes, less a little.
const NOTE_BYTES_MAX: usize = 1000;
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// Resources whose last failure is remembered.
const FAILURES_MAX: usize = 10_000;

/// Publishes events.
pub struct Events {
    recorder: Recorder,
    counters: Arc<Counters>,
    /// By uid: the failure that was told last.
    failures: Mutex<HashMap<String, String>>,
}

impl Events {
    pub fn new(client: Client, identity: &str, counters: Arc<Counters>) -> Self {
        let reporter =
            Reporter { controller: label::OPERATOR.to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), counters, failures: Mutex::default() }
    }

    pub async fn cluster_changed(&self, cluster: &StorageCluster, status: &StorageClusterStatus) {
        let before = cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        self.changed(cluster, before, &status.conditions).await;
    }

    pub async fn volume_changed(&self, volume: &Volume, status: &VolumeStatus) {
        let before = volume.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        self.changed(volume, before, &status.conditions).await;
    }

    async fn changed<K: Resource<DynamicType = ()>>(
        &self,
        resource: &K,
        before: &[Condition],
        after: &[Condition],
    ) {
        self.failures
            .lock()
            .expect("nobody panics while holding it")
            .remove(&resource.uid().unwrap_or_default());
        if let Some((type_, condition)) = worth_telling(before, after) {
            self.publish(resource, type_, &condition.reason, &condition.message, "Reconcile").await;
        }
    }

    /// A look ended with an error.
    pub async fn failed<K: Resource<DynamicType = ()>>(&self, resource: &K, error: &ReconcileError) {
        let (uid, text) = (resource.uid().unwrap_or_default(), error.to_string());
        {
            let mut failures = self.failures.lock().expect("nobody panics while holding it");
            if failures.get(&uid) == Some(&text) {
                return;
            }
            if failures.len() >= FAILURES_MAX {
                failures.clear();
            }
            failures.insert(uid, text.clone());
        }
        self.publish(resource, EventType::Warning, "ReconcileFailed", &text, "Reconcile").await;
    }

    async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        resource: &K,
        type_: EventType,
        reason: &str,
        note: &str,
        action: &str,
    ) {
        let mut note = note.to_owned();
        while note.len() > NOTE_BYTES_MAX {
            note.pop();
        }
        let (reason, action) = (reason.to_owned(), action.to_owned());
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        let reference = resource.object_ref(&());
        match tokio::time::timeout(PUBLISH_LIMIT, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => Counters::add(&self.counters.events),
            Ok(Err(error)) => tracing::warn!(%error, "an event could not be published"),
            Err(_) => tracing::warn!("an event could not be published in time"),
        }
    }
}

/// The condition that changed and says most.
fn worth_telling<'a>(before: &[Condition], after: &'a [Condition]) -> Option<(EventType, &'a Condition)> {
    let find =
        |conditions: &'a [Condition], kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let was = |kind: &str| before.iter().find(|condition| condition.type_ == kind);
    let changed = |kind: &str| {
        let now = find(after, kind)?;
        let same = was(kind).is_some_and(|was| was.status == now.status && was.reason == now.reason);
        (!same).then_some(now)
    };
    if is_true(after, "Stalled") {
        return changed("Stalled").map(|condition| (EventType::Warning, condition));
    }
    let ready = changed("Ready")?;
    // What was ready and is no more deserves attention; what was not has only come a step further.
    let worse = ready.status != "True" && is_true(before, "Ready");
    Some((if worse { EventType::Warning } else { EventType::Normal }, ready))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(ready: (&str, &str), stalled: (&str, &str)) -> Vec<Condition> {
        let one = |kind: &str, (status, reason): (&str, &str)| {
            serde_json::from_value(serde_json::json!({
                "type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }))
            .unwrap()
        };
        vec![one("Ready", ready), one("Stalled", stalled)]
    }

    fn told(before: &[Condition], after: &[Condition]) -> Option<(EventType, String)> {
        worth_telling(before, after).map(|(kind, condition)| (kind, condition.reason.clone()))
    }

    #[test]
    fn only_changes_are_told() {
        let ready = conditions(("True", "AllNodesReady"), ("False", "NotStalled"));
        let down = conditions(("False", "NodesNotReady"), ("False", "NotStalled"));
        let stuck = conditions(("False", "ImageNotFound"), ("True", "ImageNotFound"));
        assert_eq!(told(&ready, &ready), None);
        assert_eq!(told(&stuck, &stuck), None);
        assert_eq!(told(&[], &down), Some((EventType::Normal, "NodesNotReady".into())));
        assert_eq!(told(&down, &ready), Some((EventType::Normal, "AllNodesReady".into())));
        assert_eq!(told(&ready, &down), Some((EventType::Warning, "NodesNotReady".into())));
        assert_eq!(told(&down, &stuck), Some((EventType::Warning, "ImageNotFound".into())));
    }
}
