//! One whole node, alone, over real TLS.

use bytes::Bytes;
use cairn_proto::v1::{
    self, ErrorCode, files_client::FilesClient, peer_client::PeerClient, volumes_client::VolumesClient,
};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::*;
use crate::{api::status::code_of, config::LogFormat, secrets};

struct Alone {
    config: NodeConfig,
    secrets: secrets::SecretFiles,
    _folder: tempfile::TempDir,
}

fn alone() -> Alone {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    let made = secrets::init(&certs, "test", &[], &RealClock::default(), &RealRandom).unwrap();
    let secrets = made.files;
    let config = NodeConfig {
        cluster_name: "test".into(),
        node_name: "n1".into(),
        zone: "z1".into(),
        data_dir: folder.path().join("data"),
        new_disk: false,
        database_url: DatabaseUrl::Embedded { folder: folder.path().join("meta") },
        grpc_port: 0,
        http_port: 0,
        bind_host: "127.0.0.1".into(),
        advertise_host: "localhost".into(),
        advertise_port: None,
        tls_cert_file: secrets.node_certificate.clone(),
        tls_key_file: secrets.node_key.clone(),
        tls_ca_file: secrets.authority_certificate.clone(),
        kek_file: secrets.kek.clone(),
        client_tokens_file: secrets.tokens.clone(),
        expected_nodes: 1,
        timings: crate::node::Timings::default(),
        // Of its own: the reserve (R16) does not depend on how full the machine's disk is.
        capacity_bytes: Some(256 << 20),
        log: "info".into(),
        log_format: LogFormat::Text,
    };
    Alone { config, secrets, _folder: folder }
}

impl Alone {
    async fn start(&self) -> RunningNode {
        let node = self.started().await;
        for _ in 0..600 {
            if self.https(&node, "GET", "/readyz", "").await.0 == 200 {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the node does not get ready");
    }

    /// A store that was just closed may be held by its last threads for a moment.
    async fn started(&self) -> RunningNode {
        for _ in 0..100 {
            match start(real_env(&self.config).unwrap(), &self.config).await {
                Ok(node) => return node,
                Err(RunError::Meta(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the metadata store stays in use")
    }

    fn token(&self) -> String {
        format!("Bearer {}", std::fs::read_to_string(&self.secrets.client_token).unwrap())
    }

    /// Status and body of one request over HTTPS, with the client's token.
    async fn https(&self, node: &RunningNode, method: &str, path: &str, body: &str) -> (u16, Bytes) {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.secrets.authority_certificate).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = tokio::net::TcpStream::connect(node.http_address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"))
            .header("authorization", self.token())
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    async fn channel(&self, node: &RunningNode, identity: Option<(&Path, &Path)>) -> Channel {
        let read = |path: &Path| std::fs::read(path).unwrap();
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&self.secrets.authority_certificate)))
            .domain_name("localhost");
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(read(certificate), read(key)));
        }
        let endpoint = Endpoint::try_from(format!("https://{}", node.grpc_address())).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    fn with_token<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", self.token().parse().unwrap());
        request
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_serves_files_over_tls_and_keeps_them() {
    let alone = alone();
    let node = alone.start().await;
    let channel = alone.channel(&node, None).await;
    let create = v1::CreateVolumeRequest { name: "v".into(), ..Default::default() };
    VolumesClient::new(channel.clone()).create_volume(alone.with_token(create)).await.unwrap();
    let header = v1::UploadHeader { volume: "v".into(), path: "a/ü".into(), ..Default::default() };
    let parts = [
        v1::upload_request::Part::Header(header),
        v1::upload_request::Part::Data(Bytes::from(vec![7; 1 << 20])),
        v1::upload_request::Part::Data(Bytes::from(vec![8; 1 << 20])),
    ];
    let parts = [0, 1, 1, 1, 2, 2, 2].map(|part: usize| parts[part].clone());
    let messages = futures::stream::iter(parts.map(|part| v1::UploadRequest { part: Some(part) }));
    let uploaded = FilesClient::new(channel).upload(alone.with_token(messages)).await.unwrap();
    assert_eq!(uploaded.into_inner().file.unwrap().size_bytes, 6 << 20);

    let file = "/v1/volumes/v/files/a/%C3%BC";
    let (status, content) = alone.https(&node, "GET", file, "").await;
    assert_eq!(status, 200);
    assert!(
        content.len() == 6 << 20 && content[..3 << 20].iter().all(|byte| *byte == 7) && content[3 << 20] == 8
    );
    assert_eq!(alone.https(&node, "PUT", "/v1/volumes/v/files/b", "hello").await.0, 200);
    let (_, metrics) = alone.https(&node, "GET", "/metrics", "").await;
    assert!(std::str::from_utf8(&metrics).unwrap().contains("cairn_received_bytes_total 6291461"));
    let address = node.http_address().to_owned();
    node.stop(Duration::from_secs(5)).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());

    let node = alone.start().await;
    assert_eq!(
        alone.https(&node, "GET", "/v1/volumes/v/files/b", "").await,
        (200, Bytes::from_static(b"hello"))
    );
    assert_eq!(alone.https(&node, "GET", file, "").await.1, content);
    node.stop(Duration::from_secs(5)).await;
}

impl Alone {
    /// Why it does not start.
    async fn refused(&self) -> String {
        for _ in 0..100 {
            match start(real_env(&self.config).unwrap(), &self.config).await {
                Ok(_) => panic!("it starts"),
                // As in `started`.
                Err(RunError::Meta(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => return error.to_string(),
            }
        }
        panic!("the metadata store stays in use")
    }

    async fn starts_and_stops(&self) {
        self.start().await.stop(Duration::from_secs(5)).await;
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// What stays of a disk that is not mounted is the folder. Taken for a new disk, it would keep the real one out for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_is_no_new_disk_unless_it_is_said() {
    let mut alone = alone();
    alone.starts_and_stops().await;
    let data = alone.config.data_dir.clone();
    let away = data.with_file_name("away");
    std::fs::rename(&data, &away).unwrap();
    for _ in 0..2 {
        let said = alone.refused().await;
        assert!(said.contains("holds no disk") && said.contains("mount it"), "{said}");
        assert!(said.contains("--new-disk n1") && said.contains("NEW_DISK=n1"), "{said}");
        assert!(!data.exists(), "it was made");
    }
    std::fs::create_dir_all(data.join("lost+found")).unwrap();
    assert!(alone.refused().await.contains("mount it"));
    assert_eq!(names_in(&data), ["lost+found"], "nothing is left in it");
    // Mounted again, it is the same disk.
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    alone.starts_and_stops().await;
    // Lost, and said to be; after that it needs not to be said.
    std::fs::rename(&data, &away).unwrap();
    alone.config.new_disk = true;
    alone.starts_and_stops().await;
    alone.config.new_disk = false;
    alone.starts_and_stops().await;
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    assert!(alone.refused().await.contains("may not come back"));
}

/// A new store would have another cluster's id, and the disk would be called another cluster's.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_metadata_is_gone_gets_no_new_store() {
    let alone = alone();
    alone.starts_and_stops().await;
    let DatabaseUrl::Embedded { folder } = &alone.config.database_url else { panic!() };
    let away = folder.with_file_name("away");
    std::fs::rename(folder, &away).unwrap();
    let url = alone.config.database_url.clone();
    for made in [false, true] {
        let said = alone.refused().await;
        assert!(said.contains("meta.redb is gone") && said.contains("docs/restore.md"), "{said}");
        let what = Recovery::Store { without: vec![] };
        let wanted = Recover { database_url: url.clone(), data_dir: alone.config.data_dir.clone(), what };
        let said = recover(&wanted).await.unwrap_err().to_string();
        assert!(said.contains("meta.redb does not exist"), "{said}");
        assert_eq!(folder.exists(), made, "nothing is made");
        assert!(!made || names_in(folder).is_empty(), "nothing is made");
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::rename(&away, folder).unwrap();
    alone.starts_and_stops().await;
}

/// Each start raises the disk's boot counter; a refused one must not, or a few of them would catch up.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_rolled_back_is_refused_however_often_it_is_tried() {
    let alone = alone();
    alone.starts_and_stops().await;
    let data = alone.config.data_dir.clone();
    let identity = ["identity", "identity.copy"].map(|name| data.join(name));
    let before = identity.clone().map(|path| std::fs::read(path).unwrap());
    alone.starts_and_stops().await;
    alone.starts_and_stops().await;
    identity.iter().zip(&before).for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    std::fs::remove_dir_all(data.join("segments")).unwrap();
    for _ in 0..5 {
        let said = alone.refused().await;
        assert!(said.contains("boot counter is 1, the cluster has seen 3"), "{said}");
    }
    let database_url = alone.config.database_url.clone();
    let wanted = Recover { database_url, data_dir: data.clone(), what: Recovery::Disk("n1".into()) };
    // Held by the refused start's last threads for a moment.
    let mut tries = 0;
    while let Err(error) = recover(&wanted).await {
        tries += 1;
        assert!(matches!(error, RecoverFailure::Meta(_)) && tries < 100, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    alone.starts_and_stops().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_reach_the_peer_service() {
    let alone = alone();
    let node = alone.start().await;
    let secrets = &alone.secrets;
    let hello = async |identity| {
        let mut client = PeerClient::new(alone.channel(&node, identity).await);
        let answer = client.hello(alone.with_token(v1::HelloRequest::default())).await;
        answer.map(|answer| answer.into_inner().node).map_err(|status| code_of(&status))
    };
    assert_eq!(hello(None).await, Err(Some(ErrorCode::PermissionDenied)));
    let operator = (&*secrets.operator_certificate, &*secrets.operator_key);
    assert_eq!(hello(Some(operator)).await, Err(Some(ErrorCode::PermissionDenied)));
    let peer = (&*secrets.node_certificate, &*secrets.node_key);
    assert_eq!(hello(Some(peer)).await, Ok("n1".into()));
    node.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_a_node_cannot_start_with_is_named() {
    let alone = alone();
    let stop = CancellationToken::new();
    let refused = async |change: fn(&mut NodeConfig)| {
        let mut config = alone.config.clone();
        change(&mut config);
        run(config, stop.clone()).await.unwrap_err().to_string()
    };
    let error = refused(|config| config.kek_file = "/no/such/file".into()).await;
    assert!(error.contains("KEK_FILE") && error.contains("/no/such/file"), "{error}");
    let error = refused(|config| config.kek_file = config.tls_ca_file.clone()).await;
    assert!(error.contains("openssl rand"), "{error}");
    let error = refused(|config| config.tls_key_file = config.tls_ca_file.clone()).await;
    assert!(error.contains("private key"), "{error}");
    let error = refused(|config| config.client_tokens_file = config.tls_ca_file.clone()).await;
    assert!(error.contains("names no token: line 1"), "{error}");
    let error = refused(|config| {
        config.advertise_host = "elsewhere".into();
        config.database_url = "etcd://127.0.0.1:1/x".parse().unwrap();
    });
    assert!(error.await.contains("ADVERTISE_HOST"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = alone.config.clone();
    config.http_port = taken.local_addr().unwrap().port();
    let error = run(config, stop.clone()).await.unwrap_err().to_string();
    assert!(error.contains("HTTP_PORT"), "{error}");
    stop.cancel();
    run(alone.config.clone(), stop).await.unwrap();
}

#[test]
fn addresses() {
    assert_eq!(join("node-1", 5), "node-1:5");
    assert_eq!(join("::1", 5), "[::1]:5");
    assert_eq!(port_of("[::1]:5"), Some(5));
    assert_eq!(port_of("x"), None);
}
