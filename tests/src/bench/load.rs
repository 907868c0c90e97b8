//! Load: so many streams, each one file after the other until the time is over, every answer timed and every digest
//! checked.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use cairn_client::{Client, ContentStream, DownloadOptions, Source, UploadOptions};
use futures::{StreamExt, stream};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::task::JoinSet;

/// Content is handed to the client in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
/// Where files begin in the common bytes; each file also has its number in front.
const SHIFT: u64 = 4_099;
const SHIFT_BYTES: usize = 64 << 10;
/// One download in so many is compared with what was uploaded; the digest is checked for all.
const COMPARED: u64 = 16;
/// Before a case: opens the connection to each node, and fills caches of volumes and keys.
pub const WARM_UP_FILES: u64 = 8;
/// Numbers of the files that warm up, far from the others.
const WARM_UP_NUMBERS: u64 = 1 << 40;

/// What the files of one size hold: bytes that do not compress, other ones in each file.
pub struct Content {
    base: Bytes,
    size: u64,
}

/// Larger files hold the same bytes again and again: content is kept in memory.
const MOST_OF_A_FILE: u64 = 64 << 20;

impl Content {
    pub fn new(size: u64) -> Self {
        let mut base = vec![0; size.min(MOST_OF_A_FILE) as usize + SHIFT_BYTES];
        StdRng::seed_from_u64(size).fill_bytes(&mut base);
        Self { base: base.into(), size }
    }

    /// The content of file `number`. Only its first piece is copied.
    fn file(&self, number: u64) -> FileContent {
        let start = (number.wrapping_mul(SHIFT) % SHIFT_BYTES as u64) as usize;
        let once = self.base.slice(start..start + self.size.min(MOST_OF_A_FILE) as usize);
        let piece = |at: u64| {
            let from = (at % MOST_OF_A_FILE) as usize;
            let length = PIECE_BYTES.min((self.size - at) as usize);
            once.slice(from..from + length)
        };
        let mut pieces: Vec<Bytes> = (0..self.size).step_by(PIECE_BYTES).map(piece).collect();
        let mut first = BytesMut::from(&pieces[0][..]);
        let mark = blake3::hash(&number.to_le_bytes());
        let length = first.len().min(mark.as_bytes().len());
        first[..length].copy_from_slice(&mark.as_bytes()[..length]);
        pieces[0] = first.freeze();
        FileContent { pieces, size: self.size }
    }
}

struct FileContent {
    pieces: Vec<Bytes>,
    size: u64,
}

impl FileContent {
    fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for piece in &self.pieces {
            hasher.update(piece);
        }
        hasher.finalize()
    }
}

#[async_trait::async_trait]
impl Source for FileContent {
    async fn open(&self) -> io::Result<ContentStream> {
        Ok(stream::iter(self.pieces.clone().into_iter().map(Ok)).boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.size)
    }

    fn describe(&self) -> String {
        "made-up content".to_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Upload {
        most_files: u64,
    },
    /// Of so many files that are there, in turn.
    Download {
        files: u64,
    },
}

impl Direction {
    pub fn word(self) -> &'static str {
        match self {
            Self::Upload { .. } => "upload",
            Self::Download { .. } => "download",
        }
    }
}

/// One case.
#[derive(Clone)]
pub struct Load {
    pub client: Client,
    pub volume: String,
    pub content: Arc<Content>,
    pub streams: usize,
    pub direction: Direction,
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    /// Acknowledged, or downloaded whole.
    pub files: u64,
    pub failed: u64,
    pub first_error: Option<String>,
    /// From the first request to the last answer.
    pub seconds: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

#[derive(Default)]
struct Answers {
    times: Vec<Duration>,
    failed: u64,
    first_error: Option<String>,
}

impl Load {
    /// A few files, not counted.
    pub async fn warm_up(&self) -> Result<()> {
        for step in 0..WARM_UP_FILES {
            match self.direction {
                Direction::Upload { .. } => self.upload(WARM_UP_NUMBERS + step).await,
                Direction::Download { files } => self.download(step % files).await,
            }
            .with_context(|| format!("the first {}", self.direction.word()))?;
        }
        Ok(())
    }

    pub async fn run(&self) -> Measured {
        let next = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        let mut streams = JoinSet::new();
        for _ in 0..self.streams {
            streams.spawn(self.clone().stream(next.clone(), begun));
        }
        let mut all = Answers::default();
        while let Some(ended) = streams.join_next().await {
            match ended {
                Ok(answers) => {
                    all.times.extend(answers.times);
                    all.failed += answers.failed;
                    all.first_error = all.first_error.or(answers.first_error);
                }
                Err(error) => all.first_error = all.first_error.or(Some(error.to_string())),
            }
        }
        all.times.sort_unstable();
        Measured {
            files: all.times.len() as u64,
            failed: all.failed,
            first_error: all.first_error,
            seconds: begun.elapsed().as_secs_f64(),
            p50_ms: percentile_ms(&all.times, 50),
            p99_ms: percentile_ms(&all.times, 99),
        }
    }

    async fn stream(self, next: Arc<AtomicU64>, begun: Instant) -> Answers {
        let mut answers = Answers::default();
        while begun.elapsed() < self.limit {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let started = Instant::now();
            let outcome = match self.direction {
                Direction::Upload { most_files } if number >= most_files => break,
                Direction::Upload { .. } => self.upload(number).await,
                Direction::Download { files } => self.download(number % files).await,
            };
            match outcome {
                Ok(()) => answers.times.push(started.elapsed()),
                Err(error) => {
                    answers.failed += 1;
                    answers.first_error.get_or_insert(format!("{error:#}"));
                }
            }
        }
        answers
    }

    async fn upload(&self, number: u64) -> Result<()> {
        let content = self.content.file(number);
        let stored =
            self.client.upload(&self.volume, &path(number), UploadOptions::default(), &content).await?;
        anyhow::ensure!(stored.size_bytes == content.size, "{} bytes were stored", stored.size_bytes);
        Ok(())
    }

    async fn download(&self, number: u64) -> Result<()> {
        let mut download =
            self.client.download(&self.volume, &path(number), DownloadOptions::default()).await?;
        anyhow::ensure!(download.length() == self.content.size, "{} bytes come back", download.length());
        // Ends well only if the digest is the one that was stored.
        while download.next_piece().await?.is_some() {}
        if number.is_multiple_of(COMPARED) {
            let expected = self.content.file(number).digest();
            anyhow::ensure!(download.file().blake3[..] == expected.as_bytes()[..], "other content came back");
        }
        Ok(())
    }
}

fn path(number: u64) -> String {
    format!("{:02x}/{number}", number % 256)
}

/// The value that `percent` of the sorted times do not exceed.
pub fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!([percentile_ms(&times, 50), percentile_ms(&times, 99)], [100.0, 198.0]);
        assert_eq!(percentile_ms(&times[..1], 99), 1.0);
        assert_eq!(percentile_ms(&[], 50), 0.0);
    }

    #[test]
    fn files_differ_and_have_their_size() {
        for size in [1, 4096, PIECE_BYTES as u64 + 5] {
            let content = Content::new(size);
            let file = content.file(7);
            assert_eq!(file.pieces.iter().map(Bytes::len).sum::<usize>() as u64, size);
            assert_eq!(file.digest(), content.file(7).digest());
            assert!(size == 1 || file.digest() != content.file(8).digest());
        }
    }
}
