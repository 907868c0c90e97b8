//! What is on this disk, in memory: present and buried chunks, in order of (hash, id).
//!
//! A placement group is a range of hashes, so one order serves any number of groups.
//!
//! A chunk of which some bytes were found wrong is kept apart. It counts as absent, so that repair brings it anew; but
//! what is left of it can still be read, and perhaps nobody has more (see `replication/gather.rs`).

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

use cairn_placement::{ChunkId, Generation, PgId, VolumeId};

use super::{
    CopySummary, InventoryEntry, Presence, Scope,
    compact::Live,
    format::Tombstone,
    header::ChunkHeader,
    leaves::{Key, Leaves},
    store::record_length,
};

/// Where a chunk's record is. `slot` is the segment's number in the table of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub slot: u32,
    /// In units of the records' alignment.
    eighth: u32,
}

impl Place {
    pub fn new(slot: u32, offset: u64) -> Self {
        debug_assert!(offset.is_multiple_of(8));
        Self { slot, eighth: u32::try_from(offset / 8).expect("segments are shorter than 32 GiB") }
    }

    /// As [`Self::new`], for an offset that may be nonsense.
    pub fn checked(slot: u32, offset: u64) -> Option<Self> {
        let eighth = u32::try_from(offset / 8).ok().filter(|_| offset.is_multiple_of(8))?;
        Some(Self { slot, eighth })
    }

    pub fn offset(self) -> u64 {
        u64::from(self.eighth) * 8
    }

    /// Slot, and offset in units of 8.
    pub fn parts(self) -> (u32, u32) {
        (self.slot, self.eighth)
    }

    pub fn of_parts(slot: u32, eighth: u32) -> Self {
        Self { slot, eighth }
    }
}

/// A chunk that is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub volume: VolumeId,
    pub copies: u8,
    pub plain_length: u32,
    pub place: Place,
}

impl Entry {
    pub fn new(header: &ChunkHeader, place: Place) -> Self {
        Self { volume: header.volume, copies: header.copies, plain_length: header.plain_length, place }
    }
}

/// What is known of one chunk. Absent ones are not in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    Present(Entry),
    /// Not whole: counts as absent.
    Damaged(Entry),
    Buried {
        volume: VolumeId,
        copies: u8,
        tick: u32,
    },
}

impl Scope {
    /// A sweep has no use for tombstones, and they stay for long.
    fn wants(self, known: &Known) -> bool {
        match (known, self) {
            (Known::Buried { tick, .. }, Self::Whole { tombstones_since }) => *tick >= tombstones_since,
            (Known::Buried { .. }, Self::OnDisk { .. }) => false,
            _ => true,
        }
    }
}

impl Known {
    /// Where its record is.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Present(entry) | Self::Damaged(entry) => Some(entry.place),
            Self::Buried { .. } => None,
        }
    }
}

/// A chunk of which some bytes are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    pub entry: Entry,
    /// Of the last group before a crash: perhaps it never was whole, and nobody was told that it is here.
    pub torn: bool,
}

/// The index. See the module's doc.
#[derive(Default)]
pub struct Index {
    /// Present and buried ones.
    entries: Leaves,
    /// Those that are not whole; none of them is in `entries`.
    damaged: BTreeMap<Key, Damage>,
    tombstones: u64,
}

fn key(id: ChunkId) -> Key {
    (id.hash(), id)
}

/// The first and the last possible key of a group.
fn keys(pg_bits: u8, pg: PgId) -> (Key, Key) {
    let (low, high) = pg.hash_range(pg_bits);
    let first = ChunkId { generation: Generation([0; 16]), index: 0 };
    let last = ChunkId { generation: Generation([0xff; 16]), index: u32::MAX };
    ((low, first), (high, last))
}

impl Index {
    pub fn get(&self, id: ChunkId) -> Option<Known> {
        let key = key(id);
        self.entries.get(&key).or_else(|| Some(Known::Damaged(self.damaged.get(&key)?.entry)))
    }

    pub fn presence(&self, id: ChunkId) -> Presence {
        match self.get(id) {
            Some(Known::Present(_)) => Presence::Present,
            Some(Known::Buried { .. }) => Presence::Buried,
            Some(Known::Damaged(_)) | None => Presence::Absent,
        }
    }

    /// Puts a chunk where it is, and gives what it replaces, a damaged one; or gives what is known of it and forbids that:
    /// a buried chunk stays so.
    pub fn insert(&mut self, id: ChunkId, entry: Entry) -> Result<Option<Entry>, Known> {
        let key = key(id);
        match self.entries.get(&key) {
            Some(known) => Err(known),
            None => {
                self.entries.insert(key, &Known::Present(entry));
                Ok(self.damaged.remove(&key).map(|damage| damage.entry))
            }
        }
    }

    /// Notes where a chunk is, instead of what is known of it; a buried one stays so.
    pub fn take(&mut self, id: ChunkId, entry: Entry) {
        if self.presence(id) != Presence::Buried {
            self.damaged.remove(&key(id));
            self.entries.insert(key(id), &Known::Present(entry));
        }
    }

    /// Buries a chunk; gives what was here of it. Of two burials the later tick counts.
    pub fn bury(&mut self, tombstone: Tombstone) -> Option<Entry> {
        let Tombstone { id, volume, copies, tick } = tombstone;
        let damaged = self.damaged.remove(&key(id)).map(|damage| damage.entry);
        match self.entries.insert(key(id), &Known::Buried { volume, copies, tick }) {
            Some(Known::Present(entry)) => {
                self.tombstones += 1;
                Some(entry)
            }
            Some(Known::Buried { tick: earlier, .. }) => {
                let tick = tick.max(earlier);
                self.entries.insert(key(id), &Known::Buried { volume, copies, tick });
                None
            }
            Some(Known::Damaged(_)) | None => {
                self.tombstones += 1;
                damaged
            }
        }
    }

    /// Sets a chunk apart whose bytes are wrong, if it is still at that place; `false` if it is not there, or apart already.
    pub fn set_apart(&mut self, id: ChunkId, place: Place) -> bool {
        let Some(Known::Present(entry)) = self.get(id).filter(|known| known.place() == Some(place)) else {
            return false;
        };
        self.entries.remove(&key(id));
        self.damaged.insert(key(id), Damage { entry, torn: false });
        true
    }

    /// Notes a chunk that is not whole, instead of what is known of it; a buried one stays so.
    pub fn put_apart(&mut self, id: ChunkId, damage: Damage) {
        if self.presence(id) != Presence::Buried {
            self.entries.remove(&key(id));
            self.damaged.insert(key(id), damage);
        }
    }

    /// Sets apart what was known to be damaged before the store was opened, if it is still at that place.
    pub fn recall(&mut self, id: ChunkId, place: Place) -> bool {
        match self.damaged.get_mut(&key(id)) {
            Some(damage) if damage.entry.place == place => {
                damage.torn = false;
                true
            }
            _ => self.set_apart(id, place),
        }
    }

    /// Takes a chunk back that turned out to be whole, if it is still set apart with this place.
    pub fn restore(&mut self, id: ChunkId, place: Place) -> bool {
        match self.damaged.get(&key(id)) {
            Some(damage) if damage.entry.place == place => self.insert(id, damage.entry).is_ok(),
            _ => false,
        }
    }

    /// At most `limit` chunks that are not whole, those after `after`.
    pub fn damaged(&self, after: Option<ChunkId>, limit: usize) -> Vec<(ChunkId, Damage)> {
        let start = after.map_or(Bound::Unbounded, |after| Bound::Excluded(key(after)));
        let damaged = self.damaged.range((start, Bound::Unbounded));
        damaged.take(limit).map(|((_, id), damage)| (*id, *damage)).collect()
    }

    /// How many chunks are not whole any more, and how many perhaps never were.
    pub fn damaged_chunks(&self) -> (u64, u64) {
        let torn = self.damaged.values().filter(|damage| damage.torn).count() as u64;
        (self.damaged.len() as u64 - torn, torn)
    }

    /// Whole chunks whose records are in one segment, among the first `most` entries after `after`; and the last one that was
    /// looked at, if others follow.
    pub fn in_segment(
        &self,
        slot: u32,
        after: Option<ChunkId>,
        most: usize,
    ) -> (Vec<(ChunkId, Entry)>, Option<ChunkId>) {
        let mut entries = self.entries.after(after);
        let (mut found, mut last) = (Vec::new(), None);
        for ((_, id), known) in entries.by_ref().take(most) {
            last = Some(id);
            if let Known::Present(entry) = known
                && entry.place.slot == slot
            {
                found.push((id, entry));
            }
        }
        (found, last.filter(|_| entries.next().is_some()))
    }

    /// Tells a chunk's new place, if it is whole and at the old one; `false` if not.
    pub fn relocate(&mut self, id: ChunkId, from: Place, to: Place) -> bool {
        match self.entries.get(&key(id)) {
            Some(Known::Present(entry)) if entry.place == from => {
                self.entries.insert(key(id), &Known::Present(Entry { place: to, ..entry }));
                true
            }
            _ => false,
        }
    }

    /// Adds up, by segment, the first `most` chunks after `after`; gives the last one that was looked at, if others follow.
    pub fn add_live(
        &self,
        live: &mut HashMap<u32, Live>,
        after: Option<ChunkId>,
        most: usize,
    ) -> Option<ChunkId> {
        let mut entries = self.entries.after(after);
        let mut last = None;
        for ((_, id), known) in entries.by_ref().take(most) {
            last = Some(id);
            if let Known::Present(entry) = known {
                live.entry(entry.place.slot).or_default().bytes += record_length(entry.plain_length);
            }
        }
        last.filter(|_| entries.next().is_some())
    }

    /// Adds, by segment, the chunks that are set apart.
    pub fn add_damaged(&self, live: &mut HashMap<u32, Live>) {
        for Damage { entry, .. } in self.damaged.values() {
            live.entry(entry.place.slot).or_default().damaged += 1;
        }
    }

    /// Forgets tombstones up to a tick, among the first `most` entries after `after`; gives how many, and the last one that was
    /// looked at, if others follow.
    pub fn forget_tombstones(
        &mut self,
        up_to: u32,
        after: Option<ChunkId>,
        most: usize,
    ) -> (u64, Option<ChunkId>) {
        let mut entries = self.entries.after(after);
        let (mut old, mut last) = (Vec::new(), None);
        for (key, known) in entries.by_ref().take(most) {
            last = Some(key.1);
            if matches!(known, Known::Buried { tick, .. } if tick <= up_to) {
                old.push(key);
            }
        }
        let last = last.filter(|_| entries.next().is_some());
        drop(entries);
        for key in &old {
            self.entries.remove(key);
        }
        self.tombstones -= old.len() as u64;
        (old.len() as u64, last)
    }

    pub fn chunks(&self) -> u64 {
        self.entries.len() as u64 - self.tombstones
    }

    pub fn tombstones(&self) -> u64 {
        self.tombstones
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> u64 {
        let damaged = self.damaged.len() * size_of::<(Key, Damage)>();
        (self.entries.memory_bytes() + damaged) as u64
    }

    /// Counts and digests of one placement group, by number of copies.
    pub fn summarize(&self, pg_bits: u8, pg: PgId, scope: Scope) -> Vec<CopySummary> {
        let mut by_copies: Vec<CopySummary> = Vec::new();
        let (first, last) = keys(pg_bits, pg);
        let whole = self.entries.range(Bound::Included(first), Bound::Included(last));
        let wanted = |((_, id), known): &(Key, Known)| scope.has(id.generation) && scope.wants(known);
        for ((hash, _), known) in whole.chain(self.damaged_in(pg_bits, pg, scope)).filter(wanted) {
            let copies = match known {
                Known::Present(entry) | Known::Damaged(entry) => entry.copies,
                Known::Buried { copies, .. } => copies,
            };
            let at = by_copies.iter().position(|summary| summary.copies == copies).unwrap_or_else(|| {
                by_copies.push(CopySummary { copies, ..CopySummary::default() });
                by_copies.len() - 1
            });
            let summary = &mut by_copies[at];
            let (count, digest) = match known {
                Known::Present(_) | Known::Damaged(_) => (&mut summary.chunks, &mut summary.chunk_digest),
                Known::Buried { .. } => (&mut summary.tombstones, &mut summary.tombstone_digest),
            };
            *count += 1;
            *digest = digest.wrapping_add(hash);
        }
        by_copies.sort_by_key(|summary| summary.copies);
        by_copies
    }

    /// Damaged chunks of a group, if the scope has them.
    fn damaged_in(&self, pg_bits: u8, pg: PgId, scope: Scope) -> impl Iterator<Item = (Key, Known)> + '_ {
        let (first, last) = keys(pg_bits, pg);
        let damaged = match scope {
            Scope::Whole { .. } => None,
            Scope::OnDisk { .. } => Some(self.damaged.range(first..=last)),
        };
        damaged.into_iter().flatten().map(|(key, damage)| (*key, Known::Damaged(damage.entry)))
    }

    /// At most `limit` lines of one placement group, those after `after`.
    pub fn inventory(
        &self,
        pg_bits: u8,
        pg: PgId,
        scope: Scope,
        after: Option<Key>,
        limit: usize,
    ) -> Vec<InventoryEntry> {
        let (first, last) = keys(pg_bits, pg);
        let start = match after {
            Some(after) if after >= last => return Vec::new(),
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        let behind = |(key, _): &(Key, Known)| after.is_none_or(|after| *key > after);
        let mut lines: Vec<(Key, Known)> = self
            .entries
            .range(start, Bound::Included(last))
            .filter(|((_, id), known)| scope.has(id.generation) && scope.wants(known))
            .take(limit)
            .collect();
        let whole = lines.len();
        lines.extend(
            self.damaged_in(pg_bits, pg, scope)
                .filter(behind)
                .filter(|((_, id), _)| scope.has(id.generation))
                .take(limit),
        );
        if lines.len() > whole {
            lines.sort_by_key(|(key, _)| *key);
            lines.truncate(limit);
        }
        lines
            .into_iter()
            .map(|((_, id), known)| match known {
                Known::Present(Entry { volume, copies, plain_length, .. })
                | Known::Damaged(Entry { volume, copies, plain_length, .. }) => {
                    InventoryEntry { id, volume, copies, plain_length, buried: None }
                }
                Known::Buried { volume, copies, tick } => {
                    InventoryEntry { id, volume, copies, plain_length: 0, buried: Some(tick) }
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn id(number: u32) -> ChunkId {
        ChunkId { generation: Generation([3; 16]), index: number }
    }

    fn entry(copies: u8, slot: u32) -> Entry {
        Entry { volume: VolumeId(1), copies, plain_length: 10, place: Place::new(slot, 4096) }
    }

    fn tombstone(number: u32, copies: u8) -> Tombstone {
        Tombstone { id: id(number), volume: VolumeId(1), copies, tick: 7 }
    }

    #[test]
    fn a_grave_is_respected() {
        let mut index = Index::default();
        index.insert(id(1), entry(3, 0)).unwrap();
        assert_eq!(index.bury(tombstone(1, 3)), Some(entry(3, 0)));
        assert_eq!(index.bury(tombstone(1, 3)), None);
        assert_eq!(
            index.insert(id(1), entry(3, 1)),
            Err(Known::Buried { volume: VolumeId(1), copies: 3, tick: 7 })
        );
        assert_eq!((index.chunks(), index.tombstones()), (0, 1));
        assert!(!index.set_apart(id(1), entry(3, 0).place));
    }

    #[test]
    fn a_grave_is_forgotten_when_it_is_old() {
        let mut index = Index::default();
        index.insert(id(1), entry(3, 0)).unwrap();
        for (number, tick) in [(2, 5), (3, 6), (4, 9)] {
            index.bury(Tombstone { tick, ..tombstone(number, 3) });
        }
        // The later one of two counts, in whatever order they come.
        for tick in [9, 5] {
            index.bury(Tombstone { tick, ..tombstone(3, 3) });
        }
        let since = |tombstones_since| {
            let scope = Scope::Whole { tombstones_since };
            let lines = index.inventory(0, PgId(0), scope, None, 9);
            let summary = index.summarize(0, PgId(0), scope)[0];
            assert_eq!(lines.len() as u64, summary.chunks + summary.tombstones);
            summary.tombstones
        };
        assert_eq!([since(0), since(5), since(6), since(9), since(10)], [3, 3, 2, 2, 0]);
        assert_eq!(index.forget_tombstones(4, None, 9), (0, None));
        let (mut forgotten, mut after, mut looks) = (0, None, 0);
        loop {
            let (more, last) = index.forget_tombstones(8, after, 2);
            (forgotten, after, looks) = (forgotten + more, last, looks + 1);
            if after.is_none() {
                break;
            }
        }
        assert_eq!((forgotten, looks), (1, 2));
        assert_eq!((index.chunks(), index.tombstones()), (1, 2));
        assert_eq!(index.presence(id(2)), Presence::Absent);
    }

    #[test]
    fn a_damaged_chunk_is_absent_but_not_forgotten() {
        let mut index = Index::default();
        index.insert(id(1), entry(3, 0)).unwrap();
        index.take(id(1), entry(3, 5));
        assert!(!index.set_apart(id(1), entry(3, 0).place), "it has moved");
        assert_eq!(index.in_segment(5, None, 9), (vec![(id(1), entry(3, 5))], None));
        assert_eq!(index.in_segment(4, None, 9), (vec![], None));
        assert!(index.set_apart(id(1), entry(3, 5).place));
        assert!(!index.set_apart(id(1), entry(3, 5).place), "once");
        assert_eq!(index.get(id(1)), Some(Known::Damaged(entry(3, 5))));
        assert_eq!(index.presence(id(1)), Presence::Absent);
        assert_eq!((index.chunks(), index.damaged_chunks()), (0, (1, 0)));
        let all = PgId(0);
        let lines = |index: &Index, scope| {
            let sum: u64 = index.summarize(0, all, scope).iter().map(|summary| summary.chunks).sum();
            (index.inventory(0, all, scope, None, 9).len() as u64, sum)
        };
        let epoch = id(1).generation.epoch();
        assert_eq!(lines(&index, Scope::ALL), (0, 0));
        assert_eq!(lines(&index, Scope::OnDisk { max_epoch: epoch }), (1, 1));
        assert_eq!(lines(&index, Scope::OnDisk { max_epoch: epoch - 1 }), (0, 0));
        index.insert(id(2), entry(3, 1)).unwrap();
        assert_eq!(lines(&index, Scope::ALL), (1, 1));
        let scope = Scope::OnDisk { max_epoch: u32::MAX };
        let first = index.inventory(0, all, scope, None, 1);
        let second = index.inventory(0, all, scope, Some((first[0].id.hash(), first[0].id)), 9);
        assert_eq!((first.len(), second.len()), (1, 1), "page by page");
        assert!(first[0].id.hash() < second[0].id.hash());
        assert_eq!(index.damaged(None, 9), [(id(1), Damage { entry: entry(3, 5), torn: false })]);
        assert!(index.damaged(Some(id(1)), 9).is_empty());
        assert_eq!(index.insert(id(1), entry(3, 6)), Ok(Some(entry(3, 5))), "what it replaces");
        assert_eq!((index.chunks(), index.damaged_chunks()), (2, (0, 0)));
        assert!(index.set_apart(id(1), entry(3, 6).place));
        assert_eq!(index.bury(tombstone(1, 3)), Some(entry(3, 6)));
        assert_eq!((index.chunks(), index.tombstones(), index.damaged_chunks()), (1, 1, (0, 0)));
    }

    #[test]
    fn a_torn_chunk_is_absent_and_counted_apart() {
        let mut index = Index::default();
        let torn = |slot| Damage { entry: entry(3, slot), torn: true };
        index.put_apart(id(1), torn(1));
        assert_eq!((index.presence(id(1)), index.damaged_chunks()), (Presence::Absent, (0, 1)));
        assert!(!index.recall(id(1), entry(3, 2).place), "another place");
        assert!(index.recall(id(1), entry(3, 1).place));
        assert_eq!(index.damaged_chunks(), (1, 0), "it was whole once");
        assert!(!index.restore(id(1), entry(3, 2).place), "another place");
        assert!(index.restore(id(1), entry(3, 1).place));
        assert_eq!((index.presence(id(1)), index.damaged_chunks()), (Presence::Present, (0, 0)));
        index.put_apart(id(1), torn(2));
        assert_eq!((index.chunks(), index.damaged_chunks()), (0, (0, 1)));
        assert_eq!(index.insert(id(1), entry(3, 3)), Ok(Some(entry(3, 2))));
        index.bury(tombstone(1, 3));
        index.put_apart(id(1), torn(1));
        assert_eq!((index.presence(id(1)), index.tombstones()), (Presence::Buried, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn groups_divide_the_index(puts in vec((0u32..500, 1u8..4, any::<bool>()), 0..200), pg_bits in 0u8..6, page in 1usize..20) {
            let mut index = Index::default();
            for (number, copies, dead) in puts {
                if dead {
                    index.bury(tombstone(number, copies));
                } else {
                    let _ = index.insert(id(number), entry(copies, 0));
                }
            }
            let (mut chunks, mut tombstones, mut digest) = (0, 0, 0u64);
            for pg in 0..1 << pg_bits {
                let mut lines = Vec::new();
                let mut after = None;
                loop {
                    let more = index.inventory(pg_bits, PgId(pg), Scope::ALL, after, page);
                    let Some(last) = more.last() else { break };
                    after = Some((last.id.hash(), last.id));
                    lines.extend(more);
                }
                prop_assert!(lines.is_sorted_by_key(|line| (line.id.hash(), line.id)));
                prop_assert!(lines.iter().all(|line| line.id.pg(pg_bits) == PgId(pg)));
                for summary in index.summarize(pg_bits, PgId(pg), Scope::ALL) {
                    let of = |dead| lines.iter().filter(move |l| l.buried.is_some() == dead && l.copies == summary.copies);
                    prop_assert_eq!(of(false).count() as u64, summary.chunks);
                    prop_assert_eq!(of(true).count() as u64, summary.tombstones);
                    let sum = of(false).fold(0u64, |sum, line| sum.wrapping_add(line.id.hash()));
                    prop_assert_eq!(sum, summary.chunk_digest);
                    chunks += summary.chunks;
                    tombstones += summary.tombstones;
                    digest = digest.wrapping_add(sum);
                }
            }
            prop_assert_eq!((chunks, tombstones), (index.chunks(), index.tombstones()));
        }
    }
}
