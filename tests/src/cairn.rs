//! A real cluster of `cairn-node` processes: real TLS, real disks, a real metadata store.
//!
//! Nodes can be killed, stopped, started again and lose their disk. Everything ends, and every folder goes, when the
//! value is dropped; after a panic the ends of the logs are printed.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cairn_client::{Client, ClientConfig, NodeState, Pem, StatusResponse};
use cairn_node::{
    env::real::{RealClock, RealRandom},
    meta::{SharedMeta, keys},
    secrets::{self, SecretFiles},
};

use crate::{
    ports,
    process::{Output, Process, Spec, run},
    programs,
    scratch::Scratch,
};

/// How long anything here may take to come about.
const LIMIT: Duration = Duration::from_secs(60);

/// Of each node: more than any test stores, and large enough for segments of the usual size.
const CAPACITY: &str = "4Gi";

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// A zone for each node.
    pub zones: Vec<&'static str>,
    pub database_url: String,
    /// More environment of every node.
    pub environment: Vec<(&'static str, String)>,
    /// A node with a file system of its own, and the file that this is in. Nobody else sees it mounted. Needs root.
    /// `MOUNTED` in the environment has more options for mounting it.
    pub image: Option<(usize, PathBuf)>,
    /// Nobody takes the nodes' logs after the first line.
    pub unread_log: bool,
}

impl ClusterOptions {
    /// One node in each of `zones`, with the metadata store at `database_url`.
    pub fn new(zones: &[&'static str], database_url: impl Into<String>) -> Self {
        Self {
            zones: zones.to_vec(),
            database_url: database_url.into(),
            environment: Vec::new(),
            image: None,
            unread_log: false,
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }
}

/// Mounts the image on the data folder, where nobody else sees it, and becomes the node.
const ON_IMAGE: &str = r#"image=$1 data=$2; shift 2; mount -o "loop,noatime${MOUNTED:+,$MOUNTED}" "$image" "$data" && exec "$@""#;

struct Member {
    name: String,
    zone: &'static str,
    grpc: u16,
    http: u16,
    data: PathBuf,
    /// Its disk was taken from it, and it is to be told so.
    lost_disk: bool,
    process: Option<Process>,
}

/// Running nodes.
pub struct CairnCluster {
    options: ClusterOptions,
    members: Vec<Member>,
    secrets: SecretFiles,
    folder: Scratch,
}

impl CairnCluster {
    /// Starts the nodes and waits until all are live and the first map is made.
    pub async fn start(options: ClusterOptions) -> Self {
        let cluster = Self::prepare(options);
        let mut cluster = cluster;
        for index in 0..cluster.members.len() {
            cluster.restart(index);
        }
        cluster
            .wait("every node is live and mapped", |status| {
                let live = status.nodes.iter().filter(|node| node.state() == NodeState::NodeLive).count();
                status.map_generation > 0 && live == status.nodes.len()
            })
            .await;
        cluster
    }

    /// Makes folders and secrets, and starts nothing.
    pub fn prepare(options: ClusterOptions) -> Self {
        let folder = Scratch::new("cluster").expect("a folder for the cluster");
        let made =
            secrets::init(&folder.path().join("secrets"), "test", &[], &RealClock::default(), &RealRandom);
        let secrets = made.expect("secrets can be made").files;
        let ports = ports::free(options.zones.len() * 2);
        let member = |(index, zone): (usize, &&'static str)| Member {
            name: format!("n{}", index + 1),
            zone,
            grpc: ports[index * 2],
            http: ports[index * 2 + 1],
            data: folder.path().join(format!("n{}", index + 1)),
            lost_disk: false,
            process: None,
        };
        let members = options.zones.iter().enumerate().map(member).collect();
        Self { members, secrets, folder, options }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn secrets(&self) -> &SecretFiles {
        &self.secrets
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `127.0.0.1:port` of a node's gRPC services.
    pub fn grpc(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.members[index].grpc)
    }

    /// `https://127.0.0.1:port` of a node's HTTP interface.
    pub fn https(&self, index: usize) -> String {
        format!("https://127.0.0.1:{}", self.members[index].http)
    }

    pub fn data_folder(&self, index: usize) -> &Path {
        &self.members[index].data
    }

    pub fn token(&self) -> String {
        let text = std::fs::read_to_string(&self.secrets.client_token).expect("the client's token");
        text.trim().to_owned()
    }

    /// A client that knows every node.
    pub fn client(&self) -> Client {
        self.client_of(&(0..self.len()).collect::<Vec<_>>())
    }

    /// A client that knows only these nodes.
    pub fn client_of(&self, nodes: &[usize]) -> Client {
        let endpoints = nodes.iter().map(|index| self.grpc(*index));
        let ca = Pem::File(self.secrets.authority_certificate.clone());
        let config = ClientConfig::new(endpoints, ca).with_token(self.token());
        Client::connect(config).expect("a client's configuration")
    }

    /// Runs `cairn`, as people do, with every node to talk to.
    pub fn cairn(&self, arguments: &[&str]) -> Output {
        let endpoints: Vec<_> = (0..self.len()).map(|node| format!("https://{}", self.grpc(node))).collect();
        let spec = Spec::new("cairn", programs::built("cairn")).args(arguments);
        run(self.as_user(spec, &endpoints.join(",")), None, 2 * LIMIT).expect("cairn runs")
    }

    /// With what `cairn` has to know at the end of its arguments: where nodes are, whom to trust, and a token.
    pub fn as_user(&self, spec: Spec, endpoints: &str) -> Spec {
        let spec = spec.clear_env().env("PATH", std::env::var("PATH").unwrap_or_default());
        let spec = spec.env("HOME", self.folder()).args(["--endpoint", endpoints]);
        let spec = spec.arg("--ca-file").arg(&self.secrets.authority_certificate);
        spec.arg("--token-file").arg(&self.secrets.client_token)
    }

    /// The command that starts a node.
    pub fn spec(&self, index: usize) -> Spec {
        let member = &self.members[index];
        let path = |path: &Path| path.display().to_string();
        let program = programs::built("cairn-node");
        let spec = match &self.options.image {
            Some((of, image)) if *of == index => {
                std::fs::create_dir_all(&member.data).expect("a data folder");
                let spec = Spec::new(&member.name, "unshare").args(["-m", "sh", "-c", ON_IMAGE, "sh"]);
                spec.arg(image).arg(&member.data).arg(program)
            }
            _ if self.options.unread_log => Spec::new(&member.name, program).unread(),
            _ => Spec::new(&member.name, program),
        };
        let spec = spec
            .clear_env()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .log(self.log(index))
            .env("CLUSTER_NAME", "test")
            .env("NODE_NAME", &member.name)
            .env("ZONE", member.zone)
            .env("DATA_DIR", path(&member.data))
            .env("DATABASE_URL", &self.options.database_url)
            .env("BIND_HOST", "127.0.0.1")
            .env("ADVERTISE_HOST", "127.0.0.1")
            .env("GRPC_PORT", member.grpc.to_string())
            .env("HTTP_PORT", member.http.to_string())
            .env("TLS_CA_FILE", path(&self.secrets.authority_certificate))
            .env("TLS_CERT_FILE", path(&self.secrets.node_certificate))
            .env("TLS_KEY_FILE", path(&self.secrets.node_key))
            .env("KEK_FILE", path(&self.secrets.kek))
            .env("CLIENT_TOKENS_FILE", path(&self.secrets.tokens))
            .env("EXPECTED_NODES", self.members.len().to_string())
            // The reserve (R16) is a part of it, not of the machine's disk, which may be nearly full.
            .env("CAPACITY", CAPACITY)
            // Tests wait for leases to run out: shorter ones make them shorter.
            .env("LEASE_SECONDS", "3")
            .env("REPAIR_SECONDS", "1")
            .env("COMPARE_SECONDS", "1");
        self.options.environment.iter().fold(spec, |spec, (name, value)| spec.env(name, value))
    }

    /// Mounts a running node's image with other options.
    pub fn remount(&self, index: usize, options: &str) {
        let data = self.members[index].data.clone();
        let spec = Spec::new("nsenter", "nsenter").args(["-m", "-t", &self.process(index).pid().to_string()]);
        let spec = spec.args(["mount", "-o", &format!("remount,{options}")]).arg(data);
        let done = run(spec, None, LIMIT).expect("nsenter runs");
        assert!(done.success, "{done:?}");
    }

    pub fn log(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{}.log", self.members[index].name))
    }

    /// Starts a node that does not run; one that has lost its disk may take a new one.
    pub fn restart(&mut self, index: usize) {
        let mut spec = self.spec(index);
        if std::mem::take(&mut self.members[index].lost_disk) {
            spec = spec.env("NEW_DISK", &self.members[index].name);
        }
        let process = spec.spawn().expect("cairn-node starts");
        self.members[index].process = Some(process);
    }

    pub fn process(&self, index: usize) -> &Process {
        self.members[index].process.as_ref().expect("the node runs")
    }

    /// `kill -9`.
    pub fn kill(&mut self, index: usize) {
        self.members[index].process.take().expect("the node runs").kill();
    }

    /// SIGTERM; its exit code must be 0.
    pub fn stop(&mut self, index: usize) {
        let status = self.members[index].process.take().expect("the node runs").terminate(LIMIT);
        assert!(status.success(), "{} ended with {status} after SIGTERM", self.members[index].name);
    }

    /// Removes a stopped node's disk.
    pub fn lose_disk(&mut self, index: usize) {
        assert!(self.members[index].process.is_none(), "the node still runs");
        std::fs::remove_dir_all(&self.members[index].data).expect("a data folder");
        self.members[index].lost_disk = true;
    }

    /// Waits until the cluster's status is as wanted.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn wait(&self, what: &str, wanted: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
        let client = self.client();
        until(what, async || {
            let status = client.status().await;
            match status {
                Ok(status) if wanted(&status) => Ok(status),
                other => Err(other),
            }
        })
        .await
    }

    /// Waits until every placement group is settled.
    pub async fn wait_settled(&self) -> StatusResponse {
        self.wait("every placement group is settled", |status| {
            status.placement_groups > 0 && status.settled == status.placement_groups
        })
        .await
    }
}

/// Waits until the coordinator has counted so many ticks more, and so looked at the queue of deletions as often.
///
/// # Panics
/// If the ticks stand still.
pub async fn wait_ticks(meta: &SharedMeta, more: u64) {
    let tick = async || {
        let entry = meta.get(&keys::tick_key()).await.expect("the store answers");
        keys::number(&entry.expect("ticks are counted")).expect("a number")
    };
    let end = tick().await + more;
    until("the ticks go on", async || match tick().await {
        now if now >= end => Ok(()),
        now => Err(now),
    })
    .await
}

/// Looks again and again, until there is what is wanted.
///
/// # Panics
/// If that takes too long; says what was there instead.
pub async fn until<T, Other: std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, Other>,
) -> T {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) if begun.elapsed() > LIMIT => panic!("{what}: not within {LIMIT:?}; last: {last:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Drop for CairnCluster {
    fn drop(&mut self) {
        let mut panicked = Vec::new();
        for index in 0..self.members.len() {
            self.members[index].process.take();
            let (log, name) = (self.log(index), &self.members[index].name);
            if std::thread::panicking() {
                eprintln!("--- end of the log of {name}\n{}", crate::process::tail(&log, 25));
            } else if let Some(line) = panic_in(&log) {
                panicked.push(format!("{name}: {line}"));
            }
        }
        // What a node survives is a bug all the same.
        assert!(panicked.is_empty(), "{panicked:#?}");
    }
}

fn panic_in(log: &Path) -> Option<String> {
    let log = std::fs::read(log).ok()?;
    let log = String::from_utf8_lossy(&log);
    log.lines().find(|line| line.contains("panicked at")).map(str::to_owned)
}
