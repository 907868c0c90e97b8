//! Reads that take old answers while a real etcd is away (R13): over gRPC, with curl, and with `cairn`, as programs and people
//! make them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_client::{DownloadOptions, StatOptions};
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    etcd::EtcdCluster,
    files::{VOLUME, content, make_volume, must_read, put},
    process::{Spec, run},
    tools::{Need, require},
};
use serde_json::Value;

const FILE: &str = "notes/known";
/// An old answer comes after two seconds of trying, not after the twelve of other reads; the machine may be busy.
const SOON: Duration = Duration::from_secs(9);

/// What curl has got.
struct Answer {
    status: String,
    /// In lower case.
    headers: String,
    body: Vec<u8>,
    took: Duration,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The code of a refusal, and its reason.
    fn refusal(&self) -> (Value, String) {
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        (problem["code"].clone(), problem["detail"].to_string())
    }
}

fn curl(cluster: &CairnCluster, node: usize, options: &str) -> Answer {
    let ca = cluster.secrets().authority_certificate.display();
    let url = format!("{}/v1/volumes/{VOLUME}/files/{FILE}", cluster.https(node));
    let token = cluster.token();
    let command = format!(
        "rm -f head got; curl -sS --max-time 60 --cacert '{ca}' -H 'authorization: Bearer {token}' {options} -D head -o got -w '%{{http_code}}' {url}"
    );
    let begun = Instant::now();
    // Of its own, for several run at the same time.
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec::new("curl", "sh").args(["-c", &command]).folder(folder.path());
    let output = run(spec, None, Duration::from_secs(90)).unwrap();
    assert!(output.success, "{output:?}");
    let headers = std::fs::read_to_string(folder.path().join("head")).unwrap().to_lowercase();
    let body = std::fs::read(folder.path().join("got")).unwrap_or_default();
    Answer { status: output.stdout, headers, body, took: begun.elapsed() }
}

const ALLOWED: &str = "-H 'cache-control: max-stale'";

fn over_http(cluster: &CairnCluster, whole: &Bytes) {
    let old = curl(cluster, 0, ALLOWED);
    assert_eq!((old.status.as_str(), old.header("cairn-stale")), ("200", Some("true")), "{}", old.headers);
    assert!(old.body == *whole, "{} bytes came", old.body.len());
    assert!(old.took > Duration::from_secs(2) && old.took < SOON, "{:?}", old.took);
    let age_s: u64 = old.header("age").expect("an age").parse().unwrap();
    assert!(age_s >= 2, "{age_s}");
    let head = curl(cluster, 0, &format!("{ALLOWED} -I"));
    assert_eq!((head.status.as_str(), head.header("cairn-stale")), ("200", Some("true")));
    // Of which nobody has asked here before, and what is too old.
    for (node, options, why) in [
        (2, ALLOWED, "remembers nothing"),
        (0, "-H 'cache-control: max-stale=1'", "more than the request allows"),
    ] {
        let refused = curl(cluster, node, options);
        assert_eq!((refused.status.as_str(), refused.header("retry-after")), ("503", Some("2")));
        let (code, detail) = refused.refusal();
        assert_eq!(code, "METADATA_UNAVAILABLE");
        assert!(detail.contains(why) && detail.contains(FILE), "{detail}");
        assert!(refused.took > Duration::from_secs(2) && refused.took < SOON, "{:?}", refused.took);
    }
}

/// Readers who want the present file, and writers whatever they allow, are refused as without all this.
fn as_before(cluster: &CairnCluster) {
    std::thread::scope(|scope| {
        for options in
            ["", "-H 'cache-control: max-stale' -T /dev/null", "-H 'cache-control: max-stale' -X DELETE"]
        {
            scope.spawn(move || {
                let refused = curl(cluster, 0, options);
                let (code, detail) = refused.refusal();
                assert_eq!(
                    (refused.status.as_str(), code),
                    ("503", "METADATA_UNAVAILABLE".into()),
                    "{options}"
                );
                assert!(refused.took > SOON, "{options}: {:?}", refused.took);
                assert!(!detail.contains("remember") && refused.header("cairn-stale").is_none(), "{detail}");
            });
        }
    });
}

async fn over_grpc(cluster: &CairnCluster, whole: &Bytes) {
    let client = cluster.client_of(&[0]);
    let options = DownloadOptions { allow_stale: true, ..DownloadOptions::default() };
    let download = client.download(VOLUME, FILE, options).await.unwrap();
    assert!(download.stale().is_some_and(|age| age > Duration::from_secs(2)), "{:?}", download.stale());
    assert!(download.bytes(whole.len()).await.unwrap() == whole);
    let look = StatOptions { chunks: true, allow_stale: true };
    let stat = client.stat_with(VOLUME, FILE, look).await.unwrap();
    assert!(stat.stale_ms.is_some_and(|age_ms| age_ms > 2_000), "{stat:?}");
    assert_eq!((stat.file.unwrap().size_bytes, stat.chunks.len()), (whole.len() as u64, 2));
    // Any node that remembers it will do.
    let look = StatOptions { allow_stale: true, ..StatOptions::default() };
    for _ in 0..3 {
        let begun = Instant::now();
        cluster.client_of(&[2, 0]).stat_with(VOLUME, FILE, look).await.unwrap();
        assert!(begun.elapsed() < 2 * SOON);
    }
}

fn with_the_command(cluster: &CairnCluster, whole: &Bytes) {
    let address = format!("{VOLUME}/{FILE}");
    let target = cluster.folder().join("got");
    let got = cluster.cairn(&["get", "--allow-stale", &address, &target.display().to_string()]);
    assert!(got.success, "{got:?}");
    assert!(std::fs::read(&target).unwrap() == *whole);
    let warning =
        got.stderr.strip_prefix(&format!("warning: {address} as it was known ")).unwrap_or_default();
    assert!(warning.ends_with(" ago: the metadata store cannot be reached\n"), "{}", got.stderr);
    assert_eq!(warning.lines().count(), 1, "{}", got.stderr);
    let stat = cluster.cairn(&["stat", "--allow-stale", &address, "--output", "json"]);
    let document: Value = serde_json::from_str(&stat.stdout).unwrap_or_default();
    assert!(stat.success && document["stale_ms"].as_u64() > Some(2_000), "{stat:?}");
    let piped = cluster.cairn(&["get", "--allow-stale", &address, "-", "--output", "json", "--length", "0"]);
    let document: Value = serde_json::from_str(&piped.stderr).unwrap_or_default();
    assert!(piped.success && document["stale_ms"].as_u64() > Some(2_000), "{piped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_read_can_be_read_while_etcd_is_away_and_says_so() {
    let Ok(tools) = require(&[Need::Etcd, Need::System("curl")]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let options = ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t"));
    let cluster = CairnCluster::start(options).await;
    make_volume(&cluster.client(), 3).await;
    // So that each node knows the volume.
    for node in 0..3 {
        put(&cluster.client_of(&[node]), &format!("own/{node}"), content(node as u64, 1_000)).await;
    }
    let whole = content(7, 5 << 20);
    put(&cluster.client_of(&[1]), FILE, whole.clone()).await;
    must_read(&cluster.client_of(&[0]), FILE, &whole).await;
    let now = curl(&cluster, 0, ALLOWED);
    assert_eq!((now.status.as_str(), now.header("cairn-stale"), now.header("age")), ("200", None, None));
    cluster.wait_settled().await;

    etcd.pause_all();
    over_http(&cluster, &whole);
    over_grpc(&cluster, &whole).await;
    with_the_command(&cluster, &whole);
    as_before(&cluster);

    etcd.resume_all();
    let current = |node| {
        let answer = curl(&cluster, node, ALLOWED);
        match (answer.status.as_str(), answer.header("cairn-stale")) {
            ("200", None) => Ok(answer.body),
            (status, stale) => Err(format!("{status}, {stale:?}")),
        }
    };
    let body = until("the file is current again", async || current(0)).await;
    assert!(body == whole);
    let newer = content(8, 100_000);
    cluster.wait_settled().await;
    put(&cluster.client_of(&[1]), FILE, newer.clone()).await;
    for node in 0..3 {
        let body = until("the newer file is read", async || current(node)).await;
        assert!(body == newer, "n{}", node + 1);
    }
}
