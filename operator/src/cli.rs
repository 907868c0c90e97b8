//! Arguments, logging, signals and exit codes.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{lease::LeaseOptions, local, run};

/// Keeps Cairn clusters as their StorageCluster and Volume resources describe them.
#[derive(Parser, Debug)]
#[command(name = "cairn-operator", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged: a level (error, warn, info, debug, trace), or levels by module such as `info,cairn_node=debug`.
    #[arg(long, env = "LOG", default_value = "info", global = true, value_name = "FILTER")]
    log: String,
    /// How it is logged, on standard error.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Reconcile StorageClusters and Volumes in Kubernetes.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArguments),
    /// Run a cluster on this machine, without Kubernetes, from the same manifests.
    #[command(after_help = LOCAL_EXAMPLES)]
    Local(LocalArguments),
    /// Print the CustomResourceDefinitions as YAML, for `kubectl apply -f -`.
    #[command(after_help = "Example:\n  cairn-operator crd | kubectl apply --server-side -f -")]
    Crd,
}

const EXIT_CODES: &str = "\
Exit codes: 0 ended as asked (also by Ctrl-C and SIGTERM), 1 failed, 2 bad arguments, 3 manifests refused.";

const RUN_EXAMPLES: &str = "\
Examples:
  cairn-operator run --default-image registry.example/cairn:1.0
      In a pod: with its ServiceAccount. On a laptop: with the current context of kubectl (KUBECONFIG).
  cairn-operator run --namespace files --default-image cairn:dev
      Looks at one namespace only, and needs rights in that one only.

Several may run: one leads, by a Lease; the others stand by. SIGTERM gives the Lease back.";

const LOCAL_EXAMPLES: &str = "\
Examples:
  cairn-operator local -f docs/examples/laptop.yaml
      One process runs every node, with its data in ./cairn-data. It prints how to put and get files.
  cairn-operator local -f cluster.yaml -f volumes.yaml --data-dir /srv/cairn --base-port 9000
      Ports from 9000 on: the supervisor's, then two (gRPC, HTTPS) for each node.
  cairn-operator local -f manifests/ --base-port 0 --ready-file /tmp/ready
      Any free ports, which stay the same after a restart; /tmp/ready is written when files can be stored.

Ctrl-C stops the cluster; started again with the same --data-dir, it has its files back.
It never deletes volumes or nodes' data: what manifests leave out stays as it is.";

#[derive(Args, Debug)]
struct RunArguments {
    /// Image for clusters that name none: kept by each cluster from its first installation on.
    #[arg(long, alias = "image", env = "IMAGE", value_name = "IMAGE")]
    default_image: String,
    /// The only namespace to look at. Without it, all.
    #[arg(long, env = "WATCH_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Whether to wait for a Lease before doing anything. `false` only where no second operator can ever run.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    /// Namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "default")]
    lease_namespace: String,
    /// Name of the Lease: operators with the same one take turns.
    #[arg(long, value_name = "NAME", default_value = "cairn-operator")]
    lease_name: String,
    /// Seconds after which another operator may lead when nothing is heard of the leader.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(5..=300))]
    lease_seconds: u64,
    /// Name of this process in the Lease and in events; a random part is appended.
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "cairn-operator")]
    identity: String,
    /// Where /healthz, /readyz and /metrics are served (plain HTTP; they reveal nothing).
    #[arg(long, env = "HEALTH_ADDRESS", value_name = "HOST:PORT", default_value = "0.0.0.0:8081")]
    health_address: SocketAddr,
    /// Resources of a kind that are looked at at the same time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    concurrency: u16,
}

#[derive(Args, Debug)]
struct LocalArguments {
    /// Manifest, or folder of manifests (.yaml, .yml, .json): one StorageCluster and any Volumes. May be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Where keys, metadata and files are kept. Made if it does not exist.
    #[arg(long, value_name = "DIR", default_value = "cairn-data", env = "CAIRN_DATA_DIR")]
    data_dir: PathBuf,
    /// First port; 0 picks free ones. Without it, those of the last time, or from 7400 on.
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// Address of this machine to listen on, by which clients and nodes reach it.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// File to write when the cluster is ready, with its addresses as JSON. Removed first, and when it ends.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// A node that gets a new disk in the place of its former one, which cannot come back. Without this, a folder that no
    /// longer holds a node's disk is taken for one that is not mounted. May be repeated.
    #[arg(long = "new-disk", value_name = "NODE")]
    new_disks: Vec<String>,
}

/// Why the program ends with an error.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub exit_code: u8,
}

impl Failure {
    fn new(exit_code: u8, message: impl ToString) -> Self {
        Self { message: message.to_string(), exit_code }
    }
}

/// Runs the program until it is done or told to stop.
pub fn main(cli: Cli) -> Result<(), Failure> {
    let Cli { command, log, log_format } = cli;
    if let Command::Crd = command {
        return match io::stdout().write_all(cairn_crds::generate::all_yaml().as_bytes()) {
            // Whoever has read enough is content.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(1, format!("cannot write to the standard output: {error}")))
            }
            _ => Ok(()),
        };
    }
    start_log(&log, log_format)?;
    // Two providers may be compiled in; this says which one is meant. An error says that somebody has said it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("operator")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        watch_signals(stop.clone())?;
        match command {
            Command::Crd => Ok(()),
            Command::Run(arguments) => run_operator(arguments, stop).await,
            Command::Local(arguments) => run_local(arguments, stop).await,
        }
    });
    // Whatever still runs is idle work that may be dropped.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn run_operator(arguments: RunArguments, stop: CancellationToken) -> Result<(), Failure> {
    let RunArguments {
        default_image,
        namespace,
        leader_elect,
        lease_namespace,
        lease_name,
        lease_seconds,
        identity,
        health_address,
        concurrency,
    } = arguments;
    let lease = LeaseOptions {
        namespace: lease_namespace,
        name: lease_name,
        // A process that comes after one of the same name must not take itself for it.
        identity: format!("{identity}-{:08x}", rand::random::<u32>()),
        duration: Duration::from_secs(lease_seconds),
    };
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    let options =
        run::Options { image: default_image, namespace, leader_elect, lease, health_address, concurrency };
    run::run(options, stop).await.map_err(|error| Failure::new(1, error))
}

async fn run_local(arguments: LocalArguments, stop: CancellationToken) -> Result<(), Failure> {
    let LocalArguments { files, data_dir, base_port, host, ready_file, new_disks } = arguments;
    let options = local::Options { files, data_dir, base_port, host, ready_file, new_disks };
    local::run(options, stop).await.map_err(|error| Failure::new(error.exit_code(), error))
}

fn start_log(filter: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(2, format!("--log {filter:?}: {error}; write a level, such as info"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Threads are named after the nodes that they work for.
    let builder = builder.with_thread_names(true);
    // Nodes go on when nobody takes the log any more; telling of that, it would panic.
    let builder = builder.log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// The first SIGINT or SIGTERM asks for an orderly end, the second one ends at once.
fn watch_signals(stop: CancellationToken) -> Result<(), Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::new(1, format!("cannot listen for signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_cancelled() {
                let _ = writeln!(io::stderr(), "cairn-operator: told to end a second time: ending at once");
                std::process::exit(130);
            }
            stop.cancel();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["cairn-operator", "local"]).is_err(), "manifests are required");
        let cli = Cli::try_parse_from(["cairn-operator", "local", "-f", "a", "-f", "b"]).unwrap();
        let Command::Local(arguments) = cli.command else { panic!("local") };
        assert_eq!(arguments.files.len(), 2);
        assert_eq!(arguments.host.to_string(), "127.0.0.1");
    }
}
