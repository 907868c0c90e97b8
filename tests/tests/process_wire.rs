//! What lies open on the wire between nodes: nothing. A capture of everything that the nodes say to each other and to
//! clients while a file goes in, comes back, and is copied to a disk that lost it.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use cairn_client::StatusResponse;
use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    files::{make_volume, must_read, put},
    process::{Process, Spec, poll},
    tools::{Need, require},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const MARKER: &str = "a sentence that nobody may read who listens on the network; ";
/// Sent in plain text on purpose: what is seen of it shows that the capture sees everything before it.
const CONTROL: &str = "a sentence that shows that the capture works; ";
const LIMIT: Duration = Duration::from_secs(30);

/// Records what goes over loopback to and from some ports.
struct Capture {
    process: Process,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(folder: &Path, ports: &[u16]) -> Self {
        let (file, log) = (folder.join("capture.pcap"), folder.join("tcpdump.log"));
        let filter: Vec<_> = ports.iter().map(|port| format!("tcp port {port}")).collect();
        let process = Spec::new("tcpdump", "tcpdump")
            // As root, or it could not write into the test's folder; a buffer for bursts; written packet by packet.
            .args(["-i", "lo", "-Z", "root", "-B", "131072", "-s", "0", "-U", "-w"])
            .arg(&file)
            .arg(filter.join(" or "))
            .log(&log)
            .spawn()
            .expect("tcpdump starts");
        let listening = poll(LIMIT, Duration::from_millis(20), || {
            fs::read_to_string(&log).unwrap_or_default().contains("listening on").then_some(())
        });
        assert!(listening.is_some(), "{}", process.log_tail(5));
        Self { process, file }
    }

    /// Says [`CONTROL`] to one of the ports; everything that was captured until that is seen.
    async fn finish(self, address: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(CONTROL.as_bytes()).await.unwrap();
        let seen = poll(LIMIT, Duration::from_millis(100), || {
            let bytes = fs::read(&self.file).unwrap_or_default();
            contains(&bytes, CONTROL).then_some(bytes)
        });
        let seen = seen.unwrap_or_else(|| panic!("the capture sees nothing: {}", self.process.log_tail(5)));
        self.process.terminate(LIMIT);
        seen
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_readable_goes_over_the_wire() {
    let Ok(tools) = require(&[Need::Etcd, Need::Root, Need::System("tcpdump")]) else { return };
    let etcd = EtcdCluster::start(&tools, 3).expect("etcd starts");
    let mut cluster =
        CairnCluster::start(ClusterOptions::new(&["a", "b", "c"], etcd.database_url("/t"))).await;
    make_volume(&cluster.client(), 3).await;
    let port = |address: String| address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let ports: Vec<_> =
        (0..3).flat_map(|node| [port(cluster.grpc(node)), port(cluster.https(node))]).collect();
    let capture = Capture::start(cluster.folder(), &ports);

    let content = Bytes::from(MARKER.repeat(50_000));
    let path = "a-name-that-nobody-may-read";
    put(&cluster.client_of(&[0]), path, content.clone()).await;
    must_read(&cluster.client_of(&[1]), path, &content).await;
    // Two copies are enough for an upload: the third may still be on its way, and would end with its node.
    let all_copies = |status: &StatusResponse| {
        status.settled == status.placement_groups && status.nodes.iter().all(|node| node.chunks == 1)
    };
    cluster.wait("three copies", all_copies).await;
    cluster.kill(2);
    cluster.lose_disk(2);
    cluster.restart(2);
    cluster.wait("the lost disk is filled from the others", all_copies).await;

    let address = cluster.grpc(0);
    let seen = capture.finish(&address).await;
    // In from the client, out to two others, back to the client, and to the new disk.
    assert!(seen.len() > 5 * content.len(), "only {} bytes were captured", seen.len());
    let token = cluster.token();
    for secret in [MARKER, path, &token] {
        assert!(!contains(&seen, secret), "{secret:?} went over the wire in plain text");
    }
}
