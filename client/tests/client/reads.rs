//! Downloads, listings and short reads: verified, and taken up again elsewhere.

use std::time::{Duration, Instant};

use cairn_client::{Client, Counter, DownloadOptions, ErrorCode, ListOptions, StatOptions};
use futures::TryStreamExt;

use crate::fake::{Fault, dead_address};
use crate::{Cluster, content};

const KIB: usize = 1 << 10;
const LIMIT: usize = 64 << 20;

async fn get(client: &Client, path: &str) -> cairn_client::Result<bytes::Bytes> {
    client.download("files", path, DownloadOptions::default()).await?.bytes(LIMIT).await
}

#[tokio::test]
async fn whole_files_and_ranges() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    for size in [0, 1, 64 * KIB, 3_000 * KIB] {
        let body = content(size);
        cluster.fake.store("a", &body);
        assert_eq!(get(&client, "a").await.unwrap(), body);
        let mut written = Vec::new();
        let download = client.download("files", "a", DownloadOptions::default()).await.unwrap();
        assert_eq!(download.length(), size as u64);
        download.write_to(&mut written).await.unwrap();
        assert_eq!(written, body);
    }
    let body = content(3_000 * KIB);
    for (offset, length, end) in [(5, Some(10), 15), (100, None, body.len()), (0, Some(1 << 40), body.len())]
    {
        let options = DownloadOptions { offset: offset as u64, length, ..DownloadOptions::default() };
        let download = client.download("files", "a", options).await.unwrap();
        let pieces: Vec<bytes::Bytes> = download.into_stream().try_collect().await.unwrap();
        assert_eq!(pieces.concat(), body[offset..end]);
    }
    let options = DownloadOptions { offset: 1 << 40, ..DownloadOptions::default() };
    let error = client.download("files", "a", options).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::RangeNotSatisfiable);
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let cluster = Cluster::start(3).await;
    let body = content(2_000 * KIB);
    cluster.fake.store("a", &body);
    cluster.fake.fail("download", [Fault::CutAfter(100_000), Fault::CutAfter(0), Fault::CutAfter(777_777)]);
    let counter = Counter::default();
    let options = DownloadOptions { counter: Some(counter.clone()), ..DownloadOptions::default() };
    let download = cluster.client().download("files", "a", options).await.unwrap();
    assert_eq!(download.bytes(LIMIT).await.unwrap(), body);
    assert_eq!(counter.get(), body.len() as u64);
    assert_eq!(cluster.fake.calls("download"), 4);
}

#[tokio::test]
async fn a_download_never_mixes_two_generations() {
    let cluster = Cluster::start(1).await;
    cluster.fake.store("a", &content(500 * KIB));
    cluster.fake.fail("download", [Fault::CutAfter(100 * KIB)]);
    let mut download = cluster.client().download("files", "a", DownloadOptions::default()).await.unwrap();
    download.next_piece().await.unwrap();
    cluster.fake.store("a", &content(500 * KIB));
    let error = download.bytes(LIMIT).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PreconditionFailed);
    assert!(error.to_string().contains("changed"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_is_noticed() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    cluster.fake.store("a", &content(100 * KIB));
    cluster.fake.fail("download", [Fault::Corrupt]);
    assert_eq!(get(&client, "a").await.unwrap_err().code(), ErrorCode::DigestMismatch);
    cluster.fake.fail("download", [Fault::Extra]);
    assert_eq!(get(&client, "a").await.unwrap_err().code(), ErrorCode::Internal);
    let download = client.download("files", "a", DownloadOptions::default()).await.unwrap();
    assert!(download.bytes(10).await.unwrap_err().to_string().contains("102400"));
}

#[tokio::test]
async fn missing_files_are_not_asked_for_again() {
    let cluster = Cluster::start(3).await;
    let error = get(&cluster.client(), "nothing").await.unwrap_err();
    assert!(error.is_not_found());
    assert!(error.endpoint().is_some_and(|endpoint| endpoint.starts_with("127.0.0.1:")));
    assert_eq!(cluster.fake.calls("download"), 1);
}

#[tokio::test]
async fn nodes_that_refuse_hang_or_are_dead_are_passed_over() {
    let cluster = Cluster::start(2).await;
    cluster.fake.store("a", b"abc");
    let dead = dead_address().await.to_string();
    let endpoints = cluster.addresses.iter().cloned().chain([dead]);
    let client = Client::connect(cluster.config(endpoints)).unwrap();
    for _ in 0..5 {
        cluster.fake.fail("stat", [Fault::Refuse(ErrorCode::Unavailable)]);
        client.stat("files", "a").await.unwrap();
    }
    cluster.fake.fail("stat", [Fault::Hang]);
    client.stat("files", "a").await.unwrap();
    cluster.fake.fail("download", [Fault::Hang, Fault::Refuse(ErrorCode::ChunkUnavailable)]);
    assert_eq!(get(&client, "a").await.unwrap(), "abc");
}

/// Each node remembers other files: when one has none, the next is asked.
#[tokio::test]
async fn old_answers_are_asked_for_marked_and_taken_only_if_allowed() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    cluster.fake.store("a", b"abc");
    cluster.fake.set_stale_ms(Some(12_000), false);
    let away = || [Fault::Refuse(ErrorCode::MetadataUnavailable); 2];
    let look = StatOptions { allow_stale: true, ..StatOptions::default() };
    cluster.fake.fail("stat", away());
    assert_eq!(client.stat_with("files", "a", look).await.unwrap().stale_ms, Some(12_000));
    let options = DownloadOptions { allow_stale: true, ..DownloadOptions::default() };
    cluster.fake.fail("download", away().into_iter().chain([Fault::CutAfter(1)]));
    let download = client.download("files", "a", options).await.unwrap();
    assert_eq!(download.stale(), Some(Duration::from_secs(12)));
    assert_eq!(download.bytes(LIMIT).await.unwrap(), "abc");
    assert_eq!((cluster.fake.calls("stat"), cluster.fake.calls("download")), (3, 4));
    // Whoever has not allowed it does not take it for the present state.
    cluster.fake.set_stale_ms(Some(12_000), true);
    assert_eq!(client.stat("files", "a").await.unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(get(&client, "a").await.unwrap_err().code(), ErrorCode::Internal);
}

/// The last attempt is cut off by the end of the call's time; what an earlier one was told is worth more.
#[tokio::test]
async fn a_reason_that_was_given_is_not_forgotten_in_silence() {
    let cluster = Cluster::start(1).await;
    cluster.fake.store("a", b"abc");
    let refused = Fault::Refuse(ErrorCode::MetadataUnavailable);
    for call in ["stat", "download"] {
        cluster.fake.fail(call, std::iter::once(refused).chain(std::iter::repeat_n(Fault::Hang, 20)));
    }
    let client = cluster.client();
    let error = client.stat("files", "a").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::MetadataUnavailable, "{error}");
    let error = get(&client, "a").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::MetadataUnavailable, "{error}");
}

#[tokio::test]
async fn with_every_node_dead_it_ends_soon_and_says_what_to_do() {
    let cluster = Cluster::start(0).await;
    let endpoints = [dead_address().await.to_string(), dead_address().await.to_string()];
    let began = Instant::now();
    let error = Client::connect(cluster.config(endpoints)).unwrap().stat("files", "a").await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains("refused the connection"), "{error}");
    assert!(error.help().contains("50051"), "{}", error.help());
}

#[tokio::test]
async fn listings_page_by_page() {
    let cluster = Cluster::start(1).await;
    for index in 0..25 {
        cluster.fake.store(&format!("p/{index:02}"), b"x");
    }
    cluster.fake.store("q", b"x");
    let options = ListOptions { prefix: "p/".into(), page_size: 10, ..ListOptions::default() };
    let mut listing = cluster.client().list("files", options.clone());
    let mut names = Vec::new();
    while let Some(page) = listing.next_page().await.unwrap() {
        assert!(page.files.len() <= 10);
        names.extend(page.files.into_iter().map(|file| file.path));
    }
    assert_eq!(names.len(), 25);
    assert!(names.is_sorted());

    cluster
        .fake
        .fail("list", [Fault::Refuse(ErrorCode::MetadataUnavailable), Fault::Refuse(ErrorCode::Unavailable)]);
    let mut listing = cluster.client().list("files", options);
    assert_eq!(listing.next_page().await.unwrap().unwrap().files.len(), 10);
    cluster.fake.fail("list", [Fault::Loop]);
    assert_eq!(listing.next_page().await.unwrap_err().code(), ErrorCode::Internal, "it leads to itself");
}
