//! Whether "settled" is true: three `cairn-node` processes with a real etcd, whose disks lose what the metadata names.

use bytes::Bytes;
use cairn_client::{Condition, CreateVolume, NodeState, Readable, StatusResponse, UploadOptions};
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
    // Compared only when something changes: so nothing but the node's going ends what was said before.
    let options = ClusterOptions::new(&ZONES, etcd.database_url("/t")).with("COMPARE_SECONDS", "3600");
    let mut cluster = CairnCluster::start(options).await;
    make_volume(&cluster.client(), 3).await;
    let volume = CreateVolume { name: "single".into(), copies: Some(1), chunk_size_bytes: None };
    cluster.client().create_volume(volume).await.unwrap();
    for number in 0..20u64 {
        let bytes = content(number, 10_000);
        let path = format!("f{number}");
        cluster.client().upload_bytes("single", &path, UploadOptions::default(), bytes).await.unwrap();
    }
    assert_eq!(cluster.wait_settled().await.readable(), Readable::All);
    cluster.kill(1);
    let live = |status: &StatusResponse| status.nodes.iter().all(|node| node.state() == NodeState::NodeLive);
    let status = cluster
        .wait("it is known that some cannot be read", |status| {
            assert_eq!(status.lost_files, 0, "{status:?}");
            assert!(live(status) || status.readable() != Readable::All, "a claim not checked: {status:?}");
            !live(status) && status.readable() == Readable::NotAll
        })
        .await;
    assert!(!is_settled(&status) && status.missing > 0 && status.compared, "{status:?}");
    let said = cluster.cairn(&["status"]);
    assert!(said.stdout.contains("some files cannot be read now"), "{said:?}");
    cluster.restart(1);
    let status = cluster.wait_settled().await;
    assert_eq!((status.lost_files, status.missing, status.readable()), (0, 0, Readable::All));
    assert!(cluster.cairn(&["status"]).stdout.contains("settled: everything has all its copies"));

    // With three copies of everything, everything can be read without that node.
    cluster.client().delete_volume("single", true).await.unwrap();
    put(&cluster.client(), "three", content(1, 100_000)).await;
    cluster.wait("the volume is gone", |status| status.collecting == 0 && is_settled(status)).await;
    cluster.kill(1);
    let status = cluster
        .wait("it is known that everything can be read", |status| {
            !live(status) && status.readable() == Readable::All
        })
        .await;
    assert!(!is_settled(&status) && status.missing == 0, "{status:?}");
    let said = cluster.cairn(&["status"]);
    assert!(said.success && said.stdout.contains("every file can be read; copies are still"), "{said:?}");
}

/// The disks stay the same ones, and have less on them when their nodes start again.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_same_disks_have_lost_between_two_starts_is_never_claimed() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    put(&cluster.client(), "docs/one", content(1, 1 << 20)).await;
    assert_eq!(cluster.wait_settled().await.readable(), Readable::All);
    for node in 0..3 {
        cluster.kill(node);
        std::fs::remove_dir_all(cluster.data_folder(node).join("segments")).unwrap();
    }
    (0..3).for_each(|node| cluster.restart(node));
    // What was known before the nodes started is void, even though the disks are the ones that were compared.
    let status = cluster
        .wait("the loss is known", |status| {
            assert_ne!(status.readable(), Readable::All, "claimed without a byte: {status:?}");
            assert!(!is_settled(status), "settled without a byte: {status:?}");
            status.lost_files > 0
        })
        .await;
    assert_eq!(
        (status.lost.as_slice(), status.readable()),
        (&["files/docs/one".to_owned()][..], Readable::NotAll)
    );
    let said = cluster.cairn(&["status"]);
    assert!(said.code == Some(6) && said.stdout.contains("DATA LOST: 1 file "), "{said:?}");
    // Waiting for what cannot come is no use.
    let begun = std::time::Instant::now();
    let said = cluster.cairn(&["status", "--wait-settled"]);
    assert_eq!(said.code, Some(6), "{said:?}");
    assert!(
        said.stderr.contains("files/docs/one") && said.stderr.contains("upload these files again"),
        "{said:?}"
    );
    assert!(begun.elapsed().as_secs() < 60, "it waited: {said:?}");
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
