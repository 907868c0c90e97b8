//! A disk in memory that keeps no promise it did not make.
//!
//! * Written bytes are in a cache until a sync; a power cut keeps any subset of the unsynced 512-byte sectors, so writes are
//!   torn and reordered. A file's size changes for good only with `sync_all`.
//! * Created, renamed and removed names are in the cache until their folder is synced; a power cut keeps any subset.
//! * A killed process loses nothing of the cache: what it did not sync is seen by the next one, and still not durable.
//! * A sync that fails drops the unsynced bytes and calls them clean, as Linux does: they can be read until they leave the
//!   cache, and no later sync writes them.
//! * A byte can be stored wrong and nobody told: the cache has it right until the page leaves it.
//! * Blocks are counted, and run out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_node::env::{Disk, DiskFile, DiskSpace, OpenMode};
use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

mod cache;
mod file;

use cache::{Inode, PAGE_BYTES, Page};
use file::SimFile;

/// Operations that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    /// Of a file.
    Sync,
    SyncFolder,
    Allocate,
    Create,
}

/// Makes operations fail, once or more often.
#[derive(Debug, Clone)]
pub struct Fault {
    pub operation: Operation,
    /// Only on paths that contain this.
    pub path: String,
    /// So many pass before.
    pub after: u64,
    /// So many fail.
    pub times: u64,
    pub os_error: i32,
}

/// Syncs that are not done, and said to be.
#[derive(Debug, Clone)]
struct Lie {
    about: Operation,
    /// Only on paths that contain this.
    path: String,
    /// So many are done before.
    after: u64,
    /// So many are not done.
    times: u64,
}

/// A write of which the medium gets one byte wrong.
struct Spoil {
    /// Only on paths that contain this.
    path: String,
    at: u64,
}

/// How often things were done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounts {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub folder_syncs: u64,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    Folder,
    File(u64),
}

enum NameChange {
    Set(PathBuf, Node),
    Remove(PathBuf),
    Rename { from: PathBuf, to: PathBuf, node: Node },
}

#[derive(Default)]
struct State {
    total_pages: u64,
    used_pages: u64,
    /// Raised by every crash and kill: handles of earlier lives are dead.
    life: u64,
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    name_changes: Vec<NameChange>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    locks: BTreeMap<u64, u64>,
    next_handle: u64,
    changes_until_power_cut: Option<u64>,
    power_is_off: bool,
    faults: Vec<Fault>,
    lies: Vec<Lie>,
    spoils: Vec<Spoil>,
    counts: DiskCounts,
}

fn os_error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl State {
    /// Fails if the power is off or a fault says so. Changes count down to the power cut: the last one still happens in
    /// the cache, but nobody hears of it.
    fn begin(&mut self, operation: Operation, path: &Path) -> io::Result<()> {
        if self.power_is_off {
            return Err(os_error(libc::EIO));
        }
        for fault in &mut self.faults {
            if fault.operation != operation
                || fault.times == 0
                || !path.to_string_lossy().contains(&fault.path)
            {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            fault.times -= 1;
            return Err(os_error(fault.os_error));
        }
        Ok(())
    }

    /// To be called when a change is done, or for a sync before it is.
    fn changed(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.changes_until_power_cut {
            if *left == 0 {
                self.power_is_off = true;
                return Err(os_error(libc::EIO));
            }
            *left -= 1;
        }
        Ok(())
    }

    fn lies(&mut self, operation: Operation, path: &Path) -> bool {
        let here = |lie: &&mut Lie| lie.about == operation && path.to_string_lossy().contains(&lie.path);
        let mut lied = false;
        for lie in self.lies.iter_mut().filter(here) {
            match lie.after {
                0 if lie.times > 0 => {
                    lie.times -= 1;
                    lied = true;
                }
                0 => {}
                _ => lie.after -= 1,
            }
        }
        lied
    }

    /// Which byte of a write so long will be wrong.
    fn spoils(&mut self, path: &Path, length: u64) -> Option<u64> {
        let hit = |spoil: &Spoil| spoil.at < length && path.to_string_lossy().contains(&spoil.path);
        let number = self.spoils.iter().position(hit)?;
        Some(self.spoils.remove(number).at)
    }

    fn is_folder(&self, path: &Path) -> bool {
        path == Path::new("/") || self.names.get(path) == Some(&Node::Folder)
    }

    fn parent_must_exist(&self, path: &Path) -> io::Result<()> {
        let exists = path.parent().is_some_and(|parent| self.is_folder(parent));
        if exists { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn apply(names: &mut BTreeMap<PathBuf, Node>, change: &NameChange) {
        match change {
            NameChange::Set(path, node) => {
                names.insert(path.clone(), *node);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
            NameChange::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }

    fn change_name(&mut self, change: NameChange) {
        Self::apply(&mut self.names, &change);
        self.name_changes.push(change);
    }

    fn take_blocks(&mut self, inode: u64, first: u64, end: u64) -> io::Result<()> {
        let (total, used) = (self.total_pages, self.used_pages);
        let blocks = &mut self.inodes.get_mut(&inode).expect("the file exists").blocks;
        let missing: Vec<u64> = (first..end).filter(|number| !blocks.contains(number)).collect();
        if used + missing.len() as u64 > total {
            return Err(os_error(libc::ENOSPC));
        }
        self.used_pages += missing.len() as u64;
        blocks.extend(missing);
        Ok(())
    }

    fn give_blocks(&mut self, inode: u64, first: u64, end: u64) {
        let blocks = &mut self.inodes.get_mut(&inode).expect("the file exists").blocks;
        let before = blocks.len();
        blocks.retain(|number| !(first..end).contains(number));
        self.used_pages -= (before - blocks.len()) as u64;
    }

    fn new_life(&mut self) {
        self.life += 1;
        self.locks.clear();
        self.changes_until_power_cut = None;
        self.power_is_off = false;
        self.faults.clear();
        // What was removed, and is durable under its name until the folder is synced, may come back with a crash.
        let files: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .chain(self.name_changes.iter().filter_map(|change| match change {
                NameChange::Set(_, node) | NameChange::Rename { node, .. } => Some(node),
                NameChange::Remove(_) => None,
            }))
            .filter_map(|node| match node {
                Node::File(inode) => Some(*inode),
                Node::Folder => None,
            })
            .collect();
        self.inodes.retain(|inode, _| files.contains(inode));
        self.used_pages = self.inodes.values().map(|inode| inode.blocks.len() as u64).sum();
    }
}

impl SimDisk {
    pub fn new(total_bytes: u64) -> Self {
        let state = State { total_pages: total_bytes / PAGE_BYTES as u64, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Cuts the power: of what was not synced, anything may be lost. Open files are dead.
    pub fn crash(&self, random: &mut StdRng) {
        let mut state = self.state.lock();
        let keep = *[0.0, 0.5, 1.0].choose(random).expect("not empty");
        let state = &mut *state;
        for change in state.name_changes.drain(..) {
            if random.random_bool(keep) {
                State::apply(&mut state.durable_names, &change);
            }
        }
        // What is in a folder that is not there is not there.
        let all = state.durable_names.clone();
        state.durable_names.retain(|path, _| {
            path.ancestors()
                .skip(1)
                .all(|folder| folder.parent().is_none() || all.get(folder) == Some(&Node::Folder))
        });
        state.names = state.durable_names.clone();
        let mut inodes: Vec<_> = state.inodes.iter_mut().collect();
        inodes.sort_by_key(|(number, _)| **number);
        inodes.into_iter().for_each(|(_, inode)| inode.crash(random));
        state.new_life();
    }

    /// Kills the process: the cache stays, open files are dead, locks are free.
    pub fn kill(&self) {
        self.state.lock().new_life();
    }

    /// Lets so many changes through; the next one happens in the cache only, and from then on everything fails.
    pub fn cut_power_after(&self, changes: u64) {
        self.state.lock().changes_until_power_cut = Some(changes);
    }

    /// Until the next crash or kill.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Nothing that it was made to fail fails any more.
    pub fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// The next one on such a path fails: the device cannot do it.
    pub fn fail_once(&self, operation: Operation, path: &str) {
        self.fail(Fault { operation, path: path.into(), after: 0, times: 1, os_error: libc::EIO });
    }

    /// From now on says that these syncs succeeded without doing them: plants the bug of a forgotten sync.
    pub fn lie_about(&self, operation: Operation) {
        self.lie_about_in(operation, "");
    }

    /// The same, in paths with this in them.
    pub fn lie_about_in(&self, operation: Operation, path: &str) {
        self.lie(Lie { about: operation, path: path.into(), after: 0, times: u64::MAX });
    }

    /// Says once, after so many were done in such paths, that a sync succeeded without doing it.
    pub fn lie_once(&self, operation: Operation, path: &str, after: u64) {
        self.lie(Lie { about: operation, path: path.into(), after, times: 1 });
    }

    fn lie(&self, lie: Lie) {
        self.state.lock().lies.push(lie);
    }

    pub fn tell_the_truth(&self) {
        self.state.lock().lies.clear();
    }

    /// Of the next write in such a path that is longer than `at`, that byte gets wrong onto the medium, and nobody is told.
    pub fn spoil_next_write(&self, path: &str, at: u64) {
        self.state.lock().spoils.push(Spoil { path: path.into(), at });
    }

    pub fn counts(&self) -> DiskCounts {
        self.state.lock().counts
    }

    /// All files, with their sizes.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state.lock();
        let size = |node: &Node| match node {
            Node::File(inode) => Some(state.inodes[inode].size),
            Node::Folder => None,
        };
        state.names.iter().filter_map(|(path, node)| size(node).map(|size| (path.clone(), size))).collect()
    }

    /// Changes bits on the medium, as time does.
    pub fn rot(&self, path: &Path, offset: u64, flipped: u8) {
        let mut state = self.state.lock();
        let Some(Node::File(inode)) = state.names.get(path).copied() else {
            panic!("no file {}", path.display())
        };
        let inode = state.inodes.get_mut(&inode).expect("the file exists");
        let page = inode.pages.entry(offset / PAGE_BYTES as u64).or_insert_with(Page::new);
        let at = (offset % PAGE_BYTES as u64) as usize;
        Arc::make_mut(&mut page.cached)[at] ^= flipped;
        Arc::make_mut(&mut page.durable)[at] ^= flipped;
    }

    fn handle(&self, path: &Path, inode: u64, state: &mut State) -> Arc<dyn DiskFile> {
        state.next_handle += 1;
        let (life, handle) = (state.life, state.next_handle);
        Arc::new(SimFile { disk: self.clone(), path: path.to_owned(), inode, life, handle })
    }
}

impl Disk for SimDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(Operation::Create, path)?;
        let mut missing: Vec<&Path> =
            path.ancestors().take_while(|folder| !state.is_folder(folder)).collect();
        while let Some(folder) = missing.pop() {
            if state.names.contains_key(folder) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.change_name(NameChange::Set(folder.to_owned(), Node::Folder));
            state.changed()?;
        }
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        if mode != OpenMode::CreateNew {
            state.begin(Operation::Read, path)?;
            return match state.names.get(path).copied() {
                Some(Node::File(inode)) => Ok(self.handle(path, inode, &mut state)),
                Some(Node::Folder) => Err(io::ErrorKind::IsADirectory.into()),
                None => Err(io::ErrorKind::NotFound.into()),
            };
        }
        state.begin(Operation::Create, path)?;
        state.parent_must_exist(path)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.change_name(NameChange::Set(path.to_owned(), Node::File(inode)));
        state.changed()?;
        Ok(self.handle(path, inode, &mut state))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state.lock();
        state.begin(Operation::Read, folder)?;
        if !state.is_folder(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(Operation::Create, to)?;
        state.parent_must_exist(to)?;
        let node = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_name(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), node });
        state.changed()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(Operation::Create, path)?;
        let Some(Node::File(inode)) = state.names.get(path).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        state.give_blocks(inode, 0, u64::MAX);
        state.change_name(NameChange::Remove(path.to_owned()));
        state.changed()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(Operation::SyncFolder, folder)?;
        if !state.is_folder(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.changed()?;
        state.counts.folder_syncs += 1;
        if state.lies(Operation::SyncFolder, folder) {
            return Ok(());
        }
        let inside = |path: &Path| path.parent() == Some(folder);
        let (now, later) =
            std::mem::take(&mut state.name_changes).into_iter().partition(|change| match change {
                NameChange::Set(path, _) | NameChange::Remove(path) => inside(path),
                NameChange::Rename { from, to, .. } => inside(from) || inside(to),
            });
        state.name_changes = later;
        let now: Vec<NameChange> = now;
        now.iter().for_each(|change| State::apply(&mut state.durable_names, change));
        Ok(())
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        let mut state = self.state.lock();
        state.begin(Operation::Read, folder)?;
        Ok(DiskSpace {
            total_bytes: state.total_pages * PAGE_BYTES as u64,
            available_bytes: (state.total_pages - state.used_pages) * PAGE_BYTES as u64,
        })
    }
}

#[cfg(test)]
mod tests;
