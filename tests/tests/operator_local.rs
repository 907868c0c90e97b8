//! `cairn-operator local` as people run it: a process, manifests, a folder.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cairn_client::{
    Client, DownloadOptions, ErrorCode, NodeState, StatusResponse, UploadOptions, config::ConfigFile,
};
use cairn_tests::{
    ports,
    process::{Output, Process, Spec, poll, run},
    programs,
    scratch::Scratch,
};
use serde_json::Value;

/// Starts are fast; the machine may be busy.
const READY_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const SETTLE_LIMIT: Duration = Duration::from_secs(180);

const CLUSTER: &str = "\
apiVersion: cairn.storage/v1alpha1
kind: StorageCluster
metadata: {name: desk}
spec:
  pools:
  - name: main
    zones: [{name: a}, {name: b}, {name: c}]
    storage: {size: 2Gi}
";

const VOLUME: &str = "\
apiVersion: cairn.storage/v1alpha1
kind: Volume
metadata: {name: files}
spec: {clusterRef: {name: desk}, copies: 3}
";

/// A folder for manifests, data and logs of one test, and ports: nodes that are down must find theirs again, while other
/// tests' clusters look for some.
struct Place {
    folder: Scratch,
    base_port: u16,
}

/// Ports of one cluster, at most.
const PORTS: u16 = 32;

impl Place {
    fn new() -> Self {
        Self { folder: Scratch::new("local").unwrap(), base_port: ports::row(PORTS) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn spec(&self, manifests: &[&Path]) -> Spec {
        let mut spec = Spec::new("cairn-operator", programs::built("cairn-operator")).arg("local");
        for manifest in manifests {
            spec = spec.arg("-f").arg(manifest);
        }
        spec.arg("--data-dir").arg(self.path("data")).args(["--base-port", &self.base_port.to_string()])
    }

    /// Starts the cluster and waits until it is ready.
    fn start(&self, manifests: &[&Path]) -> Running {
        self.start_with(manifests, &[])
    }

    fn start_with(&self, manifests: &[&Path], options: &[&str]) -> Running {
        self.start_as(self.spec(manifests).args(options))
    }

    fn start_as(&self, spec: Spec) -> Running {
        let (ready, log) = (self.path("ready.json"), self.path("log"));
        let process = spec.arg("--ready-file").arg(&ready).log(&log).spawn().unwrap();
        poll(READY_LIMIT, Duration::from_millis(50), || {
            (ready.exists() || process.exited().is_some()).then_some(())
        });
        assert!(ready.exists(), "the cluster is not ready:\n{}", process.log_tail(40));
        let guide = serde_json::from_slice(&std::fs::read(ready).unwrap()).unwrap();
        Running { process, guide }
    }

    /// Starts what must not start; its exit code and what it said.
    fn refused(&self, manifests: &[&Path]) -> (i32, String) {
        let Output { code, stdout, stderr, .. } = run(self.spec(manifests), None, STOP_LIMIT).unwrap();
        (code.unwrap_or_else(|| panic!("no exit code: {stdout}\n{stderr}")), stderr)
    }
}

struct Running {
    process: Process,
    guide: Value,
}

impl Running {
    /// As `cairn` does: by the file of contexts.
    fn client(&self) -> Client {
        let path = PathBuf::from(self.guide["contexts"].as_str().unwrap());
        let file = ConfigFile::read(&path).unwrap();
        let context = file.context(None, &path).unwrap().expect("there is a current context");
        Client::connect(context.client_config(path.parent().unwrap()).unwrap()).unwrap()
    }

    fn node_names(&self) -> Vec<String> {
        let nodes = self.guide["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    }

    fn stop(self) {
        let status = self.process.terminate(STOP_LIMIT);
        assert_eq!(status.code(), Some(0), "{}", self.process.log_tail(40));
    }
}

/// Content that differs from place to place.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
}

async fn put(client: &Client, path: &str, length: usize) {
    let uploaded = client.upload_bytes("files", path, UploadOptions::default(), content(length).into()).await;
    let info = uploaded.unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(info.size_bytes, length as u64);
}

async fn check(client: &Client, path: &str, length: usize) {
    let download = client.download("files", path, DownloadOptions::default()).await;
    let bytes = download.unwrap_or_else(|error| panic!("{path}: {error}")).bytes(64 << 20).await.unwrap();
    assert!(bytes[..] == content(length)[..], "{path} differs");
}

async fn wait_settled(client: &Client) {
    let begun = Instant::now();
    loop {
        let status = client.status().await.unwrap();
        let live = status.nodes.iter().all(|node| node.state() == NodeState::NodeLive);
        if live && status.settled == status.placement_groups {
            return;
        }
        assert!(begun.elapsed() < SETTLE_LIMIT, "not settled: {status:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

const SIZES: [(&str, usize); 5] = [
    ("empty", 0),
    ("one", 1),
    ("frames/+1", 65_537),
    ("ümläut und Leerzeichen", 4 << 20),
    ("chunks", (9 << 20) + 3),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_runs_stops_in_order_and_has_its_files_after_a_restart() {
    let place = Place::new();
    let example = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/laptop.yaml"));
    let running = place.start(&[&example]);
    let names = ["demo-main-a-0", "demo-main-a-1", "demo-main-b-0", "demo-main-c-0"];
    assert_eq!(running.node_names(), names, "named as Kubernetes names pods");
    let client = running.client();
    assert_eq!(
        client.volumes().await.unwrap().iter().map(|v| (v.name.as_str(), v.copies)).collect::<Vec<_>>(),
        [("files", 3)]
    );
    for (path, length) in SIZES {
        put(&client, path, length).await;
        check(&client, path, length).await;
    }
    let (code, error) = place.refused(&[&example]);
    assert_eq!(code, 1);
    assert!(error.contains("in use by another process"), "{error}");

    let secrets = place.path("data/secrets");
    for name in ["ca.key", "node.key", "operator.key", "client.token", "kek"] {
        let mode = std::fs::metadata(secrets.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let kek = std::fs::read(secrets.join("kek")).unwrap();
    let before = running.guide.clone();
    running.stop();
    assert!(!place.path("ready.json").exists(), "what is not ready does not say so");

    let running = place.start(&[&example]);
    assert_eq!(running.guide, before, "the same ports, files and names");
    assert_eq!(std::fs::read(secrets.join("kek")).unwrap(), kek);
    let client = running.client();
    for (path, length) in SIZES {
        check(&client, path, length).await;
    }
    running.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_dropped_and_comes_back() {
    let place = Place::new();
    let (cluster, volume) = (place.write("cluster.yaml", CLUSTER), place.write("volume.yaml", VOLUME));
    let running = place.start(&[&cluster, &volume]);
    let client = running.client();
    put(&client, "before", 5 << 20).await;

    let error = client.stop_node("desk-main-x-9").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NodeNotFound, "{error}");
    assert!(error.to_string().contains("desk-main-a-0"), "{error}");
    client.stop_node("desk-main-b-0").await.unwrap();
    client.stop_node("desk-main-b-0").await.unwrap();
    check(&client, "before", 5 << 20).await;
    put(&client, "while it is away", 5 << 20).await;

    assert!(client.start_node("desk-main-b-0").await.unwrap(), "it was stopped");
    assert!(!client.start_node("desk-main-b-0").await.unwrap(), "it runs already");
    wait_settled(&client).await;
    // What was written while it was away is there without the others' help now.
    client.stop_node("desk-main-a-0").await.unwrap();
    check(&client, "while it is away", 5 << 20).await;
    running.stop();
}

/// As with `cairn-operator local … 2>&1 | head`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_any_more_changes_nothing() {
    let place = Place::new();
    let (cluster, volume) = (place.write("cluster.yaml", CLUSTER), place.write("volume.yaml", VOLUME));
    let running = place.start_as(place.spec(&[&cluster, &volume]).unread());
    let client = running.client();
    put(&client, "before", 1 << 20).await;
    client.stop_node("desk-main-b-0").await.unwrap();
    assert!(client.start_node("desk-main-b-0").await.unwrap(), "it was stopped");
    wait_settled(&client).await;
    check(&client, "before", 1 << 20).await;
    running.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_lets_in_only_whom_the_nodes_let_in() {
    let place = Place::new();
    let cluster = place.write("cluster.yaml", &format!("{CLUSTER}---\n{VOLUME}"));
    let running = place.start(&[&cluster]);
    let path = PathBuf::from(running.guide["contexts"].as_str().unwrap());
    let file = ConfigFile::read(&path).unwrap();
    let context = file.context(None, &path).unwrap().unwrap();
    let config = context.client_config(path.parent().unwrap()).unwrap();
    for (credentials, code) in [
        (cairn_client::Credentials::None, ErrorCode::Unauthenticated),
        (cairn_client::Credentials::Token("cairn_wrong".into()), ErrorCode::Unauthenticated),
    ] {
        let client = Client::connect(config.clone().with_credentials(credentials)).unwrap();
        assert_eq!(client.stop_node("desk-main-a-0").await.unwrap_err().code(), code);
    }
    // A client of the nodes that knows no supervisor is told who could help.
    let config = cairn_client::ClientConfig { supervisor: None, ..config };
    let error = Client::connect(config).unwrap().stop_node("desk-main-a-0").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unsupported, "{error}");
    let status = running.client().status().await.unwrap();
    assert!(status.nodes.iter().all(|node| node.state() == NodeState::NodeLive), "none was stopped");
    running.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_with_the_whole_process() {
    let place = Place::new();
    let cluster = place.write("cluster.yaml", &format!("{CLUSTER}---\n{VOLUME}"));
    let running = place.start(&[&cluster]);
    let client = running.client();
    for index in 0..20 {
        put(&client, &format!("file-{index}"), 100_000 + index).await;
    }
    running.process.kill();
    let running = place.start(&[&cluster]);
    let client = running.client();
    for index in 0..20 {
        check(&client, &format!("file-{index}"), 100_000 + index).await;
    }
    running.stop();
}

#[test]
fn manifests_that_cannot_be_are_refused_with_what_to_do() {
    let cases: [(&str, &str, &str, &str); 9] = [
        ("storage:", "storag:", "", "storag"),
        ("zones:", "zonez:", "", "zonez"),
        ("2Gi", "2Mi", "", "at least 1Gi"),
        (
            "metadata: {name: desk}",
            "metadata: {name: shelf}",
            "",
            "is for cluster desk, and the manifests have cluster shelf",
        ),
        ("{name: c}", "{name: a}", "", "twice"),
        ("", "", "copies: 4", "lower spec.copies to 3"),
        ("", "", "copies: 9", "copies"),
        (
            "apiVersion: cairn.storage/v1alpha1",
            "apiVersion: v1",
            "",
            "known here are StorageCluster and Volume",
        ),
        ("kind: StorageCluster", "kind: [", "", "not YAML"),
    ];
    for (from, to, copies, words) in cases {
        let place = Place::new();
        let cluster = if from.is_empty() { CLUSTER.to_owned() } else { CLUSTER.replacen(from, to, 1) };
        let volume = if copies.is_empty() { VOLUME.to_owned() } else { VOLUME.replace("copies: 3", copies) };
        let (cluster, volume) = (place.write("cluster.yaml", &cluster), place.write("volume.yaml", &volume));
        let (code, error) = place.refused(&[&cluster, &volume]);
        assert_eq!(code, 3, "{error}");
        assert!(error.contains(words), "{words}: {error}");
        assert!(!place.path("data").join("installed.json").exists(), "nothing was installed");
    }
    let place = Place::new();
    let (code, error) = place.refused(&[&place.write("cluster.yaml", &CLUSTER.replace("desk", "Desk"))]);
    assert_eq!(code, 3);
    assert!(error.contains("lowercase letters"), "{error}");
    let (code, error) = place.refused(&[&place.path("absent.yaml")]);
    assert_eq!(code, 3);
    assert!(error.contains("absent.yaml"), "{error}");
}

#[test]
fn a_changed_pool_or_volume_is_refused_and_what_is_installed_stays() {
    let place = Place::new();
    let both = format!("{CLUSTER}---\n{VOLUME}");
    let manifest = place.write("all.yaml", &both);
    place.start(&[&manifest]).stop();
    for (from, to, words) in [
        ("{name: b}, {name: c}", "{name: b}", "shrinking is not supported yet"),
        (
            "{name: b}, {name: c}",
            "{name: b}, {name: c}, {name: d}",
            "changing a pool's nodes is not supported yet",
        ),
        (
            "{name: b}, {name: c}",
            "{name: b}, {name: c, nodes: 2}",
            "changing a pool's nodes is not supported yet",
        ),
        ("size: 2Gi", "size: 3Gi", "changing disks is not supported yet"),
        ("copies: 3", "copies: 2", "copies"),
    ] {
        let manifest = place.write("changed.yaml", &both.replace(from, to));
        let (code, error) = place.refused(&[&manifest]);
        assert_eq!(code, 3, "{error}");
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains("coordinator"), "nothing was started for this: {error}");
    }
    let other = place.write("other.yaml", &both.replace("desk", "shelf"));
    let (code, error) = place.refused(&[&other]);
    assert_eq!(code, 1);
    assert!(error.contains("holds cluster desk"), "{error}");
    // Without its Volume's manifest, the volume stays.
    let cluster = place.write("cluster.yaml", CLUSTER);
    let running = place.start(&[&cluster]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let volumes = runtime.block_on(running.client().volumes()).unwrap();
    assert_eq!(volumes.len(), 1, "manifests never delete");
    running.stop();
}

/// A new key would look like a fresh start, and nothing could be read ever again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_key_is_not_made_anew_and_a_wrong_one_is_named() {
    let place = Place::new();
    let (cluster, volume) = (place.write("cluster.yaml", CLUSTER), place.write("volume.yaml", VOLUME));
    let manifests = [&*cluster, &*volume];
    let running = place.start(&manifests);
    put(&running.client(), "kept", 100_000).await;
    running.stop();
    let kek = place.path("data").join("secrets/kek");
    let right = std::fs::read(&kek).unwrap();
    std::fs::remove_file(&kek).unwrap();
    let (code, said) = place.refused(&manifests);
    assert!(code != 0 && said.contains("kek is gone"), "{code}: {said}");
    assert!(!kek.exists(), "a new key was made");
    // What the nodes hold is as lost without the key as what the metadata says.
    let (metadata, away) = (place.path("data/metadata"), place.path("away"));
    std::fs::rename(&metadata, &away).unwrap();
    let (code, said) = place.refused(&manifests);
    assert!(code != 0 && said.contains("kek is gone"), "{code}: {said}");
    assert!(!kek.exists() && !metadata.exists(), "something was made for full disks");
    std::fs::rename(&away, &metadata).unwrap();
    std::fs::write(&kek, "garbage").unwrap();
    let (code, said) = place.refused(&manifests);
    assert!(code != 0 && said.contains("restore it from a backup"), "{code}: {said}");
    assert!(!said.contains("openssl") && !said.contains("delete it"), "another key is no help: {said}");
    std::fs::write(&kek, blake3::hash(b"another key").as_bytes()).unwrap();
    for _ in 0..5 {
        let (code, said) = place.refused(&manifests);
        assert!(
            code != 0 && said.contains("give it that KEK file") && !said.contains("panicked"),
            "{code}: {said}"
        );
    }
    std::fs::write(&kek, right).unwrap();
    let running = place.start(&manifests);
    check(&running.client(), "kept", 100_000).await;
    running.stop();
}

/// A disk that is not mounted leaves an empty folder. Filled again into it, the node would take the others' space, and what
/// only that disk has would look lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_its_disk_is_refused_unless_a_new_disk_is_named() {
    let place = Place::new();
    let (cluster, volume) = (place.write("cluster.yaml", CLUSTER), place.write("volume.yaml", VOLUME));
    let manifests = [&*cluster, &*volume];
    let running = place.start(&manifests);
    put(&running.client(), "kept", 100_000).await;
    let (disk, away) = (place.path("data/nodes/desk-main-b-0"), place.path("disk"));
    let unmount = || {
        std::fs::rename(&disk, &away).unwrap();
        std::fs::create_dir(&disk).unwrap();
    };
    // While the cluster runs: the node does not start, the others serve.
    let client = running.client();
    client.stop_node("desk-main-b-0").await.unwrap();
    unmount();
    let said = client.start_node("desk-main-b-0").await.expect_err("its disk is away").to_string();
    assert!(said.contains("had one there: mount it"), "{said}");
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0, "nothing was written into it");
    check(&client, "kept", 100_000).await;
    running.stop();

    // At a start, too. What every new ext4 holds is no disk of a node either, nor is a folder that is not there.
    std::fs::create_dir(disk.join("lost+found")).unwrap();
    let running = place.start(&manifests);
    let client = running.client();
    let said = refusal_of(&client, "desk-main-b-0").await;
    assert!(said.contains("mount it") && said.contains("--new-disk desk-main-b-0"), "{said}");
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 1, "nothing was written into it");
    check(&client, "kept", 100_000).await;
    running.stop();
    std::fs::remove_dir_all(&disk).unwrap();
    let running = place.start(&manifests);
    assert!(refusal_of(&running.client(), "desk-main-b-0").await.contains("mount it"));
    assert!(!disk.exists(), "it was made");
    running.stop();
    // Nor is a mount of all of them, without which there is no cluster.
    let (all, all_away) = (place.path("data/nodes"), place.path("disks"));
    std::fs::rename(&all, &all_away).unwrap();
    std::fs::create_dir(&all).unwrap();
    let (code, said) = place.refused(&manifests);
    assert!(code == 1 && said.contains("mount it"), "{code}: {said}");
    assert_eq!(std::fs::read_dir(&all).unwrap().count(), 0, "nothing was written into it");
    std::fs::remove_dir_all(&all).unwrap();
    std::fs::rename(&all_away, &all).unwrap();
    // Mounted again, it is the same disk.
    std::fs::rename(&away, &disk).unwrap();
    let running = place.start(&manifests);
    check(&running.client(), "kept", 100_000).await;
    running.stop();

    // Replaced on purpose.
    unmount();
    let with = |node: &str| run(place.spec(&manifests).args(["--new-disk", node]), None, STOP_LIMIT).unwrap();
    let wrong = with("desk-main-z-0");
    assert!(wrong.stderr.contains("no such node; there are desk-main-a-0"), "{wrong:?}");
    let running = place.start_with(&manifests, &["--new-disk", "desk-main-b-0"]);
    wait_settled(&running.client()).await;
    check(&running.client(), "kept", 100_000).await;
    // It holds for one disk, not for as long as the process lives.
    let client = running.client();
    client.stop_node("desk-main-b-0").await.unwrap();
    std::fs::rename(&disk, place.path("second")).unwrap();
    let said = client.start_node("desk-main-b-0").await.expect_err("its disk is away").to_string();
    assert!(said.contains("mount it"), "{said}");
    running.stop();
}

/// What `cairn status` says of a node that does not start, once it does. Nodes are seen as down when their lease is over.
async fn refusal_of(client: &Client, node: &str) -> String {
    until(client, "the refusal is told", |status| {
        let node = status.nodes.iter().find(|found| found.name == node)?;
        (!node.refusal.is_empty()).then(|| node.refusal.clone())
    })
    .await
}

async fn until<T>(client: &Client, what: &str, look: impl Fn(&StatusResponse) -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        let status = client.status().await.unwrap();
        if let Some(found) = look(&status) {
            return found;
        }
        assert!(begun.elapsed() < SETTLE_LIMIT, "{what}: not yet: {status:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A byte in the middle of it is another one.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// One damaged block of one disk costs nothing; a disk that cannot be opened costs its node, not the cluster, and only until it
/// is put right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_identity_costs_no_more_than_its_node_until_it_is_put_back() {
    let place = Place::new();
    let manifests = [&*place.write("cluster.yaml", CLUSTER), &*place.write("volume.yaml", VOLUME)];
    let running = place.start(&manifests);
    put(&running.client(), "kept", 100_000).await;
    running.stop();
    let nodes = ["a", "b", "c"].map(|zone| place.path(&format!("data/nodes/desk-main-{zone}-0")));
    let files = |node: &Path| ["identity", "identity.copy"].map(|name| node.join(name));
    // One of the two, of every node.
    nodes.iter().enumerate().for_each(|(index, node)| flip(&files(node)[index % 2]));
    let running = place.start(&manifests);
    wait_settled(&running.client()).await;
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    assert!(
        log.contains("desk-main-b-0/identity.copy") && log.contains("is damaged: written again"),
        "{log}"
    );
    running.stop();

    // Both, of one node.
    let [first, copy] = files(&nodes[1]);
    let sound = std::fs::read(&first).unwrap();
    [&first, &copy].into_iter().for_each(|file| flip(file));
    let running = place.start(&manifests);
    let client = running.client();
    let said = refusal_of(&client, "desk-main-b-0").await;
    assert!(said.contains("identity is damaged") && said.contains("restore one of them"), "{said}");
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    assert!(log.contains("the node does not start") && log.contains("identity is damaged"), "{log}");
    check(&client, "kept", 100_000).await;
    put(&client, "without it", 100_000).await;
    // Put back while the cluster runs.
    std::fs::write(&first, sound).unwrap();
    wait_settled(&client).await;
    let status = client.status().await.unwrap();
    assert!(status.nodes.iter().all(|node| node.refusal.is_empty()), "{status:?}");
    running.stop();

    // Both, of every node: there is no cluster.
    let before: Vec<Vec<u8>> = nodes.iter().map(|node| std::fs::read(&files(node)[0]).unwrap()).collect();
    nodes.iter().for_each(|node| files(node).iter().for_each(|file| flip(file)));
    let (code, said) = place.refused(&manifests);
    assert!(code == 1 && said.contains("identity is damaged"), "{code}: {said}");
    nodes.iter().zip(before).for_each(|(node, sound)| std::fs::write(&files(node)[1], sound).unwrap());
    let running = place.start(&manifests);
    check(&running.client(), "without it", 100_000).await;
    running.stop();
}

/// A new store would be another cluster's, and every disk would be refused as that of a stranger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_metadata_store_is_not_made_anew() {
    let place = Place::new();
    let manifests = [&*place.write("cluster.yaml", CLUSTER), &*place.write("volume.yaml", VOLUME)];
    let running = place.start(&manifests);
    put(&running.client(), "kept", 100_000).await;
    running.stop();
    let (metadata, away) = (place.path("data/metadata"), place.path("away"));
    let words = ["metadata/meta.redb is gone", "docs/restore.md"];
    let refused = || {
        let (code, said) = place.refused(&manifests);
        assert!(code == 1 && words.iter().all(|word| said.contains(word)), "{code}: {said}");
        assert!(!said.contains("another cluster") && !said.contains("belongs to"), "{said}");
    };
    std::fs::rename(&metadata, &away).unwrap();
    refused();
    assert!(!metadata.exists(), "something was made");
    // A folder on which it is not mounted.
    std::fs::create_dir(&metadata).unwrap();
    refused();
    assert_eq!(std::fs::read_dir(&metadata).unwrap().count(), 0, "something was made");
    std::fs::remove_dir(&metadata).unwrap();
    std::fs::rename(&away, &metadata).unwrap();
    // The file alone.
    std::fs::rename(metadata.join("meta.redb"), place.path("meta.redb")).unwrap();
    refused();
    std::fs::rename(place.path("meta.redb"), metadata.join("meta.redb")).unwrap();
    let running = place.start(&manifests);
    check(&running.client(), "kept", 100_000).await;
    running.stop();
}

#[test]
fn a_bad_key_in_a_new_folder_may_be_deleted() {
    let place = Place::new();
    let cluster = place.write("cluster.yaml", CLUSTER);
    let secrets = place.path("data/secrets");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(place.path("data/supervisor.lock"), "").unwrap();
    std::fs::write(secrets.join("kek"), "garbage").unwrap();
    let (code, said) = place.refused(&[&cluster]);
    assert!(code != 0 && said.contains("delete it, and a new one is made"), "{code}: {said}");
    assert!(!said.contains("backup"), "there is nothing to restore: {said}");
    std::fs::remove_file(secrets.join("kek")).unwrap();
    place.start(&[&cluster]).stop();
}

/// Not by a panic: the reason, the file, and what to do. Nothing of it is changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_metadata_file_is_refused_in_words() {
    let place = Place::new();
    let manifests = [&*place.write("cluster.yaml", CLUSTER), &*place.write("volume.yaml", VOLUME)];
    let running = place.start(&manifests);
    put(&running.client(), "kept", 100_000).await;
    running.stop();
    let path = place.path("data/metadata/meta.redb");
    let sound = std::fs::read(&path).unwrap();
    // Only where the file is named, so that all the rest is found in order: what kind of page it is, and what is in it.
    for place_in_page in [0, 40] {
        let mut damaged = sound.clone();
        let pages = damaged.chunks_mut(4096).filter(|page| page.windows(4).any(|name| name == b"kept"));
        pages.for_each(|page| page[place_in_page] ^= 8);
        assert_ne!(damaged, sound);
        std::fs::write(&path, damaged).unwrap();
        let (code, said) = place.refused(&manifests);
        let words = ["meta.redb is damaged", "restore the folder from a backup"];
        assert!(words.iter().all(|word| said.contains(word)) && !said.contains("panicked"), "{said}");
        assert_eq!(code, 1, "{said}");
    }
    std::fs::write(&path, sound).unwrap();
    let running = place.start(&manifests);
    check(&running.client(), "kept", 100_000).await;
    running.stop();
}
