//! An [`Env`] for one simulated node: seeded randomness, time that jumps when all wait, blocking work in place.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use cairn_node::env::{BoxFuture, Clock, Env, Random, Threads, Work, real::NoNetwork};
use parking_lot::Mutex;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::runtime::Runtime;

use super::disk::SimDisk;

/// All seams of a node without a network.
pub fn env(seed: u64, disk: SimDisk, time: &SimTime) -> Env {
    Env {
        clock: Arc::new(time.clone()),
        random: Arc::new(SimRandom::new(seed)),
        disk: Arc::new(disk),
        network: Arc::new(NoNetwork),
        threads: Arc::new(InlineThreads),
    }
}

/// Time that stands still while anything can run, and jumps to the next sleeper when nothing can. Clones are one time.
#[derive(Clone, Default)]
pub struct SimTime(Arc<Mutex<TimeState>>);

#[derive(Default)]
struct TimeState {
    now: Duration,
    sleepers: BTreeMap<(Duration, u64), Option<Waker>>,
    next_sleeper: u64,
}

/// 2026-01-01, so that dates look like dates.
const UNIX_START_MS: i64 = 1_767_225_600_000;

impl SimTime {
    /// A runtime with one thread in which this time passes. Dropping it is a power cut for what runs in it.
    pub fn runtime(&self) -> Runtime {
        let time = self.clone();
        tokio::runtime::Builder::new_current_thread()
            .on_thread_park(move || time.jump())
            .build()
            .expect("a runtime without sockets needs nothing from the system")
    }

    fn jump(&self) {
        let mut woken = Vec::new();
        {
            let mut state = self.0.lock();
            let Some(next) = state.sleepers.keys().next().map(|(deadline, _)| *deadline) else { return };
            state.now = state.now.max(next);
            let now = state.now;
            for (_, waker) in state.sleepers.range_mut(..=(now, u64::MAX)) {
                woken.extend(waker.take());
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Clock for SimTime {
    fn monotonic(&self) -> Duration {
        self.0.lock().now
    }

    fn unix_ms(&self) -> i64 {
        UNIX_START_MS + self.0.lock().now.as_millis() as i64
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut state = self.0.lock();
        let key = (state.now.saturating_add(duration), state.next_sleeper);
        state.next_sleeper += 1;
        state.sleepers.insert(key, None);
        Box::pin(Sleep { time: self.clone(), key })
    }
}

struct Sleep {
    time: SimTime,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.time.0.lock();
        if state.now >= self.key.0 {
            state.sleepers.remove(&self.key);
            return Poll::Ready(());
        }
        state.sleepers.insert(self.key, Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.time.0.lock().sleepers.remove(&self.key);
    }
}

/// The same bytes for the same seed.
pub struct SimRandom(Mutex<StdRng>);

impl SimRandom {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Random for SimRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill_bytes(bytes);
    }
}

/// Does blocking work in place. Others run before and after it, as they would beside a thread.
pub struct InlineThreads;

impl Threads for InlineThreads {
    fn run(&self, work: Work) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            work();
            tokio::task::yield_now().await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_jumps_from_sleeper_to_sleeper() {
        let time = SimTime::default();
        let env = env(1, SimDisk::new(0), &time);
        let order = Arc::new(Mutex::new(Vec::new()));
        time.runtime().block_on(async {
            let tasks = [300u64, 100, 200].map(|minutes| {
                let (env, order) = (env.clone(), order.clone());
                tokio::spawn(async move {
                    env.clock.sleep(Duration::from_secs(minutes * 60)).await;
                    order.lock().push((minutes, env.clock.monotonic().as_secs() / 60));
                })
            });
            let never = env.timeout(Duration::from_secs(5), std::future::pending::<()>()).await;
            assert_eq!((never, env.clock.monotonic()), (None, Duration::from_secs(5)));
            for task in tasks {
                task.await.unwrap();
            }
        });
        assert_eq!(*order.lock(), [(100, 100), (200, 200), (300, 300)]);
        assert!(time.0.lock().sleepers.is_empty());
    }
}
