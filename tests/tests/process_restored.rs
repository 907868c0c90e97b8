//! A metadata store that is restored from an older copy (R10): three `cairn-node` processes, and a real etcd whose data are
//! exchanged for what they were before.

use std::time::{Duration, Instant};

use cairn_client::{Condition, ErrorCode};
use cairn_node::{
    env::real::without_network,
    meta::{self, keys},
};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until, wait_ticks},
    etcd::EtcdCluster,
    files::{content, get, make_volume, must_read, put},
    process::{Output, run},
    tools::{Need, require},
};

const ZONES: [&str; 3] = ["a", "b", "c"];

fn recover(cluster: &CairnCluster, arguments: &[&str]) -> Output {
    let arguments = std::iter::once("recover").chain(arguments.iter().copied());
    run(cluster.spec(0).args(arguments), None, Duration::from_secs(30)).expect("cairn-node recover runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restored_backup_nothing_is_deleted_until_it_is_accepted() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let url = etcd.database_url("/t");
    let options =
        ClusterOptions::new(&ZONES, &*url).with("TICK_SECONDS", "1").with("COLLECT_AFTER_TICKS", "1");
    let mut cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    make_volume(&client, 3).await;
    let store = meta::connect(&url.parse().unwrap(), without_network()).await.unwrap();
    put(&client, "old", content(1, 300_000)).await;
    put(&client, "deleted later", content(2, 300_000)).await;
    cluster.wait_settled().await;
    let nothing = recover(&cluster, &[]);
    assert!(!nothing.success && nothing.stderr.contains("nothing to recover"), "{}", nothing.stderr);

    etcd.save("backup").expect("etcd starts again");
    cluster.wait_settled().await;
    put(&client, "new", content(3, 300_000)).await;
    client.delete("files", "deleted later", Condition::Always).await.unwrap();
    cluster.wait("what was deleted is collected", |status| status.collecting == 0).await;
    wait_ticks(&store, 2).await;

    // While the nodes run, and again after all of them were started anew.
    etcd.restore("backup").expect("etcd starts again");
    let status = cluster.wait("the restoration is noticed", |status| status.metadata_restored).await;
    assert_eq!(status.nodes.len(), 3);
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.restart(node));
    cluster.wait("it is noticed again", |status| status.metadata_restored).await;
    // It is said before all else, and waiting for what nobody has decided ends at once.
    let said = cluster.cairn(&["status"]);
    assert!(said.code == Some(6) && said.stdout.starts_with("METADATA RESTORED: "), "{said:?}");
    assert!(said.stdout.contains("`cairn-node recover`") && !said.stdout.contains("settled: "), "{said:?}");
    let said = cluster.cairn(&["status", "--output", "json"]);
    assert!(said.code == Some(6) && said.stdout.contains("\"settled\":false,"), "{said:?}");
    let begun = Instant::now();
    let said = cluster.cairn(&["status", "--wait-settled"]);
    assert!(said.code == Some(6) && said.stderr.contains("`cairn-node recover`"), "{said:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "it waited: {said:?}");

    // Files can be read, stored and deleted; the chunks of deleted ones stay, whatever the clock says.
    must_read(&client, "old", &content(1, 300_000)).await;
    put(&client, "meanwhile", content(4, 300_000)).await;
    client.delete("files", "meanwhile", Condition::Always).await.unwrap();
    wait_ticks(&store, 6).await;
    let status = client.status().await.unwrap();
    assert!(status.metadata_restored && status.collecting == 1, "{status:?}");

    // A node that has not spoken may have seen more than the others.
    cluster.stop(2);
    store.txn(forget("n3")).await.unwrap();
    let early = recover(&cluster, &[]);
    assert!(!early.success && early.stderr.contains("n3 have not said"), "{}", early.stderr);
    cluster.restart(2);
    cluster
        .wait("every node is back", |status| status.nodes.iter().all(|node| !node.address.is_empty()))
        .await;
    let done = until("every node has said how far it had seen", async || {
        let done = recover(&cluster, &[]);
        if done.success || !done.stderr.contains("have not said") { Ok(done) } else { Err(done) }
    })
    .await;
    assert!(done.success, "{}", done.stderr);

    // What was deleted before the restoration has a name again, and no content; what was stored after the backup is gone.
    let status = cluster
        .wait("deleting goes on", |status| {
            !status.metadata_restored && status.collecting == 0 && status.lost_files > 0
        })
        .await;
    assert_eq!(status.lost, ["files/deleted later"]);
    assert_eq!(get(&client, "new").await.unwrap_err().code(), ErrorCode::FileNotFound);
    client.delete("files", "deleted later", Condition::Always).await.unwrap();
    assert_eq!(cluster.wait_settled().await.lost_files, 0);
    must_read(&client, "old", &content(1, 300_000)).await;
    // Nobody doubts what was accepted, also after another start.
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.restart(node));
    assert!(!cluster.wait_settled().await.metadata_restored);
    let said = cluster.cairn(&["status", "--wait-settled"]);
    assert!(said.success && said.stdout.contains("settled: everything has all its copies"), "{said:?}");
}

fn forget(node: &str) -> meta::Txn {
    meta::Txn { then: vec![meta::Op::delete(keys::restored::key(node))], ..meta::Txn::default() }
}
