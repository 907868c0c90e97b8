//! The coordinator: one node, elected by a leased key, that makes the map, counts ticks, and runs the cluster's
//! housekeeping (collection, volume removal).
//!
//! Election: whoever sees no `c/coordinator` puts its name there, under the lease of its own, if it is still absent.
//! Every write of the coordinator compares that key's revision, so one that has lost its lease writes nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_placement::{ClusterMap, MemberNode, assign, check, pg_bits_for};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::view::{ClusterState, View};
use crate::{
    env::Env,
    meta::{Compare, LeaseId, MetaError, Op, SharedMeta, Txn, keys},
};

/// How a coordinator goes about it.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    pub node: String,
    pub lease_ttl: Duration,
    /// R10's minute.
    pub tick: Duration,
    /// Nodes to wait for before the first map, where no operator tells which.
    pub expected_nodes: usize,
}

/// Proof of being the coordinator, for compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub revision: u64,
}

impl Term {
    /// Holds as long as this term lasts.
    pub fn holds(&self) -> Compare {
        Compare::unchanged(keys::coordinator_key(), self.revision)
    }
}

/// What the coordinator does besides maps and ticks; called again and again during a term, and dropped at its end.
#[async_trait::async_trait]
pub trait Housekeeping: Send + Sync {
    /// One round.
    async fn round(&self, term: &Term);

    /// What goes on beside the rounds for as long as the term lasts; never ends.
    async fn beside(&self, term: &Term);
}

pub struct Coordinator {
    pub env: Env,
    pub meta: SharedMeta,
    pub view: View,
    pub options: CoordinatorOptions,
    pub housekeeping: Arc<dyn Housekeeping>,
}

/// Between two looks at whether there is work.
const POLL: Duration = Duration::from_secs(1);

impl Coordinator {
    /// Stands for election, and coordinates whenever elected, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let task = async {
            loop {
                if let Err(error) = self.stand().await {
                    warn!(%error, "the coordinator's term ended");
                }
                self.env.clock.sleep(POLL).await;
            }
        };
        stop.run_until_cancelled(task).await;
    }

    /// Waits until the post is free, takes it if nobody is faster, and serves until it is lost.
    async fn stand(&self) -> Result<(), MetaError> {
        let vacant = |state: &ClusterState| (state.revision > 0 && state.coordinator.is_none()).then_some(());
        self.view.wait_for(vacant).await;
        let lease = self.meta.grant(self.options.lease_ttl).await?;
        let result = self.elect_and_serve(lease).await;
        let _ = self.meta.revoke(lease).await;
        result
    }

    async fn elect_and_serve(&self, lease: LeaseId) -> Result<(), MetaError> {
        let key = keys::coordinator_key();
        let value = Bytes::from(self.options.node.clone().into_bytes());
        let txn = Txn {
            compare: vec![Compare::absent(key.clone())],
            then: vec![Op::Put { key, value, lease: Some(lease) }],
            otherwise: vec![],
        };
        let result = self.meta.txn(txn).await?;
        if !result.succeeded {
            return Ok(());
        }
        let term = Term { revision: result.revision };
        info!(node = self.options.node, revision = term.revision, "elected coordinator");
        tokio::select! {
            biased;
            ended = self.hold(lease) => ended,
            ended = self.serve(&term) => ended,
            () = self.housekeeping.beside(&term) => Ok(()),
        }
    }

    async fn hold(&self, lease: LeaseId) -> Result<(), MetaError> {
        let mut renewed = self.env.clock.monotonic();
        loop {
            self.env.clock.sleep(self.options.lease_ttl / 4).await;
            match self.meta.keep_alive(lease).await {
                Ok(()) => renewed = self.env.clock.monotonic(),
                // The store is away: the term lasts as long as the lease can.
                Err(_) if self.env.clock.monotonic() - renewed < self.options.lease_ttl => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn serve(&self, term: &Term) -> Result<(), MetaError> {
        let mut ticked = self.env.clock.monotonic();
        loop {
            let state = self.view.current();
            if state.map.is_none() {
                self.make_first_map(term, &state).await?;
            } else {
                self.housekeeping.round(term).await;
            }
            let now = self.env.clock.monotonic();
            if now - ticked >= self.options.tick {
                self.count_tick(term).await?;
                ticked = now;
            }
            self.env.clock.sleep(POLL.min(self.options.tick)).await;
        }
    }

    async fn count_tick(&self, term: &Term) -> Result<(), MetaError> {
        let key = keys::tick_key();
        let entry = self.meta.get(&key).await?;
        let tick = entry.as_ref().map(keys::number).transpose()?.unwrap_or(0) + 1;
        let revision = entry.map_or(0, |entry| entry.mod_revision);
        let txn = Txn {
            compare: vec![term.holds(), Compare::unchanged(key.clone(), revision)],
            then: vec![Op::put(key, tick.to_string())],
            otherwise: vec![],
        };
        self.meta.txn(txn).await.map(|_| ())
    }

    /// Makes the first map, once every node that should be there is.
    async fn make_first_map(&self, term: &Term, state: &ClusterState) -> Result<(), MetaError> {
        let Some(nodes) = founders(state, self.options.expected_nodes) else { return Ok(()) };
        let bits = pg_bits_for(nodes.len());
        let map = match assign(&nodes, bits, 1) {
            Ok(map) => map,
            Err(error) => {
                error!(%error, "no cluster map can be made");
                return Ok(());
            }
        };
        let faults = check(&map);
        if !faults.is_empty() {
            error!(?faults, "the checker refuses the cluster map; it is not published");
            return Ok(());
        }
        self.publish(term, &map, state.map_revision).await
    }

    async fn publish(&self, term: &Term, map: &ClusterMap, revision: u64) -> Result<(), MetaError> {
        let compare = vec![term.holds(), Compare::unchanged(keys::map::key(), revision)];
        let result = self.meta.txn(Txn { compare, then: keys::map::ops(map), otherwise: vec![] }).await?;
        if result.succeeded {
            info!(
                generation = map.generation,
                groups = map.pg_count(),
                nodes = map.nodes.len(),
                "map published"
            );
        }
        Ok(())
    }
}

/// The nodes of the first map: those intended, or as many as expected; `None` while some have yet to register.
fn founders(state: &ClusterState, expected: usize) -> Option<Vec<MemberNode>> {
    let member = |node: &super::view::NodeInfo| MemberNode {
        id: node.id,
        name: node.name.clone(),
        zone: node.zone.clone(),
        weight: node.capacity_bytes.max(1),
    };
    match &state.intent {
        Some(intent) if !intent.nodes.is_empty() => {
            let known = intent
                .nodes
                .iter()
                .map(|wanted| state.node_by_name(&wanted.name).filter(|node| node.is_live()));
            known.map(|node| node.map(member)).collect()
        }
        _ => {
            let live: Vec<_> = state.nodes.values().filter(|node| node.is_live()).map(member).collect();
            (live.len() >= expected.max(1)).then_some(live)
        }
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::{Incarnation, NodeId};

    use super::*;
    use crate::cluster::view::NodeInfo;

    fn state(live: &[(u16, bool)], intended: &[&str]) -> ClusterState {
        let node = |&(id, live): &(u16, bool)| {
            let info = NodeInfo {
                id: NodeId(id),
                name: format!("n{id}"),
                zone: "a".into(),
                incarnation: Incarnation([0; 16]),
                capacity_bytes: 1,
                registered: 0,
                address: live.then(|| "h:1".into()),
                version: String::new(),
                file_format: crate::meta::keys::file::NEWEST,
            };
            (info.id, info)
        };
        let intend = |name: &&str| keys::intent::IntendedNode { name: (*name).into(), zone: "a".into() };
        let nodes = intended.iter().map(intend).collect();
        let intent = (!intended.is_empty()).then_some(keys::intent::IntentRecord { generation: 1, nodes });
        ClusterState { nodes: live.iter().map(node).collect(), intent, ..ClusterState::default() }
    }

    #[test]
    fn the_first_map_waits_for_every_node() {
        assert_eq!(founders(&state(&[(1, true), (2, false)], &[]), 2), None);
        assert_eq!(founders(&state(&[(1, true), (2, true)], &[]), 2).unwrap().len(), 2);
        assert_eq!(founders(&state(&[(1, true), (2, true)], &["n1", "n3"]), 1), None);
        let three = state(&[(1, true), (2, true), (3, true)], &["n1", "n3"]);
        let names: Vec<_> = founders(&three, 9).unwrap().into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["n1", "n3"]);
    }
}
