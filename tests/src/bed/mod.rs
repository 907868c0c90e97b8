//! A real Kubernetes on this machine, in three sizes, for tests and for `make kube`.
//!
//! | tier | what runs | ready after | needs |
//! |---|---|---|---|
//! | [`Tier::Api`] | etcd, kube-apiserver | 3 s | nothing |
//! | [`Tier::Control`] | and kube-controller-manager, kube-scheduler | 4 s | nothing |
//! | [`Tier::Kubelets`] | and CoreDNS, and nodes with containerd, kubelet, kube-proxy | 12 s | root, Linux |
//!
//! The first two listen on loopback. With kubelets everything lives in network namespaces of its own: a control plane
//! (10.201.0.1) with a bridge, and a namespace for each node `n1`, `n2`, … (10.201.0.11, …; pods 10.244.N.0/24) in zone
//! `zone-a`, `zone-b`, …. The API server and anything else inside is reached through ports on our loopback
//! ([`Bed::forward`]), so [`Bed::client`], [`Bed::kubectl`] and [`Bed::helm`] work the same in every tier.
//!
//! A bed is gone with its value, also after a panic; what a killed process leaves is cleared by the next bed
//! ([`slot`], [`teardown`]). Calls block, those marked `async` aside: from async tests use a runtime of several threads.
//!
//! ```no_run
//! use cairn_tests::bed::{Bed, BedOptions, Tier};
//! use cairn_tests::tools::{Need, require};
//! let Ok(tools) = require(&[Need::Kubelets]) else { return };
//! let bed = Bed::start(&tools, BedOptions::new(Tier::Kubelets(3))).unwrap();
//! println!("{}", bed.kubectl(&["get", "nodes"]).unwrap());
//! ```

mod cgroup;
mod control;
pub mod image;
pub mod netns;
mod node;
pub mod slot;
pub mod teardown;
mod volumes;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::config::{KubeConfigOptions, Kubeconfig};
use thiserror::Error;

use crate::process::{Process, Spec, run, tail};
use crate::scratch::Scratch;
use crate::tools::Tools;

use control::Plane;
pub use image::{ImageSpec, OciImage};
use netns::Forwarder;
use node::Node;
use slot::Slot;
pub use volumes::STORAGE_CLASS;

/// How long any part may take to be ready. Two cores may be busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// How long one kubectl or helm may run.
const COMMAND_WITHIN: Duration = Duration::from_secs(300);
/// Addresses of ClusterIP services.
const SERVICE_NETWORK: &str = "10.96.";

#[derive(Debug, Error)]
pub enum BedError {
    #[error("test cluster: {0}")]
    Io(#[from] io::Error),
    #[error("{what} failed: {output}")]
    Command { what: String, output: String },
    #[error("{what} is not ready after {seconds} s\n{report}")]
    NotReady { what: String, seconds: u64, report: String },
    #[error("Kubernetes client: {0}")]
    Client(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Api,
    Control,
    /// So many nodes, 1 to 9.
    Kubelets(usize),
}

#[derive(Clone, Debug)]
pub struct BedOptions {
    pub tier: Tier,
    /// Loaded into every node before its kubelet starts.
    pub images: Vec<OciImage>,
}

impl BedOptions {
    pub fn new(tier: Tier) -> Self {
        Self { tier, images: Vec::new() }
    }

    pub fn images(mut self, images: impl IntoIterator<Item = OciImage>) -> Self {
        self.images.extend(images);
        self
    }
}

/// Where a bed keeps its files: a slot when it has nodes, else just a folder.
#[derive(Debug)]
enum Place {
    Slot(Slot),
    Folder(Scratch),
}

/// A running cluster. Dropping it takes everything down.
#[derive(Debug)]
pub struct Bed {
    tools: Tools,
    tier: Tier,
    plane: Plane,
    nodes: Vec<Node>,
    forwarders: Mutex<BTreeMap<SocketAddr, Forwarder>>,
    kubeconfig: PathBuf,
    down: bool,
    /// Last: clears up after everything else has ended.
    place: Place,
}

impl Bed {
    /// Starts a cluster and waits until all of it is ready. `tools` must have been asked for `Need::KubeApi`,
    /// `Need::KubeControl` or `Need::Kubelets`, as the tier wants.
    pub fn start(tools: &Tools, options: BedOptions) -> Result<Self, BedError> {
        // Two providers may be compiled in: say which one this process uses. Fails when someone has said it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let place = match options.tier {
            Tier::Kubelets(_) => Place::Slot(Slot::take()?),
            _ => Place::Folder(Scratch::new("kube")?),
        };
        let plane = Plane::prepare(tools, &place)?;
        let mut bed = Self {
            tools: tools.clone(),
            tier: options.tier,
            plane,
            nodes: Vec::new(),
            forwarders: Mutex::default(),
            kubeconfig: place.folder().join("kubeconfig"),
            down: false,
            place,
        };
        bed.bring_up(&options)?;
        Ok(bed)
    }

    fn bring_up(&mut self, options: &BedOptions) -> Result<(), BedError> {
        self.plane.start_api(&self.place)?;
        let server = match self.plane.netns() {
            Some(_) => self.forward(self.plane.api_address().ip(), self.plane.api_address().port())?,
            None => self.plane.api_address(),
        };
        self.plane.write_kubeconfig(&self.kubeconfig, "admin", Some("system:masters"), server)?;
        self.wait_api()?;
        if self.tier != Tier::Api {
            self.plane.start_controllers(&self.place)?;
        }
        if let Tier::Kubelets(count) = self.tier {
            assert!((1..=9).contains(&count), "1 to 9 kubelets");
            self.plane.start_dns(&self.place)?;
            let pause = ImageSpec::program(node::PAUSE_IMAGE, self.tools.path("pause")).user("65532:65532");
            let mut images = vec![pause.build(&self.folder().join("images"))?];
            images.extend(options.images.iter().cloned());
            for number in 1..=count {
                self.nodes.push(Node::prepare(number, &self.plane, &self.place, &self.tools)?);
            }
            std::thread::scope(|scope| {
                let starts: Vec<_> = self.nodes.iter().map(|n| scope.spawn(|| n.start(&images))).collect();
                starts.into_iter().try_for_each(|s| s.join().expect("a node's starter does not panic"))
            })?;
            self.wait_nodes("every node", |ready| ready.len() == count && ready.values().all(|r| *r))?;
        }
        Ok(())
    }

    /// A client with all rights.
    pub async fn client(&self) -> Result<kube::Client, BedError> {
        let failed = |e: &dyn std::fmt::Display| BedError::Client(e.to_string());
        let file = Kubeconfig::read_from(&self.kubeconfig).map_err(|e| failed(&e))?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| failed(&e))?;
        kube::Client::try_from(config).map_err(|e| failed(&e))
    }

    /// A kubeconfig with all rights, usable from this machine while the bed lives.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl; what it printed, or an error that holds what it complained about.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, BedError> {
        self.command("kubectl", arguments, None)
    }

    /// `kubectl apply -f -` of some YAML.
    pub fn apply(&self, yaml: &str) -> Result<String, BedError> {
        self.command("kubectl", &["apply", "-f", "-"], Some(yaml))
    }

    pub fn helm(&self, arguments: &[&str]) -> Result<String, BedError> {
        self.command("helm", arguments, None)
    }

    fn command(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, BedError> {
        let home = self.folder().join("home");
        let spec = Spec::new(program, self.tools.path(program))
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", home.join("kube"))
            .env("HELM_CACHE_HOME", home.join("helm-cache"))
            .env("HELM_CONFIG_HOME", home.join("helm-config"))
            .env("HELM_DATA_HOME", home.join("helm-data"));
        let what = format!("{program} {}", arguments.join(" "));
        let output = run(spec, input.map(str::as_bytes), COMMAND_WITHIN)?;
        if output.success {
            return Ok(output.stdout);
        }
        Err(BedError::Command { what, output: format!("{}{}", output.stdout, output.stderr) })
    }

    /// A port on our loopback that leads to an address inside: a pod's, a node's, or a service's.
    pub fn forward(&self, ip: IpAddr, port: u16) -> Result<SocketAddr, BedError> {
        let target = SocketAddr::new(ip, port);
        let inside = match self.plane.netns() {
            None => return Ok(target),
            Some(_) if ip.to_string().starts_with(SERVICE_NETWORK) => self.node(1).netns(),
            Some(plane) => plane,
        };
        let mut forwarders = self.forwarders.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(there) = forwarders.get(&target) {
            return Ok(there.local());
        }
        let forwarder = Forwarder::start(inside, target)?;
        let local = forwarder.local();
        forwarders.insert(target, forwarder);
        Ok(local)
    }

    /// Names of the nodes: `n1`, `n2`, ….
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.name().to_string()).collect()
    }

    /// Cuts a node's power: its link goes down, then kubelet, containerd and all containers are killed; mounts and what a
    /// machine forgets with its power are gone. Volumes stay. Nodes count from 1.
    pub fn kill_node(&self, number: usize) -> Result<(), BedError> {
        self.node(number).kill()
    }

    /// Switches a node on again. Returns when its kubelet runs; see [`Bed::wait_node`] for ready.
    pub fn start_node(&self, number: usize) -> Result<(), BedError> {
        self.node(number).start(&[])
    }

    /// Waits until Kubernetes sees a node as ready, or as not ready.
    pub fn wait_node(&self, number: usize, ready: bool) -> Result<(), BedError> {
        let name = self.node(number).name().to_string();
        let what = if ready { format!("node {name}") } else { format!("the loss of node {name}") };
        self.wait_nodes(&what, |seen| seen.get(&name) == Some(&ready))
    }

    /// Loads an image into every node.
    pub fn load_image(&self, image: &OciImage) -> Result<(), BedError> {
        self.nodes.iter().try_for_each(|n| n.load(image))
    }

    /// A node's folder for local volume `index` (from 0), as [`Bed::local_volumes`] made it.
    pub fn volume_folder(&self, number: usize, index: usize) -> PathBuf {
        self.node(number).volume_folder(index)
    }

    /// A part of the control plane, such as `etcd` or `kube-apiserver`, to pause or kill it.
    pub fn component(&self, name: &str) -> Option<&Process> {
        self.plane.component(name)
    }

    /// The network namespace of the control plane, or of a node (from 1), to capture packets in it.
    pub fn namespace(&self, node: Option<usize>) -> Option<&Path> {
        match node {
            Some(number) => Some(self.node(number).netns()),
            None => self.plane.netns(),
        }
    }

    /// The bed's files: logs in `log/`, certificates in `pki/`.
    pub fn folder(&self) -> &Path {
        self.place.folder()
    }

    /// What one wants to read after a failure: pods, events, the ends of the logs of pods and of the cluster's parts.
    pub fn report(&self) -> String {
        let mut all = String::new();
        let queries: [&[&str]; 2] = [
            &["get", "nodes,pods,pvc", "-A", "-o", "wide", "--request-timeout=5s"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp", "--request-timeout=5s"],
        ];
        for query in queries {
            let text = self.kubectl(query).unwrap_or_else(|e| e.to_string());
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(60)..].join("\n");
            all.push_str(&format!("--- kubectl {}\n{end}\n", query.join(" ")));
        }
        let pods = self.nodes.iter().map(|n| (n.pod_logs(), 25));
        for (folder, lines) in pods.chain([(self.folder().join("log"), 8)]) {
            let files = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().flatten();
            for file in files.filter(|f| f.file_type().is_file()) {
                let name = file.path().strip_prefix(self.folder()).unwrap_or(file.path());
                all.push_str(&format!("--- end of {}\n{}\n", name.display(), tail(file.path(), lines)));
            }
        }
        all
    }

    /// Takes everything down and waits until it is gone. Dropping does the same.
    pub fn down(mut self) {
        self.take_down();
    }

    fn take_down(&mut self) {
        if std::mem::replace(&mut self.down, true) {
            return;
        }
        self.forwarders.lock().unwrap_or_else(|e| e.into_inner()).clear();
        self.nodes.iter().for_each(Node::end);
        self.plane.end();
    }

    fn node(&self, number: usize) -> &Node {
        assert!((1..=self.nodes.len()).contains(&number), "there is no node n{number}");
        &self.nodes[number - 1]
    }

    fn wait_api(&self) -> Result<(), BedError> {
        self.wait("kube-apiserver", |client| async move {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a fine request");
            client.request_text(request).await.is_ok_and(|text| text == "ok")
        })
    }

    fn wait_nodes(
        &self,
        what: &str,
        fine: impl Fn(&BTreeMap<String, bool>) -> bool + Sync,
    ) -> Result<(), BedError> {
        let fine = &fine;
        self.wait(what, move |client| async move {
            let api: kube::Api<KubeNode> = kube::Api::all(client);
            let Ok(nodes) = api.list(&Default::default()).await else { return false };
            let ready =
                nodes.items.iter().map(|n| (n.metadata.name.clone().unwrap_or_default(), is_ready(n)));
            fine(&ready.collect())
        })
    }

    /// Asks until the answer is yes; each question may take five seconds.
    fn wait<F>(&self, what: &str, ask: impl Fn(kube::Client) -> F + Send + Sync) -> Result<(), BedError>
    where
        F: Future<Output = bool>,
    {
        let ready = self.on_runtime(|| async {
            let client = self.client().await?;
            let start = Instant::now();
            while start.elapsed() < READY_WITHIN {
                let answer = tokio::time::timeout(Duration::from_secs(5), ask(client.clone())).await;
                if answer == Ok(true) {
                    return Ok(true);
                }
                if let Some(dead) = self.plane.dead() {
                    return Err(BedError::Command {
                        what: dead.name().to_string(),
                        output: dead.log_tail(20),
                    });
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(false)
        })?;
        if ready {
            return Ok(());
        }
        Err(BedError::NotReady {
            what: what.to_string(),
            seconds: READY_WITHIN.as_secs(),
            report: self.report(),
        })
    }

    /// A runtime on a thread of its own, so that callers may be inside another one.
    fn on_runtime<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime can be made").block_on(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.down {
            eprintln!("{}", self.report());
        }
        self.take_down();
    }
}

impl Place {
    fn folder(&self) -> &Path {
        match self {
            Self::Slot(slot) => &slot.folder,
            Self::Folder(folder) => folder.path(),
        }
    }

    /// Starts a process whose output goes to `log/NAME.log` and that is found again should we be killed.
    fn spawn(&self, spec: Spec, name: &str) -> io::Result<Process> {
        let log = self.folder().join("log");
        std::fs::create_dir_all(&log)?;
        let process = spec.log(log.join(format!("{name}.log"))).folder(self.folder()).spawn()?;
        if let Self::Slot(slot) = self {
            teardown::record(slot, name, process.pid());
        }
        Ok(process)
    }
}

/// Whether pods can be placed on it: Kubernetes takes the mark of a node that is not ready away a moment after it is.
fn is_ready(node: &KubeNode) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let marked =
        node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).is_some_and(|taints| !taints.is_empty());
    !marked && conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
