//! Running nodes and what people and machines do to them: half uploads, plain text, wrong keys, wrong disks, a store that
//! goes away in the middle, `kill -9`.

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_client::{
    BytesSource, Client, ContentStream, CreateVolume, DownloadOptions, ErrorCode, Source, StatusResponse,
    UploadOptions,
};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    files::{VOLUME, content, get, make_volume, must_read, put},
    process::{Output, Spec, poll, run, tail},
    programs,
    scratch::Scratch,
    tools::{Need, require},
};
use futures::{StreamExt, stream};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

const ZONES: [&str; 3] = ["a", "b", "c"];
const MIB: usize = 1 << 20;
/// For a refusal at the start.
const START_LIMIT: Duration = Duration::from_secs(30);

async fn cluster(etcd: &EtcdCluster, prefix: &str) -> CairnCluster {
    let cluster = CairnCluster::start(ClusterOptions::new(&ZONES, etcd.database_url(prefix))).await;
    make_volume(&cluster.client(), 3).await;
    cluster
}

macro_rules! etcd {
    () => {{
        let Ok(tools) = require(&[Need::Etcd]) else { return };
        EtcdCluster::start(&tools, 3).expect("etcd starts")
    }};
}

fn chunks(status: &StatusResponse) -> Vec<u64> {
    status.nodes.iter().map(|node| node.chunks).collect()
}

/// Content that stops in the middle without a word, as a client whose machine is gone.
struct Stuck(Bytes);

#[async_trait::async_trait]
impl Source for Stuck {
    async fn open(&self) -> io::Result<ContentStream> {
        let bytes = self.0.clone();
        Ok(stream::once(async move { Ok(bytes) }).chain(stream::pending()).boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        None
    }

    fn describe(&self) -> String {
        "half a file".into()
    }
}

/// A connection to a node's HTTP port that trusts the cluster's authority.
async fn connect(cluster: &CairnCluster, node: usize) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(&cluster.secrets().authority_certificate).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let address = cluster.https(node);
    let address = address.strip_prefix("https://").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// What comes until the other side ends the connection, which it must.
async fn rest_of(mut connection: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), connection.read_to_end(&mut bytes)).await;
    read.expect("the connection ends").unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_cut_in_the_middle_leaves_the_file_as_it_was() {
    let etcd = etcd!();
    let cluster = cluster(&etcd, "/t").await;
    let client = cluster.client();
    put(&client, "kept", content(1, 100_000)).await;
    let before = chunks(&cluster.wait_settled().await);
    let arrived = |status: &StatusResponse| chunks(status).iter().sum::<u64>() > before.iter().sum();
    let gone = |status: &StatusResponse| chunks(status) == before;

    let half = content(2, 9 * MIB);
    for path in ["kept", "new"] {
        let (client, half) = (cluster.client_of(&[0]), half.clone());
        let upload = tokio::spawn(async move {
            client.upload(VOLUME, path, UploadOptions::default(), &Stuck(half)).await.map(|_| ())
        });
        cluster.wait("half of it is on the disks", arrived).await;
        upload.abort();
        cluster.wait("what had arrived is taken back", gone).await;
    }
    // The same by HTTP: a length is promised, and the connection ends before.
    let mut connection = connect(&cluster, 1).await;
    let head = format!(
        "PUT /v1/volumes/{VOLUME}/files/new HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        cluster.token(),
        2 * half.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&half).await.unwrap();
    connection.flush().await.unwrap();
    cluster.wait("half of it is on the disks", arrived).await;
    drop(connection);
    cluster.wait("what had arrived is taken back", gone).await;

    for node in 0..3 {
        let client = cluster.client_of(&[node]);
        must_read(&client, "kept", &content(1, 100_000)).await;
        assert_eq!(get(&client, "new").await.unwrap_err().code(), ErrorCode::FileNotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_to_a_tls_port_is_answered_in_plain_text_and_harms_nobody() {
    let etcd = etcd!();
    let cluster = cluster(&etcd, "/t").await;
    for address in [cluster.grpc(0), cluster.https(0).replace("https://", "")] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let answer = rest_of(stream).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("TLS"), "{address}: {answer:?}");
    }
    put(&cluster.client_of(&[0]), "after", content(1, 10_000)).await;
    must_read(&cluster.client_of(&[1]), "after", &content(1, 10_000)).await;
}

/// It never becomes a request: there is an answer all the same, without a body, as docs/http.md says.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_answered_with_a_bare_400() {
    let etcd = etcd!();
    let cluster = cluster(&etcd, "/t").await;
    for request in [
        b"GET /v1/\0 HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(),
        b"GET /v1/\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PUT /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET /v1/volumes HTTP/1.1\r\nhost: x\r\nno header\r\n\r\n",
    ] {
        let mut connection = connect(&cluster, 0).await;
        connection.write_all(request).await.unwrap();
        let answer = rest_of(connection).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("\r\n\r\n"), "{answer:?}");
    }
    put(&cluster.client_of(&[0]), "after", content(1, 10_000)).await;
}

/// A proxy that goes by the other length would take the end of the one request for the beginning of the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_two_lengths_smuggles_no_other_in() {
    let etcd = etcd!();
    let cluster = cluster(&etcd, "/t").await;
    let bearer = format!("host: x\r\nauthorization: Bearer {}", cluster.token());
    let hidden = format!("DELETE /v1/volumes/{VOLUME}/files/kept HTTP/1.1\r\n{bearer}\r\n\r\n");
    put(&cluster.client_of(&[0]), "kept", content(1, 10_000)).await;
    let length = format!("content-length: {}", 5 + hidden.len());
    let chunked = "transfer-encoding: chunked".to_owned();
    for lengths in [[length.clone(), chunked.clone()], [chunked, length]] {
        let lengths = lengths.join("\r\n");
        let head = format!("PUT /v1/volumes/{VOLUME}/files/new HTTP/1.1\r\n{bearer}\r\n{lengths}\r\n\r\n");
        let mut connection = connect(&cluster, 0).await;
        connection.write_all(format!("{head}0\r\n\r\n{hidden}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), connection.read_to_end(&mut answer)).await;
        read.expect("the connection ends").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lengths}: {answer}");
        assert!(answer.starts_with("HTTP/1.1 2"), "the first request is one: {answer}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
        must_read(&cluster.client_of(&[1]), "kept", &content(1, 10_000)).await;
    }
}

/// Starts a node that must refuse; the end of what it says.
fn refusal(spec: Spec, log: &Path) -> String {
    std::fs::remove_file(log).ok();
    let process = spec.spawn().expect("cairn-node starts");
    let ended = poll(START_LIMIT, Duration::from_millis(50), || process.exited());
    let said = tail(log, 20);
    let ended = ended.unwrap_or_else(|| panic!("it runs:\n{said}"));
    assert!(!ended.success(), "it ended well:\n{said}");
    said
}

/// Every file of a folder, by name, with the digest of its content.
fn fingerprint(folder: &Path) -> BTreeMap<String, blake3::Hash> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_type().is_file());
    files
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).unwrap();
            (entry.path().display().to_string(), blake3::hash(&bytes))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_others_disks_are_refused_and_nothing_is_touched() {
    let etcd = etcd!();
    let (mut ours, mut theirs) = (cluster(&etcd, "/ours").await, cluster(&etcd, "/theirs").await);
    put(&ours.client(), "kept", content(1, 3 * MIB)).await;
    ours.wait_settled().await;
    ours.stop(0);
    ours.stop(1);
    theirs.stop(0);
    let (disk, log) = (ours.data_folder(0).to_owned(), ours.log(0));
    let before = fingerprint(&disk);

    let other_kek = theirs.secrets().kek.display().to_string();
    let said = refusal(ours.spec(0).env("KEK_FILE", other_kek), &log);
    assert!(said.contains("give it that KEK file"), "{said}");
    let no_kek = ours.folder().join("none");
    let said = refusal(ours.spec(0).env("KEK_FILE", no_kek), &log);
    assert!(said.contains("KEK_FILE") && said.contains("none"), "{said}");
    let theirs_log = theirs.log(0);
    let said = refusal(theirs.spec(0).env("DATA_DIR", &disk), &theirs_log);
    assert!(said.contains("belongs to cluster"), "{said}");
    // Node n2 with the disk of n1.
    let said = refusal(ours.spec(1).env("DATA_DIR", &disk), &ours.log(1));
    assert!(said.contains("n1") && said.contains("n2"), "{said}");
    assert_eq!(fingerprint(&disk), before, "a refused node has changed a disk");

    ours.restart(0);
    ours.restart(1);
    ours.wait_settled().await;
    // And one that is in use.
    let second = ours.folder().join("second");
    let spec = ours.spec(0).env("GRPC_PORT", "0").env("HTTP_PORT", "0").log(&second);
    let said = refusal(spec, &second);
    assert!(said.contains("in use") || said.contains("locked"), "{said}");
    must_read(&ours.client_of(&[0]), "kept", &content(1, 3 * MIB)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_download_goes_on_while_etcd_is_away() {
    let etcd = etcd!();
    let cluster = cluster(&etcd, "/t").await;
    let client = cluster.client_of(&[0]);
    let whole = content(5, 96 * MIB);
    put(&client, "large", whole.clone()).await;
    cluster.wait_settled().await;
    let mut download = client.download(VOLUME, "large", DownloadOptions::default()).await.unwrap();
    let mut read = download.next_piece().await.unwrap().expect("content").to_vec();
    etcd.pause_all();
    while let Some(piece) = download.next_piece().await.expect("the rest comes without the store") {
        read.extend_from_slice(&piece);
    }
    assert!(read == whole);
    // A new one has to look the file up: it is refused, in bounded time, and says why.
    let begun = std::time::Instant::now();
    let refused = get(&cluster.client_of(&[1]), "large").await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::MetadataUnavailable, "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    etcd.resume_all();
    cluster.wait_settled().await;
    must_read(&client, "large", &whole).await;
}

/// One node alone with the embedded store, killed again and again while it takes files.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_killed_during_uploads_loses_nothing() {
    let folder = tempfile::tempdir_in(cairn_tests::etcd::disk_folder().unwrap()).unwrap();
    let url = format!("embedded://{}", folder.path().join("meta").display());
    let mut cluster = CairnCluster::start(ClusterOptions::new(&["a"], url)).await;
    make_volume(&cluster.client(), 1).await;
    let mut acknowledged: BTreeMap<String, Bytes> = BTreeMap::new();
    for round in 0..6u64 {
        let (sender, mut done) = tokio::sync::mpsc::channel(1_000);
        let killed = CancellationToken::new();
        let writers: Vec<_> = (0..4u64)
            .map(|writer| {
                let from = round * 1_000 + writer * 100;
                tokio::spawn(write_until_killed(cluster.client(), from, sender.clone(), killed.clone()))
            })
            .collect();
        // Theirs are the last: when no writer is left, nobody waits.
        drop(sender);
        for _ in 0..12 {
            let (path, bytes) = done.recv().await.expect("uploads are acknowledged");
            acknowledged.insert(path, bytes);
        }
        cluster.kill(0);
        killed.cancel();
        while let Some((path, bytes)) = done.recv().await {
            acknowledged.insert(path, bytes);
        }
        for writer in writers {
            writer.await.unwrap();
        }
        cluster.restart(0);
        cluster.wait("the node is back", |status| status.nodes.len() == 1).await;
        let client = cluster.client();
        for (path, bytes) in &acknowledged {
            must_read(&client, path, bytes).await;
        }
    }
    assert!(acknowledged.len() >= 72);
}

type Done = tokio::sync::mpsc::Sender<(String, Bytes)>;

/// Uploads, however slow they are, until one fails, or does not end within a second after the node was killed.
async fn write_until_killed(client: Client, from: u64, done: Done, killed: CancellationToken) {
    for number in from..from + 100 {
        let bytes = content(number, 1 + (number as usize * 7_919) % (2 * MIB));
        let source = BytesSource(bytes.clone());
        let path = format!("k/{number}");
        let upload = client.upload(VOLUME, &path, UploadOptions::default(), &source);
        let given_up = async {
            killed.cancelled().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            uploaded = upload => match uploaded {
                Ok(_) => done.send((path, bytes)).await.expect("somebody listens"),
                Err(_) => return,
            },
            () = given_up => return,
        }
    }
}

/// Requests that are answered while their content is still being sent: what people read is the answer, not a broken
/// stream.
#[tokio::test(flavor = "multi_thread")]
async fn answers_can_be_read_by_curl_whatever_content_it_still_sends() {
    let Ok(tools) = require(&[Need::Etcd, Need::System("curl")]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let cluster = cluster(&etcd, "/t").await;
    std::fs::write(cluster.folder().join("small"), "abc").unwrap();
    std::fs::write(cluster.folder().join("large"), content(1, 20 * MIB)).unwrap();
    let token = cluster.token();
    let (good, wrong) = (token.as_str(), "0000000000000000");
    let (large, send) = ("-T large", "--data-binary @large");
    let file = "/v1/volumes/files/files/x";
    let other_etag = "-T large -H 'if-match: \"00000000000000000000000000000001\"'";
    for (token, arguments, path, answer) in [
        (good, "-T small", "/v1/volumes/nope/files/x", "VOLUME_NOT_FOUND"),
        (good, large, "/v1/volumes/nope/files/x", "VOLUME_NOT_FOUND"),
        (good, "-T small -H 'x-cairn-blake3: nonsense'", file, "INVALID_ARGUMENT"),
        (good, other_etag, file, "PRECONDITION_FAILED"),
        (wrong, large, file, "UNAUTHENTICATED"),
        (good, large, "/nothing/here", "UNSUPPORTED"),
        (good, large, "/healthz", "UNSUPPORTED"),
        (good, &format!("-X PATCH {send}"), file, "UNSUPPORTED"),
        (good, &format!("-X POST {send}"), "/v1/volumes", "INVALID_ARGUMENT"),
        (wrong, &format!("-X POST {send}"), "/v1/volumes", "UNAUTHENTICATED"),
        (good, &format!("-X DELETE {send}"), file, "FILE_NOT_FOUND"),
        (good, &format!("-X GET {send}"), file, "FILE_NOT_FOUND"),
        (good, &format!("-X GET {send}"), "/healthz", "ok"),
        (good, &format!("-X GET {send}"), "/v1/volumes", "chunk_size_bytes"),
    ] {
        let url = format!("{}{path}", cluster.https(0));
        for version in ["--http2", "--http1.1"].repeat(4) {
            let output = curl(&cluster, token, &format!("{version} {arguments} {url}"));
            assert!(
                output.success && output.stdout.contains(answer),
                "{version} {arguments} {path}: {}{}",
                output.stdout,
                output.stderr
            );
        }
    }
}

/// A size that no disk has is refused before the content is read, which never comes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_larger_than_the_cluster_is_refused_at_once() {
    let Ok(tools) = require(&[Need::Etcd, Need::System("curl")]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let cluster = cluster(&etcd, "/t").await;
    std::fs::write(cluster.folder().join("small"), "abc").unwrap();
    let url = format!("{}/v1/volumes/files/files/x", cluster.https(0));
    let endless = "-T small -H 'content-length: 1152921504606846976' -H 'expect: 100-continue'";
    let output = curl(&cluster, &cluster.token(), &format!("--http1.1 {endless} {url}"));
    assert!(output.stdout.contains("OUT_OF_SPACE"), "{}{}", output.stdout, output.stderr);
}

/// In another listing, a page token would skip names that nobody has seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_is_good_for_its_own_listing_alone() {
    let Ok(tools) = require(&[Need::Etcd, Need::System("curl")]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let cluster = cluster(&etcd, "/t").await;
    let other = CreateVolume { name: "other".into(), ..CreateVolume::default() };
    cluster.client().create_volume(other).await.unwrap();
    for name in ["a/b/1", "a/b/2", "a/c", "a/d", "e"] {
        put(&cluster.client(), name, content(1, 10)).await;
    }
    let token = cluster.token();
    let get = |path: &str| -> serde_json::Value {
        let output = curl(&cluster, &token, &format!("'{}{path}'", cluster.https(0)));
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{path}: {error}: {output:?}"))
    };
    let listings = [
        "/v1/volumes/files/files?prefix=a/&limit=1",
        "/v1/volumes/files/files?prefix=a/&delimiter=/&limit=1",
        "/v1/volumes/files/files?limit=1",
        "/v1/volumes/files/files?delimiter=/&limit=1",
        "/v1/volumes?limit=1",
    ];
    let seen = [(4, 0), (2, 1), (5, 0), (1, 1), (2, 0)];
    let next = |page: &serde_json::Value| page["next_page_token"].as_str().unwrap().to_owned();
    for (listing, seen) in listings.iter().zip(seen) {
        // Page by page through each node, everything once.
        let (mut page, mut files, mut prefixes) = (get(listing), 0, 0);
        let first = next(&page);
        loop {
            let count = |name: &str| page[name].as_array().map_or(0, Vec::len);
            files += count("files") + count("volumes");
            prefixes += count("prefixes");
            match next(&page) {
                end if end.is_empty() => break,
                token => page = get(&format!("{listing}&page_token={token}")),
            }
        }
        assert_eq!((files, prefixes), seen, "{listing}");
        let others = listings.iter().filter(|other| *other != listing).copied();
        for other in
            others.chain(["/v1/volumes/other/files?prefix=a/&limit=1", "/v1/volumes/other/files?limit=1"])
        {
            let refused = get(&format!("{other}&page_token={first}"));
            assert_eq!(refused["code"], "INVALID_ARGUMENT", "{listing} at {other}: {refused}");
        }
        for bad in ["AAAA", "a", &first[1..]] {
            let refused = get(&format!("{listing}&page_token={bad}"));
            assert_eq!(refused["code"], "INVALID_ARGUMENT", "{bad} at {listing}: {refused}");
            assert!(refused["detail"].as_str().unwrap().contains("page token"), "{refused}");
        }
    }
}

/// Room that others make on the disk counts when it is next looked at: who is refused until then reads when that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_says_what_was_found_and_when_it_is_looked_at_again() {
    let folder = Scratch::new("full").unwrap();
    let url = format!("embedded://{}", folder.path().join("meta").display());
    let options = ClusterOptions::new(&["a"], url).with("CAPACITY", "134217728");
    let cluster = CairnCluster::start(options).await;
    let client = cluster.client();
    make_volume(&client, 1).await;
    put(&client, "first", content(1, 64 * MIB)).await;
    let second = content(2, 64 * MIB);
    let refused = client.upload_bytes(VOLUME, "second", UploadOptions::default(), second).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::OutOfSpace, "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("of 134217728 bytes it stores ") && said.contains("clients may write "), "{said}");
    assert!(said.contains("looks at its free space again") && said.contains("every few seconds"), "{said}");
    must_read(&client, "first", &content(1, 64 * MIB)).await;
}

/// Runs curl in the cluster's folder.
fn curl(cluster: &CairnCluster, token: &str, arguments: &str) -> Output {
    let ca = cluster.secrets().authority_certificate.display();
    let line =
        format!("curl -sS --max-time 40 --cacert '{ca}' -H 'authorization: Bearer {token}' {arguments}");
    shell(cluster, &line)
}

fn shell(cluster: &CairnCluster, line: &str) -> Output {
    let spec = Spec::new("sh", "/bin/sh").args(["-c", line]).folder(cluster.folder());
    run(spec, None, Duration::from_secs(60)).expect("a shell runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf8_are_refused_in_words() {
    let etcd = etcd!();
    let cluster = cluster(&etcd, "/t").await;
    std::fs::write(cluster.folder().join("small"), "abc").unwrap();
    let ca = cluster.secrets().authority_certificate.display().to_string();
    let cairn = programs::built("cairn").display().to_string();
    let (endpoint, token) = (cluster.grpc(0), cluster.token());
    let line = format!(
        "name=$(printf 'files/\\377'); CAIRN_ENDPOINT='https://{endpoint}' CAIRN_CA_FILE='{ca}' CAIRN_TOKEN={token} '{cairn}' put small \"$name\"; echo code=$?"
    );
    let output = shell(&cluster, &line);
    assert!(
        output.stdout.contains("code=2") && output.stderr.contains("UTF-8"),
        "{}{}",
        output.stdout,
        output.stderr
    );
}
