//! Commits (R4): one transaction that happens once or not at all, also when its answer is lost.
//!
//! A commit goes through a *slot*: a key that only this gateway writes, one commit at a time. The transaction compares
//! the slot's revision and writes a token into it. When no answer comes, the same transaction is sent again: if it
//! had happened, the slot's revision has changed and the slot holds the token. An outcome that cannot be found out
//! within the patience is reported as unknown and never tried afresh.
//!
//! ```text
//! send ── succeeded ──────────────────────────────► done
//!   ▲  ── failed, slot holds our token ───────────► done (an earlier send had happened)
//!   │  ── failed, slot's revision is another ─┐
//!   │  ── failed, something else changed ─────┼───► the caller decides afresh, and may send something new
//!   └──── no answer (pause, same transaction) ┘     (only if no earlier send is without an answer; see below)
//! ```
//!
//! After an unanswered send, a failed compare says nothing of that send, which may still arrive: a key that was absent
//! can be absent again. So before the caller decides afresh, the slot is written: whatever compares its old revision
//! can then never happen.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    FileError,
    gateway::{Gateway, META_PATIENCE},
    recent::Said,
};
use crate::{
    chunks::Sighting,
    meta::{
        Compare, KeyValue, MetaError, Op, Txn, TxnResult,
        keys::slot::{self, SLOTS},
    },
};

/// Times that a commit is decided afresh because something it compares had changed.
pub(super) const ATTEMPTS: usize = 16;
/// How long it steps aside before that, at most: at first, and when it has done so often.
const ASIDE: Duration = Duration::from_millis(5);
const LONGEST_ASIDE: Duration = Duration::from_millis(320);
/// Between two sends of the same transaction.
const PAUSE: Duration = Duration::from_millis(100);

/// This gateway's slots: which are free, and their revisions as far as known.
pub struct Slots {
    node: String,
    free: Mutex<Vec<FreeSlot>>,
    permits: Semaphore,
}

#[derive(Debug, Clone, Copy)]
struct FreeSlot {
    number: u16,
    /// `None` until read from the store.
    revision: Option<u64>,
}

/// A slot in use; goes back when dropped.
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    slot: FreeSlot,
    _permit: SemaphorePermit<'a>,
}

impl Slots {
    pub fn new(node: &str) -> Self {
        let free = (0..SLOTS).rev().map(|number| FreeSlot { number, revision: None }).collect();
        Self { node: node.to_owned(), free: Mutex::new(free), permits: Semaphore::new(usize::from(SLOTS)) }
    }

    /// Name of the gateway.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    async fn take(&self) -> Slot<'_> {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let slot = self.free.lock().pop().expect("as many free slots as permits");
        Slot { slots: self, slot, _permit: permit }
    }
}

impl Slot<'_> {
    fn key(&self) -> Bytes {
        slot::key(&self.slots.node, self.slot.number)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.free.lock().push(self.slot);
    }
}

/// A commit to make: conditions and writes, besides the slot's.
#[derive(Debug, Clone)]
pub(super) struct Proposal {
    pub compare: Vec<Compare>,
    pub then: Vec<Op>,
    /// Read when the commit fails, so that the caller can decide afresh.
    pub look: Vec<Bytes>,
}

/// How a commit went.
#[derive(Debug)]
pub(super) enum Outcome {
    Committed,
    /// A condition did not hold; the values of [`Proposal::look`], in order.
    Refused(Vec<Option<KeyValue>>),
}

impl Gateway {
    /// Makes one commit with the unique `token`.
    pub(super) async fn commit(&self, token: [u8; 16], proposal: Proposal) -> Result<Outcome, FileError> {
        let mut slot = self.slots.take().await;
        let asked = self.env.clock.monotonic();
        let deadline = asked + META_PATIENCE;
        let mut sent_without_answer = false;
        loop {
            let revision = match slot.slot.revision {
                Some(revision) => revision,
                None => {
                    let key = slot.key();
                    let entry = self.retry_read(|| self.meta.get(&key)).await?;
                    entry.map_or(0, |entry| entry.mod_revision)
                }
            };
            slot.slot.revision = Some(revision);
            let result = self.meta.txn(transaction(&slot.key(), revision, &token, &proposal)).await;
            let judged =
                judge(result, &token, revision).map_err(|error| in_doubt(sent_without_answer, error));
            match judged.inspect_err(|_| slot.slot.revision = None)? {
                Judged::Committed(revision) => {
                    slot.slot.revision = Some(revision);
                    self.committed(&proposal, asked, revision);
                    return Ok(Outcome::Committed);
                }
                Judged::Refused(found) if !sent_without_answer => return Ok(Outcome::Refused(found)),
                Judged::Refused(found) => match self
                    .fence(&slot.key(), revision, &token)
                    .await
                    .map_err(|error| in_doubt(true, error))
                    .inspect_err(|_| slot.slot.revision = None)?
                {
                    Fenced::Shut(revision) => {
                        slot.slot.revision = Some(revision);
                        return Ok(Outcome::Refused(found));
                    }
                    Fenced::Happened(revision) => {
                        slot.slot.revision = Some(revision);
                        self.committed(&proposal, asked, revision);
                        return Ok(Outcome::Committed);
                    }
                    Fenced::NoAnswer(error) => {
                        if self.env.clock.monotonic() + PAUSE >= deadline {
                            slot.slot.revision = None;
                            return Err(FileError::CommitUnknown(error.to_string()));
                        }
                    }
                },
                Judged::SlotMoved(revision) => {
                    slot.slot.revision = Some(revision);
                    continue;
                }
                Judged::NoAnswer(error) => {
                    sent_without_answer |= matches!(error, MetaError::Unknown(_));
                    if self.env.clock.monotonic() + PAUSE >= deadline {
                        slot.slot.revision = None;
                        return Err(in_doubt(sent_without_answer, error.into()));
                    }
                }
            }
            self.env.clock.sleep(PAUSE).await;
        }
    }
}

impl Gateway {
    /// Lets others go first that write the same: who meets whom again is left to chance.
    pub(super) async fn step_aside(&self, attempt: usize) {
        let most = (ASIDE * (1 << attempt.min(8))).min(LONGEST_ASIDE);
        let pause = Duration::from_micros(self.env.random.below(most.as_micros() as u64));
        self.env.clock.sleep(pause).await;
    }

    /// Has this node's disk remember a revision that the store must never fall behind (R10), and its memory what was written.
    fn committed(&self, proposal: &Proposal, asked: Duration, revision: u64) {
        let said = Said { revision, asked, answered: self.env.clock.monotonic() };
        self.recent.note_commit(&proposal.then, said);
        let tick = self.view.current().tick;
        self.writer.store.saw(Sighting { tick, revision, ..Sighting::default() });
    }
}

/// A store that refuses, full or damaged, says nothing of an earlier send that had no answer: it may have happened.
fn in_doubt(sent_without_answer: bool, error: FileError) -> FileError {
    if sent_without_answer { FileError::CommitUnknown(error.to_string()) } else { error }
}

/// What writing the slot has shown of a send without an answer.
enum Fenced {
    /// It has not happened, and cannot any more.
    Shut(u64),
    Happened(u64),
    NoAnswer(MetaError),
}

impl Gateway {
    /// Writes the slot, so that no transaction that compares its `revision` can happen any more.
    async fn fence(&self, slot_key: &Bytes, revision: u64, token: &[u8; 16]) -> Result<Fenced, FileError> {
        let nobodys: [u8; 16] = self.env.random.bytes();
        let txn = Txn {
            compare: vec![Compare::unchanged(slot_key.clone(), revision)],
            then: vec![Op::put(slot_key.clone(), slot::encode(&nobodys))],
            otherwise: vec![Op::get(slot_key.clone())],
        };
        let result = match self.meta.txn(txn).await {
            Ok(result) if result.succeeded => return Ok(Fenced::Shut(result.revision)),
            Ok(result) => result,
            Err(error @ (MetaError::Unavailable(_) | MetaError::Unknown(_))) => {
                return Ok(Fenced::NoAnswer(error));
            }
            Err(error) => return Err(error.into()),
        };
        let found = result.reads.into_iter().next().flatten();
        let happened = found.as_ref().map(slot::decode).transpose()?.is_some_and(|found| found == *token);
        let revision = found.map_or(0, |entry| entry.mod_revision);
        // Only this gateway writes the slot: another value is that of an earlier attempt at this fence.
        Ok(if happened { Fenced::Happened(revision) } else { Fenced::Shut(revision) })
    }
}

fn transaction(slot_key: &Bytes, revision: u64, token: &[u8; 16], proposal: &Proposal) -> Txn {
    let mut compare = proposal.compare.clone();
    compare.push(Compare::unchanged(slot_key.clone(), revision));
    let mut then = proposal.then.clone();
    then.push(Op::put(slot_key.clone(), slot::encode(token)));
    let mut otherwise = vec![Op::get(slot_key.clone())];
    otherwise.extend(proposal.look.iter().cloned().map(Op::get));
    Txn { compare, then, otherwise }
}

#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Committed(u64),
    Refused(Vec<Option<KeyValue>>),
    /// The slot had another revision than thought, and not our token: nothing of this commit has happened.
    SlotMoved(u64),
    NoAnswer(MetaError),
}

fn judge(
    result: Result<TxnResult, MetaError>,
    token: &[u8; 16],
    slot_revision: u64,
) -> Result<Judged, FileError> {
    let result = match result {
        Ok(result) => result,
        Err(error @ (MetaError::Unavailable(_) | MetaError::Unknown(_))) => {
            return Ok(Judged::NoAnswer(error));
        }
        Err(error) => return Err(error.into()),
    };
    if result.succeeded {
        return Ok(Judged::Committed(result.revision));
    }
    let mut reads = result.reads.into_iter();
    let slot = reads.next().flatten();
    let found: Vec<_> = reads.collect();
    if let Some(entry) = &slot
        && slot::decode(entry)? == *token
    {
        return Ok(Judged::Committed(entry.mod_revision));
    }
    let revision = slot.map_or(0, |entry| entry.mod_revision);
    Ok(if revision == slot_revision { Judged::Refused(found) } else { Judged::SlotMoved(revision) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; 16] = [7; 16];

    fn failed(slot: Option<([u8; 16], u64)>) -> Result<TxnResult, MetaError> {
        let slot = slot.map(|(token, revision)| KeyValue {
            key: slot::key("n", 0),
            value: slot::encode(&token),
            create_revision: 1,
            mod_revision: revision,
        });
        Ok(TxnResult { succeeded: false, revision: 90, reads: vec![slot, None] })
    }

    #[test]
    fn a_repeated_commit_that_had_happened_is_recognised() {
        assert_eq!(judge(failed(Some((TOKEN, 50))), &TOKEN, 40), Ok(Judged::Committed(50)));
    }

    #[test]
    fn a_slot_with_another_revision_is_read_again() {
        assert_eq!(judge(failed(Some(([8; 16], 50))), &TOKEN, 40), Ok(Judged::SlotMoved(50)));
    }

    #[test]
    fn a_condition_that_does_not_hold_is_the_callers() {
        assert_eq!(judge(failed(Some(([8; 16], 40))), &TOKEN, 40), Ok(Judged::Refused(vec![None])));
        assert_eq!(judge(failed(None), &TOKEN, 0), Ok(Judged::Refused(vec![None])));
    }

    #[test]
    fn no_answer_is_no_answer() {
        let lost = MetaError::Unknown("gone".into());
        assert_eq!(judge(Err(lost.clone()), &TOKEN, 40), Ok(Judged::NoAnswer(lost)));
    }
}
