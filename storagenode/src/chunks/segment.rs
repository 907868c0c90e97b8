//! Segment files: their table, opening them again, making new ones.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    format::{Position, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentId, encode_segment_header},
    identity::{Identity, SEGMENTS_FOLDER},
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
    ids: Vec<SegmentId>,
    open: HashMap<u32, OpenFile>,
    uses: u64,
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

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn path(&self, id: SegmentId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    pub fn count(&self) -> u64 {
        self.state.lock().ids.len() as u64
    }

    pub fn id(&self, slot: u32) -> SegmentId {
        self.state.lock().ids[slot as usize]
    }

    /// The slots of all segments.
    pub fn slots(&self) -> HashMap<SegmentId, u32> {
        self.state.lock().ids.iter().copied().zip(0..).collect()
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
        let slot = state.ids.len() as u32;
        state.ids.push(id);
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
            state.ids[slot as usize]
        };
        let file = self.disk.open(&self.path(id), OpenMode::ReadWrite)?;
        self.state.lock().keep(slot, file.clone());
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

/// Where records begin.
pub const FIRST_RECORD: u64 = SEGMENT_HEADER_BYTES;
