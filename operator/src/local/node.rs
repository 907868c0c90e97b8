//! One node in this process: with a runtime of its own, so that it can be dropped as a whole and without warning.

use std::{path::PathBuf, sync::Arc, time::Duration};

use cairn_node::{
    api::Limits,
    chunks::Kek,
    env::{
        Env, Protocol,
        real::{RealClock, RealDisk, RealRandom, RealThreads},
    },
    meta::{SharedMeta, keys::node::key as node_key},
    node::{self, Budgets, NodeOptions, ServeOptions, Timings},
    secrets::SecretFiles,
    tls::{TlsFiles, TlsNetwork, TlsOptions},
};
use tokio::{
    runtime::Runtime,
    sync::{Mutex, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

/// Recovery reads what was written last before the node serves.
const START_LIMIT: Duration = Duration::from_secs(300);
/// For a node that does not start to say why.
const REASON_LIMIT: Duration = Duration::from_secs(5);
/// For requests that are open.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// For requests, the lease, and the disk.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// For threads that are inside a system call when their node is dropped; its disk is locked until they are out.
const CUT_LIMIT: Duration = Duration::from_secs(10);
/// Threads of a node that are not waiting for its disk.
const WORKERS: usize = 2;

/// What a node is started with, each time.
#[derive(Clone)]
pub struct NodePlan {
    pub cluster: String,
    pub name: String,
    pub zone: String,
    pub folder: PathBuf,
    /// `host:port` to listen on and to be reached at.
    pub grpc: String,
    pub http: String,
    pub capacity_bytes: u64,
    pub expected_nodes: usize,
    pub secrets: SecretFiles,
    pub kek: Arc<Kek>,
    /// An empty folder may take the place of the disk that it had.
    pub new_disk: bool,
}

/// Why a node does not run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("node {node}: {problem}")]
pub struct NodeError {
    pub node: String,
    pub problem: String,
}

/// A node that runs or may run.
pub struct NodeHost {
    plan: NodePlan,
    meta: SharedMeta,
    running: Mutex<Option<Running>>,
    /// Why it ended by itself, if it did.
    ended: watch::Sender<Option<NodeError>>,
}

struct Running {
    runtime: Option<Runtime>,
    stop: CancellationToken,
    done: oneshot::Receiver<()>,
}

impl NodeHost {
    pub fn new(plan: NodePlan, meta: SharedMeta) -> Self {
        Self { plan, meta, running: Mutex::new(None), ended: watch::Sender::new(None) }
    }

    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Tells when the node ended by itself.
    pub fn ended(&self) -> watch::Receiver<Option<NodeError>> {
        self.ended.subscribe()
    }

    /// Starts the node and waits until it listens. One that runs is left alone (`false`).
    pub async fn start(&self) -> Result<bool, NodeError> {
        let mut running = self.running.lock().await;
        if let Some(old) = running.as_mut() {
            if old.done.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                return Ok(false);
            }
            // It ended by itself; what is left of it goes first.
            running.take().expect("it was there a moment ago").cut().await;
        }
        self.ended.send_replace(None);
        self.check_disk().await?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name(&self.plan.name)
            .enable_all()
            .build()
            .map_err(|error| self.error(format!("cannot start threads: {error}")))?;
        let stop = CancellationToken::new();
        let (started_sender, started) = oneshot::channel();
        let (done_sender, done) = oneshot::channel();
        let (plan, meta, ended) = (self.plan.clone(), self.meta.clone(), self.ended.clone());
        let life = live(plan.clone(), meta, started_sender, stop.clone());
        runtime.spawn(async move {
            if let Err(problem) = life.await {
                tracing::error!(node = plan.name, problem, "the node ended");
                ended.send_replace(Some(NodeError { node: plan.name, problem }));
            }
            let _ = done_sender.send(());
        });
        let mut new = Running { runtime: Some(runtime), stop, done };
        let problem = match tokio::time::timeout(START_LIMIT, started).await {
            Ok(Ok(())) => {
                *running = Some(new);
                return Ok(true);
            }
            Ok(Err(_)) => {
                // It says why a moment after it has given up starting.
                let _ = tokio::time::timeout(REASON_LIMIT, &mut new.done).await;
                self.ended.borrow().as_ref().map(|error| error.problem.clone())
            }
            Err(_) => Some(format!("it has not started within {} s", START_LIMIT.as_secs())),
        };
        new.cut().await;
        Err(self.error(problem.unwrap_or_else(|| "it panicked; its message is in the log".to_owned())))
    }

    /// Ends the node in order: open requests, lease, disk.
    pub async fn stop(&self) {
        if let Some(running) = self.running.lock().await.take() {
            running.stop().await;
        }
    }

    /// Drops the node as if its machine had lost power. Returns when nothing of it runs.
    pub async fn cut(&self) {
        if let Some(running) = self.running.lock().await.take() {
            running.cut().await;
            tracing::warn!(node = self.plan.name, "dropped without warning, as asked");
        }
    }

    /// Refuses a folder without a disk's identity where a node that is known has its disk: nobody would notice that a disk is
    /// not mounted, the node would be filled again into the folder below, and its disk could not come back.
    async fn check_disk(&self) -> Result<(), NodeError> {
        let folder = &self.plan.folder;
        // Segments without an identity are for the node to judge.
        let holds_a_disk = ["identity", "segments"].iter().any(|name| folder.join(name).exists());
        if self.plan.new_disk || holds_a_disk {
            return Ok(());
        }
        let known = self.meta.get(&node_key(&self.plan.name)).await;
        let known = known.map_err(|error| self.error(format!("cannot look up its disk: {error}")))?;
        if known.is_none() {
            return Ok(());
        }
        Err(self.error(format!(
            "{} holds no disk, and this node had one there: mount it, or put the folder back. If that disk is lost, start \
             the cluster with --new-disk {}: what other nodes have of it is fetched from them",
            folder.display(),
            self.plan.name
        )))
    }

    fn error(&self, problem: String) -> NodeError {
        NodeError { node: self.plan.name.clone(), problem }
    }
}

impl Running {
    async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_LIMIT, &mut self.done).await.is_err() {
            tracing::warn!("a node did not stop within {} s and is dropped", STOP_LIMIT.as_secs());
        }
        self.cut().await;
    }

    async fn cut(mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        // Waits for its threads, which no asynchronous task may do.
        let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(CUT_LIMIT)).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A node's whole life, on its own runtime. Drops `started` without a word if it does not get to serve.
async fn live(
    plan: NodePlan,
    meta: SharedMeta,
    started: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), String> {
    let env = env(&plan.secrets).map_err(|error| error.to_string())?;
    let options = NodeOptions {
        cluster: plan.cluster.clone(),
        name: plan.name.clone(),
        zone: plan.zone.clone(),
        folder: plan.folder.clone(),
        advertise: plan.grpc.clone(),
        capacity_bytes: Some(plan.capacity_bytes),
        kek: plan.kek.clone(),
        expected_nodes: plan.expected_nodes,
        timings: Timings::default(),
        // All nodes share one machine's memory.
        budgets: Budgets { gateway_bytes: 64 << 20, member_bytes: 64 << 20 },
    };
    let listen = async |address: &str, protocol| {
        let listening = env.network.listen(address, protocol).await;
        listening.map_err(|error| format!("cannot listen on {address}: {error}"))
    };
    let doors = ServeOptions {
        grpc: listen(&plan.grpc, Protocol::Grpc).await?,
        http: listen(&plan.http, Protocol::Http).await?,
        tokens: plan.secrets.tokens.clone(),
        limits: Limits::default(),
    };
    let node = node::serve(env.clone(), options, meta, doors).await.map_err(|error| error.to_string())?;
    let _ = started.send(());
    let lost = node.stopping();
    let asked = tokio::select! {
        () = stop.cancelled() => true,
        () = lost.cancelled() => false,
    };
    node.stop(DRAIN_LIMIT).await;
    if asked { Ok(()) } else { Err("another process has its name in the metadata store".to_owned()) }
}

/// The real world, for one node or for the supervisor. Must be called on the runtime that is to use it.
pub fn env(secrets: &SecretFiles) -> Result<Env, cairn_node::tls::CredentialError> {
    let clock = Arc::new(RealClock::default());
    let files = TlsFiles {
        certificate: secrets.node_certificate.clone(),
        key: secrets.node_key.clone(),
        authority: secrets.authority_certificate.clone(),
    };
    let network = TlsNetwork::open(files, TlsOptions::default(), clock.clone())?;
    Ok(Env {
        clock,
        random: Arc::new(RealRandom),
        disk: Arc::new(RealDisk),
        network: Arc::new(network),
        threads: Arc::new(RealThreads),
    })
}
