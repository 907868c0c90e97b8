//! Volumes from manifests: created if they are missing, refused if they differ, never deleted.

use std::time::Duration;

use cairn_client::Client;
use cairn_crds::Volume;
use cairn_node::meta::{
    SharedMeta,
    keys::{
        self,
        volume::{State, VolumeRecord},
    },
};
use cairn_planner::{
    Mode,
    health::is_true,
    volume::{Stored, StoredVolume, VolumeAction, VolumeObserved, VolumeOutcome, reconcile},
};
use k8s_openapi::jiff::Timestamp;

use super::{LocalError, Planned, manifests::Wanted};
use crate::nodes;

/// A volume is asked for so often before it is given up: each try has the client's own retries inside.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Refuses volumes that cannot be, before anything is started.
pub fn check(wanted: &Wanted) -> Result<(), LocalError> {
    for volume in &wanted.volumes {
        let observed = VolumeObserved {
            mode: Mode::Local,
            volume: volume.clone(),
            cluster: Some(wanted.cluster.clone()),
            stored: Stored::Unknown("it does not run yet".to_owned()),
        };
        accepted(volume, &reconcile(&observed, Timestamp::now()))?;
    }
    Ok(())
}

/// Refuses volumes that differ from those in the metadata store, before any node is started.
pub async fn check_stored(meta: &SharedMeta, planned: &Planned) -> Result<(), LocalError> {
    for volume in &planned.volumes {
        let observed = VolumeObserved {
            mode: Mode::Local,
            volume: volume.clone(),
            cluster: Some(planned.resource.clone()),
            stored: look_up(meta, name(volume)).await,
        };
        accepted(volume, &reconcile(&observed, Timestamp::now()))?;
    }
    Ok(())
}

/// As [`nodes::stored`], while there is no node to ask. What cannot be read is left for the nodes to tell.
async fn look_up(meta: &SharedMeta, name: &str) -> Stored {
    let entry = match meta.get(&keys::volume::key(name)).await {
        Ok(Some(entry)) => entry,
        Ok(None) => return Stored::Absent,
        Err(error) => return Stored::Unknown(error.to_string()),
    };
    match keys::from_json::<VolumeRecord>(&entry) {
        Ok(record) => Stored::Present(StoredVolume {
            id: record.id.to_string(),
            copies: record.copies.into(),
            chunk_size_bytes: record.chunk_size_bytes.into(),
            being_deleted: record.state == State::Deleting,
            files: None,
            bytes: None,
        }),
        Err(error) => Stored::Unknown(error.to_string()),
    }
}

/// Makes every volume exist.
pub async fn create(client: &Client, planned: &Planned) -> Result<(), LocalError> {
    for volume in &planned.volumes {
        create_one(client, planned, volume).await?;
    }
    Ok(())
}

async fn create_one(client: &Client, planned: &Planned, volume: &Volume) -> Result<(), LocalError> {
    let mut reason = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let observed = VolumeObserved {
            mode: Mode::Local,
            volume: volume.clone(),
            cluster: Some(planned.resource.clone()),
            stored: nodes::stored(client, name(volume)).await,
        };
        let outcome = reconcile(&observed, Timestamp::now());
        accepted(volume, &outcome)?;
        if is_true(&outcome.status.conditions, "Ready") {
            return Ok(());
        }
        reason = outcome.why.message;
        for step in outcome.steps {
            // Finalizers are Kubernetes' own, and deletion is never asked for here.
            let VolumeAction::Create { name, copies, chunk_size_bytes } = step else { continue };
            match client.create_volume(nodes::new_volume(name, copies, chunk_size_bytes)).await {
                Ok((created, new)) => {
                    tracing::info!(volume = created.name, new, "the volume exists");
                    return Ok(());
                }
                Err(error) => reason = error.to_string(),
            }
        }
    }
    Err(LocalError::Volume { volume: name(volume).to_owned(), reason })
}

fn accepted(volume: &Volume, outcome: &VolumeOutcome) -> Result<(), LocalError> {
    if is_true(&outcome.status.conditions, "Stalled") {
        let reason = outcome.why.message.clone();
        return Err(LocalError::Volume { volume: name(volume).to_owned(), reason });
    }
    Ok(())
}

fn name(volume: &Volume) -> &str {
    volume.metadata.name.as_deref().unwrap_or_default()
}
