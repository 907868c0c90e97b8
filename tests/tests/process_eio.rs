//! Disks that fail, real ones: one that cannot read some of its blocks any more, for its file was cut off below its file system;
//! and one that takes nothing any more, for its file system has gone read-only.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use cairn_client::{BytesSource, Client, DownloadOptions, UploadOptions};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    etcd::EtcdCluster,
    files::content,
    process::{Spec, run},
    scratch::Scratch,
    tools::{Need, require},
};

const IMAGE_BYTES: u64 = 112 << 20;
/// What is left of it. The file system's own tables are in the beginning of its only block group.
const LEFT_BYTES: u64 = 24 << 20;
const FILES: u64 = 40;
const FILE_BYTES: usize = 1 << 20;

fn make_image(path: &Path) {
    std::fs::File::create(path).unwrap().set_len(IMAGE_BYTES).unwrap();
    let spec = Spec::new("mkfs", "mkfs.ext4").args(["-q", "-b", "4096", "-O", "^has_journal"]).arg(path);
    let made = run(spec, None, Duration::from_secs(60)).unwrap();
    assert!(made.success, "{made:?}");
}

fn resize(image: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(image).unwrap().set_len(bytes).unwrap();
}

fn file(n: u64) -> Bytes {
    content(n, FILE_BYTES)
}

async fn read(client: &Client, n: u64) -> Result<Bytes, String> {
    let read = async {
        let mut download = client.download("files", &format!("f{n}"), DownloadOptions::default()).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = download.next_piece().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok::<_, cairn_client::Error>(Bytes::from(bytes))
    };
    read.await.map_err(|error| error.to_string())
}

/// Every file through every node.
async fn all_are_read(cluster: &CairnCluster) -> Result<(), String> {
    for node in 0..cluster.len() {
        let client = cluster.client_of(&[node]);
        for n in 0..FILES {
            let bytes =
                read(&client, n).await.map_err(|error| format!("f{n} through node {node}: {error}"))?;
            assert!(bytes == file(n), "f{n} through node {node} is another one");
        }
    }
    Ok(())
}

async fn store(client: &Client, n: u64) {
    let stored =
        client.upload("files", &format!("f{n}"), UploadOptions::default(), &BytesSource(file(n))).await;
    stored.unwrap();
}

/// Three nodes, the first with a small file system of its own, and a volume.
async fn on_an_image(etcd: &EtcdCluster, folder: &Scratch) -> (CairnCluster, PathBuf) {
    let image = folder.path().join("disk");
    make_image(&image);
    let options = ClusterOptions {
        image: Some((0, image.clone())),
        // So many seconds for all of the disk: whatever nobody reads is read soon.
        ..ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/eio")).with("SCRUB_SECONDS", "5")
    };
    let cluster = CairnCluster::start(options).await;
    let volume = cairn_client::CreateVolume { name: "files".into(), copies: None, chunk_size_bytes: None };
    cluster.client().create_volume(volume).await.unwrap();
    (cluster, image)
}

/// The first node's own copies are whole again: nobody else is there.
async fn has_everything(mut cluster: CairnCluster) {
    cluster.stop(1);
    cluster.stop(2);
    let alone = cluster.client_of(&[0]);
    for n in 0..FILES {
        let bytes = until("each file is read from this disk alone", async || read(&alone, n).await).await;
        assert!(bytes == file(n), "f{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_cannot_be_read_cost_nothing_but_time() {
    let needs = [Need::Etcd, Need::Root, Need::System("mkfs.ext4"), Need::System("unshare")];
    let Ok(tools) = require(&needs) else { return };
    let etcd = EtcdCluster::start(&tools, 3).unwrap();
    let folder = Scratch::new("eio").unwrap();
    let (mut cluster, image) = on_an_image(&etcd, &folder).await;
    let client = cluster.client();
    for n in 0..FILES {
        store(&client, n).await;
    }
    cluster.wait_settled().await;

    resize(&image, LEFT_BYTES);
    // The scrub asks the device, not the cache, and meets what is gone.
    until("the node meets what it cannot read", async || {
        let log = std::fs::read_to_string(cluster.log(0)).unwrap();
        ["os error 5", "damaged"].iter().any(|word| log.contains(word)).then_some(()).ok_or("nothing is said")
    })
    .await;
    all_are_read(&cluster).await.unwrap();
    let status = cluster.cairn(&["status"]);
    assert!(status.success && !status.stdout.contains("DATA LOST"), "{status:?}");

    // With blocks in their place that hold nothing, the disk is what it was, and what was on them comes from the others.
    cluster.kill(0);
    resize(&image, IMAGE_BYTES);
    cluster.restart(0);
    cluster.wait_settled().await;
    all_are_read(&cluster).await.unwrap();
    has_everything(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_has_gone_read_only_costs_no_request_and_is_named() {
    let needs = [Need::Etcd, Need::Root, Need::System("mkfs.ext4"), Need::System("nsenter")];
    let Ok(tools) = require(&needs) else { return };
    let etcd = EtcdCluster::start(&tools, 3).unwrap();
    let folder = Scratch::new("read-only").unwrap();
    let (mut cluster, _) = on_an_image(&etcd, &folder).await;
    store(&cluster.client(), 0).await;
    cluster.wait_settled().await;

    // As a file system does that has met an error.
    cluster.remount(0, "abort");
    for n in 1..FILES {
        // Its own gateway serves on, too.
        store(&cluster.client_of(&[n as usize % 3]), n).await;
    }
    all_are_read(&cluster).await.unwrap();
    let status = cluster.client().status().await.unwrap();
    assert!(status.settled < status.placement_groups, "{status:?}");
    let node = status.nodes.iter().find(|node| node.name == "n1").unwrap();
    let warned = |warning: &String| warning.contains("Read-only file system");
    assert!(node.warnings.iter().any(warned), "{status:?}");
    // And once in its log, not with every write.
    let log = std::fs::read_to_string(cluster.log(0)).unwrap();
    assert_eq!(log.matches("does not take a write").count(), 1, "{log}");
    assert!(log.matches("Read-only file system").count() < 20, "{log}");
    cluster.kill(0);

    let refused = run(cluster.spec(0).env("MOUNTED", "ro"), None, Duration::from_secs(60)).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let last = refused.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("Read-only file system") && last.contains("/n1"), "{refused:?}");

    cluster.restart(0);
    cluster.wait_settled().await;
    has_everything(cluster).await;
}
