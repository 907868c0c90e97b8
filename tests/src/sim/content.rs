//! Files in the volume of a simulated cluster, for tests of what becomes of them.

use std::time::Duration;

use cairn_node::files::VolumeName;

use super::{cluster::SimCluster, disk::SimDisk, store::segments};

pub const CHUNK_BYTES: usize = 64 << 10;

pub fn volume() -> VolumeName {
    VolumeName::parse("files").expect("a name")
}

/// So many chunks, each another one.
pub fn content(chunks: usize) -> Vec<u8> {
    (0..chunks * CHUNK_BYTES).map(|n| (n / CHUNK_BYTES + n % 251) as u8).collect()
}

/// Makes the volume as soon as there is a map.
pub async fn make_volume(cluster: &SimCluster, copies: u8) {
    let files = cluster.files(0).expect("the first node runs");
    while files.create_volume(&volume(), copies, CHUNK_BYTES as u32).await.is_err() {
        cluster.clock.sleep(Duration::from_millis(200)).await;
    }
}

/// Changes a bit in every frame of the first so many chunks of each segment, whatever lies before them.
pub fn rot_frames(disk: &SimDisk, chunks: usize) {
    for (segment, _) in segments(disk) {
        let in_frames = (1..2 * chunks as u64).map(|half| half * (CHUNK_BYTES / 2) as u64 + 777);
        in_frames.for_each(|offset| disk.rot(&segment, offset, 1));
    }
}
