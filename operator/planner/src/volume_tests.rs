//! Tests of `volume.rs`.

use cairn_crds::manifest::{self, Manifest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::testing;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn stored() -> StoredVolume {
    StoredVolume {
        id: "7".into(),
        copies: 3,
        chunk_size_bytes: 4 << 20,
        being_deleted: false,
        files: Some(12),
        bytes: Some(3 << 30),
    }
}

fn observed() -> VolumeObserved {
    let volume = "
apiVersion: cairn.storage/v1alpha1
kind: Volume
metadata: {name: files, namespace: default, generation: 2}
spec: {clusterRef: {name: demo}}
";
    let text = format!("{}---{volume}", testing::CLUSTER);
    let mut manifests = manifest::parse(&text).unwrap();
    let (Some(Manifest::Volume(volume)), Some(Manifest::StorageCluster(cluster))) =
        (manifests.pop(), manifests.pop())
    else {
        panic!("a cluster and a volume");
    };
    VolumeObserved {
        mode: Mode::Kubernetes,
        volume: *volume,
        cluster: Some(*cluster),
        stored: Stored::Absent,
    }
}

fn reason(outcome: &VolumeOutcome, kind: &str) -> (String, String) {
    let condition = outcome.status.conditions.iter().find(|c| c.type_ == kind).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_volume_is_created_and_then_rests() {
    let mut seen = observed();
    let outcome = reconcile(&seen, now());
    let create = VolumeAction::Create { name: "files".into(), copies: 3, chunk_size_bytes: 4 << 20 };
    assert_eq!(outcome.steps, [create]);
    assert_eq!(reason(&outcome, "Reconciling"), pair("True", "Creating"));

    seen.volume.status = Some(outcome.status);
    seen.stored = Stored::Present(stored());
    let outcome = reconcile(&seen, now());
    assert!(outcome.steps.is_empty() && outcome.status_changed);
    assert_eq!(reason(&outcome, "Ready"), pair("True", "VolumeExists"));
    assert_eq!(outcome.status.size.as_deref(), Some("3Gi"));
    assert_eq!(outcome.recheck_after_s, REST_RECHECK_S);

    let uncounted = Stored::Present(StoredVolume { files: None, bytes: None, ..stored() });
    let new = VolumeObserved { stored: uncounted, ..seen.clone() };
    let waiting = reconcile(&new, now());
    assert_eq!(reason(&waiting, "Ready"), pair("True", "VolumeExists"));
    assert_eq!(waiting.recheck_after_s, BUSY_RECHECK_S, "soon its files are counted");

    seen.volume.status = Some(outcome.status);
    assert!(!reconcile(&seen, now()).status_changed, "nothing is written at rest");
}

#[test]
fn what_cannot_be_is_stalled() {
    type Change = fn(&mut VolumeObserved);
    let cases: [(Change, &str, &str); 6] = [
        (|o| o.cluster = None, "ClusterMissing", "create it"),
        (
            |o| o.volume.spec.copies = 4,
            "FewerZonesThanCopies",
            "4 copies need 4 zones, and cluster demo has 3",
        ),
        (|o| o.volume.spec.copies = 0, "OutOfBounds", "1 to 7"),
        (|o| o.volume.metadata.name = Some("a.b".into()), "InvalidName", "hyphens"),
        (
            |o| o.stored = Stored::Present(StoredVolume { copies: 2, ..stored() }),
            "VolumeDiffers",
            "copies 2, and the spec says 3",
        ),
        (
            |o| o.stored = Stored::Present(StoredVolume { chunk_size_bytes: 1 << 20, ..stored() }),
            "VolumeDiffers",
            "chunkSizeMiB 1, and the spec says 4",
        ),
    ];
    for (change, expected, words) in cases {
        let mut seen = observed();
        change(&mut seen);
        let outcome = reconcile(&seen, now());
        assert_eq!(reason(&outcome, "Stalled"), pair("True", expected));
        assert_eq!(reason(&outcome, "Ready"), pair("False", expected));
        assert!(outcome.steps.is_empty());
        assert!(outcome.why.message.contains(words), "{}", outcome.why.message);
    }
}

#[test]
fn installed_zones_count_not_wished_ones() {
    let mut seen = observed();
    let zones = ["a", "b"].map(|name| cairn_crds::ZoneStatus { name: name.into(), ..Default::default() });
    let status = cairn_crds::StorageClusterStatus { zones: zones.to_vec(), ..Default::default() };
    seen.cluster.as_mut().unwrap().status = Some(status);
    assert_eq!(reason(&reconcile(&seen, now()), "Stalled").1, "FewerZonesThanCopies");
}

#[test]
fn an_unreachable_cluster_is_waited_for() {
    let mut seen = observed();
    seen.stored = Stored::Unknown("connection refused".into());
    let outcome = reconcile(&seen, now());
    assert!(outcome.steps.is_empty());
    assert_eq!(reason(&outcome, "Reconciling"), pair("True", "ClusterNotReached"));
    assert_eq!(reason(&outcome, "Stalled").0, "False");
}

#[test]
fn only_delete_needs_a_finalizer() {
    let mut seen = observed();
    seen.volume.spec.deletion_policy = DeletionPolicy::Delete;
    let steps = reconcile(&seen, now()).steps;
    assert_eq!(steps[0], VolumeAction::AddFinalizer, "before the volume is made");
    assert!(matches!(steps[1], VolumeAction::Create { .. }));

    seen.volume.metadata.finalizers = Some(vec![VOLUME_FINALIZER.into()]);
    seen.stored = Stored::Present(stored());
    assert!(reconcile(&seen, now()).steps.is_empty());
    seen.volume.spec.deletion_policy = DeletionPolicy::Retain;
    assert_eq!(reconcile(&seen, now()).steps, [VolumeAction::RemoveFinalizer]);
}

#[test]
fn deletion_follows_the_policy() {
    let mut seen = observed();
    seen.volume.metadata.deletion_timestamp = Some(Time(now()));
    seen.stored = Stored::Present(stored());
    assert!(reconcile(&seen, now()).steps.is_empty(), "Retain: nothing is deleted");

    seen.volume.metadata.finalizers = Some(vec![VOLUME_FINALIZER.into()]);
    assert_eq!(reconcile(&seen, now()).steps, [VolumeAction::RemoveFinalizer], "Retain, decided late");

    seen.volume.spec.deletion_policy = DeletionPolicy::Delete;
    assert_eq!(reconcile(&seen, now()).steps, [VolumeAction::Delete { name: "files".into() }]);

    seen.volume.status = Some(VolumeStatus { volume_id: Some("6".into()), ..Default::default() });
    assert_eq!(
        reconcile(&seen, now()).steps,
        [VolumeAction::RemoveFinalizer],
        "another volume of the name is kept"
    );

    seen.stored = Stored::Present(StoredVolume { being_deleted: true, ..stored() });
    assert_eq!(reconcile(&seen, now()).steps, [VolumeAction::RemoveFinalizer]);
    seen.stored = Stored::Unknown("down".into());
    assert!(reconcile(&seen, now()).steps.is_empty(), "it waits");
    seen.cluster = None;
    assert_eq!(reconcile(&seen, now()).steps, [VolumeAction::RemoveFinalizer], "nobody is left to ask");
}
