//! Clients of every pace, over real connections: readers with large and small buffers, slow ones and those that take nothing, writers
//! on slow lines and behind slow pipes, files without content.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cairn_client::DownloadOptions;
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    files::{content, make_volume, must_read, put},
    process::{Output, Spec, poll, run},
    programs,
    scratch::Scratch,
    tools::{Need, require},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};

/// Longer than anything by which such readers were ever given up.
const WHILE: Duration = Duration::from_secs(110);
/// What must be taken in a minute, and how long a client is waited for that does not.
const LIMIT: Duration = Duration::from_secs(60);
/// What curl says if it was to end before it was done.
const TIMED_OUT: i32 = 28;

async fn alone(name: &str) -> (CairnCluster, Scratch) {
    let folder = Scratch::new(name).unwrap();
    let url = format!("embedded://{}", folder.path().join("meta").display());
    let cluster = CairnCluster::start(ClusterOptions::new(&["a"], url)).await;
    make_volume(&cluster.client(), 1).await;
    (cluster, folder)
}

/// Gets a file, or another address if it begins with a slash, to standard output.
fn curl(cluster: &CairnCluster, path: &str, options: &[&str], limit: Duration) -> Output {
    let spec =
        Spec::new("curl", "curl").args(["-sS", "--cacert"]).arg(&cluster.secrets().authority_certificate);
    let spec = spec.arg("-H").arg(format!("authorization: Bearer {}", cluster.token())).args(options);
    let path =
        if path.starts_with('/') { path.to_owned() } else { format!("/v1/volumes/files/files/{path}") };
    run(spec.arg(format!("{}{path}", cluster.https(0))), None, limit).expect("curl runs")
}

/// What the node says of itself.
fn metric(cluster: &CairnCluster, name: &str) -> u64 {
    let text = curl(cluster, "/metrics", &[], LIMIT).stdout;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in {text}"))
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

/// Asks for a file over HTTP/1.1, with a buffer of this size if it is given.
fn ask(
    cluster: &CairnCluster,
    path: &str,
    buffer_bytes: Option<usize>,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(&cluster.secrets().authority_certificate).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let address = cluster.https(0).trim_start_matches("https://").to_owned();
    let socket = TcpStream::connect(address)?;
    if let Some(bytes) = buffer_bytes {
        socket2::SockRef::from(&socket).set_recv_buffer_size(bytes)?;
    }
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let token = cluster.token();
    write!(
        stream,
        "GET /v1/volumes/files/files/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
    )?;
    stream.flush()?;
    Ok(stream)
}

/// Reads so many bytes each second, for [`WHILE`]; how many came.
fn read_by_the_second(
    cluster: &CairnCluster,
    buffer_bytes: Option<usize>,
    bytes: usize,
) -> std::io::Result<usize> {
    let mut stream = ask(cluster, "large", buffer_bytes)?;
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
        // The smallest buffer that there is: less than what the other side would like to send at once.
        let by_the_second = [Some(4_096), None].map(|buffer_bytes| {
            let cluster = &cluster;
            scope.spawn(move || read_by_the_second(cluster, buffer_bytes, 3 << 10))
        });
        for (version, speed, reader) in readers {
            let ended = reader.join().unwrap();
            assert_eq!(ended.code, Some(TIMED_OUT), "{version} {speed}: {}", ended.stderr);
        }
        for reader in by_the_second {
            let read = reader.join().unwrap().expect("it goes on");
            assert!(read > 100_000, "{read}");
        }
    });
}

/// What buffers on the way swallow is not taken for what somebody reads.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_are_given_up_after_a_minute() {
    if require(&[Need::System("curl")]).is_err() {
        return;
    }
    let (cluster, _folder) = alone("nothing").await;
    put(&cluster.client(), "large", content(1, 24 << 20)).await;
    let readers = [Some(4_096), None].map(|buffer_bytes| ask(&cluster, "large", buffer_bytes).unwrap());
    let open = |wanted: u64| move |cluster| (metric(cluster, "cairn_open_streams") == wanted).then_some(());
    let pause = Duration::from_secs(1);
    poll(LIMIT, pause, || open(2)(&cluster)).expect("both are sent something");
    let begun = Instant::now();
    poll(2 * LIMIT, pause, || open(0)(&cluster)).expect("nobody is waited for for ever");
    assert!(begun.elapsed() > LIMIT - 5 * pause, "{:?}", begun.elapsed());
    drop(readers);
}

/// A line that takes so many bytes a second to a node; its address. Lives as long as the process.
fn slow_line(to: String, bytes_a_second: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // What is on the way is on the line, and not in a buffer.
    socket2::SockRef::from(&listener).set_recv_buffer_size(4_096).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        while let Ok((mut near, _)) = listener.accept() {
            let Ok(mut far) = TcpStream::connect(&to) else { return };
            let (Ok(mut back), Ok(mut answers)) = (near.try_clone(), far.try_clone()) else { return };
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            std::thread::spawn(move || {
                let mut piece = [0; 1_024];
                while let Ok(length @ 1..) = near.read(&mut piece) {
                    if far.write_all(&piece[..length]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_secs_f64(length as f64 / bytes_a_second as f64));
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_over_a_slow_line_and_from_a_slow_pipe_succeed_at_once() {
    let (cluster, folder) = alone("slow").await;
    let large = folder.path().join("large");
    std::fs::write(&large, content(2, 480 << 10)).unwrap();
    let line = format!("https://{}", slow_line(cluster.grpc(0), 4_000));
    let direct = format!("https://{}", cluster.grpc(0));
    let cairn = programs::built("cairn");
    let over_the_line = Spec::new("put", &cairn).arg("put").arg(&large).arg("files/large");
    // 2,000 bytes a second, for longer than a silent client is waited for.
    let script =
        r#"n=0; while [ $n -lt 80 ]; do head -c 2000 /dev/zero; n=$((n+1)); sleep 1; done | "$0" "$@""#;
    let from_a_pipe =
        Spec::new("pipe", "sh").args(["-c", script]).arg(&cairn).args(["put", "-", "files/piped"]);
    std::thread::scope(|scope| {
        let runs = [(over_the_line, &line), (from_a_pipe, &direct)].map(|(spec, endpoint)| {
            let spec = cluster.as_user(spec, endpoint);
            scope.spawn(move || run(spec, None, 6 * LIMIT).expect("it runs"))
        });
        for run in runs {
            let ended = run.join().unwrap();
            assert!(ended.success, "{ended:?}");
        }
    });
    must_read(&cluster.client(), "large", &content(2, 480 << 10)).await;
    must_read(&cluster.client(), "piped", &Bytes::from(vec![0; 160_000])).await;
    // An attempt that breaks off has sent something, too.
    let received = metric(&cluster, "cairn_received_bytes_total");
    assert_eq!(received, (480 << 10) + 160_000, "each at the first attempt");
}
