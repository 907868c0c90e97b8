//! The folder of the embedded store: its lock, its file, and looking at the file again after a failure.
//!
//! ```text
//! meta.lock        locked while a process has the folder open
//! meta.redb        everything
//! meta.redb.new    a file being created; becomes meta.redb when it is complete and durable
//! ```
//!
//! redb trusts a file that was closed in order, and panics over one that was damaged since. So each opening verifies the
//! checksums of all pages, and a panic over what is damaged later is caught and becomes an error like others.
//!
//! After an I/O error redb refuses to go on, and what a failed sync has written may be in the kernel's memory only. So the
//! file is synced, its cached pages are dropped, and it is opened again: what is found then is what the disk holds (R4).

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError};

use super::{
    apply::{self, Step},
    backend::DiskBackend,
    closed, v1,
};
use crate::{
    env::{Disk, DiskFile, OpenMode, sync_with_parents},
    meta::{LeaseId, MetaError},
};

const LOCK_NAME: &str = "meta.lock";
pub(super) const FILE_NAME: &str = "meta.redb";
const NEW_NAME: &str = "meta.redb.new";
/// redb's cache; its own default is 1 GiB.
const CACHE_BYTES: usize = 64 << 20;

/// Why a folder was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the metadata folder {0} is in use by another process: end that process, or name another folder")]
    InUse(PathBuf),
    #[error(
        "the metadata in {folder} was written by a newer version of Cairn (format {found}; this one reads up to \
         {known}): start that version again"
    )]
    Newer { folder: PathBuf, found: u64, known: u64 },
    #[error(
        "the metadata file {file} is damaged ({why}): restore the folder from a backup, see docs/restore.md"
    )]
    Damaged { file: PathBuf, why: String },
    #[error(
        "the metadata folder {folder} cannot be used ({error}): check that it exists, may be written, and has space"
    )]
    Io { folder: PathBuf, error: io::Error },
}

/// What went wrong with the file.
#[derive(Debug)]
pub(super) enum Fault {
    Closed,
    /// Its name was deleted, or given to another file. The open one is kept: it is the last of what it holds.
    Gone(String),
    Full(String),
    Io(String),
    Damaged(String),
}

impl Fault {
    pub(super) fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged(why.into())
    }

    /// What a caller is told if nothing has happened.
    pub(super) fn not_done(&self) -> MetaError {
        match self {
            Self::Closed => closed(),
            Self::Full(why) => MetaError::Full(why.clone()),
            Self::Io(why) | Self::Gone(why) => MetaError::Unavailable(why.clone()),
            Self::Damaged(why) => MetaError::Damaged(why.clone()),
        }
    }
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        match &error {
            redb::Error::Io(io)
                if matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::Full(format!("no space left for the metadata file ({io}): free some"))
            }
            redb::Error::Io(io) if is_damage(io) => Self::Damaged(error.to_string()),
            redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
                Self::Io(format!("its file cannot be read or written ({error}): check the disk"))
            }
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// redb says so by an I/O error, or the file ends too early.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

macro_rules! fault_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                redb::Error::from(error).into()
            }
        })*
    };
}
fault_from!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError
);

/// How far the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub revision: u64,
    /// Redb transactions so far.
    pub commits: u64,
}

/// The open folder. All calls block.
pub(super) struct DatabaseFile {
    /// `None` once closed, or while the file cannot be opened again.
    database: RwLock<Option<Database>>,
    /// What the database writes to.
    file: RwLock<Arc<dyn DiskFile>>,
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// Held as long as this lives; released after the database, which is declared before it.
    lock: RwLock<Option<Arc<dyn DiskFile>>>,
}

impl DatabaseFile {
    pub(super) fn open(disk: Arc<dyn Disk>, folder: &Path) -> Result<(Self, Position), OpenError> {
        let io = |error| OpenError::Io { folder: folder.to_owned(), error };
        let lock = lock(&*disk, folder).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse(folder.to_owned()),
            _ => io(error),
        })?;
        let names = disk.list(folder).map_err(io)?;
        if names.iter().any(|name| name == NEW_NAME) {
            disk.remove(&folder.join(NEW_NAME)).map_err(io)?;
        }
        if !names.iter().any(|name| name == FILE_NAME) {
            create(&*disk, folder)?;
        }
        sync_with_parents(&*disk, folder).map_err(io)?;
        let file = disk.open(&folder.join(FILE_NAME), OpenMode::ReadWrite).map_err(io)?;
        let (database, position) = open_database(file.clone(), folder)?;
        let opened = Self {
            database: RwLock::new(Some(database)),
            file: RwLock::new(file),
            disk,
            folder: folder.to_owned(),
            lock: RwLock::new(Some(lock)),
        };
        Ok((opened, position))
    }

    /// Deletes what leases of an earlier life hold.
    pub(super) fn end_stale_leases(&self, position: Position) -> Result<Position, OpenError> {
        let damaged = |why: Fault| open_error(&self.folder, why);
        let leases = self.read(stale_leases).map_err(damaged)?;
        if leases.is_empty() {
            return Ok(position);
        }
        let steps: Vec<Step> = leases.into_iter().map(Step::EndLease).collect();
        let applied = self.read(|database| match apply::apply(database, position, &steps) {
            Ok(applied) => Ok(applied),
            Err(apply::ApplyError::Before(fault) | apply::ApplyError::Commit(fault, _)) => Err(fault),
        });
        Ok(applied.map_err(damaged)?.after)
    }

    /// Works with the database, which stays open meanwhile.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Database) -> Result<T, Fault>) -> Result<T, Fault> {
        let database = self.database.read();
        let database = database.as_ref().ok_or(Fault::Closed)?;
        self.check_name()?;
        caught(|| work(database))
    }

    /// Fails if what is done goes with the open file, and is not there for the next process.
    pub(super) fn check_name(&self) -> Result<(), Fault> {
        if !matches!(self.file.read().has_name(), Ok(false)) {
            return Ok(());
        }
        let path = self.folder.join(FILE_NAME);
        Err(Fault::Gone(format!(
            "{} was deleted or replaced while it was in use: nothing is written to it any more. This process still has the \
             last of it open: before you end it, copy it from /proc/{}/fd (`ls -l` there shows which one is deleted)",
            path.display(),
            std::process::id()
        )))
    }

    /// Opens the file afresh and says how far it is on disk.
    pub(super) fn look_again(&self) -> Result<Position, Fault> {
        let mut slot = self.database.write();
        if self.lock.read().is_none() {
            return Err(Fault::Closed);
        }
        // Before the file is opened a second time.
        drop_caught(slot.take());
        let failed = |error: io::Error| Fault::from(redb::Error::Io(error));
        let file = self.disk.open(&self.folder.join(FILE_NAME), OpenMode::ReadWrite).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        file.forget_cached(0, file.size().map_err(failed)?).map_err(failed)?;
        let (database, position) =
            open_database(file.clone(), &self.folder).map_err(|error| match error {
                OpenError::Damaged { .. } => Fault::Damaged(error.to_string()),
                other => Fault::Io(other.to_string()),
            })?;
        *slot = Some(database);
        *self.file.write() = file;
        Ok(position)
    }

    pub(super) fn close(&self) {
        let mut slot = self.database.write();
        drop_caught(slot.take());
        drop(self.lock.write().take());
    }
}

fn lock(disk: &dyn Disk, folder: &Path) -> io::Result<Arc<dyn DiskFile>> {
    disk.create_folder(folder)?;
    let path = folder.join(LOCK_NAME);
    let lock = match disk.open(&path, OpenMode::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match disk.open(&path, OpenMode::CreateNew) {
                // Another process was faster; its lock decides.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    disk.open(&path, OpenMode::ReadWrite)
                }
                other => other,
            }
        }
        other => other,
    }?;
    lock.lock()?;
    Ok(lock)
}

/// Makes an empty database under another name, and gives it its own when what is in it is durable.
fn create(disk: &dyn Disk, folder: &Path) -> Result<(), OpenError> {
    let io = |error| OpenError::Io { folder: folder.to_owned(), error };
    let path = folder.join(NEW_NAME);
    let file = disk.open(&path, OpenMode::CreateNew).map_err(io)?;
    let fill = || -> Result<(), Fault> {
        let database = builder().create_with_backend(DiskBackend::new(file.clone()))?;
        let txn = database.begin_write()?;
        {
            let mut state = txn.open_table(v1::STATE)?;
            state.insert(v1::STATE_FORMAT, v1::FORMAT)?;
            // 1, as etcd begins: 0 is no revision.
            state.insert(v1::STATE_REVISION, 1)?;
            state.insert(v1::STATE_COMMITS, 0)?;
            txn.open_table(v1::KEYS)?;
            txn.open_table(v1::LEASE_KEYS)?;
        }
        txn.commit()?;
        Ok(())
    };
    fill().map_err(|fault| open_error(folder, fault))?;
    // Closing the database has written to it.
    file.sync_all().map_err(io)?;
    drop(file);
    disk.rename(&path, &folder.join(FILE_NAME)).map_err(io)
}

fn open_database(file: Arc<dyn DiskFile>, folder: &Path) -> Result<(Database, Position), OpenError> {
    let opening = AssertUnwindSafe(|| open_verified(file, folder));
    catch_unwind(opening).unwrap_or_else(|panic| {
        Err(OpenError::Damaged { file: folder.join(FILE_NAME), why: words_of(&*panic) })
    })
}

fn open_verified(file: Arc<dyn DiskFile>, folder: &Path) -> Result<(Database, Position), OpenError> {
    let damaged = |why: String| OpenError::Damaged { file: folder.join(FILE_NAME), why };
    let database = builder().create_with_backend(DiskBackend::new(file)).map_err(|error| match error {
        DatabaseError::Storage(StorageError::Io(error)) if !is_damage(&error) => {
            OpenError::Io { folder: folder.to_owned(), error }
        }
        other => damaged(other.to_string()),
    })?;
    let numbers = || -> Result<[Option<u64>; 3], Fault> {
        let state = database.begin_read()?.open_table(v1::STATE)?;
        let get = |name| Ok::<_, Fault>(state.get(name)?.map(|value| value.value()));
        Ok([get(v1::STATE_FORMAT)?, get(v1::STATE_REVISION)?, get(v1::STATE_COMMITS)?])
    };
    match numbers().map_err(|fault| open_error(folder, fault))? {
        [Some(found), ..] if found > v1::FORMAT => {
            Err(OpenError::Newer { folder: folder.to_owned(), found, known: v1::FORMAT })
        }
        [Some(v1::FORMAT), Some(revision), Some(commits)] => Ok((database, Position { revision, commits })),
        numbers => Err(damaged(format!("format, revision, commits are {numbers:?}"))),
    }
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    // Reading all of it takes 50 ms with 100,000 records (64 MB), a second with a million.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// redb asserts what holds in every sound file. Callers want an error.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Fault::Damaged(words_of(&*panic))))
}

/// Closing writes, and so may panic; what comes next opens the file afresh or not at all.
fn drop_caught(database: Option<Database>) {
    if let Err(Fault::Damaged(why)) = caught(|| {
        drop(database);
        Ok(())
    }) {
        tracing::warn!(why, "the metadata file was not closed in order");
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref().copied()).unwrap_or("it breaks the rules of its format").to_owned()
}

fn open_error(folder: &Path, fault: Fault) -> OpenError {
    match fault {
        Fault::Damaged(why) => OpenError::Damaged { file: folder.join(FILE_NAME), why },
        Fault::Full(why) | Fault::Io(why) | Fault::Gone(why) => {
            OpenError::Io { folder: folder.to_owned(), error: io::Error::other(why) }
        }
        Fault::Closed => OpenError::Io { folder: folder.to_owned(), error: io::Error::other("closed") },
    }
}

fn stale_leases(database: &Database) -> Result<Vec<LeaseId>, Fault> {
    let table = database.begin_read()?.open_table(v1::LEASE_KEYS)?;
    let mut leases: Vec<LeaseId> = Vec::new();
    for entry in table.iter()? {
        let lease = LeaseId(entry?.0.value().0);
        if leases.last() != Some(&lease) {
            leases.push(lease);
        }
    }
    Ok(leases)
}
