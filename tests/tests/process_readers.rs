//! Readers of all kinds, over real connections: with large and small buffers, slow ones, and those of files without content.

use std::{
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cairn_client::DownloadOptions;
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    files::{content, make_volume, put},
    process::{Output, Spec, run},
    scratch::Scratch,
    tools::{Need, require},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};

/// Longer than anything by which such readers were ever given up.
const WHILE: Duration = Duration::from_secs(110);
/// What curl says if it was to end before it was done.
const TIMED_OUT: i32 = 28;

async fn alone(name: &str) -> (CairnCluster, Scratch) {
    let folder = Scratch::new(name).unwrap();
    let url = format!("embedded://{}", folder.path().join("meta").display());
    let cluster = CairnCluster::start(ClusterOptions::new(&["a"], url)).await;
    make_volume(&cluster.client(), 1).await;
    (cluster, folder)
}

/// Gets a file, to standard output.
fn curl(cluster: &CairnCluster, path: &str, options: &[&str], limit: Duration) -> Output {
    let spec =
        Spec::new("curl", "curl").args(["-sS", "--cacert"]).arg(&cluster.secrets().authority_certificate);
    let spec = spec.arg("-H").arg(format!("authorization: Bearer {}", cluster.token())).args(options);
    let url = format!("{}/v1/volumes/files/files/{path}", cluster.https(0));
    run(spec.arg(url), None, limit).expect("curl runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_content_are_read_by_every_way() {
    if require(&[Need::System("curl")]).is_err() {
        return;
    }
    let (cluster, _folder) = alone("empty").await;
    put(&cluster.client(), "empty", Bytes::new()).await;
    for version in ["--http2", "--http1.1"] {
        let got = curl(&cluster, "empty", &[version, "-w", "%{http_code} %{size_download}"], WHILE);
        assert_eq!((got.code, got.stdout.as_str()), (Some(0), "200 0"), "{version}: {}", got.stderr);
    }
    let download = cluster.client().download("files", "empty", DownloadOptions::default()).await.unwrap();
    assert_eq!(download.bytes(1).await.unwrap(), "");
    let log = std::fs::read_to_string(cluster.log(0)).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

/// Reads so many bytes each second, for [`WHILE`]; how many came.
fn read_by_the_second(cluster: &CairnCluster, path: &str, bytes: usize) -> std::io::Result<usize> {
    use std::io::{Read, Write};
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(&cluster.secrets().authority_certificate).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let address = cluster.https(0).trim_start_matches("https://").to_owned();
    let socket = TcpStream::connect(address)?;
    // The smallest that there is: less than what the other side would like to send at once.
    socket2::SockRef::from(&socket).set_recv_buffer_size(4_096)?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let token = cluster.token();
    write!(
        stream,
        "GET /v1/volumes/files/files/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
    )?;
    let (begun, mut read, mut buffer) = (Instant::now(), 0, vec![0; bytes]);
    while begun.elapsed() < WHILE {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            some => read += some,
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(read)
}

/// What its system took at once is read for more than a minute, while nothing moves; or its window is always smaller than what is to
/// be sent; or what asks whether it is alive waits behind what it has not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_more_than_the_least_is_served_however_large_its_buffers_are() {
    if require(&[Need::System("curl")]).is_err() {
        return;
    }
    let (cluster, _folder) = alone("readers").await;
    put(&cluster.client(), "large", content(1, 24 << 20)).await;
    let seconds = WHILE.as_secs().to_string();
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for (version, speed) in [
            ("--http2", "2K"),
            ("--http2", "20K"),
            ("--http2", "40K"),
            ("--http1.1", "2K"),
            ("--http1.1", "20K"),
        ] {
            let options =
                [version, "--limit-rate", speed, "-m", &seconds, "-o", "/dev/null"].map(str::to_owned);
            let cluster = &cluster;
            let reader = move || {
                let options = options.each_ref().map(String::as_str);
                curl(cluster, "large", &options, WHILE + Duration::from_secs(20))
            };
            readers.push((version, speed, scope.spawn(reader)));
        }
        let small = scope.spawn(|| read_by_the_second(&cluster, "large", 3 << 10));
        for (version, speed, reader) in readers {
            let ended = reader.join().unwrap();
            assert_eq!(ended.code, Some(TIMED_OUT), "{version} {speed}: {}", ended.stderr);
        }
        let read = small.join().unwrap().expect("it goes on");
        assert!(read > 100_000, "{read}");
    });
}
