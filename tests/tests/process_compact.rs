//! Garbage gives its space back: a real cluster whose small files change again and again.

use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    files::{content, make_volume, must_read, put},
    tools::{Need, require},
};
use futures::{StreamExt, stream};

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
