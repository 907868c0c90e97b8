//! The memory that content in flight takes in a gateway (R4), and who makes room when it is short.
//!
//! Whoever needs memory waits for it, in order and for a bounded time. What only waits for a slow client must not keep
//! others from theirs, so streams say how much they hold and how fast their client is ([`Paced`]):
//!
//! - An upload takes the room of a whole chunk first: then whoever is fast always gets to the end of one. If the chunk is not
//!   whole after [`PATIENCE`], the upload gives back what it does not fill, and grows by the piece ([`Gathering`]).
//! - A download reads ahead only as far as its reader is fast, but for one piece in the beginning while there is plenty, and
//!   its frames hold their memory until the last of them has left ([`hold`]).
//! - When somebody waits and nobody was given any for [`PRESS_AFTER`], streams slower than [`SLOW_BYTES_A_SECOND`] are
//!   ended, the slowest first. Without anybody who waits, the slowest may go on for as long as they are not dead.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::FileError;
use crate::{chunks::FRAME_BYTES, env::Env};

/// Bytes of one permit: one frame's content.
pub const PERMIT_BYTES: usize = FRAME_BYTES;
/// How long a request waits for memory before it is told to come back later.
const TAKE_LIMIT: Duration = Duration::from_secs(12);
/// How long an upload keeps the room of a whole chunk for a client that does not fill it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nobody who waits is given anything before others are ended. Longer than [`PATIENCE`]: what is given back may do.
const PRESS_AFTER: Duration = Duration::from_secs(3);
/// How often is looked whether they should be.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The part of all memory that is freed at a time, at most: one in so many.
const PRESS_SHARE: usize = 8;
/// Streams slower than this make room for others.
const SLOW_BYTES_A_SECOND: u64 = 64 << 10;
/// A stream is as fast as it was over so many bytes last.
const PACE_BYTES: u64 = 1 << 20;
/// The part of all memory up to which there is plenty left: one in so many.
const PLENTY_SHARE: usize = 4;
/// What an upload takes at a time that has given room back.
const GROW_BYTES: usize = 256 << 10;

/// Memory that is taken until this is dropped.
pub type Room = OwnedSemaphorePermit;

/// The memory for content in flight.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    env: Env,
    permits: Arc<Semaphore>,
    /// How many there are in all.
    total: usize,
    /// Permits that are waited for.
    wanted: AtomicUsize,
    /// When somebody who waited was given some, or others were ended for it.
    moved: Mutex<Duration>,
    streams: Mutex<BTreeMap<u64, Arc<Stream>>>,
    streams_begun: AtomicU64,
}

/// What others may know of a stream.
struct Stream {
    ended: CancellationToken,
    pace: Mutex<Pace>,
}

#[derive(Default)]
struct Pace {
    /// What would be free if the stream ended.
    held: usize,
    /// Bytes that came, or went, over the time that the client was waited for.
    bytes: u64,
    waited: Duration,
    waiting_since: Option<Duration>,
}

impl Pace {
    fn waited(&self, now: Duration) -> Duration {
        self.waited + self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// Bytes a second, of a stream that may be ended.
    fn slow(&self, now: Duration) -> Option<u64> {
        let waited = self.waited(now);
        let speed = u128::from(self.bytes) * 1_000 / waited.as_millis().max(1);
        let slow = self.held > 0 && waited >= PRESS_AFTER && speed < u128::from(SLOW_BYTES_A_SECOND);
        slow.then_some(speed as u64)
    }
}

impl Budget {
    pub fn new(env: Env, bytes: usize) -> Self {
        Self(Arc::new(Shared {
            env,
            permits: Arc::new(Semaphore::new(bytes / PERMIT_BYTES)),
            total: bytes / PERMIT_BYTES,
            wanted: AtomicUsize::new(0),
            moved: Mutex::default(),
            streams: Mutex::default(),
            streams_begun: AtomicU64::new(0),
        }))
    }

    /// Waits for memory, in bounded time.
    pub async fn take(&self, bytes: usize) -> Result<Room, FileError> {
        if let Some(room) = self.try_take(bytes) {
            return Ok(room);
        }
        let permits = permits(bytes);
        let shared = &self.0;
        let _wanted = Wanted::new(&shared.wanted, permits);
        let acquired = shared.permits.clone().acquire_many_owned(permits as u32);
        tokio::pin!(acquired);
        let (mut waited, mut wait) = (Duration::ZERO, PRESS_AFTER);
        while waited < TAKE_LIMIT {
            if let Some(acquired) = shared.env.timeout(wait, acquired.as_mut()).await {
                *shared.moved.lock() = shared.env.clock.monotonic();
                return Ok(acquired.expect("the semaphore is never closed"));
            }
            (waited, wait) = (waited + wait, LOOK_EVERY);
            self.press();
        }
        Err(FileError::Overloaded("this node's memory for transfers is in use".into()))
    }

    /// Memory that is free now.
    pub fn try_take(&self, bytes: usize) -> Option<Room> {
        self.0.permits.clone().try_acquire_many_owned(permits(bytes) as u32).ok()
    }

    /// Memory that is free now, if there is plenty left.
    pub fn try_take_of_plenty(&self, bytes: usize) -> Option<Room> {
        let left = self.0.permits.available_permits().checked_sub(permits(bytes))?;
        let plenty = self.0.total - left <= self.0.total / PLENTY_SHARE;
        plenty.then(|| self.try_take(bytes)).flatten()
    }

    /// Permits that are free now.
    #[cfg(test)]
    pub fn free(&self) -> usize {
        self.0.permits.available_permits()
    }

    /// Ends slow streams if nobody was given memory for a while.
    fn press(&self) {
        let now = self.0.env.clock.monotonic();
        {
            let mut moved = self.0.moved.lock();
            if now.saturating_sub(*moved) < PRESS_AFTER {
                return;
            }
            *moved = now;
        }
        let wanted = self.0.wanted.load(Ordering::Relaxed).min(self.0.total / PRESS_SHARE).max(1);
        let streams = self.0.streams.lock();
        let slow = streams.values().filter(|stream| !stream.ended.is_cancelled()).filter_map(|stream| {
            let pace = stream.pace.lock();
            pace.slow(now).map(|speed| (speed, pace.held, stream))
        });
        let mut slow: Vec<_> = slow.collect();
        slow.sort_by_key(|(speed, ..)| *speed);
        let mut freed = 0;
        for (speed, held, stream) in slow {
            if freed >= wanted {
                break;
            }
            tracing::debug!(speed, held, "a slow stream makes room");
            stream.ended.cancel();
            freed += held;
        }
    }

    /// A stream that may be asked to make room.
    pub fn paced(&self) -> Paced {
        let stream = Arc::new(Stream { ended: CancellationToken::new(), pace: Mutex::default() });
        let number = self.0.streams_begun.fetch_add(1, Ordering::Relaxed);
        self.0.streams.lock().insert(number, stream.clone());
        Paced { budget: self.clone(), stream, number }
    }

    /// The room of a chunk that a client sends.
    pub fn gathering(&self) -> Gathering {
        Gathering { paced: self.paced(), room: None, filled: 0, waited_before: Duration::ZERO }
    }
}

/// Counts what is waited for.
struct Wanted<'a>(&'a AtomicUsize, usize);

impl<'a> Wanted<'a> {
    fn new(sum: &'a AtomicUsize, permits: usize) -> Self {
        sum.fetch_add(permits, Ordering::Relaxed);
        Self(sum, permits)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

fn permits(bytes: usize) -> usize {
    bytes.div_ceil(PERMIT_BYTES).max(1)
}

/// One stream, as long as it goes on.
pub struct Paced {
    budget: Budget,
    stream: Arc<Stream>,
    number: u64,
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.budget.0.streams.lock().remove(&self.number);
    }
}

impl Paced {
    /// Set when others need what this stream holds.
    pub fn ended(&self) -> CancellationToken {
        self.stream.ended.clone()
    }

    /// The client is waited for from now on, while so much is held.
    pub fn waits(&self, held: usize) {
        let now = self.budget.0.env.clock.monotonic();
        let mut pace = self.stream.pace.lock();
        (pace.held, pace.waiting_since) = (held, Some(now));
    }

    /// The client is not waited for any more; so many bytes came or went. Says how long it was.
    pub fn waited(&self, bytes: usize) -> Duration {
        let now = self.budget.0.env.clock.monotonic();
        let mut pace = self.stream.pace.lock();
        let waited = pace.waiting_since.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        pace.waited += waited;
        pace.bytes += bytes as u64;
        if pace.bytes >= PACE_BYTES {
            (pace.bytes, pace.waited) = (0, Duration::ZERO);
        }
        waited
    }

    fn holds(&self, held: usize) {
        self.stream.pace.lock().held = held;
    }
}

/// The memory of the chunk that an upload gathers.
pub struct Gathering {
    paced: Paced,
    room: Option<Room>,
    filled: usize,
    /// For the client, since the chunk's room was taken.
    waited_before: Duration,
}

impl Gathering {
    /// Waits for the client, and gives back meanwhile what it is too slow to fill. Fails when others need the rest, too.
    pub async fn wait_for(
        &mut self,
        content: impl Future<Output = Result<Option<Bytes>, FileError>>,
    ) -> Result<Option<Bytes>, FileError> {
        let (env, ended) = (self.paced.budget.0.env.clone(), self.paced.ended());
        tokio::pin!(content);
        self.paced.waits(self.held());
        let next = loop {
            let patience = async {
                match &self.room {
                    Some(room) if room.num_permits() > self.needed(0) => {
                        env.clock.sleep(PATIENCE.saturating_sub(self.waited_before)).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = ended.cancelled() => return Err(FileError::crowded_out()),
                next = content.as_mut() => break next,
                () = patience => self.give_back(),
            }
        };
        let came = next.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len);
        self.waited_before += self.paced.waited(came);
        next
    }

    /// Makes sure that there is room for `bytes` more of a chunk that will have `whole` bytes at most.
    pub async fn grow(&mut self, bytes: usize, whole: usize) -> Result<(), FileError> {
        let held = self.held();
        let missing = match &self.room {
            None => whole,
            Some(_) if self.needed(bytes) <= held => 0,
            Some(_) => {
                let missing = (self.needed(bytes) - held) * PERMIT_BYTES;
                missing.max(GROW_BYTES.min(whole.saturating_sub(held * PERMIT_BYTES)))
            }
        };
        if missing > 0 {
            let more = self.paced.budget.take(missing).await?;
            match &mut self.room {
                Some(room) => room.merge(more),
                none => (*none, self.waited_before) = (Some(more), Duration::ZERO),
            }
            self.paced.holds(self.held());
        }
        self.filled += bytes;
        Ok(())
    }

    /// The room of what was gathered, which goes along with it from now on.
    pub fn complete(&mut self) -> Option<Room> {
        self.filled = 0;
        self.paced.holds(0);
        self.room.take()
    }

    fn held(&self) -> usize {
        self.room.as_ref().map_or(0, Room::num_permits)
    }

    /// Permits for what there is and `bytes` more.
    fn needed(&self, bytes: usize) -> usize {
        permits(self.filled + bytes)
    }

    fn give_back(&mut self) {
        let spare = self.held() - self.needed(0);
        drop(self.room.as_mut().and_then(|room| room.split(spare)));
        self.paced.holds(self.held());
    }
}

/// Content that holds its room until the last of it is gone.
pub fn hold(content: Bytes, room: Option<Room>) -> Bytes {
    struct Held {
        content: Bytes,
        _room: Option<Room>,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.content
        }
    }
    Bytes::from_owner(Held { content, _room: room })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::paused::paused;

    const SECOND: Duration = Duration::from_secs(1);

    /// A stream that holds one permit and to which so many bytes went in four seconds.
    fn stream(budget: &Budget, bytes: usize) -> Paced {
        let paced = budget.paced();
        {
            let mut pace = paced.stream.pace.lock();
            (pace.held, pace.bytes, pace.waited) = (1, bytes as u64, 4 * SECOND);
        }
        paced
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_makes_room_and_fast_ones_never_do() {
        let env = paused();
        let budget = Budget::new(env.clone(), 8 * PERMIT_BYTES);
        let room = budget.take(8 * PERMIT_BYTES).await.unwrap();
        let fast = stream(&budget, 4 * SLOW_BYTES_A_SECOND as usize);
        let slower = stream(&budget, 40 << 10);
        let slowest = stream(&budget, 4 << 10);
        let ended = || [&fast, &slower, &slowest].map(|stream| stream.ended().is_cancelled());
        let wanted = budget.take(PERMIT_BYTES);
        tokio::pin!(wanted);
        let mut seen = Vec::new();
        let refused = loop {
            tokio::select! {
                biased;
                refused = &mut wanted => break refused,
                () = env.clock.sleep(SECOND) => {
                    if seen.last() != Some(&ended()) {
                        seen.push(ended());
                    }
                }
            }
        };
        assert!(matches!(refused, Err(FileError::Overloaded(_))), "nobody gave anything back");
        // There was time to end three.
        let expected = [[false; 3], [false, false, true], [false, true, true]];
        assert_eq!(seen, expected);
        assert!((TAKE_LIMIT..TAKE_LIMIT + LOOK_EVERY).contains(&env.clock.monotonic()));
        drop(room);
        assert_eq!((budget.free(), budget.0.wanted.load(Ordering::Relaxed)), (8, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_gives_back_what_it_does_not_fill_and_grows_by_the_piece() {
        let env = paused();
        let budget = Budget::new(env.clone(), 100 * PERMIT_BYTES);
        let (whole, mut gathering) = (64 * PERMIT_BYTES, budget.gathering());
        gathering.grow(1, whole).await.unwrap();
        assert_eq!(budget.free(), 36, "a whole chunk's");
        let after = async |delay: Duration| {
            env.clock.sleep(delay).await;
            Ok(Some(Bytes::from_static(b"1")))
        };
        gathering.wait_for(after(PATIENCE / 2)).await.unwrap();
        assert_eq!(budget.free(), 36, "it may be fast");
        gathering.wait_for(after(PATIENCE)).await.unwrap();
        assert_eq!(budget.free(), 99);
        gathering.grow(PERMIT_BYTES, whole).await.unwrap();
        assert_eq!(budget.free(), 99 - GROW_BYTES / PERMIT_BYTES);
        gathering.grow(GROW_BYTES, whole).await.unwrap();
        assert_eq!(budget.free(), 99 - 2 * GROW_BYTES / PERMIT_BYTES);
        drop(gathering.complete());
        assert_eq!(budget.free(), 100);
        gathering.grow(1, whole).await.unwrap();
        assert_eq!(budget.free(), 36, "the next chunk begins as the first did");
        drop(gathering);
        assert_eq!((budget.free(), budget.0.streams.lock().len()), (100, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn content_holds_its_room_until_the_last_of_it_is_gone() {
        let budget = Budget::new(paused(), 2 * PERMIT_BYTES);
        let content = hold(Bytes::from(vec![7; 1000]), budget.try_take(PERMIT_BYTES));
        let rest = content.slice(999..);
        drop(content);
        assert_eq!((rest.as_ref(), budget.free()), (&[7][..], 1));
        drop(rest);
        assert_eq!(budget.free(), 2);
    }
}
