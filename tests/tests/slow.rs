//! Clients that are slow, but not too slow: they take as little of a gateway's memory as they need, and no more than others
//! leave them.

use std::time::Duration;

use bytes::Bytes;
use cairn_node::files::{Condition, Download, FileError, FileInfo, FilePath, ReadSpec, UploadSpec};
use cairn_tests::sim::{
    cluster::{SimCluster, runtime},
    content::volume,
    plants::Plant,
};
use futures::{StreamExt, stream};
use tokio::task::JoinHandle;

/// A gateway's memory: enough for downloads to begin with a whole piece as long as most of it is free.
const BUDGET_BYTES: usize = 16 << 20;
/// Of the volume here: eight fill a gateway's memory.
const CHUNK_BYTES: usize = BUDGET_BYTES / 8;
/// What a slow client sends or takes in a second.
const A_SECOND: usize = 3 << 10;
/// In which somebody who is fast must be done, whatever the slow ones do.
const SOON: Duration = Duration::from_secs(20);

async fn one_node() -> SimCluster {
    let cluster = SimCluster::start_with(1, &["a"], Plant::None, BUDGET_BYTES).await;
    let files = cluster.files(0).unwrap();
    while files.create_volume(&volume(), 1, CHUNK_BYTES as u32).await.is_err() {
        cluster.clock.sleep(Duration::from_millis(200)).await;
    }
    cluster
}

fn spec(path: &str) -> UploadSpec {
    UploadSpec {
        volume: volume(),
        path: FilePath::parse(path).unwrap(),
        size_bytes: None,
        blake3: None,
        condition: Condition::Always,
        content_type: String::new(),
    }
}

/// Uploads so many bytes, a few each second.
fn slowly(cluster: &SimCluster, path: &str, bytes: usize) -> JoinHandle<Result<FileInfo, FileError>> {
    let (files, clock) = (cluster.files(0).unwrap(), cluster.clock.clone());
    let spec = spec(path);
    let content = stream::unfold(bytes, move |left| {
        let clock = clock.clone();
        async move {
            let some = left.min(A_SECOND);
            clock.sleep(Duration::from_secs(1)).await;
            (some > 0).then(|| (Ok(Bytes::from(vec![7; some])), left - some))
        }
    });
    tokio::spawn(async move { files.upload(spec, content.boxed()).await })
}

async fn put(cluster: &SimCluster, path: &str, bytes: usize) -> Result<FileInfo, FileError> {
    let pieces = vec![Ok(Bytes::from(vec![7; 256 << 10])); bytes / (256 << 10)];
    cluster.files(0).unwrap().upload(spec(path), stream::iter(pieces).boxed()).await
}

async fn get(cluster: &SimCluster, path: &str) -> Result<Download, FileError> {
    let path = FilePath::parse(path).unwrap();
    cluster.files(0).unwrap().download(&volume(), &path, ReadSpec::default()).await
}

async fn read_all(mut download: Download) -> Result<u64, FileError> {
    let mut read = 0;
    while let Some(data) = download.content.next().await {
        read += data?.len() as u64;
    }
    Ok(read)
}

/// Takes the content, a few bytes each second.
async fn read_slowly(cluster: &SimCluster, path: &str) -> JoinHandle<Result<u64, FileError>> {
    let mut download = get(cluster, path).await.expect("there is room for it");
    let clock = cluster.clock.clone();
    tokio::spawn(async move {
        let mut read = 0;
        while let Some(data) = download.content.next().await {
            let data = data?;
            read += data.len() as u64;
            let seconds = data.len().div_ceil(A_SECOND) as u64;
            let ended = download.ended.cancelled();
            tokio::select! {
                () = ended => return Err(FileError::crowded_out()),
                () = clock.sleep(Duration::from_secs(seconds)) => {}
            }
        }
        Ok(read)
    })
}

/// Somebody who is fast stores and reads twice what the memory holds.
async fn hurry(cluster: &SimCluster) -> Duration {
    let begun = cluster.clock.monotonic();
    let bytes = 2 * BUDGET_BYTES;
    put(cluster, "fast", bytes).await.expect("whoever is fast gets through");
    println!("put {:?}", cluster.clock.monotonic() - begun);
    let read = read_all(get(cluster, "fast").await.expect("whoever is fast gets through")).await;
    assert_eq!(read, Ok(bytes as u64));
    cluster.clock.monotonic() - begun
}

#[test]
fn slow_uploads_take_only_what_they_fill() {
    runtime().block_on(async {
        let cluster = one_node().await;
        // Three times as many as there is room for whole chunks.
        let slow = (0..24).map(|number| slowly(&cluster, &format!("slow{number}"), 60 << 10));
        let slow: Vec<_> = slow.collect();
        cluster.clock.sleep(Duration::from_secs(5)).await;
        let took = hurry(&cluster).await;
        println!("took {took:?}");
        assert!(took < SOON, "{took:?}");
        assert!(slow.iter().all(|upload| !upload.is_finished()), "they are slow");
        for upload in slow {
            upload.await.unwrap().expect("there was room for all");
        }
    });
}

#[test]
fn slow_uploads_make_room_for_others() {
    runtime().block_on(async {
        let cluster = one_node().await;
        // Ever more, until there is no room at all.
        let slow = (0..400).map(|number| slowly(&cluster, &format!("slow{number}"), 2 << 20));
        let slow: Vec<_> = slow.collect();
        cluster.clock.sleep(Duration::from_secs(30)).await;
        for round in 0..5 {
            let took = hurry(&cluster).await;
            println!("took {took:?}");
            assert!(took < SOON, "{took:?} in round {round}");
        }
        let mut ended = 0;
        for upload in slow {
            if upload.is_finished() {
                ended += 1;
                let error = upload.await.unwrap().expect_err("it is not over yet");
                assert!(matches!(error, FileError::Overloaded(_)), "{error}");
            } else {
                upload.abort();
            }
        }
        println!("{ended} of 400 slow uploads were ended");
        assert!(ended < 400, "some are left");
    });
}

#[test]
fn slow_downloads_take_only_what_they_need() {
    runtime().block_on(async {
        let cluster = one_node().await;
        put(&cluster, "file", 2 << 20).await.unwrap();
        let mut slow = Vec::new();
        for _ in 0..40 {
            slow.push(read_slowly(&cluster, "file").await);
        }
        let took = hurry(&cluster).await;
        println!("took {took:?}");
        assert!(took < SOON, "{took:?}");
        for download in slow {
            assert_eq!(download.await.unwrap(), Ok(2 << 20));
        }
    });
}

#[test]
fn slow_downloads_make_room_for_others() {
    runtime().block_on(async {
        let cluster = one_node().await;
        put(&cluster, "file", 2 << 20).await.unwrap();
        let mut slow = Vec::new();
        for _ in 0..160 {
            slow.push(read_slowly(&cluster, "file").await);
        }
        let took = hurry(&cluster).await;
        println!("took {took:?}");
        assert!(took < SOON, "{took:?}");
        let ended = slow.iter().filter(|download| download.is_finished()).count();
        println!("{ended} of 160 slow downloads were ended");
        assert!((96..160).contains(&ended), "{ended}");
        for download in slow {
            if download.is_finished() {
                assert_eq!(download.await.unwrap(), Err(FileError::crowded_out()));
            }
        }
    });
}
