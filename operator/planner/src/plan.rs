//! From what is and what should be to the next steps. A plan carries its reasons, also for doing nothing.
//!
//! Steps are in order; whoever executes them stops at the first that fails and observes again.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::jiff::Timestamp;

use crate::contract::{entry, label};
use crate::object::{Object, first_difference};
use crate::observed::{Observed, SecretFact};
use crate::record::Held;
use crate::refusal::Refusal;
use crate::resources;
use crate::update;
use crate::validate::MetadataStore;

/// What to do next, and why not more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// What waits for something, or why there is nothing to do.
    pub waits: Vec<Why>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub action: Action,
    pub why: Why,
}

/// A change. There is none that deletes a disk, a key or a StatefulSet.
#[expect(clippy::large_enum_variant, reason = "a plan has few, and lives briefly")]
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a Secret, or replace the entries that [`SecretKind`] names.
    WriteSecret(SecretRequest),
    /// Server-side apply.
    Apply(Object),
    /// Delete a pod, with its uid as precondition; its StatefulSet makes it again from the present template.
    RestartPod { name: String, uid: String, zone: String },
}

/// A Secret to write. Its bytes are made by whoever executes the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRequest {
    pub name: String,
    pub kind: SecretKind,
    /// Goes when the StorageCluster goes. The key does not.
    pub owned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// A CA of the cluster's own: `ca.crt`, `ca.key`.
    Authority,
    /// Signed by the CA, O=cairn:node: `tls.crt`, `tls.key`, `ca.crt`. One for all nodes.
    NodeCertificate { dns_names: Vec<String> },
    /// Signed by the CA, O=cairn:operator: `tls.crt`, `tls.key`, `ca.crt`.
    OperatorCertificate,
    /// 32 random bytes, base64: `kek`. Created only; if it exists meanwhile, it is left as it is.
    Key,
    /// For clients: `token` (kept, if there is one) and `ca.crt`.
    Client,
    /// For nodes: `tokens`, with a line `client <SHA-256 of the client's token>`; other lines are kept.
    Tokens,
}

/// Why something is done, or is not. Feeds conditions, events and logs.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    Missing,
    /// Differs at the path.
    Differs {
        path: String,
    },
    /// A certificate is in the last third of its life.
    CertificateExpires {
        not_after: Option<Timestamp>,
    },
    /// A certificate lacks names that nodes have now.
    CertificateNames,
    /// The Secret was made with another CA.
    OtherAuthority,
    /// The nodes do not know the client's token.
    TokenUnknown,
    /// The pod never got to work with an older template.
    PodStuck,
    /// The pod runs with an older template and is not ready; all others are well.
    PodUnhealthy,
    /// The pod works, with an older template; all others are well, and all data is safe without it.
    PodOutdated,

    AtRest,
    BeingDeleted,
    Refused(Refusal),
    /// Pods with an older template wait; says what for. `blocked`: it does not go on by itself.
    UpdateWaits {
        pods: usize,
        reason: &'static str,
        message: String,
        blocked: bool,
    },
    /// The CA ends soon; replacing it is not automatic yet.
    AuthorityExpires {
        not_after: Timestamp,
    },
}

impl Why {
    /// The CamelCase reason for events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "Missing",
            Self::Differs { .. } => "Differs",
            Self::CertificateExpires { .. } => "CertificateExpires",
            Self::CertificateNames => "CertificateNames",
            Self::OtherAuthority => "OtherAuthority",
            Self::TokenUnknown => "TokenUnknown",
            Self::PodStuck => "PodStuck",
            Self::PodUnhealthy => "PodUnhealthy",
            Self::PodOutdated => "PodOutdated",
            Self::AtRest => "AtRest",
            Self::BeingDeleted => "BeingDeleted",
            Self::Refused(refusal) => refusal.reason(),
            Self::UpdateWaits { reason, .. } => reason,
            Self::AuthorityExpires { .. } => "AuthorityExpires",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it does not exist"),
            Self::Differs { path } => write!(f, "it differs at {path}"),
            Self::CertificateExpires { not_after: Some(end) } => write!(f, "its certificate ends at {end}"),
            Self::CertificateExpires { not_after: None } => f.write_str("its certificate cannot be read"),
            Self::CertificateNames => f.write_str("its certificate lacks names of nodes"),
            Self::OtherAuthority => f.write_str("it was made with another CA"),
            Self::TokenUnknown => f.write_str("the client's token is not in it"),
            Self::PodStuck => {
                f.write_str("it did not start with its older template, and the template has changed")
            }
            Self::PodUnhealthy => {
                f.write_str("it is not ready with its older template, and all other nodes are well")
            }
            Self::PodOutdated => {
                f.write_str("its template has changed, all other nodes are well and all data is settled")
            }
            Self::AtRest => f.write_str("every object is as it should be"),
            Self::BeingDeleted => f.write_str("the resource is being deleted; disks and the key are kept"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::UpdateWaits { pods: 1, message, .. } => {
                write!(f, "one pod waits for its update: {message}")
            }
            Self::UpdateWaits { pods, message, .. } => {
                write!(f, "{pods} pods wait for their update: {message}")
            }
            Self::AuthorityExpires { not_after } => {
                write!(
                    f,
                    "the CA ends at {not_after}; delete its Secret to have it and all certificates made anew"
                )
            }
        }
    }
}

/// Plans the next steps of a cluster.
pub fn plan(observed: &Observed, held: &Held, now: Timestamp) -> Result<Plan, Refusal> {
    let objects = resources::render(held);
    names_are_free(observed, held, &objects)?;
    nobody_scaled_up(observed, held)?;
    let mut plan = Plan::default();
    let (record, others) = objects.split_first().expect("the record is rendered first");
    // The record goes first: whatever happens after it, what is being installed is known.
    apply(observed, record, &mut plan);
    secrets(observed, held, now, &mut plan)?;
    for object in others {
        apply(observed, object, &mut plan);
    }
    let template_changes =
        plan.steps.iter().any(|s| matches!(&s.action, Action::Apply(Object::StatefulSet(_))));
    if !template_changes {
        update::plan(observed, held, now, &mut plan);
    }
    if let Some(refusal) = &held.refusal {
        plan.waits.push(Why::Refused(refusal.clone()));
    }
    if plan.steps.is_empty() && plan.waits.is_empty() {
        plan.waits.push(Why::AtRest);
    }
    Ok(plan)
}

fn apply(observed: &Observed, object: &Object, plan: &mut Plan) {
    let why = match object.find_in(observed) {
        None => Why::Missing,
        Some(found) => {
            let (mut wanted, found) = (object.to_value(), found.to_value());
            let marks =
                wanted["metadata"].as_object_mut().and_then(|metadata| metadata.remove("annotations"));
            // Where it differs is worth more than that it does, which is all that the mark tells.
            let path = first_difference(&wanted, &found).or_else(|| {
                let marks = serde_json::json!({ "metadata": { "annotations": marks } });
                first_difference(&marks, &found)
            });
            match path {
                None => return,
                Some(path) => Why::Differs { path },
            }
        }
    };
    plan.steps.push(Step { action: Action::Apply(object.clone()), why });
}

/// A thing of one of our names that is not ours is neither overwritten nor used.
fn names_are_free(observed: &Observed, held: &Held, objects: &[Object]) -> Result<(), Refusal> {
    let cluster = &held.cluster;
    for object in objects {
        let Some(found) = object.find_in(observed) else { continue };
        let taken = |owner: String| {
            Err(Refusal::NameTaken { kind: object.kind(), name: object.name().to_owned(), owner })
        };
        let metadata = found.metadata();
        let controller =
            metadata.owner_references.iter().flatten().find(|owner| owner.controller.unwrap_or_default());
        match controller {
            Some(owner) if owner.uid != cluster.uid => {
                return taken(format!("it belongs to {} {} of uid {}", owner.kind, owner.name, owner.uid));
            }
            Some(_) => {}
            None if metadata.labels.as_ref().and_then(|l| l.get(label::CLUSTER)) != Some(&cluster.name) => {
                return taken("it has no owner".to_owned());
            }
            None => {}
        }
    }
    let names = cluster.names();
    for name in [
        names.authority_secret(),
        names.node_certificate_secret(),
        names.operator_certificate_secret(),
        names.client_secret(),
        names.tokens_secret(),
    ] {
        let label = observed.secrets.get(&name).map(|fact| fact.cluster_label.as_ref());
        if label.is_some_and(|label| label != Some(&cluster.name)) {
            let owner = "it lacks the cluster's label".to_owned();
            return Err(Refusal::NameTaken { kind: "Secret", name, owner });
        }
    }
    Ok(())
}

/// Nodes that somebody added may hold data by now, so the set is not scaled back by itself.
fn nobody_scaled_up(observed: &Observed, held: &Held) -> Result<(), Refusal> {
    let cluster = &held.cluster;
    for zone in &cluster.pool.zones {
        let name = cluster.names().stateful_set(&cluster.pool.name, &zone.name);
        let set = observed.stateful_sets.iter().find(|set| set.metadata.name.as_ref() == Some(&name));
        let found = set.and_then(|set| set.spec.as_ref()?.replicas).unwrap_or_default();
        if found > zone.nodes {
            return Err(Refusal::ScaledByHand { set: name, found, installed: zone.nodes });
        }
    }
    Ok(())
}

fn secrets(observed: &Observed, held: &Held, now: Timestamp, plan: &mut Plan) -> Result<(), Refusal> {
    etcd_certificate(observed, held)?;
    key(observed, held, plan)?;
    let names = held.cluster.names();
    let fact = |name: &str| observed.secrets.get(name);
    let has = |fact: &SecretFact, entries: &[&str]| entries.iter().all(|entry| fact.entries.contains(*entry));
    let mut write = |name: String, kind: SecretKind, why: Why| {
        let action = Action::WriteSecret(SecretRequest { name, kind, owned: true });
        plan.steps.push(Step { action, why });
    };

    let authority =
        fact(&names.authority_secret()).filter(|f| has(f, &[entry::CA_CERTIFICATE, entry::CA_KEY]));
    if authority.is_none() {
        write(names.authority_secret(), SecretKind::Authority, Why::Missing);
    }
    let other_authority = |fact: &SecretFact| authority.is_none_or(|a| a.authority != fact.authority);

    let hosts = names.certificate_hosts();
    let certificates = [
        (names.node_certificate_secret(), SecretKind::NodeCertificate { dns_names: hosts.clone() }),
        (names.operator_certificate_secret(), SecretKind::OperatorCertificate),
    ];
    for (name, kind) in certificates {
        let complete = [entry::CERTIFICATE, entry::KEY, entry::CA_CERTIFICATE];
        let why = match fact(&name).filter(|f| has(f, &complete)) {
            None => Why::Missing,
            Some(found) if other_authority(found) => Why::OtherAuthority,
            Some(found) if ends_soon(found, now) => Why::CertificateExpires { not_after: found.not_after },
            Some(found)
                if matches!(kind, SecretKind::NodeCertificate { .. })
                    && hosts.iter().any(|host| !found.dns_names.contains(host)) =>
            {
                Why::CertificateNames
            }
            Some(_) => continue,
        };
        write(name, kind, why);
    }

    let client = fact(&names.client_secret()).filter(|f| has(f, &[entry::TOKEN, entry::CA_CERTIFICATE]));
    match client {
        None => write(names.client_secret(), SecretKind::Client, Why::Missing),
        Some(found) if other_authority(found) => {
            write(names.client_secret(), SecretKind::Client, Why::OtherAuthority);
        }
        Some(_) => {}
    }
    let known = fact(&names.tokens_secret()).filter(|f| has(f, &[entry::TOKENS]));
    match (known, client) {
        (None, _) => write(names.tokens_secret(), SecretKind::Tokens, Why::Missing),
        (Some(known), Some(client)) if client.token_digests.is_subset(&known.token_digests) => {}
        (Some(_), _) => write(names.tokens_secret(), SecretKind::Tokens, Why::TokenUnknown),
    }
    if let Some(not_after) = authority.and_then(|a| ends_soon(a, now).then_some(a.not_after).flatten()) {
        plan.waits.push(Why::AuthorityExpires { not_after });
    }
    Ok(())
}

/// The key is made only where no disk can have been written with another.
fn key(observed: &Observed, held: &Held, plan: &mut Plan) -> Result<(), Refusal> {
    let cluster = &held.cluster;
    let name = cluster.key_secret();
    let found = observed.secrets.get(&name);
    if found.is_some_and(|fact| fact.entries.contains(entry::KEK)) {
        return Ok(());
    }
    let installed = !observed.stateful_sets.is_empty() || !observed.volume_claims.is_empty();
    if installed {
        return Err(Refusal::KeyLost { name });
    }
    if cluster.given_key_secret.is_some() || found.is_some() {
        return Err(Refusal::KeyMissing { name, entry: entry::KEK });
    }
    let action = Action::WriteSecret(SecretRequest { name, kind: SecretKind::Key, owned: false });
    plan.steps.push(Step { action, why: Why::Missing });
    Ok(())
}

fn etcd_certificate(observed: &Observed, held: &Held) -> Result<(), Refusal> {
    let MetadataStore::Etcd { tls_secret: Some(name), .. } = &held.cluster.metadata else {
        return Ok(());
    };
    let none = BTreeSet::new();
    let entries = observed.secrets.get(name).map_or(&none, |fact| &fact.entries);
    for entry in [entry::CA_CERTIFICATE, entry::CERTIFICATE, entry::KEY] {
        if !entries.contains(entry) {
            return Err(Refusal::EtcdCertificateMissing { name: name.clone(), entry });
        }
    }
    Ok(())
}

/// In the last third of its life, or unreadable.
pub fn ends_soon(fact: &SecretFact, now: Timestamp) -> bool {
    match (fact.not_before, fact.not_after) {
        (Some(start), Some(end)) => {
            let (start, end, now) = (start.as_second(), end.as_second(), now.as_second());
            end - now < (end - start) / 3
        }
        _ => true,
    }
}
