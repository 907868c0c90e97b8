//! Reading every chunk of a stopped node's disk: `cairn-node verify`.
//!
//! The folder is opened like at a start (locked, its segments read through), but for its boot counter, then every frame of every
//! chunk is read and held against its checksum. No key is needed, and nothing is mended: a node that finds damage while it
//! runs fetches the chunk from another one.

use std::{io, path::Path};

use cairn_placement::{ChunkId, PgId, VolumeId};

use super::{
    ChunkStore, CorruptRange, OpenError, Opening, ReadError, Scope, StoreOptions, hint,
    identity::{SEGMENTS_FOLDER, fault_of_one, read_identity},
};
use crate::env::Env;

/// Lines of the inventory taken at a time.
const PAGE: usize = 4_096;

/// What a disk holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    pub node: String,
    pub segments: u64,
    pub chunks: u64,
    pub tombstones: u64,
    /// Content before sealing, of chunks that are whole.
    pub plain_bytes: u64,
    /// Chunks that cannot be read whole.
    pub damaged: u64,
    /// Chunks of the last groups before crashes that are not whole: never acknowledged, or damaged since.
    pub torn: u64,
    /// Ranges among the records that are none: of what was there, perhaps only these lines tell.
    pub corrupt: Vec<CorruptRange>,
    /// What is wrong with one of the two files that say whose disk it is; the next start mends it.
    pub identity: Option<String>,
    /// What says which segments compaction has given back cannot be read: these may be called missing.
    pub removed_unreadable: bool,
    /// Hints that are damaged: their segments are read through at the next start, which makes them anew.
    pub hints: Vec<String>,
}

impl Verified {
    pub fn is_sound(&self) -> bool {
        self.damaged == 0 && self.corrupt.is_empty() && self.identity.is_none() && !self.removed_unreadable
    }
}

impl ChunkStore {
    /// Hints that are none.
    async fn damaged_hints(&self) -> Vec<String> {
        let inner = self.inner.clone();
        self.inner.env.blocking(move || hint::damaged(&*inner.env.disk, &inner.table)).await
    }
}

/// Reads all of a disk; `tell` hears of each damaged chunk and why.
pub async fn verify(
    env: &Env,
    folder: &Path,
    mut tell: impl FnMut(ChunkId, VolumeId, &str),
) -> Result<Verified, OpenError> {
    let (disk, owned) = (env.disk.clone(), folder.to_owned());
    let read = move || Ok::<_, OpenError>((read_identity(&*disk, &owned)?, fault_of_one(&*disk, &owned)?));
    let (identity, fault) = env.blocking(read).await?;
    // Opened, the folder would have one.
    let (disk, segments) = (env.disk.clone(), folder.join(SEGMENTS_FOLDER));
    if let Err(error) = env.blocking(move || disk.list(&segments)).await
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(OpenError::SegmentsMissing { folder: folder.to_owned() });
    }
    let options = StoreOptions {
        opening: Opening::Inspect,
        ..StoreOptions::new(folder, identity.cluster_id, identity.node.clone())
    };
    let (store, _) = ChunkStore::open(env.clone(), options).await?;
    let mut verified = Verified {
        node: identity.node,
        segments: store.recovery().segments,
        corrupt: store.recovery().corrupt.clone(),
        removed_unreadable: store.recovery().removed_unreadable,
        identity: fault,
        hints: store.damaged_hints().await,
        ..Verified::default()
    };
    // Those that an earlier start knew of are not in the inventory.
    for chunk in store.damaged(None, usize::MAX) {
        if chunk.torn {
            verified.torn += 1;
        } else {
            (verified.chunks, verified.damaged) = (verified.chunks + 1, verified.damaged + 1);
            tell(chunk.id, chunk.volume, "found damaged before, and not mended");
        }
    }
    let mut after = None;
    loop {
        let page = store.inventory(0, PgId(0), Scope::ALL, after, PAGE);
        let Some(last) = page.last() else { break };
        after = Some((last.id.hash(), last.id));
        for line in &page {
            if line.buried.is_some() {
                verified.tombstones += 1;
                continue;
            }
            verified.chunks += 1;
            match store.read(line.id, 0..u32::MAX).await {
                Ok(_) => verified.plain_bytes += u64::from(line.plain_length),
                Err(error) => {
                    verified.damaged += 1;
                    match error {
                        ReadError::Corrupt(reason) => tell(line.id, line.volume, &reason),
                        error => tell(line.id, line.volume, &error.to_string()),
                    }
                }
            }
        }
    }
    store.close().await;
    Ok(verified)
}
