//! The one task that writes: group commit (R8).
//!
//! Everything that waits when a group has become durable is the next group, up to a limit. A group is one vectored write
//! and one `fdatasync`; then the index learns of it, and its senders are answered. On an error nobody of the group is told
//! "stored", the segment is never written again, and its earlier chunks are read again from the device.
//!
//! Punching holes for buried chunks happens here too, between groups, after the tombstones are durable.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cairn_placement::ChunkId;
use tokio::sync::{mpsc, oneshot};

use super::{
    PutError, PutOutcome,
    format::{SegmentId, Sighting, align},
    group::{Command, Group, LaidOut, MARK_BYTES, Member, Put},
    hint::Lines,
    hole::{Hole, hole},
    index::{Entry, Known, Place},
    layout::Layout,
    read::{RecordFault, verify_chunk},
    segment::{FIRST_RECORD, NewSegment},
    store::Inner,
};

/// Holes punched between two groups.
const HOLES_AT_ONCE: usize = 64;
/// Damage that is found is written down at once, then no more often than this, …
const REMEMBER_EVERY: Duration = Duration::from_secs(1);
/// … and so long after that failed.
const REMEMBER_RETRY: Duration = Duration::from_secs(60);

/// What recovery leaves to the writer.
#[derive(Default)]
pub struct ToWrite {
    /// Ends of segments that no mark tells yet: the next group will.
    pub to_mark: Vec<(SegmentId, u64)>,
    /// Content of buried chunks, to be given back.
    pub holes: Vec<Hole>,
    /// The same in segments that are still to be marked.
    pub fresh_holes: Vec<Hole>,
}

/// The writer's own state.
pub struct Writer {
    pub store: Arc<Inner>,
    pub commands: mpsc::Receiver<Command>,
    pub to_mark: Vec<(SegmentId, u64)>,
    pub holes: VecDeque<Hole>,
    /// Holes inside the last group, or in segments that are not marked. They wait for the next group: until it records
    /// those as durable, recovery verifies their frames, and would take a hole, and all behind it, for a torn tail.
    fresh_holes: Vec<Hole>,
    segment: Option<OpenSegment>,
    next_segment: u32,
    next_record: u64,
    /// The latest sighting in the open segment: every segment tells what was known when it was written.
    noted: Sighting,
    /// Not before this is damage written down again.
    remember_at: Duration,
}

/// The segment that is being written.
struct OpenSegment {
    new: NewSegment,
    end: u64,
    /// What is in it, for its hint.
    lines: Lines,
}

impl Writer {
    pub fn new(store: Arc<Inner>, commands: mpsc::Receiver<Command>, recovered: ToWrite) -> Self {
        Self {
            store,
            commands,
            to_mark: recovered.to_mark,
            holes: recovered.holes.into(),
            fresh_holes: recovered.fresh_holes,
            segment: None,
            next_segment: 0,
            next_record: 0,
            noted: Sighting::default(),
            remember_at: Duration::ZERO,
        }
    }

    /// Writes until it is closed, or nobody can ask any more.
    pub async fn run(mut self) {
        loop {
            let Some(first) = self.next().await else { return };
            let (group, close) = self.collect(first);
            if group.records > 0 {
                self.commit(group).await;
                self.punch_holes().await;
            }
            if let Some(closed) = close {
                self.close().await;
                if self.store.damage_unwritten.load(Ordering::SeqCst) {
                    self.remember_damage().await;
                }
                self.store.release();
                let _ = closed.send(());
                return;
            }
        }
    }

    /// The next command; does meanwhile what nobody waits for.
    async fn next(&mut self) -> Option<Command> {
        loop {
            self.remember_damage_if_due().await;
            if !self.holes.is_empty() {
                match self.commands.try_recv() {
                    Ok(command) => return Some(command),
                    Err(mpsc::error::TryRecvError::Empty) => self.punch_holes().await,
                    Err(mpsc::error::TryRecvError::Disconnected) => return None,
                }
                continue;
            }
            let (store, wait) = (self.store.clone(), self.remember_at.saturating_sub(self.clock()));
            let damage = async move {
                store.damage_to_write().await;
                store.env.clock.sleep(wait).await;
            };
            tokio::select! {
                biased;
                command = self.commands.recv() => return command,
                () = damage => {}
            }
        }
    }

    fn clock(&self) -> Duration {
        self.store.env.clock.monotonic()
    }

    async fn remember_damage_if_due(&mut self) {
        if self.store.damage_unwritten.load(Ordering::SeqCst) && self.clock() >= self.remember_at {
            self.remember_damage().await;
        }
    }

    /// Damage that is found by and by is written down together.
    async fn remember_damage(&mut self) {
        let store = self.store.clone();
        let result = self.store.env.blocking(move || store.remember_damage()).await;
        let rest = match result {
            Ok(()) => REMEMBER_EVERY,
            Err(error) => {
                tracing::warn!(%error, "cannot write down which chunks are damaged; tried again in a minute: check the disk and its free space");
                REMEMBER_RETRY
            }
        };
        self.remember_at = self.clock() + rest;
    }

    /// Everything that waits, up to the limits of a group.
    fn collect(&mut self, first: Command) -> (Group, Option<oneshot::Sender<()>>) {
        let options = &self.store.options;
        let (group_bytes, group_records) = (options.group_bytes, options.group_records);
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Close(closed) => return (group, Some(closed)),
                Command::Put(put) => group.push_put(put),
                Command::Bury(bury) => group.push_bury(bury),
                Command::Copy(copy) => group.push_copy(copy),
            }
            let full = group.bytes >= group_bytes || group.records >= group_records;
            next = if full { None } else { self.commands.try_recv().ok() };
        }
        (group, None)
    }

    async fn commit(&mut self, group: Group) {
        let sighting_bytes = MARK_BYTES;
        if let Err(error) = self.make_room(group.bytes + sighting_bytes).await {
            self.failed(&format!("cannot make a segment: {error}"));
            return group.fail(&format!("no new segment: {error}"));
        }
        let marks = std::mem::take(&mut self.to_mark);
        let sighting = Some(*self.store.sighting.lock()).filter(|sighting| *sighting != self.noted);
        let segment = self.segment.as_mut().expect("room was made");
        let empty = Layout::new(self.store.table.identity(), segment.new.id, segment.end);
        let LaidOut { mut layout, puts, copies } =
            group.lay_out(empty, &mut self.next_record, &marks, sighting);
        let (start, end, written) = (layout.start, layout.end, layout.end - layout.start);
        let lines = std::mem::take(&mut layout.lines);
        let group_start = Place::new(segment.new.slot, start);
        let marked = marks.iter().map(|(id, _)| *id).chain(group.copied_marks());
        self.store.table.marks(group_start.slot, marked);
        let file = segment.new.file.clone();
        let (disk, folder) = (self.store.env.disk.clone(), self.store.table.folder().to_owned());
        let result = self
            .store
            .env
            .blocking(move || {
                layout.write(&*file)?;
                file.sync_data()?;
                if !file.has_name()? {
                    return Err(io::Error::new(io::ErrorKind::NotFound, "the segment's file was deleted"));
                }
                // The group is durable: a disk that does not tell its size is no reason to deny that.
                Ok::<_, io::Error>(disk.space(&folder).ok())
            })
            .await;
        match result {
            Ok(disk) => {
                if self.store.failing.lock().take().is_some() {
                    tracing::info!("the disk takes writes again");
                }
                segment.end = end;
                segment.lines.append(&lines);
                self.noted = sighting.unwrap_or(self.noted);
                let room = segment.new.allocated.saturating_sub(end);
                self.store.space.wrote(written, room, disk);
                let counters = &self.store.counters;
                counters.groups.fetch_add(1, Ordering::Relaxed);
                counters.records.fetch_add(group.records as u64, Ordering::Relaxed);
                counters.bytes.fetch_add(written, Ordering::Relaxed);
                let (old, now) = (self.store.old_tombstones(), self.store.tick());
                self.store.table.wrote(group_start.slot, written, group.tombstone_ticks(old, now));
                let place = |offset: u64| Place::new(group_start.slot, offset);
                let puts: Vec<Place> = puts.into_iter().map(place).collect();
                let copies = copies.into_iter().map(|copy| copy.into_iter().map(place).collect()).collect();
                self.acknowledge(group, &puts, copies, group_start);
            }
            Err(error) => {
                let (id, slot) = (segment.new.id, segment.new.slot);
                self.failed(&format!("writing to segment {id} failed, which is not written again: {error}"));
                self.to_mark = marks;
                self.to_mark.push((id, start));
                self.store.table.ended(slot, start);
                self.segment = None;
                self.store.space.no_room();
                // Perhaps they are there all the same.
                group.chunks().for_each(|id| self.store.table.died(slot, id));
                group.fail(&error.to_string());
                self.check_segment(slot).await;
            }
        }
    }

    /// Says it once: while a disk takes nothing, every write fails.
    fn failed(&self, why: &str) {
        self.store.counters.failed_groups.fetch_add(1, Ordering::Relaxed);
        if self.store.failing.lock().replace(why.to_owned()).is_none() {
            tracing::error!(why, "the disk does not take a write");
        }
    }

    /// Goes to a new segment unless the open one takes so many bytes more.
    async fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let full = match self.segment.take_if(|segment| segment.end + bytes > segment.new.allocated) {
            None if self.segment.is_some() => return Ok(()),
            full => full,
        };
        if let Some(full) = &full {
            self.store.table.ended(full.new.slot, full.end);
            self.to_mark.push((full.new.id, full.end));
        }
        let needed = align(FIRST_RECORD + bytes + self.to_mark.len() as u64 * MARK_BYTES);
        let size = self.store.segment_bytes();
        let number = self.next_segment;
        self.next_segment += 1;
        let store = self.store.clone();
        let new = self
            .store
            .env
            .blocking(move || {
                if let Some(full) = full {
                    // Only gives back what was allocated and never written.
                    let _ = full.new.file.truncate(full.end);
                    let OpenSegment { new, end, lines } = full;
                    lines.write(&*store.env.disk, &store.table, new.id, end, end);
                }
                store.table.create(number, size, needed)
            })
            .await;
        match new {
            Ok(new) => {
                self.segment = Some(OpenSegment { new, end: FIRST_RECORD, lines: Lines::default() });
                self.noted = Sighting::default();
                self.store.space.wrote(FIRST_RECORD, 0, None);
                Ok(())
            }
            Err(error) => {
                self.store.space.no_room();
                Err(error)
            }
        }
    }

    /// Tells the index, then the senders. In the order of arrival: a chunk may be put and buried in one group.
    fn acknowledge(
        &mut self,
        group: Group,
        places: &[Place],
        copies_places: Vec<Vec<Place>>,
        group_start: Place,
    ) {
        let Group { puts, burials, copies, order, .. } = group;
        self.holes.extend(self.fresh_holes.drain(..));
        // Copies of what was buried meanwhile: in this group, perhaps.
        self.fresh_holes.append(&mut self.store.dead_copies.lock());
        let (holes, fresh_holes) = (&mut self.holes, &mut self.fresh_holes);
        let table = &self.store.table;
        let mut dig = |id: ChunkId, entry: &Entry| {
            table.died(entry.place.slot, id);
            let fresh = entry.place.slot == group_start.slot && entry.place.offset() >= group_start.offset();
            match hole(entry) {
                Some(hole) if fresh => fresh_holes.push(hole),
                hole => holes.extend(hole),
            }
        };
        let mut outcomes = Vec::with_capacity(puts.len());
        {
            let mut index = self.store.index.write();
            for member in order {
                match member {
                    Member::Put(n) => {
                        let entry = Entry::new(&puts[n].chunk.header, places[n]);
                        let id = puts[n].chunk.header.id;
                        outcomes.push(match index.insert(id, entry) {
                            Ok(replaced) => {
                                replaced.iter().for_each(|entry| dig(id, entry));
                                Ok(PutOutcome::Stored)
                            }
                            Err(known) => {
                                dig(id, &entry);
                                match known {
                                    Known::Buried { .. } => Err(PutError::Buried),
                                    Known::Present(_) | Known::Damaged(_) => Ok(PutOutcome::Present),
                                }
                            }
                        });
                    }
                    Member::Bury(n) => {
                        for tombstone in &burials[n].tombstones {
                            index.bury(*tombstone).iter().for_each(|entry| dig(tombstone.id, entry));
                        }
                    }
                }
            }
        }
        // Senders that no longer wait are none of our business: the chunks are here all the same.
        for (put, outcome) in puts.into_iter().zip(outcomes) {
            let Put { admitted, flight, budget, reply, .. } = put;
            drop((admitted, flight, budget));
            let _ = reply.send(outcome);
        }
        for bury in burials {
            drop(bury.budget);
            let _ = bury.reply.send(Ok(()));
        }
        for (copy, places) in copies.into_iter().zip(copies_places) {
            drop(copy.admitted);
            let _ = copy.reply.send(Ok(places));
        }
    }

    /// Reads every chunk of a segment again, from the device; what is not there leaves the inventory.
    async fn check_segment(&mut self, slot: u32) {
        let (chunks, _) = self.store.index.read().in_segment(slot, None, usize::MAX);
        let store = self.store.clone();
        let forget = move || store.table.file(slot).and_then(|file| file.forget_cached(0, u64::MAX / 2));
        if let Err(error) = self.store.env.blocking(forget).await {
            tracing::error!(segment = %self.store.table.id(slot), %error, "what was written to it before may be read from the cache");
        }
        for (id, entry) in chunks {
            let store = self.store.clone();
            let result = self.store.env.blocking(move || verify_chunk(&store.table, id, &entry)).await;
            if let Err(fault) = result {
                self.lose(id, &entry, &fault);
            }
            self.remember_damage_if_due().await;
        }
    }

    fn lose(&self, id: ChunkId, entry: &Entry, fault: &RecordFault) {
        self.store.set_apart(id, entry, &format!("after a failed write to its segment: {fault}"));
    }

    async fn punch_holes(&mut self) {
        let count = self.holes.len().min(HOLES_AT_ONCE);
        if count == 0 {
            return;
        }
        let holes: Vec<Hole> = self.holes.drain(..count).collect();
        let store = self.store.clone();
        self.store
            .env
            .blocking(move || {
                for Hole { slot, offset, length } in holes {
                    let punched = store.table.file(slot).and_then(|file| file.punch_hole(offset, length));
                    match punched {
                        Ok(()) if store.table.is_removed(slot) => {}
                        Ok(()) => {
                            store.space.freed(length);
                            store.table.freed(slot, length);
                        }
                        // The whole segment has been given back.
                        Err(_) if store.table.is_removed(slot) => {}
                        Err(error) => tracing::warn!(%error, offset, length, "a deleted chunk's space is not given back"),
                    }
                }
                if let Ok(disk) = store.env.disk.space(store.table.folder()) {
                    store.space.look(disk);
                }
            })
            .await;
    }

    /// Notes that the open segment is whole, so that the next open need not doubt its last group.
    async fn close(&mut self) {
        let Some(segment) = &self.segment else { return };
        let (id, end) = (segment.new.id, segment.end);
        let room = segment.new.allocated - end;
        let mut marks = std::mem::take(&mut self.to_mark);
        marks.push((id, end));
        if room < marks.len() as u64 * MARK_BYTES {
            return;
        }
        let empty = Layout::new(self.store.table.identity(), id, end);
        let LaidOut { layout, .. } = Group::default().lay_out(empty, &mut self.next_record, &marks, None);
        let file = self.segment.take().expect("just seen").new.file;
        let result = self.store.env.blocking(move || {
            layout.write(&*file)?;
            file.sync_data()?;
            file.truncate(layout.end)
        });
        if let Err(error) = result.await {
            tracing::warn!(segment = %id, %error, "not closed cleanly; the next start looks at its last group");
        }
    }
}
