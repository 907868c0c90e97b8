//! Acceptance of a restored metadata store (R10): `cairn-node recover`.
//!
//! Map generation, sweep epoch and tick are raised above all that any node had seen, so that nothing from before the
//! restoration is mistaken for something of now; then the nodes' reports are void, and deleting goes on.

use std::collections::BTreeSet;

use crate::{
    cluster::view::number_of,
    meta::{
        Compare, KeyValue, MetaError, Op, RangeRead, SharedMeta, Txn,
        keys::{self, map::MapHead, restored::RestoredRecord},
    },
};

/// Keys removed in one transaction.
const KEYS_A_TXN: usize = 50;
const ATTEMPTS: usize = 16;

/// Why a restored store was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("no node doubts the metadata store: there is nothing to recover")]
    NothingToDo,
    #[error(
        "{} have not said how far they had seen the metadata store: start them and wait a moment, or, if their disks are \
         gone for ever, name each with --without-node", .0.join(", ")
    )]
    Missing(Vec<String>),
    #[error("no node {0:?} has registered: --without-node takes the name of a node that is gone for ever")]
    NoSuchNode(String),
    #[error("the cluster changed again and again meanwhile: try once more")]
    Contention,
}

/// What was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    pub tick: u64,
    pub map_generation: u64,
    pub epoch: u32,
    /// Nodes that had reported.
    pub reports: usize,
}

/// Accepts the store as it is, if every registered node but those in `without` has reported.
pub async fn recover(meta: &SharedMeta, without: &[String]) -> Result<Recovered, RecoverError> {
    for _ in 0..ATTEMPTS {
        let entries = meta.range(RangeRead::prefix(keys::CLUSTER_PREFIX)).await?.entries;
        let (recovered, txn) = plan(&entries, without)?;
        if meta.txn(txn).await?.succeeded {
            let void = RangeRead { keys_only: true, ..RangeRead::prefix(keys::restored::PREFIX) };
            let void = meta.range(void).await?.entries;
            for part in void.chunks(KEYS_A_TXN) {
                // One that was written anew since then stays.
                let compare =
                    part.iter().map(|entry| Compare::unchanged(entry.key.clone(), entry.mod_revision));
                let then = part.iter().map(|entry| Op::delete(entry.key.clone())).collect();
                meta.txn(Txn { compare: compare.collect(), then, otherwise: vec![] }).await?;
            }
            return Ok(recovered);
        }
    }
    Err(RecoverError::Contention)
}

/// What to write, given everything under `c/`.
fn plan(entries: &[KeyValue], without: &[String]) -> Result<(Recovered, Txn), RecoverError> {
    let find = |key: &[u8]| entries.iter().find(|entry| entry.key == key);
    let names = |prefix: &'static [u8]| {
        let names = entries.iter().filter_map(move |entry| entry.key.strip_prefix(prefix));
        names.map(keys::name).collect::<BTreeSet<String>>()
    };
    let nodes = names(keys::node::NODE_PREFIX);
    if let Some(stranger) = without.iter().find(|name| !nodes.contains(*name)) {
        return Err(RecoverError::NoSuchNode(stranger.clone()));
    }
    let accepted = number_of(find(&keys::restored::accepted_key()))?;
    let mut reports = Vec::new();
    let mut reported = BTreeSet::new();
    for entry in entries {
        let Some(node) = entry.key.strip_prefix(keys::restored::PREFIX) else { continue };
        let record: RestoredRecord = keys::from_json(entry)?;
        if record.tick >= accepted {
            reported.insert(keys::name(node));
            reports.push(record);
        }
    }
    if reports.is_empty() {
        return Err(RecoverError::NothingToDo);
    }
    let missing = nodes.into_iter().filter(|node| !reported.contains(node) && !without.contains(node));
    let missing: Vec<String> = missing.collect();
    if !missing.is_empty() {
        return Err(RecoverError::Missing(missing));
    }
    let tick = number_of(find(&keys::tick_key()))?;
    let epoch = number_of(find(&keys::epoch_key()))? as u32;
    let tick = reports.iter().map(|report| report.tick).fold(tick, u64::max) + 1;
    let epoch = reports.iter().map(|report| report.epoch).fold(epoch, u32::max) + 1;
    let unchanged =
        |key: bytes::Bytes| Compare::unchanged(key.clone(), find(&key).map_or(0, |entry| entry.mod_revision));
    let mut txn = Txn {
        compare: vec![unchanged(keys::tick_key()), unchanged(keys::epoch_key()), unchanged(keys::map::key())],
        then: vec![
            Op::put(keys::tick_key(), tick.to_string()),
            Op::put(keys::epoch_key(), epoch.to_string()),
            Op::put(keys::restored::accepted_key(), tick.to_string()),
        ],
        otherwise: vec![],
    };
    let mut map_generation = 0;
    if let Some(entry) = find(&keys::map::key()) {
        let head: MapHead = keys::from_json(entry)?;
        let seen = reports.iter().map(|report| report.map_generation);
        map_generation = seen.fold(head.generation, u64::max) + 1;
        txn.then
            .push(Op::put(keys::map::key(), keys::to_json(&MapHead { generation: map_generation, ..head })));
    }
    Ok((Recovered { tick, map_generation, epoch, reports: reports.len() }, txn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::keys::node::NodeRecord;

    fn entry(key: bytes::Bytes, value: impl Into<bytes::Bytes>) -> KeyValue {
        KeyValue { key, value: value.into(), create_revision: 1, mod_revision: 5 }
    }

    fn registered(name: &str) -> KeyValue {
        let record = NodeRecord {
            id: 1,
            zone: "a".into(),
            incarnation: [0; 16],
            boot: 1,
            retired: vec![],
            capacity_bytes: 1,
            file_format: keys::file::NEWEST,
        };
        entry(keys::node::key(name), keys::to_json(&record))
    }

    fn report(name: &str, tick: u64, map_generation: u64, epoch: u32) -> KeyValue {
        let record = RestoredRecord { tick, revision: 9, map_generation, epoch };
        entry(keys::restored::key(name), keys::to_json(&record))
    }

    fn store(reports: &[KeyValue]) -> Vec<KeyValue> {
        let head = MapHead { generation: 3, pg_bits: 4, pages: 1, nodes: vec![] };
        let mut entries = vec![
            registered("a"),
            registered("b"),
            entry(keys::tick_key(), "40"),
            entry(keys::epoch_key(), "2"),
            entry(keys::map::key(), keys::to_json(&head)),
            entry(keys::restored::accepted_key(), "7"),
        ];
        entries.extend_from_slice(reports);
        entries
    }

    #[test]
    fn every_number_goes_above_all_that_were_seen() {
        let entries = store(&[report("a", 90, 2, 5), report("b", 30, 8, 1)]);
        let (recovered, txn) = plan(&entries, &[]).unwrap();
        assert_eq!(recovered, Recovered { tick: 91, map_generation: 9, epoch: 6, reports: 2 });
        assert_eq!(txn.then.len(), 4);
        assert!(txn.compare.contains(&Compare::unchanged(keys::map::key(), 5)));
    }

    #[test]
    fn every_node_must_have_spoken_or_be_given_up() {
        let entries = store(&[report("a", 90, 2, 5)]);
        assert_eq!(plan(&entries, &[]).unwrap_err(), RecoverError::Missing(vec!["b".into()]));
        assert!(plan(&entries, &["b".into()]).is_ok());
        assert_eq!(plan(&entries, &["c".into()]).unwrap_err(), RecoverError::NoSuchNode("c".into()));
    }

    #[test]
    fn reports_from_before_the_last_acceptance_do_not_count() {
        assert_eq!(plan(&store(&[]), &[]).unwrap_err(), RecoverError::NothingToDo);
        assert_eq!(plan(&store(&[report("a", 6, 9, 9)]), &[]).unwrap_err(), RecoverError::NothingToDo);
    }
}
