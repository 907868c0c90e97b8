//! Time that only passes while everybody waits, for tests of one module; the simulator has its own.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{BoxFuture, Clock, Env, real::without_network};

/// For tests that begin with `#[tokio::test(start_paused = true)]`.
pub(crate) fn paused() -> Env {
    Env { clock: Arc::new(PausedClock(Instant::now())), ..without_network() }
}

struct PausedClock(Instant);

impl Clock for PausedClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix_ms(&self) -> i64 {
        self.0.elapsed().as_millis() as i64
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
