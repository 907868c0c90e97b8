//! An independent judge of plans. It knows nothing of how plans are made: it reads a plan and what was observed, and
//! finds what must never happen. A plan with a violation is not executed.
//!
//! Written on raw objects, with its own reading of pods: a defect that it shared with the planner would be found by
//! neither.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::Value;

use crate::object::Object;
use crate::observed::Observed;
use crate::plan::{Action, Plan, SecretKind, SecretRequest};

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A StatefulSet would lose nodes; their data was not moved.
    Shrinks { set: String, from: i32, to: i32 },
    /// A field that Kubernetes refuses to change, or that ties pods to their disks.
    ChangesForEver { set: String, field: &'static str },
    /// A setting without which pods or disks would go without the operator's leave.
    UnsafeSet { set: String, field: &'static str },
    /// The key would be replaced, or made where disks exist.
    TouchesKey { secret: String },
    /// The key or the record would be deleted with the StorageCluster.
    OwnsWhatStays { name: String },
    /// More than one working pod would be down at once.
    DisturbsTwo { pods: Vec<String> },
    /// A working pod would go while another zone is disturbed, or while data is not settled.
    DisturbsUnsafely { pod: String, why: String },
    /// A pod that was not observed, or not with this identity.
    UnknownPod { pod: String },
    /// An object outside the cluster's namespace, or of another cluster.
    Foreign { object: String },
    /// A container with more rights than it may have.
    Privileged { set: String, field: &'static str },
    /// The record of what is installed would forget or change something.
    RewritesRecord { field: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shrinks { set, from, to } => write!(f, "{set} shrinks from {from} to {to}"),
            Self::ChangesForEver { set, field } => write!(f, "{field} of {set} changes"),
            Self::UnsafeSet { set, field } => write!(f, "{field} of {set} is unsafe"),
            Self::TouchesKey { secret } => write!(f, "the key in {secret} is touched"),
            Self::OwnsWhatStays { name } => write!(f, "{name} would go with the cluster"),
            Self::DisturbsTwo { pods } => write!(f, "{} restart at once", pods.join(" and ")),
            Self::DisturbsUnsafely { pod, why } => write!(f, "{pod} restarts although {why}"),
            Self::UnknownPod { pod } => write!(f, "{pod} was not observed"),
            Self::Foreign { object } => write!(f, "{object} is not the cluster's"),
            Self::Privileged { set, field } => write!(f, "{field} of {set} gives too many rights"),
            Self::RewritesRecord { field } => write!(f, "{field} of the record changes"),
        }
    }
}

/// Every rule that a plan breaks.
pub fn check(observed: &Observed, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    for step in &plan.steps {
        match &step.action {
            Action::WriteSecret(request) => secret(observed, request, &mut found),
            Action::Apply(object) => applied(observed, object, &mut found),
            Action::RestartPod { .. } => {}
        }
    }
    restarts(observed, plan, &mut found);
    found
}

fn secret(observed: &Observed, request: &SecretRequest, found: &mut Vec<Violation>) {
    let exists = observed.secrets.contains_key(&request.name);
    let disks = !observed.volume_claims.is_empty() || !observed.stateful_sets.is_empty();
    let is_key = request.kind == SecretKind::Key;
    let holds_a_key = observed.secrets.get(&request.name).is_some_and(|fact| fact.entries.contains("kek"));
    if (is_key && (exists || disks)) || holds_a_key {
        found.push(Violation::TouchesKey { secret: request.name.clone() });
    }
    if is_key && request.owned {
        found.push(Violation::OwnsWhatStays { name: request.name.clone() });
    }
}

fn applied(observed: &Observed, object: &Object, found: &mut Vec<Violation>) {
    let cluster = &observed.cluster.metadata;
    let metadata = object.metadata();
    let label = metadata.labels.as_ref().and_then(|labels| labels.get("cairn.storage/cluster"));
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    if metadata.namespace != cluster.namespace
        || label != cluster.name.as_ref()
        || owners.iter().any(|owner| Some(&owner.uid) != cluster.uid.as_ref())
    {
        found.push(Violation::Foreign { object: format!("{} {}", object.kind(), object.name()) });
    }
    match object {
        Object::StatefulSet(wanted) => {
            rights(wanted, found);
            settings(wanted, found);
            let before = observed.stateful_sets.iter().find(|set| set.metadata.name == wanted.metadata.name);
            if let Some(before) = before {
                changes(before, wanted, found);
            }
        }
        Object::ConfigMap(wanted) => {
            if !owners.is_empty() {
                found.push(Violation::OwnsWhatStays { name: object.name().to_owned() });
            }
            let before = observed.config_maps.iter().find(|map| map.metadata.name == wanted.metadata.name);
            if let Some(before) = before {
                record(before, wanted, found);
            }
        }
        _ => {}
    }
}

fn changes(before: &StatefulSet, wanted: &StatefulSet, found: &mut Vec<Violation>) {
    let set = wanted.metadata.name.clone().unwrap_or_default();
    let (Some(old), Some(new)) = (&before.spec, &wanted.spec) else { return };
    let (from, to) = (old.replicas.unwrap_or(1), new.replicas.unwrap_or(1));
    if to < from {
        found.push(Violation::Shrinks { set: set.clone(), from, to });
    }
    let mut fixed = |field, same: bool| {
        if !same {
            found.push(Violation::ChangesForEver { set: set.clone(), field });
        }
    };
    fixed("selector", old.selector == new.selector);
    fixed("serviceName", old.service_name == new.service_name);
    fixed("podManagementPolicy", old.pod_management_policy == new.pod_management_policy);
    let disks = |spec: &k8s_openapi::api::apps::v1::StatefulSetSpec| -> Vec<_> {
        let claims = spec.volume_claim_templates.iter().flatten();
        claims
            .map(|claim| {
                let size =
                    claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
                // By value: the API server writes 1024Mi as 1Gi.
                let bytes = size.and_then(|size| cairn_crds::Quantity(size.0.clone()).bytes().ok());
                let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone());
                (claim.metadata.name.clone(), bytes, class)
            })
            .collect()
    };
    fixed("volumeClaimTemplates", disks(old) == disks(new));
}

fn settings(wanted: &StatefulSet, found: &mut Vec<Violation>) {
    let set = wanted.metadata.name.clone().unwrap_or_default();
    let Some(spec) = &wanted.spec else { return };
    let mut must = |field, good: bool| {
        if !good {
            found.push(Violation::UnsafeSet { set: set.clone(), field });
        }
    };
    let strategy = spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    must("updateStrategy", strategy == Some("OnDelete"));
    must("replicas", spec.replicas.is_some_and(|replicas| replicas >= 1));
    let keeps = |policy: Option<&String>| policy.is_none_or(|policy| policy == "Retain");
    let retention = spec.persistent_volume_claim_retention_policy.as_ref();
    must(
        "persistentVolumeClaimRetentionPolicy.whenDeleted",
        keeps(retention.and_then(|r| r.when_deleted.as_ref())),
    );
    must(
        "persistentVolumeClaimRetentionPolicy.whenScaled",
        keeps(retention.and_then(|r| r.when_scaled.as_ref())),
    );
}

/// The Restricted Pod Security Standard, as far as our pods could break it.
fn rights(wanted: &StatefulSet, found: &mut Vec<Violation>) {
    let set = wanted.metadata.name.clone().unwrap_or_default();
    let Some(pod) = wanted.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else { return };
    let mut must = |field, good: bool| {
        if !good {
            found.push(Violation::Privileged { set: set.clone(), field });
        }
    };
    let security = pod.security_context.as_ref();
    must(
        "runAsNonRoot",
        security.is_some_and(|s| s.run_as_non_root == Some(true) && s.run_as_user != Some(0)),
    );
    let profile = security.and_then(|s| s.seccomp_profile.as_ref());
    must("seccompProfile", profile.is_some_and(|profile| profile.type_ == "RuntimeDefault"));
    let host = [pod.host_network, pod.host_pid, pod.host_ipc].into_iter().flatten().any(|on| on);
    must("host namespaces", !host);
    must("hostPath", pod.volumes.iter().flatten().all(|volume| volume.host_path.is_none()));
    must("serviceAccountToken", pod.automount_service_account_token == Some(false));
    for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
        let security = container.security_context.as_ref();
        must(
            "allowPrivilegeEscalation",
            security.is_some_and(|s| s.allow_privilege_escalation == Some(false)),
        );
        must("privileged", security.is_none_or(|s| s.privileged != Some(true)));
        let capabilities = security.and_then(|s| s.capabilities.as_ref());
        let dropped =
            capabilities.and_then(|c| c.drop.as_ref()).is_some_and(|drop| drop.iter().any(|c| c == "ALL"));
        let added = capabilities.and_then(|c| c.add.as_ref()).is_some_and(|add| !add.is_empty());
        must("capabilities", dropped && !added);
        must("readOnlyRootFilesystem", security.is_some_and(|s| s.read_only_root_filesystem == Some(true)));
    }
}

/// Nothing in the record changes, but that a default image is noted where none was.
fn record(before: &ConfigMap, wanted: &ConfigMap, found: &mut Vec<Violation>) {
    let read = |map: &ConfigMap| -> Value {
        let text = map.data.as_ref().and_then(|data| data.get("installed.json"));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
    };
    let (before, wanted) = (read(before), read(wanted));
    for (field, value) in before.as_object().into_iter().flatten() {
        if wanted.get(field) != Some(value) {
            found.push(Violation::RewritesRecord { field: field.clone() });
        }
    }
    let added = wanted.as_object().into_iter().flatten().map(|(field, _)| field);
    for field in added.filter(|field| before.get(field.as_str()).is_none()) {
        if field != "defaultImage" {
            found.push(Violation::RewritesRecord { field: field.clone() });
        }
    }
}

fn restarts(observed: &Observed, plan: &Plan, found: &mut Vec<Violation>) {
    let mut working: Vec<&Pod> = Vec::new();
    for step in &plan.steps {
        let Action::RestartPod { name, uid, .. } = &step.action else { continue };
        let pod = observed.pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(name));
        match pod {
            Some(pod) if !uid.is_empty() && pod.metadata.uid.as_ref() == Some(uid) => {
                if works(pod) {
                    working.push(pod);
                }
            }
            _ => found.push(Violation::UnknownPod { pod: name.clone() }),
        }
    }
    if working.len() > 1 {
        found.push(Violation::DisturbsTwo { pods: working.iter().map(|pod| name(pod).to_owned()).collect() });
    }
    for pod in working {
        let disturbed: BTreeSet<&str> = observed
            .pods
            .iter()
            .filter(|other| !ready(other))
            .map(zone)
            .filter(|z| *z != zone(pod))
            .collect();
        let unsafe_because = |why: String| Violation::DisturbsUnsafely { pod: name(pod).to_owned(), why };
        if !disturbed.is_empty() {
            let zones = disturbed.into_iter().collect::<Vec<_>>().join(", ");
            found.push(unsafe_because(format!("zone {zones} is disturbed")));
        }
        if ready(pod) {
            match observed.report.as_ref().map(|report| report.placement_groups) {
                None => found.push(unsafe_because("the nodes did not say that data is safe".to_owned())),
                Some(groups) if groups.settled < groups.total || groups.degraded + groups.unavailable > 0 => {
                    found.push(unsafe_because("data is not settled".to_owned()));
                }
                Some(_) => {}
            }
        }
    }
}

/// A process runs in it, or it is ending: deleting it disturbs.
fn works(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let runs =
        statuses.into_iter().flatten().any(|c| c.state.as_ref().is_some_and(|state| state.running.is_some()));
    ready(pod) || runs || pod.metadata.deletion_timestamp.is_some()
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let says = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    says && pod.metadata.deletion_timestamp.is_none()
}

fn zone(pod: &Pod) -> &str {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|l| l.get("cairn.storage/zone"))
        .map(String::as_str)
        .unwrap_or_default()
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}
