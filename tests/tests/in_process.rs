//! Whole nodes in this process, over real TLS, sharing one embedded metadata store: what local mode runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cairn_client::{
    Client, ClientConfig, Condition, CreateVolume, DownloadOptions, ErrorCode, Pem, StatOptions,
    StatusResponse, UploadOptions,
};
use cairn_node::{
    api,
    chunks::{Kek, Scope, Tombstone},
    cluster::NodeInfo,
    env::{
        Env, Listener, Protocol,
        real::{RealClock, RealDisk, RealRandom, RealThreads},
    },
    files::{self, FileError, FilePath, UploadSpec, VolumeName},
    meta::{Op, SharedMeta, Txn, embedded::EmbeddedStore, keys},
    node::{Budgets, NodeOptions, RunningNode, ServeOptions, Timings, serve},
    replication::peers::{PeerError, Peers},
    secrets::{self, SecretFiles},
    tls::{TlsFiles, TlsNetwork, TlsOptions},
};
use cairn_placement::{ChunkId, Generation, Incarnation, NodeId, PgId, VolumeId};
use cairn_proto::v1::InventoryEntry;
use cairn_tests::etcd::disk_folder;
use futures::StreamExt;
use tempfile::TempDir;

fn env(secrets: &SecretFiles) -> Env {
    let clock = Arc::new(RealClock::default());
    let files = TlsFiles {
        certificate: secrets.node_certificate.clone(),
        key: secrets.node_key.clone(),
        authority: secrets.authority_certificate.clone(),
    };
    let network = TlsNetwork::open(files, TlsOptions::default(), clock.clone()).expect("certificates");
    Env {
        clock,
        random: Arc::new(RealRandom),
        disk: Arc::new(RealDisk),
        network: Arc::new(network),
        threads: Arc::new(RealThreads),
    }
}

/// What the nodes of one cluster share.
struct Site {
    folder: TempDir,
    secrets: SecretFiles,
    env: Env,
    meta: SharedMeta,
    timings: Timings,
}

impl Site {
    async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("nodes-").tempdir_in(disk_folder().unwrap()).unwrap();
        let secrets = folder.path().join("s");
        let made = secrets::init(&secrets, "test", &[], &RealClock::default(), &RealRandom).unwrap();
        let secrets = made.files;
        let env = env(&secrets);
        let meta = EmbeddedStore::open(env.clone(), &folder.path().join("meta")).await.unwrap();
        let timings = Timings { repair: Duration::from_millis(500), ..Timings::default() };
        Self { folder, secrets, env, meta: Arc::new(meta), timings }
    }

    /// Listeners of a node to be; which address it says it has is another matter.
    async fn listen(&self) -> (Arc<dyn Listener>, Arc<dyn Listener>) {
        let listen = async |protocol| self.env.network.listen("127.0.0.1:0", protocol).await.unwrap();
        (listen(Protocol::Grpc).await, listen(Protocol::Http).await)
    }

    async fn start(
        &self,
        index: usize,
        nodes: usize,
        (grpc, http): (Arc<dyn Listener>, Arc<dyn Listener>),
        advertise: String,
    ) -> RunningNode {
        let kek = std::fs::read(&self.secrets.kek).unwrap();
        let options = NodeOptions {
            cluster: "test".into(),
            name: format!("n{index}"),
            zone: ["a", "b", "c", "a"][index].into(),
            folder: self.folder.path().join(format!("n{index}")),
            new_disk: false,
            advertise,
            // Of its own: the reserve (R16) does not depend on how full the machine's disk is.
            capacity_bytes: Some(4 << 30),
            kek: Arc::new(Kek::parse(&kek).unwrap()),
            expected_nodes: nodes,
            timings: self.timings.clone(),
            budgets: Budgets::default(),
        };
        let limits = api::Limits::default();
        let tokens = self.secrets.tokens.clone();
        let serving = ServeOptions { grpc, http, tokens, limits };
        serve(self.env.clone(), options, self.meta.clone(), serving).await.expect("a node starts")
    }

    /// As other nodes know it.
    async fn info(&self, name: &str) -> NodeInfo {
        let read = async |key: Bytes| self.meta.get(&key).await.unwrap().expect("it is registered");
        let node: keys::node::NodeRecord = keys::from_json(&read(keys::node::key(name)).await).unwrap();
        let live: keys::node::LiveRecord = keys::from_json(&read(keys::node::live_key(name)).await).unwrap();
        NodeInfo {
            id: NodeId(node.id),
            name: name.into(),
            zone: node.zone,
            incarnation: Incarnation(node.incarnation),
            capacity_bytes: node.capacity_bytes,
            registered: 0,
            address: Some(live.address),
            version: live.version,
            file_format: node.file_format,
        }
    }

    async fn write(&self, op: Op) {
        self.meta.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    }

    /// Four nodes in three zones, with their map.
    async fn four_nodes(&self) -> (Vec<RunningNode>, Client) {
        let mut nodes = Vec::new();
        for index in 0..4 {
            let listeners = self.listen().await;
            let address = listeners.0.address();
            nodes.push(self.start(index, 4, listeners, address).await);
        }
        let client = self.client(&nodes);
        until(&client, |status| status.map_generation > 0).await;
        (nodes, client)
    }

    fn client(&self, nodes: &[RunningNode]) -> Client {
        let token = std::fs::read_to_string(&self.secrets.client_token).unwrap();
        let endpoints: Vec<_> = nodes.iter().map(|node| node.grpc_address().to_owned()).collect();
        let config = ClientConfig::new(endpoints, Pem::File(self.secrets.authority_certificate.clone()));
        Client::connect(config.with_token(token.trim())).unwrap()
    }
}

async fn until(client: &Client, reached: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
    let mut last = String::new();
    for _ in 0..300 {
        match client.status().await {
            Ok(status) if reached(&status) => return status,
            other => last = format!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within 30 s: {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_keep_files() {
    let site = Site::new().await;
    let (nodes, client) = site.four_nodes().await;
    let volume = CreateVolume { name: "files".into(), copies: Some(3), chunk_size_bytes: None };
    client.create_volume(volume).await.expect("a volume");
    for size in [0usize, 1, 70_000, 9_000_000] {
        let bytes = Bytes::from(vec![size as u8; size]);
        let path = format!("a/{size}");
        client
            .upload_bytes("files", &path, UploadOptions::default(), bytes.clone())
            .await
            .expect("an upload");
        let download = client.download("files", &path, DownloadOptions::default()).await.expect("a download");
        assert!(download.bytes(1 << 30).await.expect("the content") == bytes);
    }
    until(&client, |status| status.settled == status.placement_groups).await;
    for node in nodes {
        node.stop(Duration::from_secs(5)).await;
    }
}

/// The reader has begun; what it reads goes, and its chunks are buried before it has come to them, as may happen when its node
/// could not keep them because the metadata store was away.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_goes_while_it_is_read_is_not_called_damaged() {
    let site = Site::new().await;
    let listeners = site.listen().await;
    let address = listeners.0.address();
    let nodes = [site.start(0, 1, listeners, address).await];
    let client = site.client(&nodes);
    until(&client, |status| status.map_generation > 0).await;
    let volume = CreateVolume { name: "files".into(), copies: Some(1), chunk_size_bytes: None };
    client.create_volume(volume).await.expect("a volume");
    let large = Bytes::from(vec![7; 96 << 20]);
    let small = Bytes::from_static(b"another file");
    for replaced in [false, true] {
        client
            .upload_bytes("files", "film", UploadOptions::default(), large.clone())
            .await
            .expect("an upload");
        let mut reading = client.download("files", "film", DownloadOptions::default()).await.unwrap();
        let etag = client.stat("files", "film").await.expect("it is there").etag;
        reading.next_piece().await.expect("the first piece").expect("content");
        let left = match replaced {
            true => {
                let uploaded =
                    client.upload_bytes("files", "film", UploadOptions::default(), small.clone()).await;
                uploaded.expect("an upload");
                1
            }
            false => {
                client.delete("files", "film", Condition::Always).await.expect("it is deleted");
                0
            }
        };
        let generation = etag.parse().expect("an etag is a generation");
        let buried = (0..24).map(|index| Tombstone {
            id: ChunkId { generation, index },
            volume: VolumeId(1),
            copies: 1,
            tick: 1,
        });
        let (peers, n0) = (Peers::new(site.env.clone()), site.info("n0").await);
        peers
            .bury(&n0, &buried.collect::<Vec<_>>(), Duration::from_secs(10))
            .await
            .expect("a node takes tombstones");
        until(&client, |status| status.nodes[0].chunks == left).await;
        let error = loop {
            match reading.next_piece().await {
                Ok(piece) => assert!(piece.is_some(), "it ended as if it were whole"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), ErrorCode::PreconditionFailed, "{error}");
        assert!(error.to_string().contains("while it was downloaded"), "{error}");
    }
    for node in nodes {
        node.stop(Duration::from_secs(5)).await;
    }
}

/// As the operator's planner refuses it, also where no operator is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_with_more_copies_than_zones_is_refused() {
    let site = Site::new().await;
    let (nodes, client) = site.four_nodes().await;
    let volume = |name: &str, copies| CreateVolume { name: name.into(), copies, chunk_size_bytes: None };
    let error = client.create_volume(volume("four", Some(4))).await.expect_err("four nodes, three zones");
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    assert!(error.to_string().contains("4 copies need 4 zones, and this cluster has 3"), "{error}");
    let (made, _) = client.create_volume(volume("usual", None)).await.expect("the default has room");
    assert_eq!(made.copies, 3);
    for node in nodes {
        node.stop(Duration::from_secs(5)).await;
    }
}

/// Two nodes that go by each other's address, as after a restart in which pods swapped theirs: nothing is stored on the
/// wrong disk, and nobody takes the one's inventory for the other's.
#[tokio::test(flavor = "multi_thread")]
async fn swapped_addresses_are_noticed() {
    let site = Site::new().await;
    let listeners = [site.listen().await, site.listen().await, site.listen().await];
    let address = |index: usize| listeners[index].0.address();
    let says = [address(0), address(2), address(1)];
    let mut nodes = Vec::new();
    for (index, (listeners, says)) in listeners.into_iter().zip(says).enumerate() {
        nodes.push(site.start(index, 3, listeners, says).await);
    }
    let client = site.client(&nodes[..1]);
    until(&client, |status| status.map_generation > 0).await;
    let volume = CreateVolume { name: "files".into(), copies: Some(3), chunk_size_bytes: None };
    client.create_volume(volume).await.expect("a volume");
    let upload =
        client.upload_bytes("files", "a", UploadOptions::default(), Bytes::from_static(b"abc")).await;
    let error = upload.expect_err("no other disk has it");
    assert_eq!(error.code(), ErrorCode::NotEnoughNodes, "{error}");
    assert!(error.to_string().contains("1 of 2 nodes"), "this node has it, whoever answered first: {error}");
    // Several passes of repair: both others are there, and agree with nobody.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = client.status().await.unwrap();
    assert_eq!((status.settled, status.nodes.len()), (0, 3), "{status:?}");
    for node in nodes {
        node.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_another_disk_are_refused() {
    let site = Site::new().await;
    let listeners = site.listen().await;
    let address = listeners.0.address();
    let node = site.start(0, 1, listeners, address.clone()).await;
    let peers = Peers::new(site.env.clone());
    let other = NodeInfo {
        id: NodeId(1),
        name: "n0".into(),
        zone: "a".into(),
        incarnation: Incarnation([9; 16]),
        capacity_bytes: 0,
        registered: 0,
        address: Some(address),
        version: String::new(),
        file_format: keys::file::NEWEST,
    };
    let limit = Duration::from_secs(5);
    let id = ChunkId { generation: Generation([1; 16]), index: 0 };
    let answers: [(&str, Option<PeerError>); 5] = [
        ("get", peers.get_chunk(&other, id, 0..1, limit).await.err()),
        ("summarize", peers.summarize(&other, 4, &[PgId(0)], Scope::ALL, limit).await.err()),
        ("inventory", peers.inventory(&other, 4, PgId(0), Scope::ALL, 10, limit).await.err()),
        ("bury", peers.bury(&other, &[], limit).await.err()),
        ("settled", peers.settled(&other, 4, limit).await.err()),
    ];
    for (call, error) in answers {
        let error = error.unwrap_or_else(|| panic!("{call} was answered"));
        assert!(error.is_unreachable() && error.cause.contains("another disk"), "{call}: {error:?}");
    }
    node.stop(Duration::from_secs(5)).await;
}

/// R10, at the nodes themselves: whoever asks, and whatever others have deleted.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_metadata_store_is_in_doubt_no_node_takes_a_tombstone() {
    const LIMIT: Duration = Duration::from_secs(5);
    let site = Site::new().await;
    let start = async |index| {
        let listeners = site.listen().await;
        let address = listeners.0.address();
        site.start(index, 3, listeners, address).await
    };
    let mut nodes = vec![start(0).await, start(1).await, start(2).await];
    let client = site.client(&nodes[..2]);
    let status = until(&client, |status| status.map_generation > 0).await;
    let pg_bits = status.placement_groups.ilog2() as u8;
    let volume = CreateVolume { name: "files".into(), copies: Some(3), chunk_size_bytes: None };
    client.create_volume(volume).await.expect("a volume");

    // What n2 misses: a chunk, and the deletion of another one of the same group, of which only n0 knows.
    nodes.remove(2).stop(LIMIT).await;
    let stored =
        client.upload_bytes("files", "a", UploadOptions::default(), Bytes::from_static(b"abc")).await;
    stored.expect("two of three have it");
    let look = StatOptions { chunks: true, ..StatOptions::default() };
    let stat = client.stat_with("files", "a", look).await.unwrap();
    let pg = PgId(stat.chunks[0].placement_group);
    let ids = (1u128..).map(|n| ChunkId { generation: Generation(n.to_be_bytes()), index: 0 });
    let in_group = ids.filter(|id| id.pg(pg_bits) == pg);
    let mut others = in_group.map(|id| [Tombstone { id, volume: VolumeId(1), copies: 3, tick: 5 }]);
    let (peers, n0) = (Peers::new(site.env.clone()), site.info("n0").await);
    peers.bury(&n0, &others.next().expect("ids never end"), LIMIT).await.expect("nothing is in doubt yet");

    let seen = keys::restored::RestoredRecord { tick: 5, revision: 1, map_generation: 1, epoch: 1 };
    site.write(Op::put(keys::restored::key("n9"), keys::to_json(&seen))).await;
    until(&client, |status| status.metadata_restored).await;
    let refused = peers.bury(&n0, &others.next().expect("ids never end"), LIMIT).await;
    let refused = refused.expect_err("the store may be an older copy of itself");
    assert!(refused.cause.contains("nothing is deleted"), "{refused:?}");

    nodes.push(start(2).await);
    until(&client, |status| status.nodes.iter().all(|node| !node.address.is_empty())).await;
    let n2 = site.info("n2").await;
    let holds = async |what: &str, wanted: &dyn Fn(&InventoryEntry) -> bool| {
        let mut entries = Vec::new();
        for _ in 0..300 {
            entries = peers.inventory(&n2, pg_bits, pg, Scope::ALL, 100, LIMIT).await.expect("n2 answers");
            if entries.iter().any(wanted) {
                return entries;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no {what} within 30 s: {entries:?}")
    };
    // Deletions of a group are taken before its chunks.
    let entries = holds("chunk", &|entry| !entry.tombstone).await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    site.write(Op::put(keys::restored::accepted_key(), "1000")).await;
    holds("tombstone", &|entry| entry.tombstone).await;
    for node in nodes {
        node.stop(LIMIT).await;
    }
}

/// What the nodes' disks have of chunks that are not deleted.
fn chunks_on_disks(nodes: &[RunningNode]) -> usize {
    let held = |node: &RunningNode| node.node().store.inventory(0, PgId(0), Scope::ALL, None, usize::MAX);
    nodes.iter().flat_map(held).filter(|line| line.buried.is_none()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn content_of_another_size_than_declared_is_refused_and_leaves_nothing() {
    const LENGTH: u64 = 9_000_000;
    let site = Site::new().await;
    let (nodes, client) = site.four_nodes().await;
    let volume = CreateVolume { name: "files".into(), copies: Some(3), chunk_size_bytes: None };
    client.create_volume(volume).await.expect("a volume");
    client.upload_bytes("files", "a", UploadOptions::default(), Bytes::from_static(b"old")).await.unwrap();
    let before = 3;
    for declared in [0, 1, 4 << 20, LENGTH - 1, LENGTH + 1, 5 * LENGTH] {
        let spec = UploadSpec {
            volume: VolumeName::parse("files").unwrap(),
            path: FilePath::parse("a").unwrap(),
            size_bytes: Some(declared),
            blake3: None,
            condition: files::Condition::Always,
            content_type: String::new(),
        };
        let pieces = (0..9).map(|n| Ok(Bytes::from(vec![n; 1_000_000])));
        let refused = nodes[0].files().upload(spec, futures::stream::iter(pieces).boxed()).await;
        let Err(FileError::SizeMismatch { declared: told, received }) = refused else {
            panic!("{declared}: {refused:?}")
        };
        assert!(told == declared && received > 0 && received <= LENGTH, "{declared}: {told} {received}");
        let download = client.download("files", "a", DownloadOptions::default()).await.unwrap();
        assert_eq!(download.bytes(100).await.unwrap(), "old", "{declared}");
        let begun = Instant::now();
        while chunks_on_disks(&nodes) != before {
            assert!(begun.elapsed() < Duration::from_secs(30), "{declared}: {}", chunks_on_disks(&nodes));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for node in nodes {
        node.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_at_once_one_creates_and_the_later_one_replaces() {
    let site = Site::new().await;
    let (nodes, client) = site.four_nodes().await;
    let volume = CreateVolume { name: "files".into(), copies: Some(3), chunk_size_bytes: None };
    client.create_volume(volume).await.expect("a volume");
    let other = site.client(&nodes[2..3]);
    for round in 0..10 {
        let path = format!("f{round}");
        let put = async |client: &Client, condition, byte: u8| {
            let options = UploadOptions { condition, ..UploadOptions::default() };
            client.upload_bytes("files", &path, options, Bytes::from(vec![byte; 100_000])).await
        };
        let read = async || {
            let download = client.download("files", &path, DownloadOptions::default()).await.unwrap();
            download.bytes(1 << 20).await.unwrap()[0]
        };
        let both = tokio::join!(put(&client, Condition::IfAbsent, 1), put(&other, Condition::IfAbsent, 2));
        let winner = match both {
            (Ok(_), Err(refused)) if refused.code() == ErrorCode::PreconditionFailed => 1,
            (Err(refused), Ok(_)) if refused.code() == ErrorCode::PreconditionFailed => 2,
            both => panic!("{both:?}"),
        };
        assert_eq!(read().await, winner);
        let both = tokio::join!(put(&client, Condition::Always, 3), put(&other, Condition::Always, 4));
        let (Ok(three), Ok(four)) = both else { panic!("{both:?}") };
        let etag = client.stat("files", &path).await.unwrap().etag;
        assert!(etag == three.etag || etag == four.etag, "one of them is the later one");
        assert_eq!(read().await, if etag == three.etag { 3 } else { 4 });
        put(&client, Condition::Always, 5).await.unwrap();
        put(&other, Condition::Always, 6).await.unwrap();
        assert_eq!(read().await, 6, "the later commit is read");
    }
    for node in nodes {
        node.stop(Duration::from_secs(5)).await;
    }
}
