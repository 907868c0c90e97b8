//! A real etcd of one or more members on loopback, for tests.
//!
//! Members sync to a real disk (below `target/`), as in production. One can be killed and started again, or all can be
//! paused: their connections stay open and nothing answers, as when etcd is away. Everything is gone with the value.
//!
//! ```no_run
//! use cairn_tests::etcd::EtcdCluster;
//! use cairn_tests::tools::{Need, require};
//! let Ok(tools) = require(&[Need::Etcd]) else { return };
//! let etcd = EtcdCluster::start(&tools, 3).unwrap();
//! println!("{}", etcd.database_url("/cairn"));   // etcd://127.0.0.1:…,127.0.0.1:…/cairn
//! etcd.kill(0);
//! etcd.restart(0).unwrap();
//! ```
//! All calls block; from an async test use a runtime of several threads, or `spawn_blocking`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use thiserror::Error;

use crate::pki::{Authority, Identity, loopback_names};
use crate::ports;
use crate::process::{Process, Spec, poll};
use crate::scratch::{Scratch, copy_folder};
use crate::tools::Tools;

/// How long members may take until they have a leader and answer. Two cores may be busy with other tests.
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// How often a cluster is started afresh when another process takes one of its ports in between.
const ATTEMPTS: usize = 3;

#[derive(Debug, Error)]
pub enum EtcdError {
    #[error("etcd: {0}")]
    Io(#[from] std::io::Error),
    #[error("etcd member {member} {what}; the end of its log:\n{log}")]
    Member { member: usize, what: &'static str, log: String },
}

/// Certificates of a cluster that was started with TLS between it and its clients.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    pub authority_pem: String,
    /// What a client shows.
    pub client: Identity,
}

#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    pub members: usize,
    /// Clients speak TLS and show a certificate.
    pub tls: bool,
    /// `--quota-backend-bytes`, to see what a full etcd does.
    pub quota_bytes: Option<u64>,
    /// Appended to each member's arguments.
    pub more_arguments: Vec<String>,
}

/// A running cluster. Dropping it kills the members and removes their folders.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Member>,
    tls: Option<EtcdTls>,
    /// Last: removed after the members are dead.
    folder: Scratch,
}

#[derive(Debug)]
struct Member {
    program: PathBuf,
    arguments: Vec<String>,
    client: SocketAddr,
    health: SocketAddr,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl EtcdCluster {
    /// Starts so many members and waits until each of them answers. `tools` must have been asked for `Need::Etcd`.
    pub fn start(tools: &Tools, members: usize) -> Result<Self, EtcdError> {
        Self::start_with(tools, EtcdOptions { members, ..EtcdOptions::default() })
    }

    pub fn start_with(tools: &Tools, options: EtcdOptions) -> Result<Self, EtcdError> {
        assert!(options.members > 0, "an etcd has at least one member");
        let mut attempt = 1;
        loop {
            match Self::start_once(tools, &options) {
                Err(EtcdError::Member { log, .. })
                    if attempt < ATTEMPTS && log.contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn start_once(tools: &Tools, options: &EtcdOptions) -> Result<Self, EtcdError> {
        let folder = Scratch::new("etcd")?;
        let tls = if options.tls { Some(write_certificates(folder.path())?) } else { None };
        let ports: Vec<[u16; 3]> =
            ports::free(options.members * 3).chunks(3).map(|c| [c[0], c[1], c[2]]).collect();
        let initial: Vec<String> =
            ports.iter().enumerate().map(|(i, p)| format!("m{i}=http://127.0.0.1:{}", p[1])).collect();
        let initial = initial.join(",");
        let members = ports
            .iter()
            .enumerate()
            .map(|(i, ports)| Member {
                program: tools.path("etcd").to_path_buf(),
                arguments: arguments(i, ports, &initial, folder.path(), options),
                client: ports::loopback(ports[0]),
                health: ports::loopback(ports[2]),
                log: folder.path().join(format!("m{i}.log")),
                process: Mutex::new(None),
            })
            .collect();
        let cluster = Self { members, tls, folder };
        for index in 0..cluster.len() {
            cluster.spawn(index)?;
        }
        for index in 0..cluster.len() {
            cluster.wait_healthy(index)?;
        }
        Ok(cluster)
    }

    /// How many members it has, dead ones too.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// `host:port` of each member, for clients.
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|m| m.client.to_string()).collect()
    }

    /// `http://host:port` (or https) of each member.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.members.iter().map(|m| format!("{scheme}://{}", m.client)).collect()
    }

    /// `etcd://h1,h2,h3/prefix`; the prefix with or without a slash in front.
    pub fn database_url(&self, prefix: &str) -> String {
        format!("etcd://{}/{}", self.addresses().join(","), prefix.trim_start_matches('/'))
    }

    pub fn tls(&self) -> Option<&EtcdTls> {
        self.tls.as_ref()
    }

    /// `kill -9` of one member. Nothing happens when it is dead already.
    pub fn kill(&self, member: usize) {
        if let Some(process) = self.slot(member).take() {
            process.kill();
        }
    }

    /// Starts a killed member with its old data and waits until it answers.
    pub fn restart(&self, member: usize) -> Result<(), EtcdError> {
        self.kill(member);
        self.spawn(member)?;
        self.wait_healthy(member)
    }

    /// Stops all members, keeps a copy of their data under this name, and starts them again.
    pub fn save(&self, name: &str) -> Result<(), EtcdError> {
        self.replace_data(copy_folder, name)
    }

    /// Stops all members, and starts them with the data that was kept: what a restored backup is.
    pub fn restore(&self, name: &str) -> Result<(), EtcdError> {
        self.replace_data(
            |data, kept| {
                std::fs::remove_dir_all(data)?;
                copy_folder(kept, data)
            },
            name,
        )
    }

    fn replace_data(
        &self,
        change: impl Fn(&Path, &Path) -> std::io::Result<()>,
        name: &str,
    ) -> Result<(), EtcdError> {
        (0..self.len()).for_each(|member| self.kill(member));
        for member in 0..self.len() {
            let folder = self.folder.path();
            change(&folder.join(format!("m{member}")), &folder.join(format!("{name}-m{member}")))?;
        }
        (0..self.len()).try_for_each(|member| self.spawn(member))?;
        (0..self.len()).try_for_each(|member| self.wait_healthy(member))
    }

    /// Stops one member in its tracks (SIGSTOP).
    pub fn pause(&self, member: usize) {
        self.slot(member).iter().for_each(Process::pause);
    }

    pub fn resume(&self, member: usize) {
        self.slot(member).iter().for_each(Process::resume);
    }

    /// Stops all members: etcd is away.
    pub fn pause_all(&self) {
        (0..self.len()).for_each(|i| self.pause(i));
    }

    pub fn resume_all(&self) {
        (0..self.len()).for_each(|i| self.resume(i));
    }

    /// Waits until a member knows a leader and answers a linearizable read.
    pub fn wait_healthy(&self, member: usize) -> Result<(), EtcdError> {
        enum Seen {
            Healthy,
            Ended,
        }
        let seen = poll(HEALTHY_WITHIN, Duration::from_millis(50), || {
            if self.slot(member).as_ref().is_none_or(|p| p.exited().is_some()) {
                return Some(Seen::Ended);
            }
            is_healthy(self.members[member].health).then_some(Seen::Healthy)
        });
        let what = match seen {
            Some(Seen::Healthy) => return Ok(()),
            Some(Seen::Ended) => "has ended",
            None => "does not become healthy",
        };
        let log = crate::process::tail(&self.members[member].log, 20);
        Err(EtcdError::Member { member, what, log })
    }

    /// Requests of its key-value service that all members have answered.
    pub fn requests(&self) -> std::io::Result<u64> {
        let count = |line: &str| -> Option<f64> {
            let labels = line.strip_prefix("grpc_server_handled_total{")?;
            let is_ours = labels.contains(r#"grpc_service="etcdserverpb.KV""#);
            labels.rsplit(' ').next().filter(|_| is_ours)?.parse().ok()
        };
        let mut all = 0.0;
        for member in &self.members {
            all += ask(member.health, "/metrics")?.lines().filter_map(count).sum::<f64>();
        }
        Ok(all as u64)
    }

    /// Whether a member answers a linearizable read right now.
    pub fn is_healthy(&self, member: usize) -> bool {
        is_healthy(self.members[member].health)
    }

    /// The folder that holds each member's data (`m0`, `m1`, …) and log (`m0.log`, …).
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn spawn(&self, index: usize) -> Result<(), EtcdError> {
        let member = &self.members[index];
        let spec = Spec::new(format!("etcd-m{index}"), &member.program).args(&member.arguments);
        *self.slot(index) = Some(spec.log(&member.log).spawn()?);
        Ok(())
    }

    fn slot(&self, member: usize) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.members[member].process.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for index in 0..self.len() {
            let process = self.slot(index).take();
            if let (Some(process), true) = (&process, std::thread::panicking()) {
                eprintln!("--- end of the log of etcd member {index}\n{}", process.log_tail(15));
            }
        }
    }
}

/// The folder below `target/` for what must lie on a real disk.
pub fn disk_folder() -> std::io::Result<PathBuf> {
    let folder = match option_env!("CARGO_TARGET_TMPDIR") {
        Some(folder) => PathBuf::from(folder),
        None => target_folder().join("tmp"),
    };
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// `target/`, seen from the running program, which lies below it; else below the current folder.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let of_program = program.ancestors().find(|f| f.join("CACHEDIR.TAG").is_file());
    of_program.map(Path::to_path_buf).unwrap_or_else(|| PathBuf::from("target"))
}

fn arguments(
    index: usize,
    ports: &[u16; 3],
    initial: &str,
    folder: &Path,
    options: &EtcdOptions,
) -> Vec<String> {
    let [client, peer, health] = ports;
    let scheme = if options.tls { "https" } else { "http" };
    let mut all = vec![
        format!("--name=m{index}"),
        format!("--data-dir={}", folder.join(format!("m{index}")).display()),
        format!("--listen-client-urls={scheme}://127.0.0.1:{client}"),
        format!("--advertise-client-urls={scheme}://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
        format!("--listen-metrics-urls=http://127.0.0.1:{health}"),
        format!("--initial-cluster={initial}"),
        format!("--initial-cluster-token={initial}"),
        "--initial-cluster-state=new".to_string(),
        "--log-level=warn".to_string(),
    ];
    if options.tls {
        all.push(format!("--cert-file={}", folder.join("server.crt").display()));
        all.push(format!("--key-file={}", folder.join("server.key").display()));
        all.push(format!("--trusted-ca-file={}", folder.join("ca.crt").display()));
        all.push("--client-cert-auth".to_string());
    }
    if let Some(quota) = options.quota_bytes {
        all.push(format!("--quota-backend-bytes={quota}"));
    }
    all.extend(options.more_arguments.iter().cloned());
    all
}

fn write_certificates(folder: &Path) -> std::io::Result<EtcdTls> {
    let authority = Authority::new("etcd-test-ca");
    std::fs::write(folder.join("ca.crt"), authority.certificate_pem())?;
    authority.issue("etcd", None, &loopback_names()).write(folder, "server")?;
    Ok(EtcdTls { authority_pem: authority.certificate_pem(), client: authority.issue("cairn", None, &[]) })
}

fn is_healthy(address: SocketAddr) -> bool {
    ask(address, "/health").is_ok_and(|answer| answer.contains(r#""health":"true""#))
}

/// What a member answers on its port for health and metrics, which has no TLS.
fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(4 << 20).read_to_string(&mut answer)?;
    Ok(answer)
}
