//! Pure decisions of the sweep: what may be swept, what was left behind, what becomes of what was found before.

use std::collections::{BTreeMap, BTreeSet};

use cairn_placement::{Generation, VolumeId};

use super::super::repair::plan::Held;
use crate::meta::keys::quarantine::QuarantineRecord;

/// The newest epoch that sweep `number` may take from: what is newer may still be committed.
pub fn sweepable(number: u32) -> Option<u32> {
    number.checked_sub(2)
}

/// What is on disks of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remains {
    pub volume: VolumeId,
    pub copies: u8,
    /// Indices below this.
    pub chunks: u32,
}

/// Generations that are on disks, and that no file has been found to name.
#[derive(Debug, Default)]
pub struct Unnamed {
    remains: BTreeMap<Generation, Remains>,
    named: BTreeSet<Generation>,
}

impl Unnamed {
    /// Takes up what is on a disk, if it may be swept.
    pub fn found(&mut self, max_epoch: u32, line: &Held) {
        if line.buried.is_some() || line.id.generation.epoch() > max_epoch {
            return;
        }
        let new = Remains { volume: line.volume, copies: line.copies, chunks: 0 };
        let remains = self.remains.entry(line.id.generation).or_insert(new);
        remains.chunks = remains.chunks.max(line.id.index.saturating_add(1));
        remains.copies = remains.copies.max(line.copies);
    }

    /// Strikes out what a record, an upload or the collection queue names.
    pub fn named(&mut self, generation: Generation) {
        if self.remains.remove(&generation).is_some() {
            self.named.insert(generation);
        }
    }

    /// Everything is struck out.
    pub fn is_empty(&self) -> bool {
        self.remains.is_empty()
    }

    /// What is left, and what was struck out.
    pub fn finish(self) -> (BTreeMap<Generation, Remains>, BTreeSet<Generation>) {
        (self.remains, self.named)
    }
}

/// What a sweep has to do about one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Found for the first time: it rests.
    Quarantine(Remains),
    /// Found again, and its rest is over.
    Collect(Remains),
    /// Found again: it goes on resting.
    Wait,
    /// On no disk that answered: nothing is left to do.
    LetGo,
    /// A file names it after all.
    Alarm,
}

/// Decides about one generation, from what an earlier sweep noted and what this one found.
pub fn step(
    known: Option<&QuarantineRecord>,
    remains: Option<&Remains>,
    named: bool,
    sweep: u32,
    tick: u64,
    rest_ticks: u64,
) -> Step {
    match (known, remains) {
        (Some(_), _) if named => Step::Alarm,
        (None, Some(remains)) => Step::Quarantine(*remains),
        (Some(known), Some(remains)) => {
            let rested = tick >= known.tick.saturating_add(rest_ticks) && sweep > known.sweep;
            // What an earlier sweep saw of it may be on a node that is away now.
            let chunks = remains.chunks.max(known.chunks);
            if rested { Step::Collect(Remains { chunks, ..*remains }) } else { Step::Wait }
        }
        (_, None) => Step::LetGo,
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::ChunkId;

    use super::*;

    fn generation(epoch: u32, n: u8) -> Generation {
        Generation::mint(epoch, [n; 12])
    }

    fn held(epoch: u32, n: u8, index: u32) -> Held {
        let id = ChunkId { generation: generation(epoch, n), index };
        Held { id, volume: VolumeId(4), copies: 3, buried: None }
    }

    const REMAINS: Remains = Remains { volume: VolumeId(4), copies: 3, chunks: 8 };

    fn known(tick: u64, sweep: u32) -> QuarantineRecord {
        QuarantineRecord { volume: 4, copies: 3, chunks: 9, tick, sweep }
    }

    #[test]
    fn two_sweeps_are_between_minting_and_sweeping() {
        assert_eq!((sweepable(0), sweepable(1), sweepable(2), sweepable(9)), (None, None, Some(0), Some(7)));
    }

    #[test]
    fn only_what_is_old_and_unnamed_is_left() {
        let mut unnamed = Unnamed::default();
        for line in [held(3, 1, 0), held(3, 1, 7), held(3, 2, 0), held(4, 3, 0)] {
            unnamed.found(3, &line);
        }
        unnamed.found(3, &Held { buried: Some(1), ..held(2, 9, 0) });
        unnamed.named(generation(3, 2));
        unnamed.named(generation(1, 77));
        let (left, named) = unnamed.finish();
        assert_eq!(left, BTreeMap::from([(generation(3, 1), REMAINS)]));
        assert_eq!(named, BTreeSet::from([generation(3, 2)]));
    }

    #[test]
    fn nothing_goes_before_it_was_found_twice_and_has_rested() {
        let step = |known: Option<QuarantineRecord>, found, named, sweep, tick| {
            super::step(known.as_ref(), found, named, sweep, tick, 100)
        };
        let found = Some(&REMAINS);
        assert_eq!(step(None, found, false, 5, 1_000), Step::Quarantine(REMAINS));
        assert_eq!(step(Some(known(1_000, 5)), found, false, 5, 9_000), Step::Wait, "by the same sweep");
        assert_eq!(step(Some(known(1_000, 5)), found, false, 6, 1_099), Step::Wait, "too early");
        let all = Remains { chunks: 9, ..REMAINS };
        assert_eq!(step(Some(known(1_000, 5)), found, false, 6, 1_100), Step::Collect(all));
        assert_eq!(step(Some(known(1_000, 5)), None, false, 6, 1_100), Step::LetGo);
        assert_eq!(step(Some(known(1_000, 5)), None, true, 6, 1_100), Step::Alarm);
        assert_eq!(step(Some(known(1_000, 5)), found, true, 6, 1_100), Step::Alarm);
    }
}
