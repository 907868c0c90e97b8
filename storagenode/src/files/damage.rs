//! What could not be read though every holder answered.
//!
//! Damage in the middle of a file shows when a part of it is out already: then the download can only break off, and over
//! HTTP its reader never learns why. So this gateway remembers where it was, and the next download that wants that part
//! reads it first: it is refused, with the file's name, as long as a refusal can be given. What can be read again was
//! repaired, and is forgotten. Nothing is lost with this memory but the early word.

use std::{collections::VecDeque, ops::Range};

use cairn_placement::{ChunkId, Generation};
use parking_lot::Mutex;

/// Beyond these, the oldest is forgotten.
const MAX_SPOTS: usize = 1_024;

/// Frames of one chunk that were asked for together, some of which have no good copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    pub id: ChunkId,
    pub frames: Range<u32>,
}

/// The spots that this gateway has met.
#[derive(Default)]
pub(super) struct Damage(Mutex<VecDeque<Spot>>);

impl Damage {
    pub(super) fn note(&self, spot: Spot) {
        let covers = |known: &Spot| {
            known.id == spot.id
                && known.frames.start <= spot.frames.start
                && spot.frames.end <= known.frames.end
        };
        let mut spots = self.0.lock();
        if spots.iter().any(covers) {
            return;
        }
        if spots.len() >= MAX_SPOTS {
            spots.pop_front();
        }
        spots.push_back(spot);
    }

    pub(super) fn of(&self, generation: Generation) -> Vec<Spot> {
        self.0.lock().iter().filter(|spot| spot.id.generation == generation).cloned().collect()
    }

    pub(super) fn forget(&self, spot: &Spot) {
        self.0.lock().retain(|known| known != spot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Generation = Generation([1; 16]);
    const B: Generation = Generation([2; 16]);

    fn spot(generation: Generation, index: u32, frames: Range<u32>) -> Spot {
        Spot { id: ChunkId { generation, index }, frames }
    }

    #[test]
    fn spots_are_kept_by_generation_until_they_are_forgotten() {
        let damage = Damage::default();
        damage.note(spot(A, 0, 0..16));
        damage.note(spot(A, 1, 0..16));
        damage.note(spot(B, 0, 0..16));
        // Known already, or a part of what is known.
        damage.note(spot(A, 0, 0..16));
        damage.note(spot(A, 1, 3..4));
        assert_eq!(damage.of(A), [spot(A, 0, 0..16), spot(A, 1, 0..16)]);
        damage.forget(&spot(A, 0, 0..16));
        assert_eq!(damage.of(A), [spot(A, 1, 0..16)]);
        assert_eq!(damage.of(B), [spot(B, 0, 0..16)]);
    }

    #[test]
    fn the_oldest_make_room() {
        let damage = Damage::default();
        damage.note(spot(A, 0, 0..16));
        for index in 0..MAX_SPOTS as u32 - 1 {
            damage.note(spot(B, index, 0..16));
        }
        assert_eq!(damage.of(A).len(), 1);
        damage.note(spot(B, MAX_SPOTS as u32, 0..16));
        assert!(damage.of(A).is_empty());
        assert_eq!(damage.of(B).len(), MAX_SPOTS);
    }
}
