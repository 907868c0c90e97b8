//! The supervisor: the metadata store, the secrets and the nodes of a local cluster.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use cairn_client::{Client, ClientConfig, Credentials, IntendedNode, NodeState, Pem};
use cairn_node::{
    chunks::{Kek, KekError},
    env::Env,
    meta::{
        SharedMeta,
        embedded::{self, EmbeddedStore},
    },
    secrets::{self, SecretFiles, SecretsError},
    tls::CredentialError,
};
use futures::future::{join_all, select_all};

use super::{
    Planned,
    folder::Folder,
    node::{self, NodeError, NodeHost, NodePlan},
    service::{LocalServer, Nodes, ServiceError},
};

/// From the last node's start to a published map with every node in it.
const READY_LIMIT: Duration = Duration::from_secs(120);
const READY_PAUSE: Duration = Duration::from_millis(200);
/// The pool of a local cluster does not change, so its intent has one generation.
const INTENT_GENERATION: u64 = 1;

/// Why a supervisor does not run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(
        "{path}: {error}; restore it from a backup: nothing that is stored can be read without it",
        path = path.display()
    )]
    Kek { path: PathBuf, error: KekError },
    #[error("{path}: {error}; nothing is stored yet: delete it, and a new one is made", path = path.display())]
    FirstKek { path: PathBuf, error: KekError },
    #[error(
        "{kek} is gone, and nothing that is stored can be read without it: put it back from a backup, or begin anew with \
         another data folder",
        kek = kek.display()
    )]
    KekLost { kek: PathBuf },
    #[error(
        "{store} is gone, and {nodes} holds disks of nodes, of which nothing can be read without it: put the folder back, or \
         restore it from a backup (docs/restore.md); a new cluster needs another data folder",
        store = store.display(), nodes = nodes.display()
    )]
    StoreLost { store: PathBuf, nodes: PathBuf },
    #[error("{path}: {error}", path = path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("the metadata store: {0}")]
    Store(String),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("the cluster cannot be reached: {0}")]
    Client(cairn_client::Error),
    #[error("the nodes refused the list of nodes: {0}")]
    Intent(cairn_client::Error),
    #[error("the cluster is not ready after {} s: {problem}; see the log above", READY_LIMIT.as_secs())]
    NotReady { problem: String },
    #[error("the contexts cannot be written: {0}")]
    Contexts(cairn_client::config::ConfigError),
}

/// Everything of a local cluster that is not one node's own.
pub struct Supervisor {
    env: Env,
    meta: SharedMeta,
    secrets: SecretFiles,
    client: Client,
    nodes: Nodes,
    address: String,
    server: tokio::sync::Mutex<Option<LocalServer>>,
}

/// Refuses a folder of which a part is gone that cannot be made anew. To be called before anything is made in it.
pub fn check(folder: &Folder) -> Result<(), SupervisorError> {
    let kek = SecretFiles::in_folder(&folder.secrets()).kek;
    if !kek.exists() && folder.is_in_use() {
        return Err(SupervisorError::KekLost { kek });
    }
    let store = embedded::file_in(&folder.metadata());
    match folder.holds_disks() && !store.exists() {
        true => Err(SupervisorError::StoreLost { store, nodes: folder.nodes() }),
        false => Ok(()),
    }
}

impl Supervisor {
    /// Makes or finds secrets and metadata. No node runs yet.
    pub async fn open(planned: &Planned, folder: &Folder) -> Result<Self, SupervisorError> {
        let (cluster, host) = (&planned.cluster, planned.host.to_string());
        let (clock, random) =
            (cairn_node::env::real::RealClock::default(), cairn_node::env::real::RealRandom);
        let in_use = folder.is_in_use();
        let made = secrets::init(&folder.secrets(), &cluster.name, &[host], &clock, &random)?;
        if !made.new.is_empty() {
            tracing::info!(folder = %folder.secrets().display(), "made keys, certificates and a client's token");
        }
        let secrets = made.files;
        let kek = Arc::new(read_kek(&secrets, in_use)?);
        let env = node::env(&secrets)?;
        let store = EmbeddedStore::open(env.clone(), &folder.metadata()).await;
        let meta: SharedMeta = Arc::new(store.map_err(|error| SupervisorError::Store(error.to_string()))?);
        let address = |port: u16| std::net::SocketAddr::new(planned.host, port).to_string();
        let mut nodes = BTreeMap::new();
        for node in cluster.nodes() {
            let ports = planned.ports.nodes[&node.name];
            let plan = NodePlan {
                cluster: cluster.name.clone(),
                folder: folder.node(&node.name),
                grpc: address(ports.grpc),
                http: address(ports.http),
                capacity_bytes: u64::try_from(cluster.pool.disk.bytes).unwrap_or_default(),
                expected_nodes: planned.ports.nodes.len(),
                secrets: secrets.clone(),
                kek: kek.clone(),
                name: node.name.clone(),
                zone: node.zone,
                new_disk: planned.new_disks.contains(&node.name),
            };
            nodes.insert(node.name, Arc::new(NodeHost::new(plan, meta.clone())));
        }
        let client = connect(&secrets, &nodes)?;
        let server = tokio::sync::Mutex::new(None);
        let address = address(planned.ports.supervisor);
        Ok(Self { env, meta, secrets, client, nodes: Arc::new(nodes), address, server })
    }

    pub fn secrets(&self) -> &SecretFiles {
        &self.secrets
    }

    /// The metadata store, which serves before any node does.
    pub fn meta(&self) -> &SharedMeta {
        &self.meta
    }

    /// A client with the operator's certificate.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Starts every node, tells them who they are, and waits until they have a map.
    pub async fn bring_up(&self, planned: &Planned) -> Result<(), SupervisorError> {
        let server = LocalServer::start(&self.env, &self.address, &self.secrets, self.nodes.clone()).await?;
        *self.server.lock().await = Some(server);
        self.start_nodes().await?;
        let intended = planned.cluster.nodes();
        let intended = intended.into_iter().map(|node| IntendedNode { name: node.name, zone: node.zone });
        let told = self.client.set_intent(INTENT_GENERATION, intended.collect()).await;
        told.map_err(SupervisorError::Intent)?;
        self.ready().await
    }

    /// One node whose disk is not well does not stop the others.
    async fn start_nodes(&self) -> Result<(), SupervisorError> {
        let started = join_all(self.nodes.values().map(|node| node.start())).await;
        let refusals: Vec<NodeError> = started.into_iter().filter_map(Result::err).collect();
        if let Some(settings) = refusals.iter().find(|refusal| refusal.settings) {
            return Err(settings.clone().into());
        }
        for NodeError { node, problem, .. } in &refusals {
            tracing::error!(node, problem, "the node does not start");
        }
        match refusals.first() {
            Some(refusal) if refusals.len() == self.nodes.len() => Err(refusal.clone().into()),
            _ => Ok(()),
        }
    }

    /// Nodes that do not run though they should, and why. They are tried again.
    pub fn problems(&self) -> Vec<NodeError> {
        self.nodes.values().filter_map(|node| node.problem()).collect()
    }

    async fn ready(&self) -> Result<(), SupervisorError> {
        let begun = Instant::now();
        let mut problem = String::new();
        while begun.elapsed() < READY_LIMIT {
            match self.client.status().await {
                Ok(status) => {
                    let live: Vec<&str> = status
                        .nodes
                        .iter()
                        .filter(|node| node.state() == NodeState::NodeLive)
                        .map(|node| node.name.as_str())
                        .collect();
                    let missing = |(name, node): &(&String, &Arc<NodeHost>)| {
                        !live.contains(&name.as_str()) && node.problem().is_none()
                    };
                    match self.nodes.iter().find(missing) {
                        Some((missing, _)) => problem = format!("the nodes do not see {missing}"),
                        None if status.placement_groups == 0 => {
                            problem = "there is no cluster map yet".to_owned()
                        }
                        None => return Ok(()),
                    }
                }
                Err(error) => problem = error.to_string(),
            }
            let problems = self.problems();
            if problems.len() == self.nodes.len() {
                return Err(problems[0].clone().into());
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
        self.problems().iter().for_each(|node| problem.push_str(&format!("; {node}")));
        Err(SupervisorError::NotReady { problem })
    }

    /// Starts nodes again that have ended by themselves or did not start. Returns only with the error of a cluster that has
    /// no other node left.
    pub async fn watch(&self) -> Result<(), SupervisorError> {
        let keep = join_all(self.nodes.values().map(|node| node.keep()));
        tokio::select! {
            ended = self.all_ended() => ended,
            _ = keep => Ok(()),
        }
    }

    async fn all_ended(&self) -> Result<(), SupervisorError> {
        let mut watches: Vec<_> = self.nodes.values().map(|node| node.ended()).collect();
        loop {
            let changes = watches.iter_mut().map(|watch| Box::pin(watch.changed()));
            select_all(changes)
                .await
                .0
                .map_err(|_| SupervisorError::Store("the nodes are gone".to_owned()))?;
            let ended: Vec<_> = watches.iter().filter_map(|watch| watch.borrow().clone()).collect();
            if ended.len() == watches.len() {
                return Err(ended[0].clone().into());
            }
        }
    }

    /// Ends everything in order, each part in bounded time.
    pub async fn close(&self) {
        if let Some(server) = self.server.lock().await.take() {
            server.stop().await;
        }
        join_all(self.nodes.values().map(|node| node.stop())).await;
        self.meta.close().await;
        tracing::info!("the cluster has ended; its data stays");
    }
}

fn read_kek(secrets: &SecretFiles, in_use: bool) -> Result<Kek, SupervisorError> {
    let path = secrets.kek.clone();
    match std::fs::read(&path) {
        Err(error) => Err(SupervisorError::Read { path, error }),
        Ok(content) => Kek::parse(&content).map_err(|error| match in_use {
            true => SupervisorError::Kek { path, error },
            false => SupervisorError::FirstKek { path, error },
        }),
    }
}

fn connect(
    secrets: &SecretFiles,
    nodes: &BTreeMap<String, Arc<NodeHost>>,
) -> Result<Client, SupervisorError> {
    let endpoints = nodes.values().map(|node| node.plan().grpc.clone());
    let credentials = Credentials::Certificate {
        certificate: Pem::File(secrets.operator_certificate.clone()),
        key: Pem::File(secrets.operator_key.clone()),
    };
    let ca = Pem::File(secrets.authority_certificate.clone());
    let config = ClientConfig::new(endpoints, ca).with_credentials(credentials);
    Client::connect(config).map_err(SupervisorError::Client)
}
