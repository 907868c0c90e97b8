//! Writers of one file take turns within a gateway: at the same time, each would only find the others' commits in its way.
//!
//! A courtesy, which nothing depends on: what a commit compares is compared in the store, where other gateways' writers
//! are met as well. So nobody waits for long.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::env::Env;

/// After this, whoever waits goes on beside the one whose turn it is.
const TURN_LIMIT: Duration = Duration::from_secs(4);

/// The files that are being committed, and who waits for each.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Bytes, Arc<Semaphore>>>);

/// One's turn, until it is dropped.
pub(super) struct Turn {
    turns: Arc<Turns>,
    key: Bytes,
    line: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// Waits for the turn to write what has this key.
    pub(super) async fn take(self: &Arc<Self>, env: &Env, key: Bytes) -> Turn {
        let line = self.0.lock().entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
        let mut turn = Turn { turns: self.clone(), key, line, permit: None };
        let permit = env.timeout(TURN_LIMIT, turn.line.clone().acquire_owned()).await;
        turn.permit = permit.map(|permit| permit.expect("it is never closed"));
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit = None;
        let mut lines = self.turns.0.lock();
        // The map's and this one's: nobody else waits, and nobody can begin to while the map is locked.
        if Arc::strong_count(&self.line) == 2 {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{paused::paused, real::without_network};

    #[tokio::test]
    async fn one_after_the_other_and_nothing_is_kept() {
        let (env, turns) = (without_network(), Arc::new(Turns::default()));
        let key = Bytes::from_static(b"k");
        let first = turns.take(&env, key.clone()).await;
        let (waiting, waiting_env, waiting_key) = (turns.clone(), env.clone(), key.clone());
        let second = tokio::spawn(async move { waiting.take(&waiting_env, waiting_key).await });
        let other = turns.take(&env, Bytes::from_static(b"other")).await;
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop((first, other));
        let second = second.await.unwrap();
        assert!(second.permit.is_some());
        drop(second);
        assert!(turns.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long() {
        let (env, turns) = (paused(), Arc::new(Turns::default()));
        let key = Bytes::from_static(b"k");
        let first = turns.take(&env, key.clone()).await;
        let second = turns.take(&env, key.clone()).await;
        assert_eq!(env.clock.monotonic(), TURN_LIMIT);
        assert!(first.permit.is_some() && second.permit.is_none());
        drop(second);
        // The first one's turn goes on, and the next after it waits for it.
        let third = turns.take(&env, key.clone());
        tokio::pin!(third);
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        assert!(third.await.permit.is_some());
        assert!(turns.0.lock().is_empty());
    }
}
