//! Four whole nodes in this process, over real TLS, sharing one embedded metadata store: what local mode runs.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_client::{Client, ClientConfig, CreateVolume, DownloadOptions, Pem, UploadOptions};
use cairn_node::{
    api,
    chunks::Kek,
    env::{
        Env, Protocol,
        real::{RealClock, RealDisk, RealRandom, RealThreads},
    },
    meta::{SharedMeta, embedded::EmbeddedStore},
    node::{Budgets, NodeOptions, RunningNode, ServeOptions, Timings, serve},
    secrets::{self, SecretFiles},
    tls::{TlsFiles, TlsNetwork, TlsOptions},
};
use cairn_tests::etcd::disk_folder;

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

async fn start(
    env: &Env,
    secrets: &SecretFiles,
    meta: &SharedMeta,
    folder: &Path,
    index: usize,
) -> RunningNode {
    let grpc = env.network.listen("127.0.0.1:0", Protocol::Grpc).await.unwrap();
    let http = env.network.listen("127.0.0.1:0", Protocol::Http).await.unwrap();
    let options = NodeOptions {
        cluster: "test".into(),
        name: format!("n{index}"),
        zone: ["a", "b", "c", "a"][index].into(),
        folder: folder.join(format!("n{index}")),
        advertise: grpc.address(),
        capacity_bytes: None,
        kek: Arc::new(Kek::parse(&std::fs::read(&secrets.kek).unwrap()).unwrap()),
        expected_nodes: 4,
        timings: Timings { repair: Duration::from_millis(500), ..Timings::default() },
        budgets: Budgets::default(),
    };
    let limits = api::Limits::default();
    let options = (options, ServeOptions { grpc, http, tokens: secrets.tokens.clone(), limits });
    serve(env.clone(), options.0, meta.clone(), options.1).await.expect("a node starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_keep_files() {
    let folder = tempfile::Builder::new().prefix("nodes-").tempdir_in(disk_folder().unwrap()).unwrap();
    let made =
        secrets::init(&folder.path().join("s"), "test", &[], &RealClock::default(), &RealRandom).unwrap();
    let secrets = made.files;
    let env = env(&secrets);
    let meta: SharedMeta =
        Arc::new(EmbeddedStore::open(env.clone(), &folder.path().join("meta")).await.unwrap());
    let mut nodes = Vec::new();
    for index in 0..4 {
        nodes.push(start(&env, &secrets, &meta, folder.path(), index).await);
    }
    let token = std::fs::read_to_string(&secrets.client_token).unwrap();
    let endpoints: Vec<_> = nodes.iter().map(|node| node.grpc_address().to_owned()).collect();
    let config = ClientConfig::new(endpoints, Pem::File(secrets.authority_certificate.clone()));
    let client = Client::connect(config.with_token(token.trim())).unwrap();
    for _ in 0..300 {
        match client.status().await {
            Ok(status) if status.map_generation > 0 => break,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
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
    for _ in 0..100 {
        let status = client.status().await.unwrap();
        if status.settled == status.placement_groups {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status = client.status().await.unwrap();
    assert_eq!(status.settled, status.placement_groups, "{status:?}");
    for node in nodes {
        node.stop(Duration::from_secs(5)).await;
    }
}
