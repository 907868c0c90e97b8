//! Content on its way through the shell: every wait for the other end is bounded, and nothing ends by accident as if
//! it were whole.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    env::Env,
    files::{ContentIn, ContentOut, FileError},
    metrics::Metrics,
};

/// Content leaves in messages of at most this size, so that slow readers can be told from dead ones.
pub const MAX_OUT_BYTES: usize = 64 << 10;

/// A client of which this much does not come, or go, within the limit for stalls is given up: it would hold memory that others
/// wait for. Only the time counts in which it is waited for.
pub const MIN_BYTES_A_STALL: u64 = 64 << 10;

/// What a reader took beyond this, it took itself, and not only what lies between it and us: buffers, windows.
const ON_THE_WAY_BYTES: u64 = 512 << 10;

/// Why content breaks off is told for so long to a reader that takes nothing; then the channel's end says that it did.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// So many limits for stalls is a reader waited for at most, however much it took before.
const MOST_PATIENCE: u32 = 5;

/// Messages that wait for a slow reader, besides those that the connection has taken already.
const READ_AHEAD: usize = 1;

/// An upload or download while it goes on.
pub struct OpenStream(Arc<Metrics>);

impl OpenStream {
    pub fn begin(metrics: &Arc<Metrics>) -> Self {
        metrics.open_streams.inc();
        Self(metrics.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open_streams.dec();
    }
}

/// Lets content end as whole only if its caller is still there.
///
/// HTTP/2 has two ways to end a request's content: to finish it, and to give the request up. The libraries below show
/// the second as the first in some cases, while they drop the handler: a race that could store half a file. So the
/// end waits for this gate, and the gate for the handler's task to be looked at once more, which is when a request
/// that was given up is dropped, with the gate.
#[must_use]
pub struct Gate {
    ended: oneshot::Receiver<()>,
    whole: oneshot::Sender<()>,
}

impl Gate {
    /// Does the work that takes the content. Must be awaited by the request's handler itself.
    pub async fn until_whole<T>(self, work: impl Future<Output = T>) -> T {
        let open = async {
            if self.ended.await.is_ok() {
                tokio::task::yield_now().await;
                let _ = self.whole.send(());
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            result = work => result,
            result = open => result,
        }
    }
}

struct Incoming {
    content: BoxStream<'static, Result<Bytes, FileError>>,
    pace: Pace,
    ended: oneshot::Sender<()>,
    whole: oneshot::Receiver<()>,
    _open: OpenStream,
}

/// How fast a client sends.
struct Pace {
    stall: Duration,
    /// Waited for the client, and come from it, since it was last fast enough.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(stall: Duration) -> Self {
        Self { stall, waited: Duration::ZERO, bytes: 0 }
    }

    fn came(&mut self, bytes: usize, waited: Duration) {
        (self.bytes, self.waited) = (self.bytes + bytes as u64, self.waited + waited);
        if self.bytes >= MIN_BYTES_A_STALL {
            *self = Self::new(self.stall);
        }
    }

    fn too_slow(&self) -> FileError {
        let seconds = self.stall.as_secs();
        FileError::UploadIncomplete(match self.bytes {
            0 => format!("nothing came for {seconds} s"),
            bytes => {
                let least = MIN_BYTES_A_STALL >> 10;
                format!("only {bytes} bytes came in {seconds} s, and {least} KiB must")
            }
        })
    }
}

/// Content from a client. Ends with an error when too little came for `stall`, or its caller has left.
pub fn incoming(
    env: &Env,
    metrics: &Arc<Metrics>,
    stall: Duration,
    content: impl Stream<Item = Result<Bytes, FileError>> + Send + 'static,
) -> (ContentIn, Gate) {
    let (env, metrics) = (env.clone(), metrics.clone());
    let (ended, gate_ended) = oneshot::channel();
    let (gate_whole, whole) = oneshot::channel();
    let (content, pace) = (content.boxed(), Pace::new(stall));
    let state = Incoming { content, pace, ended, whole, _open: OpenStream::begin(&metrics) };
    let content = stream::unfold(Some(state), move |state| {
        let (env, metrics) = (env.clone(), metrics.clone());
        async move {
            let mut state = state?;
            let begun = env.clock.monotonic();
            let left = state.pace.stall.saturating_sub(state.pace.waited);
            let error = match env.timeout(left, state.content.next()).await {
                Some(Some(Ok(data))) => {
                    state.pace.came(data.len(), env.clock.monotonic().saturating_sub(begun));
                    metrics.bytes_in.inc_by(data.len() as u64);
                    return Some((Ok(data), Some(state)));
                }
                Some(Some(Err(error))) => error,
                Some(None) => {
                    let _ = state.ended.send(());
                    match state.whole.await {
                        Ok(()) => return None,
                        Err(_) => FileError::UploadIncomplete("the caller gave up".into()),
                    }
                }
                None => state.pace.too_slow(),
            };
            Some((Err(error), None))
        }
    });
    (content.boxed(), Gate { ended: gate_ended, whole: gate_whole })
}

/// How long a reader is waited for.
///
/// A reader's system may take megabytes at once and then nothing until the reader has read most of that, for minutes if it is
/// slow. So what it took ahead of the least that it must take counts, within bounds. But what buffers between it and us have
/// swallowed does not: one that reads nothing is given up after one limit for stalls.
struct Patience {
    stall: Duration,
    /// Bytes taken in all, and since there was last time for the next.
    taken: u64,
    taken_since: u64,
    left: Duration,
}

impl Patience {
    fn new(stall: Duration) -> Self {
        Self { stall, taken: 0, taken_since: 0, left: stall }
    }

    fn took(&mut self, bytes: u64, waited: Duration) {
        let counted = |taken: u64| taken.saturating_sub(ON_THE_WAY_BYTES);
        let earned = counted(self.taken + bytes) - counted(self.taken);
        self.taken += bytes;
        let earned = self.stall.mul_f64(earned as f64 / MIN_BYTES_A_STALL as f64);
        self.left = (self.left.saturating_sub(waited) + earned).min(self.stall * MOST_PATIENCE);
        self.taken_since += bytes;
        if self.taken_since >= MIN_BYTES_A_STALL {
            // Whoever has just taken as much as it must has the time for the next.
            (self.taken_since, self.left) = (0, self.left.max(self.stall));
        }
    }
}

/// How content leaves.
pub struct Outgoing {
    pub env: Env,
    pub metrics: Arc<Metrics>,
    /// A reader that takes nothing for this long is given up, if it took nothing ahead: see [`Patience`].
    pub stall: Duration,
    /// Everything must be out after this.
    pub deadline: Option<Duration>,
    /// Set when others need the memory of this content.
    pub ended: CancellationToken,
}

enum Message {
    Data(Bytes),
    /// The last one: without it the content is not whole.
    End,
    Failed(FileError),
}

impl Outgoing {
    /// Sends `length` bytes of content. They are read by a task of their own, so that a reader who stalls is noticed
    /// even while nobody polls the stream.
    pub fn send(
        self,
        content: ContentOut,
        length: u64,
    ) -> impl Stream<Item = Result<Bytes, FileError>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        tokio::spawn(self.pump(content, length, sender));
        stream::unfold(Some(receiver), |receiver| async {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Some(Message::Data(data)) => Some((Ok(data), Some(receiver))),
                Some(Message::End) => None,
                Some(Message::Failed(error)) => Some((Err(error), None)),
                None => Some((Err(FileError::DeadlineExceeded), None)),
            }
        })
    }

    async fn pump(self, content: ContentOut, length: u64, sender: mpsc::Sender<Message>) {
        let _open = OpenStream::begin(&self.metrics);
        let deadline = async {
            match self.deadline {
                Some(limit) => self.env.clock.sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            biased;
            () = sender.closed() => return,
            outcome = self.pump_all(content, length, &sender) => outcome,
            () = self.ended.cancelled() => Err(FileError::crowded_out()),
            () = deadline => Err(FileError::DeadlineExceeded),
        };
        if let Err(error) = outcome {
            let _ = self.env.timeout(LAST_WORDS, sender.send(Message::Failed(error))).await;
        }
    }

    async fn pump_all(
        &self,
        mut content: ContentOut,
        length: u64,
        sender: &mpsc::Sender<Message>,
    ) -> Result<(), FileError> {
        let (mut left, mut patience) = (length, Patience::new(self.stall));
        while let Some(data) = content.next().await {
            let mut data = data?;
            left = left.checked_sub(data.len() as u64).ok_or_else(|| {
                FileError::Internal(format!("more than the {length} bytes announced would have been sent"))
            })?;
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(MAX_OUT_BYTES));
                let begun = self.env.clock.monotonic();
                let sent_bytes = piece.len() as u64;
                match self.env.timeout(patience.left, sender.send(Message::Data(piece))).await {
                    Some(Ok(())) => self.metrics.bytes_out.inc_by(sent_bytes),
                    Some(Err(_)) => return Ok(()),
                    None => return Err(FileError::DeadlineExceeded),
                };
                let waited = self.env.clock.monotonic().saturating_sub(begun);
                patience.took(sent_bytes, waited);
            }
        }
        if left > 0 {
            return Err(FileError::Internal(format!("{left} of {length} bytes are missing at the end")));
        }
        // With the same patience: it waits behind the last of the content.
        match self.env.timeout(patience.left, sender.send(Message::End)).await {
            Some(_) => Ok(()),
            None => Err(FileError::DeadlineExceeded),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::{api::fake::quick_env, env::paused::paused};

    const STALL: Duration = Duration::from_secs(60);

    fn outgoing(deadline: Option<Duration>) -> (Outgoing, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::default());
        let ended = CancellationToken::new();
        (Outgoing { env: quick_env(), metrics: metrics.clone(), stall: STALL, deadline, ended }, metrics)
    }

    fn content(parts: Vec<Result<Bytes, FileError>>) -> ContentOut {
        stream::iter(parts).boxed()
    }

    #[tokio::test]
    async fn content_leaves_whole_and_in_small_messages() {
        let (outgoing, metrics) = outgoing(None);
        let big = Bytes::from(vec![7; MAX_OUT_BYTES * 2 + 1]);
        let parts = vec![Ok(big.clone()), Ok(Bytes::new()), Ok(Bytes::from_static(b"end"))];
        let length = big.len() as u64 + 3;
        let sent: Vec<Bytes> = outgoing.send(content(parts), length).map(Result::unwrap).collect().await;
        assert!(sent.iter().all(|piece| piece.len() <= MAX_OUT_BYTES));
        assert_eq!(sent.concat().len() as u64, length);
        assert_eq!(metrics.bytes_out.get(), length);
        quick_env().clock.sleep(STALL / 10).await;
        assert_eq!(metrics.open_streams.get(), 0);
    }

    #[tokio::test]
    async fn content_that_is_not_whole_ends_with_an_error() {
        for (parts, length) in [
            (vec![Ok(Bytes::from_static(b"abc"))], 4),
            (vec![Ok(Bytes::from_static(b"abc"))], 2),
            (vec![Ok(Bytes::from_static(b"abc")), Err(FileError::Internal("broken".into()))], 6),
            (vec![], 1),
        ] {
            let (outgoing, _) = outgoing(None);
            let sent: Vec<_> = outgoing.send(content(parts), length).collect().await;
            assert!(sent.last().unwrap().is_err(), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn a_reader_that_stalls_is_given_up() {
        let (outgoing, metrics) = outgoing(None);
        let parts = (0..100).map(|_| Ok(Bytes::from(vec![0; 1000]))).collect();
        let mut sent = Box::pin(outgoing.send(content(parts), 100_000));
        sent.next().await.unwrap().unwrap();
        quick_env().clock.sleep(STALL * 3).await;
        assert_eq!(metrics.open_streams.get(), 0);
        let rest: Vec<_> = sent.collect().await;
        assert!(rest.last().unwrap().is_err());
    }

    #[tokio::test]
    async fn deadlines_and_readers_that_leave_end_the_work() {
        let (out, metrics) = outgoing(Some(Duration::from_secs(5)));
        let sent: Vec<_> = out.send(stream::pending().boxed(), 1).collect().await;
        assert_eq!(sent, [Err(FileError::DeadlineExceeded)]);

        let (out, _) = outgoing(None);
        drop(out.send(stream::pending().boxed(), 1));
        quick_env().clock.sleep(STALL / 10).await;
        assert_eq!(metrics.open_streams.get(), 0);
    }

    #[tokio::test]
    async fn senders_that_stall_are_given_up() {
        let (env, metrics) = (quick_env(), Arc::new(Metrics::default()));
        let content = stream::iter([Ok(Bytes::from_static(b"abc"))]).chain(stream::pending());
        let (mut incoming, _gate) = incoming(&env, &metrics, STALL, content);
        assert_eq!(metrics.open_streams.get(), 1);
        incoming.next().await.unwrap().unwrap();
        assert!(matches!(incoming.next().await, Some(Err(FileError::UploadIncomplete(_)))));
        assert!(incoming.next().await.is_none());
        assert_eq!((metrics.bytes_in.get(), metrics.open_streams.get()), (3, 0));
    }

    /// So many times so much, each after so many seconds.
    fn dripping(
        env: &Env,
        seconds: u64,
        bytes: usize,
        times: usize,
    ) -> impl Stream<Item = Result<Bytes, FileError>> + Send + use<> {
        let env = env.clone();
        let drop = move |_| {
            let env = env.clone();
            async move {
                env.clock.sleep(Duration::from_secs(seconds)).await;
                Ok(Bytes::from(vec![0; bytes]))
            }
        };
        stream::iter(0..times).then(drop)
    }

    #[tokio::test]
    async fn senders_of_a_byte_a_second_are_given_up_and_slow_ones_are_not() {
        let (env, metrics) = (quick_env(), Arc::new(Metrics::default()));
        let taken = async |content| {
            let (mut incoming, _gate) = incoming(&env, &metrics, STALL, content);
            let (mut bytes, mut times) = (0, 0);
            while times < 12 {
                bytes += incoming.next().await.unwrap()?.len();
                times += 1;
                // However long we take ourselves, it is not the client's fault.
                env.clock.sleep(STALL).await;
            }
            Ok::<_, FileError>(bytes)
        };
        let slow = taken(dripping(&env, 10, 40 << 10, 12).boxed()).await;
        assert_eq!(slow.unwrap(), 12 * (40 << 10));
        let error = taken(dripping(&env, 10, 1, 12).boxed()).await.unwrap_err();
        assert!(matches!(&error, FileError::UploadIncomplete(why) if why.contains("64 KiB must")), "{error}");
    }

    #[tokio::test]
    async fn slow_readers_are_served_and_those_that_take_too_little_are_given_up() {
        // 64 KiB in so many seconds.
        let read = async |seconds: f64, length: usize| {
            let (outgoing, _) = outgoing(None);
            let env = outgoing.env.clone();
            let sent = outgoing.send(content(vec![Ok(Bytes::from(vec![7; length]))]), length as u64);
            let mut sent = Box::pin(sent);
            let mut bytes = 0;
            while let Some(piece) = sent.next().await {
                let piece = piece?;
                bytes += piece.len();
                let seconds = seconds * piece.len() as f64 / MIN_BYTES_A_STALL as f64;
                env.clock.sleep(Duration::from_secs_f64(seconds)).await;
            }
            Ok::<_, FileError>(bytes)
        };
        assert_eq!(read(20.0, 3 << 20).await.unwrap(), 3 << 20);
        // Long enough for what it took at once to be used up.
        assert!(read(150.0, 6 << 20).await.is_err());
    }

    /// What its system took at once is read for minutes, while nothing moves here.
    #[tokio::test]
    async fn what_a_reader_took_ahead_counts_and_what_lies_on_the_way_does_not() {
        let read_after_a_pause = async |taken: usize, stalls: u32| {
            let (outgoing, _) = outgoing(None);
            let env = outgoing.env.clone();
            let length = taken + (4 << 20);
            let frames = vec![Ok(Bytes::from(vec![7; 64 << 10])); length >> 16];
            let mut sent = Box::pin(outgoing.send(content(frames), length as u64));
            let mut bytes = 0;
            while bytes < taken {
                bytes += sent.next().await.unwrap().unwrap().len();
            }
            env.clock.sleep(STALL * stalls).await;
            while let Some(piece) = sent.next().await {
                bytes += piece?.len();
            }
            Ok::<_, FileError>(bytes == length)
        };
        assert_eq!(read_after_a_pause(2 << 20, MOST_PATIENCE - 1).await, Ok(true));
        assert!(read_after_a_pause(2 << 20, MOST_PATIENCE + 1).await.is_err(), "not for ever");
        assert!(read_after_a_pause(ON_THE_WAY_BYTES as usize - (128 << 10), 2).await.is_err());
    }

    fn paused_outgoing() -> (Outgoing, Arc<Metrics>) {
        let (outgoing, metrics) = outgoing(None);
        (Outgoing { env: paused(), ..outgoing }, metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_nothing_is_given_up_after_one_limit() {
        let (outgoing, metrics) = paused_outgoing();
        let sent = outgoing.send(content(vec![Ok(Bytes::from(vec![7; 64 << 10])); 64]), 4 << 20);
        tokio::time::sleep(STALL - LAST_WORDS).await;
        assert_eq!(metrics.open_streams.get(), 1);
        tokio::time::sleep(3 * LAST_WORDS).await;
        assert_eq!(metrics.open_streams.get(), 0);
        assert!(sent.collect::<Vec<_>>().await.last().unwrap().is_err());
    }

    /// The end waits behind the last piece, and as long as that one.
    #[tokio::test(start_paused = true)]
    async fn the_end_is_waited_for_as_patiently_as_the_content() {
        let (outgoing, _) = paused_outgoing();
        let frames = vec![Ok(Bytes::from(vec![7; 64 << 10])); 32];
        let mut sent = Box::pin(outgoing.send(content(frames), 2 << 20));
        let mut bytes = 0;
        while bytes < 30 * (64 << 10) {
            bytes += sent.next().await.unwrap().unwrap().len();
        }
        tokio::time::sleep(STALL * (MOST_PATIENCE - 2)).await;
        sent.next().await.unwrap().unwrap();
        tokio::time::sleep(STALL * 2 - LAST_WORDS).await;
        let rest: Vec<_> = sent.collect().await;
        assert!(rest.len() == 1 && rest[0].is_ok(), "{}", rest.len());
    }

    /// Takes content in a task of its own, as the gateway does.
    async fn take(content: ContentIn) -> Result<Bytes, FileError> {
        tokio::spawn(async move { Ok(content.try_collect::<Vec<_>>().await?.concat().into()) }).await.unwrap()
    }

    #[tokio::test]
    async fn content_is_whole_only_while_its_caller_is_there() {
        let (env, metrics) = (quick_env(), Arc::new(Metrics::default()));
        let abc = || stream::iter([Ok(Bytes::from_static(b"abc"))]);
        let (content, gate) = incoming(&env, &metrics, STALL, abc());
        assert_eq!(gate.until_whole(take(content)).await.unwrap(), "abc");

        let (content, gate) = incoming(&env, &metrics, STALL, abc());
        drop(gate);
        assert!(matches!(take(content).await, Err(FileError::UploadIncomplete(_))));

        // As the server does it: the handler is looked at once, and dropped before it is looked at again.
        let (content, gate) = incoming(&env, &metrics, STALL, abc());
        let taking = tokio::spawn(take(content));
        let mut handler = Box::pin(gate.until_whole(std::future::pending::<()>()));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(futures::poll!(&mut handler).is_pending());
        drop(handler);
        assert!(matches!(taking.await.unwrap(), Err(FileError::UploadIncomplete(_))));
    }
}
