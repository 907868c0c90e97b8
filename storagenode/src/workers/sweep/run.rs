//! The sweep in action: raises the epoch, reads records, asks nodes, keeps the quarantine.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cairn_placement::{ClusterMap, Generation, PgId};
use parking_lot::Mutex;
use tracing::{debug, error, info, warn};

use super::{
    super::{
        inventories, records,
        truth::plan::{Tally, portions},
    },
    plan::{self, Remains, Step, Unnamed},
};
use crate::{
    chunks::Scope,
    cluster::{ClusterState, coordinate::Term},
    meta::{
        Compare, Event, Freshness, KeyValue, MetaError, Op, RangeRead, SharedMeta, Txn, Watch,
        keys::{
            self, collect::CollectRecord, file::FileRecord, quarantine::QuarantineRecord, sweep::SweepRecord,
        },
    },
    replication::write::Writer,
};

/// Chunks listed at a time: bounds memory, at about 100 bytes each.
const CHUNKS_A_PORTION: u64 = 100_000;
/// Generations that one sweep puts into quarantine; the next one finds the rest.
const MAX_QUARANTINED: u64 = 100_000;
/// Entries of the quarantine changed in one transaction.
const ENTRIES_A_TXN: usize = 25;
/// Ten million records take minutes; a watch that has fallen silent must not end all sweeps.
const SCAN_LIMIT: Duration = Duration::from_secs(3_600);
/// After a sweep that failed.
const AGAIN: Duration = Duration::from_secs(60);

/// The coordinator's sweep.
pub struct Sweep {
    pub meta: SharedMeta,
    pub writer: Writer,
    /// Ticks from the beginning of one sweep to the next one's.
    pub every_ticks: u64,
    /// Ticks that what was found rests before it is removed.
    pub rest_ticks: u64,
}

/// One sweep under way.
struct Pass<'a> {
    sweep: &'a Sweep,
    term: &'a Term,
    state: &'a ClusterState,
    map: &'a ClusterMap,
    record: SweepRecord,
    max_epoch: u32,
}

/// An entry of the quarantine.
struct Quarantined {
    key: bytes::Bytes,
    revision: u64,
    record: QuarantineRecord,
}

type Quarantine = BTreeMap<Generation, Quarantined>;

/// What a sweep found.
#[derive(Default)]
struct Found {
    remains: BTreeMap<Generation, Remains>,
    /// Of those in quarantine, which are named after all.
    named: BTreeSet<Generation>,
    /// Not every node was asked: what was not found may be there.
    incomplete: bool,
}

impl Found {
    fn add(&mut self, generation: Generation, remains: Remains) {
        let known = self.remains.entry(generation).or_insert(remains);
        known.chunks = known.chunks.max(remains.chunks);
    }
}

impl Sweep {
    /// Sweeps, again and again; never ends.
    pub async fn run(&self, term: &Term) {
        loop {
            if let Err(error) = self.next(term).await {
                warn!(%error, "the sweep was broken off; it begins again");
                self.writer.env.clock.sleep(AGAIN).await;
            }
        }
    }

    /// Waits until a sweep is due, and makes it.
    async fn next(&self, term: &Term) -> Result<(), MetaError> {
        let stored = self.meta.get(&keys::sweep::key()).await?;
        let none = SweepRecord { finished: true, ..SweepRecord::default() };
        let last: SweepRecord = stored.as_ref().map(keys::from_json).transpose()?.unwrap_or(none);
        let due = |state: &ClusterState| {
            let due = !last.finished || state.tick >= last.tick.saturating_add(self.every_ticks);
            let map = state.map.clone().filter(|_| due && state.may_delete());
            map.map(|map| (state.clone(), map))
        };
        let (state, map) = self.writer.view.wait_for(due).await;
        let record = if last.finished { self.begin(term, &state, stored.as_ref()).await? } else { last };
        match plan::sweepable(record.number) {
            Some(max_epoch) => {
                Pass { sweep: self, term, state: &state, map: &map, record, max_epoch }.make().await
            }
            None => self.finish(term, &record, record).await,
        }
    }

    /// Raises the epoch: from now on nothing older than the one before it can be committed.
    async fn begin(
        &self,
        term: &Term,
        state: &ClusterState,
        stored: Option<&KeyValue>,
    ) -> Result<SweepRecord, MetaError> {
        let epoch = self.meta.get(&keys::epoch_key()).await?;
        let number = epoch.as_ref().map(keys::number).transpose()?.unwrap_or(0) + 1;
        let number =
            u32::try_from(number).map_err(|_| MetaError::Damaged("there is no later epoch".into()))?;
        let record = SweepRecord { number, tick: state.tick, ..SweepRecord::default() };
        let txn = Txn {
            compare: vec![
                term.holds(),
                Compare::unchanged(keys::epoch_key(), epoch.map_or(0, |entry| entry.mod_revision)),
                Compare::unchanged(keys::sweep::key(), stored.map_or(0, |entry| entry.mod_revision)),
            ],
            then: vec![
                Op::put(keys::epoch_key(), number.to_string()),
                Op::put(keys::sweep::key(), keys::to_json(&record)),
            ],
            otherwise: vec![],
        };
        self.must(txn).await?;
        debug!(sweep = number, "a sweep begins");
        Ok(record)
    }

    /// Notes that a sweep is over, if it is still the one that was begun: the answer of an earlier attempt may be late.
    async fn finish(&self, term: &Term, begun: &SweepRecord, record: SweepRecord) -> Result<(), MetaError> {
        let record = SweepRecord { finished: true, ..record };
        let compare = vec![term.holds(), Compare::value(keys::sweep::key(), keys::to_json(begun))];
        let then = vec![Op::put(keys::sweep::key(), keys::to_json(&record))];
        self.must(Txn { compare, then, otherwise: vec![] }).await
    }

    /// Makes a transaction that only fails if this coordinator's time is over.
    async fn must(&self, txn: Txn) -> Result<(), MetaError> {
        match self.meta.txn(txn).await?.succeeded {
            true => Ok(()),
            false => Err(MetaError::Unavailable("something else was written meanwhile".into())),
        }
    }

    /// Every entry under a prefix, page by page.
    async fn each(
        &self,
        prefix: &'static [u8],
        take: impl FnMut(&KeyValue) -> Result<(), MetaError>,
    ) -> Result<(), MetaError> {
        records::each(&*self.meta, prefix, Freshness::Linearizable, take).await
    }
}

impl Pass<'_> {
    async fn make(self) -> Result<(), MetaError> {
        let scope = Scope::OnDisk { max_epoch: self.max_epoch };
        // Those of the others are looked at by a later sweep.
        let writer = &self.sweep.writer;
        let answers = inventories::all_digests(writer, self.state, self.map, scope).await;
        let doubtful = self.tally().await?.unequal(self.map, &answers);
        let all_answered = self.map.nodes.keys().all(|node| answers.contains_key(node));
        drop(answers);
        let quarantine = self.quarantine().await?;
        let mut found = Found { incomplete: !all_answered, ..Found::default() };
        for portion in portions(&doubtful, CHUNKS_A_PORTION) {
            self.search(scope, &portion, &quarantine, &mut found).await?;
        }
        let record = self.keep(quarantine, found).await?;
        if record.quarantined + record.removed > 0 {
            let SweepRecord { number, quarantined, removed, .. } = record;
            info!(sweep = number, quarantined, removed, "swept what uploads left behind");
        }
        self.sweep.finish(self.term, &self.record, record).await
    }

    /// What files and the collection queue name of what may be swept. Only tells where to look closer.
    async fn tally(&self) -> Result<Tally, MetaError> {
        let mut tally = Tally::default();
        let max_epoch = self.max_epoch;
        self.sweep
            .each(keys::file::PREFIX, |entry| {
                tally.add_file_until(self.map, &FileRecord::decode(entry)?, max_epoch);
                Ok(())
            })
            .await?;
        self.sweep
            .each(keys::collect::PREFIX, |entry| {
                let (generation, record) = (keys::collect::generation(entry)?, keys::from_json(entry)?);
                let CollectRecord { chunks, copies, .. } = record;
                if generation.epoch() <= max_epoch {
                    tally.add_resting(self.map, generation, chunks, copies);
                }
                Ok(())
            })
            .await?;
        Ok(tally)
    }

    /// Finds what is on disks in some groups, and strikes out what is named.
    async fn search(
        &self,
        scope: Scope,
        groups: &BTreeSet<PgId>,
        quarantine: &Quarantine,
        found: &mut Found,
    ) -> Result<(), MetaError> {
        let mut unnamed = Unnamed::default();
        for pg in groups {
            for member in self.map.members_of(*pg) {
                let node = self.state.nodes.get(member).filter(|node| node.is_live());
                let Some(node) = node else { continue };
                match inventories::inventory(&self.sweep.writer, self.map, node, *pg, scope).await {
                    Ok(held) => held.iter().for_each(|line| unnamed.found(self.max_epoch, line)),
                    Err(error) => {
                        warn!(node = node.name, %pg, %error, "gave no inventory: this sweep may overlook something");
                        found.incomplete = true;
                    }
                }
            }
        }
        if !unnamed.is_empty() {
            let unnamed = Mutex::new(unnamed);
            self.strike_out(&unnamed).await?;
            let (remains, named) = unnamed.into_inner().finish();
            remains.into_iter().for_each(|(generation, remains)| found.add(generation, remains));
            found.named.extend(named.into_iter().filter(|generation| quarantine.contains_key(generation)));
        }
        Ok(())
    }

    /// Reads all that names generations; see the module's doc for the order.
    async fn strike_out(&self, unnamed: &Mutex<Unnamed>) -> Result<(), MetaError> {
        let named = |generation: Generation| unnamed.lock().named(generation);
        self.sweep.each(keys::upload::PREFIX, |entry| keys::upload::generation(entry).map(&named)).await?;
        // What is written from here on is seen by the watch, what was written before by the pages.
        let now = self.sweep.meta.range(RangeRead::key(&keys::sweep::marker_key())).await?.revision;
        let end = [&keys::sweep::marker_key()[..], &[0]].concat();
        let range = bytes::Bytes::from_static(keys::file::PREFIX)..end.into();
        let mut watch = self.sweep.meta.watch(range, now + 1).await?;
        let marker = hex::encode(self.sweep.writer.env.random.bytes::<16>());
        let pages = async {
            self.sweep.each(keys::file::PREFIX, |entry| name_all(entry, &named)).await?;
            let then = vec![Op::put(keys::sweep::marker_key(), marker.clone())];
            self.sweep.must(Txn { compare: vec![self.term.holds()], then, otherwise: vec![] }).await
        };
        let watching = follow(&mut *watch, marker.as_bytes(), &named);
        let scan = async { futures::try_join!(pages, watching) };
        let silent =
            || MetaError::Unavailable(format!("the records were not read through within {SCAN_LIMIT:?}"));
        self.sweep.writer.env.timeout(SCAN_LIMIT, scan).await.unwrap_or_else(|| Err(silent()))?;
        self.sweep.each(keys::collect::PREFIX, |entry| keys::collect::generation(entry).map(&named)).await
    }

    /// What earlier sweeps found.
    async fn quarantine(&self) -> Result<Quarantine, MetaError> {
        let mut quarantine = Quarantine::new();
        self.sweep
            .each(keys::quarantine::PREFIX, |entry| {
                let record: QuarantineRecord = keys::from_json(entry)?;
                // An accepted restoration makes the tick jump, and that is no rest.
                let record = QuarantineRecord { tick: record.tick.max(self.state.accepted), ..record };
                let known = Quarantined { key: entry.key.clone(), revision: entry.mod_revision, record };
                quarantine.insert(keys::quarantine::generation(entry)?, known);
                Ok(())
            })
            .await?;
        Ok(quarantine)
    }

    /// Brings the quarantine up to date with what was found.
    async fn keep(&self, quarantine: Quarantine, found: Found) -> Result<SweepRecord, MetaError> {
        let Found { mut remains, named, incomplete } = found;
        if !self.sweep.writer.view.current().may_delete() {
            return Err(MetaError::Unavailable("the store may be an older copy of itself".into()));
        }
        let mut record = self.record;
        let mut changes: Vec<(Vec<Compare>, Vec<Op>)> = Vec::new();
        for (generation, Quarantined { key, revision, record: known }) in quarantine {
            let compare = vec![Compare::unchanged(key.clone(), revision)];
            let forget = Op::delete(key);
            let remains = remains.remove(&generation);
            match self.step(Some(&known), remains.as_ref(), named.contains(&generation)) {
                Step::Collect(remains) => {
                    record.removed += 1;
                    changes.push((compare, vec![forget, self.collect(generation, remains)]));
                }
                Step::Alarm => {
                    error!(%generation, "what a sweep had found without a file is named after all; it stays");
                    changes.push((compare, vec![forget]));
                }
                Step::LetGo if incomplete => {}
                Step::LetGo => changes.push((compare, vec![forget])),
                Step::Wait | Step::Quarantine(_) => {}
            }
        }
        for (generation, remains) in remains {
            if record.quarantined == MAX_QUARANTINED {
                break;
            }
            record.quarantined += 1;
            let Remains { volume, copies, chunks } = remains;
            let (tick, sweep) = (self.state.tick, self.record.number);
            let entry = QuarantineRecord { volume: volume.0, copies, chunks, tick, sweep };
            changes.push((vec![], vec![Op::put(keys::quarantine::key(&generation), keys::to_json(&entry))]));
        }
        for changes in changes.chunks(ENTRIES_A_TXN) {
            let (compare, then): (Vec<_>, Vec<_>) = changes.iter().cloned().unzip();
            let compare = compare.into_iter().flatten().chain([self.term.holds()]).collect();
            let then = then.into_iter().flatten().collect();
            self.sweep.must(Txn { compare, then, otherwise: vec![] }).await?;
        }
        Ok(record)
    }

    fn step(&self, known: Option<&QuarantineRecord>, remains: Option<&Remains>, named: bool) -> Step {
        plan::step(known, remains, named, self.record.number, self.state.tick, self.sweep.rest_ticks)
    }

    /// Queues a generation as if its file had been deleted now.
    fn collect(&self, generation: Generation, remains: Remains) -> Op {
        let Remains { volume, copies, chunks } = remains;
        let record = CollectRecord::waiting(volume, copies, chunks, self.state.tick);
        Op::put(keys::collect::key(&generation), keys::to_json(&record))
    }
}

/// Names every generation of a file record.
fn name_all(entry: &KeyValue, named: &impl Fn(Generation)) -> Result<(), MetaError> {
    FileRecord::decode(entry)?.extents.iter().for_each(|extent| named(extent.generation));
    Ok(())
}

/// Names what is written to records, until the marker is.
async fn follow(watch: &mut dyn Watch, marker: &[u8], named: &impl Fn(Generation)) -> Result<(), MetaError> {
    loop {
        for event in watch.next().await? {
            match event {
                Event::Put(entry) if entry.key == keys::sweep::marker_key() => {
                    if entry.value == marker {
                        return Ok(());
                    }
                }
                Event::Put(entry) => name_all(&entry, named)?,
                Event::Delete { .. } => {}
            }
        }
    }
}
