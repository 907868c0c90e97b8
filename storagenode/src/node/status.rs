//! The cluster as this node sees it, for people and operators.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use cairn_placement::{ClusterMap, NodeId, PgId};
use cairn_proto::v1 as proto;
use futures::{StreamExt, stream};

use crate::{
    api::{
        peer::OwnState,
        ports::{Cluster, IntentError, NodeLabel},
    },
    cluster::{ClusterState, NodeInfo, Readable},
    env::Env,
    files::FileError,
    meta::{
        Compare, Op, RangeRead, SharedMeta, Txn,
        keys::{
            self,
            intent::{IntendedNode, IntentRecord},
            refused::RefusedRecord,
        },
    },
    replication::write::Writer,
    workers::inventories,
};

/// How long another node is asked.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// How long nodes that should hold the same are compared.
const COMPARE_LIMIT: Duration = Duration::from_secs(5);
/// Nodes asked at the same time.
const ASK_AT_ONCE: usize = 32;
/// Deleted generations that are counted one by one.
const MAX_COUNTED: usize = 10_000;
/// Nodes that an intent may name.
const MAX_INTENDED: usize = 8_192;
const INTENT_ATTEMPTS: usize = 16;

pub struct ClusterStatus {
    pub(super) env: Env,
    pub(super) meta: SharedMeta,
    pub(super) cluster: String,
    pub(super) cluster_id: [u8; 16],
    pub(super) me: String,
    pub(super) writer: Writer,
    pub(super) own: OwnState,
}

impl ClusterStatus {
    /// What every live node says of itself; those that do not answer are absent.
    async fn ask_all(&self, state: &ClusterState) -> BTreeMap<NodeId, proto::SettledResponse> {
        let bits = state.map.as_ref().map_or(0, |map| map.pg_bits);
        let ask = |node: NodeInfo| async move {
            if node.id == self.writer.me {
                return Some((node.id, self.own.answer()));
            }
            Some((node.id, self.writer.peers.settled(&node, bits, ASK_LIMIT).await.ok()?))
        };
        let nodes: Vec<NodeInfo> = state.nodes.values().filter(|node| node.is_live()).cloned().collect();
        stream::iter(nodes)
            .map(ask)
            .buffer_unordered(ASK_AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// The groups that have all their copies. Members compare again and again; what was written since to some of them only, they
    /// do not know yet. So the groups of which they say that nothing is missing are compared once more, now.
    async fn settled(
        &self,
        state: &ClusterState,
        map: &ClusterMap,
        answers: &BTreeMap<NodeId, proto::SettledResponse>,
    ) -> BTreeSet<PgId> {
        let said = said_settled(map, state, answers);
        let compared = inventories::agreeing(&self.writer, state, map, said);
        self.env.timeout(COMPARE_LIMIT, compared).await.unwrap_or_default()
    }

    /// Why nodes that are not live did not start when they last tried.
    async fn add_refusals(&self, nodes: &mut [proto::NodeStatus]) {
        let is_live = |node: &proto::NodeStatus| node.state() == proto::NodeState::NodeLive;
        if nodes.iter().all(is_live) {
            return;
        }
        let read = RangeRead { limit: MAX_INTENDED, ..RangeRead::prefix(keys::refused::PREFIX) };
        let page = self.env.timeout(ASK_LIMIT, self.meta.range(read)).await;
        let entries = page.and_then(Result::ok).map_or_else(Vec::new, |page| page.entries);
        for node in nodes.iter_mut().filter(|node| !is_live(node)) {
            let key = keys::refused::key(&node.name);
            let entry = entries.iter().find(|entry| entry.key == key);
            let record = entry.and_then(|entry| keys::from_json::<RefusedRecord>(entry).ok());
            node.refusal = record.map_or_else(String::new, |record| record.why);
        }
    }

    async fn collecting(&self) -> u64 {
        let read =
            RangeRead { limit: MAX_COUNTED, keys_only: true, ..RangeRead::prefix(keys::collect::PREFIX) };
        let page = self.env.timeout(ASK_LIMIT, self.meta.range(read)).await;
        page.and_then(Result::ok).map_or(0, |page| page.entries.len() as u64)
    }
}

/// The groups of which every member said that all agreed in its latest comparison. Members that agree hold everything only if
/// the metadata names nothing that they all lack (R3).
fn said_settled(
    map: &ClusterMap,
    state: &ClusterState,
    answers: &BTreeMap<NodeId, proto::SettledResponse>,
) -> BTreeSet<PgId> {
    let settled_at: BTreeMap<NodeId, BTreeSet<PgId>> = answers
        .iter()
        .filter(|(_, answer)| answer.map_generation == map.generation)
        .map(|(node, answer)| (*node, answer.placement_groups.iter().copied().map(PgId).collect()))
        .collect();
    let truth = state.truth();
    let lacks = |pg: PgId| truth.is_none_or(|truth| truth.lacks(pg.0));
    // What a node held before it started anew says nothing: a start may find less on the disk.
    let compared: BTreeSet<NodeId> = state
        .nodes
        .values()
        .filter(|node| truth.is_some_and(|truth| truth.is_after(node.registered)))
        .map(|node| node.id)
        .collect();
    let compared = |member: &NodeId| compared.contains(member);
    let agreed =
        |pg: &PgId, member: &NodeId| settled_at.get(member).is_some_and(|groups| groups.contains(pg));
    let all_agreed =
        |pg: &PgId| map.members_of(*pg).iter().all(|member| agreed(pg, member) && compared(member));
    (0..map.pg_count()).map(PgId).filter(|pg| !lacks(*pg) && all_agreed(pg)).collect()
}

/// Groups by state: settled, degraded, unavailable.
fn count_groups(map: &ClusterMap, state: &ClusterState, settled: &BTreeSet<PgId>) -> (u32, u32, u32) {
    let live = |member: &NodeId| state.nodes.get(member).is_some_and(NodeInfo::is_live);
    let others = (0..map.pg_count()).map(PgId).filter(|pg| !settled.contains(pg));
    let (degraded, unavailable): (Vec<PgId>, Vec<PgId>) =
        others.partition(|pg| map.members_of(*pg).iter().any(live));
    (settled.len() as u32, degraded.len() as u32, unavailable.len() as u32)
}

fn node_status(
    node: &NodeInfo,
    map: Option<&ClusterMap>,
    answer: Option<&proto::SettledResponse>,
) -> proto::NodeStatus {
    let state = if node.is_live() { proto::NodeState::NodeLive } else { proto::NodeState::NodeDown };
    let settled =
        |answer: &&proto::SettledResponse| map.is_some_and(|map| map.generation == answer.map_generation);
    proto::NodeStatus {
        name: node.name.clone(),
        zone: node.zone.clone(),
        address: node.address.clone().unwrap_or_default(),
        state: state.into(),
        capacity_bytes: answer.map_or(node.capacity_bytes, |answer| answer.capacity_bytes),
        used_bytes: answer.map_or(0, |answer| answer.used_bytes),
        chunks: answer.map_or(0, |answer| answer.chunks),
        placement_groups: map.map_or(0, |map| map.groups_of(node.id).count() as u32),
        settled_placement_groups: answer
            .filter(settled)
            .map_or(0, |answer| answer.placement_groups.len() as u32),
        version: node.version.clone(),
        warnings: answer.map_or_else(Vec::new, |answer| answer.warnings.clone()),
        ..proto::NodeStatus::default()
    }
}

/// A node that the operator named and nobody has seen.
fn expected_node(intended: &IntendedNode) -> proto::NodeStatus {
    proto::NodeStatus {
        name: intended.name.clone(),
        zone: intended.zone.clone(),
        state: proto::NodeState::NodeExpected.into(),
        ..proto::NodeStatus::default()
    }
}

#[async_trait]
impl Cluster for ClusterStatus {
    async fn status(&self) -> Result<proto::StatusResponse, FileError> {
        let state = self.writer.view.current();
        let answers = self.ask_all(&state).await;
        let map = state.map.as_deref();
        let (settled, degraded, unavailable) = match map {
            Some(map) => count_groups(map, &state, &self.settled(&state, map, &answers).await),
            None => (0, 0, 0),
        };
        let mut nodes: Vec<_> =
            state.nodes.values().map(|node| node_status(node, map, answers.get(&node.id))).collect();
        let intended = state.intent.iter().flat_map(|intent| &intent.nodes);
        nodes.extend(intended.filter(|node| state.node_by_name(&node.name).is_none()).map(expected_node));
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        self.add_refusals(&mut nodes).await;
        let (readable, missing) = match state.readable() {
            Readable::BeingChecked => (proto::Readable::BeingChecked, 0),
            Readable::Everything => (proto::Readable::All, 0),
            Readable::Without(groups) => (proto::Readable::NotAll, groups),
        };
        Ok(proto::StatusResponse {
            cluster: self.cluster.clone(),
            cluster_id: hex::encode(self.cluster_id),
            map_generation: map.map_or(0, |map| map.generation),
            intent_generation: state.intent.as_ref().map_or(0, |intent| intent.generation),
            coordinator: state.coordinator.clone().unwrap_or_default(),
            placement_groups: map.map_or(0, ClusterMap::pg_count),
            settled,
            degraded,
            unavailable,
            nodes,
            answered_by: self.me.clone(),
            collecting: self.collecting().await,
            metadata_restored: state.in_doubt || !state.restored.is_empty(),
            compared: state.truth().is_some(),
            lost_files: state.truth().map_or(0, |truth| truth.lost_files),
            lost: state.truth().map_or_else(Vec::new, |truth| truth.lost.clone()),
            readable: readable.into(),
            missing,
        })
    }

    async fn set_intent(&self, generation: u64, nodes: Vec<proto::IntendedNode>) -> Result<u64, IntentError> {
        let nodes = checked(nodes)?;
        for _ in 0..INTENT_ATTEMPTS {
            let entry = self.meta.get(&keys::intent::key()).await.map_err(FileError::from)?;
            let known: Option<IntentRecord> =
                entry.as_ref().map(keys::from_json).transpose().map_err(FileError::from)?;
            if let Some(known) = known {
                if known.generation > generation {
                    return Err(IntentError::Stale { given: generation, known: known.generation });
                }
                if known.generation == generation {
                    let same = known.nodes == nodes;
                    return same.then_some(generation).ok_or(IntentError::Differs(generation));
                }
            }
            let record = IntentRecord { generation, nodes: nodes.clone() };
            let txn = Txn {
                compare: vec![Compare::unchanged(
                    keys::intent::key(),
                    entry.map_or(0, |entry| entry.mod_revision),
                )],
                then: vec![Op::put(keys::intent::key(), keys::to_json(&record))],
                otherwise: vec![],
            };
            if self.meta.txn(txn).await.map_err(FileError::from)?.succeeded {
                return Ok(generation);
            }
        }
        Err(FileError::Conflict("many intents are being set at once".into()).into())
    }

    fn ready(&self) -> Result<(), String> {
        let state = self.writer.view.current();
        if state.revision == 0 {
            return Err("the cluster's state has not been read yet".into());
        }
        if state.map.is_none() {
            return Err("the cluster has no map yet; it waits for its nodes to register".into());
        }
        Ok(())
    }

    fn label(&self, node: NodeId) -> Option<NodeLabel> {
        let state = self.writer.view.current();
        let node = state.nodes.get(&node)?;
        Some(NodeLabel { name: node.name.clone(), zone: node.zone.clone() })
    }
}

/// An intent's nodes, sorted by name, if they can be nodes.
fn checked(nodes: Vec<proto::IntendedNode>) -> Result<Vec<IntendedNode>, IntentError> {
    if nodes.is_empty() || nodes.len() > MAX_INTENDED {
        return Err(IntentError::Invalid(format!("an intent names 1 to {MAX_INTENDED} nodes")));
    }
    let mut checked: Vec<IntendedNode> =
        nodes.into_iter().map(|node| IntendedNode { name: node.name, zone: node.zone }).collect();
    checked.sort_by(|a, b| a.name.cmp(&b.name));
    if checked.iter().any(|node| node.name.is_empty() || node.zone.is_empty() || node.name.len() > 253) {
        return Err(IntentError::Invalid("every node needs a name of up to 253 bytes, and a zone".into()));
    }
    if checked.windows(2).any(|pair| pair[0].name == pair[1].name) {
        return Err(IntentError::Invalid("two nodes have the same name".into()));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cairn_placement::{Incarnation, MemberNode, assign};

    use super::*;
    use crate::meta::keys::truth::TruthRecord;

    #[test]
    fn a_group_is_settled_when_its_members_agree_and_were_compared_since_they_started() {
        let member =
            |id: u16| MemberNode { id: NodeId(id), name: id.to_string(), zone: id.to_string(), weight: 1 };
        let map = assign(&[1, 2, 3].map(member), 4, 1).unwrap();
        let node = |id: u16| NodeInfo {
            id: NodeId(id),
            name: id.to_string(),
            zone: id.to_string(),
            incarnation: Incarnation([0; 16]),
            capacity_bytes: 1,
            registered: 5,
            address: Some("h:1".into()),
            version: String::new(),
            file_format: crate::meta::keys::file::NEWEST,
        };
        let groups: Vec<u32> = (0..map.pg_count()).collect();
        let settled = proto::SettledResponse {
            map_generation: map.generation,
            placement_groups: groups.clone(),
            ..proto::SettledResponse::default()
        };
        let answers: BTreeMap<_, _> = [1, 2, 3].map(|id| (NodeId(id), settled.clone())).into();
        let mut state = ClusterState {
            map: Some(Arc::new(map.clone())),
            nodes: [1, 2, 3].map(|id| (NodeId(id), node(id))).into(),
            ..ClusterState::default()
        };
        let count = |state: &ClusterState| count_groups(&map, state, &said_settled(&map, state, &answers));
        assert_eq!(count(&state), (0, 16, 0), "not compared");
        let truth = TruthRecord {
            map_generation: map.generation,
            disks: state.disks(),
            revision: 10,
            ..Default::default()
        };
        state.compared = Some(truth.clone());
        assert_eq!(count(&state), (16, 0, 0));
        // One starts anew, so quickly that nobody saw it away.
        state.nodes.get_mut(&NodeId(2)).unwrap().registered = 11;
        let with_it = map.groups_of(NodeId(2)).count() as u32;
        assert_eq!(count(&state), (16 - with_it, with_it, 0));
        // A version that did not say when it compared is believed, as it was then.
        state.compared = Some(TruthRecord { revision: 0, ..truth.clone() });
        assert_eq!(count(&state), (16, 0, 0));
        state.compared = Some(TruthRecord { revision: 11, missing: vec![3], ..truth });
        assert_eq!(count(&state), (15, 1, 0));
    }
}
