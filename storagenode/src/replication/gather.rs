//! Putting a chunk together from copies none of which is whole.
//!
//! Each frame has a checksum of its own, so a frame that is damaged in one copy can be taken from another. A chunk is lost
//! only when one of its frames is damaged or gone everywhere.

use std::ops::Range;

use bytes::Bytes;
use cairn_placement::NodeId;
use cairn_proto::v1::ErrorCode;

use super::{peers::PeerError, read::Failures};
use crate::chunks::ChunkHeader;

/// The copies of one chunk.
pub trait Copies: Sync {
    /// Reads frames of one copy: all of them, or an error. No frames are the header alone.
    fn read(
        &self,
        holder: NodeId,
        frames: Range<u32>,
    ) -> impl Future<Output = Result<(ChunkHeader, Vec<Bytes>), PeerError>> + Send;
}

/// Frames of a chunk (clamped to those it has) from `holders`, in that order.
pub async fn gather(
    copies: &impl Copies,
    holders: Vec<NodeId>,
    frames: Range<u32>,
) -> Result<(ChunkHeader, Vec<Bytes>), Failures> {
    let mut failures = Failures::default();
    let mut known: Option<(ChunkHeader, Gaps)> = None;
    for holder in holders {
        let header = match copies.read(holder, 0..0).await {
            Ok((header, _)) => header,
            Err(error) => {
                failures.note(&error);
                continue;
            }
        };
        let (known_header, gaps) = known.get_or_insert_with(|| {
            let gaps = Gaps::new(header.clamp(frames.clone()));
            (header.clone(), gaps)
        });
        if header != *known_header {
            failures.corrupt = true;
            continue;
        }
        if let Err(error) = gaps.fill(copies, holder).await {
            failures.note(&error);
        }
        if let Some(frames) = gaps.filled() {
            return Ok((header, frames));
        }
    }
    // A copy gave its header, and then not all that was wanted.
    failures.corrupt |= known.is_some();
    Err(failures)
}

/// What is still wanted of a chunk.
struct Gaps {
    first: u32,
    frames: Vec<Option<Bytes>>,
}

impl Gaps {
    fn new(frames: Range<u32>) -> Self {
        Self { first: frames.start, frames: vec![None; frames.len()] }
    }

    /// Takes from one copy what is sound of what is wanted. An error ends it; damage does not.
    async fn fill(&mut self, copies: &impl Copies, holder: NodeId) -> Result<(), PeerError> {
        let mut wanted = self.runs();
        while let Some(run) = wanted.pop() {
            match copies.read(holder, run.clone()).await {
                Ok((_, frames)) => {
                    for (frame, bytes) in run.zip(frames) {
                        self.frames[(frame - self.first) as usize] = Some(bytes);
                    }
                }
                Err(error) if error.code != ErrorCode::DataCorrupt => return Err(error),
                Err(_) if run.len() == 1 => {}
                // One of them is damaged: halve until it is alone.
                Err(_) => {
                    let middle = run.start + run.len() as u32 / 2;
                    wanted.extend([middle..run.end, run.start..middle]);
                }
            }
        }
        Ok(())
    }

    /// Frames in a row that are wanted, the last ones first.
    fn runs(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for (frame, _) in (self.first..).zip(&self.frames).filter(|(_, bytes)| bytes.is_none()) {
            match runs.last_mut() {
                Some(run) if run.end == frame => run.end += 1,
                _ => runs.push(frame..frame + 1),
            }
        }
        runs.reverse();
        runs
    }

    /// Everything, if nothing is wanted any more.
    fn filled(&self) -> Option<Vec<Bytes>> {
        self.frames.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use cairn_placement::{ChunkId, Generation, VolumeId};
    use proptest::prelude::*;

    use super::*;

    fn header(copies: u8) -> ChunkHeader {
        let id = ChunkId { generation: Generation([1; 16]), index: 0 };
        let plain_length = 64 * 65_536;
        ChunkHeader { id, volume: VolumeId(1), copies, plain_length, frame_crcs: vec![0; 64] }
    }

    /// What one copy is like.
    #[derive(Debug, Clone)]
    enum Copy {
        Damaged(BTreeSet<u32>),
        Headless,
        Gone,
        Away,
        /// Says that it is another chunk.
        Other,
    }

    impl Copy {
        fn read(&self, frames: Range<u32>) -> Result<(ChunkHeader, Vec<Bytes>), PeerError> {
            let fail = |code| Err(PeerError::new(code, "no"));
            match self {
                Self::Damaged(bad) if bad.iter().any(|frame| frames.contains(frame)) => {
                    fail(ErrorCode::DataCorrupt)
                }
                Self::Headless => fail(ErrorCode::DataCorrupt),
                Self::Gone => fail(ErrorCode::ChunkNotFound),
                Self::Away => fail(ErrorCode::Unavailable),
                Self::Damaged(_) => Ok((header(3), frames.map(content).collect())),
                Self::Other => Ok((header(2), frames.map(|_| Bytes::from_static(b"other")).collect())),
            }
        }

        fn has(&self, frame: u32) -> bool {
            matches!(self, Self::Damaged(bad) if !bad.contains(&frame))
        }
    }

    fn content(frame: u32) -> Bytes {
        Bytes::from(frame.to_string())
    }

    struct Asked<'a>(&'a [Copy], AtomicUsize);

    impl Copies for Asked<'_> {
        async fn read(
            &self,
            holder: NodeId,
            frames: Range<u32>,
        ) -> Result<(ChunkHeader, Vec<Bytes>), PeerError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0[usize::from(holder.0)].read(frames)
        }
    }

    /// What comes of it, and how many requests that took.
    fn run(copies: &[Copy], frames: Range<u32>) -> (Result<Vec<Bytes>, Failures>, usize) {
        let holders = (0..copies.len() as u16).map(NodeId).collect();
        let asked = Asked(copies, AtomicUsize::new(0));
        let result = futures::executor::block_on(gather(&asked, holders, frames));
        (result.map(|(_, frames)| frames), asked.1.into_inner())
    }

    fn damaged(frames: impl IntoIterator<Item = u32>) -> Copy {
        Copy::Damaged(frames.into_iter().collect())
    }

    #[test]
    fn three_damaged_copies_make_a_whole_one() {
        let (found, asked) = run(&[damaged([3]), damaged([20]), damaged([40])], 0..u32::MAX);
        assert_eq!(found.unwrap(), (0..64).map(content).collect::<Vec<_>>());
        assert!(asked < 20, "{asked} requests");
    }

    #[test]
    fn what_is_bad_everywhere_is_lost_and_what_is_away_is_not() {
        let copies = [damaged([3]), damaged([3, 20]), Copy::Gone];
        assert_eq!(run(&copies, 0..16).0, Err(Failures { unreachable: false, corrupt: true }));
        assert_eq!(run(&copies, 4..16).0.unwrap().len(), 12);
        let copies = [damaged([3]), damaged([3, 20]), Copy::Away];
        assert_eq!(run(&copies, 0..16).0, Err(Failures { unreachable: true, corrupt: true }));
        assert_eq!(run(&[Copy::Gone, Copy::Gone], 0..16).0, Err(Failures::default()));
    }

    proptest! {
        #[test]
        fn exactly_what_some_copy_has_is_found(
            copies in prop::collection::vec(prop_oneof![
                6 => prop::collection::btree_set(0u32..64, 0..6).prop_map(Copy::Damaged),
                1 => Just(Copy::Headless),
                1 => Just(Copy::Gone),
                1 => Just(Copy::Away),
            ], 0..4),
            first in 0u32..70,
            count in 0u32..70,
        ) {
            let frames = first..first + count;
            let wanted: Vec<u32> = (first.min(64)..(first + count).min(64)).collect();
            let (found, asked) = run(&copies, frames);
            let there = copies.iter().any(|copy| matches!(copy, Copy::Damaged(_)))
                && wanted.iter().all(|frame| copies.iter().any(|copy| copy.has(*frame)));
            prop_assert_eq!(found.is_ok(), there);
            if let Ok(found) = found {
                prop_assert_eq!(found, wanted.into_iter().map(content).collect::<Vec<_>>());
            }
            prop_assert!(asked <= copies.len() * 130);
        }

        /// Two chunks are never mixed.
        #[test]
        fn a_copy_of_something_else_is_left_out(bad in 0u32..64, other_first in any::<bool>()) {
            let mut copies = vec![damaged([bad]), Copy::Other];
            if other_first {
                copies.reverse();
            }
            let (found, _) = run(&copies, 0..64);
            match found {
                Ok(frames) => prop_assert!(other_first && frames.iter().all(|frame| frame == "other")),
                Err(failures) => prop_assert!(!other_first && failures.corrupt),
            }
        }
    }
}
