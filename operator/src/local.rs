//! `cairn-operator local`: a whole cluster in this process, from the manifests that Kubernetes takes.
//!
//! manifests → planner (the same validation, the same refusals, the same node names) → folder, secrets, metadata store →
//! nodes, each with a runtime, an identity, ports and a disk of its own → intent and volumes, through the client like
//! anybody else's → ready.
//!
//! The metadata store belongs to the supervisor and lives on its runtime, so a node can be dropped at any moment as if its
//! machine had lost power. The supervisor's own port (the service `Local`) does that on request.
//!
//! | file | |
//! |---|---|
//! | [`manifests`] | files → one StorageCluster and its Volumes |
//! | [`folder`], [`ports`] | what survives a restart |
//! | [`node`] | a node and its runtime: start, stop, cut, start again what ended by itself |
//! | [`supervisor`] | all of them, with the store and the secrets |
//! | [`service`] | `Local`: StopNode, StartNode |
//! | [`volumes`] | volumes from manifests |
//! | [`guide`] | contexts, the ready file, and what is printed |

use std::{
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use cairn_crds::{StorageCluster, Volume};
use cairn_planner::{Refusal, ValidCluster};
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub mod folder;
pub mod guide;
pub mod manifests;
pub mod node;
pub mod ports;
pub mod service;
pub mod supervisor;
pub mod volumes;

use folder::{Folder, FolderError, Installed};
use manifests::{ManifestsError, Wanted};
use ports::{Ports, PortsError};
use supervisor::{Supervisor, SupervisorError};

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    pub files: Vec<PathBuf>,
    pub data_dir: PathBuf,
    pub base_port: Option<u16>,
    pub host: IpAddr,
    pub ready_file: Option<PathBuf>,
    /// Nodes that may begin with an empty disk, though they had another one.
    pub new_disks: Vec<String>,
}

/// Why a local cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    #[error("StorageCluster {cluster}: {refusal}")]
    Cluster { cluster: String, refusal: Refusal },
    #[error("Volume {volume}: {reason}")]
    Volume { volume: String, reason: String },
    #[error(
        "--host {0} is no address that others can connect to; give one of this machine, such as 127.0.0.1"
    )]
    Host(IpAddr),
    #[error(
        "{folder} holds cluster {installed}, and the manifests have cluster {wanted}; give the folder of that cluster, or \
         a new one, with --data-dir",
        folder = folder.display()
    )]
    OtherCluster { folder: PathBuf, installed: String, wanted: String },
    #[error("--new-disk {name}: there is no such node; there are {nodes}")]
    NoSuchNode { name: String, nodes: String },
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Ports(#[from] PortsError),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    #[error("{path}: {error}; give --ready-file the path of a file that may be written", path = path.display())]
    ReadyFile { path: PathBuf, error: io::Error },
}

impl LocalError {
    /// 3 for manifests that somebody must change, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Manifests(_) | Self::Cluster { .. } | Self::Volume { .. } => 3,
            _ => 1,
        }
    }
}

/// A cluster that may run in its folder.
#[derive(Debug)]
pub struct Planned {
    pub resource: StorageCluster,
    pub cluster: ValidCluster,
    pub volumes: Vec<Volume>,
    pub host: IpAddr,
    pub ports: Ports,
    pub new_disks: Vec<String>,
}

/// Runs a local cluster until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), LocalError> {
    let ready_file = options.ready_file.as_deref();
    forget_ready(ready_file)?;
    let wanted = manifests::read(&options.files)?;
    if options.host.is_unspecified() || options.host.is_multicast() {
        return Err(LocalError::Host(options.host));
    }
    let folder = Folder::open(&options.data_dir)?;
    let planned = plan(wanted, &folder, &options)?;
    let supervisor = Supervisor::open(&planned, &folder).await?;
    let result = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        result = serve(&supervisor, &planned, &folder, ready_file) => result,
    };
    let forgotten = forget_ready(ready_file);
    supervisor.close().await;
    result.and(forgotten)
}

/// What the planner makes of the manifests and of what is installed; remembers it before anything else happens.
fn plan(wanted: Wanted, folder: &Folder, options: &Options) -> Result<Planned, LocalError> {
    let name = wanted.cluster.metadata.name.clone().unwrap_or_default();
    let installed = folder.installed()?;
    if let Some(installed) = installed.as_ref().filter(|installed| installed.cluster != name) {
        return Err(LocalError::OtherCluster {
            folder: folder.root().to_owned(),
            installed: installed.cluster.clone(),
            wanted: name,
        });
    }
    let record = installed.as_ref().map(|installed| &installed.record);
    let found = cairn_planner::local(&wanted.cluster, record, &Default::default(), None, Timestamp::now());
    let refused = |refusal| LocalError::Cluster { cluster: name.clone(), refusal };
    let (cluster, record) = found.cluster.map_err(refused)?;
    // In Kubernetes, what is installed runs on and a condition tells why. Here nobody would read a condition.
    if let Some(refusal) = found.refusal {
        return Err(refused(refusal));
    }
    volumes::check(&wanted)?;
    let nodes: Vec<String> = cluster.nodes().into_iter().map(|node| node.name).collect();
    if let Some(unknown) = options.new_disks.iter().find(|name| !nodes.contains(name)) {
        return Err(LocalError::NoSuchNode { name: unknown.clone(), nodes: nodes.join(", ") });
    }
    let before = installed.as_ref().map(|installed| &installed.ports);
    let ports = Ports::assign(options.base_port, before, options.host, &nodes)?;
    ports.check_free(options.host)?;
    let now = Installed::new(name, record, ports.clone());
    supervisor::check(folder)?;
    if installed.as_ref() != Some(&now) {
        folder.install(&now)?;
    }
    folder.prepare()?;
    let new_disks = options.new_disks.clone();
    Ok(Planned {
        resource: wanted.cluster,
        cluster,
        volumes: wanted.volumes,
        host: options.host,
        ports,
        new_disks,
    })
}

/// Brings the cluster up, says so, and stays.
async fn serve(
    supervisor: &Supervisor,
    planned: &Planned,
    folder: &Folder,
    ready_file: Option<&Path>,
) -> Result<(), LocalError> {
    volumes::check_stored(supervisor.meta(), planned).await?;
    supervisor.bring_up(planned).await?;
    let client = supervisor.client();
    volumes::create(client, planned).await?;
    let guide = guide::Guide::new(planned, folder, supervisor.secrets());
    guide.write_contexts(&folder.contexts()).map_err(SupervisorError::Contexts)?;
    // The cluster runs whether anybody reads this or not.
    let mut printed = io::stdout();
    let _ = writeln!(printed, "{guide}");
    for problem in supervisor.problems() {
        let _ = writeln!(printed, "\nNOT RUNNING, and tried again: {problem}");
    }
    if let Some(path) = ready_file {
        let text = guide.to_json();
        folder::write_whole(path, text.as_bytes())
            .map_err(|error| LocalError::ReadyFile { path: path.to_owned(), error })?;
    }
    supervisor.watch().await?;
    Ok(())
}

fn forget_ready(path: Option<&Path>) -> Result<(), LocalError> {
    let Some(path) = path else { return Ok(()) };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LocalError::ReadyFile { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}
