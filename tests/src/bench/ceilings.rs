//! What the machine can do without Cairn, through the same code: TLS with a node's network, durable writes with a
//! node's disk, sealing with a node's keys; and what etcd can do alone.

use std::{
    io::IoSlice,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use cairn_node::{
    chunks::{VolumeKey, seal_chunk},
    env::{
        Disk, Network, OpenMode, Protocol, Random, Stream,
        real::{RealClock, RealDisk, RealRandom},
    },
    secrets,
    tls::{TlsFiles, TlsNetwork, TlsOptions},
};
use cairn_placement::{ChunkId, Generation, VolumeId};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{CHUNK_BYTES, MIB, load::percentile_ms, usage::cores};
use crate::{etcd::EtcdCluster, scratch::Scratch};

const TLS_WRITE_BYTES: usize = 1 << 20;
const ROUND_TRIPS: usize = 500;
const ROUND_TRIP_BYTES: usize = 64;
/// A segment file of a node.
const SEGMENT_BYTES: u64 = 256 << 20;
/// Chunks in a large group.
const GROUP_CHUNKS: usize = 8;
const SMALL_BYTES: usize = 4096;
/// About what a file's record and key have.
const RECORD_BYTES: usize = 200;

#[derive(Debug, Clone, Default, Serialize)]
pub struct Ceilings {
    pub tls: Tls,
    pub disk: DiskSpeed,
    /// AES-256-GCM in frames of 64 KiB with their checksums, on one core.
    pub sealing_mib_per_s: f64,
    pub etcd: Vec<EtcdSpeed>,
}

/// Bare streams over loopback: TLS 1.3 with the node's cipher suites and certificates, writes of 1 MiB.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Tls {
    /// One for every two cores: an end keeps a core busy.
    pub streams: usize,
    pub mib_per_s: f64,
    pub sender_cpu_s_per_gib: f64,
    pub receiver_cpu_s_per_gib: f64,
    pub round_trip_p50_ms: f64,
}

/// Durable writes into preallocated segment files.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DiskSpeed {
    /// 4 MiB, `fdatasync`, 4 MiB, …
    pub each_mib_per_s: f64,
    /// One `fdatasync` for 32 MiB.
    pub grouped_mib_per_s: f64,
    /// As many writers as there are nodes, each with an `fdatasync` after 4 MiB.
    pub writers_mib_per_s: f64,
    /// 4 KiB and its `fdatasync`.
    pub small_p50_ms: f64,
}

impl DiskSpeed {
    pub fn best_mib_per_s(&self) -> f64 {
        self.each_mib_per_s.max(self.grouped_mib_per_s).max(self.writers_mib_per_s)
    }
}

/// etcd with no Cairn in front of it.
#[derive(Debug, Clone, Serialize)]
pub struct EtcdSpeed {
    pub in_flight: usize,
    /// Transactions that create a record of 200 bytes.
    pub creates_per_s: f64,
    /// Linearizable reads of it.
    pub reads_per_s: f64,
}

/// What to measure alone, and for how long each.
pub struct Plan {
    pub limit: Duration,
    pub stop: CancellationToken,
}

impl Plan {
    /// Everything but etcd. Blocks.
    pub fn measure(&self) -> Result<Ceilings> {
        let folder = Scratch::new("bench")?;
        let tls = self.tls(&folder.path().join("secrets")).context("the TLS ceiling")?;
        let disk = self.disk(folder.path()).context("the disk ceiling")?;
        Ok(Ceilings { tls, disk, sealing_mib_per_s: self.sealing()?, etcd: Vec::new() })
    }

    /// Whether to go on with what began at `begun`.
    fn goes_on(&self, begun: Instant) -> Result<bool> {
        ensure!(!self.stop.is_cancelled(), "interrupted");
        Ok(begun.elapsed() < self.limit)
    }

    fn tls(&self, secrets_folder: &Path) -> Result<Tls> {
        let made = secrets::init(secrets_folder, "bench", &[], &RealClock::default(), &RealRandom)?;
        let files = TlsFiles {
            certificate: made.files.node_certificate,
            key: made.files.node_key,
            authority: made.files.authority_certificate,
        };
        let streams = (cores() / 2).max(1);
        let pair = || self.tls_pair(&files);
        let pairs: Vec<Pair> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..streams).map(|_| scope.spawn(pair)).collect();
            running.into_iter().map(joined).collect::<Result<_>>()
        })?;
        let gib: f64 = pairs.iter().map(|pair| pair.bytes as f64 / (1u64 << 30) as f64).sum();
        let sum = |of: fn(&Pair) -> f64| pairs.iter().map(of).sum::<f64>();
        let mut trips: Vec<Duration> = pairs.iter().flat_map(|pair| pair.round_trips.clone()).collect();
        trips.sort_unstable();
        Ok(Tls {
            streams,
            mib_per_s: sum(|pair| pair.bytes as f64 / MIB as f64 / pair.seconds),
            sender_cpu_s_per_gib: sum(|pair| pair.sender_cpu_s) / gib,
            receiver_cpu_s_per_gib: sum(|pair| pair.receiver_cpu_s) / gib,
            round_trip_p50_ms: percentile_ms(&trips, 50),
        })
    }

    /// One connection with a thread at each end.
    fn tls_pair(&self, files: &TlsFiles) -> Result<Pair> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                runtime()?.block_on(async {
                    let network = open(files)?;
                    let listener = network.listen("127.0.0.1:0", Protocol::Grpc).await?;
                    let address: SocketAddr = listener.address().parse()?;
                    tell.send(address).context("the sender is gone")?;
                    let accepted = listener.accept().await?;
                    receive(accepted.stream).await
                })
            });
            let sender = scope.spawn(move || {
                let address = told.recv().context("the receiver does not listen")?;
                runtime()?.block_on(async {
                    let network = open(files)?;
                    let stream = network.connect(&address.to_string(), "bench").await?;
                    self.send(stream).await
                })
            });
            let mut pair = joined(sender)?;
            (pair.bytes, pair.receiver_cpu_s) = joined(receiver)?;
            Ok(pair)
        })
    }

    async fn send(&self, mut stream: Box<dyn Stream>) -> Result<Pair> {
        let mut small = [0; ROUND_TRIP_BYTES];
        let mut round_trips = Vec::with_capacity(ROUND_TRIPS);
        for _ in 0..ROUND_TRIPS {
            let begun = Instant::now();
            stream.write_all(&small).await?;
            stream.flush().await?;
            stream.read_exact(&mut small).await?;
            round_trips.push(begun.elapsed());
        }
        let buffer = random(TLS_WRITE_BYTES);
        let (begun, cpu) = (Instant::now(), thread_cpu_s());
        while self.goes_on(begun)? {
            stream.write_all(&buffer).await?;
        }
        stream.shutdown().await?;
        // The receiver says that it has everything.
        stream.read_exact(&mut small).await?;
        let sender_cpu_s = thread_cpu_s() - cpu;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Pair { bytes: 0, seconds, sender_cpu_s, receiver_cpu_s: 0.0, round_trips })
    }

    fn disk(&self, folder: &Path) -> Result<DiskSpeed> {
        let buffer = random(CHUNK_BYTES as usize);
        let each_mib_per_s = self.write(&folder.join("each"), &buffer, 1)?;
        let grouped_mib_per_s = self.write(&folder.join("grouped"), &buffer, GROUP_CHUNKS)?;
        let writers_mib_per_s = std::thread::scope(|scope| {
            let write = |index: u64| {
                let (path, buffer) = (folder.join(format!("writer-{index}")), &buffer);
                scope.spawn(move || self.write(&path, buffer, 1))
            };
            let writers: Vec<_> = (0..super::Setup::Cluster.nodes()).map(write).collect();
            writers.into_iter().map(joined).sum::<Result<f64>>()
        })?;
        Ok(DiskSpeed {
            each_mib_per_s,
            grouped_mib_per_s,
            writers_mib_per_s,
            small_p50_ms: self.write_small(&folder.join("small"), &buffer[..SMALL_BYTES])?,
        })
    }

    /// Writes segment after segment, each removed when it is full; gives MiB/s.
    fn write(&self, path: &Path, buffer: &[u8], group: usize) -> Result<f64> {
        let (begun, mut written) = (Instant::now(), 0u64);
        while self.goes_on(begun)? {
            let file = RealDisk.open(path, OpenMode::CreateNew)?;
            file.allocate(SEGMENT_BYTES)?;
            file.sync_all()?;
            let mut end = 0;
            while end < SEGMENT_BYTES && self.goes_on(begun)? {
                for _ in 0..group {
                    file.write_at(&[IoSlice::new(buffer)], end)?;
                    end += buffer.len() as u64;
                }
                file.sync_data()?;
            }
            written += end;
            RealDisk.remove(path)?;
        }
        Ok(written as f64 / MIB as f64 / begun.elapsed().as_secs_f64())
    }

    fn write_small(&self, path: &Path, buffer: &[u8]) -> Result<f64> {
        let file = RealDisk.open(path, OpenMode::CreateNew)?;
        file.allocate(SEGMENT_BYTES)?;
        file.sync_all()?;
        let (begun, mut end, mut times) = (Instant::now(), 0, Vec::new());
        while end < SEGMENT_BYTES && self.goes_on(begun)? {
            let one = Instant::now();
            file.write_at(&[IoSlice::new(buffer)], end)?;
            file.sync_data()?;
            end += buffer.len() as u64;
            times.push(one.elapsed());
        }
        RealDisk.remove(path)?;
        times.sort_unstable();
        Ok(percentile_ms(&times, 50))
    }

    fn sealing(&self) -> Result<f64> {
        let generation = Generation::mint(1, [7; 12]);
        let key = VolumeKey::from_bytes([42; 32]).derive(generation);
        let plain = [Bytes::from(random(CHUNK_BYTES as usize))];
        let (begun, mut sealed) = (Instant::now(), 0u64);
        let mut index = 0;
        while self.goes_on(begun)? {
            let id = ChunkId { generation, index };
            std::hint::black_box(seal_chunk(
                &key,
                VolumeId(1),
                super::Setup::Cluster.copies() as u8,
                id,
                &plain,
            )?);
            sealed += CHUNK_BYTES;
            index += 1;
        }
        Ok(sealed as f64 / MIB as f64 / begun.elapsed().as_secs_f64())
    }
}

struct Pair {
    bytes: u64,
    seconds: f64,
    sender_cpu_s: f64,
    receiver_cpu_s: f64,
    round_trips: Vec<Duration>,
}

/// Answers the round trips, then takes everything; gives bytes and CPU time.
async fn receive(mut stream: Box<dyn Stream>) -> Result<(u64, f64)> {
    let mut small = [0; ROUND_TRIP_BYTES];
    for _ in 0..ROUND_TRIPS {
        stream.read_exact(&mut small).await?;
        stream.write_all(&small).await?;
        stream.flush().await?;
    }
    let mut buffer = vec![0; TLS_WRITE_BYTES];
    let (cpu, mut bytes) = (thread_cpu_s(), 0);
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    stream.write_all(&small).await?;
    stream.flush().await?;
    Ok((bytes, thread_cpu_s() - cpu))
}

fn open(files: &TlsFiles) -> Result<TlsNetwork> {
    Ok(TlsNetwork::open(files.clone(), TlsOptions::default(), Arc::new(RealClock::default()))?)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| bail!("a measuring thread panicked"))
}

fn thread_cpu_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux, and the kernel writes into a value of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    RealRandom.fill(&mut bytes);
    bytes
}

/// etcd alone: as many requests in flight as the cases have streams.
pub async fn etcd(cluster: &EtcdCluster, streams: &[usize], limit: Duration) -> Result<Vec<EtcdSpeed>> {
    let client = Client::connect(cluster.endpoints(), None).await?;
    let mut speeds = Vec::new();
    for in_flight in streams {
        let creates = in_flight_for(&client, *in_flight, limit, Request::Create).await?;
        let reads = in_flight_for(&client, *in_flight, limit, Request::Read).await?;
        speeds.push(EtcdSpeed { in_flight: *in_flight, creates_per_s: creates, reads_per_s: reads });
    }
    Ok(speeds)
}

#[derive(Clone, Copy)]
enum Request {
    Create,
    Read,
}

/// Requests that were answered in a second.
async fn in_flight_for(client: &Client, in_flight: usize, limit: Duration, request: Request) -> Result<f64> {
    let begun = Instant::now();
    let one = |stream: usize| {
        let mut kv = client.kv_client();
        async move {
            let mut count = 0u64;
            while begun.elapsed() < limit {
                let number = if matches!(request, Request::Create) { count } else { 0 };
                let key = format!("/alone/{in_flight}/{stream}/{number}");
                match request {
                    Request::Create => {
                        let absent = Compare::version(key.clone(), CompareOp::Equal, 0);
                        let put = TxnOp::put(key, vec![7; RECORD_BYTES], None);
                        kv.txn(Txn::new().when([absent]).and_then([put])).await?;
                    }
                    Request::Read => drop(kv.get(key, None).await?),
                }
                count += 1;
            }
            Ok::<_, etcd_client::Error>(count)
        }
    };
    let running: tokio::task::JoinSet<_> = (0..in_flight).map(one).collect();
    let mut all = 0;
    for count in running.join_all().await {
        all += count?;
    }
    Ok(all as f64 / begun.elapsed().as_secs_f64())
}
