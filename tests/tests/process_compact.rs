//! Garbage gives its space back: a real cluster whose small files change again and again.

use cairn_client::{Condition, UploadOptions};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    etcd::EtcdCluster,
    files::{VOLUME, content, make_volume, must_read, put},
    tools::{Need, require},
};
use futures::{StreamExt, stream};

/// Of large files, that fill a disk soon.
const LARGE_BYTES: usize = 4_000_000;
const FILES: u64 = 400;
const ROUNDS: u64 = 8;
const FILE_BYTES: usize = 4_000;

/// Nothing of so small a file is a whole page: without compaction every version would take its place for ever.
#[tokio::test(flavor = "multi_thread")]
async fn small_files_that_change_do_not_fill_the_disks() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    // On a small disk, segments are of 1 MiB.
    let options = ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t"))
        .with("CAPACITY", "64Mi")
        .with("TICK_SECONDS", "1")
        .with("COLLECT_AFTER_TICKS", "2")
        .with("COMPACT_SECONDS", "1");
    let mut cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    make_volume(&client, 3).await;
    for round in 0..ROUNDS {
        let puts = (0..FILES).map(|file| {
            let client = &client;
            async move { put(client, &format!("f{file}"), content(round << 32 | file, FILE_BYTES)).await }
        });
        stream::iter(puts).buffer_unordered(32).collect::<Vec<()>>().await;
    }
    let live = FILES * FILE_BYTES as u64;
    cluster
        .wait("garbage is given back", |status| {
            let most = status.nodes.iter().map(|node| node.used_bytes).max().unwrap_or(u64::MAX);
            status.collecting == 0 && most < 3 * live && most > live
        })
        .await;
    let check = async |cluster: &CairnCluster| {
        for file in (0..FILES).step_by(7) {
            let node = file as usize % 3;
            let last = content((ROUNDS - 1) << 32 | file, FILE_BYTES);
            must_read(&cluster.client_of(&[node]), &format!("f{file}"), &last).await;
        }
    };
    check(&cluster).await;
    for node in 0..3 {
        cluster.kill(node);
        cluster.restart(node);
    }
    let status = cluster.wait_settled().await;
    assert_eq!(status.lost_files, 0, "{status:?}");
    check(&cluster).await;
}

/// Deleted files rest for a week here; but while clients are refused, only as long as somebody may read them.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_does_not_wait_for_the_rest_of_deleted_files() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 1).expect("etcd starts");
    let options = ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t"))
        .with("CAPACITY", "64Mi")
        .with("TICK_SECONDS", "1")
        .with("COLLECT_AFTER_TICKS", "10000");
    let cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    make_volume(&client, 3).await;
    let upload = async |file: u64| {
        let bytes = content(file, LARGE_BYTES);
        client.upload_bytes(VOLUME, &format!("f{file}"), UploadOptions::default(), bytes).await
    };
    let mut stored = 0;
    while upload(stored).await.is_ok() {
        stored += 1;
    }
    assert!((5..17).contains(&stored), "{stored} files fit");
    for file in 1..stored {
        client.delete(VOLUME, &format!("f{file}"), Condition::Always).await.expect("a full disk deletes");
    }
    until("there is room again", async || upload(stored).await).await;
    must_read(&client, "f0", &content(0, LARGE_BYTES)).await;
    must_read(&client, &format!("f{stored}"), &content(stored, LARGE_BYTES)).await;
}
