//! Deletions are remembered for a week (R7), and longer only where the disk needs it.
//!
//! A tombstone keeps a chunk from coming back: from another member that was away, from an upload whose last bytes are late, from
//! an older record on the same disk. What comes back after a week is of a generation that no file names, and the sweep removes it
//! (R2). The disk's own older records are another matter: they are there for as long as their segment is.
//!
//! * After a week the index forgets a tombstone.
//! * Compaction copies a tombstone while it is young, and while another segment has a record of its chunk that would count without
//!   it. The table of segments knows: whenever a record ceases to count, its chunk is noted with its segment (4 bytes).
//! * When members compare what they hold, they leave out tombstones that are older than six days: their clocks, and the moments
//!   at which they forget, differ.

use std::collections::HashSet;

use super::{
    format::{Body, Tombstone},
    index::Known,
    scan::Found,
    segment::short_hash,
    store::{ChunkStore, Inner},
};

/// Entries of the index looked at without letting others to it.
const LOOKED_AT_ONCE: usize = 10_000;

impl ChunkStore {
    /// Tombstones that are younger, or as old, are compared with those of other members.
    pub fn tombstones_since(&self) -> u32 {
        let compared = self.inner.options.tombstone_ticks / 7 * 6;
        self.inner.tick().saturating_sub(compared)
    }

    /// Forgets the tombstones that are old; gives how many.
    pub async fn forget_old_tombstones(&self) -> u64 {
        let Some(old) = self.inner.old_tombstones() else { return 0 };
        let (mut forgotten, mut after) = (0, None);
        loop {
            let (more, last) = self.inner.index.write().forget_tombstones(old, after, LOOKED_AT_ONCE);
            (forgotten, after) = (forgotten + more, last);
            if after.is_none() {
                return forgotten;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Of a segment's tombstones, those that keep a record in another segment from counting: short hashes of their chunks.
    pub(super) async fn needed_tombstones(&self, slot: u32, found: &[Found]) -> HashSet<u32> {
        let hashes = found.iter().filter_map(|found| match &found.record.body {
            Body::Tombstone(tombstone) => Some(short_hash(tombstone.id)),
            _ => None,
        });
        let hashes: HashSet<u32> = hashes.collect();
        if hashes.is_empty() {
            return hashes;
        }
        let inner = self.inner.clone();
        self.inner.env.blocking(move || inner.table.dead_elsewhere(slot, &hashes)).await
    }
}

impl Inner {
    /// The coordinator's minutes, as last seen.
    pub fn tick(&self) -> u32 {
        u32::try_from(self.sighting.lock().tick).unwrap_or(u32::MAX)
    }

    /// Tombstones up to this tick are old.
    pub fn old_tombstones(&self) -> Option<u32> {
        self.tick().checked_sub(self.options.tombstone_ticks)
    }

    /// Whether a tombstone must stay on the disk; `needed` are those that keep another record from counting.
    pub fn wants(&self, tombstone: &Tombstone, needed: &HashSet<u32>) -> bool {
        if needed.contains(&short_hash(tombstone.id)) {
            return true;
        }
        // A later one is in another segment, or behind it in this one.
        let known = self.index.read().get(tombstone.id);
        let superseded = matches!(known, Some(Known::Buried { tick, .. }) if tick > tombstone.tick);
        !superseded && self.old_tombstones().is_none_or(|old| tombstone.tick > old)
    }
}
