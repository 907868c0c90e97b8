//! How much memory a store with many chunks takes, and how long it takes to open it again.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cairn_node::{
    chunks::{ChunkStore, Purpose, SealedChunk, StoreOptions, VolumeKey, seal_chunk},
    env::real::without_network,
};
use cairn_placement::{ChunkId, Generation, VolumeId};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::MIB;
use crate::scratch::Scratch;

/// Content of each chunk: that of a small file.
const CHUNK_BYTES: usize = 2_048;
/// Chunks under way at a time.
const AT_ONCE: usize = 2_048;
const OPENED: usize = 3;

/// A store with many chunks, as a node has it.
#[derive(Debug, Clone, Serialize)]
pub struct Restart {
    pub chunks: u64,
    pub chunk_bytes: u64,
    /// Sealed and durable, from one process.
    pub stored_per_s: f64,
    pub index_bytes_per_chunk: f64,
    /// Best of a few, from the page cache.
    pub open_s: f64,
    /// The same without hints: every segment is read through.
    pub open_without_hints_s: f64,
    pub segments: u64,
    /// Segments that were not read through.
    pub hints: u64,
}

pub async fn measure(chunks: u64, stop: &CancellationToken) -> Result<Restart> {
    let folder = Scratch::new("bench-restart")?;
    let data = folder.path().join("data");
    let (store, _) = open(&data).await?;
    let begun = Instant::now();
    let key = VolumeKey::from_bytes([42; 32]);
    let content = Bytes::from(vec![7; CHUNK_BYTES]);
    let put = |number: u64| {
        let (store, key, content) = (&store, &key, content.clone());
        async move {
            ensure!(!stop.is_cancelled(), "interrupted");
            store.put(sealed(key, number, content)?, Purpose::Repair).await?;
            Ok(())
        }
    };
    stream::iter(0..chunks).map(put).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let stored_per_s = chunks as f64 / begun.elapsed().as_secs_f64();
    let usage = store.usage();
    ensure!(usage.chunks == chunks, "{} of {chunks} chunks are there", usage.chunks);
    store.close().await;
    drop(store);

    // The first one makes the hint of the segment that was written last.
    let mut opened = Opened { took: Duration::MAX, segments: 0, hints: 0 };
    for _ in 0..OPENED {
        ensure!(!stop.is_cancelled(), "interrupted");
        opened = reopen(&data, chunks).await?.better_of(opened);
    }
    let hints = data.join("hints");
    std::fs::remove_dir_all(&hints).with_context(|| hints.display().to_string())?;
    let without = reopen(&data, chunks).await?;
    ensure!(without.hints == 0, "{} segments were not read through", without.hints);
    Ok(Restart {
        chunks,
        chunk_bytes: CHUNK_BYTES as u64,
        stored_per_s,
        index_bytes_per_chunk: usage.index_bytes as f64 / chunks as f64,
        open_s: opened.took.as_secs_f64(),
        open_without_hints_s: without.took.as_secs_f64(),
        segments: opened.segments,
        hints: opened.hints,
    })
}

struct Opened {
    took: Duration,
    segments: u64,
    hints: u64,
}

impl Opened {
    fn better_of(self, other: Self) -> Self {
        if self.took < other.took { self } else { other }
    }
}

async fn open(data: &Path) -> Result<(ChunkStore, Duration)> {
    let options = StoreOptions { queue_bytes: 32 * MIB, ..StoreOptions::new(data, [1; 16], "bench") };
    let begun = Instant::now();
    let (store, _) = ChunkStore::open(without_network(), options).await?;
    Ok((store, begun.elapsed()))
}

async fn reopen(data: &Path, chunks: u64) -> Result<Opened> {
    let (store, took) = open(data).await?;
    let found = store.usage().chunks;
    ensure!(found == chunks, "{found} of {chunks} chunks are there after a restart");
    let recovery = store.recovery();
    let opened = Opened { took, segments: recovery.segments, hints: recovery.hints };
    store.close().await;
    Ok(opened)
}

fn sealed(key: &VolumeKey, number: u64, content: Bytes) -> Result<SealedChunk> {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    let id = ChunkId { generation: Generation::mint(1, bytes), index: 0 };
    Ok(seal_chunk(&key.derive(id.generation), VolumeId(1), 1, id, &[content])?)
}
