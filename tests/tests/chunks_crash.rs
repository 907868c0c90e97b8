//! The chunk store on a disk that loses, tears and reorders what was not synced: what was acknowledged must stay.
//!
//! Each seed is one history: a store is opened, written to, cut off at some change, sync or await, and opened again, a few
//! times. Beside it runs a list of promises: what the store said to its callers. The last tests plant bugs and expect
//! that this very check finds them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_node::chunks::{
    ChunkStore, Compaction, OpenError, Presence, Purpose, PutError, PutOutcome, ReadError, Scope, Sighting,
    StoreOptions, Tombstone,
};
use cairn_node::env::{Disk as _, OpenMode};
use cairn_placement::PgId;
use cairn_tests::sim::{
    disk::{Fault, Operation, SimDisk},
    env::{SimTime, env},
    store::{
        IDS, TOMBSTONE_TICKS, chunk, id, in_store, is_whole, open_store, open_store_with, options, segments,
        tombstone,
    },
};
use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

const ROUNDS: usize = 5;
const OPERATIONS: usize = 40;

/// What the store has said about one id.
#[derive(Debug, Clone, Copy, Default)]
struct Promise {
    put_tried: bool,
    bury_tried: bool,
    stored: bool,
    buried: bool,
    /// When it was first tried to bury it, and when that was last acknowledged: the tombstone is as young at least.
    first_bury: Option<u32>,
    acknowledged_bury: Option<u32>,
    /// It was tried to put it again when its tombstone could be forgotten.
    put_again: bool,
}

impl Promise {
    fn bury(&mut self, tick: u32) {
        self.bury_tried = true;
        self.first_bury.get_or_insert(tick);
    }

    /// Its tombstone may be forgotten.
    fn is_old(&self, tick: u32) -> bool {
        let buried = self.acknowledged_bury.or(self.first_bury);
        self.buried && buried.is_some_and(|buried| tick >= buried + TOMBSTONE_TICKS)
    }
}

#[derive(Debug, Clone, Copy)]
enum Request {
    Put(u32),
    Bury(u32, u32),
    /// Put and buried at once: both are in one group, perhaps.
    Both(u32),
    Read(u32),
    /// Empties a segment; and removes those that were emptied.
    Compact(bool),
}

#[derive(Debug)]
enum Answer {
    Put(u32, Result<PutOutcome, PutError>),
    Bury(u32, u32, Result<(), PutError>),
    Read(u32, Result<bool, ReadError>),
    Compacted(Compaction, u64),
}

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The power goes at some change.
    PowerCut,
    /// The process is killed at some await; the cache stays.
    Kill,
    /// The process is killed at some change, between a write and its sync perhaps; the cache stays.
    KillAtChange,
    /// A clean shutdown, then a power cut.
    Close,
}

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    None,
    /// A start does not sync what an earlier life wrote.
    UnsyncedRecovery,
    /// Deletions are forgotten before their time.
    ShortMemory,
}

struct History {
    seed: u64,
    plant: Plant,
    random: StdRng,
    disk: SimDisk,
    promises: HashMap<u32, Promise>,
    /// Faults may cost chunks that were acknowledged on other occasions; then only wrong answers are failures.
    opens: u64,
    /// The coordinator's minutes.
    tick: u32,
    /// In this round the minutes go on so far that its own deletions get old.
    jumps: bool,
    /// Deletions that were no longer remembered at a start.
    forgotten: u64,
    /// Segments that were emptied, and bytes of segments that were removed.
    emptied: u64,
    freed: u64,
    /// Segments that were there at a start, and those of them that were not read through.
    opened: u64,
    hints: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            plant: Plant::None,
            random: StdRng::seed_from_u64(seed),
            disk: SimDisk::new(64 << 20),
            promises: HashMap::new(),
            opens: 0,
            tick: 1,
            jumps: false,
            forgotten: 0,
            emptied: 0,
            freed: 0,
            opened: 0,
            hints: 0,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        for round in 0..ROUNDS {
            let ends = [End::PowerCut, End::PowerCut, End::Kill, End::KillAtChange, End::Close];
            let end = *ends.choose(&mut self.random).expect("not empty");
            self.round(end).map_err(|error| format!("seed {} round {round} {end:?}: {error}", self.seed))?;
        }
        Ok(())
    }

    fn round(&mut self, end: End) -> Result<(), String> {
        // A cut while the store is being opened, now and then.
        if self.random.random_bool(0.3) {
            self.disk.cut_power_after(self.random.random_range(0..12));
            let _ = SimTime::default().runtime().block_on(self.open());
            self.disk.crash(&mut self.random);
        }
        if self.random.random_bool(0.3) {
            self.spoil_hints();
        }
        let (answers, tick) = SimTime::default().runtime().block_on(async {
            let store = self.open().await.map_err(|error| format!("does not open: {error}"))?;
            self.check(&store).await?;
            self.tick += *[0, 1, 4, 6, 12].choose(&mut self.random).expect("not empty");
            store.saw(Sighting { tick: self.tick.into(), ..Sighting::default() });
            self.jumps = self.random.random_bool(0.3);
            if matches!(end, End::PowerCut | End::KillAtChange) {
                self.disk.cut_power_after(self.random.random_range(0..120));
            }
            if end != End::PowerCut && self.random.random_bool(0.4) {
                self.inject_faults();
            }
            let patience = if end == End::Kill { self.random.random_range(1..400) } else { usize::MAX };
            let answers = self.requests(&store, patience).await;
            if self.random.random_bool(0.5) {
                self.write_hints_back();
            }
            let tick = self.tick;
            self.tick += if self.jumps { TOMBSTONE_TICKS } else { 0 };
            if end == End::Close {
                store.close().await;
            }
            Ok::<_, String>((answers, tick))
        })?;
        self.note(answers, tick)?;
        if matches!(end, End::Kill | End::KillAtChange) {
            self.disk.kill();
        } else {
            self.disk.crash(&mut self.random);
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<ChunkStore, OpenError> {
        self.opens += 1;
        let seed = self.seed << 16 | self.opens;
        if self.plant == Plant::UnsyncedRecovery {
            self.disk.lie_about_in(Operation::Sync, ".seg");
        }
        let tombstone_ticks = if self.plant == Plant::ShortMemory { 3 } else { TOMBSTONE_TICKS };
        let opened = open_store_with(seed, &self.disk, StoreOptions { tombstone_ticks, ..options() }).await;
        if self.plant == Plant::UnsyncedRecovery {
            self.disk.tell_the_truth();
        }
        Ok(opened?.0)
    }

    fn hints(&self) -> Vec<(PathBuf, u64)> {
        let is_hint = |path: &PathBuf| path.extension().is_some_and(|end| end == "hint");
        self.disk.files().into_iter().filter(|(path, _)| is_hint(path)).collect()
    }

    /// What the kernel does sooner or later with what nobody syncs.
    fn write_hints_back(&self) {
        for (path, _) in self.hints() {
            let _ = self.disk.open(&path, OpenMode::ReadWrite).and_then(|file| file.sync_all());
            let _ = self.disk.sync_folder(path.parent().expect("a folder"));
        }
    }

    /// Does to the hints what must not matter: one rots, goes, or comes to be in another one's place.
    fn spoil_hints(&mut self) {
        let hints = self.hints();
        let Some((path, size)) = hints.choose(&mut self.random) else { return };
        match self.random.random_range(0..4) {
            0 => self.disk.remove(path).expect("it is there"),
            1 => {
                let (other, _) = hints.choose(&mut self.random).expect("not empty");
                self.disk.rename(path, other).expect("it is there");
            }
            _ if *size == 0 => {}
            _ => {
                let flipped = 1 << self.random.random_range(0..8);
                self.disk.rot(path, self.random.random_range(0..*size), flipped);
            }
        }
    }

    fn inject_faults(&mut self) {
        for _ in 0..self.random.random_range(1..4) {
            let operation = *[
                Operation::Sync,
                Operation::Sync,
                Operation::Write,
                Operation::Allocate,
                Operation::SyncFolder,
            ]
            .choose(&mut self.random)
            .expect("not empty");
            self.disk.fail(Fault {
                operation,
                path: ["segments", "segments", "hints"]
                    .choose(&mut self.random)
                    .expect("not empty")
                    .to_string(),
                after: self.random.random_range(0..10),
                times: self.random.random_range(1..3),
                os_error: libc::EIO,
            });
        }
    }

    /// Sends requests at once; gives the answers that came before patience, counted in awaits, ran out.
    async fn requests(&mut self, store: &ChunkStore, patience: usize) -> Vec<Answer> {
        let answers = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for _ in 0..OPERATIONS {
            let request = match self.random.random_range(0..11) {
                10 => Request::Compact(self.random.random_bool(0.5)),
                0..=4 => Request::Put(self.random.random_range(0..IDS)),
                5..=6 => Request::Bury(self.random.random_range(0..IDS), self.random.random_range(0..IDS)),
                7 => Request::Both(self.random.random_range(0..IDS)),
                _ => Request::Read(self.random.random_range(0..IDS)),
            };
            match request {
                Request::Put(n) => self.promise_put(n),
                Request::Bury(n, m) => {
                    self.promises.entry(n).or_default().bury(self.tick);
                    self.promises.entry(m).or_default().bury(self.tick);
                }
                Request::Both(n) => {
                    self.promise_put(n);
                    self.promises.entry(n).or_default().bury(self.tick);
                }
                Request::Read(_) | Request::Compact(_) => {}
            }
            let (delay, tick) = (self.random.random_range(0..60), self.tick);
            let later = if self.jumps { tick + TOMBSTONE_TICKS } else { tick };
            let (store, answers) = (store.clone(), answers.clone());
            tasks.push(async move {
                for _ in 0..delay {
                    tokio::task::yield_now().await;
                }
                let put = async |n| Answer::Put(n, store.put(chunk(n), Purpose::Write).await);
                let tombstone = |n| Tombstone { tick, ..tombstone(n) };
                let bury =
                    async |n, m| Answer::Bury(n, m, store.bury(vec![tombstone(n), tombstone(m)]).await);
                let note = |answer| answers.borrow_mut().push(answer);
                match request {
                    Request::Put(n) => note(put(n).await),
                    Request::Bury(n, m) => note(bury(n, m).await),
                    Request::Both(n) => {
                        tokio::join!(async { note(put(n).await) }, async { note(bury(n, n).await) });
                    }
                    Request::Read(n) => note(Answer::Read(n, is_whole(&store, n).await)),
                    Request::Compact(remove) => {
                        store.saw(Sighting { tick: later.into(), ..Sighting::default() });
                        store.forget_old_tombstones().await;
                        let compaction = store.compact().await;
                        let rest = if remove { Duration::ZERO } else { Duration::MAX };
                        note(Answer::Compacted(compaction, store.remove_emptied(rest).await));
                    }
                }
            });
        }
        tokio::select! {
            _ = join_all(tasks) => {}
            () = async { for _ in 0..patience { tokio::task::yield_now().await } } => {}
        }
        answers.take()
    }

    fn promise_put(&mut self, n: u32) {
        let promise = self.promises.entry(n).or_default();
        promise.put_tried = true;
        promise.put_again |= self.jumps || promise.is_old(self.tick);
    }

    /// Deletions that were acknowledged have this tick.
    fn note(&mut self, answers: Vec<Answer>, tick: u32) -> Result<(), String> {
        for answer in answers {
            match answer {
                Answer::Compacted(compaction, freed) => {
                    self.emptied += u64::from(matches!(compaction, Compaction::Emptied { .. }));
                    self.freed += freed;
                }
                Answer::Put(n, Ok(_)) => self.promises.entry(n).or_default().stored = true,
                Answer::Put(n, Err(PutError::Buried)) if self.promises[&n].bury_tried => {}
                Answer::Put(_, Err(PutError::Failed(_) | PutError::Closed)) => {}
                Answer::Bury(n, m, Ok(())) => {
                    for n in [n, m] {
                        let promise = self.promises.entry(n).or_default();
                        promise.buried = true;
                        promise.put_again &= self.jumps;
                        promise.acknowledged_bury = Some(tick);
                    }
                }
                Answer::Bury(_, _, Err(PutError::Failed(_) | PutError::Closed)) => {}
                Answer::Read(n, Ok(true)) if self.promises[&n].put_tried => {}
                Answer::Read(_, Err(ReadError::NotFound | ReadError::Buried | ReadError::Failed(_))) => {}
                // The power went while it was read: nobody can tell that from damage.
                Answer::Read(_, Err(ReadError::Corrupt(reason))) if reason.contains("os error 5") => {}
                // Torn by a crash before anybody was told that it is here.
                Answer::Read(n, Err(ReadError::Corrupt(_))) if !self.promises[&n].stored => {}
                other => return Err(format!("a wrong answer: {other:?}")),
            }
        }
        Ok(())
    }

    /// Compares a store that was just opened with all promises. What it shows now is a promise too.
    async fn check(&mut self, store: &ChunkStore) -> Result<(), String> {
        let report = store.recovery();
        if !report.corrupt.is_empty() {
            return Err(format!("damage where there is none: {report:?}"));
        }
        self.hints += report.hints;
        self.opened += report.segments;
        for (n, promise) in &mut self.promises {
            let presence = store.contains(id(*n));
            let is_old = promise.is_old(self.tick);
            match presence {
                Presence::Present if promise.buried && !(is_old && promise.put_again) => {
                    return Err(format!("{n} was buried and is back"));
                }
                Presence::Present if !promise.put_tried => return Err(format!("{n} was never put")),
                Presence::Present => match is_whole(store, *n).await {
                    Ok(true) => promise.stored = true,
                    other => return Err(format!("{n} is in the inventory, but reads {other:?}")),
                },
                Presence::Buried if !promise.bury_tried => return Err(format!("{n} was never buried")),
                Presence::Buried => promise.buried = true,
                Presence::Absent if is_old => {
                    self.forgotten += 1;
                    // What was put again is another matter: perhaps it is torn.
                    promise.stored = false;
                }
                Presence::Absent if promise.buried => return Err(format!("the tombstone of {n} is lost")),
                Presence::Absent if promise.stored => {
                    return Err(format!("{n} was acknowledged and is lost"));
                }
                Presence::Absent => {}
            }
        }
        let usage = store.usage();
        let lines = store.inventory(0, PgId(0), Scope::ALL, None, usize::MAX);
        if lines.len() as u64 != usage.chunks + usage.tombstones {
            return Err(format!("{} lines, {usage:?}", lines.len()));
        }
        Ok(())
    }
}

/// The first seed that fails, and how.
fn first_failure(seeds: std::ops::Range<u64>, prepare: impl Fn(&mut History)) -> Option<String> {
    seeds.into_iter().find_map(|seed| {
        let mut history = History::new(seed);
        prepare(&mut history);
        history.run().err()
    })
}

#[test]
fn what_was_acknowledged_stays() {
    let seeds = std::env::var("CAIRN_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(400);
    let (mut emptied, mut freed, mut forgotten, mut hints, mut opened) = (0, 0, 0, 0, 0);
    let first: u64 = std::env::var("CAIRN_FIRST").ok().map_or(0, |f| f.parse().unwrap());
    for seed in first..seeds {
        let mut history = History::new(seed);
        assert_eq!(history.run(), Ok(()));
        (emptied, freed) = (emptied + history.emptied, freed + history.freed);
        forgotten += history.forgotten;
        (hints, opened) = (hints + history.hints, opened + history.opened);
    }
    println!("{forgotten} deletions were forgotten, {hints} of {opened} segments were not read through");
    assert!(hints > opened / 10, "hints are not used: {hints} of {opened}");
    println!("{emptied} segments emptied, {freed} bytes of segments removed in {seeds} histories");
    assert!(emptied > 2 * seeds && freed > seeds * 30_000, "compaction is not tried: {emptied} {freed}");
    assert!(forgotten > seeds / 10, "deletions are never forgotten: {forgotten}");
}

/// The check must find a store that does not sync its groups.
#[test]
fn a_forgotten_fdatasync_is_found() {
    let failure =
        first_failure(0..100, |history| history.disk.lie_about(Operation::Sync)).expect("must be found");
    assert!(["lost", "wrong answer", "does not open"].iter().any(|how| failure.contains(how)), "{failure}");
}

/// One of all that a life makes is enough.
#[test]
fn one_forgotten_fdatasync_of_a_segment_is_found() {
    let forget =
        |history: &mut History| history.disk.lie_once(Operation::Sync, "/segments/", history.seed % 12);
    let failure = first_failure(0..400, forget).expect("must be found");
    assert!(["lost", "wrong answer", "does not open"].iter().any(|how| failure.contains(how)), "{failure}");
}

/// The check must find a store that does not sync its folders.
#[test]
fn a_forgotten_folder_sync_is_found() {
    let failure = first_failure(0..100, |history| history.disk.lie_about(Operation::SyncFolder))
        .expect("must be found");
    assert!(failure.contains("lost") || failure.contains("does not open"), "{failure}");
}

#[test]
fn a_start_that_does_not_sync_is_found() {
    let failure =
        first_failure(0..400, |history| history.plant = Plant::UnsyncedRecovery).expect("must be found");
    assert!(["lost", "damage", "back"].iter().any(|how| failure.contains(how)), "{failure}");
}

#[test]
fn a_deletion_that_is_forgotten_too_early_is_found() {
    let failure = first_failure(0..400, |history| history.plant = Plant::ShortMemory).expect("must be found");
    assert!(failure.contains("tombstone") || failure.contains("is back"), "{failure}");
}

#[test]
fn one_fdatasync_serves_many_writers() {
    let disk = SimDisk::new(64 << 20);
    SimTime::default().runtime().block_on(async {
        let store = open_store(1, &disk).await.unwrap().0;
        store.put(chunk(0), Purpose::Write).await.unwrap();
        let before = disk.counts().syncs;
        let puts = (1..40).filter(|n| n % 11 < 4).map(|n| store.put(chunk(n), Purpose::Write));
        let stored = join_all(puts).await;
        assert!(stored.len() > 12 && stored.iter().all(|outcome| *outcome == Ok(PutOutcome::Stored)));
        let syncs = disk.counts().syncs - before;
        assert!(syncs <= 3, "{syncs} syncs for {} chunks", stored.len());
    });
}

#[test]
fn a_failed_sync_acknowledges_nothing_and_the_next_segment_takes_over() {
    let disk = SimDisk::new(64 << 20);
    SimTime::default().runtime().block_on(async {
        let store = open_store(1, &disk).await.unwrap().0;
        store.put(chunk(1), Purpose::Write).await.unwrap();
        disk.fail_once(Operation::Sync, ".seg");
        assert!(matches!(store.put(chunk(2), Purpose::Write).await, Err(PutError::Failed(_))));
        assert_eq!(store.contains(id(2)), Presence::Absent);
        assert_eq!(store.put(chunk(3), Purpose::Write).await, Ok(PutOutcome::Stored));
        assert_eq!(segments(&disk).len(), 2);
        assert_eq!(is_whole(&store, 1).await, Ok(true));
        assert_eq!(store.counters().failed_groups, 1);
        assert_eq!(store.put(chunk(2), Purpose::Write).await, Ok(PutOutcome::Stored));
    });
}

/// A write error makes the store look at its earlier chunks on the medium; what rotted there leaves the inventory.
#[test]
fn after_a_failed_write_earlier_chunks_are_read_again() {
    let disk = SimDisk::new(64 << 20);
    SimTime::default().runtime().block_on(async {
        let store = open_store(1, &disk).await.unwrap().0;
        store.put(chunk(1), Purpose::Write).await.unwrap();
        store.put(chunk(2), Purpose::Write).await.unwrap();
        disk.rot(&segments(&disk)[0].0, 4096 + 76 + 5, 1);
        disk.fail_once(Operation::Write, ".seg");
        assert!(store.put(chunk(3), Purpose::Write).await.is_err());
        assert_eq!(store.put(chunk(4), Purpose::Write).await, Ok(PutOutcome::Stored));
        assert_eq!(store.contains(id(1)), Presence::Absent);
        assert_eq!(store.contains(id(2)), Presence::Present);
        assert_eq!(store.counters().corrupt_chunks, 1);
    });
}

/// Before the durable end, damage is named and the rest is found; a damaged tail that nobody was told of is not damage.
#[test]
fn rot_is_named_and_the_rest_is_found() {
    let disk = SimDisk::new(64 << 20);
    SimTime::default().runtime().block_on(async {
        let store = open_store(1, &disk).await.unwrap().0;
        for n in [1, 2, 3] {
            store.put(chunk(n), Purpose::Write).await.unwrap();
        }
        store.close().await;
    });
    let segment = segments(&disk)[0].0.clone();
    // The header of the second record.
    let second = 4096 + (76 + 100 + 16u64).next_multiple_of(8);
    disk.rot(&segment, second + 30, 0x40);
    disk.rot(&segment, second + 35, 0x02);
    SimTime::default().runtime().block_on(async {
        let store = open_store(2, &disk).await.unwrap().0;
        let corrupt = &store.recovery().corrupt;
        assert_eq!(corrupt.len(), 1, "{corrupt:?}");
        assert_eq!((corrupt[0].range.start, corrupt[0].seems), (second, Some(id(2))));
        assert_eq!(store.contains(id(2)), Presence::Absent);
        assert_eq!(is_whole(&store, 1).await, Ok(true));
        assert_eq!(is_whole(&store, 3).await, Ok(true));
        assert_eq!(store.put(chunk(2), Purpose::Repair).await, Ok(PutOutcome::Stored));
        assert_eq!(is_whole(&store, 2).await, Ok(true));
    });
}

#[test]
fn what_a_killed_process_left_in_the_cache_is_made_durable_before_it_is_shown() {
    for seed in 0..20 {
        let disk = SimDisk::new(64 << 20);
        in_store(&disk, async |store| {
            store.put(chunk(1), Purpose::Write).await.unwrap();
            // The next group is written and not synced.
            disk.cut_power_after(0);
            assert!(store.put(chunk(2), Purpose::Write).await.is_err());
        });
        disk.kill();
        in_store(&disk, async |store| assert_eq!(store.contains(id(2)), Presence::Present));
        disk.crash(&mut StdRng::seed_from_u64(seed));
        in_store(&disk, async |store| assert_eq!(is_whole(&store, 2).await, Ok(true), "seed {seed}"));
    }
}

#[test]
fn a_group_whose_sync_failed_is_not_believed_from_the_cache() {
    let disk = SimDisk::new(64 << 20);
    in_store(&disk, async |store| {
        store.put(chunk(1), Purpose::Write).await.unwrap();
        disk.fail_once(Operation::Sync, ".seg");
        assert!(store.put(chunk(2), Purpose::Write).await.is_err());
    });
    disk.kill();
    in_store(&disk, async |store| {
        assert_eq!(is_whole(&store, 1).await, Ok(true));
        assert_eq!(store.contains(id(2)), Presence::Absent);
    });
}

/// Wherever a start is killed, what a later one acknowledges has a name that survives the power.
#[test]
fn folders_that_a_killed_process_made_are_synced_by_the_next() {
    let nested = StoreOptions { folder: PathBuf::from("/disks/one/cairn/n1"), ..options() };
    let open =
        |disk: &SimDisk, seed| ChunkStore::open(env(seed, disk.clone(), &SimTime::default()), nested.clone());
    for changes in 0..25 {
        let disk = SimDisk::new(64 << 20);
        disk.cut_power_after(changes);
        SimTime::default().runtime().block_on(async { drop(open(&disk, 1).await) });
        disk.kill();
        SimTime::default().runtime().block_on(async {
            let store = open(&disk, 2).await.expect("the store opens").0;
            store.put(chunk(1), Purpose::Write).await.unwrap();
        });
        disk.crash(&mut StdRng::seed_from_u64(changes));
        SimTime::default().runtime().block_on(async {
            let store = open(&disk, 3).await.expect("the store opens").0;
            assert_eq!(is_whole(&store, 1).await, Ok(true), "killed after {changes} changes");
        });
    }
}

/// Lost records and lost files leave nothing to find but the mark that tells of them, in the next segment.
#[test]
fn a_lost_end_and_a_lost_segment_are_named() {
    let disk = SimDisk::new(64 << 20);
    for round in 0..4 {
        in_store(&disk, async |store| {
            assert_eq!(store.recovery().corrupt, []);
            store.put(chunk(round), Purpose::Write).await.unwrap();
        });
        disk.kill();
    }
    let paths: Vec<PathBuf> = segments(&disk).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths.len(), 4);
    disk.remove(&paths[0]).unwrap();
    let emptied = disk.open(&paths[2], OpenMode::ReadWrite).unwrap();
    emptied.punch_hole(4096, emptied.size().unwrap() - 4096).unwrap();
    in_store(&disk, async |store| {
        let mut named: Vec<_> =
            store.recovery().corrupt.iter().map(|corrupt| corrupt.segment.clone()).collect();
        named.sort();
        let name = |n: usize| paths[n].file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(named, [name(0), name(2)]);
        assert_eq!(store.usage().chunks, 2);
    });
}

#[test]
fn a_full_disk_refuses_writes_and_still_deletes() {
    let disk = SimDisk::new(4 << 20);
    SimTime::default().runtime().block_on(async {
        let store = open_store(1, &disk).await.unwrap().0;
        let big: Vec<u32> = (0..400).filter(|n| n % 11 == 10).collect();
        let mut stored = Vec::new();
        for n in &big {
            match store.put(chunk(*n), Purpose::Write).await {
                Ok(_) => stored.push(*n),
                Err(error) => {
                    assert_eq!(error, PutError::Full);
                    break;
                }
            }
        }
        assert!(stored.len() > 20 && stored.len() < big.len(), "{}", stored.len());
        let mut others = big[stored.len()..].iter().copied();
        let mut repaired = 0;
        let last = loop {
            let next = others.next().expect("the disk gets full");
            match store.put(chunk(next), Purpose::Repair).await {
                Ok(_) => repaired += 1,
                Err(error) => break (next, error),
            }
        };
        assert_eq!(last.1, PutError::Full);
        assert!((1..=3).contains(&repaired), "repair uses half of the reserve: {repaired}");
        store.bury(stored.iter().take(5).map(|n| tombstone(*n)).collect()).await.unwrap();
        // The space comes back once the tombstones are known to be durable: with the next group.
        store.bury(vec![tombstone(9999)]).await.unwrap();
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.put(chunk(last.0), Purpose::Write).await, Ok(PutOutcome::Stored));
    });
}

#[test]
fn a_second_process_is_kept_out() {
    let disk = SimDisk::new(64 << 20);
    SimTime::default().runtime().block_on(async {
        let (store, identity) = open_store(1, &disk).await.unwrap();
        assert_eq!(identity.boot, 1);
        assert!(matches!(open_store(2, &disk).await.err(), Some(OpenError::Locked { .. })));
        store.close().await;
        let (_, again) = open_store(3, &disk).await.unwrap();
        assert_eq!((again.boot, again.incarnation), (2, identity.incarnation));
    });
    assert!(disk.files().iter().any(|(path, _)| path == Path::new("/disk/data/identity")));
}
