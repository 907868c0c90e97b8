//! Recent events in memory, bounded in number and bytes, and the watches that read them.

use std::{collections::VecDeque, ops::Range, pin::pin, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{closed, event_bytes};
use crate::meta::{Event, MetaError, Watch};

const MAX_EVENTS: usize = 16_384;
const MAX_BYTES: usize = 32 << 20;
/// Events that a watch gives at once; it stops at the first revision that reaches this.
const MAX_ANSWER: usize = 1024;

/// Events of all keys in order of their revisions.
pub(super) struct Ring {
    state: Mutex<State>,
    /// Wakes the watches, in the order in which they began to wait.
    changed: Notify,
    limits: Limits,
}

struct Limits {
    events: usize,
    bytes: usize,
}

struct State {
    events: VecDeque<Event>,
    bytes: usize,
    /// Every event of this revision and of later ones is here.
    complete_from: u64,
    latest: u64,
    closed: bool,
}

impl Ring {
    /// Of a store whose last revision was `revision`.
    pub(super) fn new(revision: u64) -> Self {
        Self::with_limits(revision, Limits { events: MAX_EVENTS, bytes: MAX_BYTES })
    }

    fn with_limits(revision: u64, limits: Limits) -> Self {
        let state = State {
            events: VecDeque::new(),
            bytes: 0,
            complete_from: revision + 1,
            latest: revision,
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Notify::new(), limits }
    }

    /// Adds the events of a commit; `latest` is the store's revision after it.
    pub(super) fn publish(&self, events: Vec<Event>, latest: u64) {
        let mut state = self.state.lock();
        for event in events {
            debug_assert!(state.events.back().is_none_or(|last| last.revision() <= event.revision()));
            state.bytes += event_bytes(&event);
            state.events.push_back(event);
        }
        state.latest = latest;
        while state.events.len() > self.limits.events || state.bytes > self.limits.bytes {
            state.drop_oldest_revision();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_waiters();
    }

    /// Events of `range` from revision `from` on, and the revision to go on with.
    fn read(&self, range: &Range<Bytes>, from: u64) -> Result<(Vec<Event>, u64), MetaError> {
        let state = self.state.lock();
        if state.closed {
            return Err(closed());
        }
        if from < state.complete_from {
            return Err(MetaError::Compacted);
        }
        let start = state.events.partition_point(|event| event.revision() < from);
        let mut found = Vec::new();
        for event in state.events.range(start..) {
            let key = match event {
                Event::Put(entry) => &entry.key,
                Event::Delete { key, .. } => key,
            };
            if !range.contains(key) {
                continue;
            }
            if let Some(last) = found.last().map(Event::revision)
                && found.len() >= MAX_ANSWER
                && last != event.revision()
            {
                return Ok((found, last + 1));
            }
            found.push(event.clone());
        }
        Ok((found, from.max(state.latest + 1)))
    }
}

impl State {
    fn drop_oldest_revision(&mut self) {
        let Some(oldest) = self.events.front().map(Event::revision) else { return };
        while let Some(event) = self.events.pop_front_if(|event| event.revision() == oldest) {
            self.bytes -= event_bytes(&event);
        }
        self.complete_from = oldest + 1;
    }
}

/// A watch of the embedded store.
pub(super) struct EmbeddedWatch {
    ring: Arc<Ring>,
    range: Range<Bytes>,
    next: u64,
}

impl EmbeddedWatch {
    pub(super) fn new(ring: Arc<Ring>, range: Range<Bytes>, from: u64) -> Self {
        Self { ring, range, next: from }
    }
}

#[async_trait]
impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<Vec<Event>, MetaError> {
        loop {
            // Before reading: what comes after the read wakes us up.
            let mut changed = pin!(self.ring.changed.notified());
            changed.as_mut().enable();
            let (events, next) = self.ring.read(&self.range, self.next)?;
            self.next = next;
            if !events.is_empty() {
                return Ok(events);
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted(key: &'static str, revision: u64) -> Event {
        Event::Delete { key: Bytes::from_static(key.as_bytes()), revision }
    }

    fn all() -> Range<Bytes> {
        Bytes::new()..Bytes::from_static(b"\xff")
    }

    #[test]
    fn old_revisions_go_whole_and_are_reported() {
        let ring = Ring::with_limits(5, Limits { events: 3, bytes: usize::MAX });
        assert_eq!(ring.read(&all(), 5), Err(MetaError::Compacted));
        assert_eq!(ring.read(&all(), 6), Ok((vec![], 6)));
        ring.publish(vec![deleted("a", 6), deleted("b", 6), deleted("c", 7)], 7);
        assert_eq!(ring.read(&all(), 6).unwrap().0.len(), 3);
        ring.publish(vec![deleted("d", 8)], 8);
        assert_eq!(ring.read(&all(), 6), Err(MetaError::Compacted));
        assert_eq!(ring.read(&all(), 7), Ok((vec![deleted("c", 7), deleted("d", 8)], 9)));
        // What was never there yet stays wanted.
        assert_eq!(ring.read(&all(), 20), Ok((vec![], 20)));
    }

    #[test]
    fn bytes_are_bounded() {
        let ring = Ring::with_limits(0, Limits { events: 1000, bytes: 1000 });
        for revision in 1..=100 {
            ring.publish(vec![deleted("key", revision)], revision);
        }
        assert!(ring.state.lock().bytes <= 1000);
        assert!(ring.read(&all(), 98).is_ok());
        assert_eq!(ring.read(&all(), 50), Err(MetaError::Compacted));
    }

    #[test]
    fn long_answers_end_between_revisions() {
        let ring = Ring::new(0);
        let many = MAX_ANSWER as u64;
        ring.publish((0..many + 10).map(|_| deleted("a", 1)).collect(), 1);
        ring.publish((2..many + 20).map(|revision| deleted("b", revision)).collect(), many + 19);
        let (first, next) = ring.read(&all(), 1).unwrap();
        assert_eq!((first.len(), next), (MAX_ANSWER + 10, 2));
        let (second, next) = ring.read(&all(), next).unwrap();
        assert_eq!((second.len(), next), (MAX_ANSWER, many + 2));
        let (third, next) = ring.read(&all(), next).unwrap();
        assert_eq!((third.len(), next), (18, many + 20));
    }
}
