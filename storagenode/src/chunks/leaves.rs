//! The index's map: chunks in order of (hash, id), packed into leaves.
//!
//! A node has one line for each chunk in memory, so a line's size decides how many small files a machine can hold. A line
//! is 40 bytes; the hash is not in it, since it is computed from the id in a few nanoseconds. Lines are kept in sorted leaves of
//! up to [`LEAF_LINES`], which grow by an eighth at a time, and a tree holds the leaves: about 43 bytes a chunk, all told,
//! where a tree of the lines themselves needs about 80.

use std::{collections::BTreeMap, ops::Bound};

use cairn_placement::{ChunkId, Generation, VolumeId};

use super::index::{Entry, Known, Place};

/// A leaf with more is split. What an insertion moves is a part of one leaf, 10 KiB on average.
const LEAF_LINES: usize = 512;
/// A leaf with fewer is put together with the next one, if there is room in it.
const FEW_LINES: usize = 64;

/// A chunk's hash, and its id.
pub type Key = (u64, ChunkId);

/// Before every other one.
const FIRST: Key = (0, ChunkId { generation: Generation([0; 16]), index: 0 });

/// What is known of one chunk: of a present one its place, of a buried one when that was.
#[derive(Debug, Clone, Copy)]
struct Line {
    generation: Generation,
    index: u32,
    volume: VolumeId,
    length_or_tick: u32,
    slot: u32,
    eighth: u32,
    copies: u8,
    is_buried: bool,
}

impl Line {
    fn new(id: ChunkId, known: &Known) -> Self {
        let ChunkId { generation, index } = id;
        match *known {
            Known::Present(Entry { volume, copies, plain_length, place })
            | Known::Damaged(Entry { volume, copies, plain_length, place }) => {
                let (slot, eighth) = place.parts();
                let length_or_tick = plain_length;
                Self { generation, index, volume, length_or_tick, slot, eighth, copies, is_buried: false }
            }
            Known::Buried { volume, copies, tick } => Self {
                generation,
                index,
                volume,
                length_or_tick: tick,
                slot: 0,
                eighth: 0,
                copies,
                is_buried: true,
            },
        }
    }

    fn key(&self) -> Key {
        let id = ChunkId { generation: self.generation, index: self.index };
        (id.hash(), id)
    }

    fn known(&self) -> Known {
        let Self { volume, length_or_tick, slot, eighth, copies, is_buried, .. } = *self;
        if is_buried {
            return Known::Buried { volume, copies, tick: length_or_tick };
        }
        let place = Place::of_parts(slot, eighth);
        Known::Present(Entry { volume, copies, plain_length: length_or_tick, place })
    }
}

/// A map from chunks to what is known of them. Chunks that are damaged do not belong here.
#[derive(Debug, Default)]
pub struct Leaves {
    /// By a key that is not after the leaf's first one, and after the last one of the leaf before; the first leaf's is [`FIRST`].
    leaves: BTreeMap<Key, Vec<Line>>,
    lines: usize,
}

impl Leaves {
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Bytes of memory that the lines and leaves take.
    pub fn memory_bytes(&self) -> usize {
        let lines: usize = self.leaves.values().map(Vec::capacity).sum();
        lines * size_of::<Line>() + self.leaves.len() * size_of::<(Key, Vec<Line>)>()
    }

    pub fn get(&self, key: &Key) -> Option<Known> {
        let (_, leaf) = self.leaves.range(..=*key).next_back()?;
        let at = leaf.binary_search_by(|line| line.key().cmp(key)).ok()?;
        Some(leaf[at].known())
    }

    /// Notes what is known of a chunk; gives what was known before.
    pub fn insert(&mut self, key: Key, known: &Known) -> Option<Known> {
        let line = Line::new(key.1, known);
        let (_, leaf) = match self.leaves.range_mut(..=key).next_back() {
            Some(found) => found,
            None => {
                self.leaves.insert(FIRST, vec![line]);
                self.lines = 1;
                return None;
            }
        };
        match leaf.binary_search_by(|line| line.key().cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut leaf[at], line).known()),
            Err(at) => {
                if leaf.len() == leaf.capacity() {
                    leaf.reserve_exact((leaf.len() / 8).max(4));
                }
                leaf.insert(at, line);
                self.lines += 1;
                if leaf.len() > LEAF_LINES {
                    let upper = leaf.split_off(LEAF_LINES / 2);
                    leaf.shrink_to_fit();
                    self.leaves.insert(upper[0].key(), upper);
                }
                None
            }
        }
    }

    /// Forgets a chunk; gives what was known.
    pub fn remove(&mut self, key: &Key) -> Option<Known> {
        let (first, leaf) = self.leaves.range_mut(..=*key).next_back()?;
        let at = leaf.binary_search_by(|line| line.key().cmp(key)).ok()?;
        let known = leaf.remove(at).known();
        self.lines -= 1;
        if leaf.len() < leaf.capacity() / 4 * 3 {
            leaf.shrink_to(leaf.len() + leaf.len() / 8);
        }
        if leaf.len() < FEW_LINES {
            let first = *first;
            self.merge(first);
        }
        Some(known)
    }

    /// Puts a leaf and the one after it together, if they are one leaf's worth.
    fn merge(&mut self, first: Key) {
        let after = (Bound::Excluded(first), Bound::Unbounded);
        let Some((next, leaf)) = self.leaves.range(after).next() else { return };
        if leaf.len() > LEAF_LINES / 2 {
            return;
        }
        let next = *next;
        let mut moved = self.leaves.remove(&next).expect("just seen");
        let leaf = self.leaves.get_mut(&first).expect("the leaf is there");
        leaf.reserve_exact(moved.len());
        leaf.append(&mut moved);
    }

    /// Those from `start` up to `end`, in order.
    pub fn range(&self, start: Bound<Key>, end: Bound<Key>) -> impl Iterator<Item = (Key, Known)> + '_ {
        let first = match start {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => FIRST,
        };
        let from = self.leaves.range(..=first).next_back().map_or(FIRST, |(from, _)| *from);
        let mut leaves = self.leaves.range(from..).map(|(_, leaf)| leaf.as_slice());
        let leaf = leaves.next().unwrap_or_default();
        let at = leaf.partition_point(|line| match start {
            Bound::Included(start) => line.key() < start,
            Bound::Excluded(start) => line.key() <= start,
            Bound::Unbounded => false,
        });
        let lines = leaf[at..].iter().chain(leaves.flatten());
        lines.map(|line| (line.key(), line.known())).take_while(move |(key, _)| match end {
            Bound::Included(end) => *key <= end,
            Bound::Excluded(end) => *key < end,
            Bound::Unbounded => true,
        })
    }

    /// Those after `after`.
    pub fn after(&self, after: Option<ChunkId>) -> impl Iterator<Item = (Key, Known)> + '_ {
        let start = after.map_or(Bound::Unbounded, |after| Bound::Excluded((after.hash(), after)));
        self.range(start, Bound::Unbounded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn key(number: u32) -> Key {
        let id = ChunkId { generation: Generation([3; 16]), index: number };
        (id.hash(), id)
    }

    fn known(number: u32) -> Known {
        let (volume, copies) = (VolumeId(number), (number % 7) as u8);
        if number.is_multiple_of(3) {
            return Known::Buried { volume, copies, tick: number };
        }
        let place = Place::new(number, u64::from(number) * 8);
        Known::Present(Entry { volume, copies, plain_length: number, place })
    }

    #[test]
    fn a_million_chunks_take_less_than_64_bytes_each() {
        assert_eq!(size_of::<Line>(), 40);
        let mut leaves = Leaves::default();
        for number in 0..1_000_000 {
            leaves.insert(key(number), &known(number));
        }
        let bytes = leaves.memory_bytes();
        assert!(bytes < 46_000_000, "{bytes}");
        assert!((0..1_000_000).all(|number| leaves.get(&key(number)) == Some(known(number))));
        // What is left of many is not kept at the size of the many.
        for number in (0..1_000_000u32).filter(|number| !number.is_multiple_of(100)) {
            assert_eq!(leaves.remove(&key(number)), Some(known(number)));
        }
        let bytes = leaves.memory_bytes();
        assert!(leaves.len() == 10_000 && bytes < 1_000_000, "{bytes}");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u32, u32),
        Remove(u32),
        Range(u32, u32, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let number = || 0u32..2_000;
        prop_oneof![
            4 => (number(), any::<u32>().prop_map(|n| n >> 3)).prop_map(|(n, what)| Step::Insert(n, what)),
            3 => number().prop_map(Step::Remove),
            1 => (number(), number(), any::<bool>()).prop_map(|(a, b, open)| Step::Range(a, b, open)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn it_is_a_sorted_map(filled in 0u32..2_000, steps in vec(step(), 0..3_000)) {
            let (mut leaves, mut model) = (Leaves::default(), BTreeMap::new());
            for number in 0..filled {
                leaves.insert(key(number), &known(number));
                model.insert(key(number), known(number));
            }
            for step in steps {
                match step {
                    Step::Insert(number, what) => {
                        let key = key(number);
                        prop_assert_eq!(leaves.insert(key, &known(what)), model.insert(key, known(what)));
                    }
                    Step::Remove(number) => {
                        prop_assert_eq!(leaves.remove(&key(number)), model.remove(&key(number)));
                    }
                    Step::Range(a, b, open) => {
                        let (start, end) = (key(a).min(key(b)), key(a).max(key(b)));
                        let (start, end) = match (open, start == end) {
                            (true, false) => (Bound::Excluded(start), Bound::Excluded(end)),
                            _ => (Bound::Included(start), Bound::Included(end)),
                        };
                        let found: Vec<_> = leaves.range(start, end).collect();
                        let wanted: Vec<_> = model.range((start, end)).map(|(key, known)| (*key, *known)).collect();
                        prop_assert_eq!(found, wanted);
                    }
                }
                prop_assert_eq!(leaves.len(), model.len());
            }
            let all: Vec<_> = leaves.after(None).collect();
            prop_assert_eq!(&all, &model.iter().map(|(key, known)| (*key, *known)).collect::<Vec<_>>());
            if let Some((middle, _)) = all.get(all.len() / 2) {
                prop_assert_eq!(leaves.after(Some(middle.1)).count(), all.len() - all.len() / 2 - 1);
            }
        }
    }
}
