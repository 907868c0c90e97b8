//! What version 1 stored is opened for ever (R20): a node's folder with its embedded store, and a dump of the metadata, kept in
//! `tests/fixtures/v1/` as they were written then. `CAIRN_FIXTURE=FOLDER` keeps one made by today's programs there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use cairn_client::{Client, Condition, CreateVolume, DownloadOptions, ListOptions, UploadOptions};
use cairn_node::{
    env::real::without_network,
    meta::{self, Op, RangeRead, Txn, keys},
};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    files::content,
    scratch::{Scratch, copy_folder},
    tools::{Need, require},
};
use serde::{Deserialize, Serialize};

/// Names and sizes: no chunk, one frame, several chunks, the name with what names may have.
const FILES: [(&str, usize); 4] =
    [("empty", 0), ("one byte", 1), ("folder/three chunks", 150_000), ("ünï\tcødé/%2f\n", 1_000)];

/// A stored key.
#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    /// base64
    value: String,
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1")
}

/// A node alone that takes over a fixture's disk, with this metadata.
async fn open(fixture: &Path, database_url: String) -> CairnCluster {
    let mut cluster = CairnCluster::prepare(ClusterOptions::new(&["a"], database_url));
    fs::copy(fixture.join("kek"), &cluster.secrets().kek).unwrap();
    copy_folder(&fixture.join("data"), cluster.data_folder(0)).unwrap();
    cluster.restart(0);
    cluster.wait_settled().await;
    cluster
}

/// Everything that was stored is read, and more can be.
async fn check(client: &Client) {
    for (seed, (path, size)) in FILES.into_iter().enumerate() {
        let file = client.download("kept", path, DownloadOptions::default()).await.expect(path);
        assert!(file.bytes(1 << 20).await.expect(path) == content(seed as u64, size), "{path}");
        let stat = client.stat("kept", path).await.expect(path);
        assert_eq!((stat.size_bytes, &stat.content_type[..]), (size as u64, "text/x-old"));
    }
    let page = client.list("kept", ListOptions::default()).next_page().await.expect("a listing");
    let names: Vec<String> = page.unwrap_or_default().files.into_iter().map(|file| file.path).collect();
    let mut wanted = FILES.map(|(path, _)| path.to_owned()).to_vec();
    wanted.sort();
    assert_eq!(names, wanted, "what was deleted stays away");
    client
        .upload_bytes("kept", "new", UploadOptions::default(), Bytes::from_static(b"new"))
        .await
        .expect("an upload");
    let status = client.status().await.expect("a status");
    assert_eq!((status.lost_files, status.metadata_restored), (0, false));
}

/// Writes a fixture with today's programs.
async fn make(folder: &Path) {
    let metadata = folder.join("metadata");
    let url = format!("embedded://{}", metadata.display());
    let options =
        ClusterOptions::new(&["a"], &*url).with("TICK_SECONDS", "1").with("COLLECT_AFTER_TICKS", "1");
    let mut cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    let volume = CreateVolume { name: "kept".into(), copies: Some(1), chunk_size_bytes: Some(65_536) };
    client.create_volume(volume).await.unwrap();
    let put = async |path: &str, bytes: Bytes| {
        let options = UploadOptions { content_type: "text/x-old".into(), ..UploadOptions::default() };
        client.upload_bytes("kept", path, options, bytes).await.unwrap();
    };
    put("deleted", content(90, 100_000)).await;
    put(FILES[1].0, content(91, 5_000)).await;
    for (seed, (path, size)) in FILES.into_iter().enumerate() {
        put(path, content(seed as u64, size)).await;
    }
    client.delete("kept", "deleted", Condition::Always).await.unwrap();
    cluster.wait("what was deleted is collected", |status| status.collecting == 0).await;
    cluster.wait_settled().await;
    cluster.stop(0);
    copy_folder(cluster.data_folder(0), &folder.join("data")).unwrap();
    fs::copy(&cluster.secrets().kek, folder.join("kek")).unwrap();
    let store = meta::connect(&url.parse().unwrap(), without_network()).await.unwrap();
    let all =
        store.range(RangeRead { end: Bytes::from_static(b"\xff"), ..RangeRead::default() }).await.unwrap();
    store.close().await;
    let entries: BTreeMap<_, _> = all.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    let lines: Vec<String> = entries
        .into_iter()
        .map(|(key, value)| Entry {
            key: String::from_utf8(key.to_vec()).unwrap(),
            value: BASE64_STANDARD.encode(value),
        })
        .map(|entry| serde_json::to_string(&entry).unwrap() + "\n")
        .collect();
    fs::write(folder.join("metadata.jsonl"), lines.concat()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_folder_is_opened_for_ever() {
    let scratch = Scratch::new("formats").unwrap();
    copy_folder(&fixture().join("metadata"), &scratch.path().join("metadata")).unwrap();
    let url = format!("embedded://{}/metadata", scratch.path().display());
    let cluster = open(&fixture(), url).await;
    check(&cluster.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_dump_is_read_for_ever() {
    let Ok(tools) = require(&[Need::Etcd]) else { return };
    let etcd = EtcdCluster::start(&tools, 1).expect("etcd starts");
    let url = etcd.database_url("/t");
    let store = meta::connect(&url.parse().unwrap(), without_network()).await.unwrap();
    let mut known = 0;
    for line in fs::read_to_string(fixture().join("metadata.jsonl")).unwrap().lines() {
        let Entry { key, value } = serde_json::from_str(line).unwrap();
        let value = BASE64_STANDARD.decode(value).unwrap();
        let then = vec![Op::put(key.into_bytes(), value)];
        store.txn(Txn { then, ..Txn::default() }).await.unwrap();
        known += 1;
    }
    // Another store than the disk remembers: its revisions begin anew.
    let tick = keys::tick_key();
    let ticks = keys::number(&store.get(&tick).await.unwrap().unwrap()).unwrap() + 1;
    let accept =
        [Op::put(tick, ticks.to_string()), Op::put(keys::restored::accepted_key(), ticks.to_string())];
    store.txn(Txn { then: accept.to_vec(), ..Txn::default() }).await.unwrap();
    assert!(known > 10);
    let cluster = open(&fixture(), url).await;
    check(&cluster.client()).await;
}

/// Whoever needs a fixture of the next version makes it like this.
#[tokio::test(flavor = "multi_thread")]
async fn todays_programs_write_what_they_read() {
    let scratch = Scratch::new("formats").unwrap();
    make(scratch.path()).await;
    if let Some(keep) = std::env::var_os("CAIRN_FIXTURE") {
        copy_folder(scratch.path(), Path::new(&keep)).unwrap();
    }
    let url = format!("embedded://{}/metadata", scratch.path().display());
    let cluster = open(scratch.path(), url).await;
    check(&cluster.client()).await;
}
