//! `make bench`: how fast a whole cluster is on this machine, beside how fast the machine itself is.
//!
//! One run measures, one after the other and with nothing else of ours running: the [`ceilings`] (a bare TLS stream
//! through the node's own network code, durable writes through its own disk code, sealing, etcd alone), a store with
//! a million chunks that is opened again ([`restart`]), then four `cairn-node` processes in three zones on a three-member
//! etcd, and one alone, under [`load`]. [`usage`] reads what that cost from
//! `/proc`; [`report`] computes from it what held each case back. How to read the result: `docs/benchmarks.md`.

pub mod ceilings;
mod cluster;
pub mod load;
pub mod report;
mod restart;
pub mod usage;

use std::{str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use cairn_node::env::{Disk, real::RealDisk};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{etcd::disk_folder, tools::Tools};
use cluster::Bed;
use load::{Content, Direction, Load};
use report::{Case, Listing, Report};
use restart::Restart;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
/// A chunk: what a node writes at once.
pub const CHUNK_BYTES: u64 = 4 * MIB;
/// Content of one upload case, at most, but for the largest files: with three copies and preallocated segments the disk
/// holds less than 8 GiB.
const MOST_BYTES: u64 = 5 * GIB / 4;
/// Files of one upload case, at most: their records have to go again, too.
const MOST_FILES: u64 = 20_000;
const FREE_BYTES_NEEDED: u64 = 12 * GIB;
/// The largest file that can be asked for.
const LARGEST_FILE: u64 = 2 * GIB;
/// Larger files are measured one at a time.
const MOST_AT_ONCE: u64 = 256 * MIB;
/// Volumes with fewer names are not listed.
const FEWEST_LISTED: u64 = 1_000;
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
            "GiB" => GIB,
            _ => return Err(format!("{text:?} is no size: write 2GiB, 10MiB, 4KiB or a number of bytes")),
        };
        let number: u64 = text[..digits].parse().map_err(|_| format!("{text:?} has no number"))?;
        match number.checked_mul(unit) {
            Some(bytes) if (1..=LARGEST_FILE).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is not between 1 byte and {} GiB", LARGEST_FILE / GIB)),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes % GIB == 0 => write!(f, "{} GiB", bytes / GIB),
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
    pub setups: Vec<Setup>,
    /// Chunks of the store that is opened again and again; 0: none is.
    pub chunks: u64,
}

impl Options {
    fn streams_of(&self, size: Size) -> Vec<usize> {
        if size.0 > MOST_AT_ONCE { vec![1] } else { self.streams.clone() }
    }

    /// That some case has.
    fn all_streams(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.files.iter().flat_map(|size| self.streams_of(*size)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Setup {
    /// Four nodes in three zones, etcd of three members, three copies
    Cluster,
    /// One node with the embedded metadata store, one copy
    Alone,
}

impl Setup {
    /// Of every chunk.
    pub fn copies(self) -> u64 {
        match self {
            Self::Cluster => 3,
            Self::Alone => 1,
        }
    }

    pub fn zones(self) -> &'static [&'static str] {
        match self {
            Self::Cluster => &["a", "a", "b", "c"],
            Self::Alone => &["a"],
        }
    }

    pub fn nodes(self) -> u64 {
        self.zones().len() as u64
    }

    pub fn describe(self) -> &'static str {
        match self {
            Self::Cluster => "four nodes in three zones, etcd of three members, three copies",
            Self::Alone => "one node, embedded metadata store, one copy",
        }
    }
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
        "{} has {} MiB free; at most 8 GiB of that are used at a time",
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
    let mut measured = Measurements::default();
    if options.chunks > 0 {
        say(&format!("a store with {} chunks, opened again", options.chunks));
        measured.restart = Some(restart::measure(options.chunks, &stop).await?);
    }
    for setup in &options.setups {
        let mut etcd = None;
        if *setup == Setup::Cluster {
            say("ceilings: etcd of three members, alone");
            let cluster = cluster::start_etcd(tools.clone()).await?;
            ceilings.etcd = ceilings::etcd(&cluster, &options.all_streams(), limit).await?;
            etcd = Some(cluster);
        }
        say(&format!("start {}", setup.describe()));
        let mut bed = Bed::start(*setup, etcd, &folder).await?;
        for (number, size) in options.files.iter().enumerate() {
            if number > 0 {
                say("start the nodes anew: what they kept of the other files' memory is not to count");
                bed.restart_nodes(&folder).await?;
            }
            measure_size(&options, *size, &bed, &mut measured, say).await?;
        }
    }
    Ok(Report::new(options, machine, ceilings, measured))
}

/// What one run measured, but for the ceilings.
#[derive(Default)]
pub struct Measurements {
    pub cases: Vec<Case>,
    pub listings: Vec<Listing>,
    pub restart: Option<Restart>,
}

/// Uploads with each number of streams, then downloads of what the last of them has left, then a listing of it.
async fn measure_size(
    options: &Options,
    size: Size,
    bed: &Bed,
    measured: &mut Measurements,
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
    let all_streams = options.streams_of(size);
    let mut kept = None;
    for streams in &all_streams {
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
        measured.cases.push(case);
    }
    let Some((volume, files)) = kept else { bail!("no number of streams is given") };
    // Copies that are still on their way would be paid for by the downloads.
    bed.wait_settled().await?;
    for streams in &all_streams {
        say(&format!("download {size} files, {streams} at a time"));
        let case = measure(bed, load(&volume, *streams, Direction::Download { files }), size).await?;
        say(&format!("  {:.1} MiB/s, {:.0} files/s", case.mib_per_s, case.files_per_s));
        measured.cases.push(case);
    }
    if files >= FEWEST_LISTED {
        say(&format!("list {files} names"));
        measured.listings.push(bed.list(&volume).await?);
    }
    bed.remove_volume(volume).await
}

async fn measure(bed: &Bed, load: Load, size: Size) -> Result<Case> {
    if size.0 <= MOST_AT_ONCE {
        load.warm_up().await?;
    }
    let meter = &bed.meter;
    meter.reset_peaks();
    let before = meter.read()?;
    let measured = load.run().await;
    let usage = meter.read()?.since(&before);
    let peak = meter.largest_node_peak();
    let what = format!("{} of {size} files, {} at a time", load.direction.word(), load.streams);
    ensure!(measured.files > 0, "{what}: none came through: {}", measured.first_error.unwrap_or_default());
    let files = measured.files + if size.0 <= MOST_AT_ONCE { load::WARM_UP_FILES } else { 0 };
    let mut case = Case::new(bed.setup, size, load.direction, load.streams, measured, usage, peak);
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
        for (text, bytes, shown) in [
            ("2GiB", 2 * GIB, "2 GiB"),
            ("10MiB", 10 * MIB, "10 MiB"),
            ("4KiB", 4096, "4 KiB"),
            ("1500", 1500, "1500 B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
        for bad in ["", "0", "MiB", "10MB", "3GiB", "-4KiB", "99999999999999999999", "2049MiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
