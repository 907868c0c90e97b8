//! Segment files: their table, opening them again, making new ones.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_placement::ChunkId;
use parking_lot::Mutex;

use super::{
    format::{Position, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentId, encode_segment_header},
    hint,
    identity::{HINTS_FOLDER, Identity, SEGMENTS_FOLDER},
    index::Place,
};
use crate::env::{Disk, DiskFile, OpenMode};

/// Files kept open. Far below the usual limit of 1,024 for a process, which has sockets too.
const OPEN_FILES_MAX: usize = 256;

/// All segments of one disk, by slot. Slots are small numbers for the index, given anew at each open.
pub struct SegmentTable {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    identity: Identity,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    open: HashMap<u32, OpenFile>,
    uses: u64,
    /// Segments that should be there and are not: not by our doing.
    lost: BTreeSet<SegmentId>,
}

/// What is known of one segment.
struct Slot {
    id: SegmentId,
    /// Bytes on the disk: up to its end, without holes.
    used: u64,
    /// Tombstones by their ticks.
    tombstones: BTreeMap<u32, u32>,
    /// Chunks of which it has a record that does not count any more: short hashes of their ids. Until the segment is gone, only a
    /// tombstone, or a later record, keeps such a record from counting again at the next start.
    dead: Vec<u32>,
    /// Segments that it has marks of.
    marks: BTreeSet<SegmentId>,
    /// Up to here it is trusted; absent while it is written.
    end: Option<u64>,
    /// Its file is gone, on purpose.
    removed: bool,
}

/// A segment that nothing is written to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub slot: u32,
    pub end: u64,
    pub used: u64,
    /// Tombstones that are not old.
    pub tombstones: u64,
}

struct OpenFile {
    file: Arc<dyn DiskFile>,
    last_use: u64,
}

/// A segment that was just made.
pub struct NewSegment {
    pub slot: u32,
    pub id: SegmentId,
    pub file: Arc<dyn DiskFile>,
    /// Size of the file: records end before it.
    pub allocated: u64,
}

impl SegmentTable {
    pub fn new(disk: Arc<dyn Disk>, folder: &Path, identity: Identity) -> Self {
        Self { disk, folder: folder.join(SEGMENTS_FOLDER), identity, state: Mutex::default() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn hints_folder(&self) -> PathBuf {
        self.folder.with_file_name(HINTS_FOLDER)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn path(&self, id: SegmentId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// Segments that are on the disk.
    pub fn count(&self) -> u64 {
        self.state.lock().slots.iter().filter(|slot| !slot.removed).count() as u64
    }

    /// Slots that were ever given.
    pub fn slot_count(&self) -> u32 {
        self.state.lock().slots.len() as u32
    }

    pub fn id(&self, slot: u32) -> SegmentId {
        self.state.lock().slots[slot as usize].id
    }

    /// The slots of all segments.
    pub fn slots(&self) -> HashMap<SegmentId, u32> {
        let state = self.state.lock();
        let present = (0..).zip(&state.slots).filter(|(_, slot)| !slot.removed);
        present.map(|(number, slot)| (slot.id, number)).collect()
    }

    /// Notes what was written to a segment, or read from it at a start.
    pub fn wrote(&self, slot: u32, bytes: u64, tombstones: impl Iterator<Item = u32>) {
        let slot = &mut self.state.lock().slots[slot as usize];
        slot.used += bytes;
        tombstones.for_each(|tick| *slot.tombstones.entry(tick).or_default() += 1);
    }

    /// Notes that a segment's record of a chunk does not count any more, or never did.
    pub fn died(&self, slot: u32, id: ChunkId) {
        self.state.lock().slots[slot as usize].dead.push(short_hash(id));
    }

    /// Short hashes of the chunks of which a segment has a record that does not count.
    pub fn dead_of(&self, slot: u32) -> HashSet<u32> {
        self.state.lock().slots[slot as usize].dead.iter().copied().collect()
    }

    /// Of some chunks' short hashes, those of which another segment has a record that does not count.
    pub fn dead_elsewhere(&self, slot: u32, wanted: &HashSet<u32>) -> HashSet<u32> {
        let state = self.state.lock();
        let others = (0..).zip(&state.slots).filter(|(number, _)| *number != slot);
        others.flat_map(|(_, slot)| &slot.dead).filter(|hash| wanted.contains(hash)).copied().collect()
    }

    /// Notes segments that a segment has marks of, or may have: what is written may be there also if that failed.
    pub fn marks(&self, slot: u32, marked: impl Iterator<Item = SegmentId>) {
        self.state.lock().slots[slot as usize].marks.extend(marked);
    }

    /// Notes that nothing more is written to a segment, which is trusted up to `end`.
    pub fn ended(&self, slot: u32, end: u64) {
        self.state.lock().slots[slot as usize].end = Some(end);
    }

    /// Notes bytes of a segment that were given back.
    pub fn freed(&self, slot: u32, bytes: u64) {
        let slot = &mut self.state.lock().slots[slot as usize];
        slot.used = slot.used.saturating_sub(bytes);
    }

    /// Segments that nothing is written to any more. Tombstones up to a tick are old.
    pub fn all_ended(&self, old: Option<u32>) -> Vec<Ended> {
        let state = self.state.lock();
        let present = (0..).zip(&state.slots).filter(|(_, slot)| !slot.removed);
        let ended = present.filter_map(|(number, slot)| {
            let young = slot.tombstones.iter().filter(|(tick, _)| old.is_none_or(|old| **tick > old));
            let tombstones = young.map(|(_, count)| u64::from(*count)).sum();
            Some(Ended { slot: number, end: slot.end?, used: slot.used, tombstones })
        });
        ended.collect()
    }

    pub fn is_removed(&self, slot: u32) -> bool {
        self.state.lock().slots[slot as usize].removed
    }

    /// Segments that are not on the disk any more, but of which one that is has a mark. `going` is about to be removed: it counts
    /// as gone, and its marks as there, for a crash may bring it back. So it is with those whose removal is not durable.
    pub fn marked_and_gone(&self, going: u32) -> BTreeSet<SegmentId> {
        let state = self.state.lock();
        let stays = |(number, slot): &(u32, &Slot)| !slot.removed && *number != going;
        let staying: BTreeSet<SegmentId> =
            (0..).zip(&state.slots).filter(stays).map(|(_, slot)| slot.id).collect();
        let gone = state.slots.iter().flat_map(|slot| slot.marks.difference(&staying).copied());
        gone.filter(|id| !state.lost.contains(id)).collect()
    }

    /// Notes that a segment should be there and is not.
    pub fn lost(&self, id: SegmentId) {
        self.state.lock().lost.insert(id);
    }

    /// Whether a segment is on the disk.
    pub fn has(&self, id: SegmentId) -> bool {
        self.state.lock().slots.iter().any(|slot| slot.id == id && !slot.removed)
    }

    /// Removes a segment's file, if that has not been done; gives how many bytes it took. Blocks.
    pub fn remove(&self, slot: u32) -> io::Result<u64> {
        if self.is_removed(slot) {
            return Ok(0);
        }
        let id = self.id(slot);
        self.disk.remove(&self.path(id))?;
        hint::remove(&*self.disk, self, id);
        let mut state = self.state.lock();
        state.open.remove(&slot);
        let slot = &mut state.slots[slot as usize];
        slot.removed = true;
        Ok(std::mem::take(&mut slot.used))
    }

    /// Makes removals durable. Blocks.
    pub fn sync_removals(&self) -> io::Result<()> {
        self.disk.sync_folder(&self.folder)?;
        // Not before: the power could bring the file back, and those of which an earlier sync failed.
        for gone in self.state.lock().slots.iter_mut().filter(|slot| slot.removed) {
            (gone.dead, gone.marks) = (Vec::new(), BTreeSet::new());
        }
        Ok(())
    }

    /// What a record there must carry in its checksum.
    pub fn position(&self, place: Place) -> Position {
        Position {
            incarnation: self.identity.incarnation,
            segment: self.id(place.slot),
            offset: place.offset(),
        }
    }

    pub fn add(&self, id: SegmentId, file: Arc<dyn DiskFile>) -> u32 {
        let mut state = self.state.lock();
        let slot = state.slots.len() as u32;
        state.slots.push(Slot {
            id,
            used: FIRST_RECORD,
            tombstones: BTreeMap::new(),
            dead: Vec::new(),
            marks: BTreeSet::new(),
            end: None,
            removed: false,
        });
        state.keep(slot, file);
        slot
    }

    /// The file of a slot, opened if it is not. Blocks.
    pub fn file(&self, slot: u32) -> io::Result<Arc<dyn DiskFile>> {
        let id = {
            let mut state = self.state.lock();
            state.uses += 1;
            let uses = state.uses;
            if let Some(open) = state.open.get_mut(&slot) {
                open.last_use = uses;
                return Ok(open.file.clone());
            }
            let known = &state.slots[slot as usize];
            if known.removed {
                return Err(io::ErrorKind::NotFound.into());
            }
            known.id
        };
        let file = self.disk.open(&self.path(id), OpenMode::ReadWrite)?;
        let mut state = self.state.lock();
        // Kept open, a file that was removed meanwhile would keep its space.
        if !state.slots[slot as usize].removed {
            state.keep(slot, file.clone());
        }
        Ok(file)
    }

    /// Forgets open files.
    pub fn close(&self) {
        self.state.lock().open.clear();
    }

    /// Makes a segment of about `size` bytes, at least `needed`, and makes it durable: header, blocks and name. Blocks.
    pub fn create(&self, number: u32, size: u64, needed: u64) -> io::Result<NewSegment> {
        let id = SegmentId { boot: self.identity.boot, number };
        let path = self.path(id);
        let file = self.disk.open(&path, OpenMode::CreateNew)?;
        let made = self.prepare(id, &*file, size.max(needed), needed);
        match made {
            Ok(allocated) => Ok(NewSegment { slot: self.add(id, file.clone()), id, file, allocated }),
            Err(error) => {
                // Nothing was acknowledged from it; what stays is found and removed at the next open.
                let _ = self.disk.remove(&path);
                Err(error)
            }
        }
    }

    fn prepare(&self, id: SegmentId, file: &dyn DiskFile, size: u64, needed: u64) -> io::Result<u64> {
        let Identity { cluster_id, node, incarnation, .. } = self.identity.clone();
        let header = encode_segment_header(&SegmentHeader { cluster_id, node, incarnation, segment: id });
        file.write_at(&[IoSlice::new(&header)], 0)?;
        let allocated = match file.allocate(size) {
            // A nearly full disk has no room for a whole segment, but deletes must go on.
            Err(error) if error.kind() == io::ErrorKind::StorageFull && needed < size => {
                file.allocate(needed)?;
                needed
            }
            result => result.map(|()| size)?,
        };
        file.sync_all()?;
        self.disk.sync_folder(&self.folder)?;
        Ok(allocated)
    }
}

impl State {
    fn keep(&mut self, slot: u32, file: Arc<dyn DiskFile>) {
        if self.open.len() >= OPEN_FILES_MAX {
            let oldest = self.open.iter().min_by_key(|(_, open)| open.last_use).map(|(slot, _)| *slot);
            oldest.map(|slot| self.open.remove(&slot));
        }
        self.uses += 1;
        self.open.insert(slot, OpenFile { file, last_use: self.uses });
    }
}

/// What tells chunks apart well enough: of those that look alike, a tombstone is kept for longer than needed.
pub fn short_hash(id: ChunkId) -> u32 {
    id.hash() as u32
}

/// Where records begin.
pub const FIRST_RECORD: u64 = SEGMENT_HEADER_BYTES;
