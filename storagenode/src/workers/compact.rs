//! Compaction's rhythm: deletions that are old are forgotten; this node's segments that are mostly garbage are emptied, one after
//! the other, and removed.
//!
//! Each look takes an emptied segment away that has rested since the look before. Between two segments there is a pause that is as
//! long as the work was, times four: whoever reads and writes comes first. When clients' writes are refused for want of room, nobody
//! rests.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    chunks::{ChunkStore, Compaction},
    env::Env,
};

/// The pause after a segment is so many times as long as emptying it took.
const PAUSE_FACTOR: u32 = 4;
/// Between two looks while there is no room.
const PRESSED: Duration = Duration::from_secs(10);

/// This node's compaction.
#[derive(Clone)]
pub struct Compact {
    pub env: Env,
    pub store: ChunkStore,
    /// Between two looks; and how long an emptied segment rests, at least.
    pub period: Duration,
}

impl Compact {
    /// Looks, again and again, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let task = async {
            loop {
                self.wait().await;
                self.look().await;
            }
        };
        stop.run_until_cancelled(task).await;
    }

    fn is_pressed(&self) -> bool {
        self.store.usage().out_of_room
    }

    /// Until the next look is due; sooner when room is needed.
    async fn wait(&self) {
        let clock = &self.env.clock;
        let due = clock.monotonic() + self.period;
        loop {
            let left = due.saturating_sub(clock.monotonic());
            if left.is_zero() {
                return;
            }
            clock.sleep(left.min(PRESSED)).await;
            if self.is_pressed() {
                return;
            }
        }
    }

    async fn look(&self) {
        let clock = &self.env.clock;
        let (mut segments, mut copied) = (0u64, 0u64);
        let mut freed = self.remove().await;
        let forgotten = self.store.forget_old_tombstones().await;
        if forgotten > 0 {
            info!(tombstones = forgotten, "deletions are old enough to be forgotten");
        }
        loop {
            let began = clock.monotonic();
            match self.store.compact().await {
                Compaction::Nothing => break,
                Compaction::Refused => {}
                Compaction::Emptied { copied_bytes } => {
                    (segments, copied) = (segments + 1, copied + copied_bytes)
                }
            }
            if self.is_pressed() {
                freed += self.remove().await;
            } else {
                clock.sleep((clock.monotonic() - began) * PAUSE_FACTOR).await;
            }
        }
        if segments > 0 || freed > 0 {
            info!(
                segments,
                copied_bytes = copied,
                freed_bytes = freed,
                "compacted segments that were mostly garbage"
            );
        }
    }

    async fn remove(&self) -> u64 {
        let rest = if self.is_pressed() { Duration::ZERO } else { self.period };
        self.store.remove_emptied(rest).await
    }
}
