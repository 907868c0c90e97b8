//! Clients that nobody meant: many, huge, and with odd names.

use std::{net::TcpStream, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_client::{BytesSource, Condition, DownloadOptions, ListOptions, MoveOptions, UploadOptions};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    files::content,
    process::{Output, Spec, run},
    scratch::Scratch,
};
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::TlsConnector;

const LIMIT: Duration = Duration::from_secs(60);

async fn alone(name: &str) -> (CairnCluster, Scratch) {
    let folder = Scratch::new(name).unwrap();
    let url = format!("embedded://{}", folder.path().join("meta").display());
    (CairnCluster::start(ClusterOptions::new(&["a"], url)).await, folder)
}

fn trusting(cluster: &CairnCluster) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(&cluster.secrets().authority_certificate).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// A connection that has shaken hands, and says nothing more.
fn shaken(
    config: &Arc<ClientConfig>,
    address: &str,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(config.clone(), name).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}

/// Bytes of memory that a process has had at most.
fn peak_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_disturb_nobody() {
    let (cluster, _folder) = alone("idle").await;
    let client = cluster.client();
    client.create_volume(volume("files")).await.unwrap();
    let (config, grpc) = (trusting(&cluster), cluster.grpc(0));
    let https = cluster.https(0).trim_start_matches("https://").to_owned();
    let before = peak_bytes(cluster.process(0).pid());
    let idle = tokio::task::spawn_blocking(move || {
        let mut silent = Vec::new();
        let mut shaken_hands = Vec::new();
        for n in 0..500 {
            let address = if n % 2 == 0 { &grpc } else { &https };
            silent.push(TcpStream::connect(address).unwrap());
            // Some may be sent away, if there are too many.
            shaken_hands.extend(shaken(&config, address).ok());
        }
        (silent, shaken_hands)
    });
    let (silent, shaken_hands) = idle.await.unwrap();
    assert!(shaken_hands.len() >= 250, "{} were let in", shaken_hands.len());
    let bytes = content(1, 3 << 20);
    for n in 0..20 {
        let name = format!("f{n}");
        client.upload("files", &name, UploadOptions::default(), &BytesSource(bytes.clone())).await.unwrap();
        let back = read(&client, "files", &name).await;
        assert!(back == bytes, "{name}");
    }
    // Newcomers get in, too.
    let newcomer = cluster.client();
    assert_eq!(read(&newcomer, "files", "f3").await, bytes);
    let more = peak_bytes(cluster.process(0).pid()) - before;
    assert!(more < 256 << 20, "{more} bytes");
    drop((silent, shaken_hands));
    assert_eq!(read(&newcomer, "files", "f4").await, bytes);
}

fn volume(name: &str) -> cairn_client::CreateVolume {
    cairn_client::CreateVolume { name: name.into(), copies: Some(1), chunk_size_bytes: None }
}

async fn read(client: &cairn_client::Client, volume: &str, path: &str) -> Vec<u8> {
    let mut download = client.download(volume, path, DownloadOptions::default()).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = download.next_piece().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// A shell command that must end by itself.
fn shell(command: &str) -> Output {
    run(Spec::new("sh", "/bin/sh").args(["-c", command]), None, LIMIT).expect("a shell runs")
}

/// What gRPC answers to a message that says it has a gibibyte, of which the first 8 MiB come: its status.
async fn giant_message(cluster: &CairnCluster, method: &str) -> String {
    let mut config = ClientConfig::clone(&trusting(cluster));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = tokio::net::TcpStream::connect(cluster.grpc(0)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    // Not compressed, and a length of 1 GiB.
    let parts = [Bytes::from_static(&[0, 0x40, 0, 0, 0]), Bytes::from(vec![0; 8 << 20])];
    let frames = parts.map(|part| Ok::<_, std::convert::Infallible>(Frame::data(part)));
    let request = http::Request::post(format!("https://{}/{method}", cluster.grpc(0)))
        .header("authorization", format!("Bearer {}", cluster.token()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(stream::iter(frames)))
        .unwrap();
    let answer =
        tokio::time::timeout(LIMIT, sender.send_request(request)).await.expect("it answers").unwrap();
    let status = |headers: &http::HeaderMap| {
        headers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
    };
    let early = status(answer.headers());
    let rest = answer.into_body().collect().await;
    connection.abort();
    early.or_else(|| status(rest.ok()?.trailers()?)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_gibibyte_is_refused_before_it_is_there() {
    let (cluster, _folder) = alone("message").await;
    let before = peak_bytes(cluster.process(0).pid());
    // OUT_OF_RANGE, or UNIMPLEMENTED; of an upload, INVALID_ARGUMENT.
    for (method, status) in [
        ("cairn.v1.Files/Upload", "3"),
        ("cairn.v1.Files/Stat", "11"),
        ("cairn.v1.Volumes/CreateVolume", "11"),
        ("no.Such/Method", "12"),
    ] {
        assert_eq!(giant_message(&cluster, method).await, status, "{method}");
    }
    let more = peak_bytes(cluster.process(0).pid()) - before;
    assert!(more < 64 << 20, "{more} bytes");
    cluster.client().create_volume(volume("files")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_are_kept_as_they_are_by_every_way_in() {
    let (cluster, folder) = alone("names").await;
    let client = cluster.client();
    client.create_volume(volume("files")).await.unwrap();
    let longest = format!("{}/{}", "ä".repeat(400), "z".repeat(1_024 - 801));
    assert_eq!(longest.len(), 1_024);
    let names = [
        "100%",
        "a%2Fb",
        "%00",
        "a line\nand another",
        "tab\there",
        "\u{202e}fdp.exe",
        "שלום/עולם",
        " spaces ",
        "quo\"te's",
        "?query#part",
        "back\\slash",
        "😀",
        &longest,
    ];
    let ca = cluster.secrets().authority_certificate.display().to_string();
    let url = |name: &str| {
        let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        format!("{}/v1/volumes/files/files/{}", cluster.https(0), escaped.replace("%2F", "/"))
    };
    let curl = |more: &str, url: &str| {
        let answer = shell(&format!(
            "curl -sS --max-time 30 --fail-with-body --cacert '{ca}' -H 'authorization: Bearer {}' {more} '{url}'",
            cluster.token()
        ));
        assert!(answer.success, "{url}: {answer:?}");
        answer.stdout
    };
    for (n, name) in names.iter().enumerate() {
        let bytes = Bytes::from(format!("content of {n}"));
        if n % 2 == 0 {
            client
                .upload("files", name, UploadOptions::default(), &BytesSource(bytes.clone()))
                .await
                .unwrap();
        } else {
            let file = folder.path().join("one");
            std::fs::write(&file, &bytes).unwrap();
            curl(&format!("-T '{}'", file.display()), &url(name));
        }
        assert_eq!(read(&client, "files", name).await, bytes, "{name:?}");
        assert_eq!(curl("", &url(name)).as_bytes(), bytes, "{name:?}");
    }
    let mut listed = Vec::new();
    let mut listing = client.list("files", ListOptions { page_size: 5, ..ListOptions::default() });
    while let Some(page) = listing.next_page().await.unwrap() {
        listed.extend(page.files.into_iter().map(|file| file.path));
    }
    let mut sorted = names.map(str::to_owned);
    sorted.sort();
    assert_eq!(listed, sorted);
    // Nothing that a name holds reaches the terminal as it is.
    let ls = cluster.cairn(&["ls", "files"]);
    assert!(ls.success && !ls.stdout.contains(['\t', '\u{202e}']), "{ls:?}");
    let too_long = format!("{longest}x");
    let refused = client
        .upload("files", &too_long, UploadOptions::default(), &BytesSource(Bytes::from_static(b"x")))
        .await;
    assert_eq!(refused.unwrap_err().code_name(), "INVALID_PATH");

    for name in &names[..12] {
        let moved = format!("moved/{name}");
        client.move_file("files", name, &moved, MoveOptions::default()).await.unwrap();
        assert!(client.stat("files", name).await.is_err());
        client.delete("files", &moved, Condition::Always).await.unwrap();
    }
    curl("-X DELETE", &url(&longest));
    until("all are gone", async || {
        let page = client.list("files", ListOptions::default()).next_page().await.unwrap();
        page.is_none_or(|page| page.files.is_empty()).then_some(()).ok_or("files are left")
    })
    .await;
}
