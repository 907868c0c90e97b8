//! redb's storage over a [`DiskFile`], so that the file lives on whatever disk the node was given.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::StorageBackend;

use crate::env::DiskFile;

/// One open file. Locking is not redb's business: `meta.lock` covers the folder.
pub(super) struct DiskBackend {
    file: Arc<dyn DiskFile>,
    /// The size has changed since the last sync, so the next one must cover it.
    resized: AtomicBool,
}

impl DiskBackend {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        // An earlier process may have changed it, and have been killed before its sync.
        Self { file, resized: AtomicBool::new(true) }
    }
}

impl fmt::Debug for DiskBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DiskBackend").finish_non_exhaustive()
    }
}

impl StorageBackend for DiskBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(out, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.resized.store(true, Ordering::Release);
        // Blocks are reserved: a full disk is found here, not when dirty pages are written back.
        if length > self.file.size()? { self.file.allocate(length) } else { self.file.truncate(length) }
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.resized.swap(false, Ordering::AcqRel) {
            return self.file.sync_data();
        }
        self.file.sync_all().inspect_err(|_| self.resized.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(&[io::IoSlice::new(data)], offset)
    }
}
