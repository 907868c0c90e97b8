//! From settings to a node that serves, and to its end: what the program does between its first lines and its last.

use std::{
    io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::Limits,
    chunks::{self, Kek, KekError, OpenError},
    cluster::{
        keyring::{self, Keyring, KeyringError, PutBack},
        position::{self, AcceptError},
        recover::{self, RecoverError, Recovered},
    },
    config::{NodeConfig, Recover, Recovery},
    env::{
        Env, OpenMode, Protocol,
        real::{RealClock, RealDisk, RealRandom, RealThreads, without_network},
    },
    meta::{
        self, ConnectError, SharedMeta, embedded,
        keys::{self, cluster::ClusterRecord},
        url::DatabaseUrl,
    },
    node::{self, Budgets, Ended, NodeOptions, RunningNode, ServeError, ServeOptions},
    tls::{CredentialError, TlsFiles, TlsNetwork, TlsOptions},
};

/// Requests that go on get so long when the node stops. With the time that the node itself takes it stays within the
/// half minute that Kubernetes gives.
const DRAIN: Duration = Duration::from_secs(20);
const MAX_KEK_FILE_BYTES: u64 = 4_096;

/// Why the node does not run, or runs no more.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("KEK_FILE {path:?} cannot be read: {error}; give the path of a file that this user may read")]
    KekUnreadable { path: PathBuf, error: io::Error },
    #[error(
        "KEK_FILE: {0}; restore it from a backup, for no other key opens what is stored (only where nothing is stored yet, \
         make one with `openssl rand -base64 32`)"
    )]
    Kek(#[from] KekError),
    #[error(transparent)]
    Meta(#[from] ConnectError),
    #[error(
        "{store} is gone, and {data} holds this node's disk, of which nothing can be read without it: put the store back, or \
         restore it from a backup (docs/restore.md); a new one needs a DATA_DIR of its own",
        store = store.display(), data = data.display()
    )]
    StoreLost { store: PathBuf, data: PathBuf },
    #[error("{0}; choose another port or address (GRPC_PORT, HTTP_PORT, BIND_HOST), or end what uses it")]
    Listen(io::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// Runs a node in the real world until `stop`. Must be called inside a tokio runtime.
pub async fn run(config: NodeConfig, stop: CancellationToken) -> Result<(), RunError> {
    let env = real_env(&config)?;
    let node = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        started = start(env, &config) => started?,
    };
    info!(
        node = config.node_name,
        grpc = node.grpc_address(),
        https = node.http_address(),
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    let lost = node.stopping();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = lost.cancelled() => {}
    }
    let ended = node.ended();
    info!(drain_s = DRAIN.as_secs(), "stopping");
    node.stop(DRAIN).await;
    ended.map_or(Ok(()), |ended| Err(ended.into()))
}

/// Why a restored metadata store was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RecoverFailure {
    #[error(transparent)]
    Meta(#[from] ConnectError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error(transparent)]
    Disk(OpenError),
    #[error(
        "{folder} holds a disk of another cluster than the metadata store's: correct DATA_DIR or DATABASE_URL",
        folder = folder.display()
    )]
    OthersDisk { folder: PathBuf },
    #[error("{path}: {error}; give the DATA_DIR of another node", path = path.display())]
    Keyring { path: PathBuf, error: KeyringError },
    #[error(
        "{folder} keeps no volume {volume:?}: give the DATA_DIR of a node that has run since the volume was made", 
        folder = folder.display()
    )]
    NotKept { folder: PathBuf, volume: String },
    #[error("{store} does not exist: put the restored store there, or correct DATABASE_URL", store = store.display())]
    NoStore { store: PathBuf },
}

/// What `cairn-node recover` has done.
#[derive(Debug)]
pub enum Done {
    /// The store was accepted, and these volumes were put back.
    Store(Recovered, PutBack),
    Disk,
    Volume(PutBack),
}

/// Accepts a restored metadata store (R10) or a disk that is older than it was (R9), or puts a volume back. Must be called
/// inside a tokio runtime.
pub async fn recover(wanted: &Recover) -> Result<Done, RecoverFailure> {
    let env = without_network();
    if let Some(store) = absent_store(&env, &wanted.database_url).await {
        return Err(RecoverFailure::NoStore { store });
    }
    let meta = meta::connect(&wanted.database_url, env.clone()).await?;
    let result = recover_in(&env, &meta, wanted).await;
    meta.close().await;
    result
}

async fn recover_in(env: &Env, meta: &SharedMeta, wanted: &Recover) -> Result<Done, RecoverFailure> {
    let keyring = async || {
        let (disk, folder) = (env.disk.clone(), wanted.data_dir.clone());
        let read = move || (chunks::peek_identity(&*disk, &folder), keyring::read(&*disk, &folder));
        let (identity, keyring) = env.blocking(read).await;
        // Volumes of another cluster are nothing to put back here.
        let stored = meta.get(&keys::cluster::key()).await.map_err(RecoverError::from)?;
        let stored = stored.as_ref().map(keys::from_json::<ClusterRecord>).transpose();
        let stored = stored.map_err(RecoverError::from)?;
        let folder = wanted.data_dir.clone();
        match (identity.map_err(RecoverFailure::Disk)?, stored) {
            (Some(disk), Some(stored)) if disk.cluster_id == stored.id => {
                keyring.map_err(|error| RecoverFailure::Keyring { path: folder.join("volumes"), error })
            }
            (Some(_), _) => Err(RecoverFailure::OthersDisk { folder }),
            (None, _) => Ok(Keyring::new()),
        }
    };
    match &wanted.what {
        Recovery::Disk(node) => {
            position::accept_disk(meta, node).await?;
            Ok(Done::Disk)
        }
        Recovery::Volume(volume) => {
            let keyring = keyring().await?;
            if !keyring.values().any(|kept| kept.name == *volume) {
                let (folder, volume) = (wanted.data_dir.clone(), volume.clone());
                return Err(RecoverFailure::NotKept { folder, volume });
            }
            Ok(Done::Volume(
                keyring::put_back(meta, &keyring, Some(volume)).await.map_err(RecoverError::from)?,
            ))
        }
        Recovery::Store { without } => {
            // Before: a node marks what the store lacks as soon as the store is accepted.
            let keyring = keyring().await?;
            let recovered = recover::recover(meta, without).await?;
            let back = keyring::put_back(meta, &keyring, None).await.map_err(RecoverError::from)?;
            Ok(Done::Store(recovered, back))
        }
    }
}

/// The real world, seen with the node's certificate. Must be called inside a tokio runtime.
fn real_env(config: &NodeConfig) -> Result<Env, CredentialError> {
    let clock = Arc::new(RealClock::default());
    let files = TlsFiles {
        certificate: config.tls_cert_file.clone(),
        key: config.tls_key_file.clone(),
        authority: config.tls_ca_file.clone(),
    };
    let network = TlsNetwork::open(files, TlsOptions::default(), clock.clone())?;
    check_name(&network, config)?;
    Ok(Env {
        clock,
        random: Arc::new(RealRandom),
        disk: Arc::new(RealDisk),
        network: Arc::new(network),
        threads: Arc::new(RealThreads),
    })
}

/// A node that no other node could call must not join a cluster; alone it does no harm.
fn check_name(network: &TlsNetwork, config: &NodeConfig) -> Result<(), CredentialError> {
    match network.check_own_name(&config.advertise_host) {
        Err(error) if matches!(config.database_url, DatabaseUrl::Embedded { .. }) => {
            warn!(%error, "clients that use this name will refuse the certificate");
            Ok(())
        }
        result => result,
    }
}

/// Starts a node, with the seams given, as the settings say.
pub async fn start(env: Env, config: &NodeConfig) -> Result<RunningNode, RunError> {
    let kek = Arc::new(read_kek(&env, &config.kek_file).await?);
    let listen = async |port, protocol| {
        env.network.listen(&join(&config.bind_host, port), protocol).await.map_err(RunError::Listen)
    };
    let grpc = listen(config.grpc_port, Protocol::Grpc).await?;
    let http = listen(config.http_port, Protocol::Http).await?;
    let port = match config.advertise_port {
        Some(port) => port,
        None => port_of(&grpc.address()).unwrap_or(config.grpc_port),
    };
    check_store(&env, config).await?;
    let meta = meta::connect(&config.database_url, env.clone()).await?;
    let options = NodeOptions {
        cluster: config.cluster_name.clone(),
        name: config.node_name.clone(),
        zone: config.zone.clone(),
        folder: config.data_dir.clone(),
        new_disk: config.new_disk,
        advertise: join(&config.advertise_host, port),
        capacity_bytes: config.capacity_bytes,
        kek,
        expected_nodes: config.expected_nodes,
        timings: config.timings.clone(),
        budgets: Budgets::default(),
    };
    let serve =
        ServeOptions { grpc, http, tokens: config.client_tokens_file.clone(), limits: Limits::default() };
    Ok(node::serve(env, options, meta, serve).await?)
}

/// The embedded store's file, if it is not there. Opening the store would make a new one.
async fn absent_store(env: &Env, url: &DatabaseUrl) -> Option<PathBuf> {
    let DatabaseUrl::Embedded { folder } = url else { return None };
    let (disk, store) = (env.disk.clone(), embedded::file_in(folder));
    let opened = env.blocking(move || (disk.open(&store, OpenMode::Read).map(|_| ()), store));
    match opened.await {
        (Err(error), store) if error.kind() == io::ErrorKind::NotFound => Some(store),
        _ => None,
    }
}

/// Refuses to make a new store for a disk that has been in use: a disk's identity is made after the store was.
async fn check_store(env: &Env, config: &NodeConfig) -> Result<(), RunError> {
    let Some(store) = absent_store(env, &config.database_url).await else { return Ok(()) };
    let (disk, data) = (env.disk.clone(), config.data_dir.clone());
    match env.blocking(move || (chunks::holds_disk(&*disk, &data), data)).await {
        (Ok(true), data) => Err(RunError::StoreLost { store, data }),
        // What cannot be looked at is for the node to tell.
        _ => Ok(()),
    }
}

async fn read_kek(env: &Env, path: &Path) -> Result<Kek, RunError> {
    let (disk, owned) = (env.disk.clone(), path.to_owned());
    let read = move || -> io::Result<Vec<u8>> {
        let file = disk.open(&owned, OpenMode::Read)?;
        let mut content = vec![0; file.size()?.min(MAX_KEK_FILE_BYTES) as usize];
        file.read_at(&mut content, 0)?;
        Ok(content)
    };
    let content = env.blocking(read).await;
    let content = content.map_err(|error| RunError::KekUnreadable { path: path.to_owned(), error })?;
    Ok(Kek::parse(&content)?)
}

/// `host:port`, with the brackets that IPv6 needs.
fn join(host: &str, port: u16) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests;
