//! Volumes: what to do about one, from what was seen of it and of its cluster.

use cairn_crds::{DeletionPolicy, StorageCluster, Volume, VolumeStatus, human_bytes};
use k8s_openapi::jiff::Timestamp;

use crate::contract::VOLUME_FINALIZER;
use crate::health::is_true;
use crate::refusal::Refusal;
use crate::status::{Finding, dated};
use crate::validate::{self, Mode, ValidVolume};

/// A Volume and what was seen of it.
#[derive(Clone, Debug)]
pub struct VolumeObserved {
    pub mode: Mode,
    pub volume: Volume,
    /// The StorageCluster it names, if that exists.
    pub cluster: Option<StorageCluster>,
    pub stored: Stored,
}

/// The volume of this name in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The cluster could not be asked; says why.
    Unknown(String),
    Absent,
    Present(StoredVolume),
}

/// A volume as the nodes have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVolume {
    pub id: String,
    pub copies: i32,
    pub chunk_size_bytes: i64,
    pub being_deleted: bool,
    /// As last counted, if it was.
    pub files: Option<i64>,
    pub bytes: Option<i64>,
}

/// A change, in Kubernetes or in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeAction {
    /// So that the resource stays until its files are deleted.
    AddFinalizer,
    /// `Volumes.CreateVolume`, which answers the volume if it exists with the same settings.
    Create {
        name: String,
        copies: i32,
        chunk_size_bytes: i64,
    },
    /// `Volumes.DeleteVolume`, with the files.
    Delete {
        name: String,
    },
    RemoveFinalizer,
}

/// What follows from an observation.
#[derive(Clone, Debug)]
pub struct VolumeOutcome {
    pub steps: Vec<VolumeAction>,
    /// Why these steps, or why none.
    pub why: Finding,
    pub status: VolumeStatus,
    pub status_changed: bool,
    pub recheck_after_s: u32,
}

/// Decides what to do about a Volume.
pub fn reconcile(observed: &VolumeObserved, now: Timestamp) -> VolumeOutcome {
    if observed.volume.metadata.deletion_timestamp.is_some() {
        return deletion(observed, now);
    }
    match decide(observed) {
        Ok((steps, why, ready)) => {
            let steps = with_finalizer(observed, steps);
            outcome(observed, steps, why, if ready { State::Ready } else { State::Working }, now)
        }
        Err(refusal) => {
            let why = Finding::new(refusal.reason(), refusal.to_string());
            // A name that is being emptied, and a cluster that is still to come, mend themselves.
            let state = match refusal {
                Refusal::VolumeBeingEmptied { .. } => State::Working,
                _ => State::Stalled,
            };
            outcome(observed, Vec::new(), why, state, now)
        }
    }
}

enum State {
    Ready,
    Working,
    Stalled,
}

type Decision = (Vec<VolumeAction>, Finding, bool);

fn decide(observed: &VolumeObserved) -> Result<Decision, Refusal> {
    let wanted = validate::volume(&observed.volume)?;
    let Some(cluster) = &observed.cluster else {
        return Err(Refusal::ClusterMissing { name: wanted.cluster });
    };
    let zones = zone_count(cluster, observed.mode)?;
    if zones < wanted.copies {
        return Err(Refusal::FewerZonesThanCopies { cluster: wanted.cluster, copies: wanted.copies, zones });
    }
    match &observed.stored {
        Stored::Unknown(problem) => {
            let message = format!("cluster {} could not be asked: {problem}", wanted.cluster);
            Ok((Vec::new(), Finding::new("ClusterNotReached", message), false))
        }
        Stored::Absent => {
            let ValidVolume { name, copies, chunk_size_bytes, .. } = wanted;
            let why = Finding::new("Creating", "the volume does not exist in the cluster yet");
            Ok((vec![VolumeAction::Create { name, copies, chunk_size_bytes }], why, false))
        }
        Stored::Present(stored) => matches(&wanted, stored),
    }
}

fn matches(wanted: &ValidVolume, stored: &StoredVolume) -> Result<Decision, Refusal> {
    let volume = || wanted.name.clone();
    if stored.being_deleted {
        return Err(Refusal::VolumeBeingEmptied { volume: volume() });
    }
    let differs = |field, stored: i64, wanted: i64| {
        let (stored, wanted) = (stored.to_string(), wanted.to_string());
        Refusal::VolumeDiffers { volume: volume(), field, stored, wanted }
    };
    if stored.copies != wanted.copies {
        return Err(differs("copies", i64::from(stored.copies), i64::from(wanted.copies)));
    }
    if stored.chunk_size_bytes != wanted.chunk_size_bytes {
        return Err(differs("chunkSizeMiB", stored.chunk_size_bytes >> 20, wanted.chunk_size_bytes >> 20));
    }
    Ok((Vec::new(), Finding::new("VolumeExists", "the volume exists as it should"), true))
}

/// Zones that the cluster has: those installed, which its status tells, or those that it will have.
fn zone_count(cluster: &StorageCluster, mode: Mode) -> Result<i32, Refusal> {
    let installed = cluster.status.as_ref().map(|status| status.zones.len()).unwrap_or_default();
    let count = if installed > 0 { installed } else { validate::cluster(cluster, mode)?.pool.zones.len() };
    Ok(count as i32)
}

/// Only a volume that is to be deleted with its resource needs a finalizer; `Retain` never blocks anything.
fn with_finalizer(observed: &VolumeObserved, mut steps: Vec<VolumeAction>) -> Vec<VolumeAction> {
    let wanted = observed.volume.spec.deletion_policy == DeletionPolicy::Delete;
    match (wanted, has_finalizer(observed)) {
        // Before the volume can have files.
        (true, false) => steps.insert(0, VolumeAction::AddFinalizer),
        (false, true) => steps.push(VolumeAction::RemoveFinalizer),
        _ => {}
    }
    steps
}

fn has_finalizer(observed: &VolumeObserved) -> bool {
    observed.volume.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == VOLUME_FINALIZER)
}

fn deletion(observed: &VolumeObserved, now: Timestamp) -> VolumeOutcome {
    let name = observed.volume.metadata.name.clone().unwrap_or_default();
    let done = |steps: Vec<VolumeAction>, reason, message: &str| (steps, Finding::new(reason, message));
    let (steps, why) = if !has_finalizer(observed) {
        done(Vec::new(), "BeingDeleted", "the resource goes; its files are kept")
    } else if observed.volume.spec.deletion_policy == DeletionPolicy::Retain {
        done(vec![VolumeAction::RemoveFinalizer], "FilesKept", "the files are kept, as deletionPolicy says")
    } else if observed.cluster.is_none() {
        let message = "the cluster does not exist any more; its disks keep the files";
        done(vec![VolumeAction::RemoveFinalizer], "ClusterMissing", message)
    } else {
        match &observed.stored {
            Stored::Absent => {
                done(vec![VolumeAction::RemoveFinalizer], "FilesDeleted", "the files are deleted")
            }
            Stored::Present(stored) if stored.being_deleted => done(
                vec![VolumeAction::RemoveFinalizer],
                "FilesDeleted",
                "the volume is marked and is being emptied",
            ),
            // Another volume of this name: it was made by somebody else after ours had gone. Not ours to delete.
            Stored::Present(stored) if is_another(observed, stored) => {
                let message = "a newer volume of this name exists and is kept";
                done(vec![VolumeAction::RemoveFinalizer], "AnotherVolume", message)
            }
            Stored::Present(_) => {
                done(vec![VolumeAction::Delete { name }], "DeletingFiles", "the files are being deleted")
            }
            Stored::Unknown(problem) => {
                let message =
                    format!("the files are deleted as soon as the cluster can be reached: {problem}");
                done(Vec::new(), "ClusterNotReached", &message)
            }
        }
    };
    outcome(observed, steps, why, State::Working, now)
}

fn is_another(observed: &VolumeObserved, stored: &StoredVolume) -> bool {
    let known = observed.volume.status.as_ref().and_then(|status| status.volume_id.as_ref());
    known.is_some_and(|id| *id != stored.id)
}

const BUSY_RECHECK_S: u32 = 5;
const REST_RECHECK_S: u32 = 60;

fn outcome(
    observed: &VolumeObserved,
    steps: Vec<VolumeAction>,
    why: Finding,
    state: State,
    now: Timestamp,
) -> VolumeOutcome {
    let before = observed.volume.status.clone().unwrap_or_default();
    let mut status = before.clone();
    status.observed_generation = observed.volume.metadata.generation;
    if let Stored::Present(stored) = &observed.stored
        && matches!(state, State::Ready)
    {
        status.volume_id = Some(stored.id.clone());
        status.files = stored.files.or(status.files);
        status.bytes = stored.bytes.or(status.bytes);
        status.size = status.bytes.map(human_bytes);
    }
    let calm = |reason, message: &str| ("False", Finding::new(reason, message));
    let (ready, reconciling, stalled) = match state {
        State::Ready => (
            ("True", why.clone()),
            calm("AtRest", "nothing is under way"),
            calm("NotStalled", "nothing needs help"),
        ),
        State::Working => {
            (("False", why.clone()), ("True", why.clone()), calm("NotStalled", "nothing needs help"))
        }
        State::Stalled => {
            (("False", why.clone()), calm("AtRest", "nothing is under way"), ("True", why.clone()))
        }
    };
    let found = vec![
        ("Ready", ready.0, ready.1),
        ("Reconciling", reconciling.0, reconciling.1),
        ("Stalled", stalled.0, stalled.1),
    ];
    status.conditions = dated(found, observed.volume.metadata.generation, &before.conditions, now);
    // A new volume's files are counted a moment after it is made: nobody should wait a minute to see that.
    let rests = is_true(&status.conditions, "Ready") && status.files.is_some();
    let recheck_after_s = if rests { REST_RECHECK_S } else { BUSY_RECHECK_S };
    VolumeOutcome { steps, why, status_changed: status != before, status, recheck_after_s }
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
