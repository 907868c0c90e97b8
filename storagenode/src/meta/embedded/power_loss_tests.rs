//! The embedded store on a disk whose power goes at any moment: what was not synced may be there, torn to sectors and in
//! any order, or not.

use std::{
    collections::BTreeMap,
    io,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::env::{BoxFuture, Disk, DiskFile, DiskSpace, OpenMode, Threads, Work, real::without_network};

const SECTOR_BYTES: usize = 512;

/// A disk in memory. Cheap to clone: all clones are the same disk.
#[derive(Clone)]
struct FragileDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    /// So many more calls work; then the power is off.
    calls_left: usize,
    /// Syncs do nothing.
    lies: bool,
}

#[derive(Default, Clone)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors that were written since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl State {
    fn call(&mut self) -> io::Result<()> {
        self.calls_left = self.calls_left.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        Ok(())
    }
}

impl FragileDisk {
    fn new(lies: bool) -> Self {
        Self { state: Arc::new(Mutex::new(State { lies, ..State::default() })) }
    }

    fn call<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        state.call()?;
        work(&mut state)
    }

    /// Power comes back, for so many calls. What was not synced is decided by chance.
    fn power_on(&self, random: &mut StdRng, calls: usize) {
        let mut state = self.state.lock();
        state.calls_left = calls;
        if random.random() {
            state.names = state.synced_names.clone();
        }
        state.synced_names = state.names.clone();
        for file in &mut state.files {
            let size = if random.random() { file.now.len() } else { file.synced.len() };
            let survives = [0.0, 0.2, 0.8, 1.0][random.random_range(0..4)];
            let mut content = std::mem::take(&mut file.synced);
            content.resize(size.max(content.len()), 0);
            for (offset, bytes) in file.unsynced.drain(..) {
                if random.random_bool(survives) && offset + bytes.len() <= content.len() {
                    content[offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
            }
            content.truncate(size);
            *file = Content { now: content.clone(), synced: content, unsynced: Vec::new() };
        }
    }
}

impl Disk for FragileDisk {
    fn create_folder(&self, _path: &Path) -> io::Result<()> {
        self.call(|_| Ok(()))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let index = self.call(|state| match (state.names.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(index), _) => Ok(*index),
            (None, OpenMode::CreateNew) => {
                state.files.push(Content::default());
                state.names.insert(path.to_owned(), state.files.len() - 1);
                Ok(state.files.len() - 1)
            }
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        })?;
        Ok(Arc::new(FragileFile { disk: self.clone(), index }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let name = |path: &PathBuf| Some(path.strip_prefix(folder).ok()?.to_str()?.to_owned());
        self.call(|state| Ok(state.names.keys().filter_map(name).collect()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|state| {
            let index = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), index);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(|state| state.names.remove(path).map(|_| ()).ok_or(io::ErrorKind::NotFound.into()))
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        self.call(|state| {
            if !state.lies {
                state.synced_names = state.names.clone();
            }
            Ok(())
        })
    }

    fn space(&self, _folder: &Path) -> io::Result<DiskSpace> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct FragileFile {
    disk: FragileDisk,
    index: usize,
}

impl FragileFile {
    fn with<T>(&self, work: impl FnOnce(&mut Content) -> io::Result<T>) -> io::Result<T> {
        self.disk.call(|state| work(&mut state.files[self.index]))
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.with(|file| {
            file.now.resize(size as usize, 0);
            Ok(())
        })
    }

    /// `fdatasync` here leaves the size behind: more cruel than Linux.
    fn sync(&self, with_size: bool) -> io::Result<()> {
        self.disk.call(|state| {
            if state.lies {
                return Ok(());
            }
            let file = &mut state.files[self.index];
            let size = if with_size { file.now.len() } else { file.synced.len() };
            file.synced = file.now.clone();
            file.synced.resize(size, 0);
            file.unsynced.clear();
            Ok(())
        })
    }
}

impl DiskFile for FragileFile {
    fn size(&self) -> io::Result<u64> {
        self.with(|file| Ok(file.now.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|file| {
            let range = offset as usize..offset as usize + buffer.len();
            buffer.copy_from_slice(file.now.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|file| {
            let (mut offset, bytes) =
                (offset as usize, parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>());
            if file.now.len() < offset + bytes.len() {
                file.now.resize(offset + bytes.len(), 0);
            }
            for sector in bytes.chunks(SECTOR_BYTES) {
                file.now[offset..offset + sector.len()].copy_from_slice(sector);
                file.unsynced.push((offset, sector.to_vec()));
                offset += sector.len();
            }
            Ok(())
        })
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.resize(size)
    }

    fn punch_hole(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.resize(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(false)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(true)
    }

    fn forget_cached(&self, _offset: u64, _length: u64) -> io::Result<()> {
        self.with(|_| Ok(()))
    }

    fn lock(&self) -> io::Result<()> {
        self.with(|_| Ok(()))
    }
}

/// Runs work in place, so that one seed is one story.
struct InPlace;

impl Threads for InPlace {
    fn run(&self, work: Work) -> BoxFuture<'static, ()> {
        work();
        Box::pin(std::future::ready(()))
    }
}

/// What writers know of a pair of keys that every transaction changes together: the last value that was answered, and
/// those that were tried since.
#[derive(Default)]
struct Pair {
    answered: Option<String>,
    tried: Vec<Option<String>>,
}

const PAIRS: usize = 8;

/// Several lives of one store, each ended by the power. Gives what was wrong.
fn live(seed: u64, lies: bool) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = FragileDisk::new(lies);
    let mut pairs: Vec<Pair> = (0..PAIRS).map(|_| Pair::default()).collect();
    for life in 0..5 {
        // The last life has power enough.
        let calls = if life == 4 { usize::MAX } else { random.random_range(1..600) };
        disk.power_on(&mut random, calls);
        let env = Env { disk: Arc::new(disk.clone()), threads: Arc::new(InPlace), ..without_network() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let lived = runtime.block_on(async {
            let store = match EmbeddedStore::open(env, Path::new("/folder")).await {
                Ok(store) => store,
                // While the power was going.
                Err(OpenError::Io { .. }) if life < 4 => return Ok(()),
                Err(error) => return Err(format!("life {life}: {error}")),
            };
            for (index, pair) in pairs.iter_mut().enumerate() {
                check(&store, index, pair).await.map_err(|why| format!("life {life}: {why}"))?;
            }
            let value_bytes = random.random_range(0..3000);
            let lives = pairs
                .iter_mut()
                .enumerate()
                .map(|(index, pair)| write(&store, life, index, pair, value_bytes));
            futures::future::join_all(lives).await;
            Ok(())
        });
        lived?;
    }
    Ok(())
}

async fn check(store: &EmbeddedStore, index: usize, pair: &mut Pair) -> Result<(), String> {
    let read = async |side: &str| match store.get(format!("{side}/{index}").as_bytes()).await {
        Ok(found) => Ok(found.map(|entry| String::from_utf8_lossy(&entry.value).trim_end().to_owned())),
        Err(_) => Err(()),
    };
    // No power for reading: a later life looks.
    let (Ok(left), Ok(right)) = (read("left").await, read("right").await) else { return Ok(()) };
    if left != right {
        return Err(format!("half a transaction: {left:?} and {right:?}"));
    }
    if left != pair.answered && !pair.tried.contains(&left) {
        return Err(format!("{left:?}, but {:?} was answered, {:?} tried since", pair.answered, pair.tried));
    }
    *pair = Pair { answered: left, tried: Vec::new() };
    Ok(())
}

async fn write(store: &EmbeddedStore, life: usize, index: usize, pair: &mut Pair, value_bytes: usize) {
    for n in 0..12 {
        let (left, right) = (format!("left/{index}"), format!("right/{index}"));
        let value = (n % 5 != 4).then(|| format!("{life}-{n}"));
        let then = match &value {
            Some(value) => {
                let padded = format!("{value:value_bytes$}");
                vec![Op::put(left, padded.clone()), Op::put(right, padded)]
            }
            None => vec![Op::delete(left), Op::delete(right)],
        };
        match store.txn(Txn { then, ..Txn::default() }).await {
            Ok(_) => *pair = Pair { answered: value, tried: Vec::new() },
            Err(MetaError::Unknown(_)) => pair.tried.push(value),
            // Nothing has happened.
            Err(_) => {}
        }
    }
}

fn first_failure(seeds: std::ops::Range<u64>, lies: bool) -> Option<String> {
    seeds.into_iter().find_map(|seed| {
        let lived = std::panic::catch_unwind(AssertUnwindSafe(|| live(seed, lies)));
        let why = match lived {
            Ok(Ok(())) => return None,
            Ok(Err(why)) => why,
            Err(_) => "a panic".to_owned(),
        };
        Some(format!("seed {seed}: {why}"))
    })
}

#[test]
fn what_was_answered_survives_the_power() {
    assert_eq!(first_failure(0..150, false), None);
}

/// A test of the test: it must notice syncs that do nothing.
#[test]
fn a_disk_that_lies_is_noticed() {
    assert!(first_failure(0..150, true).is_some());
}
