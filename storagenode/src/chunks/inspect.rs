//! Looking at a disk that is in use: whether it is still there, whether its chunks are whole.

use std::io;

use cairn_placement::ChunkId;

use super::{
    FolderGone,
    identity::lock_path,
    index::Known,
    read::{RecordFault, verify_chunk, verify_on_device},
    store::{ChunkStore, record_length},
};
use crate::env::OpenMode;

/// Entries of the index looked at without letting others to it.
const LOOKED_AT_ONCE: usize = 10_000;

/// What a look at one chunk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Of its record.
    pub bytes: u64,
    pub state: ChunkState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    Whole,
    /// It is set apart now.
    Damaged,
    /// The disk did not answer, or the chunk went meanwhile: nothing is known of it.
    Unread,
}

impl ChunkStore {
    /// Looks at the disk: how much room there is, and whether the folder is still there. To be called every now and then:
    /// others use the disk too. An error says that nothing that is written here can be found again.
    pub async fn look(&self) -> Result<(), FolderGone> {
        let inner = self.inner.clone();
        self.inner
            .env
            .blocking(move || {
                let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
                let segments = inner.env.disk.space(inner.table.folder());
                let missing = segments.as_ref().is_err_and(gone);
                if let Ok(disk) = segments {
                    inner.space.look(disk);
                }
                let Some(lock) = inner.lock.lock().clone() else { return Ok(()) };
                // Without a name, or with one somewhere else.
                let path = lock_path(&inner.options.folder);
                let missing =
                    missing || inner.env.disk.open(&path, OpenMode::Read).is_err_and(|error| gone(&error));
                if missing || matches!(lock.has_name(), Ok(false)) {
                    return Err(FolderGone { folder: inner.options.folder.clone() });
                }
                Ok(())
            })
            .await
    }

    /// Segments are numbered from 0 up to this; some of them may be empty, or gone.
    pub fn segment_count(&self) -> u32 {
        self.inner.table.slot_count()
    }

    /// The chunks whose records are in a segment, in the order in which they lie. What is cached of it is forgotten: whoever
    /// [checks](Self::check) them one after the other reads the device.
    pub async fn chunks_of_segment(&self, slot: u32) -> Vec<ChunkId> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let (part, last) = self.inner.index.read().in_segment(slot, after, LOOKED_AT_ONCE);
            found.extend(part);
            match last {
                Some(last) => after = Some(last),
                None => break,
            }
            tokio::task::yield_now().await;
        }
        found.sort_by_key(|(_, entry)| entry.place.offset());
        let inner = self.inner.clone();
        let forget = move || inner.table.file(slot).and_then(|file| file.forget_cached(0, u64::MAX / 2));
        if let (false, Err(error)) = (found.is_empty(), self.inner.env.blocking(forget).await) {
            tracing::warn!(segment = %self.inner.table.id(slot), %error, "read again from the cache, not from the device");
        }
        found.into_iter().map(|(id, _)| id).collect()
    }

    /// Reads a chunk again; one that is damaged is set apart, as if somebody had wanted it. `None` if it is not here.
    pub async fn check(&self, id: ChunkId) -> Option<Checked> {
        let Some(Known::Present(entry)) = self.inner.index.read().get(id) else { return None };
        let inner = self.inner.clone();
        let read = self.inner.env.blocking(move || verify_chunk(&inner.table, id, &entry)).await;
        let state = match read {
            Ok(()) => ChunkState::Whole,
            Err(RecordFault::Disk(error)) => {
                tracing::warn!(chunk = %id, %error, "could not read a chunk again");
                ChunkState::Unread
            }
            // If buried or moved meanwhile, the bytes may be gone, and that is no damage.
            Err(RecordFault::Corrupt(reason)) => match self.inner.set_apart(id, &entry, &reason) {
                true => ChunkState::Damaged,
                false => ChunkState::Unread,
            },
        };
        Some(Checked { bytes: record_length(entry.plain_length), state })
    }

    /// Reads a damaged chunk again, from the device: an error may pass, and a disk come back. `true` if it is whole and counts
    /// again.
    pub async fn recheck(&self, id: ChunkId) -> bool {
        let Some(Known::Damaged(entry)) = self.inner.index.read().get(id) else { return false };
        let inner = self.inner.clone();
        let read = self.inner.env.blocking(move || verify_on_device(&inner.table, id, &entry)).await;
        read.is_ok() && self.inner.index.write().restore(id, entry.place)
    }
}
