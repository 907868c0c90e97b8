//! A chunk store on a simulated disk, and chunks whose content follows from their number.

use std::{path::PathBuf, sync::LazyLock};

use cairn_node::chunks::{
    ChunkStore, Identity, OpenError, ReadError, SealedChunk, StoreOptions, Tombstone, VolumeKey, seal_chunk,
};
use cairn_placement::{ChunkId, Generation, VolumeId};

use super::{
    disk::SimDisk,
    env::{SimTime, env},
};

/// For how long a deletion is remembered.
pub const TOMBSTONE_TICKS: u32 = 10;

/// Numbers below this are kept ready.
pub const IDS: u32 = 48;

/// The id with this number.
pub fn id(number: u32) -> ChunkId {
    ChunkId { generation: Generation::mint(1, [number as u8; 12]), index: number }
}

/// Its deletion, as of the first minute.
pub fn tombstone(number: u32) -> Tombstone {
    Tombstone { id: id(number), volume: VolumeId(1), copies: 3, tick: 1 }
}

/// The one content of an id. Sizes around sectors, pages and frames.
pub fn chunk(number: u32) -> SealedChunk {
    static CHUNKS: LazyLock<Vec<SealedChunk>> = LazyLock::new(|| (0..IDS).map(sealed).collect());
    CHUNKS.get(number as usize).cloned().unwrap_or_else(|| sealed(number))
}

fn sealed(number: u32) -> SealedChunk {
    let sizes = [1, 100, 400, 512, 3000, 4096, 5000, 20_000, 65_536, 65_537, 140_000];
    let size = sizes[number as usize % sizes.len()];
    let plain: Vec<u8> = (0..size).map(|n| (n as u32 * 13 + number) as u8).collect();
    let key = VolumeKey::from_bytes([5; 32]).derive(id(number).generation);
    seal_chunk(&key, VolumeId(1), 3, id(number), &[plain.into()]).expect("a sound chunk")
}

/// Small segments and groups.
pub fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: 300_000,
        group_bytes: 100_000,
        queue_bytes: 400_000,
        tombstone_ticks: TOMBSTONE_TICKS,
        ..StoreOptions::new("/disk/data", [1; 16], "node-0")
    }
}

/// Opens the store in time of its own.
pub async fn open_store(seed: u64, disk: &SimDisk) -> Result<(ChunkStore, Identity), OpenError> {
    open_store_with(seed, disk, options()).await
}

pub async fn open_store_with(
    seed: u64,
    disk: &SimDisk,
    options: StoreOptions,
) -> Result<(ChunkStore, Identity), OpenError> {
    ChunkStore::open(env(seed, disk.clone(), &SimTime::default()), options).await
}

/// Reads a chunk and compares it with what it must be.
pub async fn is_whole(store: &ChunkStore, number: u32) -> Result<bool, ReadError> {
    let (header, frames) = store.read(id(number), 0..u32::MAX).await?;
    let expected = chunk(number);
    Ok(header == expected.header && frames == expected.frames)
}

/// Segment files, with their sizes.
pub fn segments(disk: &SimDisk) -> Vec<(PathBuf, u64)> {
    disk.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|name| name == "seg")).collect()
}

/// Opens the store in a world of its own, works with it, and drops both without a word.
///
/// # Panics
/// If it does not open.
pub fn in_store(disk: &SimDisk, work: impl AsyncFnOnce(ChunkStore)) {
    SimTime::default().runtime().block_on(async {
        let store = open_store(disk.counts().syncs, disk).await.expect("the store opens").0;
        work(store).await;
    });
}
