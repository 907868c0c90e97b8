//! Lives of simulated processes. Tasks of one node cannot be picked out of a runtime and ended, so a killed node's tasks
//! stay; but every seam they hold belongs to a life that is over, and gives no answer any more: time stands still for them,
//! nothing they asked for comes, and nothing they do reaches a disk, a peer or the store.

use std::{sync::Arc, time::Duration};

use cairn_node::env::{BoxFuture, Clock, Threads, Work};
use tokio_util::sync::CancellationToken;

/// One run of a process. Clones are one life.
#[derive(Clone, Default)]
pub struct Life(CancellationToken);

impl Life {
    pub fn end(&self) {
        self.0.cancel();
    }

    pub fn is_over(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Ends when the life does.
    pub async fn over(&self) {
        self.0.cancelled().await;
    }

    /// Never ends once the life is over.
    pub async fn go_on(&self) {
        if self.is_over() {
            std::future::pending::<()>().await;
        }
    }

    /// The future's result; nothing, for ever, if the life ends before.
    pub async fn of<T>(&self, future: impl Future<Output = T>) -> T {
        let result = future.await;
        self.go_on().await;
        result
    }
}

/// Time as one life has it.
pub struct LifeClock {
    pub clock: Arc<dyn Clock>,
    pub life: Life,
}

impl Clock for LifeClock {
    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    fn unix_ms(&self) -> i64 {
        self.clock.unix_ms()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (sleep, life) = (self.clock.sleep(duration), self.life.clone());
        Box::pin(async move { life.of(sleep).await })
    }
}

/// Blocking work of one life, done in place after a moment whose length is given by `delay`.
pub struct LifeThreads {
    pub clock: Arc<dyn Clock>,
    pub life: Life,
    pub delay: Box<dyn Fn() -> Duration + Send + Sync>,
}

impl Threads for LifeThreads {
    fn run(&self, work: Work) -> BoxFuture<'static, ()> {
        let (before, after) = (self.clock.sleep((self.delay)()), self.clock.sleep((self.delay)()));
        let life = self.life.clone();
        Box::pin(async move {
            life.of(before).await;
            work();
            life.of(after).await;
        })
    }
}
