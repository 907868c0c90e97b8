//! A disk or a metadata store that is an older copy of itself, noticed at the start (R9, R10): `cairn-node` processes and a
//! real etcd.

use std::{fs, path::Path, time::Duration};

use cairn_node::{
    chunks::{self, ChunkStore, Opening, StoreOptions},
    env::real::without_network,
    meta::{
        self, RangeRead, SharedMeta,
        keys::{self, disk::DiskRecord},
    },
};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    etcd::EtcdCluster,
    files::{content, get, make_volume, must_read, put},
    process::{Output, run},
    scratch::copy_folder,
    tools::{Need, require},
};

async fn open(etcd: &EtcdCluster, prefix: &str) -> SharedMeta {
    meta::connect(&etcd.database_url(prefix).parse().unwrap(), without_network()).await.unwrap()
}

/// Waits until a node has said so many times more what its disk remembers.
async fn wait_told(store: &SharedMeta, node: &str, more: u64) {
    let tick = async || {
        let entry = store.get(&keys::disk::key(node)).await.expect("the store answers");
        entry.map_or(0, |entry| keys::from_json::<DiskRecord>(&entry).expect("a record").tick)
    };
    let end = tick().await + more;
    until("the node says what its disk remembers", async || match tick().await {
        now if now >= end => Ok(()),
        now => Err(now),
    })
    .await
}

/// A start that must be refused.
fn refused(cluster: &CairnCluster) -> String {
    let Output { success, stderr, .. } = started(cluster, &[]);
    assert!(!success, "it started");
    stderr
}

fn started(cluster: &CairnCluster, arguments: &[&str]) -> Output {
    run(cluster.spec(0).args(arguments), None, Duration::from_secs(30)).expect("cairn-node runs")
}

/// Stores a file, lets the disk say that it remembers a moment after, and puts the disk back to what it was before.
async fn roll_back(cluster: &mut CairnCluster, store: &SharedMeta) {
    let client = cluster.client();
    make_volume(&client, cluster.len() as u32).await;
    put(&client, "old", content(1, 300_000)).await;
    cluster.wait_settled().await;
    wait_told(store, "n1", 1).await;
    let copy = cluster.folder().join("copy");
    copy_folder(cluster.data_folder(0), &copy).unwrap();
    put(&client, "new", content(2, 300_000)).await;
    cluster.wait_settled().await;
    wait_told(store, "n1", 2).await;
    cluster.kill(0);
    exchange(cluster.data_folder(0), &copy);
}

fn exchange(data: &Path, copy: &Path) {
    fs::rename(data, data.with_extension("newer")).unwrap();
    fs::rename(copy, data).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_refuses_a_disk_that_has_lost_what_it_held_until_that_is_accepted() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 1).expect("etcd starts");
    let store = open(&etcd, "/t").await;
    let options = ClusterOptions::new(&["a"], etcd.database_url("/t")).with("TICK_SECONDS", "1");
    let mut cluster = CairnCluster::start(options).await;
    let early = started(&cluster, &["recover", "--accept-disk", "n1"]);
    assert!(!early.success && early.stderr.contains("n1 runs"), "{}", early.stderr);
    roll_back(&mut cluster, &store).await;
    for _ in 0..3 {
        let said = refused(&cluster);
        assert!(said.contains("this disk remembers the cluster's minute"), "{said}");
        assert!(said.contains("recover --accept-disk n1"), "{said}");
    }
    // The newer one may come back: nothing was changed that concerns it.
    let data = cluster.data_folder(0).to_owned();
    let copy = cluster.folder().join("copy");
    fs::rename(&data, &copy).unwrap();
    fs::rename(data.with_extension("newer"), &data).unwrap();
    cluster.restart(0);
    cluster.wait_settled().await;
    must_read(&cluster.client(), "new", &content(2, 300_000)).await;
    cluster.kill(0);
    exchange(&data, &copy);
    refused(&cluster);
    let stranger = started(&cluster, &["recover", "--accept-disk", "n7"]);
    assert!(!stranger.success && stranger.stderr.contains("no node \"n7\""), "{}", stranger.stderr);
    let accepted = until("the node's lease has run out", async || {
        let done = started(&cluster, &["recover", "--accept-disk", "n1"]);
        if done.stderr.contains("n1 runs") { Err(done) } else { Ok(done) }
    })
    .await;
    assert!(accepted.success && accepted.stdout.contains("accepted as it is"), "{accepted:?}");
    cluster.restart(0);
    let status = cluster.wait("what is lost is named", |status| status.lost_files > 0).await;
    assert_eq!(status.lost, ["files/new"]);
    must_read(&cluster.client(), "old", &content(1, 300_000)).await;
    let gone = get(&cluster.client(), "new").await.unwrap_err();
    assert!(gone.to_string().contains("new"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn among_others_a_disk_that_has_lost_what_it_held_is_brought_up_to_date() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 1).expect("etcd starts");
    let store = open(&etcd, "/t").await;
    let options = ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t")).with("TICK_SECONDS", "1");
    let mut cluster = CairnCluster::start(options).await;
    roll_back(&mut cluster, &store).await;
    cluster.restart(0);
    until("it says so, and starts", async || {
        let log = fs::read_to_string(cluster.log(0)).unwrap();
        let told = log.contains("the disk has lost what was written to it last") && log.contains("boot=2");
        if told { Ok(()) } else { Err(log) }
    })
    .await;
    cluster.wait_settled().await;
    cluster.kill(1);
    cluster.kill(2);
    for (path, seed) in [("old", 1), ("new", 2)] {
        must_read(&cluster.client_of(&[0]), path, &content(seed, 300_000)).await;
    }
}

/// The store's revision that the disk of a killed node remembers.
async fn remembered(data: &Path) -> u64 {
    let env = without_network();
    let identity = chunks::peek_identity(&*env.disk, data).unwrap().expect("a disk");
    let options = StoreOptions::new(data, identity.cluster_id, identity.node);
    let options = StoreOptions { opening: Opening::Inspect, ..options };
    let (disk, _) = ChunkStore::open(env, options).await.expect("the disk is sound");
    let remembered = disk.sighting().revision;
    disk.close().await;
    remembered
}

/// Each write takes the store's revision further: a node that wrote before it compared would find that all is well.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_one_commit_behind_is_noticed_before_a_node_writes_to_it() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 1).expect("etcd starts");
    let options = ClusterOptions::new(&["a"], etcd.database_url("/t")).with("TICK_SECONDS", "3600");
    let mut cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    make_volume(&client, 1).await;
    cluster.wait_settled().await;
    etcd.save("backup").expect("etcd starts again");
    cluster.wait_settled().await;
    for seed in 0..12 {
        put(&client, "a", content(seed, 1_000)).await;
    }
    cluster.kill(0);
    etcd.restore("backup").expect("etcd starts again");
    let remembered = remembered(cluster.data_folder(0)).await;
    let store = open(&etcd, "/t").await;
    loop {
        let put = meta::Op::put(bytes::Bytes::from_static(b"filler"), "");
        let written = store.txn(meta::Txn { then: vec![put], ..meta::Txn::default() }).await.unwrap();
        assert!(written.revision < remembered, "the copy is not far enough behind for this test");
        if written.revision + 1 == remembered {
            break;
        }
    }
    cluster.restart(0);
    cluster.wait("the restoration is noticed", |status| status.metadata_restored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_the_store_has_lost_come_back_with_their_keys() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 1).expect("etcd starts");
    let store = open(&etcd, "/t").await;
    let options = ClusterOptions::new(&["a"], etcd.database_url("/t")).with("TICK_SECONDS", "1");
    let mut cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    cluster.wait_settled().await;
    etcd.save("backup").expect("etcd starts again");
    cluster.wait_settled().await;
    make_volume(&client, 1).await;
    put(&client, "old", content(1, 300_000)).await;
    wait_kept(&cluster, "\"files\",\"record\"").await;

    // Somebody deletes too much: without its key, nothing could read the file that the store still names.
    let key = keys::volume::key("files");
    let volume = store.get(&key).await.unwrap().expect("the volume's record").value;
    let delete = meta::Txn { then: vec![meta::Op::delete(key.clone())], ..meta::Txn::default() };
    store.txn(delete).await.unwrap();
    wait_kept(&cluster, "\"files\",\"gone\":").await;
    let unknown = started(&cluster, &["recover", "--put-back", "no-such"]);
    assert!(!unknown.success && unknown.stderr.contains("keeps no volume \"no-such\""), "{}", unknown.stderr);
    let stranger = CairnCluster::start(ClusterOptions::new(&["a"], etcd.database_url("/stranger"))).await;
    let foreign =
        cluster.spec(0).env("DATA_DIR", stranger.data_folder(0)).args(["recover", "--put-back", "x"]);
    let foreign = run(foreign, None, Duration::from_secs(30)).expect("cairn-node runs");
    assert!(!foreign.success && foreign.stderr.contains("a disk of another cluster"), "{foreign:?}");
    drop(stranger);
    let back = started(&cluster, &["recover", "--put-back", "files"]);
    assert!(back.success && back.stdout.contains("volume files is back"), "{back:?}");
    assert_eq!(store.get(&key).await.unwrap().expect("the volume's record").value, volume);
    must_read(&client, "old", &content(1, 300_000)).await;
    wait_kept(&cluster, "\"files\",\"record\"").await;

    // A copy from before the volume was made.
    etcd.restore("backup").expect("etcd starts again");
    cluster.kill(0);
    cluster.restart(0);
    cluster.wait("the restoration is noticed", |status| status.metadata_restored).await;
    assert!(store.get(&key).await.unwrap().is_none());
    let done = until("the node has said how far it had seen", async || {
        let done = started(&cluster, &["recover"]);
        if done.success { Ok(done) } else { Err(done) }
    })
    .await;
    assert!(done.stdout.contains("volume files is back"), "{done:?}");
    assert_eq!(store.get(&key).await.unwrap().expect("the volume's record").value, volume);
    put(&client, "new", content(2, 300_000)).await;
    must_read(&client, "new", &content(2, 300_000)).await;
}

/// Waits until the node's own copy of the volumes' keys has `text` in it.
async fn wait_kept(cluster: &CairnCluster, text: &str) {
    let path = cluster.data_folder(0).join("volumes");
    until(text, async || match fs::read_to_string(&path) {
        Ok(kept) if kept.contains(text) => Ok(()),
        other => Err(other),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_not_put_into_a_store_that_knows_no_cluster() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 1).expect("etcd starts");
    let mut cluster = CairnCluster::start(ClusterOptions::new(&["a"], etcd.database_url("/t"))).await;
    cluster.stop(0);
    let wrong = cluster.spec(0).env("DATABASE_URL", etcd.database_url("/other"));
    let ended = run(wrong, None, Duration::from_secs(30)).expect("cairn-node runs");
    let said = ended.stderr;
    assert!(
        !ended.success && said.contains("holds no cluster") && said.contains("check DATABASE_URL"),
        "{said}"
    );
    let store = open(&etcd, "/other").await;
    let found = store.range(RangeRead { start: "a".into(), end: "z".into(), ..RangeRead::default() }).await;
    assert!(found.unwrap().entries.is_empty(), "nothing was written");
    cluster.restart(0);
    cluster.wait_settled().await;
}
