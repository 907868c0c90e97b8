//! What is left of a request's body when its answer is ready.
//!
//! Many senders stop listening when their stream is reset while they send: told early that an upload is refused, they
//! report a broken stream instead of the reason, or end short of the length they promised. So the body is held here,
//! outside of the handlers, and what nobody has read is read and let fall, within bounds, before the answer goes out:
//! for every address, every method, and also when the door refuses.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use cairn_proto::v1::ErrorCode;
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;

use crate::env::Env;

const DRAIN_TIME: Duration = Duration::from_secs(10);
const DRAIN_BYTES: usize = 64 << 20;
/// A sender that said it waits to be asked for its content (`Expect: 100-continue`) does so for about a second. One that
/// was refused well within it, unasked, has sent nothing, and must not be asked just to be refused.
const SURELY_WAITING: Duration = Duration::from_millis(500);

struct Shared<B> {
    body: B,
    /// Somebody has asked for content.
    begun: bool,
    /// Nothing more can come.
    over: bool,
}

/// The end of a body that is read.
struct Reading<B>(Arc<Mutex<Shared<B>>>);

/// The end that stays when the reader has gone.
pub(super) struct Rest<B> {
    shared: Arc<Mutex<Shared<B>>>,
    env: Env,
    /// When the body came, if its sender waits to be asked.
    waits_since: Option<Duration>,
}

/// Holds on to a request's body: what the handler is to have, and what is left if there is anything to be left.
pub(super) fn hold<B>(body: B, headers: &HeaderMap, env: &Env) -> (Body, Option<Rest<B>>)
where
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return (Body::empty(), None);
    }
    let expects = headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let shared = Arc::new(Mutex::new(Shared { body, begun: false, over: false }));
    let waits_since = expects.then(|| env.clock.monotonic());
    let rest = Rest { shared: shared.clone(), env: env.clone(), waits_since };
    (Body::new(Reading(shared)), Some(rest))
}

impl<B: HttpBody<Data = Bytes> + Send + Unpin> Rest<B> {
    /// To be awaited before the answer is sent, which may be a refusal.
    pub(super) async fn drain(self, refusal: Option<ErrorCode>) {
        // Of senders that are gone or stuck, nothing comes.
        let stuck = matches!(refusal, Some(ErrorCode::UploadIncomplete | ErrorCode::DeadlineExceeded));
        if stuck || self.sender_waits() {
            return;
        }
        let all = async {
            let (mut body, mut left) = (pin!(Reading(self.shared.clone())), DRAIN_BYTES);
            while !body.is_end_stream()
                && let Some(Ok(frame)) = body.frame().await
            {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    break;
                }
            }
        };
        let _ = self.env.timeout(DRAIN_TIME, all).await;
    }

    fn sender_waits(&self) -> bool {
        let now = self.env.clock.monotonic();
        !self.shared.lock().begun
            && self.waits_since.is_some_and(|since| now.saturating_sub(since) < SURELY_WAITING)
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Reading<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut shared = self.0.lock();
        if shared.over {
            return Poll::Ready(None);
        }
        shared.begun = true;
        let polled = Pin::new(&mut shared.body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            shared.over = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.0.lock();
        shared.over || shared.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{Stream, StreamExt, stream};
    use http::HeaderValue;
    use http_body_util::StreamBody;

    use super::*;
    use crate::api::fake::quick_env;

    const PIECE: usize = 1 << 20;

    type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>;

    /// A body, and the pieces that were taken of it.
    fn body(
        pieces: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    ) -> (StreamBody<Frames>, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = taken.clone();
        let frames: Frames = Box::pin(pieces.map(move |piece| {
            counted.fetch_add(1, Ordering::Relaxed);
            piece.map(Frame::data)
        }));
        (StreamBody::new(frames), taken)
    }

    fn pieces(count: usize) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
        stream::iter((0..count).map(|_| Ok(Bytes::from(vec![0; PIECE]))))
    }

    #[tokio::test]
    async fn what_no_handler_has_read_is_read_before_any_answer() {
        for refusal in [Some(ErrorCode::FileNotFound), None] {
            let (body, taken) = body(pieces(9));
            let (given, rest) = hold(body, &HeaderMap::new(), &quick_env());
            let mut read = given.into_data_stream();
            read.next().await.unwrap().unwrap();
            drop(read);
            assert_eq!(taken.load(Ordering::Relaxed), 1);
            rest.unwrap().drain(refusal).await;
            assert_eq!(taken.load(Ordering::Relaxed), 9);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_empty_or_was_read_keeps_nobody_waiting() {
        assert!(hold(Body::empty(), &HeaderMap::new(), &quick_env()).1.is_none());
        let (body, taken) = body(pieces(2));
        let (given, rest) = hold(body, &HeaderMap::new(), &quick_env());
        assert_eq!(given.collect().await.unwrap().to_bytes().len(), 2 * PIECE);
        rest.unwrap().drain(Some(ErrorCode::DigestMismatch)).await;
        assert_eq!(taken.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn neither_bytes_nor_time_are_without_end() {
        let (endless, taken) = body(stream::repeat_with(|| Ok(Bytes::from(vec![0; PIECE]))));
        let (_, rest) = hold(endless, &HeaderMap::new(), &quick_env());
        rest.unwrap().drain(Some(ErrorCode::Unauthenticated)).await;
        assert_eq!(taken.load(Ordering::Relaxed), DRAIN_BYTES / PIECE);

        let env = quick_env();
        let (stuck, taken) = body(pieces(1).chain(stream::pending()));
        let (_, rest) = hold(stuck, &HeaderMap::new(), &env);
        let begun = env.clock.monotonic();
        rest.unwrap().drain(Some(ErrorCode::Unauthenticated)).await;
        assert_eq!(taken.load(Ordering::Relaxed), 1);
        assert!(env.clock.monotonic() - begun < DRAIN_TIME * 10);
    }

    #[tokio::test]
    async fn senders_that_are_gone_or_wait_to_be_asked_are_not_read() {
        for code in [ErrorCode::UploadIncomplete, ErrorCode::DeadlineExceeded] {
            let (body, taken) = body(pieces(3));
            let (_, rest) = hold(body, &HeaderMap::new(), &quick_env());
            rest.unwrap().drain(Some(code)).await;
            assert_eq!(taken.load(Ordering::Relaxed), 0, "{code:?}");
        }
        let (broken, taken) = body(stream::iter([Err(std::io::Error::other("reset")), Ok(Bytes::new())]));
        let (given, rest) = hold(broken, &HeaderMap::new(), &quick_env());
        given.collect().await.unwrap_err();
        rest.unwrap().drain(Some(ErrorCode::InvalidArgument)).await;
        assert_eq!(taken.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_sender_that_waits_to_be_asked_is_asked_only_for_what_is_wanted() {
        let expects = HeaderMap::from_iter([(header::EXPECT, HeaderValue::from_static("100-continue"))]);
        let mut env = quick_env();
        env.clock = Arc::new(crate::env::real::RealClock::default());
        let (unasked, taken) = body(pieces(3));
        let (_, rest) = hold(unasked, &expects, &env);
        rest.unwrap().drain(Some(ErrorCode::Unauthenticated)).await;
        assert_eq!(taken.load(Ordering::Relaxed), 0);

        let (asked, taken) = body(pieces(3));
        let (given, rest) = hold(asked, &expects, &env);
        given.into_data_stream().next().await.unwrap().unwrap();
        rest.unwrap().drain(Some(ErrorCode::OutOfSpace)).await;
        assert_eq!(taken.load(Ordering::Relaxed), 3);

        // It has waited for long: by now it may be sending.
        let (tired, taken) = body(pieces(3));
        let (_, rest) = hold(tired, &expects, &env);
        env.clock.sleep(SURELY_WAITING).await;
        rest.unwrap().drain(Some(ErrorCode::OutOfSpace)).await;
        assert_eq!(taken.load(Ordering::Relaxed), 3);
    }
}
