//! Whether "settled" is true: three `cairn-node` processes with a real etcd, whose disks lose what the metadata names.

use bytes::Bytes;
use cairn_client::{Condition, CreateVolume, StatusResponse, UploadOptions};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    files::{content, make_volume, must_read, put},
    tools::{Need, require},
};

const ZONES: [&str; 3] = ["a", "b", "c"];

macro_rules! etcd {
    () => {{
        let Ok(tools) = require(&[Need::Etcd]) else { return };
        EtcdCluster::start(&tools, 3).expect("etcd starts")
    }};
}

async fn cluster(etcd: &EtcdCluster) -> CairnCluster {
    let cluster = CairnCluster::start(ClusterOptions::new(&ZONES, etcd.database_url("/t"))).await;
    make_volume(&cluster.client(), 3).await;
    cluster
}

fn is_settled(status: &StatusResponse) -> bool {
    status.placement_groups > 0 && status.settled == status.placement_groups
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_counts_as_settled_while_the_metadata_names_what_no_disk_has() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    put(&cluster.client(), "docs/one", content(1, 9 << 20)).await;
    put(&cluster.client(), "docs/two", content(2, 1 << 20)).await;
    put(&cluster.client(), "docs/nothing", Bytes::new()).await;
    let status = cluster.wait_settled().await;
    assert_eq!((status.compared, status.lost_files), (true, 0));

    // One disk is lost, and repaired from the others: nothing is lost.
    cluster.kill(2);
    cluster.lose_disk(2);
    cluster.restart(2);
    let status = cluster.wait_settled().await;
    assert_eq!(status.lost_files, 0);
    must_read(&cluster.client_of(&[2]), "docs/one", &content(1, 9 << 20)).await;

    // All disks are lost at once: the new ones agree with each other, and that is not enough.
    (0..3).for_each(|node| cluster.kill(node));
    for node in 0..3 {
        cluster.lose_disk(node);
        cluster.restart(node);
    }
    let status = cluster
        .wait("the loss is known", |status| {
            assert!(!is_settled(status), "settled without a byte: {status:?}");
            status.lost_files > 0
        })
        .await;
    assert_eq!(status.lost, ["files/docs/one", "files/docs/two"], "an empty file needs no disk");
    assert_eq!((status.lost_files, status.compared, status.unavailable), (2, true, 0));
    for node in 0..3 {
        let told = cluster.client_of(&[node]).status().await.unwrap();
        assert_eq!((told.lost_files, is_settled(&told)), (2, false), "n{}", node + 1);
    }

    // What is removed, or stored again, is not missing any more.
    cluster.client().delete("files", "docs/one", Condition::Always).await.unwrap();
    put(&cluster.client(), "docs/two", content(2, 1 << 20)).await;
    let status = cluster.wait_settled().await;
    assert_eq!((status.lost_files, status.lost.len()), (0, 0));
    must_read(&cluster.client(), "docs/two", &content(2, 1 << 20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_an_absent_node_has_is_not_called_lost() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    let volume = CreateVolume { name: "single".into(), copies: Some(1), chunk_size_bytes: None };
    cluster.client().create_volume(volume).await.unwrap();
    for number in 0..20u64 {
        let bytes = content(number, 10_000);
        let path = format!("f{number}");
        cluster.client().upload_bytes("single", &path, UploadOptions::default(), bytes).await.unwrap();
    }
    cluster.wait_settled().await;
    cluster.kill(1);
    let status = cluster
        .wait("a pass without the node", |status| {
            assert_eq!(status.lost_files, 0, "{status:?}");
            status.compared && status.degraded > 0
        })
        .await;
    assert!(!is_settled(&status));
    cluster.restart(1);
    assert_eq!(cluster.wait_settled().await.lost_files, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_counted() {
    let etcd = etcd!();
    let cluster = cluster(&etcd).await;
    for number in 0..30usize {
        put(&cluster.client(), &format!("f{number}"), content(number as u64, number * 1_000)).await;
    }
    let count = async |wanted: (u64, u64)| {
        let client = cluster.client();
        let begun = std::time::Instant::now();
        loop {
            let volume = client.volume("files").await.unwrap();
            if (volume.files, volume.size_bytes) == (Some(wanted.0), Some(wanted.1)) {
                break;
            }
            assert!(begun.elapsed().as_secs() < 30, "{volume:?}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    count((30, 435_000)).await;
    cluster.client().delete("files", "f29", Condition::Always).await.unwrap();
    count((29, 406_000)).await;
    let volumes = cluster.client().volumes().await.unwrap();
    assert_eq!(volumes[0].files, Some(29));
}
