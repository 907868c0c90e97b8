//! The content of a download: pieces are fetched ahead, as far as their reader is fast and there is memory for it.
//!
//! A download has room of its own from its beginning to its end, for a small piece and for what is on its way out: one
//! that has begun never waits for memory, and never fails for want of it as long as its reader is not slow. More is
//! taken for a fast reader, as long as there is more, and each frame gives its room back when it has left. While most of the
//! memory is free, the first piece is a whole one, too: half as many requests for a file of a few MiB.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream, stream::FuturesOrdered};
use tokio_util::sync::CancellationToken;

use super::{
    ContentOut, FileError,
    budget::{self, Budget, PERMIT_BYTES, Paced, Room},
    pieces::{PIECE_FRAMES, Piece, Pieces},
};
use crate::env::BoxFuture;

/// Frames of a download's own room.
const OWN_FRAMES: usize = 4;
/// Frames that are fetched under that room, for a reader of whom nothing is known, or who is slow. As many are on their way
/// out: one that is waited for, one behind it, and what the connection has taken.
const LEAST_FRAMES: usize = 2;
/// And for one who was fast all the time.
const MOST_FRAMES: usize = 4 * PIECE_FRAMES;
/// A reader who took what was read ahead, or a piece of it, within this time may be as fast with more.
const FAST: Duration = Duration::from_secs(1);
/// One who took longer than this for that starts again.
const SLOW: Duration = Duration::from_secs(2);

/// How many times as much a fast reader gets next.
const GROWTH: usize = 4;

type Fetched = Result<(Vec<Bytes>, Option<Room>), FileError>;

/// A download on its way to its reader.
pub(super) struct ReadAhead<F, K> {
    budget: Budget,
    paced: Paced,
    /// Goes with the last frame.
    own: Option<Room>,
    pieces: Pieces,
    fetch: F,
    coming: FuturesOrdered<BoxFuture<'static, Fetched>>,
    /// Frames of the pieces that are coming.
    coming_frames: VecDeque<usize>,
    ready: VecDeque<Bytes>,
    /// Frames to have, coming or ready.
    ahead: usize,
    /// For the reader, and frames taken, since it was last decided how far to read ahead.
    waited: Duration,
    taken: usize,
    /// Bytes of the frame that the reader has.
    given: usize,
    /// What must live as long as the download.
    _kept: K,
}

impl<F, K> ReadAhead<F, K>
where
    F: Fn(Piece) -> BoxFuture<'static, Result<Vec<Bytes>, FileError>> + Send + 'static,
    K: Send + 'static,
{
    /// Waits for a download's own room.
    pub(super) async fn begin(budget: &Budget, pieces: Pieces, fetch: F, kept: K) -> Result<Self, FileError> {
        let own = budget.take(pieces.bytes_left().min((OWN_FRAMES * PERMIT_BYTES) as u64) as usize).await?;
        let mut reading = Self {
            budget: budget.clone(),
            paced: budget.paced(),
            own: Some(own),
            pieces,
            fetch,
            coming: FuturesOrdered::new(),
            coming_frames: VecDeque::new(),
            ready: VecDeque::new(),
            ahead: LEAST_FRAMES,
            waited: Duration::ZERO,
            taken: 0,
            given: 0,
            _kept: kept,
        };
        if let Some(piece) = reading.pieces.peek(PIECE_FRAMES)
            && let Some(room) = budget.try_take_of_plenty(piece.frames.len() * PERMIT_BYTES)
        {
            reading.ask_for(piece, Some(room));
        }
        Ok(reading)
    }

    /// Set when others need the memory of this one.
    pub(super) fn ended(&self) -> CancellationToken {
        self.paced.ended()
    }

    /// The frames, in order. Ends after the first error.
    pub(super) fn content(self) -> ContentOut {
        let content = stream::unfold(Some(self), |reading| async {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(frame)) => Some((Ok(frame), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        content.boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        self.waited += self.paced.waited(self.given);
        self.taken += usize::from(self.given > 0);
        if self.taken >= self.ahead.min(PIECE_FRAMES) {
            self.adapt();
        }
        loop {
            if self.paced.ended().is_cancelled() {
                return Err(FileError::crowded_out());
            }
            self.read_ahead();
            if let Some(frame) = self.ready.pop_front() {
                self.given = frame.len();
                let own = self.own.as_ref().map_or(0, Room::num_permits);
                self.paced.waits(own + self.frames_ahead());
                let last = self.frames_ahead() == 0 && self.pieces.bytes_left() == 0;
                return Ok(Some(if last { budget::hold(frame, self.own.take()) } else { frame }));
            }
            let Some(fetched) = self.coming.next().await else { return Ok(None) };
            self.coming_frames.pop_front();
            let (frames, room) = fetched?;
            self.ready = match room {
                Some(mut room) => {
                    frames.into_iter().map(|frame| budget::hold(frame, room.split(1))).collect()
                }
                None => frames.into(),
            };
        }
    }

    /// How far to read ahead from now on, by how fast the last frames were taken.
    fn adapt(&mut self) {
        self.taken = 0;
        let waited = std::mem::take(&mut self.waited);
        if waited > SLOW {
            self.ahead = LEAST_FRAMES;
        } else if waited < FAST {
            self.ahead = (self.ahead * GROWTH).min(MOST_FRAMES);
        }
    }

    fn frames_ahead(&self) -> usize {
        self.ready.len() + self.coming_frames.iter().sum::<usize>()
    }

    /// Asks for more, as far as there is memory now.
    fn read_ahead(&mut self) {
        while self.frames_ahead() < self.ahead {
            let least = self.ahead == LEAST_FRAMES;
            let Some(piece) = self.pieces.peek(self.ahead) else { break };
            let room = if least { None } else { self.budget.try_take(piece.frames.len() * PERMIT_BYTES) };
            let piece = match &room {
                Some(_) => piece,
                // Under its own room, one at a time.
                None if self.frames_ahead() == 0 => self.pieces.peek(LEAST_FRAMES).expect("one was seen"),
                None => break,
            };
            self.ask_for(piece, room);
        }
    }

    fn ask_for(&mut self, piece: Piece, room: Option<Room>) {
        self.pieces.pass(&piece);
        self.coming_frames.push_back(piece.frames.len());
        let fetched = (self.fetch)(piece);
        self.coming.push_back(Box::pin(async move { Ok((fetched.await?, room)) }));
    }
}

#[cfg(test)]
mod tests {
    use cairn_placement::Generation;

    use super::*;
    use crate::{
        chunks::FRAME_BYTES,
        env::{Env, paused::paused},
        meta::keys::file::{Extent, FileRecord},
    };

    type Fetch = fn(Piece) -> BoxFuture<'static, Result<Vec<Bytes>, FileError>>;

    /// A download of a file of so many frames.
    async fn begin(budget: &Budget, frames: usize) -> ReadAhead<Fetch, ()> {
        let length_bytes = (frames * FRAME_BYTES) as u64;
        let record = FileRecord {
            chunk_size_bytes: 4 << 20,
            copies: 1,
            blake3: [0; 32],
            modified_unix_ms: 0,
            content_type: String::new(),
            extents: vec![Extent { generation: Generation([1; 16]), length_bytes }],
        };
        let fetch: Fetch =
            |piece| Box::pin(async move { Ok(vec![Bytes::from(vec![7; FRAME_BYTES]); piece.frames.len()]) });
        ReadAhead::begin(budget, Pieces::new(&record, 0..length_bytes), fetch, ()).await.unwrap()
    }

    /// Takes so many frames, each after a pause; drops them.
    async fn take(env: &Env, reading: &mut ReadAhead<Fetch, ()>, frames: usize, pause: Duration) {
        for _ in 0..frames {
            env.clock.sleep(pause).await;
            reading.next().await.unwrap().expect("there is more");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_ahead_what_its_speed_is_worth() {
        let env = paused();
        let budget = Budget::new(env.clone(), 1_000 * PERMIT_BYTES);
        let mut reading = begin(&budget, 10_000).await;
        assert_eq!(
            (reading.frames_ahead(), budget.free()),
            (PIECE_FRAMES, 1_000 - OWN_FRAMES - PIECE_FRAMES)
        );
        let slow = Duration::from_secs(3);
        take(&env, &mut reading, 2 * PIECE_FRAMES, slow).await;
        assert!(reading.frames_ahead() <= LEAST_FRAMES, "nothing beyond for a slow one");
        assert_eq!(budget.free(), 1_000 - OWN_FRAMES);
        take(&env, &mut reading, 200, Duration::ZERO).await;
        let ahead = reading.frames_ahead();
        assert!((MOST_FRAMES - 1..MOST_FRAMES + PIECE_FRAMES).contains(&ahead), "{ahead}");
        assert_eq!(budget.free(), 1_000 - OWN_FRAMES - ahead);
        take(&env, &mut reading, ahead + PIECE_FRAMES, slow).await;
        assert!(reading.frames_ahead() <= LEAST_FRAMES, "and nothing for one who became slow");
        assert_eq!(budget.free(), 1_000 - OWN_FRAMES);
        drop(reading);
        assert_eq!(budget.free(), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn whole_pieces_come_first_while_there_is_plenty() {
        let budget = Budget::new(paused(), 100 * PERMIT_BYTES);
        let first = begin(&budget, 100).await;
        assert_eq!(first.frames_ahead(), PIECE_FRAMES);
        let (mut second, small) = (begin(&budget, 100).await, begin(&budget, 3).await);
        assert_eq!((second.frames_ahead(), small.frames_ahead()), (0, 0), "more than a quarter is in use");
        second.next().await.unwrap().expect("its own room is enough");
        assert_eq!(second.frames_ahead(), LEAST_FRAMES - 1);
        drop((first, second, small));
        assert_eq!(budget.free(), 100);
    }
}
