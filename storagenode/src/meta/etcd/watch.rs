//! Watches over lost connections: each new stream goes on where the last one ended.

use std::{ops::Range, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};

use super::{
    CALL_TIMEOUT, EtcdStore, MAX_ANSWER_BYTES, Pauses,
    endpoints::{Leader, Picked},
    errors::{Failure, classify},
};
use crate::meta::{Event, MetaError, MetaStore, RangeRead, Watch};

/// How long one member may take to begin a watch.
const OPEN_LIMIT: Duration = Duration::from_secs(3);
/// How long `next` tries to reach a member before it says that etcd is away.
const AWAY_LIMIT: Duration = CALL_TIMEOUT;

/// A watch of a range.
pub(super) struct EtcdWatch {
    store: EtcdStore,
    range: Range<Bytes>,
    place: Place,
    stream: Option<Open>,
    /// Survives a dropped `next`, so that impatient callers do not storm etcd.
    pauses: Pauses,
}

struct Open {
    stream: WatchStream,
    picked: Picked,
}

/// How far the watch is. etcd may send the events of one revision in several messages, so a stream can end between them.
struct Place {
    /// Revision of the last event, or the one to begin with.
    revision: u64,
    /// Events of that revision that were given out.
    given: usize,
    /// Of these, how many the present stream has yet to repeat.
    to_skip: usize,
}

impl EtcdWatch {
    pub(super) fn new(store: EtcdStore, range: Range<Bytes>, from: u64) -> Self {
        let place = Place { revision: from, given: 0, to_skip: 0 };
        Self { store, range, place, stream: None, pauses: Pauses::default() }
    }

    async fn open(&mut self) -> Result<(), Failure> {
        let inner = &*self.store.inner;
        let picked = inner.endpoints.pick(Leader::Required).await.map_err(Failure::NotDone)?;
        let (start, end) = (inner.prefix.key(&self.range.start), inner.prefix.key(&self.range.end));
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(self.place.revision as i64)
            .with_progress_notify()
            .with_fragment();
        let mut client = picked.client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let failure = match inner.env.timeout(OPEN_LIMIT, client.watch(start, Some(options))).await {
            Some(Ok(stream)) => {
                self.place.to_skip = self.place.given;
                self.stream = Some(Open { stream, picked });
                return Ok(());
            }
            Some(Err(error)) => classify(&error),
            None => Failure::Hung(format!("no answer within {OPEN_LIMIT:?}")),
        };
        inner.endpoints.failed(&picked, &failure);
        Err(failure)
    }

    /// The next message of the stream; if it ends, it is forgotten.
    async fn receive(&mut self) -> Result<WatchResponse, Failure> {
        let Some(open) = &mut self.stream else { return Err(Failure::NotDone("no stream".to_owned())) };
        let failure = match open.stream.message().await {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => Failure::Unknown("the watch has ended".to_owned()),
            Err(error) => classify(&error),
        };
        if let Some(open) = self.stream.take() {
            self.store.inner.endpoints.failed(&open.picked, &failure);
        }
        Err(failure)
    }

    /// A new stream's member has not come as far as this watch.
    fn is_behind(&self, response: &WatchResponse) -> bool {
        let revision = response.header().map_or(0, |header| header.revision() as u64);
        response.created() && !response.canceled() && revision + 1 < self.place.revision
    }

    /// Whether that member is only late, or etcd was restored from an older copy: then nothing would come for long, and what
    /// came at last would not be what follows.
    async fn check_store(&mut self) -> Result<Vec<Event>, Failure> {
        let newest = self.store.range(RangeRead::key(&self.range.start)).await;
        match newest {
            Ok(page) if page.revision + 1 < self.place.revision => {
                self.stream = None;
                Err(Failure::Final(MetaError::Compacted))
            }
            Ok(_) => Ok(Vec::new()),
            Err(error) => {
                self.stream = None;
                Err(Failure::NotDone(error.to_string()))
            }
        }
    }

    fn accept(&mut self, response: &WatchResponse) -> Result<Vec<Event>, Failure> {
        if response.compact_revision() > 0 {
            self.stream = None;
            return Err(Failure::Final(MetaError::Compacted));
        }
        if response.canceled() {
            self.stream = None;
            return Err(Failure::Unknown(format!("etcd ended the watch: {}", response.cancel_reason())));
        }
        let mut events = Vec::with_capacity(response.events().len());
        for event in response.events() {
            let Some(entry) = event.kv() else { continue };
            let revision = entry.mod_revision() as u64;
            if self.place.is_new(revision) {
                events.push(match event.event_type() {
                    EventType::Put => {
                        Event::Put(self.store.inner.prefix.key_value(entry.clone()).map_err(Failure::Final)?)
                    }
                    EventType::Delete => {
                        let key = self.store.inner.prefix.strip(entry.key()).map_err(Failure::Final)?;
                        Event::Delete { key, revision }
                    }
                });
            }
        }
        // A message without events says how far the watch has come; the first one does not.
        if response.events().is_empty()
            && !response.created()
            && let Some(header) = response.header()
        {
            self.place.all_seen_until(header.revision() as u64);
        }
        Ok(events)
    }
}

impl Place {
    /// Counts an event of the stream; `false` if it was given out before.
    fn is_new(&mut self, revision: u64) -> bool {
        if revision == self.revision {
            if self.to_skip > 0 {
                self.to_skip -= 1;
                return false;
            }
            self.given += 1;
        } else {
            *self = Self { revision, given: 1, to_skip: 0 };
        }
        true
    }

    fn all_seen_until(&mut self, revision: u64) {
        if revision >= self.revision {
            *self = Self { revision: revision + 1, given: 0, to_skip: 0 };
        }
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Vec<Event>, MetaError> {
        let env = self.store.inner.env.clone();
        let mut away_since = None;
        loop {
            let received = match self.stream {
                Some(_) => self.receive().await,
                None => match self.open().await {
                    Ok(()) => continue,
                    Err(failure) => Err(failure),
                },
            };
            let accepted = match received {
                Ok(response) if self.is_behind(&response) => self.check_store().await,
                Ok(response) => {
                    let accepted = self.accept(&response);
                    if accepted.is_ok() {
                        away_since = None;
                        // One that begins and fails again and again is still slowed down.
                        if !response.created() {
                            self.pauses = Pauses::default();
                        }
                    }
                    accepted
                }
                Err(failure) => Err(failure),
            };
            let why = match accepted {
                Ok(events) if events.is_empty() => continue,
                Ok(events) => return Ok(events),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::NotDone(why) | Failure::Unknown(why) | Failure::Hung(why)) => why,
                Err(Failure::TooLarge) => "an event larger than any we write".to_owned(),
            };
            let now = env.clock.monotonic();
            if now.saturating_sub(*away_since.get_or_insert(now)) >= AWAY_LIMIT {
                return Err(MetaError::Unavailable(why));
            }
            tracing::debug!(%why, revision = self.place.revision, "a watch connects again");
            env.clock.sleep(self.pauses.next(&self.store.inner.endpoints)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events by revision, as a stream that begins at `place.revision` repeats them.
    fn feed(place: &mut Place, events: &[u64]) -> Vec<u64> {
        let new: Vec<u64> = events.iter().copied().filter(|revision| place.is_new(*revision)).collect();
        new
    }

    #[test]
    fn a_new_stream_repeats_nothing_and_skips_nothing() {
        let mut place = Place { revision: 5, given: 0, to_skip: 0 };
        assert_eq!(feed(&mut place, &[5, 7, 7]), [5, 7, 7]);
        // The stream ends amid revision 7, of which there are four events.
        place.to_skip = place.given;
        assert_eq!(feed(&mut place, &[7, 7, 7, 7, 8]), [7, 7, 8]);
        place.to_skip = place.given;
        assert_eq!(feed(&mut place, &[8, 9]), [9]);
        place.all_seen_until(20);
        assert_eq!((place.revision, place.given), (21, 0));
        place.all_seen_until(15);
        assert_eq!(place.revision, 21);
    }
}
