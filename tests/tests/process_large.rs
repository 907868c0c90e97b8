//! A file larger than anything a node may keep in memory.

use std::{io, time::Duration};

use bytes::Bytes;
use cairn_client::{
    Client, ClientConfig, ContentStream, DownloadOptions, Limits, Pem, Source, UploadOptions,
};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    files::{VOLUME, content, make_volume},
    tools::{Need, require},
};
use futures::{StreamExt, stream};

const PIECE: usize = 1 << 20;
/// One GiB and a byte.
const LENGTH: u64 = (1 << 30) + 1;
/// What a node may use at most meanwhile: far less than the file. Its budgets allow 64 MiB to each side.
const MEMORY_KIB: u64 = 400 << 10;

/// What a node may use at most while ever so many uploads wait: its budgets, and for each of the 512 requests that it takes
/// at a time a window and a message.
const CROWD_KIB: u64 = 700 << 10;

/// A file that exists nowhere: pieces that differ by their number.
struct Generated {
    base: Bytes,
}

impl Generated {
    fn new() -> Self {
        Self { base: content(1, PIECE) }
    }

    /// Piece `number`; the last one is shorter.
    fn piece(&self, number: u64) -> Bytes {
        let mut piece = self.base.to_vec();
        for part in piece.chunks_mut(4096) {
            part[..8].copy_from_slice(&number.to_le_bytes());
        }
        piece.truncate((LENGTH - number * PIECE as u64).min(PIECE as u64) as usize);
        piece.into()
    }

    fn pieces() -> u64 {
        LENGTH.div_ceil(PIECE as u64)
    }
}

#[async_trait::async_trait]
impl Source for Generated {
    async fn open(&self) -> io::Result<ContentStream> {
        let this = Self { base: self.base.clone() };
        Ok(stream::iter(0..Self::pieces()).map(move |number| Ok(this.piece(number))).boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(LENGTH)
    }

    fn describe(&self) -> String {
        "a generated file".into()
    }
}

/// The most memory that a process ever had, in KiB.
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells the peak");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number of KiB")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_goes_through_bounded_memory() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let cluster = CairnCluster::start(ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t"))).await;
    make_volume(&cluster.client(), 3).await;
    let file = Generated::new();
    let uploaded =
        cluster.client_of(&[0]).upload(VOLUME, "large", UploadOptions::default(), &file).await.unwrap();
    assert_eq!(uploaded.size_bytes, LENGTH);

    let client = cluster.client_of(&[1]);
    let mut download = client.download(VOLUME, "large", DownloadOptions::default()).await.unwrap();
    let (mut number, mut expected, mut length) = (0, Bytes::new(), 0);
    while let Some(mut piece) = download.next_piece().await.unwrap() {
        length += piece.len() as u64;
        while !piece.is_empty() {
            if expected.is_empty() {
                expected = file.piece(number);
                number += 1;
            }
            let count = piece.len().min(expected.len());
            assert!(piece.split_to(count) == expected.split_to(count), "piece {number} differs");
        }
    }
    assert_eq!(length, LENGTH);
    let options = DownloadOptions { offset: LENGTH - 2, length: Some(2), ..DownloadOptions::default() };
    let end = client.download(VOLUME, "large", options).await.unwrap().bytes(10).await.unwrap();
    let last = Generated::pieces() - 1;
    assert_eq!(end[..], [file.piece(last - 1)[PIECE - 1], file.piece(last)[0]]);
    for node in 0..3 {
        let peak = peak_kib(cluster.process(node).pid());
        assert!(peak < MEMORY_KIB, "node {node} had {} MiB", peak >> 10);
    }
    tokio::time::timeout(Duration::from_secs(60), cluster.wait_settled()).await.unwrap();
}

/// More uploads at once over one connection than there is memory for: those that wait keep nobody from going on.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_wait_for_memory_do_not_stop_those_that_have_it() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let cluster = CairnCluster::start(ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t"))).await;
    make_volume(&cluster.client(), 3).await;
    let ca = Pem::File(cluster.secrets().authority_certificate.clone());
    let config = ClientConfig::new([cluster.grpc(0)], ca).with_token(cluster.token());
    // Whoever is told to come back later has waited for too long.
    let limits = Limits { attempts: 1, ..Limits::default() };
    let client = Client::connect(config.with_limits(limits)).unwrap();
    let bytes = content(1, 8 << 20);
    // The gateway has memory for 32 chunks of 4 MiB.
    let uploads = (0..64).map(|number| {
        let (client, bytes) = (client.clone(), bytes.clone());
        async move {
            let path = format!("many/{number}");
            client.upload_bytes(VOLUME, &path, UploadOptions::default(), bytes).await.map(|_| ())
        }
    });
    let ended = futures::future::join_all(uploads.map(tokio::spawn)).await;
    for upload in ended {
        upload.unwrap().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Content that begins and then pauses, as it does on its way through a network that is too slow for it.
struct Paused(Bytes);

#[async_trait::async_trait]
impl Source for Paused {
    async fn open(&self) -> io::Result<ContentStream> {
        Ok(stream::iter([Ok(self.0.clone())]).chain(stream::pending()).boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(2 * self.0.len() as u64)
    }

    fn can_open(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        "content that pauses".into()
    }
}

/// The most memory that a process ever had, once it has not grown for a while.
async fn peak_at_rest_kib(pid: i32) -> u64 {
    let (mut peak, mut unchanged) = (peak_kib(pid), 0);
    while unchanged < 10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = peak_kib(pid);
        unchanged = if now == peak { unchanged + 1 } else { 0 };
        peak = now;
    }
    peak
}

/// As many connections with as many uploads as clients like, all of which send more than they can be given room for.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_uploads_goes_through_bounded_memory() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let cluster = CairnCluster::start(ClusterOptions::new(&["a"], etcd.database_url("/t"))).await;
    make_volume(&cluster.client(), 1).await;
    let bytes = content(1, 2 << 20);
    let uploads = (0..12).flat_map(|_| {
        let ca = Pem::File(cluster.secrets().authority_certificate.clone());
        let config = ClientConfig::new([cluster.grpc(0)], ca).with_token(cluster.token());
        let limits = Limits { attempts: 1, ..Limits::default() };
        let client = Client::connect(config.with_limits(limits)).unwrap();
        let bytes = bytes.clone();
        (0..128).map(move |number| {
            let (client, source) = (client.clone(), Paused(bytes.clone()));
            async move {
                let path = format!("crowd/{number}");
                client.upload(VOLUME, &path, UploadOptions::default(), &source).await.map(|_| ())
            }
        })
    });
    let uploads: Vec<_> = uploads.map(tokio::spawn).collect();
    let peak = peak_at_rest_kib(cluster.process(0).pid()).await;
    uploads.iter().for_each(tokio::task::JoinHandle::abort);
    println!("{} MiB", peak >> 10);
    assert!(peak < CROWD_KIB, "the node had {} MiB", peak >> 10);
}
