//! A mirror of everything under `c/`: cluster map, nodes, epoch, tick, intent.
//!
//! One task reads the prefix at one revision and watches it from the next. While the store is away the last state
//! stays (R13), and the task tries again with a bounded, growing pause. A state only ever gets newer, unless the store
//! is restored from an older copy (R10): the node's disk remembers how far it had come, so it is noticed, told to all by
//! a key, and nothing is deleted anywhere until `cairn-node recover`.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_placement::{ClusterMap, Incarnation, NodeId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    chunks::{ChunkStore, Sighting},
    env::Env,
    meta::{
        Event, KeyValue, MetaError, Op, RangeRead, SharedMeta, Txn,
        keys::{self, restored::RestoredRecord},
        prefix_end,
    },
};

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// A registered node, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: NodeId,
    pub name: String,
    pub zone: String,
    pub incarnation: Incarnation,
    pub capacity_bytes: u64,
    /// Revision at which it last registered, as it does at each start, or told that it found damage on its disk.
    pub registered: u64,
    /// Where its gRPC services are, while its lease lives.
    pub address: Option<String>,
    pub version: String,
    /// The newest version of file records that it reads.
    pub file_format: u8,
}

impl NodeInfo {
    pub fn is_live(&self) -> bool {
        self.address.is_some()
    }
}

/// Whether every file can be read from the nodes that are live (R3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readable {
    /// The nodes that are live now have not been compared with the metadata yet.
    BeingChecked,
    Everything,
    /// In so many groups, content that files name is on no live node.
    Without(u32),
}

/// What a node knows of its cluster, as of one revision.
#[derive(Debug, Clone, Default)]
pub struct ClusterState {
    pub revision: u64,
    /// Absent until the coordinator has made the first one.
    pub map: Option<Arc<ClusterMap>>,
    /// Revision of the map's head; 0 while there is none.
    pub map_revision: u64,
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// Revision of the latest registration of any node; 0 while there is none.
    pub starts_revision: u64,
    pub epoch: u32,
    /// Revision of the epoch's key; 0 while there is none.
    pub epoch_revision: u64,
    pub tick: u64,
    pub coordinator: Option<String>,
    pub intent: Option<keys::intent::IntentRecord>,
    /// The tick at which a restored store was last accepted as it is; 0 if it never was.
    pub accepted: u64,
    /// Nodes that had seen the store further than it is, and how far (R10); without those from before it was accepted.
    pub restored: BTreeMap<String, RestoredRecord>,
    /// This node is one of them, whether it could tell the others or not.
    pub in_doubt: bool,
    /// The latest comparison of metadata and disks, of whatever map and disks; see [`ClusterState::truth`].
    pub compared: Option<keys::truth::TruthRecord>,
}

impl ClusterState {
    /// The version of file records that every node reads which is there, or may come back.
    pub fn file_format(&self) -> u8 {
        let placed = |id: &NodeId| self.map.as_ref().is_some_and(|map| map.nodes.contains_key(id));
        let counts = self.nodes.values().filter(|node| node.is_live() || placed(&node.id));
        counts.map(|node| node.file_format).min().unwrap_or(keys::file::V1)
    }

    pub fn node_by_name(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.values().find(|node| node.name == name)
    }

    /// Nothing may be deleted while the store may be an older copy of itself (R10), or before that is known.
    pub fn may_delete(&self) -> bool {
        self.revision > 0 && !self.in_doubt && self.restored.is_empty()
    }

    /// A tick as tombstones have it: of now, unless it is given.
    pub fn short_tick(&self, tick: Option<u64>) -> u32 {
        u32::try_from(tick.unwrap_or(self.tick)).unwrap_or(u32::MAX)
    }

    /// How far the store is.
    pub fn sighting(&self) -> Sighting {
        Sighting {
            tick: self.tick,
            revision: self.revision,
            map_generation: self.map.as_ref().map_or(0, |map| map.generation),
            epoch: self.epoch,
        }
    }

    /// Digest of the disks that the map's nodes have now.
    pub fn disks(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for id in self.map.iter().flat_map(|map| map.nodes.keys()) {
            hasher.update(&id.0.to_le_bytes());
            hasher.update(self.nodes.get(id).map_or(&[0; 16], |node| &node.incarnation.0));
        }
        let mut disks = [0; 16];
        disks.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        disks
    }

    /// What the comparison of metadata and disks found under the present map and with the present disks (R3).
    pub fn truth(&self) -> Option<&keys::truth::TruthRecord> {
        let map = self.map.as_ref()?;
        let compared = self.compared.as_ref()?;
        (compared.map_generation == map.generation && compared.disks == self.disks()).then_some(compared)
    }

    /// Whether every file can be read now. That nothing was missing holds until a node goes or starts anew; that something
    /// was, until one comes.
    pub fn readable(&self) -> Readable {
        let Some(truth) = self.truth().filter(|truth| truth.revision > 0) else {
            return Readable::BeingChecked;
        };
        let (mut fewer, mut more) = (false, false);
        for id in self.map.iter().flat_map(|map| map.nodes.keys()) {
            let node = self.nodes.get(id).filter(|node| node.is_live());
            let (was, is) = (!truth.was_down(id.0), node.is_some());
            let same = node.is_none_or(|node| truth.is_after(node.registered));
            fewer |= was && !(is && same);
            more |= is && !(was && same);
        }
        match truth.missing.len() {
            0 if !fewer => Readable::Everything,
            groups if groups > 0 && !more => Readable::Without(groups as u32),
            _ => Readable::BeingChecked,
        }
    }
}

/// Shares the newest [`ClusterState`].
#[derive(Clone)]
pub struct View(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<Arc<ClusterState>>,
    /// Wakes whoever waits for another state, in the order in which they began to.
    changed: Notify,
}

impl View {
    /// Starts the mirror of node `me`, whose disk remembers how far the store was seen. It runs until `stop`.
    pub fn start(
        env: Env,
        meta: SharedMeta,
        me: String,
        memory: ChunkStore,
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let mirror = Mirror {
            meta,
            me,
            memory,
            doubt: None,
            entries: BTreeMap::new(),
            map: None,
            shared: shared.clone(),
        };
        tokio::spawn(async move {
            stop.run_until_cancelled(mirror.run(env)).await;
        });
        Self(shared)
    }

    pub fn current(&self) -> Arc<ClusterState> {
        self.0.state.lock().clone()
    }

    /// Waits until `wanted` gives something: for ever if the mirror has ended, as it does when the node stops.
    pub async fn wait_for<T>(&self, mut wanted: impl FnMut(&ClusterState) -> Option<T>) -> T {
        loop {
            // Before looking: what comes after the look wakes us up.
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = wanted(&self.current()) {
                return found;
            }
            changed.await;
        }
    }
}

/// A number that is 0 while its key is absent.
pub(super) fn number_of(entry: Option<&KeyValue>) -> Result<u64, MetaError> {
    Ok(entry.map(keys::number).transpose()?.unwrap_or(0))
}

struct Mirror {
    meta: SharedMeta,
    me: String,
    memory: ChunkStore,
    /// How far the store had been seen, if it is behind that.
    doubt: Option<Sighting>,
    entries: BTreeMap<Bytes, KeyValue>,
    map: Option<(u64, Arc<ClusterMap>)>,
    shared: Arc<Shared>,
}

impl Mirror {
    async fn run(mut self, env: Env) {
        let mut pause = RETRY_MIN;
        loop {
            let before = self.newest();
            let error = match self.follow().await {
                Ok(()) => return,
                Err(error) => error,
            };
            if self.newest() > before {
                pause = RETRY_MIN;
            }
            warn!(%error, retry_ms = pause.as_millis() as u64, "lost sight of the metadata store");
            env.clock.sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Revision of the newest state.
    fn newest(&self) -> u64 {
        self.shared.state.lock().revision
    }

    /// Reads, then watches; only an error ends it.
    async fn follow(&mut self) -> Result<(), MetaError> {
        // Before reading: what others see while we read is no reason for doubt.
        let remembered = self.memory.sighting();
        let page = self.meta.range(RangeRead::prefix(keys::CLUSTER_PREFIX)).await?;
        self.entries = page.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        let found = self.read(page.revision)?;
        if remembered.is_ahead_of(&found.sighting(), found.accepted) {
            let now = found.sighting();
            error!(
                ?remembered,
                ?now,
                "the metadata store is an older copy of what it was: nothing is deleted until `cairn-node recover`"
            );
            self.doubt = Some(remembered);
        }
        self.publish(page.revision)?;
        self.report().await?;
        let range = Bytes::from_static(keys::CLUSTER_PREFIX)..prefix_end(keys::CLUSTER_PREFIX);
        let mut watch = self.meta.watch(range, page.revision + 1).await?;
        info!(revision = page.revision, "the cluster's state is in sight");
        loop {
            let events = watch.next().await?;
            let revision = events.last().map_or(0, Event::revision);
            for event in events {
                match event {
                    Event::Put(entry) => self.entries.insert(entry.key.clone(), entry),
                    Event::Delete { key, .. } => self.entries.remove(&key),
                };
            }
            self.publish(revision)?;
            self.report().await?;
        }
    }

    fn publish(&mut self, revision: u64) -> Result<(), MetaError> {
        let mut state = self.read(revision)?;
        // Not before: an older copy that goes on for long enough overtakes what was remembered.
        if self.doubt.is_some_and(|remembered| state.accepted > remembered.tick) {
            info!(tick = state.tick, "the metadata store was accepted as it is");
            self.doubt = None;
        }
        state.in_doubt = self.doubt.is_some();
        if !state.in_doubt {
            self.memory.saw(state.sighting());
        }
        *self.shared.state.lock() = Arc::new(state);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    /// Tells the others how far this node had seen the store, if anybody doubts it: `recover` has to exceed it.
    async fn report(&self) -> Result<(), MetaError> {
        let state = self.shared.state.lock().clone();
        if state.may_delete() || state.restored.contains_key(&self.me) {
            return Ok(());
        }
        let Sighting { tick, revision, map_generation, epoch } =
            self.doubt.unwrap_or_else(|| self.memory.sighting());
        // One that the acceptance of an earlier copy made void would not be heard.
        let tick = tick.max(state.accepted);
        let record = RestoredRecord { tick, revision, map_generation, epoch };
        let then = vec![Op::put(keys::restored::key(&self.me), keys::to_json(&record))];
        self.meta.txn(Txn { then, ..Txn::default() }).await.map(|_| ())
    }

    fn read(&mut self, revision: u64) -> Result<ClusterState, MetaError> {
        let map = self.read_map()?;
        let number = |key: Bytes| number_of(self.entries.get(&key));
        let coordinator = self.entries.get(&keys::coordinator_key());
        Ok(ClusterState {
            revision,
            map_revision: map.as_ref().map_or(0, |(revision, _)| *revision),
            map: map.map(|(_, map)| map),
            nodes: self.read_nodes()?,
            starts_revision: self.entries.get(&keys::starts_key()).map_or(0, |entry| entry.mod_revision),
            epoch: number(keys::epoch_key())? as u32,
            epoch_revision: self.entries.get(&keys::epoch_key()).map_or(0, |entry| entry.mod_revision),
            tick: number(keys::tick_key())?,
            coordinator: coordinator.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()),
            accepted: number(keys::restored::accepted_key())?,
            restored: self.read_restored()?,
            in_doubt: false,
            intent: self.entries.get(&keys::intent::key()).map(keys::from_json).transpose()?,
            compared: self.entries.get(&keys::truth::key()).map(keys::from_json).transpose()?,
        })
    }

    fn read_restored(&self) -> Result<BTreeMap<String, RestoredRecord>, MetaError> {
        let accepted = number_of(self.entries.get(&keys::restored::accepted_key()))?;
        let mut restored = BTreeMap::new();
        let end = prefix_end(keys::restored::PREFIX);
        for (key, entry) in self.entries.range(Bytes::from_static(keys::restored::PREFIX)..end) {
            let record: RestoredRecord = keys::from_json(entry)?;
            if record.tick >= accepted {
                restored.insert(keys::name(&key[keys::restored::PREFIX.len()..]), record);
            }
        }
        Ok(restored)
    }

    /// The map, parsed again only when its head has changed.
    fn read_map(&mut self) -> Result<Option<(u64, Arc<ClusterMap>)>, MetaError> {
        let Some(entry) = self.entries.get(&keys::map::key()) else { return Ok(None) };
        if self.map.as_ref().is_none_or(|(revision, _)| *revision != entry.mod_revision) {
            let head: keys::map::MapHead = keys::from_json(entry)?;
            let pages: Vec<&[u8]> = (0..head.pages)
                .filter_map(|page| self.entries.get(&keys::map::page_key(page)))
                .map(|entry| &entry.value[..])
                .collect();
            let map = head.join(pages.into_iter())?;
            self.map = Some((entry.mod_revision, Arc::new(map)));
        }
        Ok(self.map.clone())
    }

    fn read_nodes(&self) -> Result<BTreeMap<NodeId, NodeInfo>, MetaError> {
        let mut nodes = BTreeMap::new();
        let end = prefix_end(keys::node::NODE_PREFIX);
        for (key, entry) in self.entries.range(Bytes::from_static(keys::node::NODE_PREFIX)..end) {
            let record: keys::node::NodeRecord = keys::from_json(entry)?;
            let name = String::from_utf8_lossy(&key[keys::node::NODE_PREFIX.len()..]).into_owned();
            let live: Option<keys::node::LiveRecord> =
                self.entries.get(&keys::node::live_key(&name)).map(keys::from_json).transpose()?;
            // A lease of another disk than the registered one is on its way out.
            let live = live.filter(|live| live.incarnation == record.incarnation);
            let id = NodeId(record.id);
            let node = NodeInfo {
                id,
                name,
                zone: record.zone,
                incarnation: Incarnation(record.incarnation),
                capacity_bytes: record.capacity_bytes,
                file_format: record.file_format,
                registered: entry.mod_revision,
                version: live.as_ref().map_or_else(String::new, |live| live.version.clone()),
                address: live.map(|live| live.address),
            };
            nodes.insert(id, node);
        }
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::{MemberNode, assign};

    use super::*;
    use crate::meta::keys::truth::TruthRecord;

    /// Three nodes that registered at revision 5, compared at revision 10; those in `down` were away.
    fn compared(down: &[u16], missing: &[u32]) -> ClusterState {
        let member =
            |id: u16| MemberNode { id: NodeId(id), name: id.to_string(), zone: id.to_string(), weight: 1 };
        let node = |id: u16| NodeInfo {
            id: NodeId(id),
            name: id.to_string(),
            zone: id.to_string(),
            incarnation: Incarnation([id as u8; 16]),
            capacity_bytes: 1,
            registered: 5,
            address: (!down.contains(&id)).then(|| "h:1".into()),
            version: String::new(),
            file_format: crate::meta::keys::file::NEWEST,
        };
        let mut state = ClusterState {
            revision: 20,
            map: Some(Arc::new(assign(&[1, 2, 3].map(member), 4, 1).unwrap())),
            nodes: [1, 2, 3].map(|id| (NodeId(id), node(id))).into(),
            ..ClusterState::default()
        };
        state.compared = Some(TruthRecord {
            map_generation: state.map.as_ref().unwrap().generation,
            disks: state.disks(),
            revision: 10,
            down: down.to_vec(),
            missing: missing.to_vec(),
            ..TruthRecord::default()
        });
        state
    }

    /// What is said of it after `id` was changed.
    fn after(mut state: ClusterState, id: u16, change: impl FnOnce(&mut NodeInfo)) -> Readable {
        change(state.nodes.get_mut(&NodeId(id)).unwrap());
        state.readable()
    }

    fn goes(node: &mut NodeInfo) {
        node.address = None;
    }

    fn starts(node: &mut NodeInfo) {
        node.address = Some("h:1".into());
        node.registered = 15;
    }

    /// A node that registered with an earlier version, and may come back with it, could not read what it does not know.
    #[test]
    fn records_are_written_as_every_node_reads_them() {
        use keys::file::{NEWEST, V1};
        let mut state = compared(&[3], &[]);
        assert_eq!(state.file_format(), NEWEST);
        state.nodes.get_mut(&NodeId(3)).unwrap().file_format = V1;
        assert_eq!(state.file_format(), V1, "it is away, and has its place");
        state.map =
            Some(Arc::new(ClusterMap { nodes: BTreeMap::new(), ..(**state.map.as_ref().unwrap()).clone() }));
        assert_eq!(state.file_format(), NEWEST, "it is gone for ever");
        assert_eq!(ClusterState::default().file_format(), V1, "nothing is known");
        let old = r#"{"id":1,"zone":"a","incarnation":"00000000000000000000000000000000","boot":1,"capacity_bytes":1}"#;
        let old: keys::node::NodeRecord = serde_json::from_str(old).unwrap();
        assert_eq!(old.file_format, V1);
    }

    #[test]
    fn that_everything_can_be_read_holds_until_a_node_goes_or_starts_anew() {
        assert_eq!(compared(&[], &[]).readable(), Readable::Everything);
        assert_eq!(compared(&[2], &[]).readable(), Readable::Everything, "without the one that is away, too");
        assert_eq!(after(compared(&[], &[]), 2, goes), Readable::BeingChecked);
        assert_eq!(
            after(compared(&[], &[]), 2, starts),
            Readable::BeingChecked,
            "it may have lost something"
        );
        assert_eq!(
            after(compared(&[2], &[]), 2, starts),
            Readable::Everything,
            "more disks cannot hold less"
        );
        assert_eq!(after(compared(&[2], &[]), 1, goes), Readable::BeingChecked);
    }

    #[test]
    fn that_something_is_missing_holds_until_a_node_comes() {
        assert_eq!(compared(&[2], &[1, 3]).readable(), Readable::Without(2));
        assert_eq!(
            after(compared(&[2], &[1]), 1, goes),
            Readable::Without(1),
            "fewer disks cannot hold more"
        );
        assert_eq!(after(compared(&[2], &[1]), 2, starts), Readable::BeingChecked);
        assert_eq!(after(compared(&[], &[1]), 2, starts), Readable::BeingChecked);
    }

    #[test]
    fn nothing_is_said_of_other_disks_and_maps_and_without_a_comparison() {
        let other = |node: &mut NodeInfo| node.incarnation = Incarnation([9; 16]);
        assert_eq!(after(compared(&[], &[]), 1, other), Readable::BeingChecked);
        assert_eq!(after(compared(&[], &[1]), 1, other), Readable::BeingChecked);
        assert_eq!(ClusterState { compared: None, ..compared(&[], &[]) }.readable(), Readable::BeingChecked);
        for missing in [&[][..], &[1]] {
            let mut state = compared(&[], missing);
            state.compared.as_mut().unwrap().revision = 0;
            assert_eq!(
                state.readable(),
                Readable::BeingChecked,
                "an older version did not say who was there"
            );
        }
    }
}
