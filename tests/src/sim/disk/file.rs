//! Open files of the simulated disk.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
};

use cairn_node::env::DiskFile;
use parking_lot::MutexGuard;

use super::{Node, Operation, SimDisk, State, cache::PAGE_BYTES, os_error};

/// One opening of a file.
pub struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    pub(super) life: u64,
    pub(super) handle: u64,
}

impl SimFile {
    fn begin(&self, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.state.lock();
        if state.life != self.life {
            return Err(os_error(libc::EBADF));
        }
        state.begin(operation, &self.path)?;
        Ok(state)
    }

    fn sync(&self, size_too: bool) -> io::Result<()> {
        let mut state = match self.begin(Operation::Sync) {
            Ok(state) => state,
            Err(error) => {
                let mut state = self.disk.state.lock();
                if state.life == self.life && !state.power_is_off {
                    state.inodes.get_mut(&self.inode).expect("the file exists").fail_sync();
                }
                return Err(error);
            }
        };
        state.changed()?;
        state.counts.syncs += 1;
        if state.lies(Operation::Sync, &self.path) {
            return Ok(());
        }
        let inode = state.inodes.get_mut(&self.inode).expect("the file exists");
        inode.sync();
        if size_too {
            inode.durable_size = inode.size;
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.begin(Operation::Read)?.inodes[&self.inode].size)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.begin(Operation::Read)?;
        state.counts.reads += 1;
        let inode = &state.inodes[&self.inode];
        if offset + buffer.len() as u64 > inode.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inode.read(offset, buffer);
        Ok(())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut state = self.begin(Operation::Write)?;
        state.counts.writes += 1;
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let spoiled = state.spoils(&self.path, length);
        let page = PAGE_BYTES as u64;
        state.take_blocks(self.inode, offset / page, (offset + length).div_ceil(page))?;
        let inode = state.inodes.get_mut(&self.inode).expect("the file exists");
        inode.spoiled.extend(spoiled.map(|at| offset + at));
        for part in parts {
            inode.write(offset, part);
            offset += part.len() as u64;
        }
        inode.size = inode.size.max(offset);
        state.changed()
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let mut state = self.begin(Operation::Allocate)?;
        state.take_blocks(self.inode, 0, size.div_ceil(PAGE_BYTES as u64))?;
        let inode = state.inodes.get_mut(&self.inode).expect("the file exists");
        inode.size = inode.size.max(size);
        state.changed()
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.begin(Operation::Write)?;
        let page = PAGE_BYTES as u64;
        state.inodes.get_mut(&self.inode).expect("the file exists").clear(offset, offset + length);
        state.give_blocks(self.inode, offset.div_ceil(page), (offset + length) / page);
        state.changed()
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        let mut state = self.begin(Operation::Write)?;
        let inode = state.inodes.get_mut(&self.inode).expect("the file exists");
        inode.clear(size, inode.size.max(size));
        inode.size = size;
        state.give_blocks(self.inode, size.div_ceil(PAGE_BYTES as u64), u64::MAX);
        state.changed()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(false)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(true)
    }

    fn has_name(&self) -> io::Result<bool> {
        let state = self.disk.state.lock();
        if state.life != self.life {
            return Err(os_error(libc::EBADF));
        }
        Ok(state.names.values().any(|node| *node == Node::File(self.inode)))
    }

    fn forget_cached(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.begin(Operation::Read)?;
        state
            .inodes
            .get_mut(&self.inode)
            .expect("the file exists")
            .forget(offset, offset.saturating_add(length));
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        let mut state = self.begin(Operation::Read)?;
        let owner = *state.locks.entry(self.inode).or_insert(self.handle);
        if owner == self.handle { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.life == self.life && state.locks.get(&self.inode) == Some(&self.handle) {
            state.locks.remove(&self.inode);
        }
    }
}
