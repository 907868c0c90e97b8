//! Bytes that rot around a crash, damage that must not be forgotten, and folders that vanish: `cairn-node` processes with a
//! real etcd.

use std::time::Duration;

use cairn_client::{ErrorCode, Readable, StatusResponse};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    etcd::EtcdCluster,
    files::{content, get, make_volume, must_read, put},
    process::run,
    rot::{byte_of_header, bytes_of, flip},
    scratch::Scratch,
    tools::{Need, require},
};

const FRAME: usize = 64 << 10;
const MIB: usize = 1 << 20;

macro_rules! etcd {
    () => {{
        let Ok(tools) = require(&[Need::Etcd]) else { return };
        EtcdCluster::start(&tools, 3).expect("etcd starts")
    }};
}

/// Three nodes that compare the metadata with the disks only when something tells them to.
async fn cluster(etcd: &EtcdCluster) -> CairnCluster {
    let options =
        ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t")).with("COMPARE_SECONDS", "3600");
    let cluster = CairnCluster::start(options).await;
    make_volume(&cluster.client(), 3).await;
    cluster
}

fn is_settled(status: &StatusResponse) -> bool {
    status.placement_groups > 0 && status.settled == status.placement_groups
}

/// Stops the nodes and reads their disks.
fn must_be_whole(cluster: &mut CairnCluster) {
    for node in 0..cluster.len() {
        cluster.stop(node);
        let verified = run(cluster.spec(node).args(["verify"]), None, Duration::from_secs(60)).unwrap();
        assert!(verified.stdout.contains("all of it is whole\n"), "n{}: {verified:?}", node + 1);
    }
}

/// What was acknowledged is in the last group of every disk; after the crash, nobody can tell rot there from a torn write.
#[tokio::test(flavor = "multi_thread")]
async fn rot_in_the_last_writes_before_a_crash_is_mended() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    let bytes = content(7, 3 * MIB);
    put(&cluster.client(), "precious", bytes.clone()).await;
    // Two are enough for an answer.
    cluster.wait("all have it", |status| status.nodes.iter().all(|node| node.chunks == 1)).await;
    (0..3).for_each(|node| cluster.kill(node));
    for (node, frame) in [3, 7, 11].into_iter().enumerate() {
        flip(&bytes_of(cluster.data_folder(node), |_| vec![FRAME + frame * FRAME]));
    }
    let verified = run(cluster.spec(0).args(["verify"]), None, Duration::from_secs(60)).unwrap();
    assert!(verified.stdout.contains("but for 1 chunks of the last writes before a crash"), "{verified:?}");
    (0..3).for_each(|node| cluster.restart(node));
    let status = cluster
        .wait("the chunk is put together", |status| {
            assert_eq!(status.lost_files, 0, "{status:?}");
            is_settled(status)
        })
        .await;
    assert_eq!(status.readable(), Readable::All);
    assert!(status.nodes.iter().all(|node| node.chunks == 1), "{status:?}");
    for node in 0..3 {
        must_read(&cluster.client_of(&[node]), "precious", &bytes).await;
    }
    must_be_whole(&mut cluster);
}

/// A record's header is small, and all that tells how to check its frames. One wrong byte of it is computed.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_in_the_header_of_every_copy_loses_nothing() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    let (one, two) = (content(7, 3 * MIB), content(8, 4 * MIB));
    put(&cluster.client(), "one", one.clone()).await;
    cluster.wait_settled().await;
    let wrong = |cluster: &CairnCluster| {
        for (node, byte) in [20, 70, 76].into_iter().enumerate() {
            flip(&byte_of_header(cluster.data_folder(node), byte));
        }
    };
    // Met by a reader.
    wrong(&cluster);
    must_read(&cluster.client_of(&[1]), "one", &one).await;
    cluster.wait_settled().await;
    // Met by a start.
    put(&cluster.client(), "two", two.clone()).await;
    cluster.wait_settled().await;
    (0..3).for_each(|node| cluster.stop(node));
    wrong(&cluster);
    (0..3).for_each(|node| cluster.restart(node));
    let status = cluster
        .wait("the copies are mended", |status| {
            assert_eq!(status.lost_files, 0, "{status:?}");
            is_settled(status)
        })
        .await;
    assert!(status.nodes.iter().all(|node| node.chunks == 2), "{status:?}");
    for (path, bytes) in [("one", &one), ("two", &two)] {
        must_read(&cluster.client_of(&[2]), path, bytes).await;
    }
    must_be_whole(&mut cluster);
}

/// The disks are read through by their nodes: nobody has to want a file for its damage to be found.
#[tokio::test(flavor = "multi_thread")]
async fn rot_that_nobody_reads_is_found_and_mended() {
    let etcd = etcd!();
    let options = ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t")).with("SCRUB_SECONDS", "3");
    let mut cluster = CairnCluster::start(options).await;
    make_volume(&cluster.client(), 3).await;
    for number in 0..5 {
        put(&cluster.client(), &format!("f{number}"), content(number, 2 * MIB)).await;
    }
    cluster.wait_settled().await;
    flip(&bytes_of(cluster.data_folder(1), |end| vec![end / 3]));
    until("the damage is found and mended", async || {
        let log = std::fs::read_to_string(cluster.log(1)).unwrap();
        if log.contains("a damaged chunk left the inventory") && log.contains("mended damaged chunks") {
            return Ok(());
        }
        Err(log)
    })
    .await;
    cluster.wait_settled().await;
    cluster.stop(1);
    let verified = run(cluster.spec(1).args(["verify"]), None, Duration::from_secs(60)).unwrap();
    assert!(
        verified.stdout.contains("5 chunks") && verified.stdout.contains("all of it is whole\n"),
        "{verified:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_loss_outlives_restarts() {
    let etcd = etcd!();
    let mut cluster = cluster(&etcd).await;
    let bytes = content(7, 3 * MIB);
    put(&cluster.client(), "precious", bytes.clone()).await;
    assert_eq!(cluster.wait_settled().await.readable(), Readable::All);
    let places: Vec<_> =
        (0..3).map(|node| bytes_of(cluster.data_folder(node), |_| vec![4 * FRAME])).collect();
    places.iter().for_each(|places| flip(places));
    let error = get(&cluster.client_of(&[0]), "precious").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DataCorrupt, "{error}");
    // The damage itself makes the comparison anew: at rest it comes once an hour.
    let lost = cluster.wait("the loss is known", |status| status.lost_files > 0).await;
    assert_eq!(
        (lost.lost.as_slice(), lost.readable()),
        (&["files/precious".to_owned()][..], Readable::NotAll)
    );

    for kill in [true, false] {
        (0..3).for_each(|node| if kill { cluster.kill(node) } else { cluster.stop(node) });
        (0..3).for_each(|node| cluster.restart(node));
        cluster
            .wait("the loss is known again", |status| {
                assert!(!is_settled(status), "settled without what is damaged: {status:?}");
                assert_ne!(status.readable(), Readable::All, "claimed with what is damaged: {status:?}");
                status.lost_files > 0
            })
            .await;
    }

    // One disk that is read well again is enough.
    flip(&places[1]);
    must_read(&cluster.client_of(&[0]), "precious", &bytes).await;
    let status = cluster.wait_settled().await;
    assert_eq!((status.lost_files, status.readable()), (0, Readable::All));
}

/// A deleted folder's open files take everything that is written to them with them when they are closed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_into_a_deleted_folder() {
    let scratch = Scratch::new("gone").unwrap();
    let url = format!("embedded://{}/metadata", scratch.path().display());
    let cluster = CairnCluster::start(ClusterOptions::new(&["a"], url)).await;
    make_volume(&cluster.client(), 1).await;
    put(&cluster.client(), "before", content(1, 100_000)).await;
    std::fs::remove_dir_all(cluster.data_folder(0)).unwrap();
    let after =
        cluster.client().upload_bytes("files", "after", Default::default(), content(2, 100_000)).await;
    assert!(after.is_err(), "acknowledged into nothing");
    // Also when nobody writes, the node notices.
    let log = until("the node ends and says why", async || {
        let log = std::fs::read_to_string(cluster.log(0)).unwrap();
        if log.contains("deleted while this node was running") && cluster.client().status().await.is_err() {
            return Ok(log);
        }
        Err(log)
    })
    .await;
    assert!(log.contains("put it back from a backup"), "{log}");
}
