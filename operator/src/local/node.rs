//! One node in this process: with a runtime of its own, so that it can be dropped as a whole and without warning.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cairn_node::{
    api::Limits,
    chunks::Kek,
    env::{
        Env, Protocol,
        real::{RealClock, RealDisk, RealRandom, RealThreads},
    },
    meta::SharedMeta,
    node::{self, Budgets, NodeOptions, RunningNode, ServeError, ServeOptions, StartError, Timings},
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
/// A node that does not run is tried again after the first, and ever more seldom up to the last: what it lacks may be put
/// back at any time, and nobody should have to wait for long then.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LAST: Duration = Duration::from_secs(30);
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
    /// It is about how the cluster is run, not about this node's disk: nothing gets better by itself.
    pub settings: bool,
}

/// A node that runs or may run.
pub struct NodeHost {
    plan: NodePlan,
    meta: SharedMeta,
    state: Mutex<State>,
    /// Why it does not run, if it ended by itself or did not start.
    ended: watch::Sender<Option<NodeError>>,
    /// Said once, it holds for one disk.
    new_disk: AtomicBool,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// Nobody has stopped it.
    wanted: bool,
}

struct Running {
    runtime: Option<Runtime>,
    stop: CancellationToken,
    done: oneshot::Receiver<Result<(), Problem>>,
}

/// Why a node's life ended.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    text: String,
    /// As in [`NodeError`].
    settings: bool,
}

impl Problem {
    /// About this node alone.
    fn own(text: impl ToString) -> Self {
        Self { text: text.to_string(), settings: false }
    }

    fn settings(text: impl ToString) -> Self {
        Self { text: text.to_string(), settings: true }
    }
}

impl NodeHost {
    pub fn new(plan: NodePlan, meta: SharedMeta) -> Self {
        let new_disk = AtomicBool::new(plan.new_disk);
        Self { plan, meta, state: Mutex::default(), ended: watch::Sender::new(None), new_disk }
    }

    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Tells when the node ended by itself or did not start, and why.
    pub fn ended(&self) -> watch::Receiver<Option<NodeError>> {
        self.ended.subscribe()
    }

    /// Starts the node and waits until it listens. One that runs is left alone (`false`).
    pub async fn start(&self) -> Result<bool, NodeError> {
        let mut state = self.state.lock().await;
        state.wanted = true;
        self.start_anew(&mut state).await
    }

    /// Starts the node again whenever it has ended by itself or did not start. Never ends.
    pub async fn keep(&self) {
        let mut ended = self.ended.subscribe();
        let mut pause = RETRY_FIRST;
        let mut began = None;
        loop {
            // The sender is here.
            let _ = ended.wait_for(Option::is_some).await;
            if began.take().is_some_and(|began: Instant| began.elapsed() > RETRY_LAST) {
                pause = RETRY_FIRST;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
            let mut state = self.state.lock().await;
            if !state.wanted {
                continue;
            }
            let before = self.problem();
            match self.start_anew(&mut state).await {
                Ok(started) => {
                    began = Some(Instant::now());
                    if started {
                        tracing::info!(node = self.plan.name, "the node runs again");
                    }
                }
                Err(error) if before.is_some_and(|before| before.problem == error.problem) => {
                    tracing::debug!(%error, "still not");
                }
                Err(error) => tracing::error!(node = error.node, error.problem, "the node does not start"),
            }
        }
    }

    /// Why it does not run, if it ended by itself or did not start.
    pub fn problem(&self) -> Option<NodeError> {
        self.ended.borrow().clone()
    }

    async fn start_anew(&self, state: &mut State) -> Result<bool, NodeError> {
        if let Some(mut old) = state.running.take() {
            if old.done.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                state.running = Some(old);
                return Ok(false);
            }
            // It ended by itself; what is left of it goes first.
            old.cut().await;
        }
        match self.launch().await {
            Ok(running) => {
                state.running = Some(running);
                self.new_disk.store(false, Ordering::Relaxed);
                Ok(true)
            }
            Err(problem) => {
                let error = self.error(problem);
                self.ended.send_replace(Some(error.clone()));
                Err(error)
            }
        }
    }

    /// Starts the node on a runtime of its own.
    async fn launch(&self) -> Result<Running, Problem> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name(&self.plan.name)
            .enable_all()
            .build()
            .map_err(|error| Problem::settings(format!("cannot start threads: {error}")))?;
        let stop = CancellationToken::new();
        let (started_sender, started) = oneshot::channel();
        let (done_sender, done) = oneshot::channel();
        let ended = self.ended.clone();
        let plan = NodePlan { new_disk: self.new_disk.load(Ordering::Relaxed), ..self.plan.clone() };
        let (meta, stopped) = (self.meta.clone(), stop.clone());
        runtime.spawn(async move {
            let name = plan.name.clone();
            let node = match live(plan, meta).await {
                Ok(node) => node,
                Err(problem) => {
                    let _ = done_sender.send(Err(problem));
                    return;
                }
            };
            ended.send_replace(None);
            let _ = started_sender.send(());
            let served = serve(node, stopped).await;
            if let Err(Problem { text: problem, settings }) = &served {
                tracing::error!(node = name, problem, "the node ended");
                let error = NodeError { node: name, problem: problem.clone(), settings: *settings };
                ended.send_replace(Some(error));
            }
            let _ = done_sender.send(served);
        });
        let mut new = Running { runtime: Some(runtime), stop, done };
        let problem = match tokio::time::timeout(START_LIMIT, started).await {
            Ok(Ok(())) => return Ok(new),
            Ok(Err(_)) => match tokio::time::timeout(REASON_LIMIT, &mut new.done).await {
                Ok(Ok(Err(problem))) => problem,
                _ => Problem::own("it panicked; its message is in the log"),
            },
            Err(_) => Problem::own(format!("it has not started within {} s", START_LIMIT.as_secs())),
        };
        new.cut().await;
        Err(problem)
    }

    /// Ends the node in order: open requests, lease, disk.
    pub async fn stop(&self) {
        if let Some(running) = self.unwanted().await {
            running.stop().await;
        }
    }

    /// Drops the node as if its machine had lost power. Returns when nothing of it runs.
    pub async fn cut(&self) {
        if let Some(running) = self.unwanted().await {
            running.cut().await;
            tracing::warn!(node = self.plan.name, "dropped without warning, as asked");
        }
    }

    async fn unwanted(&self) -> Option<Running> {
        let mut state = self.state.lock().await;
        state.wanted = false;
        self.ended.send_replace(None);
        state.running.take()
    }

    fn error(&self, Problem { text, settings }: Problem) -> NodeError {
        NodeError { node: self.plan.name.clone(), problem: text, settings }
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

/// Starts a node, on the runtime that is its own.
async fn live(plan: NodePlan, meta: SharedMeta) -> Result<RunningNode, Problem> {
    let env = env(&plan.secrets).map_err(Problem::settings)?;
    let options = NodeOptions {
        cluster: plan.cluster.clone(),
        name: plan.name.clone(),
        zone: plan.zone.clone(),
        folder: plan.folder.clone(),
        new_disk: plan.new_disk,
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
        listening.map_err(|error| Problem::settings(format!("cannot listen on {address}: {error}")))
    };
    let doors = ServeOptions {
        grpc: listen(&plan.grpc, Protocol::Grpc).await?,
        http: listen(&plan.http, Protocol::Http).await?,
        tokens: plan.secrets.tokens.clone(),
        limits: Limits::default(),
    };
    node::serve(env.clone(), options, meta, doors).await.map_err(|error| match error {
        ServeError::Start(StartError::Disk(_) | StartError::Register(_)) => Problem::own(error),
        _ => Problem::settings(error),
    })
}

/// The rest of a node's life, until it is asked to end or has to.
async fn serve(node: RunningNode, stop: CancellationToken) -> Result<(), Problem> {
    let lost = node.stopping();
    let asked = tokio::select! {
        () = stop.cancelled() => true,
        () = lost.cancelled() => false,
    };
    let ended = node.ended();
    node.stop(DRAIN_LIMIT).await;
    match ended {
        Some(ended) if !asked => Err(Problem::own(ended)),
        None if !asked => Err(Problem::own("it stopped by itself")),
        _ => Ok(()),
    }
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
