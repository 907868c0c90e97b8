//! Three `cairn-node` processes with a real three-member etcd, over real TLS: files go in, nodes and disks and the store
//! fail, every byte comes back.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use cairn_client::{Condition, DownloadOptions, ErrorCode, ListOptions, NodeState, UploadOptions};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    files::{content, get, make_volume, must_read, put},
    process::{Spec, run},
    rot::{bytes_of, flip},
    tools::{Need, require},
};

const ZONES: [&str; 3] = ["a", "b", "c"];
const MIB: usize = 1 << 20;

/// A cluster with the volume `files`.
async fn cluster(etcd: &EtcdCluster) -> CairnCluster {
    let cluster = CairnCluster::start(ClusterOptions::new(&ZONES, etcd.database_url("/t"))).await;
    make_volume(&cluster.client(), 3).await;
    cluster
}

/// Every file below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let walk = walkdir::WalkDir::new(folder).into_iter().filter_map(Result::ok);
    walk.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path()).collect()
}

macro_rules! etcd {
    () => {{
        let Ok(tools) = require(&[Need::Etcd]) else { return };
        EtcdCluster::start(&tools, 3).expect("etcd starts")
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_come_back_through_every_node() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    let sizes =
        [0, 1, 4096, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 21 * MIB];
    for (node, size) in sizes.into_iter().enumerate() {
        put(&cluster.client_of(&[node % 3]), &format!("sizes/{size}"), content(size as u64, size)).await;
    }
    for node in 0..3 {
        let client = cluster.client_of(&[node]);
        for size in sizes {
            must_read(&client, &format!("sizes/{size}"), &content(size as u64, size)).await;
        }
        let whole = content(21 * MIB as u64, 21 * MIB);
        for (offset, length) in
            [(0, 1), (65_535, 2), (4 * MIB - 1, 2), (5 * MIB + 17, 9 * MIB), (21 * MIB - 1, 1)]
        {
            let options = DownloadOptions {
                offset: offset as u64,
                length: Some(length as u64),
                ..DownloadOptions::default()
            };
            let path = format!("sizes/{}", 21 * MIB);
            let read = client.download("files", &path, options).await.unwrap().bytes(64 << 20).await.unwrap();
            assert!(read == whole[offset..offset + length], "range {offset}+{length} through node {node}");
        }
    }
    let status = cluster.wait_settled().await;
    assert_eq!(status.unavailable, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_conditions_and_listings_behave() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    let client = cluster.client();
    let names = ["plain", "with space/ü—漢字", "a/b/c", "a/b/d", "a/e", "%2e%2e", "new\nline"];
    for name in names {
        put(&client, name, Bytes::from(name.to_owned())).await;
    }
    for name in names {
        must_read(&client, name, &Bytes::from(name.to_owned())).await;
    }
    for bad in ["", "..", "a/../b", "/etc/passwd", "a//b", "nul\0", &"x".repeat(1025)] {
        let refused =
            client.upload_bytes("files", bad, UploadOptions::default(), Bytes::new()).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidPath, "{bad:?}: {refused}");
    }
    let options = ListOptions { prefix: "a/".into(), delimited: true, page_size: 1 };
    let mut listing = client.list("files", options);
    let (mut files, mut prefixes) = (Vec::new(), Vec::new());
    while let Some(page) = listing.next_page().await.unwrap() {
        files.extend(page.files.into_iter().map(|file| file.path));
        prefixes.extend(page.prefixes);
    }
    assert_eq!((files, prefixes), (vec!["a/e".to_owned()], vec!["a/b/".to_owned()]));

    let absent = UploadOptions { condition: Condition::IfAbsent, ..UploadOptions::default() };
    let refused = client.upload_bytes("files", "plain", absent.clone(), Bytes::new()).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::PreconditionFailed);
    client.upload_bytes("files", "fresh", absent, Bytes::from_static(b"1")).await.unwrap();
    let old = client.stat("files", "fresh").await.unwrap().etag;
    put(&client, "fresh", Bytes::from_static(b"2")).await;
    let stale = UploadOptions { condition: Condition::IfMatch(old), ..UploadOptions::default() };
    let refused = client.upload_bytes("files", "fresh", stale, Bytes::new()).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::PreconditionFailed);
    must_read(&client, "fresh", &Bytes::from_static(b"2")).await;

    client.delete("files", "fresh", Condition::Always).await.unwrap();
    assert_eq!(get(&client, "fresh").await.unwrap_err().code(), ErrorCode::FileNotFound);
    let unknown =
        client.upload_bytes("nowhere", "x", UploadOptions::default(), Bytes::new()).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::VolumeNotFound);
    let wrong = UploadOptions { blake3: Some([1; 32]), ..UploadOptions::default() };
    let refused = client.upload_bytes("files", "digest", wrong, content(1, 100_000)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::DigestMismatch);
    assert_eq!(get(&client, "digest").await.unwrap_err().code(), ErrorCode::FileNotFound);
    let past = DownloadOptions { offset: 99, ..DownloadOptions::default() };
    let refused =
        client.download("files", "plain", past).await.err().expect("a range past the end is refused");
    assert_eq!(refused.code(), ErrorCode::RangeNotSatisfiable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_during_uploads_loses_nothing_and_catches_up() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    let client = cluster.client_of(&[0, 1]);
    let (count, mut counted) = tokio::sync::watch::channel(0);
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 0..60u64 {
            let bytes = content(number, 300_000 + number as usize * 7_001);
            let path = format!("load/{number}");
            if client.upload_bytes("files", &path, UploadOptions::default(), bytes.clone()).await.is_ok() {
                acknowledged.push((path, bytes));
                count.send_replace(acknowledged.len());
            }
        }
        acknowledged
    });
    counted.wait_for(|count| *count >= 10).await.unwrap();
    cluster.kill(2);
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged.len() >= 55, "two of three nodes take writes: {}", acknowledged.len());
    for (path, bytes) in &acknowledged {
        must_read(&cluster.client_of(&[1]), path, bytes).await;
    }
    cluster
        .wait("the killed node is seen as down", |status| {
            status.nodes.iter().any(|node| node.name == "n3" && node.state() == NodeState::NodeDown)
        })
        .await;
    cluster.restart(2);
    cluster.wait_settled().await;
    // The one that was away has everything: the other two may go.
    cluster.kill(0);
    for (path, bytes) in &acknowledged {
        must_read(&cluster.client_of(&[2]), path, bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_filled_from_the_others() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    let client = cluster.client();
    let files: Vec<_> = (0..30u64).map(|n| (format!("f/{n}"), content(n, 50_000 * n as usize))).collect();
    for (path, bytes) in &files {
        put(&client, path, bytes.clone()).await;
    }
    client.delete("files", "f/3", Condition::Always).await.unwrap();
    let before = cluster.wait_settled().await;
    cluster.kill(1);
    cluster.lose_disk(1);
    cluster.restart(1);
    cluster
        .wait("the new disk is in use", |status| {
            let chunks = |status: &cairn_client::StatusResponse| {
                status.nodes.iter().map(|n| n.chunks).collect::<Vec<_>>()
            };
            status.settled == status.placement_groups && chunks(status) == chunks(&before)
        })
        .await;
    cluster.kill(0);
    for (path, bytes) in files.iter().filter(|(path, _)| path != "f/3") {
        must_read(&cluster.client_of(&[1, 2]), path, bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_down_refuse_writes_cleanly() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    put(&cluster.client(), "kept", content(1, 100_000)).await;
    cluster.wait_settled().await;
    cluster.kill(1);
    cluster.kill(2);
    let client = cluster.client_of(&[0]);
    must_read(&client, "kept", &content(1, 100_000)).await;
    let refused = client.upload_bytes("files", "kept", UploadOptions::default(), content(2, 9_000)).await;
    assert_eq!(refused.unwrap_err().code(), ErrorCode::NotEnoughNodes);
    must_read(&client, "kept", &content(1, 100_000)).await;
    cluster.restart(1);
    cluster.restart(2);
    cluster.wait_settled().await;
    put(&client, "kept", content(2, 9_000)).await;
    must_read(&cluster.client_of(&[2]), "kept", &content(2, 9_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_served_from_another_and_healed() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    let client = cluster.client();
    let bytes = content(7, 3 * MIB);
    put(&client, "precious", bytes.clone()).await;
    cluster.wait_settled().await;
    let before = cluster.wait_settled().await;
    damage(&cluster, 0);
    must_read(&cluster.client_of(&[0]), "precious", &bytes).await;
    cluster
        .wait("the damaged copy is replaced", |status| {
            status.settled == status.placement_groups
                && status.nodes.iter().map(|n| n.chunks).eq(before.nodes.iter().map(|n| n.chunks))
        })
        .await;
    damage(&cluster, 1);
    damage(&cluster, 2);
    must_read(&cluster.client_of(&[1]), "precious", &bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_every_copy_is_an_error_that_names_the_file() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    let client = cluster.client();
    put(&client, "photos/precious.raw", content(7, 3 * MIB)).await;
    cluster.wait_settled().await;
    for node in 0..3 {
        damage(&cluster, node);
    }
    // The first reader finds the damage; the others must not be told to come back later.
    for node in [0, 0, 1, 2] {
        let error = get(&cluster.client_of(&[node]), "photos/precious.raw").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DataCorrupt, "{error}");
        assert!(error.to_string().contains("photos/precious.raw"), "{error}");
        // At once, though all nodes agree, and the last comparison missed nothing.
        let status = client.status().await.unwrap();
        assert!(status.settled < status.placement_groups, "after a read through n{}", node + 1);
    }
    let lost = cluster.wait("the loss is known", |status| status.lost_files > 0).await;
    assert_eq!((lost.lost, lost.lost_files), (vec!["files/photos/precious.raw".to_owned()], 1));
    assert!(lost.settled < lost.placement_groups);
}

/// No copy is whole, but of every frame there is a sound one.
#[tokio::test(flavor = "multi_thread")]
async fn damage_at_different_places_of_every_copy_is_mended() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    let bytes = content(7, 4 * MIB);
    put(&cluster.client(), "precious", bytes.clone()).await;
    cluster.wait_settled().await;
    for (node, frame) in [3, 9, 12].into_iter().enumerate() {
        flip(&bytes_of(cluster.data_folder(node), |_| vec![(64 << 10) + frame * (64 << 10)]));
    }
    for node in [0, 1, 2, 0] {
        must_read(&cluster.client_of(&[node]), "precious", &bytes).await;
    }
    // Reading it has told the nodes; each of them mends its copy.
    cluster.wait_settled().await;
    for node in 0..3 {
        cluster.kill(node);
        let verify = cluster.spec(node).args(["verify"]);
        let verified = run(verify, None, Duration::from_secs(60)).expect("cairn-node verify runs").stdout;
        assert!(verified.contains("all of it is whole"), "n{}: {verified}", node + 1);
        cluster.restart(node);
        cluster.wait_settled().await;
    }
    must_read(&cluster.client(), "precious", &bytes).await;
}

/// The answer's header is out when the damage shows: the answer breaks off, and whoever asks again learns why.
#[tokio::test(flavor = "multi_thread")]
async fn damage_behind_the_beginning_breaks_off_once_and_is_then_named() {
    let Ok(tools) = require(&[Need::Etcd, Need::System("curl")]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let mut cluster = cluster(&etcd).await;
    let whole = content(9, 40 * MIB);
    put(&cluster.client(), "films/long.mkv", whole.clone()).await;
    cluster.wait_settled().await;
    // In every frame, since sound frames of several copies would be put together.
    let later_chunks = |end: usize| (end / 10 * 6..end / 10 * 9).step_by(64 << 10).collect();
    let damaged: Vec<_> = (0..3).map(|node| bytes_of(cluster.data_folder(node), later_chunks)).collect();
    damaged.iter().for_each(|places| flip(places));
    for (node, version) in [(0, "--http2"), (1, "--http1.1")] {
        let (exit, status, body) = curl(&cluster, node, version);
        assert!(exit != 0 && status == "200" && body.len() < whole.len(), "{version}: {exit} {status}");
        assert!(whole.starts_with(&body), "{version}: what came before the end is good");
        for _ in 0..3 {
            let (exit, status, body) = curl(&cluster, node, version);
            let problem = String::from_utf8_lossy(&body);
            assert_eq!((exit, status.as_str()), (0, "500"), "{version}: {problem}");
            assert!(problem.contains("DATA_CORRUPT") && problem.contains("films/long.mkv"), "{problem}");
        }
        // What is good can still be had.
        let (exit, status, body) = curl(&cluster, node, &format!("{version} -r 0-999999"));
        assert_eq!((exit, status.as_str()), (0, "206"));
        assert!(body == whole[..1_000_000]);
        let (_, status, _) = curl(&cluster, node, &format!("{version} -r 0-35999999"));
        assert_eq!(status, "500");
    }
    let error = get(&cluster.client_of(&[0]), "films/long.mkv").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DataCorrupt, "{error}");
    assert!(error.to_string().contains("films/long.mkv"), "{error}");

    // A disk that comes back whole heals the file: the gateway that remembers the damage serves it.
    cluster.kill(0);
    flip(&damaged[0]);
    cluster.restart(0);
    cluster
        .wait("n1 is back", |status| {
            status.nodes.iter().all(|node| node.state() == NodeState::NodeLive && node.chunks > 0)
        })
        .await;
    must_read(&cluster.client_of(&[1]), "films/long.mkv", &whole).await;
    let (exit, status, body) = curl(&cluster, 1, "--http2");
    assert_eq!((exit, status.as_str()), (0, "200"));
    assert!(body == whole);
}

/// Gets `films/long.mkv` with curl: its exit code, the status, and what came.
fn curl(cluster: &CairnCluster, node: usize, options: &str) -> (u8, String, Vec<u8>) {
    let ca = cluster.secrets().authority_certificate.display();
    let url = format!("{}/v1/volumes/files/files/films/long.mkv", cluster.https(node));
    let line = format!(
        "rm -f got; curl -s --max-time 60 --cacert '{ca}' -H 'authorization: Bearer {}' {options} -o got -w '%{{http_code}}' {url}; echo \" $?\"",
        cluster.token()
    );
    let spec = Spec::new("sh", "/bin/sh").args(["-c", &line]).folder(cluster.folder());
    let output = run(spec, None, Duration::from_secs(90)).expect("a shell runs");
    let (status, exit) = output.stdout.trim().split_once(' ').expect("two words");
    let body = std::fs::read(cluster.folder().join("got")).unwrap_or_default();
    (exit.parse().unwrap(), status.to_owned(), body)
}

/// Flips a byte in the middle of every large record of a node's segments, behind its back.
fn damage(cluster: &CairnCluster, node: usize) {
    flip(&bytes_of(cluster.data_folder(node), |end| vec![end / 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_seconds_without_etcd_need_no_restart() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    let client = cluster.client();
    put(&client, "before", content(1, 200_000)).await;
    etcd.pause_all();
    let during = {
        let client = cluster.client();
        tokio::spawn(async move {
            client.upload_bytes("files", "during", UploadOptions::default(), content(2, 200_000)).await
        })
    };
    tokio::time::sleep(Duration::from_secs(30)).await;
    etcd.resume_all();
    // Either it was told to come back later, or it waited: never half.
    let outcome = during.await.unwrap();
    cluster
        .wait("all nodes are live again", |status| {
            status.nodes.iter().all(|node| node.state() == NodeState::NodeLive)
        })
        .await;
    if outcome.is_ok() {
        must_read(&client, "during", &content(2, 200_000)).await;
    }
    must_read(&client, "before", &content(1, 200_000)).await;
    put(&client, "after", content(3, 200_000)).await;
    must_read(&cluster.client_of(&[2]), "after", &content(3, 200_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_etcd_member_killed_is_not_noticed() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    let client = cluster.client();
    for number in 0..30u64 {
        if number == 10 {
            etcd.kill(0);
        }
        put(&client, &format!("n/{number}"), content(number, 20_000)).await;
    }
    for number in 0..30u64 {
        must_read(&client, &format!("n/{number}"), &content(number, 20_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_readable_lies_on_any_disk() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    let marker = "a sentence that must never lie readable on a disk; ";
    put(&cluster.client(), "secret", Bytes::from(marker.repeat(20_000))).await;
    cluster.wait_settled().await;
    let mut seen = 0;
    for node in 0..3 {
        for path in files_below(cluster.data_folder(node)) {
            let bytes = std::fs::read(&path).unwrap();
            seen += bytes.len();
            let found = bytes.windows(marker.len()).any(|window| window == marker.as_bytes());
            assert!(!found, "content in plain text in {}", path.display());
        }
    }
    assert!(seen > 3 * MIB, "the disks hold the file");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_overwritten_content_is_collected() {
    let etcd = etcd!();
    let options = ClusterOptions::new(&ZONES, etcd.database_url("/t"))
        .with("TICK_SECONDS", "1")
        .with("COLLECT_AFTER_TICKS", "1");
    let cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    make_volume(&client, 3).await;
    for number in 0..10u64 {
        put(&client, &format!("n/{number}"), content(number, 200_000)).await;
    }
    put(&client, "n/0", content(99, 100)).await;
    for number in 1..9u64 {
        client.delete("files", &format!("n/{number}"), Condition::Always).await.unwrap();
    }
    cluster
        .wait("only two chunks are left on each node", |status| {
            status.collecting == 0 && status.nodes.iter().all(|node| node.chunks == 2)
        })
        .await;
    must_read(&client, "n/0", &content(99, 100)).await;
    must_read(&client, "n/9", &content(9, 200_000)).await;
    client.delete_volume("files", true).await.unwrap();
    cluster
        .wait("the deleted volume leaves nothing", |status| {
            status.collecting == 0 && status.nodes.iter().all(|node| node.chunks == 0)
        })
        .await;
}
