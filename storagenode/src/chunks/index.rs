//! What is on this disk, in memory: present and buried chunks, in order of (hash, id).
//!
//! A placement group is a range of hashes, so one order serves any number of groups.

use std::{
    collections::BTreeMap,
    ops::{Bound, RangeInclusive},
};

use cairn_placement::{ChunkId, Generation, PgId, VolumeId};

use super::{CopySummary, InventoryEntry, Presence, format::Tombstone, header::ChunkHeader};

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

    pub fn offset(self) -> u64 {
        u64::from(self.eighth) * 8
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
    Buried { volume: VolumeId, copies: u8 },
}

/// The index. See the module's doc.
#[derive(Default)]
pub struct Index {
    entries: BTreeMap<(u64, ChunkId), Known>,
    tombstones: u64,
}

fn key(id: ChunkId) -> (u64, ChunkId) {
    (id.hash(), id)
}

fn keys(pg_bits: u8, pg: PgId) -> RangeInclusive<(u64, ChunkId)> {
    let (low, high) = pg.hash_range(pg_bits);
    let first = ChunkId { generation: Generation([0; 16]), index: 0 };
    let last = ChunkId { generation: Generation([0xff; 16]), index: u32::MAX };
    (low, first)..=(high, last)
}

impl Index {
    pub fn get(&self, id: ChunkId) -> Option<Known> {
        self.entries.get(&key(id)).copied()
    }

    pub fn presence(&self, id: ChunkId) -> Presence {
        match self.get(id) {
            Some(Known::Present(_)) => Presence::Present,
            Some(Known::Buried { .. }) => Presence::Buried,
            None => Presence::Absent,
        }
    }

    /// Puts a chunk where it is, or gives what is known of it and forbids that: a buried chunk stays so.
    pub fn insert(&mut self, id: ChunkId, entry: Entry) -> Result<(), Known> {
        match self.entries.entry(key(id)) {
            std::collections::btree_map::Entry::Vacant(vacant) => {
                vacant.insert(Known::Present(entry));
                Ok(())
            }
            std::collections::btree_map::Entry::Occupied(occupied) => Err(*occupied.get()),
        }
    }

    /// Moves a present chunk to a better place.
    pub fn replace(&mut self, id: ChunkId, entry: Entry) {
        let old = self.entries.insert(key(id), Known::Present(entry));
        debug_assert!(matches!(old, Some(Known::Present(_))));
    }

    /// Buries a chunk for good; gives what was present.
    pub fn bury(&mut self, tombstone: Tombstone) -> Option<Entry> {
        let Tombstone { id, volume, copies } = tombstone;
        match self.entries.insert(key(id), Known::Buried { volume, copies }) {
            Some(Known::Present(entry)) => {
                self.tombstones += 1;
                Some(entry)
            }
            Some(Known::Buried { .. }) => None,
            None => {
                self.tombstones += 1;
                None
            }
        }
    }

    /// Takes a chunk out whose bytes are wrong, if it is still at that place.
    pub fn remove(&mut self, id: ChunkId, place: Place) -> bool {
        let there = matches!(self.get(id), Some(Known::Present(entry)) if entry.place == place);
        if there {
            self.entries.remove(&key(id));
        }
        there
    }

    /// Chunks whose records are in one segment. Looks at every entry.
    pub fn in_segment(&self, slot: u32) -> Vec<(ChunkId, Entry)> {
        self.entries
            .iter()
            .filter_map(|((_, id), known)| match known {
                Known::Present(entry) if entry.place.slot == slot => Some((*id, *entry)),
                _ => None,
            })
            .collect()
    }

    pub fn chunks(&self) -> u64 {
        self.entries.len() as u64 - self.tombstones
    }

    pub fn tombstones(&self) -> u64 {
        self.tombstones
    }

    /// Counts and digests of one placement group, by number of copies.
    pub fn summarize(&self, pg_bits: u8, pg: PgId) -> Vec<CopySummary> {
        let mut by_copies: Vec<CopySummary> = Vec::new();
        for ((hash, _), known) in self.entries.range(keys(pg_bits, pg)) {
            let copies = match known {
                Known::Present(entry) => entry.copies,
                Known::Buried { copies, .. } => *copies,
            };
            let at = by_copies.iter().position(|summary| summary.copies == copies).unwrap_or_else(|| {
                by_copies.push(CopySummary { copies, ..CopySummary::default() });
                by_copies.len() - 1
            });
            let summary = &mut by_copies[at];
            let (count, digest) = match known {
                Known::Present(_) => (&mut summary.chunks, &mut summary.chunk_digest),
                Known::Buried { .. } => (&mut summary.tombstones, &mut summary.tombstone_digest),
            };
            *count += 1;
            *digest = digest.wrapping_add(*hash);
        }
        by_copies.sort_by_key(|summary| summary.copies);
        by_copies
    }

    /// At most `limit` lines of one placement group, those after `after`.
    pub fn inventory(
        &self,
        pg_bits: u8,
        pg: PgId,
        after: Option<(u64, ChunkId)>,
        limit: usize,
    ) -> Vec<InventoryEntry> {
        let all = keys(pg_bits, pg);
        let start = match after {
            Some(after) if after >= *all.end() => return Vec::new(),
            Some(after) if after >= *all.start() => Bound::Excluded(after),
            _ => Bound::Included(*all.start()),
        };
        self.entries
            .range((start, Bound::Included(*all.end())))
            .take(limit)
            .map(|((_, id), known)| match *known {
                Known::Present(Entry { volume, copies, plain_length, .. }) => {
                    InventoryEntry { id: *id, volume, copies, plain_length, tombstone: false }
                }
                Known::Buried { volume, copies } => {
                    InventoryEntry { id: *id, volume, copies, plain_length: 0, tombstone: true }
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
        Tombstone { id: id(number), volume: VolumeId(1), copies }
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<((u64, ChunkId), Known)>() <= 56);
    }

    #[test]
    fn a_grave_is_for_ever() {
        let mut index = Index::default();
        index.insert(id(1), entry(3, 0)).unwrap();
        assert_eq!(index.bury(tombstone(1, 3)), Some(entry(3, 0)));
        assert_eq!(index.bury(tombstone(1, 3)), None);
        assert_eq!(index.insert(id(1), entry(3, 1)), Err(Known::Buried { volume: VolumeId(1), copies: 3 }));
        assert_eq!((index.chunks(), index.tombstones()), (0, 1));
        assert!(!index.remove(id(1), entry(3, 0).place));
    }

    #[test]
    fn only_the_damaged_place_is_removed() {
        let mut index = Index::default();
        index.insert(id(1), entry(3, 0)).unwrap();
        index.replace(id(1), entry(3, 5));
        assert!(!index.remove(id(1), entry(3, 0).place));
        assert_eq!(index.in_segment(5), [(id(1), entry(3, 5))]);
        assert!(index.remove(id(1), entry(3, 5).place));
        assert_eq!(index.presence(id(1)), Presence::Absent);
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
                    let more = index.inventory(pg_bits, PgId(pg), after, page);
                    let Some(last) = more.last() else { break };
                    after = Some((last.id.hash(), last.id));
                    lines.extend(more);
                }
                prop_assert!(lines.is_sorted_by_key(|line| (line.id.hash(), line.id)));
                prop_assert!(lines.iter().all(|line| line.id.pg(pg_bits) == PgId(pg)));
                for summary in index.summarize(pg_bits, PgId(pg)) {
                    let of = |dead| lines.iter().filter(move |l| l.tombstone == dead && l.copies == summary.copies);
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
