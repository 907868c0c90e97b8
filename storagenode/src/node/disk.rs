//! What a node does about its disk while it runs: it looks whether the disk is still there, reads it again by and by, gives
//! back what garbage takes, and tells the cluster of damage.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::Node;
use crate::{
    chunks::FolderGone,
    cluster::{
        position,
        register::{self, RegisterError},
    },
    workers::{compact::Compact, scrub::Scrub},
};

/// Between two looks at the disk. Others use it too, and a folder may be deleted.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The cluster is told of damage at once, then after such a pause, …
const TELL_EVERY: Duration = Duration::from_secs(10);
/// … which doubles up to this while more is found: each time makes the comparison anew, and that reads all metadata.
const TELL_SELDOM: Duration = Duration::from_secs(600);
/// After the metadata store did not take it; doubles too.
const TELL_RETRY: Duration = Duration::from_millis(500);

/// Why a node stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("another node has taken this node's name: {0}; give every node a NODE_NAME of its own")]
    NameTaken(String),
    #[error(transparent)]
    FolderGone(#[from] FolderGone),
}

/// Ends a node by itself, once.
#[derive(Clone)]
pub(super) struct SelfEnd {
    pub stop: CancellationToken,
    pub cause: Arc<Mutex<Option<Ended>>>,
}

impl SelfEnd {
    pub fn end(&self, node: &str, cause: Ended) {
        error!(node, %cause, "this node stops serving");
        self.cause.lock().get_or_insert(cause);
        self.stop.cancel();
    }
}

impl Node {
    /// Looks at the disk every now and then, until the node stops.
    pub(super) fn start_looking(&self, end: SelfEnd) {
        let (env, store, name) = (self.env.clone(), self.store.clone(), self.options.name.clone());
        let looking = async move {
            loop {
                env.clock.sleep(LOOK_EVERY).await;
                if let Err(gone) = store.look().await {
                    return end.end(&name, gone.into());
                }
            }
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(looking).await });
    }

    /// Makes durable, with every tick, how far the metadata store was seen (R10), and tells the store that the disk remembers
    /// it (R9). Never ends.
    pub(super) fn remembering(&self) -> impl Future<Output = ()> + Send + use<> {
        let (view, store, meta) = (self.view.clone(), self.store.clone(), self.meta.clone());
        let (name, incarnation) = (self.options.name.clone(), self.registration.incarnation);
        async move {
            let mut tick = view.current().tick;
            loop {
                tick = view.wait_for(|state| (state.tick != tick).then_some(state.tick)).await;
                // What is seen meanwhile may not be durable yet.
                let durable = store.sighting();
                if let Err(error) = store.remember().await {
                    warn!(%error, "could not remember how far the metadata store was seen");
                } else if let Err(error) = position::tell(&meta, &name, incarnation, durable).await {
                    warn!(%error, "could not tell the metadata store what this disk remembers");
                }
            }
        }
    }

    pub(super) fn start_scrub(&self) {
        let Some(period) = self.options.timings.scrub else { return };
        let scrub = Scrub { env: self.env.clone(), store: self.store.clone(), period };
        self.tasks.spawn(scrub.run(self.stop.clone()));
    }

    pub(super) fn start_compacting(&self) {
        let Some(period) = self.options.timings.compact else { return };
        let compact = Compact { env: self.env.clone(), store: self.store.clone(), period };
        self.tasks.spawn(compact.run(self.stop.clone()));
    }

    /// Tells the cluster when damage is found. What was compared before no longer says what can be read: the comparison is
    /// made anew, and until then nobody claims that all is well.
    pub(super) fn start_telling_of_damage(&self) {
        let (env, meta, store) = (self.env.clone(), self.meta.clone(), self.store.clone());
        let registration = self.registration.clone();
        let telling = async move {
            let (mut seen, mut pause) = (0, TELL_EVERY);
            loop {
                seen = store.damage_beyond(seen).await;
                let mut retry = TELL_RETRY;
                loop {
                    match register::touch(&meta, &registration).await {
                        // The lease's renewal finds that too, and ends the node.
                        Ok(()) | Err(RegisterError::NameTaken(_)) => break,
                        Err(error) => {
                            warn!(%error, "could not tell the cluster of damage on this disk; tried again")
                        }
                    }
                    env.clock.sleep(retry).await;
                    retry = (retry * 2).min(TELL_EVERY);
                }
                env.clock.sleep(pause).await;
                let more = store.counters().corrupt_chunks > seen;
                pause = if more { (pause * 2).min(TELL_SELDOM) } else { TELL_EVERY };
            }
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(telling).await });
    }
}
