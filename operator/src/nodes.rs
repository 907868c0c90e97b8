//! Talks to the storage nodes of a cluster, with the operator's certificate, through the cluster's Service. Everything is
//! bounded in time: a cluster that hangs must not keep the operator from the others.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::Duration,
};

use cairn_client::{
    Client, ClientConfig, CreateVolume, Credentials, ErrorCode, IntendedNode, Limits, NodeState, Pem,
    Readable, StatusResponse, VolumeState,
};
use cairn_crds::StorageCluster;
use cairn_planner::{
    Intent, NodesReport, PlacementGroups,
    contract::{Names, entry},
    volume::{Stored, StoredVolume},
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;

/// For all attempts at one question.
const CALL_LIMIT: Duration = Duration::from_secs(8);
/// Clusters whose connections are kept.
const CLIENTS_MAX: usize = 256;

/// Connections to clusters, and what they were told.
#[derive(Default)]
pub struct Clusters {
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    /// The certificate and the address that the client was made with.
    made_with: (Option<Secret>, String),
    client: Client,
    told: Option<Intent>,
}

impl Clusters {
    /// A client of the cluster; `Err` says why there is none.
    pub fn client(&self, cluster: &StorageCluster, certificate: Option<&Secret>) -> Result<Client, String> {
        let uid = cluster.uid().unwrap_or_default();
        let endpoint = endpoint(cluster);
        let mut known = self.known.lock().expect("nobody panics while holding it");
        if let Some(found) = known.get(&uid)
            && found.made_with.0.as_ref() == certificate
            && found.made_with.1 == endpoint
        {
            return Ok(found.client.clone());
        }
        let Some(certificate) = certificate else {
            return Err("the operator has no certificate for it yet".to_owned());
        };
        let client = connect(&endpoint, certificate)?;
        if known.len() >= CLIENTS_MAX {
            known.clear();
        }
        let made_with = (Some(certificate.clone()), endpoint);
        known.insert(uid, Known { made_with, client: client.clone(), told: None });
        Ok(client)
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, uid: &str) {
        self.known.lock().expect("nobody panics while holding it").remove(uid);
    }

    fn told(&self, uid: &str) -> Option<Intent> {
        self.known.lock().expect("nobody panics while holding it").get(uid)?.told.clone()
    }

    /// Tells the nodes who they are to be, once per change (and once after a start of the operator).
    pub async fn tell(
        &self,
        cluster: &StorageCluster,
        client: &Client,
        intent: &Intent,
    ) -> Result<(), String> {
        let uid = cluster.uid().unwrap_or_default();
        if self.told(&uid).as_ref() == Some(intent) {
            return Ok(());
        }
        let nodes = intent.nodes.iter();
        let nodes =
            nodes.map(|node| IntendedNode { name: node.name.clone(), zone: node.zone.clone() }).collect();
        let telling = client.set_intent(intent_generation(cluster, intent.generation), nodes);
        match tokio::time::timeout(CALL_LIMIT, telling).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer".to_owned()),
        }
        let mut known = self.known.lock().expect("nobody panics while holding it");
        if let Some(known) = known.get_mut(&uid) {
            known.told = Some(intent.clone());
        }
        Ok(())
    }
}

/// A resource that is deleted and created again begins at generation 1, and its nodes remember the old one's: so the time of
/// its creation comes first.
fn intent_generation(cluster: &StorageCluster, generation: i64) -> u64 {
    let created_s = cluster.creation_timestamp().map_or(0, |time| time.0.as_second());
    let part = |value: i64, max: u64| u64::try_from(value).unwrap_or(0).min(max);
    (part(created_s, (1 << 35) - 1) << 28) | part(generation, (1 << 28) - 1)
}

fn endpoint(cluster: &StorageCluster) -> String {
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    let names = Names { cluster: &name, namespace: &namespace };
    format!("https://{}:{}", names.client_host(), cluster.spec.ports.grpc)
}

fn connect(endpoint: &str, certificate: &Secret) -> Result<Client, String> {
    let text = |name: &str| {
        let value = certificate.data.as_ref().and_then(|data| data.get(name));
        let value = value.ok_or_else(|| format!("the operator's certificate has no entry {name}"))?;
        String::from_utf8(value.0.clone()).map(Pem::Text).map_err(|_| format!("{name} is no text"))
    };
    let credentials =
        Credentials::Certificate { certificate: text(entry::CERTIFICATE)?, key: text(entry::KEY)? };
    let limits = Limits {
        connect_timeout: Duration::from_secs(3),
        attempt_timeout: Duration::from_secs(5),
        call_timeout: CALL_LIMIT,
        attempts: 3,
        ..Limits::default()
    };
    let config = ClientConfig::new([endpoint], text(entry::CA_CERTIFICATE)?);
    let config = config.with_credentials(credentials).with_limits(limits);
    Client::connect(config).map_err(|error| error.to_string())
}

/// Is there anybody to ask? Saves waiting for the names of pods that do not run.
pub fn any_runs(pods: &[Pod]) -> bool {
    pods.iter().any(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    })
}

/// What the nodes say; `Err` says why they say nothing.
pub async fn report(client: &Client) -> Result<NodesReport, String> {
    match tokio::time::timeout(CALL_LIMIT, client.status()).await {
        Ok(Ok(status)) => Ok(read(&status)),
        Ok(Err(error)) if error.code() == ErrorCode::MetadataUnavailable => {
            Ok(NodesReport { metadata_problem: Some(error.cause().to_owned()), ..NodesReport::default() })
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

fn read(status: &StatusResponse) -> NodesReport {
    let whole = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    let bytes = |sum: u64| i64::try_from(sum).unwrap_or(i64::MAX);
    let live = status.nodes.iter().filter(|node| node.state() == NodeState::NodeLive);
    NodesReport {
        live: live.map(|node| node.name.clone()).collect(),
        capacity_bytes: bytes(
            status.nodes.iter().map(|node| node.capacity_bytes).fold(0, u64::saturating_add),
        ),
        used_bytes: bytes(status.nodes.iter().map(|node| node.used_bytes).fold(0, u64::saturating_add)),
        placement_groups: PlacementGroups {
            total: whole(status.placement_groups),
            settled: whole(status.settled),
            degraded: whole(status.degraded),
            unavailable: whole(status.unavailable),
        },
        readable: match status.readable() {
            Readable::All => cairn_planner::Readable::All,
            Readable::NotAll => cairn_planner::Readable::Without(whole(status.missing)),
            Readable::BeingChecked | Readable::Unspecified => cairn_planner::Readable::BeingChecked,
        },
        lost_files: status.lost_files,
        lost: status.lost.clone(),
        metadata_restored: status.metadata_restored,
        metadata_problem: None,
    }
}

/// The volume of this name, as the nodes have it.
pub async fn stored(client: &Client, name: &str) -> Stored {
    match client.volume(name).await {
        Ok(volume) => Stored::Present(StoredVolume {
            id: volume.id.to_string(),
            copies: i32::try_from(volume.copies).unwrap_or(i32::MAX),
            chunk_size_bytes: i64::from(volume.chunk_size_bytes),
            being_deleted: volume.state() == VolumeState::VolumeBeingDeleted,
            files: volume.files.map(counted),
            bytes: volume.size_bytes.map(counted),
        }),
        Err(error) if error.code() == ErrorCode::VolumeNotFound => Stored::Absent,
        Err(error) => Stored::Unknown(error.to_string()),
    }
}

/// A count, in the resources' numbers.
fn counted(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A volume for [`Client::create_volume`].
pub fn new_volume(name: String, copies: i32, chunk_size_bytes: i64) -> CreateVolume {
    CreateVolume {
        name,
        copies: u32::try_from(copies).ok(),
        chunk_size_bytes: u32::try_from(chunk_size_bytes).ok(),
    }
}

/// The Secret with the operator's certificate, among those that were read.
pub fn certificate<'a>(
    cluster: &StorageCluster,
    secrets: &'a BTreeMap<String, Secret>,
) -> Option<&'a Secret> {
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    secrets.get(&Names { cluster: &name, namespace: &namespace }.operator_certificate_secret())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(created: &str) -> StorageCluster {
        serde_json::from_value(serde_json::json!({
            "apiVersion": cairn_crds::API_VERSION, "kind": "StorageCluster",
            "metadata": { "name": "demo", "namespace": "files", "creationTimestamp": created },
            "spec": { "pools": [] },
        }))
        .unwrap()
    }

    #[test]
    fn intents_of_a_resource_made_again_are_newer() {
        let (old, new) = (cluster("2026-01-01T00:00:00Z"), cluster("2026-01-01T00:00:01Z"));
        assert!(intent_generation(&old, 1) < intent_generation(&old, 2));
        assert!(intent_generation(&old, 1_000_000) < intent_generation(&new, 1));
    }

    #[test]
    fn the_service_is_asked() {
        assert_eq!(endpoint(&cluster("2026-01-01T00:00:00Z")), "https://demo.files.svc:50051");
    }

    #[test]
    fn capacity_and_groups_are_summed() {
        let node = |name: &str, state: NodeState| cairn_client::NodeStatus {
            name: name.into(),
            state: state.into(),
            capacity_bytes: 10,
            used_bytes: 3,
            ..Default::default()
        };
        let nodes = vec![node("a", NodeState::NodeLive), node("b", NodeState::NodeDown)];
        let status =
            StatusResponse { nodes, placement_groups: 4, settled: 3, degraded: 1, ..Default::default() };
        let report = read(&status);
        assert_eq!(report.readable, cairn_planner::Readable::BeingChecked, "the nodes did not say");
        let with = |readable: Readable| {
            read(&StatusResponse { readable: readable.into(), missing: 2, ..status.clone() }).readable
        };
        assert_eq!(with(Readable::All), cairn_planner::Readable::All);
        assert_eq!(with(Readable::NotAll), cairn_planner::Readable::Without(2));
        assert_eq!(report.live.into_iter().collect::<Vec<_>>(), ["a"]);
        assert_eq!((report.capacity_bytes, report.used_bytes, report.placement_groups.degraded), (20, 6, 1));
    }
}
