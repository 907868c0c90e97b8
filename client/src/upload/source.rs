//! Where an upload's content comes from, and whether it can be read again for another attempt.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Duration, Instant, timeout_at};

use super::MESSAGE_BYTES;

/// Content, piece by piece.
pub type ContentStream = BoxStream<'static, io::Result<Bytes>>;

/// Content that can be opened, once or again and again.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    /// Opens the content from its beginning.
    async fn open(&self) -> io::Result<ContentStream>;

    /// Bytes, if that is known.
    fn size_bytes(&self) -> Option<u64>;

    /// Whether [`Source::open`] would give the whole content (again).
    fn can_open(&self) -> bool {
        true
    }

    /// What to call it in errors.
    fn describe(&self) -> String;
}

/// Content in memory.
#[derive(Debug, Clone)]
pub struct BytesSource(pub Bytes);

#[async_trait::async_trait]
impl Source for BytesSource {
    async fn open(&self) -> io::Result<ContentStream> {
        Ok(stream::once(std::future::ready(Ok(self.0.clone()))).boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }

    fn describe(&self) -> String {
        "the content".to_owned()
    }
}

/// A file of this machine, as long as it was when the upload began.
#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
    size_bytes: u64,
}

impl FileSource {
    /// Looks how long the file is; refuses what is not a plain file.
    pub async fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let metadata = tokio::fs::metadata(&path).await?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file"));
        }
        Ok(Self { path, size_bytes: metadata.len() })
    }
}

#[async_trait::async_trait]
impl Source for FileSource {
    async fn open(&self) -> io::Result<ContentStream> {
        let file = tokio::fs::File::open(&self.path).await?;
        // One byte past the end shows whether the file has grown.
        Ok(read_in_pieces(file.take(self.size_bytes.saturating_add(1)), Some(self.size_bytes)))
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.size_bytes)
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// Content that exists only once, such as standard input. Another attempt is possible as long as none of it was taken.
pub(crate) struct OnceSource {
    shared: Arc<Once>,
    size_bytes: Option<u64>,
}

struct Once {
    content: Mutex<ContentStream>,
    taken: AtomicBool,
}

impl OnceSource {
    pub fn from_stream(content: ContentStream, size_bytes: Option<u64>) -> Self {
        let shared = Arc::new(Once { content: Mutex::new(content), taken: AtomicBool::new(false) });
        Self { shared, size_bytes }
    }

    pub fn from_reader(reader: impl AsyncRead + Send + 'static, size_bytes: Option<u64>) -> Self {
        Self::from_stream(read_in_pieces(reader, size_bytes), size_bytes)
    }
}

#[async_trait::async_trait]
impl Source for OnceSource {
    async fn open(&self) -> io::Result<ContentStream> {
        Ok(OnceReader(Arc::clone(&self.shared)).boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    fn can_open(&self) -> bool {
        !self.shared.taken.load(Ordering::Acquire)
    }

    fn describe(&self) -> String {
        "the content".to_owned()
    }
}

struct OnceReader(Arc<Once>);

impl Stream for OnceReader {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut content = self.0.content.lock().unwrap_or_else(PoisonError::into_inner);
        let next = content.poll_next_unpin(cx);
        if next.is_ready() {
            self.0.taken.store(true, Ordering::Release);
        }
        next
    }
}

impl fmt::Debug for OnceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceSource").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

/// After the first bytes of a piece, the rest of it is waited for so long: what a slow pipe gives is on its way soon.
const GATHERED_WITHIN: Duration = Duration::from_secs(1);

/// Reads pieces of the size that messages have; the buffer of a small content is no larger than the content.
fn read_in_pieces(reader: impl AsyncRead + Send + 'static, size_bytes: Option<u64>) -> ContentStream {
    let piece_bytes = size_bytes.map_or(MESSAGE_BYTES, |size| size.clamp(1, MESSAGE_BYTES as u64) as usize);
    let state = Some(Box::pin(reader));
    stream::unfold(state, move |reader| async move {
        let mut reader = reader?;
        let mut piece = BytesMut::with_capacity(piece_bytes);
        let mut until = None;
        while piece.len() < piece_bytes {
            let mut room = (&mut reader).take((piece_bytes - piece.len()) as u64);
            let read = room.read_buf(&mut piece);
            let count = match until {
                None => read.await,
                Some(until) => match timeout_at(until, read).await {
                    Ok(count) => count,
                    Err(_) => break,
                },
            };
            match count {
                Ok(0) => break,
                Ok(_) => until = until.or_else(|| Some(Instant::now() + GATHERED_WITHIN)),
                Err(error) => return Some((Err(error), None)),
            }
        }
        (!piece.is_empty()).then(|| (Ok(piece.freeze()), Some(reader)))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(source: &dyn Source) -> Vec<Bytes> {
        source.open().await.unwrap().map(|piece| piece.unwrap()).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_slow_pipe_gives_is_not_kept_back() {
        use tokio::io::AsyncWriteExt as _;
        let (mut pipe, end) = tokio::io::duplex(1 << 10);
        let source = OnceSource::from_reader(end, None);
        let mut content = source.open().await.unwrap();
        for _ in 0..3 {
            pipe.write_all(b"some").await.unwrap();
            let begun = Instant::now();
            assert_eq!(content.next().await.unwrap().unwrap(), "some");
            assert!(begun.elapsed() < 2 * GATHERED_WITHIN);
            tokio::time::sleep(10 * GATHERED_WITHIN).await;
        }
        drop(pipe);
        assert!(content.next().await.is_none());
    }

    #[tokio::test]
    async fn files_are_read_in_pieces_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 1, MESSAGE_BYTES - 1, MESSAGE_BYTES, MESSAGE_BYTES + 1, 3 * MESSAGE_BYTES + 7] {
            let path = folder.path().join("file");
            let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            std::fs::write(&path, &content).unwrap();
            let source = FileSource::new(&path).await.unwrap();
            assert_eq!(source.size_bytes(), Some(size as u64));
            for _ in 0..2 {
                let pieces = read(&source).await;
                assert!(pieces.iter().all(|piece| piece.len() <= MESSAGE_BYTES));
                assert_eq!(pieces.concat(), content, "{size}");
                assert!(source.can_open());
            }
        }
        assert!(FileSource::new(folder.path()).await.is_err(), "a folder is not a file");
    }

    #[tokio::test]
    async fn a_grown_file_is_one_byte_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, b"123").unwrap();
        let source = FileSource::new(&path).await.unwrap();
        std::fs::write(&path, b"123456").unwrap();
        assert_eq!(read(&source).await.concat(), b"1234");
    }

    #[tokio::test]
    async fn what_exists_once_can_be_opened_until_some_of_it_is_taken() {
        let source = OnceSource::from_reader(&b"abc"[..], None);
        drop(source.open().await.unwrap());
        assert!(source.can_open());
        assert_eq!(read(&source).await.concat(), b"abc");
        assert!(!source.can_open());
    }
}
