//! What transactions do to the tables. Blocking; called by the writer, and by readers for [`range`].

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, Table, WriteTransaction};

use super::{
    file::{self, Fault, Position},
    v1::{self, Record},
};
use crate::meta::{Compare, Event, KeyValue, LeaseId, MetaError, Op, Page, RangeRead, Txn, TxnResult};

/// One thing to do. Steps of one call see what the steps before them did.
pub(super) enum Step {
    Txn {
        txn: Txn,
        /// Some lease that `then` names has ended.
        then_lease_ended: bool,
        otherwise_lease_ended: bool,
    },
    /// Delete the keys of a lease, at one revision.
    EndLease(LeaseId),
}

/// What the steps did, each at its own revision, all with one commit.
pub(super) struct Applied {
    /// One for each step.
    pub results: Vec<Result<TxnResult, MetaError>>,
    pub events: Vec<Event>,
    pub after: Position,
}

pub(super) enum ApplyError {
    /// Nothing is on disk.
    Before(Fault),
    /// The commit failed: all of it is on disk, or nothing.
    Commit(Fault, Applied),
}

impl<E: Into<Fault>> From<E> for ApplyError {
    fn from(error: E) -> Self {
        Self::Before(error.into())
    }
}

/// Carries out steps in order. They are durable when this returns.
pub(super) fn apply(database: &Database, before: Position, steps: &[Step]) -> Result<Applied, ApplyError> {
    let txn = database.begin_write()?;
    let mut applied = Applied { results: Vec::with_capacity(steps.len()), events: Vec::new(), after: before };
    {
        let mut tables = Tables::open(&txn, before.revision)?;
        for step in steps {
            applied.results.push(tables.step(step)?);
        }
        applied.after.revision = tables.revision;
        applied.events = tables.events;
    }
    if applied.after.revision == before.revision {
        txn.abort()?;
        return Ok(applied);
    }
    applied.after.commits += 1;
    {
        let mut state = txn.open_table(v1::STATE)?;
        state.insert(v1::STATE_REVISION, applied.after.revision)?;
        state.insert(v1::STATE_COMMITS, applied.after.commits)?;
    }
    // redb's default durability: written and synced when commit returns.
    // After a panic nobody knows whether it is, as after an error.
    match file::caught(|| Ok(txn.commit()?)) {
        Ok(()) => Ok(applied),
        Err(fault) => Err(ApplyError::Commit(fault, applied)),
    }
}

struct Tables<'txn> {
    keys: Table<'txn, &'static [u8], &'static [u8]>,
    lease_keys: Table<'txn, (i64, &'static [u8]), ()>,
    revision: u64,
    events: Vec<Event>,
}

impl<'txn> Tables<'txn> {
    fn open(txn: &'txn WriteTransaction, revision: u64) -> Result<Self, Fault> {
        Ok(Self {
            keys: txn.open_table(v1::KEYS)?,
            lease_keys: txn.open_table(v1::LEASE_KEYS)?,
            revision,
            events: Vec::new(),
        })
    }

    /// The outer error spoils all steps, the inner one only this step, which has done nothing.
    fn step(&mut self, step: &Step) -> Result<Result<TxnResult, MetaError>, Fault> {
        match step {
            Step::EndLease(lease) => self.end_lease(*lease).map(Ok),
            Step::Txn { txn, then_lease_ended, otherwise_lease_ended } => {
                let mut succeeded = true;
                for compare in &txn.compare {
                    succeeded &= self.holds(compare)?;
                }
                let (ops, lease_ended) = match succeeded {
                    true => (&txn.then, *then_lease_ended),
                    false => (&txn.otherwise, *otherwise_lease_ended),
                };
                if lease_ended {
                    return Ok(Err(MetaError::LeaseNotFound));
                }
                self.carry_out(succeeded, ops).map(Ok)
            }
        }
    }

    fn holds(&self, compare: &Compare) -> Result<bool, Fault> {
        let (key, revision, value) = match compare {
            Compare::ModRevision { key, equals } => (key, Some(*equals), None),
            Compare::Value { key, equals } => (key, None, Some(equals)),
            Compare::Vacant { range } => {
                return Ok(self.keys.range(&range.start[..]..&range.end[..])?.next().transpose()?.is_none());
            }
        };
        let stored = self.keys.get(&key[..])?;
        let record = stored.as_ref().map(|stored| decode(key, stored.value())).transpose()?;
        Ok(match (revision, value) {
            (Some(revision), _) => record.map_or(0, |record| record.mod_revision) == revision,
            (None, value) => record.map(|record| record.value) == value.map(|value| &value[..]),
        })
    }

    fn carry_out(&mut self, succeeded: bool, ops: &[Op]) -> Result<TxnResult, Fault> {
        let mut reads = Vec::new();
        for op in ops {
            if let Op::Get { key } = op {
                let stored = self.keys.get(&key[..])?;
                reads.push(stored.map(|stored| key_value(key, stored.value(), false)).transpose()?);
            }
        }
        let revision = self.revision + 1;
        for op in ops {
            let changed = match op {
                Op::Get { .. } => false,
                Op::Put { key, value, lease } => {
                    self.put(key, value, lease.map_or(0, |lease| lease.0), revision)?;
                    true
                }
                Op::Delete { key } => self.delete(key, revision)?,
            };
            if changed {
                self.revision = revision;
            }
        }
        Ok(TxnResult { succeeded, revision: self.revision, reads })
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, lease: i64, revision: u64) -> Result<(), Fault> {
        let (create_revision, old_lease) = match self.keys.get(&key[..])? {
            Some(stored) => {
                let record = decode(key, stored.value())?;
                (record.create_revision, record.lease)
            }
            None => (revision, 0),
        };
        let record = Record { create_revision, mod_revision: revision, lease, value };
        self.keys.insert(&key[..], &record.encode()[..])?;
        if old_lease != lease {
            self.unbind(old_lease, key)?;
            if lease != 0 {
                self.lease_keys.insert((lease, &key[..]), ())?;
            }
        }
        self.events.push(Event::Put(KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision,
            mod_revision: revision,
        }));
        Ok(())
    }

    /// `false` if there was nothing.
    fn delete(&mut self, key: &Bytes, revision: u64) -> Result<bool, Fault> {
        let lease = match self.keys.remove(&key[..])? {
            Some(stored) => decode(key, stored.value())?.lease,
            None => return Ok(false),
        };
        self.unbind(lease, key)?;
        self.events.push(Event::Delete { key: key.clone(), revision });
        Ok(true)
    }

    fn unbind(&mut self, lease: i64, key: &[u8]) -> Result<(), Fault> {
        if lease != 0 {
            self.lease_keys.remove((lease, key))?;
        }
        Ok(())
    }

    fn end_lease(&mut self, lease: LeaseId) -> Result<TxnResult, Fault> {
        let mut keys = Vec::new();
        for entry in self.lease_keys.range((lease.0, &b""[..])..)? {
            let entry = entry?.0;
            let (of, key) = entry.value();
            if of != lease.0 {
                break;
            }
            keys.push(Bytes::copy_from_slice(key));
        }
        let ops: Vec<Op> = keys.into_iter().map(|key| Op::Delete { key }).collect();
        self.carry_out(true, &ops)
    }
}

fn decode<'a>(key: &[u8], bytes: &'a [u8]) -> Result<Record<'a>, Fault> {
    Record::decode(bytes).ok_or_else(|| {
        Fault::damaged(format!("the record of key {:?} is unreadable", Bytes::copy_from_slice(key)))
    })
}

fn key_value(key: &[u8], bytes: &[u8], keys_only: bool) -> Result<KeyValue, Fault> {
    let record = decode(key, bytes)?;
    Ok(KeyValue {
        key: Bytes::copy_from_slice(key),
        value: if keys_only { Bytes::new() } else { Bytes::copy_from_slice(record.value) },
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
    })
}

/// Reads a range from a snapshot. The inner error is about the request.
pub(super) fn range(database: &Database, read: &RangeRead) -> Result<Result<Page, MetaError>, Fault> {
    let txn = database.begin_read()?;
    let state = txn.open_table(v1::STATE)?;
    let Some(revision) = state.get(v1::STATE_REVISION)?.map(|revision| revision.value()) else {
        return Err(Fault::damaged("it has no revision"));
    };
    match read.at {
        Some(at) if at < revision => return Ok(Err(MetaError::Compacted)),
        Some(at) if at > revision => {
            return Ok(Err(MetaError::Refused(format!("revision {at} is yet to come, now is {revision}"))));
        }
        _ => {}
    }
    let mut page = Page { entries: Vec::new(), more: false, revision };
    if read.start >= read.end {
        return Ok(Ok(page));
    }
    let keys = txn.open_table(v1::KEYS)?;
    for entry in keys.range(&read.start[..]..&read.end[..])? {
        if read.limit > 0 && page.entries.len() == read.limit {
            page.more = true;
            break;
        }
        let (key, value) = entry?;
        page.entries.push(key_value(key.value(), value.value(), read.keys_only)?);
    }
    Ok(Ok(page))
}
