//! The store on a real disk.

use std::io;

use cairn_placement::{Generation, VolumeId};
use tempfile::TempDir;

use super::*;
use crate::{
    chunks::{VolumeKey, seal_chunk},
    env::{
        Listener, Network, Stream,
        real::{RealClock, RealDisk, RealRandom, RealThreads},
    },
};

/// Chunk stores talk to nobody.
struct NoNetwork;

#[async_trait::async_trait]
impl Network for NoNetwork {
    async fn listen(&self, _: &str, _: crate::env::Protocol) -> io::Result<Arc<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    async fn connect(&self, _: &str, _: &str) -> io::Result<Box<dyn Stream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn env() -> Env {
    Env {
        clock: Arc::new(RealClock::default()),
        random: Arc::new(RealRandom),
        disk: Arc::new(RealDisk),
        network: Arc::new(NoNetwork),
        threads: Arc::new(RealThreads),
    }
}

fn options(folder: &TempDir) -> StoreOptions {
    StoreOptions {
        segment_bytes: 1 << 20,
        ..StoreOptions::new(folder.path().join("data"), [1; 16], "node-0")
    }
}

async fn open(options: &StoreOptions) -> ChunkStore {
    ChunkStore::open(env(), options.clone()).await.unwrap().0
}

fn id(number: u32) -> ChunkId {
    ChunkId { generation: Generation::mint(1, [number as u8; 12]), index: number }
}

/// A chunk whose content follows from its number.
fn chunk(number: u32, length: usize) -> SealedChunk {
    let plain: Vec<u8> = (0..length).map(|n| (n as u32 * 7 + number) as u8).collect();
    let key = VolumeKey::from_bytes([5; 32]).derive(id(number).generation);
    seal_chunk(&key, VolumeId(1), 3, id(number), &[plain.into()]).unwrap()
}

fn tombstone(number: u32) -> Tombstone {
    Tombstone { id: id(number), volume: VolumeId(1), copies: 3 }
}

async fn read_all(store: &ChunkStore, number: u32) -> Result<SealedChunk, ReadError> {
    let (header, frames) = store.read(id(number), 0..u32::MAX).await?;
    Ok(SealedChunk { header, frames })
}

fn same(a: &SealedChunk, b: &SealedChunk) -> bool {
    a.header == b.header && a.frames == b.frames
}

#[tokio::test]
async fn chunks_survive_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = open(&options).await;
    assert_eq!(store.put(chunk(1, 200_000), Purpose::Write).await, Ok(PutOutcome::Stored));
    assert_eq!(store.put(chunk(1, 200_000), Purpose::Write).await, Ok(PutOutcome::Present));
    assert_eq!(store.put(chunk(1, 200_001), Purpose::Write).await, Err(PutError::Conflict));
    store.put(chunk(2, 1), Purpose::Write).await.unwrap();
    store.bury(vec![tombstone(2), tombstone(3)]).await.unwrap();
    store.close().await;
    assert_eq!(store.put(chunk(4, 1), Purpose::Write).await, Err(PutError::Closed));
    let store = open(&options).await;
    assert!(same(&read_all(&store, 1).await.unwrap(), &chunk(1, 200_000)));
    assert_eq!(read_all(&store, 2).await.unwrap_err(), ReadError::Buried);
    assert_eq!(store.put(chunk(3, 5), Purpose::Write).await, Err(PutError::Buried));
    assert_eq!(store.recovery().open_segments, 0);
    assert_eq!(read_all(&store, 4).await.unwrap_err(), ReadError::NotFound);
}
