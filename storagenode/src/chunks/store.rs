//! [`ChunkStore`]: the door to this node's chunks.

use std::{
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cairn_placement::{ChunkId, MAX_COPIES, PgId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    ChunkError, CopySummary, Counters, DamagedChunk, InventoryEntry, OpenError, Presence, Purpose, PutError,
    PutOutcome, ReadError, Scope, StoreOptions, TAG_BYTES, Usage,
    compact::Compacting,
    damage::{self, Remembered},
    flight::Flights,
    format::{Sighting, Tombstone, align, record_header_length},
    group::{Bury, Command, Put},
    header::{ChunkHeader, SealedChunk, frame_count},
    hole::Hole,
    identity::Identity,
    index::{Damage, Entry, Index, Known},
    open::{Opened, check, open_blocking},
    read::{RecordFault, read_chunk, read_header},
    recover::{Recovered, RecoveryReport},
    segment::SegmentTable,
    space::{Admitted, Space},
    write::Writer,
};
use crate::env::{DiskFile, Env};

/// The memory budget is counted in these.
const BUDGET_UNIT_BYTES: u64 = 1024;
/// Commands that wait for the writer; their bytes are bounded by the budget.
const QUEUE_COMMANDS: usize = 1024;
/// Tombstones of one command, and such commands at once. Deletes do not wait for the chunks' memory budget: uploads that
/// are slow to arrive hold it.
const BURY_BATCH: usize = 1024;
const BURY_BATCHES: usize = 64;
/// The smallest segment on a small disk.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// A small disk is cut into so many segments.
const SEGMENTS_OF_A_DISK: u64 = 64;
/// A chunk may move while it is being read; this often in a row only if something is wrong.
const READ_ATTEMPTS: usize = 4;

/// The chunks of one disk. Cheap to clone; the folder stays locked until [`ChunkStore::close`], or until every clone is
/// dropped.
#[derive(Clone)]
pub struct ChunkStore {
    pub(super) inner: Arc<Inner>,
    commands: mpsc::Sender<Command>,
}

/// What the store's handles and its writer share.
pub struct Inner {
    pub env: Env,
    pub options: StoreOptions,
    pub table: SegmentTable,
    pub index: RwLock<Index>,
    pub space: Arc<Space>,
    pub counters: AtomicCounters,
    report: RecoveryReport,
    flights: Arc<Flights>,
    budget: Arc<Semaphore>,
    burials: Arc<Semaphore>,
    pub lock: Mutex<Option<Arc<dyn DiskFile>>>,
    closed: AtomicBool,
    /// The furthest that the metadata store was ever seen; the next group writes it down.
    pub sighting: Mutex<Sighting>,
    /// Why the latest group failed, until one is written again.
    pub failing: Mutex<Option<String>>,
    damage_found: Notify,
    /// Damage was found that the disk does not remember yet.
    pub damage_unwritten: AtomicBool,
    /// Content of copies that nobody wants, made by compaction.
    pub dead_copies: Mutex<Vec<Hole>>,
    pub compacting: tokio::sync::Mutex<Compacting>,
}

#[derive(Default)]
pub struct AtomicCounters {
    pub groups: AtomicU64,
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub failed_groups: AtomicU64,
    pub corrupt_chunks: AtomicU64,
    pub compacted_segments: AtomicU64,
    pub compacted_bytes: AtomicU64,
}

/// Whether a chunk has to be sent at all.
pub enum Prepared {
    /// It is here, byte for byte.
    Present,
    /// There is room for it, on the disk and in memory.
    Ready(Ticket),
}

/// Room for one chunk. Given back when dropped.
pub struct Ticket {
    header: Arc<ChunkHeader>,
    admitted: Admitted,
    budget: OwnedSemaphorePermit,
}

/// Bytes that a chunk takes in a segment.
pub fn record_bytes(header: &ChunkHeader) -> u64 {
    record_length(header.plain_length)
}

/// The same, of a chunk whose header is not at hand.
pub fn record_length(plain_length: u32) -> u64 {
    let frames = u64::from(frame_count(plain_length));
    align(record_header_length(plain_length) + u64::from(plain_length) + frames * TAG_BYTES as u64)
}

impl ChunkStore {
    /// Locks the folder (made if needed), checks whose it is, raises its boot counter, and takes up what is in it.
    pub async fn open(env: Env, options: StoreOptions) -> Result<(Self, Identity), OpenError> {
        check(&options)?;
        let opened = {
            let (env, options) = (env.clone(), options.clone());
            env.clone().blocking(move || open_blocking(&env, &options)).await?
        };
        let Opened { lock, table, recovered, space } = opened;
        let Recovered { index, report, to_write, sighting, .. } = recovered;
        let (damaged, _) = index.damaged_chunks();
        let identity = table.identity().clone();
        let budget = (options.queue_bytes / BUDGET_UNIT_BYTES).clamp(1, u64::from(u32::MAX)) as usize;
        let inner = Arc::new(Inner {
            env,
            options,
            table,
            index: RwLock::new(index),
            space,
            counters: AtomicCounters::default(),
            report,
            flights: Arc::default(),
            budget: Arc::new(Semaphore::new(budget)),
            burials: Arc::new(Semaphore::new(BURY_BATCHES)),
            lock: Mutex::new(Some(lock)),
            closed: AtomicBool::new(false),
            sighting: Mutex::new(sighting),
            failing: Mutex::default(),
            damage_found: Notify::new(),
            // What the opening found is not written down yet.
            damage_unwritten: AtomicBool::new(damaged > 0),
            dead_copies: Mutex::default(),
            compacting: tokio::sync::Mutex::default(),
        });
        let (commands, receiver) = mpsc::channel(QUEUE_COMMANDS);
        tokio::spawn(Writer::new(inner.clone(), receiver, to_write).run());
        Ok((Self { inner, commands }, identity))
    }

    /// Stores a chunk; it is durable when this returns. The same chunk again is `Present`.
    pub async fn put(&self, chunk: SealedChunk, purpose: Purpose) -> Result<PutOutcome, PutError> {
        match self.prepare(chunk.header, purpose).await? {
            Prepared::Present => Ok(PutOutcome::Present),
            Prepared::Ready(ticket) => self.write(ticket, chunk.frames).await,
        }
    }

    /// Looks whether a chunk is wanted, and waits for room in memory. To be called before its frames are received: the
    /// ticket is the budget for them.
    pub async fn prepare(&self, header: Arc<ChunkHeader>, purpose: Purpose) -> Result<Prepared, PutError> {
        header.validate()?;
        if self.existing(&header).await? {
            return Ok(Prepared::Present);
        }
        let bytes = record_bytes(&header);
        let admitted = self.inner.space.admit(bytes, purpose).ok_or(PutError::Full)?;
        let budget = self.budget(bytes).await?;
        Ok(Prepared::Ready(Ticket { header, admitted, budget }))
    }

    /// Stores the chunk that the ticket is for; it is durable when this returns.
    pub async fn write(&self, ticket: Ticket, frames: Vec<Bytes>) -> Result<PutOutcome, PutError> {
        let Ticket { header, admitted, budget } = ticket;
        let chunk = SealedChunk { header, frames };
        chunk.verify_checksums()?;
        // One at a time of each id: of two different contents only one can win.
        let flight = loop {
            match self.inner.flights.enter(chunk.header.id) {
                Ok(flight) => break flight,
                Err(landed) => {
                    let _ = landed.acquire().await;
                }
            }
        };
        if self.existing(&chunk.header).await? {
            return Ok(PutOutcome::Present);
        }
        let (reply, answer) = oneshot::channel();
        self.send(Command::Put(Put { chunk, admitted, flight, budget, reply })).await?;
        answer.await.map_err(|_| PutError::Closed)?
    }

    /// Buries chunks, present or not: durable when this returns. Works on a full disk. All of them or, on an error, some.
    pub async fn bury(&self, mut chunks: Vec<Tombstone>) -> Result<(), PutError> {
        if let Some(bad) =
            chunks.iter().find(|chunk| chunk.copies == 0 || usize::from(chunk.copies) > MAX_COPIES)
        {
            return Err(ChunkError::Copies(bad.copies).into());
        }
        chunks.sort_by_key(|chunk| chunk.id);
        chunks.dedup_by_key(|chunk| chunk.id);
        {
            let index = self.inner.index.read();
            let is_news = |chunk: &Tombstone| !matches!(index.get(chunk.id), Some(Known::Buried { tick, .. }) if tick >= chunk.tick);
            chunks.retain(is_news);
        }
        for tombstones in chunks.chunks(BURY_BATCH) {
            self.bury_batch(tombstones.to_vec()).await?;
        }
        Ok(())
    }

    async fn bury_batch(&self, tombstones: Vec<Tombstone>) -> Result<(), PutError> {
        let budget = self.inner.burials.clone().acquire_owned().await.map_err(|_| PutError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Bury(Bury { tombstones, budget, reply })).await?;
        answer.await.map_err(|_| PutError::Closed)?
    }

    /// The furthest that the metadata store was ever seen, since the disk was made (R10).
    pub fn sighting(&self) -> Sighting {
        *self.inner.sighting.lock()
    }

    /// Notes how far the metadata store is. It becomes durable with the next group of chunks, or by [`Self::remember`].
    pub fn saw(&self, sighting: Sighting) {
        let mut known = self.inner.sighting.lock();
        *known = known.furthest(sighting);
    }

    /// Makes what was seen durable now. Works on a full disk.
    pub async fn remember(&self) -> Result<(), PutError> {
        self.bury_batch(Vec::new()).await
    }

    /// Reads frames of a chunk (clamped to those it has; none of them gives the header alone), verified against their
    /// checksums. A damaged chunk leaves the inventory, so that repair brings it anew; until then its sound frames can be read.
    pub async fn read(
        &self,
        id: ChunkId,
        frames: Range<u32>,
    ) -> Result<(Arc<ChunkHeader>, Vec<Bytes>), ReadError> {
        let mut last = String::new();
        for _ in 0..READ_ATTEMPTS {
            let (entry, is_damaged) = match self.inner.index.read().get(id) {
                Some(Known::Present(entry)) => (entry, false),
                Some(Known::Damaged(entry)) => (entry, true),
                Some(Known::Buried { .. }) => return Err(ReadError::Buried),
                None => return Err(ReadError::NotFound),
            };
            if self.is_closed() {
                return Err(ReadError::Failed("the chunk store is closed".into()));
            }
            let (inner, wanted) = (self.inner.clone(), frames.clone());
            let read = move || read_chunk(&inner.table, id, &entry, is_damaged, wanted);
            match self.inner.env.blocking(read).await {
                Ok(chunk) => return Ok(chunk),
                Err(RecordFault::Disk(error)) => return Err(ReadError::Failed(error.to_string())),
                // If buried or moved meanwhile, the bytes may be gone, and that is no damage.
                Err(RecordFault::Corrupt(reason)) => {
                    self.inner.set_apart(id, &entry, &reason);
                    if self.inner.is_at(id, &entry) {
                        return Err(ReadError::Corrupt(reason));
                    }
                    last = reason;
                }
            }
        }
        Err(ReadError::Failed(last))
    }

    /// Count and digest of one placement group, by number of copies.
    pub fn summarize(&self, pg_bits: u8, pg: PgId, scope: Scope) -> Vec<CopySummary> {
        self.inner.index.read().summarize(pg_bits, pg, scope)
    }

    /// At most `limit` lines of one placement group in order of (hash, id), those after `after`.
    pub fn inventory(
        &self,
        pg_bits: u8,
        pg: PgId,
        scope: Scope,
        after: Option<(u64, ChunkId)>,
        limit: usize,
    ) -> Vec<InventoryEntry> {
        self.inner.index.read().inventory(pg_bits, pg, scope, after, limit)
    }

    pub fn contains(&self, id: ChunkId) -> Presence {
        self.inner.index.read().presence(id)
    }

    /// At most `limit` chunks of which only a part can be read, in the inventory's order, those after `after`.
    pub fn damaged(&self, after: Option<ChunkId>, limit: usize) -> Vec<DamagedChunk> {
        let damaged = self.inner.index.read().damaged(after, limit);
        let line = |(id, Damage { entry, torn })| DamagedChunk {
            id,
            volume: entry.volume,
            copies: entry.copies,
            torn,
        };
        damaged.into_iter().map(line).collect()
    }

    /// Returns when more chunks were found to be damaged, since the store was opened, than `seen`; gives how many now.
    pub async fn damage_beyond(&self, seen: u64) -> u64 {
        loop {
            let mut found = std::pin::pin!(self.inner.damage_found.notified());
            found.as_mut().enable();
            let count = self.inner.counters.corrupt_chunks.load(Ordering::SeqCst);
            if count > seen {
                return count;
            }
            found.await;
        }
    }

    /// Why the disk takes no writes, if the latest one failed.
    pub fn failing(&self) -> Option<String> {
        self.inner.failing.lock().clone()
    }

    pub fn usage(&self) -> Usage {
        let (chunks, tombstones, (damaged_chunks, torn_chunks), index_bytes) = {
            let index = self.inner.index.read();
            (index.chunks(), index.tombstones(), index.damaged_chunks(), index.memory_bytes())
        };
        Usage {
            capacity_bytes: self.inner.space.capacity_bytes(),
            used_bytes: self.inner.space.used_bytes(),
            writable_bytes: self.inner.space.writable_bytes(),
            out_of_room: self.inner.space.is_out_of_room(),
            chunks,
            tombstones,
            damaged_chunks,
            torn_chunks,
            segments: self.inner.table.count(),
            index_bytes,
        }
    }

    pub fn counters(&self) -> Counters {
        let counters = &self.inner.counters;
        Counters {
            groups: counters.groups.load(Ordering::Relaxed),
            records: counters.records.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            failed_groups: counters.failed_groups.load(Ordering::Relaxed),
            corrupt_chunks: counters.corrupt_chunks.load(Ordering::Relaxed),
            compacted_segments: counters.compacted_segments.load(Ordering::Relaxed),
            compacted_bytes: counters.compacted_bytes.load(Ordering::Relaxed),
        }
    }

    /// Where this node keeps what it keeps.
    pub fn folder(&self) -> &Path {
        &self.inner.options.folder
    }

    /// What was found when the store was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.inner.report
    }

    /// Makes everything that was sent durable, closes the files and unlocks the folder. Later calls fail.
    pub async fn close(&self) {
        if !self.inner.closed.swap(true, Ordering::SeqCst) {
            let (done, closed) = oneshot::channel();
            if self.commands.send(Command::Close(done)).await.is_ok() {
                let _ = closed.await;
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::SeqCst)
    }

    pub(super) async fn send(&self, command: Command) -> Result<(), PutError> {
        if self.is_closed() {
            return Err(PutError::Closed);
        }
        self.commands.send(command).await.map_err(|_| PutError::Closed)
    }

    async fn budget(&self, bytes: u64) -> Result<OwnedSemaphorePermit, PutError> {
        let all = (self.inner.options.queue_bytes / BUDGET_UNIT_BYTES).clamp(1, u64::from(u32::MAX));
        let units = bytes.div_ceil(BUDGET_UNIT_BYTES).clamp(1, all) as u32;
        self.inner.budget.clone().acquire_many_owned(units).await.map_err(|_| PutError::Closed)
    }

    /// Whether exactly this chunk is here; an error if it must not be.
    async fn existing(&self, header: &Arc<ChunkHeader>) -> Result<bool, PutError> {
        let id = header.id;
        let (entry, whole) = match self.inner.index.read().get(id) {
            None => return Ok(false),
            Some(Known::Buried { .. }) => return Err(PutError::Buried),
            // To be replaced, by nothing else.
            Some(Known::Damaged(entry)) => (entry, false),
            Some(Known::Present(entry)) => (entry, true),
        };
        if self.is_closed() {
            return Err(PutError::Closed);
        }
        if Entry::new(header, entry.place) != entry {
            return Err(PutError::Conflict);
        }
        let inner = self.inner.clone();
        match self.inner.env.blocking(move || read_header(&inner.table, id, &entry, !whole)).await {
            Ok((there, _)) if there == **header => Ok(whole),
            Ok(_) => Err(PutError::Conflict),
            Err(RecordFault::Disk(error)) => Err(PutError::Failed(error.to_string())),
            Err(RecordFault::Corrupt(reason)) => {
                self.inner.set_apart(id, &entry, &reason);
                Ok(false)
            }
        }
    }
}

impl Inner {
    /// Takes a damaged chunk out of the inventory, if it is still in it at that place; `false` if not.
    pub fn set_apart(&self, id: ChunkId, entry: &Entry, reason: &str) -> bool {
        let found = self.index.write().set_apart(id, entry.place);
        if found {
            self.counters.corrupt_chunks.fetch_add(1, Ordering::SeqCst);
            let segment = self.table.id(entry.place.slot);
            let offset = entry.place.offset();
            tracing::error!(chunk = %id, %segment, offset, reason, "a damaged chunk left the inventory");
            self.damage_unwritten.store(true, Ordering::SeqCst);
            self.damage_found.notify_waiters();
        }
        found
    }

    /// Returns when damage was found that the disk does not remember.
    pub async fn damage_to_write(&self) {
        loop {
            let mut found = std::pin::pin!(self.damage_found.notified());
            found.as_mut().enable();
            if self.damage_unwritten.load(Ordering::SeqCst) {
                return;
            }
            found.await;
        }
    }

    /// Writes down which chunks are damaged, for the next start. Blocks.
    pub fn remember_damage(&self) -> io::Result<()> {
        self.damage_unwritten.store(false, Ordering::SeqCst);
        let damaged = self.index.read().damaged(None, usize::MAX);
        let known = damaged.into_iter().filter(|(_, damage)| !damage.torn).take(damage::MAX_REMEMBERED);
        let lines: Vec<_> = known
            .map(|(id, Damage { entry: Entry { place, .. }, .. })| Remembered {
                id,
                segment: self.table.id(place.slot),
                offset: place.offset(),
            })
            .collect();
        damage::remember(&*self.env.disk, &self.options.folder, &lines)
            .inspect_err(|_| self.damage_unwritten.store(true, Ordering::SeqCst))
    }

    /// Whether a chunk is still where it was, damaged or not.
    fn is_at(&self, id: ChunkId, entry: &Entry) -> bool {
        self.index.read().get(id).and_then(|known| known.place()) == Some(entry.place)
    }

    /// Closes the files and unlocks the folder.
    pub fn release(&self) {
        self.table.close();
        self.lock.lock().take();
    }

    /// Size of the next segment: on a small disk a part of it, so that several fit.
    pub fn segment_bytes(&self) -> u64 {
        let part = self.space.capacity_bytes() / SEGMENTS_OF_A_DISK;
        self.options.segment_bytes.min(part.max(SEGMENT_BYTES_MIN))
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
