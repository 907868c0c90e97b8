//! Compaction (R8): what is still wanted of a segment is written again elsewhere, and the segment is given back.
//!
//! Holes give back the content of large chunks that are deleted. What stays are their headers, tombstones, marks, and all of small
//! chunks: a volume of small files that change would fill its disks. So a segment of which half or more is garbage is emptied, and
//! so are small ones, which short lives of a node leave, when there are many:
//!
//! 1. **Copy forward.** Its records are gone through in order. Chunks that the index has there are read from the device, verified,
//!    and written by the one writer in a group like any other, with the sequence they were first written with. So are the
//!    tombstones of chunks that are still buried, and marks of segments that are still there. Sightings are not: a later
//!    one is in the segment that is written now.
//! 2. **Verify.** Once the group is durable, each copy is read from the device and verified, too, deletions and marks as well.
//! 3. **Swap.** Then the index is told the new place, if the chunk is still at the old one. A chunk that was buried or found
//!    damaged meanwhile is not: its copy is garbage.
//! 4. **Rest.** The segment stays for a while as it is, or until room is needed.
//! 5. **Remove.** Its name is written down (`removed`), its file removed.
//!
//! A crash at any moment leaves both or one of them. The next start finds both: of two records with one sequence the one in the newer
//! segment counts if it is whole, else the older one. A deletion is on the disk for longer than any put of its chunk, and for as
//! long as it must be remembered: see `expiry`.
//!
//! A segment with a damaged place in it, or with a chunk that is set apart, stays: perhaps nobody has more of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cairn_placement::ChunkId;
use tokio::sync::oneshot;

use super::{
    Presence, Purpose, PutError,
    format::{Body, Record, SegmentId},
    group::{Command, CopiedRecord, Copy, MARK_BYTES},
    hole::hole,
    index::{Entry, Known, Place},
    read::{RecordFault, read_chunk, verify_bodies, verify_chunk},
    recover::read_through,
    removed,
    scan::Found,
    segment::{Ended, short_hash},
    store::{ChunkStore, Inner},
};

/// Copied at once: bounds memory, but for a single chunk that is longer.
const BATCH_BYTES: u64 = 4 << 20;
/// Entries of the index looked at without letting others to it.
const LOOKED_AT_ONCE: usize = 10_000;

/// A segment is small that has less than such a part of a full one: a node that was stopped soon leaves one.
const SMALL_PART: u64 = 16;
/// So many small segments may stay; more are put together, garbage or not.
const SMALL_SEGMENTS: usize = 32;

/// What came of a look for garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    /// No segment is worth it.
    Nothing,
    /// What was wanted of a segment was copied; it rests now.
    Emptied { copied_bytes: u64 },
    /// Something about a segment forbids it, now or until the next start. Another one may do.
    Refused,
}

/// What of a segment is still wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    pub bytes: u64,
    /// Chunks that are set apart.
    pub damaged: u64,
}

/// What compaction knows between its steps.
#[derive(Default)]
pub struct Compacting {
    /// Emptied segments, and since when.
    resting: BTreeMap<u32, Duration>,
    /// Segments that stay as they are, until the next start.
    refused: std::collections::BTreeSet<u32>,
    /// Segments that could not be emptied when that was tried; tried again after the next removal.
    deferred: std::collections::BTreeSet<u32>,
}

/// Why a segment could not be emptied now.
enum Stopped {
    /// It stays as it is.
    Refuse(String),
    /// Perhaps another time.
    Later(String),
}

impl From<PutError> for Stopped {
    fn from(error: PutError) -> Self {
        Self::Later(error.to_string())
    }
}

/// A chunk whose record is copied.
struct Moving {
    id: ChunkId,
    from: Entry,
    /// Which of the copied records it is.
    record: usize,
}

/// Records that are copied together.
#[derive(Default)]
struct Batch {
    records: Vec<CopiedRecord>,
    moving: Vec<Moving>,
    bytes: u64,
}

impl Batch {
    fn push(&mut self, record: CopiedRecord) {
        self.bytes += record.bytes();
        self.records.push(record);
    }
}

impl ChunkStore {
    /// Empties the one segment that gives back most, if half of it or more is garbage, or if too many are small.
    pub async fn compact(&self) -> Compaction {
        let mut compacting = self.inner.compacting.lock().await;
        let Some(segment) = self.worst(&compacting).await else { return Compaction::Nothing };
        let id = self.inner.table.id(segment.slot);
        match self.empty(segment).await {
            Ok(copied_bytes) => {
                tracing::debug!(segment = %id, copied_bytes, used = segment.used, "emptied");
                self.inner.counters.compacted_segments.fetch_add(1, Ordering::Relaxed);
                compacting.resting.insert(segment.slot, self.inner.env.clock.monotonic());
                Compaction::Emptied { copied_bytes }
            }
            Err(Stopped::Refuse(reason)) => {
                tracing::warn!(segment = %id, reason, "its garbage is not given back");
                compacting.refused.insert(segment.slot);
                Compaction::Refused
            }
            Err(Stopped::Later(reason)) => {
                tracing::debug!(segment = %id, reason, "could not be emptied now");
                compacting.deferred.insert(segment.slot);
                Compaction::Refused
            }
        }
    }

    /// Removes the segments that were emptied so long ago; gives how many bytes they took.
    pub async fn remove_emptied(&self, rest: Duration) -> u64 {
        let mut compacting = self.inner.compacting.lock().await;
        compacting.deferred.clear();
        let now = self.inner.env.clock.monotonic();
        let due = |(slot, since): (&u32, &Duration)| (now.saturating_sub(*since) >= rest).then_some(*slot);
        let due: Vec<u32> = compacting.resting.iter().filter_map(due).collect();
        let mut freed = 0;
        for slot in due {
            compacting.resting.remove(&slot);
            let live = self.live().await.remove(&slot).unwrap_or_default();
            if live != Live::default() {
                // What was set apart since belongs to no copy.
                compacting.refused.insert(slot);
                continue;
            }
            let inner = self.inner.clone();
            let removed = self.inner.env.blocking(move || {
                // Held, so that nobody else opens the folder meanwhile: whoever asked for this may be gone, and the store closed.
                let lock = inner.lock.lock();
                if lock.is_none() {
                    return Err(std::io::Error::other("the chunk store is closed"));
                }
                removed::note(&*inner.env.disk, &inner.table, slot)?;
                let bytes = inner.table.remove(slot)?;
                inner.space.freed(bytes);
                inner.table.sync_removals()?;
                if let Ok(disk) = inner.env.disk.space(inner.table.folder()) {
                    inner.space.look(disk);
                }
                drop(lock);
                Ok(bytes)
            });
            match removed.await {
                Ok(bytes) => {
                    self.inner.counters.compacted_bytes.fetch_add(bytes, Ordering::Relaxed);
                    freed += bytes;
                }
                Err(error) => {
                    let segment = self.inner.table.id(slot);
                    tracing::warn!(%segment, %error, "an emptied segment could not be removed; tried again later");
                    compacting.resting.insert(slot, now);
                }
            }
        }
        freed
    }

    /// The segment that gives back most.
    async fn worst(&self, compacting: &Compacting) -> Option<Ended> {
        let live = self.live().await;
        let ended = self.inner.table.all_ended(self.inner.old_tombstones());
        let Compacting { resting, refused, deferred } = compacting;
        let free =
            |slot: u32| !resting.contains_key(&slot) && !refused.contains(&slot) && !deferred.contains(&slot);
        let small = self.inner.segment_bytes() / SMALL_PART;
        let rested = || ended.iter().filter(|segment| free(segment.slot));
        let many_small = rested().filter(|segment| segment.used < small).count() > SMALL_SEGMENTS;
        let worth = rested().filter_map(|segment| {
            let Live { bytes, damaged } = live.get(&segment.slot).copied().unwrap_or_default();
            let wanted = bytes + segment.tombstones * MARK_BYTES;
            let worth = wanted <= segment.used / 2 || many_small && segment.used < small;
            (damaged == 0 && worth).then(|| (segment.used.saturating_sub(wanted), *segment))
        });
        worth
            .max_by_key(|(gain, segment)| (*gain, std::cmp::Reverse(segment.slot)))
            .map(|(_, segment)| segment)
    }

    /// What is still wanted of each segment.
    async fn live(&self) -> HashMap<u32, Live> {
        let (mut live, mut after) = (HashMap::new(), None);
        loop {
            after = self.inner.index.read().add_live(&mut live, after, LOOKED_AT_ONCE);
            if after.is_none() {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.inner.index.read().add_damaged(&mut live);
        live
    }

    /// Copies all that is wanted of a segment, and tells the index; gives how much that was.
    async fn empty(&self, segment: Ended) -> Result<u64, Stopped> {
        let found = self.records_of(segment).await?;
        let (mut batch, mut copied) = (Batch::default(), 0);
        let needed = self.needed_tombstones(segment.slot, &found).await;
        let dead = self.inner.table.dead_of(segment.slot);
        self.marks_to_keep(segment.slot, &found).into_iter().for_each(|record| batch.push(record));
        for Found { offset, record, .. } in found {
            match &record.body {
                Body::Put(header) if self.is_unknown(header.id, Place::new(segment.slot, offset), &dead) => {
                    return Err(Stopped::Refuse(format!(
                        "chunk {} in it was not read at the start",
                        header.id
                    )));
                }
                Body::Put(_) => self.take(segment.slot, offset, record, &mut batch).await?,
                Body::Tombstone(tombstone) => {
                    if self.inner.wants(tombstone, &needed) {
                        let Record { sequence, body, .. } = record;
                        batch.push(CopiedRecord { sequence, body, frames: Vec::new() });
                    }
                }
                Body::Mark { .. } | Body::Sighting(_) => {}
            }
            if batch.bytes >= BATCH_BYTES {
                copied += batch.bytes;
                self.copy(std::mem::take(&mut batch)).await?;
            }
        }
        copied += batch.bytes;
        if !batch.records.is_empty() {
            self.copy(batch).await?;
        }
        // What the segment knew of the metadata store is known elsewhere, too; and whatever was still to be marked is.
        self.remember().await?;
        match self.live().await.get(&segment.slot) {
            None => Ok(copied),
            Some(live) => Err(Stopped::Refuse(format!("something of it is still wanted: {live:?}"))),
        }
    }

    /// The segment's records, if all of it that is trusted can be understood.
    async fn records_of(&self, segment: Ended) -> Result<Vec<Found>, Stopped> {
        let inner = self.inner.clone();
        let scan = self.inner.env.blocking(move || {
            let file = inner.table.file(segment.slot).map_err(|error| Stopped::Later(error.to_string()))?;
            let _ = file.forget_cached(0, u64::MAX / 2);
            read_through(&inner.table, inner.table.id(segment.slot), &*file)
                .map_err(|error| Stopped::Refuse(error.to_string()))
        });
        let scan = scan.await?;
        let bad = scan.gaps.iter().find(|gap| gap.range.start < segment.end);
        if let Some(gap) = bad {
            return Err(Stopped::Refuse(format!("it is damaged at {:?}", gap.range)));
        }
        if scan.content_end < segment.end || scan.found.iter().any(|found| found.corrected) {
            return Err(Stopped::Refuse("it is damaged".into()));
        }
        Ok(scan.found)
    }

    /// Whether a record is one that the start could not read: the next one may. It is neither where the index has its chunk nor
    /// among those that do not count any more.
    fn is_unknown(&self, id: ChunkId, place: Place, dead: &HashSet<u32>) -> bool {
        let is_known = self.inner.index.read().get(id).and_then(|known| known.place()) == Some(place);
        // It may have died since.
        !is_known
            && !dead.contains(&short_hash(id))
            && !self.inner.table.dead_of(place.slot).contains(&short_hash(id))
    }

    /// The marks of segments that are there, each once, with the furthest end.
    fn marks_to_keep(&self, slot: u32, found: &[Found]) -> Vec<CopiedRecord> {
        let own = self.inner.table.id(slot);
        let mut kept: BTreeMap<SegmentId, (u64, CopiedRecord)> = BTreeMap::new();
        for Found { record, .. } in found {
            let Body::Mark { segment, end } = record.body else { continue };
            let known = kept.get(&segment).map_or(0, |(end, _)| *end);
            if segment != own && end > known && self.inner.table.has(segment) {
                let Record { sequence, body, .. } = record.clone();
                kept.insert(segment, (end, CopiedRecord { sequence, body, frames: Vec::new() }));
            }
        }
        kept.into_values().map(|(_, record)| record).collect()
    }

    /// Reads a chunk's record, if the index has the chunk there, and adds it to what is copied.
    async fn take(&self, slot: u32, offset: u64, record: Record, batch: &mut Batch) -> Result<(), Stopped> {
        let Body::Put(header) = &record.body else { return Ok(()) };
        let (id, place) = (header.id, Place::new(slot, offset));
        let entry = match self.inner.index.read().get(id) {
            Some(Known::Present(entry)) if entry.place == place => entry,
            _ => return Ok(()),
        };
        let inner = self.inner.clone();
        // Its segment was read from the device just before.
        let read = move || read_chunk(&inner.table, id, &entry, false, 0..u32::MAX);
        let frames = match self.inner.env.blocking(read).await {
            Ok((_, frames)) => frames,
            Err(fault) => return Err(self.found_bad(id, &entry, fault)),
        };
        batch.moving.push(Moving { id, from: entry, record: batch.records.len() });
        let Record { sequence, body, .. } = record;
        batch.push(CopiedRecord { sequence, body, frames });
        Ok(())
    }

    /// What to do about a chunk that cannot be read.
    fn found_bad(&self, id: ChunkId, entry: &Entry, fault: RecordFault) -> Stopped {
        match fault {
            RecordFault::Disk(error) => Stopped::Later(error.to_string()),
            RecordFault::Corrupt(reason) => match self.inner.set_apart(id, entry, &reason) {
                true => Stopped::Refuse(format!("chunk {id} in it is damaged")),
                false => Stopped::Later("a chunk went meanwhile".into()),
            },
        }
    }

    /// Writes records again, and tells the index where their chunks are.
    async fn copy(&self, batch: Batch) -> Result<(), Stopped> {
        let Batch { records, moving, bytes } = batch;
        let admitted = self.inner.space.admit(bytes, Purpose::Compact);
        let admitted = admitted.ok_or_else(|| Stopped::Later("there is no room for copies".into()))?;
        let others: Vec<(usize, Body)> = records
            .iter()
            .enumerate()
            .filter(|(_, record)| !matches!(record.body, Body::Put(_)))
            .map(|(number, record)| (number, record.body.clone()))
            .collect();
        let (reply, answer) = oneshot::channel();
        self.send(Command::Copy(Copy { records, admitted, reply })).await?;
        let places = answer.await.map_err(|_| PutError::Closed)??;
        let others: Vec<_> = others.into_iter().map(|(number, body)| (places[number], body)).collect();
        let (inner, segment) = (self.inner.clone(), places.first().map(|place| place.slot));
        let verify_others = move || {
            // All of it: the chunks' copies are read after that, too.
            if let Some(slot) = segment {
                inner.table.file(slot)?.forget_cached(0, u64::MAX / 2)?;
            }
            verify_bodies(&inner.table, &others)
        };
        let verified = self.inner.env.blocking(verify_others).await;
        let mut unsound =
            verified.err().map(|fault| format!("the copy of a deletion or a mark is not sound: {fault}"));
        // To the last one: what became of each copy is known afterwards.
        for Moving { id, from, record } in moving {
            let to = Entry { place: places[record], ..from };
            let inner = self.inner.clone();
            let verified = self.inner.env.blocking(move || verify_chunk(&inner.table, id, &to)).await;
            if let Err(fault) = verified {
                self.inner.reject_copy(id, &to);
                unsound = Some(format!("the copy of chunk {id} is not sound: {fault}"));
                continue;
            }
            let relocated = self.inner.index.write().relocate(id, from.place, to.place);
            match relocated {
                true => self.inner.table.died(from.place.slot, id),
                false => self.inner.reject_copy(id, &to),
            }
        }
        unsound.map_or(Ok(()), |reason| Err(Stopped::Later(reason)))
    }
}

impl Inner {
    /// A copy that does not count. Its content is given back only if its chunk was deleted, once its group is known to be durable:
    /// else a start that finds it would have a header without content, and take it for damage.
    fn reject_copy(self: &Arc<Self>, id: ChunkId, copy: &Entry) {
        self.table.died(copy.place.slot, id);
        if self.index.read().presence(id) == Presence::Buried {
            self.dead_copies.lock().extend(hole(copy));
        }
    }
}
