//! The messages of one upload attempt: a header, then content in pieces, counted and digested on their way out.
//!
//! An upload stream cannot carry an error, and one that merely ends would be taken for complete. So when the source
//! fails, the stream stays open and silent, and [`Watch::failed`] tells the caller, who drops the call: the server
//! sees a reset, never an end.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::v1::upload_request::Part;
use cairn_proto::v1::{UploadHeader, UploadRequest};
use futures::{Stream, StreamExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::source::ContentStream;
use super::{Counter, MESSAGE_BYTES};
use crate::error::Error;

/// A message's content in the beginning, and at least: so that on a slow line something moves now and then. Those that took longer
/// than [`SLOW`] are followed by one of half the size, and those that were [`FAST`] by one of twice the size.
const FIRST_MESSAGE_BYTES: usize = 64 << 10;
const LEAST_MESSAGE_BYTES: usize = 16 << 10;
const SLOW: Duration = Duration::from_secs(2);
const FAST: Duration = Duration::from_millis(500);

/// What was handed over and has not arrived, at most: the server's window for one upload, and as much in buffers. How fast the line is
/// cannot be seen before as much was handed over.
const ON_THE_WAY_BYTES: u64 = 512 << 10;
/// Once everything was handed over, what is on its way may take so many times as long as as much took before.
const ARRIVES_WITHIN: u32 = 4;

/// The stream that is handed to the call.
pub(crate) struct Outgoing {
    header: Option<UploadHeader>,
    content: ContentStream,
    /// What is left of a piece larger than a message.
    rest: Bytes,
    hasher: blake3::Hasher,
    size_bytes: Option<u64>,
    sent_bytes: u64,
    /// Of the next message, at most.
    message_bytes: usize,
    /// Milliseconds after the beginning when [`ON_THE_WAY_BYTES`] more were handed over, the last two times.
    marks_ms: [u64; 2],
    what: String,
    shared: Arc<Shared>,
}

/// All content was handed over.
#[derive(Debug, Clone, Copy)]
struct Sent {
    bytes: u64,
    digest: blake3::Hash,
    /// How long the last bytes took, at least as many as are on their way now; `None` if there were too few of them.
    took: Option<Duration>,
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
    sent: Mutex<Option<Sent>>,
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
        sent: Mutex::new(None),
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
        message_bytes: FIRST_MESSAGE_BYTES,
        marks_ms: [0; 2],
        what,
        shared: Arc::clone(&shared),
    };
    (outgoing, Watch(shared))
}

impl Outgoing {
    /// The next message's content, of what is left of a piece.
    fn take_piece(&mut self) -> Bytes {
        let took = self.shared.idle();
        if self.sent_bytes > 0 && took > SLOW {
            self.message_bytes = (self.message_bytes / 2).max(LEAST_MESSAGE_BYTES);
        } else if self.sent_bytes >= ON_THE_WAY_BYTES && took < FAST {
            self.message_bytes = (self.message_bytes * 2).min(MESSAGE_BYTES);
        }
        let length = self.rest.len().min(self.message_bytes);
        self.rest.split_to(length)
    }

    fn send(&mut self, piece: Bytes) -> UploadRequest {
        self.hasher.update(&piece);
        let before = self.sent_bytes;
        self.sent_bytes += piece.len() as u64;
        if before / ON_THE_WAY_BYTES < self.sent_bytes / ON_THE_WAY_BYTES {
            self.marks_ms = [self.marks_ms[1], self.shared.now_ms()];
        }
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
        let since = Duration::from_millis(self.shared.now_ms().saturating_sub(self.marks_ms[0]));
        let sent = Sent {
            bytes: self.sent_bytes,
            digest: self.hasher.finalize(),
            took: (self.sent_bytes >= 2 * ON_THE_WAY_BYTES).then_some(since),
        };
        *self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner) = Some(sent);
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
                let piece = self.take_piece();
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
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn moved(&self) {
        // At least 1, which tells that something has moved.
        self.moved_ms.store(self.now_ms().max(1), Ordering::Relaxed);
    }

    fn source_is_awaited(&self, now: bool) {
        if self.source_awaited.load(Ordering::Relaxed) && !now {
            self.source_gave_ms.store(self.now_ms(), Ordering::Relaxed);
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

    /// Resolves when nothing has moved for `limit`. Once everything was handed over, what is on its way has time to arrive: as long
    /// as is usual on this line, and at most `limit` for as much as a first message.
    pub async fn stalled(&self, limit: Duration) {
        loop {
            let arrival = self.sent().map_or(Duration::ZERO, |sent| {
                let on_the_way = sent.bytes.min(ON_THE_WAY_BYTES) as f64;
                let most = limit.mul_f64(on_the_way / FIRST_MESSAGE_BYTES as f64);
                sent.took.map_or(most, |took| most.min(took * ARRIVES_WITHIN))
            });
            let limit = limit + arrival;
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
        self.sent().map(|sent| (sent.bytes, sent.digest))
    }

    fn sent(&self) -> Option<Sent> {
        *self.0.sent.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn length(message: &UploadRequest) -> Option<usize> {
        match message.part.as_ref()? {
            Part::Data(data) => Some(data.len()),
            Part::Header(_) => None,
        }
    }

    #[tokio::test]
    async fn large_pieces_are_split_counted_and_digested() {
        let content = Bytes::from(vec![7; ON_THE_WAY_BYTES as usize + 3 * MESSAGE_BYTES]);
        let counter = Counter::default();
        let size = content.len() as u64;
        let (outgoing, watch) = make(Some(size), vec![Ok(content.clone())], Some(counter.clone()));
        let lengths: Vec<usize> =
            outgoing.filter_map(|message| async move { length(&message) }).collect().await;
        let (first, rest) = lengths.split_at(ON_THE_WAY_BYTES as usize / FIRST_MESSAGE_BYTES);
        assert!(first.iter().all(|length| *length == FIRST_MESSAGE_BYTES), "{lengths:?}");
        assert_eq!(rest, [2 * FIRST_MESSAGE_BYTES, MESSAGE_BYTES, MESSAGE_BYTES, 2 * FIRST_MESSAGE_BYTES]);
        assert!(watch.was_complete());
        assert_eq!(watch.digest(), Some((size, blake3::hash(&content))));
        assert_eq!(counter.get(), size);
        watch.uncount();
        assert_eq!(counter.get(), 0);
    }

    /// What buffers swallow at once says nothing about the line.
    #[tokio::test(start_paused = true)]
    async fn on_a_slow_line_messages_get_small() {
        let content = Bytes::from(vec![7; 2 << 20]);
        let (mut outgoing, _watch) = make(None, vec![Ok(content)], None);
        outgoing.next().await;
        for _ in 0..ON_THE_WAY_BYTES as usize / FIRST_MESSAGE_BYTES {
            assert_eq!(length(&outgoing.next().await.unwrap()), Some(FIRST_MESSAGE_BYTES));
        }
        let mut next = async |took| {
            tokio::time::sleep(took).await;
            length(&outgoing.next().await.unwrap()).unwrap() >> 10
        };
        assert_eq!(next(2 * SLOW).await, 32);
        assert_eq!(next(2 * SLOW).await, 16);
        assert_eq!(next(2 * SLOW).await, 16);
        assert_eq!(next(SLOW / 2).await, 16);
        assert_eq!(next(FAST / 2).await, 32);
        assert_eq!(next(FAST / 2).await, 64);
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

    async fn patience(size: usize, each: Duration, limit: Duration) -> Duration {
        let content = Bytes::from(vec![7; size]);
        let (mut outgoing, watch) = make(Some(size as u64), vec![Ok(content)], None);
        while !watch.was_complete() {
            tokio::time::sleep(each).await;
            outgoing.next().await.unwrap();
        }
        let begun = Instant::now();
        watch.stalled(limit).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_has_time_to_arrive() {
        let limit = Duration::from_secs(45);
        // Nothing can be known of the line: buffers may have taken all of it.
        let took = patience(256 << 10, Duration::ZERO, limit).await;
        assert!(took >= 5 * limit && took < 6 * limit, "{took:?}");
        // A fast line, and a slow one.
        let took = patience(4 << 20, Duration::from_millis(10), limit).await;
        assert!(took >= limit && took < limit + Duration::from_secs(2), "{took:?}");
        let took = patience(4 << 20, 5 * SLOW, limit).await;
        assert!(took == 9 * limit, "{took:?}");
    }
}
