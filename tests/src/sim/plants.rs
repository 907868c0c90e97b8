//! Planted bugs: what the code would do to the metadata store if a rule of it were forgotten. A test that passes with a bug
//! planted shows nothing. And planted misfortunes, which are nobody's bug.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_node::env::Random;
use cairn_node::meta::{
    Compare, Event, LeaseId, MetaError, MetaStore, Op, Page, RangeRead, SharedMeta, Txn, TxnResult, Watch,
    keys,
};

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    None,
    /// Nothing compares the sweep epoch (R2).
    EpochNotCompared,
    /// The sweep does not look for long uploads (R2).
    UploadsIgnored,
    /// No bug: whenever the records are read page by page, the file [`HARE`] moves so that no page has it.
    MovesDuringScans,
    /// The same, and nobody watches the records meanwhile (R2).
    WatchIgnored,
    /// The collector does not look for long downloads (R7).
    PinsIgnored,
    /// No bug: whenever the collector has looked for pins, the first file in the queue gets one, [`GUEST`]'s.
    PinnedBehindTheLook,
    /// The same, and nobody compares entries of the queue (R7).
    QueueNotCompared,
    /// Commits are sent again without comparing their slot (R4).
    SlotNotCompared,
    /// A refused commit is believed although an earlier send of it may still arrive: its slot is not written (R4).
    SlotNotShut,
    /// No bug: nodes hear of registrations, and of what comes after them, [`LATE`] later than others would.
    StartsComeLate,
    /// The same, and commits do not compare them (R4).
    StartsNotCompared,
    /// No bug: a claim lapses between the look at it and the commit that needs it, and a sweep takes what it kept for left behind.
    ClaimLapses,
    /// The same, and the commit does not compare the claim (R2).
    ClaimNotCompared,
    /// Uploads take one of a few generations, so that positions are sealed again (R1).
    GenerationsRepeat,
    /// Nothing limits the content that nodes hold in memory.
    NoBudgets,
    /// No bug: whoever looks whether a volume has any file hears it [`LOOK_TAKES`] later.
    LooksTakeLong,
    /// The same, and nothing compares that it has none when it is deleted (R18).
    FilesNotCompared,
    /// No bug: the first transaction that writes a file's record happens, and its answer is lost; by the next one the store is
    /// full.
    FullAfterLostAnswer,
}

/// The key of a file that [`Plant::MovesDuringScans`] moves while the records are read: behind all others at first, …
pub const HARE: &[u8] = b"file/00000001/zz";
/// … before all others once the first page is read.
const FORM: &[u8] = b"file/00000001/!";

/// How late nodes hear of it with [`Plant::StartsComeLate`].
const LATE: Duration = Duration::from_secs(3);

/// How late a sweep comes to look at uploads with [`Plant::ClaimLapses`], so that its looks come after the lapse.
const LINGER: Duration = Duration::from_secs(1);
/// How long what was seen of a volume is on its way with [`Plant::LooksTakeLong`].
pub const LOOK_TAKES: Duration = Duration::from_secs(4);
/// Within this, a sweep has looked.
const LOOKED: Duration = Duration::from_secs(5);

/// The gateway whose download is pinned by [`Plant::PinnedBehindTheLook`].
pub const GUEST: &str = "guest";

impl Plant {
    /// Randomness as the buggy code would use it.
    pub fn in_random(self, random: Arc<dyn Random>) -> Arc<dyn Random> {
        if self == Self::GenerationsRepeat { Arc::new(Repeating(random)) } else { random }
    }

    /// The store as the buggy code would use it.
    pub fn in_store(self, store: SharedMeta) -> SharedMeta {
        match self {
            Self::None | Self::NoBudgets => store,
            plant => Arc::new(PlantedMeta { store, plant, commits: AtomicU32::new(0) }),
        }
    }
}

/// Randomness of which little is left where a generation is made.
struct Repeating(Arc<dyn Random>);

/// Random bytes of a generation.
const OF_A_GENERATION: usize = 12;

impl Random for Repeating {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.fill(buffer);
        if buffer.len() == OF_A_GENERATION {
            buffer[0] %= 2;
            buffer[1..].fill(0);
        }
    }
}

struct PlantedMeta {
    store: SharedMeta,
    plant: Plant,
    /// Transactions so far that write a file's record.
    commits: AtomicU32,
}

/// Which keys nothing compares.
type Forgotten = fn(&[u8]) -> bool;

impl Plant {
    fn forgotten(self) -> Option<Forgotten> {
        match self {
            Self::EpochNotCompared => Some(|key| key == keys::epoch_key()),
            Self::SlotNotCompared => Some(|key| key.starts_with(b"slot/")),
            Self::QueueNotCompared => Some(|key| key.starts_with(keys::collect::PREFIX)),
            Self::StartsNotCompared => Some(|key| key == keys::starts_key()),
            Self::ClaimNotCompared => Some(|key| key.starts_with(keys::upload::PREFIX)),
            Self::FilesNotCompared => Some(|key| key.starts_with(keys::file::PREFIX)),
            _ => None,
        }
    }

    fn lets_claims_lapse(self) -> bool {
        matches!(self, Self::ClaimLapses | Self::ClaimNotCompared)
    }
}

fn writes_a_file(txn: &Txn) -> bool {
    txn.then.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with(keys::file::PREFIX)))
}

impl PlantedMeta {
    /// Moves the file to where the page that is about to be read is not.
    async fn dodge(&self, read: &RangeRead) -> Result<(), MetaError> {
        let moves = matches!(self.plant, Plant::MovesDuringScans | Plant::WatchIgnored);
        if !moves || !read.start.starts_with(keys::file::PREFIX) || read.limit == 1 {
            return Ok(());
        }
        let (from, to) = if read.start == keys::file::PREFIX { (FORM, HARE) } else { (HARE, FORM) };
        let Some(entry) = self.store.get(from).await? else { return Ok(()) };
        let compare = vec![Compare::unchanged(from, entry.mod_revision)];
        let then = vec![Op::delete(from), Op::put(to, entry.value)];
        self.store.txn(Txn { compare, then, otherwise: vec![] }).await.map(|_| ())
    }
}

/// Whether a key's revision is compared, or whether such keys are there.
fn compares(compare: &Compare, wanted: impl Fn(&[u8]) -> bool) -> bool {
    match compare {
        Compare::ModRevision { key, .. } => wanted(key),
        Compare::Vacant { range } => wanted(&range.start),
        Compare::Value { .. } => false,
    }
}

impl PlantedMeta {
    /// Pins the first file in the queue as a gateway would, if the pins were just read.
    async fn pin_behind(&self, start: &[u8]) -> Result<(), MetaError> {
        let pins = matches!(self.plant, Plant::PinnedBehindTheLook | Plant::QueueNotCompared);
        if !pins || start != keys::pin::PREFIX {
            return Ok(());
        }
        let first = RangeRead { limit: 1, ..RangeRead::prefix(keys::collect::PREFIX) };
        let Some(entry) = self.store.range(first).await?.entries.pop() else { return Ok(()) };
        let pin = keys::pin::key(&keys::collect::generation(&entry)?, GUEST);
        let then = vec![
            Op::put(pin, keys::to_json(&keys::pin::PinRecord { tick: 0 })),
            Op::put(entry.key.clone(), entry.value),
        ];
        let compare = vec![Compare::unchanged(entry.key, entry.mod_revision)];
        self.store.txn(Txn { compare, then, otherwise: vec![] }).await.map(|_| ())
    }
}

impl PlantedMeta {
    /// Ends the claim that a commit gives up, and waits until a sweep has missed it. The first attempt goes through: it fails, since
    /// the epoch has been raised, and looks at the claim.
    async fn lapse(&self, txn: &Txn) -> Result<(), MetaError> {
        let claims = |op: &Op| match op {
            Op::Delete { key } if key.starts_with(keys::upload::PREFIX) => Some(key.clone()),
            _ => None,
        };
        let Some(claim) = txn.then.iter().find_map(claims).filter(|_| writes_a_file(txn)) else {
            return Ok(());
        };
        if self.commits.fetch_add(1, Ordering::Relaxed) != 1 {
            return Ok(());
        }
        let missed = [keys::quarantine::PREFIX, &claim[keys::upload::PREFIX.len()..]].concat();
        self.store.txn(Txn { then: vec![Op::delete(claim)], ..Txn::default() }).await?;
        let until = tokio::time::Instant::now() + LOOKED;
        while self.store.get(&missed).await?.is_none() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// Whether a transaction writes a slot, and nothing else.
fn shuts_a_slot(txn: &Txn) -> bool {
    matches!(&txn.then[..], [Op::Put { key, .. }] if key.starts_with(b"slot/"))
}

/// A watch that overlooks what happens to files.
struct BlindWatch(Box<dyn Watch>);

#[async_trait]
impl Watch for BlindWatch {
    async fn next(&mut self) -> Result<Vec<Event>, MetaError> {
        let is_file = |event: &Event| match event {
            Event::Put(entry) => entry.key.starts_with(keys::file::PREFIX),
            Event::Delete { key, .. } => key.starts_with(keys::file::PREFIX),
        };
        loop {
            let mut events = self.0.next().await?;
            events.retain(|event| !is_file(event));
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

/// A watch that tells of registrations late.
struct LateWatch(Box<dyn Watch>);

#[async_trait]
impl Watch for LateWatch {
    async fn next(&mut self) -> Result<Vec<Event>, MetaError> {
        let events = self.0.next().await?;
        if events.iter().any(|event| matches!(event, Event::Put(entry) if entry.key == keys::starts_key())) {
            tokio::time::sleep(LATE).await;
        }
        Ok(events)
    }
}

#[async_trait]
impl MetaStore for PlantedMeta {
    async fn range(&self, read: RangeRead) -> Result<Page, MetaError> {
        self.dodge(&read).await?;
        if self.plant.lets_claims_lapse() && read.start == keys::upload::PREFIX {
            tokio::time::sleep(LINGER).await;
        }
        let hidden = match self.plant {
            Plant::UploadsIgnored => read.start.starts_with(keys::upload::PREFIX),
            Plant::PinsIgnored => read.start.starts_with(keys::pin::PREFIX),
            _ => false,
        };
        let looks = matches!(self.plant, Plant::LooksTakeLong | Plant::FilesNotCompared)
            && read.limit == 1
            && read.keys_only
            && read.start.starts_with(keys::file::PREFIX);
        let start = read.start.clone();
        let mut page = self.store.range(read).await?;
        self.pin_behind(&start).await?;
        if looks {
            tokio::time::sleep(LOOK_TAKES).await;
        }
        if hidden {
            page.entries.clear();
            page.more = false;
        }
        Ok(page)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResult, MetaError> {
        if let Some(forgotten) = self.plant.forgotten() {
            txn.compare.retain(|compare| !compares(compare, forgotten));
        }
        if self.plant.lets_claims_lapse() {
            self.lapse(&txn).await?;
        }
        if self.plant == Plant::SlotNotShut && shuts_a_slot(&txn) {
            let revision = self.store.range(RangeRead::prefix(b"slot/")).await?.revision;
            return Ok(TxnResult { succeeded: true, revision, reads: vec![] });
        }
        if self.plant == Plant::FullAfterLostAnswer && writes_a_file(&txn) {
            match self.commits.fetch_add(1, Ordering::Relaxed) {
                0 => {
                    self.store.txn(txn).await?;
                    return Err(MetaError::Unknown("the answer was lost".into()));
                }
                1 => return Err(MetaError::Full("no space is left".into())),
                _ => {}
            }
        }
        self.store.txn(txn).await
    }

    async fn watch(&self, range: Range<Bytes>, from: u64) -> Result<Box<dyn Watch>, MetaError> {
        let watch = self.store.watch(range, from).await?;
        Ok(match self.plant {
            Plant::WatchIgnored => Box::new(BlindWatch(watch)),
            Plant::StartsComeLate | Plant::StartsNotCompared => Box::new(LateWatch(watch)),
            _ => watch,
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.store.revoke(lease).await
    }
}
