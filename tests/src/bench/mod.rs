//! `make bench`: how fast a whole cluster is on this machine, beside how fast the machine itself is.
//!
//! One run measures, one after the other and with nothing else of ours running: the [`ceilings`] (a bare TLS stream
//! through the node's own network code, durable writes through its own disk code, sealing, etcd alone), then four
//! `cairn-node` processes in three zones on a three-member etcd, under [`load`]. [`usage`] reads what that cost from
//! `/proc`; [`report`] computes from it what held each case back. How to read the result: `docs/benchmarks.md`.

pub mod ceilings;
mod cluster;
pub mod load;
pub mod report;
pub mod usage;

use std::{str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use cairn_node::env::{Disk, real::RealDisk};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{etcd::disk_folder, tools::Tools};
use cluster::Bed;
use load::{Content, Direction, Load};
use report::{Case, Report};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
/// Copies of every chunk.
pub const COPIES: u64 = 3;
/// A chunk: what a node writes at once.
pub const CHUNK_BYTES: u64 = 4 * MIB;
/// Content of one upload case, at most: with three copies and preallocated segments the disk holds less than 6 GiB.
const MOST_BYTES: u64 = 5 * GIB / 4;
/// Files of one upload case, at most: their records have to go again, too.
const MOST_FILES: u64 = 20_000;
const FREE_BYTES_NEEDED: u64 = 8 * GIB;
/// The largest file that can be asked for: content is made in memory.
const LARGEST_FILE: u64 = 256 * MIB;
/// A ceiling is steady sooner than a cluster.
const CEILING_LIMIT: Duration = Duration::from_secs(3);

/// Bytes of a file, written as `10MiB` or `4KiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = match &text[digits..] {
            "" | "B" => 1,
            "KiB" => KIB,
            "MiB" => MIB,
            _ => return Err(format!("{text:?} is no size: write 10MiB, 4KiB or a number of bytes")),
        };
        let number: u64 = text[..digits].parse().map_err(|_| format!("{text:?} has no number"))?;
        match number.checked_mul(unit) {
            Some(bytes) if (1..=LARGEST_FILE).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is not between 1 byte and {} MiB", LARGEST_FILE / MIB)),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes % MIB == 0 => write!(f, "{} MiB", bytes / MIB),
            bytes if bytes % KIB == 0 => write!(f, "{} KiB", bytes / KIB),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Seconds of each case.
    pub seconds: u64,
    pub files: Vec<Size>,
    /// Files under way at a time, one case for each.
    pub streams: Vec<usize>,
}

/// Measures everything. `say` hears of each step.
pub async fn run(
    options: Options,
    tools: Tools,
    stop: CancellationToken,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Report> {
    let folder = disk_folder()?;
    let free = RealDisk.space(&folder)?.available_bytes;
    say(&format!(
        "{} has {} MiB free; at most 6 GiB of that are used at a time",
        folder.display(),
        free / MIB
    ));
    ensure!(
        free >= FREE_BYTES_NEEDED,
        "{} has {} MiB free, and {} MiB are needed: make room",
        folder.display(),
        free / MIB,
        FREE_BYTES_NEEDED / MIB
    );
    let machine = usage::machine(&folder);
    let limit = CEILING_LIMIT.min(Duration::from_secs(options.seconds));
    let alone = ceilings::Plan { limit, stop: stop.clone() };
    say("ceilings: TLS stream, durable writes, sealing");
    let mut ceilings = blocking(move || alone.measure()).await?;
    say("ceilings: etcd of three members, alone");
    let etcd = cluster::start_etcd(tools).await?;
    ceilings.etcd = ceilings::etcd(&etcd, &options.streams, limit).await?;
    say("start four nodes in three zones");
    let mut bed = Bed::start(etcd, &folder).await?;
    let mut cases = Vec::new();
    for (number, size) in options.files.iter().enumerate() {
        if number > 0 {
            say("start the nodes anew: what they kept of the other files' memory is not to count");
            bed.restart_nodes(&folder).await?;
        }
        measure_size(&options, *size, &bed, &mut cases, say).await?;
    }
    Ok(Report::new(options, machine, ceilings, cases))
}

/// Uploads with each number of streams, then downloads of what the last of them has left.
async fn measure_size(
    options: &Options,
    size: Size,
    bed: &Bed,
    cases: &mut Vec<Case>,
    say: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    let content = Arc::new(Content::new(size.0));
    let load = |volume: &str, streams: usize, direction: Direction| Load {
        client: bed.client(streams),
        volume: volume.to_owned(),
        content: content.clone(),
        streams,
        direction,
        limit: Duration::from_secs(options.seconds),
    };
    let mut kept = None;
    for streams in &options.streams {
        if let Some((volume, _)) = kept.take() {
            bed.remove_volume(volume).await?;
        }
        let volume = format!("s{}-{streams}", size.0);
        bed.create_volume(&volume).await?;
        say(&format!("upload {size} files, {streams} at a time"));
        let most_files = (MOST_BYTES / size.0).clamp(1, MOST_FILES);
        let case = measure(bed, load(&volume, *streams, Direction::Upload { most_files }), size).await?;
        say(&format!("  {:.1} MiB/s, {:.0} files/s", case.mib_per_s, case.files_per_s));
        kept = Some((volume, case.files));
        cases.push(case);
    }
    let Some((volume, files)) = kept else { bail!("no number of streams is given") };
    // Copies that are still on their way would be paid for by the downloads.
    bed.wait_settled().await?;
    for streams in &options.streams {
        say(&format!("download {size} files, {streams} at a time"));
        let case = measure(bed, load(&volume, *streams, Direction::Download { files }), size).await?;
        say(&format!("  {:.1} MiB/s, {:.0} files/s", case.mib_per_s, case.files_per_s));
        cases.push(case);
    }
    bed.remove_volume(volume).await
}

async fn measure(bed: &Bed, load: Load, size: Size) -> Result<Case> {
    load.warm_up().await?;
    let meter = &bed.meter;
    meter.reset_peaks();
    let before = meter.read()?;
    let measured = load.run().await;
    let usage = meter.read()?.since(&before);
    let peak = meter.largest_node_peak();
    let what = format!("{} of {size} files, {} at a time", load.direction.word(), load.streams);
    ensure!(measured.files > 0, "{what}: none came through: {}", measured.first_error.unwrap_or_default());
    let files = measured.files + load::WARM_UP_FILES;
    let mut case = Case::new(size, load.direction, load.streams, measured, usage, peak);
    if let Direction::Upload { .. } = load.direction {
        case.copies = Some(bed.copies(files, size.0).await?);
    }
    Ok(case)
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a measuring thread failed")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in
            [("10MiB", 10 * MIB, "10 MiB"), ("4KiB", 4096, "4 KiB"), ("1500", 1500, "1500 B")]
        {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
        for bad in ["", "0", "MiB", "10MB", "1GiB", "-4KiB", "99999999999999999999", "257MiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
