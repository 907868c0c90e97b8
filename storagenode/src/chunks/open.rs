//! Taking up a data folder: its lock, its identity, its segments, what is known of its damage.

use std::{io, sync::Arc};

use super::{
    OpenError, Opening, StoreOptions, damage, disk_error,
    identity::{HINTS_FOLDER, SEGMENTS_FOLDER, lock_folder, open_identity},
    recover::{Recovered, recover},
    segment::SegmentTable,
    space::Space,
};
use crate::env::{DiskFile, Env, sync_with_parents};

/// A folder taken up, and its lock.
pub struct Opened {
    pub lock: Arc<dyn DiskFile>,
    pub table: SegmentTable,
    pub recovered: Recovered,
    pub space: Arc<Space>,
}

pub fn check(options: &StoreOptions) -> Result<(), OpenError> {
    let refuse = |text: &str| Err(OpenError::Options(text.into()));
    if options.node.is_empty() || options.node.len() > 253 {
        return refuse("the node's name must have 1 to 253 bytes");
    }
    if options.reserve_percent > 50 {
        return refuse("more than half of the disk as reserve: give 8 percent");
    }
    if options.segment_bytes > 16 << 30 {
        return refuse("segments above 16 GiB: give 256 MiB");
    }
    if options.group_bytes > 1 << 30 || options.group_records == 0 {
        return refuse("a group has at most 1 GiB and at least one record");
    }
    Ok(())
}

/// Locks the folder, checks whose it is, raises its boot counter, and reads what is in it. Blocks.
pub fn open_blocking(env: &Env, options: &StoreOptions) -> Result<Opened, OpenError> {
    let disk = &*env.disk;
    let folder = &options.folder;
    let lock = lock_folder(disk, folder)?;
    let owner = (options.cluster_id, options.node.as_str());
    let identity = open_identity(disk, &*env.random, folder, owner, options.opening)?;
    let segments = folder.join(SEGMENTS_FOLDER);
    let missing = disk.list(&segments).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if missing && identity.boot > 2 {
        tracing::error!(folder = %segments.display(), "missing, although this disk has been in use: what was stored in it is gone");
    }
    disk.create_folder(&segments).map_err(disk_error("make the folder", &segments))?;
    let hints = folder.join(HINTS_FOLDER);
    // Without them, starts take longer.
    if let Err(error) = disk.create_folder(&hints) {
        tracing::warn!(folder = %hints.display(), %error, "hints cannot be kept: starts read every segment through; remove what is in the way");
    }
    sync_with_parents(disk, &segments).map_err(disk_error("sync the folder", &segments))?;
    let table = SegmentTable::new(env.disk.clone(), folder, identity);
    let mut recovered = recover(disk, &table, options.opening != Opening::Inspect)?;
    let damaged = damage::recall(disk, folder, &table, &mut recovered.index)?;
    if damaged > 0 {
        tracing::warn!(chunks = damaged, "damaged before this start, and not mended yet");
    }
    let size = disk.space(folder).map_err(disk_error("get the size of", folder))?;
    let (limit, reserve) = (options.capacity_bytes, options.reserve_percent);
    let space = Space::new(limit, reserve, env.clock.clone(), size, recovered.used_bytes);
    Ok(Opened { lock, table, recovered, space })
}
