//! The messages of one upload attempt: a header, then content in pieces, counted and digested on their way out.
//!
//! An upload stream cannot carry an error, and one that merely ends would be taken for complete. So when the source
//! fails, the stream stays open and silent, and [`Watch::failed`] tells the caller, who drops the call: the server
//! sees a reset, never an end.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_proto::v1::upload_request::Part;
use cairn_proto::v1::{UploadHeader, UploadRequest};
use futures::{Stream, StreamExt};
use tokio::sync::Notify;

use super::source::ContentStream;
use super::{Counter, MESSAGE_BYTES};
use crate::error::Error;

/// A message's content in the beginning, and where the one before took [`SLOW`]: so that on a slow line something moves now and then.
const SMALL_MESSAGE_BYTES: usize = 64 << 10;
const SLOW: Duration = Duration::from_secs(2);

/// What was handed over and has not arrived, at most: the server's window for one upload, and as much in buffers.
const ON_THE_WAY_BYTES: u64 = 512 << 10;

/// The stream that is handed to the call.
pub(crate) struct Outgoing {
    header: Option<UploadHeader>,
    content: ContentStream,
    /// What is left of a piece larger than a message.
    rest: Bytes,
    hasher: blake3::Hasher,
    size_bytes: Option<u64>,
    sent_bytes: u64,
    what: String,
    shared: Arc<Shared>,
}

struct Shared {
    began: Instant,
    /// Milliseconds from `began` to the last message.
    moved_ms: AtomicU64,
    /// The source is waited for, and milliseconds from `began` to when it last was: that is not the node's silence.
    source_awaited: AtomicBool,
    source_gave_ms: AtomicU64,
    /// Everything was handed over: from here on the server may commit.
    complete: AtomicBool,
    failure: Mutex<Option<Error>>,
    failed: Notify,
    digest: Mutex<Option<(u64, blake3::Hash)>>,
    counter: Option<Counter>,
    counted: AtomicU64,
}

/// The caller's view of an [`Outgoing`] that is on its way.
pub(crate) struct Watch(Arc<Shared>);

/// Prepares one attempt.
pub(crate) fn outgoing(
    header: UploadHeader,
    content: ContentStream,
    what: String,
    counter: Option<Counter>,
) -> (Outgoing, Watch) {
    let shared = Arc::new(Shared {
        began: Instant::now(),
        moved_ms: AtomicU64::new(0),
        source_awaited: AtomicBool::new(false),
        source_gave_ms: AtomicU64::new(0),
        complete: AtomicBool::new(false),
        failure: Mutex::new(None),
        failed: Notify::new(),
        digest: Mutex::new(None),
        counter,
        counted: AtomicU64::new(0),
    });
    let outgoing = Outgoing {
        size_bytes: header.size_bytes,
        header: Some(header),
        content,
        rest: Bytes::new(),
        hasher: blake3::Hasher::new(),
        sent_bytes: 0,
        what,
        shared: Arc::clone(&shared),
    };
    (outgoing, Watch(shared))
}

impl Outgoing {
    fn send(&mut self, piece: Bytes) -> UploadRequest {
        self.hasher.update(&piece);
        self.sent_bytes += piece.len() as u64;
        if self.size_bytes == Some(self.sent_bytes) {
            self.complete();
        }
        self.shared.moved();
        if let Some(counter) = &self.shared.counter {
            counter.add(piece.len() as u64);
            self.shared.counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        UploadRequest { part: Some(Part::Data(piece)) }
    }

    fn complete(&self) {
        let digest = (self.sent_bytes, self.hasher.finalize());
        *self.shared.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
        self.shared.complete.store(true, Ordering::Release);
    }

    fn fail(&self, error: Error) {
        *self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.shared.failed.notify_one();
    }

    fn wrong_length(&self) -> Error {
        Error::local(
            format!("{} changed its length while it was read", self.what),
            "upload it again when nothing writes to it; what has no length of its own, such as a file in /proc, goes in through `cairn put -`",
        )
    }
}

impl Stream for Outgoing {
    type Item = UploadRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<UploadRequest>> {
        if let Some(header) = self.header.take() {
            return Poll::Ready(Some(UploadRequest { part: Some(Part::Header(header)) }));
        }
        loop {
            if !self.rest.is_empty() {
                let is_fast = self.sent_bytes > 0 && self.shared.idle() < SLOW;
                let most = if is_fast { MESSAGE_BYTES } else { SMALL_MESSAGE_BYTES };
                let length = self.rest.len().min(most);
                let piece = self.rest.split_to(length);
                return Poll::Ready(Some(self.send(piece)));
            }
            let next = self.content.poll_next_unpin(cx);
            self.shared.source_is_awaited(next.is_pending());
            match next {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(piece))) => {
                    let so_far = self.sent_bytes + piece.len() as u64;
                    if self.size_bytes.is_some_and(|size| so_far > size) {
                        self.fail(self.wrong_length());
                        return Poll::Pending;
                    }
                    self.rest = piece;
                }
                Poll::Ready(Some(Err(error))) => {
                    self.fail(Error::local_io(&format!("cannot read {}", self.what), &error));
                    return Poll::Pending;
                }
                Poll::Ready(None) => {
                    if self.size_bytes.is_some_and(|size| self.sent_bytes != size) {
                        self.fail(self.wrong_length());
                        return Poll::Pending;
                    }
                    self.complete();
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl Shared {
    fn moved(&self) {
        // At least 1, which tells that something has moved.
        self.moved_ms.store(self.began.elapsed().as_millis().max(1) as u64, Ordering::Relaxed);
    }

    fn source_is_awaited(&self, now: bool) {
        if self.source_awaited.load(Ordering::Relaxed) && !now {
            self.source_gave_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        self.source_awaited.store(now, Ordering::Relaxed);
    }

    /// How long nothing has moved that could have.
    fn idle(&self) -> Duration {
        if self.source_awaited.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let last = [&self.moved_ms, &self.source_gave_ms].map(|at| at.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(Duration::from_millis(last[0].max(last[1])))
    }
}

impl Watch {
    /// Resolves when the source has failed.
    pub async fn failed(&self) -> Error {
        loop {
            if let Some(error) = self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return error;
            }
            self.0.failed.notified().await;
        }
    }

    /// Resolves when nothing has moved for `limit`. Once everything was handed over, what is on its way may take as long for every
    /// small message of it.
    pub async fn stalled(&self, limit: Duration) {
        loop {
            let on_the_way = self.digest().map_or(0, |(sent, _)| sent.min(ON_THE_WAY_BYTES));
            let limit = limit + limit.mul_f64(on_the_way as f64 / SMALL_MESSAGE_BYTES as f64);
            match limit.checked_sub(self.0.idle()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    /// Whether the server can have committed: it has been given everything.
    pub fn was_complete(&self) -> bool {
        self.0.complete.load(Ordering::Acquire)
    }

    /// Whether any content was taken by the connection.
    pub fn has_moved(&self) -> bool {
        self.0.moved_ms.load(Ordering::Relaxed) > 0
    }

    /// Length and digest of what was sent, once all of it was.
    pub fn digest(&self) -> Option<(u64, blake3::Hash)> {
        *self.0.digest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back what was counted: the attempt came to nothing.
    pub fn uncount(&self) {
        if let Some(counter) = &self.0.counter {
            counter.take_back(self.0.counted.swap(0, Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::{FutureExt, stream};

    use super::*;

    fn make(
        size_bytes: Option<u64>,
        pieces: Vec<io::Result<Bytes>>,
        counter: Option<Counter>,
    ) -> (Outgoing, Watch) {
        let header = UploadHeader { size_bytes, ..Default::default() };
        outgoing(header, stream::iter(pieces).boxed(), "it".into(), counter)
    }

    #[tokio::test]
    async fn large_pieces_are_split_counted_and_digested() {
        let content = Bytes::from(vec![7; 2 * MESSAGE_BYTES + 5]);
        let counter = Counter::default();
        let size = content.len() as u64;
        let (outgoing, watch) = make(Some(size), vec![Ok(content.clone())], Some(counter.clone()));
        let lengths: Vec<usize> = outgoing
            .filter_map(|message| async {
                match message.part? {
                    Part::Data(data) => Some(data.len()),
                    Part::Header(_) => None,
                }
            })
            .collect()
            .await;
        let rest = MESSAGE_BYTES - SMALL_MESSAGE_BYTES + 5;
        assert_eq!(lengths, [SMALL_MESSAGE_BYTES, MESSAGE_BYTES, rest]);
        assert!(watch.was_complete());
        assert_eq!(watch.digest(), Some((size, blake3::hash(&content))));
        assert_eq!(counter.get(), size);
        watch.uncount();
        assert_eq!(counter.get(), 0);
    }

    #[tokio::test]
    async fn a_failing_source_never_looks_like_the_end() {
        let cases: Vec<(Option<u64>, Vec<io::Result<Bytes>>)> = vec![
            (None, vec![Ok("abc".into()), Err(io::Error::other("disk gone"))]),
            (Some(5), vec![Ok("abc".into())]),
            (Some(2), vec![Ok("abc".into())]),
        ];
        for (size, pieces) in cases {
            let (mut outgoing, watch) = make(size, pieces, None);
            let mut next = outgoing.next().now_or_never();
            while let Some(Some(_)) = next {
                next = outgoing.next().now_or_never();
            }
            assert_eq!(next, None, "the stream must stay open");
            assert!(watch.failed().now_or_never().is_some());
            assert!(!watch.was_complete());
        }
    }

    #[tokio::test]
    async fn a_silent_upload_is_noticed() {
        let (_outgoing, watch) = make(None, vec![], None);
        assert!(watch.stalled(Duration::ZERO).now_or_never().is_some());
        assert!(watch.stalled(Duration::from_secs(60)).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_slow_source_is_not_the_nodes_silence() {
        let (mut give, taken) = futures::channel::mpsc::channel::<io::Result<Bytes>>(1);
        let header = UploadHeader::default();
        let (mut outgoing, watch) = outgoing(header, taken.boxed(), "it".into(), None);
        assert!(outgoing.next().now_or_never().is_some(), "the header");
        assert!(outgoing.next().now_or_never().is_none());
        let limit = Duration::from_millis(50);
        assert!(tokio::time::timeout(4 * limit, watch.stalled(limit)).await.is_err());
        // Once it has given something, it is the node that is waited for.
        give.try_send(Ok("abc".into())).unwrap();
        outgoing.next().await.unwrap();
        watch.stalled(limit).await;
    }

    #[tokio::test]
    async fn what_is_on_its_way_has_time_to_arrive() {
        let content = Bytes::from(vec![7; 4 * SMALL_MESSAGE_BYTES]);
        let (outgoing, watch) = make(Some(content.len() as u64), vec![Ok(content)], None);
        let messages: Vec<_> = outgoing.collect().await;
        assert!(messages.len() > 1 && watch.was_complete());
        let (limit, begun) = (Duration::from_millis(100), Instant::now());
        watch.stalled(limit).await;
        let took = begun.elapsed();
        assert!(took > 4 * limit, "{took:?}");
    }
}
