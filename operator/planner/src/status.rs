//! Status from what was observed and planned. Conditions follow kstatus: Ready, Reconciling and Stalled tell tools
//! whether to wait, go on or call somebody; the others tell people about their data.
//!
//! The same inputs give the same status, byte for byte, and times change only with a condition's status: so a cluster at
//! rest causes no writes.

use std::collections::BTreeSet;

use cairn_crds::{
    CapacityStatus, Condition, NodesStatus, PlacementGroupsStatus, StorageClusterStatus, ZoneStatus,
    human_bytes,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::observed::{NodesReport, Readable};
use crate::validate::PlannedNode;

/// Longest message of a condition, in characters.
const MESSAGE_CHARS_MAX: usize = 1024;

/// A reason and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub reason: &'static str,
    pub message: String,
}

impl Finding {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What a cluster's status is made of, in Kubernetes and in local mode.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    pub generation: Option<i64>,
    /// Every node that should be; empty while the spec cannot be read.
    pub nodes: Vec<PlannedNode>,
    /// Names of those that serve.
    pub ready: BTreeSet<String>,
    pub report: Option<NodesReport>,
    /// Somebody must help.
    pub stalled: Option<Finding>,
    /// Work is under way.
    pub reconciling: Option<Finding>,
    pub update_blocked: Option<Finding>,
    pub scale_down_blocked: Option<Finding>,
    /// `None`: nothing is known of certificates. `Some(Err)`: what is wrong with them.
    pub certificates: Option<Result<(), Finding>>,
    pub endpoint: Option<String>,
    pub client_secret_name: Option<String>,
    pub image: Option<String>,
}

/// The status of a cluster; `previous` gives the times of conditions that did not change.
pub fn cluster_status(situation: &Situation, previous: &[Condition], now: Timestamp) -> StorageClusterStatus {
    let desired = situation.nodes.len();
    let serving = |node: &&PlannedNode| situation.ready.contains(&node.name);
    let ready = situation.nodes.iter().filter(serving).count();
    StorageClusterStatus {
        observed_generation: situation.generation,
        conditions: dated(findings(situation, ready), situation.generation, previous, now),
        nodes: (desired > 0).then(|| NodesStatus {
            desired: desired as i32,
            ready: ready as i32,
            summary: format!("{ready}/{desired}"),
        }),
        zones: zones(situation),
        capacity: situation.report.as_ref().and_then(capacity),
        placement_groups: situation.report.as_ref().and_then(placement_groups),
        endpoint: situation.endpoint.clone(),
        client_secret_name: situation.client_secret_name.clone(),
        image: situation.image.clone(),
    }
}

fn zones(situation: &Situation) -> Vec<ZoneStatus> {
    let mut zones: Vec<ZoneStatus> = Vec::new();
    for node in &situation.nodes {
        let index =
            zones.iter().position(|z| z.pool == node.pool && z.name == node.zone).unwrap_or_else(|| {
                zones.push(ZoneStatus {
                    pool: node.pool.clone(),
                    name: node.zone.clone(),
                    desired: 0,
                    ready: 0,
                });
                zones.len() - 1
            });
        zones[index].desired += 1;
        zones[index].ready += i32::from(situation.ready.contains(&node.name));
    }
    zones
}

fn capacity(report: &NodesReport) -> Option<CapacityStatus> {
    let total = report.capacity_bytes;
    if total <= 0 {
        return None;
    }
    let grain = (total / 1000).max(1);
    let used = (report.used_bytes.clamp(0, total) + grain / 2) / grain * grain;
    let summary = format!("{}/{}", human_bytes(used), human_bytes(total));
    Some(CapacityStatus { total_bytes: total, used_bytes: used, summary })
}

fn placement_groups(report: &NodesReport) -> Option<PlacementGroupsStatus> {
    let groups = report.placement_groups;
    (groups.total > 0).then(|| PlacementGroupsStatus {
        total: groups.total,
        settled: groups.settled,
        degraded: groups.degraded,
        unavailable: groups.unavailable,
        summary: format!("{}/{}", groups.settled, groups.total),
    })
}

type Found = (&'static str, &'static str, Finding);

fn findings(situation: &Situation, ready: usize) -> Vec<Found> {
    let abnormal = |kind, finding: &Option<Finding>, calm: (&'static str, &str)| match finding {
        Some(finding) => (kind, "True", finding.clone()),
        None => (kind, "False", Finding::new(calm.0, calm.1)),
    };
    let mut found = vec![
        readiness(situation, ready),
        abnormal("Reconciling", &situation.reconciling, ("AtRest", "nothing is under way")),
        abnormal("Stalled", &situation.stalled, ("NotStalled", "nothing needs help")),
    ];
    found.extend(data(situation));
    let scaling = ("NotShrinking", "no node is to go");
    found.push(abnormal(
        "UpdateBlocked",
        &situation.update_blocked,
        ("NoUpdateWaits", "no pod waits for an update"),
    ));
    found.push(abnormal("ScaleDownBlocked", &situation.scale_down_blocked, scaling));
    match &situation.certificates {
        None => {}
        Some(Ok(())) => {
            found.push((
                "CertificatesValid",
                "True",
                Finding::new("Valid", "all certificates are in good time"),
            ));
        }
        Some(Err(finding)) => found.push(("CertificatesValid", "False", finding.clone())),
    }
    found
}

fn readiness(situation: &Situation, ready: usize) -> Found {
    let desired = situation.nodes.len();
    let counts = format!("{ready} of {desired} nodes are ready");
    let not = |finding: Finding| ("Ready", "False", finding);
    if let Some(stalled) = &situation.stalled {
        return not(stalled.clone());
    }
    if ready < desired || desired == 0 {
        return not(Finding::new("NodesNotReady", counts));
    }
    if let Some(reconciling) = &situation.reconciling {
        return not(reconciling.clone());
    }
    match &situation.report {
        None => {
            not(Finding::new("NodesNotReached", format!("{counts}, but none could be asked about its data")))
        }
        Some(report) if report.metadata_problem.is_some() => {
            not(Finding::new("MetadataUnavailable", "the metadata store does not answer"))
        }
        Some(report) if report.placement_groups.total == 0 => {
            not(Finding::new("NoMapYet", format!("{counts}; the first cluster map is not published yet")))
        }
        Some(report) if report.placement_groups.unavailable > 0 => {
            let groups = report.placement_groups;
            let message =
                format!("{} of {} placement groups cannot be read", groups.unavailable, groups.total);
            not(Finding::new("DataUnavailable", message))
        }
        Some(_) => ("Ready", "True", Finding::new("AllNodesReady", counts)),
    }
}

/// Available, DataProtected and MetadataHealthy, from what the nodes say.
fn data(situation: &Situation) -> [Found; 3] {
    let Some(report) = &situation.report else {
        let unknown = || Finding::new("NodesNotReached", "no node could be asked");
        let unknown = |kind| (kind, "Unknown", unknown());
        return [unknown("Available"), unknown("DataProtected"), unknown("MetadataHealthy")];
    };
    [availability(report), protection(report), metadata_health(report)]
}

/// Never claims that everything can be read unless the nodes that are live now were compared with the metadata.
fn availability(report: &NodesReport) -> Found {
    let groups = report.placement_groups;
    let live = report.live.len();
    if groups.total == 0 {
        ("Available", "False", Finding::new("NoMapYet", "the first cluster map is not published yet"))
    } else if report.metadata_problem.is_some() {
        let message =
            "the metadata store does not answer; open downloads go on, requests are told to come again";
        ("Available", "False", Finding::new("MetadataUnavailable", message))
    } else if groups.unavailable > 0 {
        let message = format!(
            "{} of {} placement groups have no copy on a live node: start the missing nodes again",
            groups.unavailable, groups.total
        );
        ("Available", "False", Finding::new("DataUnavailable", message))
    } else if let Readable::Without(missing) = report.readable {
        let help = match report.lost_files {
            0 => "start the missing nodes again",
            _ => "DataProtected names files that are lost",
        };
        let message = format!(
            "in {missing} of {} placement groups, content of files is on no live node: {help}",
            groups.total
        );
        ("Available", "False", Finding::new("DataUnavailable", message))
    } else if report.readable == Readable::BeingChecked {
        let message = format!("{live} nodes serve; whether all data can be read is being checked");
        ("Available", "Unknown", Finding::new("BeingChecked", message))
    } else {
        ("Available", "True", Finding::new("Serving", format!("{live} nodes serve all data")))
    }
}

fn protection(report: &NodesReport) -> Found {
    let groups = report.placement_groups;
    if report.lost_files > 0 {
        ("DataProtected", "False", Finding::new("DataLost", lost(report)))
    } else if report.metadata_restored {
        let message = "the metadata store is an older copy of what it was: what was stored since then is not known; see MetadataHealthy";
        ("DataProtected", "Unknown", Finding::new("MetadataRestored", message))
    } else if groups.total > 0 && groups.settled == groups.total {
        ("DataProtected", "True", Finding::new("Settled", "every copy is where it should be"))
    } else {
        let message = format!("{} of {} placement groups are settled", groups.settled, groups.total);
        let reason = if groups.unavailable > 0 { "DataUnavailable" } else { "CopiesMissing" };
        ("DataProtected", "False", Finding::new(reason, message))
    }
}

fn metadata_health(report: &NodesReport) -> Found {
    match &report.metadata_problem {
        None if report.metadata_restored => {
            let message = "the metadata store is an older copy of what it was, so nothing is deleted; restore a newer copy, or \
                           accept this one with `cairn-node recover` in any storage pod";
            ("MetadataHealthy", "False", Finding::new("MetadataRestored", message))
        }
        None => ("MetadataHealthy", "True", Finding::new("Answers", "the metadata store answers")),
        Some(problem) => ("MetadataHealthy", "False", Finding::new("MetadataUnavailable", problem.clone())),
    }
}

/// Which files are lost, in a condition's words.
fn lost(report: &NodesReport) -> String {
    /// Names in the message; `cairn status` shows more.
    const SHOWN: usize = 3;
    let names: Vec<String> = report.lost.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let more = report.lost_files.saturating_sub(names.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "{} files have content that no disk has any more: {}{more}; upload them again, or delete them",
        report.lost_files,
        names.join(", ")
    )
}

/// Conditions with generation and times.
pub fn dated(
    found: Vec<(&'static str, &'static str, Finding)>,
    generation: Option<i64>,
    previous: &[Condition],
    now: Timestamp,
) -> Vec<Condition> {
    // Whole seconds: that is what the API server keeps.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let one = |(kind, status, finding): (&str, &str, Finding)| {
        let before = previous.iter().find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: finding.reason.to_owned(),
            message: finding.message.chars().take(MESSAGE_CHARS_MAX).collect(),
            observed_generation: generation,
            last_transition_time: before
                .map_or(Time(now), |condition| condition.last_transition_time.clone()),
        }
    };
    found.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::is_true;
    use crate::observed::PlacementGroups;
    use crate::testing;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn healthy() -> Situation {
        let nodes = testing::valid_cluster().nodes();
        let names: BTreeSet<String> = nodes.iter().map(|node| node.name.clone()).collect();
        Situation {
            generation: Some(3),
            ready: names.clone(),
            report: Some(NodesReport {
                readable: Readable::All,
                lost_files: 0,
                lost: Vec::new(),
                metadata_restored: false,
                live: names,
                capacity_bytes: 4 << 30,
                used_bytes: 1 << 30,
                placement_groups: PlacementGroups { total: 128, settled: 128, degraded: 0, unavailable: 0 },
                metadata_problem: None,
            }),
            nodes,
            ..Situation::default()
        }
    }

    fn reason<'a>(status: &'a StorageClusterStatus, kind: &str) -> &'a str {
        status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.reason.as_str()).unwrap_or_default()
    }

    #[test]
    fn a_healthy_cluster() {
        let status = cluster_status(&healthy(), &[], at(100));
        for kind in ["Ready", "Available", "DataProtected", "MetadataHealthy"] {
            assert!(is_true(&status.conditions, kind), "{kind}");
        }
        for kind in ["Stalled", "Reconciling", "UpdateBlocked", "ScaleDownBlocked"] {
            assert!(!is_true(&status.conditions, kind), "{kind}");
        }
        assert_eq!(status.nodes.unwrap().summary, "4/4");
        assert_eq!(status.capacity.unwrap().summary, "1Gi/4Gi");
        assert_eq!(status.placement_groups.unwrap().summary, "128/128");
        let zones: Vec<_> = status.zones.iter().map(|z| (z.name.as_str(), z.ready, z.desired)).collect();
        assert_eq!(zones, [("a", 2, 2), ("b", 1, 1), ("c", 1, 1)]);
    }

    #[test]
    fn times_change_with_the_status_only() {
        let first = cluster_status(&healthy(), &[], at(100));
        let mut situation = healthy();
        situation.ready.pop_first();
        let second = cluster_status(&situation, &first.conditions, at(200));
        let time = |status: &StorageClusterStatus, kind: &str| {
            status.conditions.iter().find(|c| c.type_ == kind).unwrap().last_transition_time.0.as_second()
        };
        assert_eq!((time(&second, "Ready"), time(&second, "Available")), (200, 100));
        assert_eq!(cluster_status(&healthy(), &first.conditions, at(300)), first, "nothing to write at rest");
    }

    #[test]
    fn a_lost_node_is_degradation_not_loss() {
        let mut situation = healthy();
        let report = situation.report.as_mut().unwrap();
        report.placement_groups = PlacementGroups { total: 128, settled: 60, degraded: 68, unavailable: 0 };
        situation.ready.pop_first();
        let status = cluster_status(&situation, &[], at(1));
        assert!(is_true(&status.conditions, "Available"));
        assert_eq!(reason(&status, "DataProtected"), "CopiesMissing");
        assert_eq!(reason(&status, "Ready"), "NodesNotReady");
    }

    #[test]
    fn unavailable_data_and_metadata_are_said() {
        let mut situation = healthy();
        situation.report.as_mut().unwrap().placement_groups.unavailable = 3;
        let status = cluster_status(&situation, &[], at(1));
        assert_eq!(
            (reason(&status, "Available"), reason(&status, "Ready")),
            ("DataUnavailable", "DataUnavailable")
        );
        let mut situation = healthy();
        situation.report.as_mut().unwrap().metadata_problem = Some("etcd: deadline exceeded".into());
        let status = cluster_status(&situation, &[], at(1));
        assert_eq!(reason(&status, "MetadataHealthy"), "MetadataUnavailable");
        situation.report = None;
        let status = cluster_status(&situation, &[], at(1));
        assert_eq!(reason(&status, "Available"), "NodesNotReached");
        assert!(!is_true(&status.conditions, "Ready"));
    }

    /// All that it names may be there: what it does not name any more is what matters.
    #[test]
    fn an_older_copy_of_the_metadata_protects_nothing() {
        let mut situation = healthy();
        assert!(is_true(&cluster_status(&situation, &[], at(1)).conditions, "DataProtected"));
        situation.report.as_mut().unwrap().metadata_restored = true;
        let status = cluster_status(&situation, &[], at(1));
        for kind in ["DataProtected", "MetadataHealthy"] {
            assert_eq!(reason(&status, kind), "MetadataRestored");
            assert!(!is_true(&status.conditions, kind), "{kind}");
        }
    }

    #[test]
    fn available_says_only_what_is_known_of_the_nodes_that_are_live() {
        let available = |readable: Readable, lost_files: u64| {
            let mut situation = healthy();
            let report = situation.report.as_mut().unwrap();
            (report.readable, report.lost_files) = (readable, lost_files);
            let status = cluster_status(&situation, &[], at(1));
            let found = status.conditions.into_iter().find(|c| c.type_ == "Available").unwrap();
            (found.status, found.reason, found.message)
        };
        let (status, reason, message) = available(Readable::BeingChecked, 0);
        assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "BeingChecked"));
        assert!(!message.contains("serve all data"), "{message}");
        let (status, reason, message) = available(Readable::Without(7), 0);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "DataUnavailable"));
        assert!(message.contains("in 7 of 128") && message.contains("start the missing nodes"), "{message}");
        let (status, _, message) = available(Readable::Without(7), 2);
        assert!(status == "False" && message.contains("DataProtected"), "{message}");
        assert_eq!(available(Readable::All, 0).0, "True");
    }

    #[test]
    fn used_bytes_are_coarse() {
        let mut report = healthy().report.unwrap();
        let before = capacity(&report);
        report.used_bytes += 1000;
        assert_eq!(capacity(&report), before);
        report.used_bytes = i64::MAX;
        assert_eq!(capacity(&report).unwrap().used_bytes, (4_i64 << 30) / 1000 * 1000);
    }

    #[test]
    fn long_messages_are_cut() {
        let situation = Situation { stalled: Some(Finding::new("X", "ä".repeat(5000))), ..healthy() };
        let status = cluster_status(&situation, &[], at(1));
        assert!(status.conditions.iter().all(|c| c.message.chars().count() <= MESSAGE_CHARS_MAX));
    }
}
