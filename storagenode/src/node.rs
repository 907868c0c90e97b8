//! One storage node, put together from its seams, its configuration and a metadata store. The only module that knows
//! every part.
//!
//! Order of a start: look at the disk → join the cluster (its id) → open the disk (identity, recovery) → mirror the cluster's
//! state, and compare it with what the disk remembers → register the disk → serve → stand for coordinator, repair. Order of a stop: stop taking requests, let open ones end
//! (bounded), give the lease back, close the disk. Dropping the runtime without [`RunningNode::stop`] is what a power
//! cut is to a machine, and as harmless.

use std::{path::PathBuf, sync::Arc, time::Duration};

use cairn_placement::{Incarnation, NodeId};
use disk::SelfEnd;
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    api::peer::{Me, OwnState, PeerService},
    chunks::{ChunkStore, Identity, Kek, OpenError, StoreOptions, UnwrapError},
    cluster::{
        ClusterState, View,
        coordinate::{Coordinator, CoordinatorOptions, Housekeeping, Term},
        keyring, position,
        register::{self, RegisterError, Registration},
    },
    env::Env,
    files::{Gateway, GatewayLimits, SharedFiles},
    meta::{MetaError, RangeRead, SharedMeta, keys},
    metrics::Metrics,
    replication::{peers::Peers, read::Reader, write::Writer},
    warnings::Warnings,
    workers::{
        Repair, collect::Collector, remove::Remover, repair::RepairOptions, sweep::Sweep, truth::Truth,
    },
};

mod disk;
mod measure;
mod refusal;
mod serve;
mod status;

pub use disk::Ended;
pub use serve::{RunningNode, ServeError, ServeOptions, serve};

/// What a node needs to know of itself.
#[derive(Clone)]
pub struct NodeOptions {
    pub cluster: String,
    pub name: String,
    pub zone: String,
    pub folder: PathBuf,
    /// An empty folder may take the place of the disk that the node had.
    pub new_disk: bool,
    /// `host:port` that others reach its gRPC services at.
    pub advertise: String,
    /// How much of the disk may be used; the whole file system if absent.
    pub capacity_bytes: Option<u64>,
    pub kek: Arc<Kek>,
    /// Nodes to wait for before the first map, where no operator tells which.
    pub expected_nodes: usize,
    pub timings: Timings,
    pub budgets: Budgets,
}

impl NodeOptions {
    fn gateway_limits(&self) -> GatewayLimits {
        let rest = u32::try_from(self.timings.collect_after_ticks).unwrap_or(u32::MAX);
        GatewayLimits {
            budget_bytes: self.budgets.gateway_bytes,
            rest: self.timings.tick.saturating_mul(rest),
        }
    }
}

/// Waits and rhythms; tests make them shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    /// A node that has not renewed its lease for so long is down.
    pub lease: Duration,
    /// R10's minute, by which collection counts.
    pub tick: Duration,
    /// Ticks that deleted chunks rest (R7).
    pub collect_after_ticks: u64,
    /// Ticks between the beginnings of two sweeps (R2).
    pub sweep_every_ticks: u64,
    /// Ticks that chunks without a file rest before they are removed (R2).
    pub quarantine_ticks: u64,
    /// Ticks that deletions are remembered (R7).
    pub tombstone_ticks: u32,
    /// Between repair passes at rest.
    pub repair: Duration,
    /// Between comparisons of the metadata with the disks, at rest and where they take little time.
    pub truth: Duration,
    /// In which a node reads all of its disk again, about; never if absent.
    pub scrub: Option<Duration>,
    /// Between looks for segments that are mostly garbage; never if absent.
    pub compact: Option<Duration>,
    /// How long a start waits for the metadata store.
    pub join: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            tick: Duration::from_secs(60),
            collect_after_ticks: 15,
            sweep_every_ticks: 360,
            quarantine_ticks: 1_440,
            tombstone_ticks: 7 * 1_440,
            repair: Duration::from_secs(5),
            truth: Duration::from_secs(30),
            scrub: Some(Duration::from_secs(14 * 86_400)),
            compact: Some(Duration::from_secs(600)),
            join: Duration::from_secs(120),
        }
    }
}

/// Memory for content in flight, in bytes. Two budgets, or two nodes could wait for each other (R4).
#[derive(Debug, Clone)]
pub struct Budgets {
    pub gateway_bytes: usize,
    pub member_bytes: u64,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { gateway_bytes: 128 << 20, member_bytes: 128 << 20 }
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Disk(#[from] OpenError),
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("volume {volume}: {error}")]
    Key { volume: String, error: UnwrapError },
}

/// The parts of a started node, without its servers.
pub struct Node {
    pub env: Env,
    pub id: NodeId,
    pub view: View,
    pub files: SharedFiles,
    pub store: ChunkStore,
    pub repair: Repair,
    pub peer: PeerService,
    pub cluster: Arc<status::ClusterStatus>,
    pub metrics: Arc<Metrics>,
    options: NodeOptions,
    meta: SharedMeta,
    registration: Registration,
    /// Ends everything but the lease, which is given back last.
    stop: CancellationToken,
    stop_lease: CancellationToken,
    tasks: TaskTracker,
    ended: Arc<Mutex<Option<Ended>>>,
}

impl Node {
    /// Starts everything but the servers.
    pub async fn start(
        env: Env,
        options: NodeOptions,
        meta: SharedMeta,
        warnings: Warnings,
    ) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let meta: SharedMeta = Arc::new(measure::CountedMeta { inner: meta, metrics: metrics.clone() });
        let stop = CancellationToken::new();
        let joined = join(&env, &options, &meta, &stop).await.inspect_err(|_| stop.cancel())?;
        let Joined { record_id, store, identity, registration, id, view } = joined;
        let (writer, reader) = access(&env, (id, identity.incarnation), &options.zone, &store, &view);
        let repair = RepairOptions { interval: options.timings.repair };
        let repair = Repair::new(writer.clone(), reader.clone(), repair);
        let gateway = Gateway::new(
            env.clone(),
            meta.clone(),
            view.clone(),
            (writer.clone(), reader.clone()),
            options.kek.clone(),
            &options.name,
            options.gateway_limits(),
        );
        let pins = gateway.pins();
        let own = OwnState { repair: repair.clone(), store: store.clone(), warnings };
        let me = Me { cluster_id: record_id, node: options.name.clone(), incarnation: identity.incarnation };
        let peer = PeerService::new(env.clone(), view.clone(), own.clone(), me);
        let cluster = status::ClusterStatus {
            env: env.clone(),
            meta: meta.clone(),
            cluster: options.cluster.clone(),
            cluster_id: record_id,
            me: options.name.clone(),
            writer: writer.clone(),
            own,
        };
        let node = Self {
            env,
            id,
            view,
            files: Arc::new(gateway),
            store,
            repair,
            peer,
            cluster: Arc::new(cluster),
            metrics,
            options,
            meta,
            registration,
            stop,
            stop_lease: CancellationToken::new(),
            tasks: TaskTracker::new(),
            ended: Arc::default(),
        };
        node.tasks.spawn(pins.run(node.stop.clone()));
        node.start_tasks(writer, reader);
        node.start_sampling();
        Ok(node)
    }

    fn start_tasks(&self, writer: Writer, reader: Reader) {
        let (env, meta) = (self.env.clone(), self.meta.clone());
        let end = SelfEnd { stop: self.stop.clone(), cause: self.ended.clone() };
        let (name, by_name) = (self.options.name.clone(), end.clone());
        let lost = move |cause: String| by_name.end(&name, Ended::NameTaken(cause));
        self.start_looking(end);
        self.start_scrub();
        self.start_compacting();
        self.start_telling_of_damage();
        let lease = register::keep_alive(env, meta, self.registration.clone(), self.stop_lease.clone(), lost);
        self.tasks.spawn(lease);
        self.tasks.spawn(self.repair.clone().run(self.stop.clone()));
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(self.remembering()));
        let (env, meta, view) = (self.env.clone(), self.meta.clone(), self.view.clone());
        let keeping = keyring::keep(env, meta, view, self.store.clone());
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(keeping));
        let housekeeping = Housework {
            view: self.view.clone(),
            truth: Truth {
                meta: self.meta.clone(),
                writer: writer.clone(),
                reader,
                interval: self.options.timings.truth,
            },
            sweep: Sweep {
                meta: self.meta.clone(),
                writer: writer.clone(),
                every_ticks: self.options.timings.sweep_every_ticks,
                rest_ticks: self.options.timings.quarantine_ticks,
            },
            collector: Collector::new(self.meta.clone(), writer, self.options.timings.collect_after_ticks),
            remover: Remover { meta: self.meta.clone() },
            metrics: self.metrics.clone(),
        };
        let coordinator = Coordinator {
            env: self.env.clone(),
            meta: self.meta.clone(),
            view: self.view.clone(),
            options: CoordinatorOptions {
                node: self.options.name.clone(),
                lease_ttl: self.options.timings.lease,
                tick: self.options.timings.tick,
                expected_nodes: self.options.expected_nodes,
            },
            housekeeping: Arc::new(housekeeping),
        };
        self.tasks.spawn(coordinator.run(self.stop.clone()));
    }

    /// Cancelled when the node has to stop by itself; [`Self::ended`] says why.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Why the node stopped by itself, if it did.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.lock().clone()
    }

    /// Ends the background work, gives the lease back, and closes the disk. Servers must have ended before.
    pub async fn stop(self) {
        self.stop.cancel();
        self.stop_lease.cancel();
        self.tasks.close();
        let _ = self.env.timeout(Duration::from_secs(10), self.tasks.wait()).await;
        self.store.close().await;
        info!(node = self.options.name, "stopped");
    }
}

/// The ways to chunks, here and on other nodes.
fn access(
    env: &Env,
    (me, incarnation): (NodeId, Incarnation),
    zone: &str,
    store: &ChunkStore,
    view: &View,
) -> (Writer, Reader) {
    let peers = Peers::new(env.clone());
    let (env, store, view) = (env.clone(), store.clone(), view.clone());
    let reader = Reader {
        env: env.clone(),
        me,
        zone: zone.to_owned(),
        store: store.clone(),
        peers: peers.clone(),
        view: view.clone(),
    };
    (Writer { env, me, incarnation, store, peers, view }, reader)
}

/// What a node has once it may take part.
struct Joined {
    record_id: [u8; 16],
    store: ChunkStore,
    identity: Identity,
    registration: Registration,
    id: NodeId,
    view: View,
}

const STATE_UNREAD: &str =
    "the cluster's state could not be read in time: the warnings before this say why; check the store";

/// Takes part in the cluster, or tells the others why not.
async fn join(
    env: &Env,
    options: &NodeOptions,
    meta: &SharedMeta,
    stop: &CancellationToken,
) -> Result<Joined, StartError> {
    let joined = take_part(env, options, meta, stop).await;
    if let Err(error) = &joined {
        refusal::tell(env, meta, &options.name, error).await;
    }
    joined
}

/// Joins the cluster, opens the disk, mirrors the cluster's state, and registers the disk, in this order (see the module's
/// documentation).
async fn take_part(
    env: &Env,
    options: &NodeOptions,
    meta: &SharedMeta,
    stop: &CancellationToken,
) -> Result<Joined, StartError> {
    let found = refusal::look_at_disk(env, options).await;
    let disk = found.as_ref().ok().and_then(Option::as_ref).map(|identity| (&*options.folder, identity));
    let record = register::join_cluster(env, meta, &options.cluster, disk, options.timings.join).await?;
    check_kek(meta, &options.kek).await?;
    refusal::check_disk(options, meta, found?.as_ref()).await?;
    let store_options = StoreOptions {
        capacity_bytes: options.capacity_bytes,
        queue_bytes: options.budgets.member_bytes,
        tombstone_ticks: options.timings.tombstone_ticks,
        ..StoreOptions::new(options.folder.clone(), record.id, options.name.clone())
    };
    let (store, identity) = ChunkStore::open(env.clone(), store_options).await?;
    let is_damaged = !store.recovery().corrupt.is_empty();
    position::check(meta, &options.name, &identity, store.sighting(), is_damaged).await?;
    let view = View::start(env.clone(), meta.clone(), options.name.clone(), store.clone(), stop.clone());
    // Each write takes a restored store further (R10): it is compared with what the disk remembers before the first one.
    let compared = view.wait_for(|state| (state.revision > 0).then_some(()));
    if env.timeout(options.timings.join, compared).await.is_none() {
        return Err(MetaError::Unavailable(STATE_UNREAD.into()).into());
    }
    let registration = Registration {
        name: options.name.clone(),
        zone: options.zone.clone(),
        address: options.advertise.clone(),
        incarnation: identity.incarnation.0,
        boot: identity.boot,
        process: env.random.bytes(),
        capacity_bytes: store.usage().capacity_bytes,
        lease_ttl: options.timings.lease,
    };
    let (id, revision) = register_patiently(env, meta, &registration).await?;
    // What was known of this node before is void: it must not answer for the cluster by that.
    let is_seen = |state: &ClusterState| state.nodes.get(&id).is_some_and(|me| me.registered >= revision);
    let seen = view.wait_for(|state| is_seen(state).then_some(()));
    if env.timeout(options.timings.join, seen).await.is_none() {
        return Err(MetaError::Unavailable(STATE_UNREAD.into()).into());
    }
    Ok(Joined { record_id: record.id, store, identity, registration, id, view })
}

/// A disk that replaces another waits until the old one's lease has run out.
async fn register_patiently(
    env: &Env,
    meta: &SharedMeta,
    registration: &Registration,
) -> Result<(NodeId, u64), RegisterError> {
    let deadline = env.clock.monotonic() + registration.lease_ttl * 2;
    loop {
        match register::register(meta, registration).await {
            Err(RegisterError::NameTaken(_)) if env.clock.monotonic() < deadline => {
                env.clock.sleep(registration.lease_ttl / 10).await;
            }
            other => return other,
        }
    }
}

/// Refuses to start with a key that opens none of the volumes (R14): it would fail one by one later.
async fn check_kek(meta: &SharedMeta, kek: &Kek) -> Result<(), StartError> {
    let read = RangeRead { limit: 64, ..RangeRead::prefix(keys::volume::PREFIX) };
    for entry in meta.range(read).await?.entries {
        let record: keys::volume::VolumeRecord = keys::from_json(&entry)?;
        let volume = keys::name(&entry.key[keys::volume::PREFIX.len()..]);
        let wrapped = hex::decode(&record.wrapped_key)
            .map_err(|_| MetaError::Damaged(format!("the key of volume {volume} is not hexadecimal")))?;
        let unwrapped = kek.unwrap(cairn_placement::VolumeId(record.id), &wrapped);
        unwrapped.map_err(|error| StartError::Key { volume, error })?;
    }
    Ok(())
}

/// What this node does when it coordinates.
struct Housework {
    view: View,
    collector: Collector,
    remover: Remover,
    truth: Truth,
    sweep: Sweep,
    metrics: Arc<Metrics>,
}

#[async_trait::async_trait]
impl Housekeeping for Housework {
    async fn round(&self, term: &Term) {
        let state = self.view.current();
        if !state.may_delete() {
            return;
        }
        match self.collector.round(term, &state).await {
            Ok(collected) => _ = self.metrics.collected_generations.inc_by(collected as u64),
            Err(error) => tracing::warn!(%error, "could not collect deleted files"),
        }
        if let Err(error) = self.remover.round(term, &state).await {
            tracing::warn!(%error, "could not remove deleted volumes");
        }
    }

    async fn beside(&self, term: &Term) {
        futures::join!(self.truth.run(term), self.sweep.run(term));
    }
}
