//! The comparison in action: reads records, asks nodes, publishes what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cairn_placement::{ChunkId, ClusterMap, Generation, NodeId, PgId, VolumeId};
use tracing::{error, info, warn};

use super::{
    super::{inventories, records},
    plan::{self, Tally, Wanted},
};
use crate::{
    chunks::Scope,
    cluster::{ClusterState, NodeInfo, coordinate::Term},
    meta::{
        KeyValue, MetaError, Op, SharedMeta, Txn,
        keys::{
            self,
            collect::CollectRecord,
            count::CountRecord,
            file::FileRecord,
            truth::{MAX_GROUPS, MAX_NAMES, TruthRecord},
            volume::VolumeRecord,
        },
    },
    replication::{
        read::{FetchError, Reader},
        write::Writer,
    },
};

/// Chunks looked for at a time: bounds memory, at about 100 bytes each.
const CHUNKS_A_PORTION: u64 = 100_000;
/// Chunks in no inventory that one pass looks at although they turn out not to be lost: being mended, or out of reach.
const MAX_GATHERED: usize = 1_000;
/// Counts written in one transaction.
const COUNTS_A_TXN: usize = 50;
/// The rest after a pass is so many times as long as the pass took, …
const REST_FACTOR: u32 = 50;
/// … but no longer than this, …
const LONGEST_REST: Duration = Duration::from_secs(600);
/// … and this while something is missing, or the pass failed.
const UNEASY_REST: Duration = Duration::from_secs(1);

/// The coordinator's comparison of metadata and disks.
pub struct Truth {
    pub meta: SharedMeta,
    pub writer: Writer,
    pub reader: Reader,
    /// The shortest rest between passes that found everything.
    pub interval: Duration,
}

/// What a pass finds.
#[derive(Default)]
struct Found {
    missing: BTreeSet<PgId>,
    /// Files, by what names each exactly once.
    lost: BTreeSet<Generation>,
    /// The first of them as `volume/path`, [`MAX_NAMES`] at most.
    names: BTreeSet<String>,
    /// Chunks that were tried to be put together from damaged copies.
    gathered: usize,
}

impl Found {
    fn lose(&mut self, generation: Generation, name: String) {
        self.lost.insert(generation);
        self.names.insert(name);
        if self.names.len() > MAX_NAMES {
            self.names.pop_last();
        }
    }
}

/// A file with chunks in groups that are looked at.
struct Suspect {
    key: bytes::Bytes,
    generation: Generation,
}

type Volumes = BTreeMap<VolumeId, String>;

impl Truth {
    /// Passes, again and again; never ends.
    pub async fn run(&self, term: &Term) {
        let clock = &self.writer.env.clock;
        loop {
            let state = self.writer.view.current();
            let began = clock.monotonic();
            let clear = match &state.map {
                Some(map) => self.pass(term, &state, map).await,
                None => Ok(false),
            };
            let clear = clear.unwrap_or_else(|error| {
                warn!(%error, "could not compare the metadata with the disks");
                false
            });
            let wanted = (clock.monotonic() - began) * REST_FACTOR;
            let rest = if clear { wanted.max(self.interval) } else { wanted.max(UNEASY_REST) };
            let before = subject(&state);
            tokio::select! {
                biased;
                () = clock.sleep(rest.min(LONGEST_REST.max(self.interval))) => {}
                // What was found is void now; but nodes that come and go must not make passes without end.
                _ = self.writer.view.wait_for(|state| (subject(state) != before).then_some(())) => {
                    clock.sleep(UNEASY_REST.min(self.interval)).await;
                }
            }
        }
    }

    /// One pass; `true` if nothing is missing.
    async fn pass(&self, term: &Term, state: &ClusterState, map: &ClusterMap) -> Result<bool, MetaError> {
        let volumes = self.volumes().await?;
        let mut tally = Tally::default();
        let mut counts: BTreeMap<VolumeId, CountRecord> = BTreeMap::new();
        self.each(keys::file::PREFIX, |entry| {
            let (volume, record) = (keys::file::volume(entry)?, FileRecord::decode(entry)?);
            tally.add_file(map, &record);
            let count = counts.entry(volume).or_default();
            count.files += 1;
            count.bytes += record.size_bytes();
            Ok(())
        })
        .await?;
        self.each(keys::collect::PREFIX, |entry| {
            let record: CollectRecord = keys::from_json(entry)?;
            tally.add_resting(map, keys::collect::generation(entry)?, record.chunks, record.copies);
            Ok(())
        })
        .await?;
        let answers = inventories::all_digests(&self.writer, state, map, Scope::ALL).await;
        let doubtful = tally.doubtful(map, &answers);
        drop((tally, answers));
        let mut found = Found::default();
        for portion in plan::portions(&doubtful, CHUNKS_A_PORTION) {
            self.search(state, map, &portion, &volumes, &mut found).await?;
        }
        let clear = found.missing.is_empty();
        self.publish(term, state, map, found).await?;
        self.publish_counts(term, &volumes, counts).await?;
        Ok(clear)
    }

    async fn volumes(&self) -> Result<Volumes, MetaError> {
        let mut volumes = Volumes::new();
        self.each(keys::volume::PREFIX, |entry| {
            let record: VolumeRecord = keys::from_json(entry)?;
            volumes.insert(VolumeId(record.id), keys::name(&entry.key[keys::volume::PREFIX.len()..]));
            Ok(())
        })
        .await?;
        Ok(volumes)
    }

    /// Every entry under a prefix, at one revision if the store keeps it. One that is a little behind does no harm here.
    async fn each(
        &self,
        prefix: &'static [u8],
        take: impl FnMut(&KeyValue) -> Result<(), MetaError>,
    ) -> Result<(), MetaError> {
        records::each_at_one_revision(&*self.meta, prefix, take).await
    }

    /// Looks for every chunk of some groups, one by one.
    async fn search(
        &self,
        state: &ClusterState,
        map: &ClusterMap,
        groups: &BTreeSet<PgId>,
        volumes: &Volumes,
        found: &mut Found,
    ) -> Result<(), MetaError> {
        let (mut wanted, mut suspects) = (Wanted::default(), Vec::new());
        self.each(keys::file::PREFIX, |entry| {
            let record = FileRecord::decode(entry)?;
            if wanted.add(map, groups, &record, suspects.len() as u32) {
                suspects.push(Suspect { key: entry.key.clone(), generation: record.generation() });
            }
            Ok(())
        })
        .await?;
        let mut silent = BTreeSet::new();
        for pg in groups {
            for member in map.members_of(*pg) {
                if wanted.is_done(*pg) {
                    break;
                }
                let node = state.nodes.get(member).filter(|node| node.is_live());
                let held = match node {
                    Some(node) => inventories::inventory(&self.writer, map, node, *pg, Scope::ALL).await.ok(),
                    None => None,
                };
                match held {
                    Some(held) => wanted.found(map, *pg, *member, &held),
                    None => _ = silent.insert(*pg),
                }
            }
        }
        for (number, chunks) in wanted.left() {
            let suspect = &suspects[number as usize];
            let Some(entry) = self.meta.get(&suspect.key).await? else { continue };
            let record = FileRecord::decode(&entry)?;
            if record.generation() != suspect.generation {
                continue;
            }
            let asked: Vec<_> =
                chunks.iter().copied().filter(|id| !silent.contains(&map.pg_of(id))).collect();
            if self.is_lost(map, record.copies, &asked, found).await {
                let volume = keys::file::volume(&entry)?;
                let volume = volumes.get(&volume).cloned().unwrap_or_else(|| format!("#{volume}"));
                found.lose(suspect.generation, format!("{volume}/{}", keys::file::path(&entry)?));
            }
            found.missing.extend(chunks.iter().map(|id| map.pg_of(id)));
        }
        Ok(())
    }

    /// Whether one of these chunks, which no inventory has, is gone: damaged copies are in no inventory either, and may make
    /// a whole one together, as repair soon will.
    async fn is_lost(&self, map: &ClusterMap, copies: u8, chunks: &[ChunkId], found: &mut Found) -> bool {
        for id in chunks {
            if found.gathered >= MAX_GATHERED {
                // Not known: it is missing, and named as lost only by a pass that has less to look at.
                return false;
            }
            let gathered = self.reader.gather(map, *id, copies, 0..u32::MAX).await;
            if matches!(gathered, Err(FetchError::Corrupt | FetchError::Missing)) {
                return true;
            }
            found.gathered += 1;
        }
        false
    }

    async fn publish(
        &self,
        term: &Term,
        state: &ClusterState,
        map: &ClusterMap,
        found: Found,
    ) -> Result<(), MetaError> {
        let is_down = |id: &&NodeId| !state.nodes.get(id).is_some_and(NodeInfo::is_live);
        let record = TruthRecord {
            map_generation: map.generation,
            disks: state.disks(),
            revision: state.revision,
            down: map.nodes.keys().filter(is_down).map(|id| id.0).collect(),
            missing: found.missing.iter().take(MAX_GROUPS).map(|pg| pg.0).collect(),
            lost_files: found.lost.len() as u64,
            lost: found.names.into_iter().collect(),
        };
        let known = self.writer.view.current().compared.clone();
        if known.as_ref().is_some_and(|known| says_as_much(known, &record, state)) {
            return Ok(());
        }
        if record.lost_files > 0 {
            error!(files = record.lost_files, names = ?record.lost, "content of files is on no disk");
        } else if known.is_some_and(|known| known.lost_files > 0) {
            info!("no file has lost content any more");
        }
        let then = vec![Op::put(keys::truth::key(), keys::to_json(&record))];
        self.meta.txn(Txn { compare: vec![term.holds()], then, otherwise: vec![] }).await.map(|_| ())
    }

    /// Writes the counts that changed, and removes those of volumes that are gone.
    async fn publish_counts(
        &self,
        term: &Term,
        volumes: &Volumes,
        counts: BTreeMap<VolumeId, CountRecord>,
    ) -> Result<(), MetaError> {
        let mut known = BTreeMap::new();
        self.each(keys::count::PREFIX, |entry| {
            known.insert(entry.key.clone(), keys::from_json::<CountRecord>(entry)?);
            Ok(())
        })
        .await?;
        let mut ops = Vec::new();
        for (id, name) in volumes {
            let key = keys::count::key(name);
            let count = counts.get(id).copied().unwrap_or_default();
            let count = CountRecord { volume: id.0, ..count };
            if known.remove(&key) != Some(count) {
                ops.push(Op::put(key, keys::to_json(&count)));
            }
        }
        ops.extend(known.into_keys().map(Op::delete));
        for ops in ops.chunks(COUNTS_A_TXN) {
            let txn = Txn { compare: vec![term.holds()], then: ops.to_vec(), otherwise: vec![] };
            self.meta.txn(txn).await?;
        }
        Ok(())
    }
}

/// Whether a known record says all that a new one would: no node has started since.
fn says_as_much(known: &TruthRecord, new: &TruthRecord, state: &ClusterState) -> bool {
    let same = TruthRecord { revision: known.revision, ..new.clone() } == *known;
    same && known.revision > 0 && state.nodes.values().all(|node| known.is_after(node.registered))
}

/// What a pass is about: another map, disk or set of live nodes needs another pass, and a node that has started anew.
fn subject(state: &ClusterState) -> (u64, Vec<(NodeId, bool, u64)>) {
    let map = state.map.as_ref();
    let nodes = map.iter().flat_map(|map| map.nodes.keys()).filter_map(|id| state.nodes.get(id));
    let nodes = nodes.map(|node| (node.id, node.is_live(), node.registered)).collect();
    (map.map_or(0, |map| map.generation), nodes)
}
