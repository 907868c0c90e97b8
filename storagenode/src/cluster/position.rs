//! Whether a disk is as new as it once said (R9).
//!
//! After each tick a node makes durable on its disk how far it has seen the metadata store, and then tells the store that
//! the disk remembers it ([`tell`]). So at a start the disk remembers as much, or it has lost what was written since: it is
//! an older copy of itself, or a device that forgets what it had acknowledged. (Its boot counter, see [`super::register`],
//! only shows copies from before an earlier start.)
//!
//! What it lost is on other nodes, unless there are none. So a node alone refuses to start until its owner has said with
//! `cairn-node recover --accept-disk` that there is no newer disk ([`accept_disk`]); among others it starts, says so, and
//! is brought up to date: what members lack is found by comparing inventories, and a lost deletion by the tombstones of the
//! others, later by the sweep. Damage that a start has found may be what the disk remembered; then only damage is spoken of.

use tracing::warn;

use super::register::RegisterError;
use crate::{
    chunks::{Identity, Sighting},
    meta::{
        Compare, MetaError, Op, SharedMeta, Txn,
        keys::{self, disk::DiskRecord, map::MapHead, node::NodeRecord},
    },
};

/// Why a disk that is behind was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("no node {0:?} has registered: --accept-disk takes the name of the node that refuses its disk")]
    NoSuchNode(String),
    #[error("node {0} runs: its disk is in use, and there is nothing to accept")]
    Runs(String),
    #[error("the node's record changed meanwhile: try once more")]
    Changed,
}

/// Tells the store what the node's disk durably remembers.
pub async fn tell(
    meta: &SharedMeta,
    node: &str,
    incarnation: [u8; 16],
    durable: Sighting,
) -> Result<(), MetaError> {
    let record = DiskRecord { incarnation, tick: durable.tick, revision: durable.revision };
    let then = vec![Op::put(keys::disk::key(node), keys::to_json(&record))];
    meta.txn(Txn { then, ..Txn::default() }).await.map(|_| ())
}

/// Refuses a disk that remembers less than it did, where no other node can have what it lost. `found` is what it remembers.
pub async fn check(
    meta: &SharedMeta,
    node: &str,
    identity: &Identity,
    found: Sighting,
    is_damaged: bool,
) -> Result<(), RegisterError> {
    let reads = vec![Op::get(keys::disk::key(node)), Op::get(keys::map::key())];
    let read = meta.txn(Txn { then: reads, ..Txn::default() }).await?.reads;
    let [told, map] = &read[..] else {
        return Err(MetaError::Damaged("a transaction answered with too few reads".into()).into());
    };
    let Some(told) = told.as_ref().map(keys::from_json::<DiskRecord>).transpose()? else { return Ok(()) };
    if told.incarnation != identity.incarnation.0 {
        return Ok(());
    }
    let map: Option<MapHead> = map.as_ref().map(keys::from_json).transpose()?;
    let nodes = map.map_or(0, |map| map.nodes.len());
    match judge(found, &told, is_damaged, nodes) {
        Verdict::Good => {}
        Verdict::Damaged => {
            warn!(
                node,
                "the disk may have lost more than what was found damaged; the other nodes are asked for it"
            );
        }
        Verdict::BehindOthers => warn!(
            node,
            remembers = found.tick,
            had_remembered = told.tick,
            "the disk has lost what was written to it last: it was rolled back, or forgets what it had acknowledged; the \
             other nodes are asked for it"
        ),
        Verdict::BehindAlone => {
            return Err(RegisterError::DiskBehind {
                node: node.to_owned(),
                disk: found.tick,
                stored: told.tick,
            });
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Behind, and that may be the damage which is named anyway.
    Damaged,
    BehindOthers,
    BehindAlone,
}

/// What to think of a disk that said `told` and remembers `found`, in a cluster whose map has so many nodes.
fn judge(found: Sighting, told: &DiskRecord, is_damaged: bool, nodes: usize) -> Verdict {
    if (found.tick, found.revision) >= (told.tick, told.revision) {
        Verdict::Good
    } else if is_damaged {
        Verdict::Damaged
    } else if nodes > 1 {
        Verdict::BehindOthers
    } else {
        Verdict::BehindAlone
    }
}

/// Takes the disk of a stopped node as it is, however old: what the store knew of a newer one is forgotten.
pub async fn accept_disk(meta: &SharedMeta, node: &str) -> Result<(), AcceptError> {
    let key = keys::node::key(node);
    let reads = vec![Op::get(key.clone()), Op::get(keys::node::live_key(node))];
    let read = meta.txn(Txn { then: reads, ..Txn::default() }).await?.reads;
    let [Some(entry), live] = &read[..] else { return Err(AcceptError::NoSuchNode(node.to_owned())) };
    if live.is_some() {
        return Err(AcceptError::Runs(node.to_owned()));
    }
    let record: NodeRecord = keys::from_json(entry)?;
    let txn = Txn {
        compare: vec![
            Compare::unchanged(key.clone(), entry.mod_revision),
            Compare::absent(keys::node::live_key(node)),
        ],
        then: vec![
            Op::put(key, keys::to_json(&NodeRecord { boot: 0, ..record })),
            Op::delete(keys::disk::key(node)),
            Op::delete(keys::refused::key(node)),
        ],
        otherwise: vec![],
    };
    if meta.txn(txn).await?.succeeded { Ok(()) } else { Err(AcceptError::Changed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_behind_by_tick_or_by_revision_within_one() {
        let told = DiskRecord { incarnation: [1; 16], tick: 7, revision: 50 };
        let alone =
            |tick, revision| judge(Sighting { tick, revision, ..Sighting::default() }, &told, false, 1);
        assert_eq!([alone(6, 90), alone(7, 49)], [Verdict::BehindAlone, Verdict::BehindAlone]);
        assert_eq!([alone(7, 50), alone(7, 51)], [Verdict::Good, Verdict::Good]);
        assert_eq!(alone(8, 3), Verdict::Good, "after a restored store was accepted, revisions begin anew");
    }

    #[test]
    fn others_or_damage_that_is_named_are_no_reason_to_stay_away() {
        let told = DiskRecord { incarnation: [1; 16], tick: 7, revision: 50 };
        let behind = Sighting { tick: 6, ..Sighting::default() };
        assert_eq!(judge(behind, &told, false, 0), Verdict::BehindAlone, "there is no map yet");
        assert_eq!(judge(behind, &told, false, 2), Verdict::BehindOthers);
        assert_eq!(judge(behind, &told, true, 1), Verdict::Damaged);
        assert_eq!(judge(behind, &told, true, 3), Verdict::Damaged);
    }
}
