//! Scrub (R8): every chunk of this disk is read again, by and by, from the device.
//!
//! Bytes rot where nobody reads them, and most files are seldom read: damage that is met late may have been met by then on
//! every copy. So a node reads its whole disk about once in a period, segment after segment, each in the order in which its
//! records lie, at an even pace. What is wrong is set apart as if a reader had met it; repair mends it, and the comparison of
//! metadata and disks is made anew.
//!
//! A pass begins at a random segment: nodes that start often would otherwise read the same ones again and again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    chunks::{ChunkState, ChunkStore},
    env::Env,
};

/// Whatever the pace, the next chunk is read after so long: what the disk holds, and so the pace, changes meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Reading goes on without a pause until it is so far ahead of the pace: small chunks are not worth a timer each.
const BURST: Duration = Duration::from_millis(500);
/// Between two looks while the disk is empty.
const EMPTY_PAUSE: Duration = Duration::from_secs(60);

/// This node's scrub.
#[derive(Clone)]
pub struct Scrub {
    pub env: Env,
    pub store: ChunkStore,
    /// How long one pass over the disk takes, about.
    pub period: Duration,
}

impl Scrub {
    /// Passes, again and again, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let task = async {
            loop {
                self.pass().await;
            }
        };
        stop.run_until_cancelled(task).await;
    }

    /// Reads every chunk once; takes about a period.
    async fn pass(&self) {
        let clock = &self.env.clock;
        let began = clock.monotonic();
        let count = self.store.segment_count();
        let first = if count == 0 { 0 } else { self.env.random.below(u64::from(count)) as u32 };
        let (mut chunks, mut damaged, mut unread) = (0u64, 0u64, 0u64);
        let mut pace = Pace::new(began);
        for slot in (first..count).chain(0..first) {
            let all = self.store.usage().used_bytes;
            for id in self.store.chunks_of_segment(slot).await {
                let Some(checked) = self.store.check(id).await else { continue };
                chunks += 1;
                damaged += u64::from(checked.state == ChunkState::Damaged);
                unread += u64::from(checked.state == ChunkState::Unread);
                // Also after what could not be read: a disk that does not answer is not asked in a rush.
                let wait = pace.after(checked.bytes, all, self.period, clock.monotonic());
                if wait >= BURST {
                    clock.sleep(wait.min(LONGEST_PAUSE)).await;
                }
            }
        }
        let took = clock.monotonic() - began;
        if chunks > 0 {
            info!(chunks, damaged, unread, seconds = took.as_secs(), "read the whole disk again");
        }
        let rest = self.period.saturating_sub(took);
        clock.sleep(if chunks > 0 { rest } else { rest.min(EMPTY_PAUSE) }).await;
    }
}

/// When the next chunk is due.
struct Pace {
    due: Duration,
}

impl Pace {
    fn new(now: Duration) -> Self {
        Self { due: now }
    }

    /// How long to wait after `bytes` of a disk with `all` bytes were read, if all of it is to take a `period`.
    fn after(&mut self, bytes: u64, all: u64, period: Duration, now: Duration) -> Duration {
        let share = bytes as f64 / all.max(bytes).max(1) as f64;
        // Neither a slow disk nor a pause that was cut short is caught up with by a rush.
        self.due = self.due.max(now.saturating_sub(BURST)).min(now + LONGEST_PAUSE) + period.mul_f64(share);
        self.due.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(1_000);

    #[test]
    fn a_disk_takes_its_period_whatever_the_sizes_of_its_chunks() {
        for bytes in [1_000, 5_000, 100_000] {
            let (all, mut now) = (1_000_000, Duration::from_secs(7));
            let mut pace = Pace::new(now);
            for _ in 0..all / bytes {
                // Reading takes time, too.
                now += Duration::from_millis(10);
                let wait = pace.after(bytes, all, PERIOD, now);
                if wait >= BURST {
                    now += wait;
                }
            }
            let took = now.as_secs() - 7;
            assert!((990..=1_020).contains(&took), "{took} s with chunks of {bytes}");
        }
    }

    #[test]
    fn a_slow_disk_is_read_as_fast_as_it_can_be_and_no_debt_is_kept() {
        let mut now = Duration::ZERO;
        let mut pace = Pace::new(now);
        for _ in 0..100 {
            now += Duration::from_secs(60);
            assert!(pace.after(1_000, 1_000_000, PERIOD, now) < Duration::from_secs(1));
        }
        assert!(pace.after(500_000, 1_000_000, PERIOD, now) > Duration::from_secs(400));
    }

    #[test]
    fn nothing_is_divided_by_an_empty_disk() {
        assert_eq!(Pace::new(PERIOD).after(0, 0, PERIOD, PERIOD), Duration::ZERO);
        assert_eq!(Pace::new(PERIOD).after(10, 0, PERIOD, PERIOD), PERIOD);
    }
}
