//! The embedded store: conformance, what survives, what does not, and failing disks.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use tempfile::TempDir;

use super::*;
use crate::{
    env::{
        Disk, DiskFile, DiskSpace, OpenMode,
        real::{RealDisk, without_network},
    },
    meta::conformance::{self, Subject},
};

/// Beside this program, not in `/tmp`, which may be memory: syncs must cost what they cost.
fn folder() -> TempDir {
    let program = std::env::current_exe().expect("this program has a path");
    tempfile::tempdir_in(program.parent().expect("and lies in a folder")).expect("a folder is made")
}

fn everything() -> Range<Bytes> {
    Bytes::new()..Bytes::from_static(b"\xff")
}

async fn open(folder: &Path) -> EmbeddedStore {
    EmbeddedStore::open(without_network(), folder).await.expect("the store opens")
}

async fn put(store: &EmbeddedStore, key: &'static str, value: &'static str) -> Result<u64, MetaError> {
    let txn = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
    store.txn(txn).await.map(|result| result.revision)
}

async fn value(store: &EmbeddedStore, key: &str) -> Option<Bytes> {
    store.get(key.as_bytes()).await.expect("it is read").map(|entry| entry.value)
}

#[tokio::test]
async fn conforms() {
    let folder = folder();
    let subject = Subject {
        store: Arc::new(open(folder.path()).await),
        env: without_network(),
        lease_ttl: Duration::from_millis(400),
        keeps_history: false,
    };
    conformance::run(&subject).await;
    subject.store.close().await;
}

/// Deleted, or another file in its place: what is written would be gone with the process, and nobody would know.
#[tokio::test]
async fn a_file_that_lost_its_name_takes_nothing_more() {
    for replaced in [false, true] {
        let folder = folder();
        let store = open(folder.path()).await;
        put(&store, "a", "1").await.unwrap();
        let (path, kept) = (folder.path().join("meta.redb"), folder.path().join("kept"));
        std::fs::copy(&path, &kept).unwrap();
        if replaced {
            std::fs::rename(&kept, &path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        for _ in 0..3 {
            let told = [put(&store, "b", "2").await.unwrap_err(), store.get(b"a").await.unwrap_err()];
            for error in told {
                assert!(
                    matches!(&error, MetaError::Unavailable(why) if why.contains("deleted or replaced")),
                    "{error:?}"
                );
                assert!(error.to_string().contains(&format!("/proc/{}/fd", std::process::id())), "{error}");
            }
        }
        // The last of what it holds is still open.
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let deleted = format!("{} (deleted)", path.display());
        assert!(
            open.into_iter()
                .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new(&deleted)))
        );
        store.close().await;
    }
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let folder = folder();
    let store = open(&folder.path().join("deeper/still")).await;
    let first = put(&store, "a", "1").await.unwrap();
    let second = put(&store, "a", "2").await.unwrap();
    let many: Vec<Op> = (0..100).map(|n| Op::put(format!("k{n:03}"), vec![n; 1000])).collect();
    let third = store.txn(Txn { then: many, ..Txn::default() }).await.unwrap().revision;
    let before = store.range(RangeRead::prefix(b"k")).await.unwrap();
    store.close().await;
    assert!(matches!(put(&store, "a", "3").await, Err(MetaError::Unavailable(_))));
    assert!(matches!(store.get(b"a").await, Err(MetaError::Unavailable(_))));
    store.close().await;

    let store = open(&folder.path().join("deeper/still")).await;
    let entry = store.get(b"a").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.create_revision, entry.mod_revision), (&b"2"[..], first, second));
    assert_eq!(store.range(RangeRead::prefix(b"k")).await.unwrap(), before);
    assert_eq!(before.revision, third);
    // Events of an earlier life are gone, and that is said.
    let mut watch = store.watch(everything(), third).await.unwrap();
    assert_eq!(watch.next().await, Err(MetaError::Compacted));
    let mut watch = store.watch(everything(), third + 1).await.unwrap();
    assert_eq!(put(&store, "b", "1").await.unwrap(), third + 1);
    assert_eq!(watch.next().await.unwrap().len(), 1);
}

/// A store that is dropped, not closed, lets go of the folder by itself.
#[tokio::test]
async fn a_dropped_store_can_be_opened_again() {
    let folder = folder();
    for round in 0..3 {
        let store = open_soon(folder.path()).await;
        assert_eq!(put(&store, "a", "1").await.unwrap(), 2 + round);
    }
}

async fn open_soon(folder: &Path) -> EmbeddedStore {
    for _ in 0..100 {
        match EmbeddedStore::open(without_network(), folder).await {
            Err(OpenError::InUse(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other.expect("the store opens"),
        }
    }
    panic!("the folder stays in use");
}

#[tokio::test]
async fn leased_keys_do_not_survive_a_restart() {
    let folder = folder();
    let store = open(folder.path()).await;
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    let bound = |key: &'static str| Op::Put { key: key.into(), value: "v".into(), lease: Some(lease) };
    let then = vec![bound("a"), bound("b"), bound("c"), Op::put("d", "v")];
    let revision = store.txn(Txn { then, ..Txn::default() }).await.unwrap().revision;
    put(&store, "b", "free").await.unwrap();
    store.close().await;

    let store = open(folder.path()).await;
    let Range { start, end } = everything();
    let page = store.range(RangeRead { start, end, ..RangeRead::default() }).await.unwrap();
    let keys: Vec<&[u8]> = page.entries.iter().map(|entry| &entry.key[..]).collect();
    assert_eq!(keys, [b"b", b"d"]);
    assert_eq!(page.revision, revision + 2);
    assert_eq!(store.keep_alive(lease).await, Err(MetaError::LeaseNotFound));
}

#[tokio::test]
async fn a_second_opener_is_told() {
    let folder = folder();
    let _store = open(folder.path()).await;
    let error = EmbeddedStore::open(without_network(), folder.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::InUse(_)));
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

#[tokio::test]
async fn newer_and_damaged_files_are_refused() {
    let folder = folder();
    open(folder.path()).await.close().await;
    let path = folder.path().join("meta.redb");
    {
        let database = redb::Database::open(&path).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(v1::STATE).unwrap().insert(v1::STATE_FORMAT, v1::FORMAT + 1).unwrap();
        txn.commit().unwrap();
    }
    let error = EmbeddedStore::open(without_network(), folder.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");

    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let error = EmbeddedStore::open(without_network(), folder.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("restore"), "{error}");
}

/// A file that was being created when the power went is no obstacle.
#[tokio::test]
async fn a_half_created_file_is_replaced() {
    let folder = folder();
    std::fs::write(folder.path().join("meta.redb.new"), b"half").unwrap();
    let store = open(folder.path()).await;
    assert_eq!(put(&store, "a", "1").await.unwrap(), 2);
}

/// What a [`FaultyDisk`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Nothing,
    /// Nothing is written any more.
    Writes,
    /// Writes say that the disk is full.
    Full,
    /// Writing panics, as redb does over what is damaged while it is open.
    WritesPanic,
    /// Syncs panic: in the middle of a commit.
    SyncsPanic,
    /// What is written reaches the disk, and then the sync says that it failed.
    SyncsAfterwards,
}

/// A disk that fails when told to.
struct FaultyDisk {
    fails: Arc<AtomicU8>,
    opening_fails: AtomicBool,
}

impl FaultyDisk {
    fn new() -> Arc<Self> {
        Arc::new(Self { fails: Arc::new(AtomicU8::new(0)), opening_fails: AtomicBool::new(false) })
    }

    /// Until a file is opened afresh.
    fn fail(&self, fails: Fails) {
        self.fails.store(fails as u8, Ordering::SeqCst);
    }
}

impl Disk for FaultyDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_folder(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if self.opening_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("planted"));
        }
        self.fail(Fails::Nothing);
        Ok(Arc::new(FaultyFile { file: RealDisk.open(path, mode)?, fails: self.fails.clone() }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        RealDisk.sync_folder(folder)
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        RealDisk.space(folder)
    }
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    fails: Arc<AtomicU8>,
}

impl FaultyFile {
    fn check(&self, of: Fails) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) != of as u8 {
            return Ok(());
        }
        match of {
            Fails::Full => Err(io::ErrorKind::StorageFull.into()),
            Fails::WritesPanic | Fails::SyncsPanic => panic!("planted"),
            _ => Err(io::Error::other("planted")),
        }
    }

    fn check_write(&self) -> io::Result<()> {
        self.check(Fails::Writes)?;
        self.check(Fails::WritesPanic)?;
        self.check(Fails::Full)
    }
}

impl DiskFile for FaultyFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.check_write()?;
        self.file.write_at(parts, offset)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.check_write()?;
        self.file.allocate(size)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.punch_hole(offset, length)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.truncate(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check(Fails::Writes)?;
        self.check(Fails::SyncsPanic)?;
        self.file.sync_data()?;
        self.check(Fails::SyncsAfterwards)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.check(Fails::Writes)?;
        self.check(Fails::SyncsPanic)?;
        self.file.sync_all()?;
        self.check(Fails::SyncsAfterwards)
    }

    fn has_name(&self) -> io::Result<bool> {
        self.file.has_name()
    }

    fn forget_cached(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.forget_cached(offset, length)
    }

    fn lock(&self) -> io::Result<()> {
        self.file.lock()
    }
}

async fn open_faulty(folder: &Path) -> (Arc<FaultyDisk>, EmbeddedStore) {
    let disk = FaultyDisk::new();
    let env = Env { disk: disk.clone(), ..without_network() };
    let store = EmbeddedStore::open(env, folder).await.unwrap();
    put(&store, "a", "1").await.unwrap();
    (disk, store)
}

#[tokio::test]
async fn a_commit_that_did_not_happen_is_not_done() {
    for (fails, full) in [(Fails::Writes, false), (Fails::Full, true)] {
        let folder = folder();
        let (disk, store) = open_faulty(folder.path()).await;
        let mut watch = store.watch(everything(), 3).await.unwrap();
        disk.fail(fails);
        let error = put(&store, "a", "2").await.unwrap_err();
        assert_eq!(matches!(error, MetaError::Full(_)), full, "{error}");
        assert_eq!(matches!(error, MetaError::Unavailable(_)), !full, "{error}");
        // It was opened afresh, and goes on.
        assert_eq!(value(&store, "a").await.unwrap(), "1");
        assert_eq!(put(&store, "b", "1").await, Ok(3));
        let events = watch.next().await.unwrap();
        assert!(matches!(&events[..], [Event::Put(entry)] if entry.key == "b"), "{events:?}");
        store.close().await;
        assert_eq!(value(&open(folder.path()).await, "b").await.unwrap(), "1");
    }
}

#[tokio::test]
async fn a_commit_that_failed_but_happened_is_done() {
    let folder = folder();
    let (disk, store) = open_faulty(folder.path()).await;
    let mut watch = store.watch(everything(), 3).await.unwrap();
    disk.fail(Fails::SyncsAfterwards);
    assert_eq!(put(&store, "a", "2").await, Ok(3));
    assert_eq!(value(&store, "a").await.unwrap(), "2");
    assert_eq!(watch.next().await.unwrap().len(), 1);
    assert_eq!(put(&store, "a", "3").await, Ok(4));
}

/// As everything else that fails below: the caller hears of it, and the store goes on with what the disk holds.
#[tokio::test]
async fn a_panic_below_is_an_error_and_the_file_is_opened_afresh() {
    for fails in [Fails::WritesPanic, Fails::SyncsPanic] {
        let folder = folder();
        let (disk, store) = open_faulty(folder.path()).await;
        let mut watch = store.watch(everything(), 3).await.unwrap();
        disk.fail(fails);
        let answer = put(&store, "a", "2").await;
        assert_eq!(disk.fails.load(Ordering::SeqCst), Fails::Nothing as u8, "it was opened afresh");
        let now = value(&store, "a").await.unwrap();
        match answer {
            // What was written before the panic was a whole commit.
            Ok(revision) => assert_eq!((revision, &now[..]), (3, &b"2"[..])),
            Err(MetaError::Damaged(why)) => assert!(why.contains("planted") && now == "1", "{why}"),
            Err(other) => panic!("{other}"),
        }
        let revision = put(&store, "b", "1").await.unwrap();
        let events = watch.next().await.unwrap();
        assert_eq!(events.last().map(Event::revision), Some(revision));
        store.close().await;
        assert_eq!(value(&open(folder.path()).await, "a").await.unwrap(), now);
    }
    let folder = folder();
    let (file, _) = DatabaseFile::open(without_network().disk, folder.path()).unwrap();
    let fault = file.read(|_| -> Result<(), Fault> { panic!("planted {}", 7) }).unwrap_err();
    assert!(matches!(&fault, Fault::Damaged(why) if why == "planted 7"), "{fault:?}");
    file.close();
}

#[tokio::test]
async fn a_commit_that_cannot_be_looked_up_is_unknown_until_it_can() {
    let folder = folder();
    let (disk, store) = open_faulty(folder.path()).await;
    let mut watch = store.watch(everything(), 3).await.unwrap();
    let lease = store.grant(Duration::from_millis(1)).await.unwrap();
    disk.fail(Fails::SyncsAfterwards);
    disk.opening_fails.store(true, Ordering::SeqCst);
    let answer = put(&store, "a", "2").await;
    assert!(matches!(answer, Err(MetaError::Unknown(_))), "{answer:?}");
    let answer = put(&store, "a", "3").await;
    assert!(matches!(answer, Err(MetaError::Unavailable(_))), "{answer:?}");
    assert!(store.get(b"a").await.is_err());

    disk.opening_fails.store(false, Ordering::SeqCst);
    // Without being asked, within the time between two looks.
    let events = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
    assert!(matches!(&events[..], [Event::Put(entry)] if entry.value == "2"), "{events:?}");
    assert_eq!(value(&store, "a").await.unwrap(), "2");
    assert_eq!(put(&store, "a", "4").await, Ok(4));
    assert_eq!(store.keep_alive(lease).await, Err(MetaError::LeaseNotFound));
}

/// Group commit: many transactions in flight need few syncs, and each still has its own revision.
#[tokio::test]
async fn transactions_in_flight_share_commits() {
    const TASKS: u64 = 64;
    const EACH: u64 = 10;
    let folder = folder();
    let store = open(folder.path()).await;
    let write = async |task| {
        for n in 0..EACH {
            let txn = Txn { then: vec![Op::put(format!("{task}/{n}"), "v")], ..Txn::default() };
            store.txn(txn).await.unwrap();
        }
    };
    futures::future::join_all((0..TASKS).map(write)).await;
    store.close().await;
    let (file, position) = DatabaseFile::open(without_network().disk, folder.path()).unwrap();
    assert_eq!(position.revision, 1 + TASKS * EACH);
    assert!(position.commits <= TASKS * EACH / 8, "{} commits", position.commits);
    file.close();
}
