//! Test doubles: files in memory, a cluster of one, connections in memory. They exercise decoding and encoding; what
//! the product does is tested with the real ones.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_placement::{Generation, NodeId, PgId, VolumeId};
use cairn_proto::v1::{IntendedNode, NodeState, NodeStatus, StatusResponse};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    io::DuplexStream,
    sync::{Mutex as AsyncMutex, mpsc},
};

use super::ports::{Cluster, IntentError, NodeLabel};
use crate::{
    env::{
        Accepted, BoxFuture, Clock, Env, Listener, Network, PeerIdentity, Protocol, Stream,
        real::{RealClock, RealDisk, RealRandom, RealThreads},
    },
    files::*,
};

pub(super) fn env(network: Arc<dyn Network>) -> Env {
    Env {
        clock: Arc::new(RealClock::default()),
        random: Arc::new(RealRandom),
        disk: Arc::new(RealDisk),
        network,
        threads: Arc::new(RealThreads),
    }
}

/// An environment in which waiting is a hundred times shorter.
pub(super) fn quick_env() -> Env {
    Env { clock: Arc::new(QuickClock(RealClock::default())), ..env(FakeNetwork::none()) }
}

struct QuickClock(RealClock);

impl Clock for QuickClock {
    fn monotonic(&self) -> Duration {
        self.0.monotonic() * 100
    }

    fn unix_ms(&self) -> i64 {
        self.0.unix_ms()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration / 100)
    }
}

/// A network that leads nowhere.
pub(super) struct FakeNetwork;

impl FakeNetwork {
    pub(super) fn none() -> Arc<dyn Network> {
        Arc::new(Self)
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn listen(&self, _: &str, _: Protocol) -> io::Result<Arc<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn connect(&self, _: &str, _: &str) -> io::Result<Box<dyn Stream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Accepts what its [`Dialer`] dials.
pub(super) struct FakeListener(AsyncMutex<mpsc::Receiver<Accepted>>);

#[derive(Clone)]
pub(super) struct Dialer(mpsc::Sender<Accepted>);

impl FakeListener {
    pub(super) fn pair() -> (Arc<dyn Listener>, Dialer) {
        let (sender, receiver) = mpsc::channel(16);
        (Arc::new(Self(AsyncMutex::new(receiver))), Dialer(sender))
    }
}

#[async_trait]
impl Listener for FakeListener {
    async fn accept(&self) -> io::Result<Accepted> {
        self.0.lock().await.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn address(&self) -> String {
        "memory:1".into()
    }
}

impl Dialer {
    pub(super) async fn dial(&self, peer: PeerIdentity) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let accepted = Accepted { stream: Box::new(theirs), peer, remote: "test".into() };
        self.0.send(accepted).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(ours)
    }
}

/// A cluster of one node.
#[derive(Default)]
pub(super) struct FakeCluster {
    pub not_ready: Mutex<Option<String>>,
    pub intent: AtomicU64,
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn status(&self) -> Result<StatusResponse, FileError> {
        let node =
            NodeStatus { name: "n1".into(), state: NodeState::NodeLive.into(), ..NodeStatus::default() };
        Ok(StatusResponse { cluster: "test".into(), nodes: vec![node], ..StatusResponse::default() })
    }

    async fn set_intent(&self, generation: u64, _: Vec<IntendedNode>) -> Result<u64, IntentError> {
        let known = self.intent.fetch_max(generation, Ordering::Relaxed);
        if generation < known {
            return Err(IntentError::Stale { given: generation, known });
        }
        Ok(generation)
    }

    fn ready(&self) -> Result<(), String> {
        self.not_ready.lock().clone().map_or(Ok(()), Err)
    }

    fn label(&self, node: NodeId) -> Option<NodeLabel> {
        (node.0 == 1).then(|| NodeLabel { name: "n1".into(), zone: "z1".into() })
    }
}

/// Files in memory.
#[derive(Default)]
pub(super) struct FakeFiles {
    volumes: Mutex<BTreeMap<String, VolumeInfo>>,
    files: Mutex<BTreeMap<(String, String), (FileInfo, Bytes)>>,
    /// The next call fails with this.
    pub fail_next: Mutex<Option<FileError>>,
    /// Downloads fail with this after their first byte.
    pub fail_content: Mutex<Option<FileError>>,
    /// The metadata store is away, and files are known as they were so long ago.
    pub away: Mutex<Option<Duration>>,
    /// Calls never end.
    pub hang: Mutex<bool>,
    pub uploads_dropped: Arc<AtomicU64>,
    counter: AtomicU64,
}

/// Counts an upload that did not come to its end.
struct DropCount(Arc<AtomicU64>, bool);

impl Drop for DropCount {
    fn drop(&mut self) {
        if !self.1 {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl FakeFiles {
    async fn enter(&self) -> Result<(), FileError> {
        if *self.hang.lock() {
            std::future::pending::<()>().await;
        }
        self.fail_next.lock().take().map_or(Ok(()), Err)
    }

    fn stale(&self, path: &FilePath, max_stale: Option<Duration>) -> Result<Option<Duration>, FileError> {
        match (*self.away.lock(), max_stale) {
            (Some(age), Some(max)) if age <= max => Ok(Some(age)),
            (Some(_), _) => Err(FileError::MetadataUnavailable(format!("nothing is remembered of {path:?}"))),
            (None, _) => Ok(None),
        }
    }

    fn find(&self, volume: &VolumeName, path: &FilePath) -> Result<(FileInfo, Bytes), FileError> {
        if !self.volumes.lock().contains_key(volume.as_str()) {
            return Err(FileError::VolumeNotFound(volume.to_string()));
        }
        let key = (volume.to_string(), path.to_string());
        let not_found = || FileError::FileNotFound { volume: volume.to_string(), path: path.to_string() };
        self.files.lock().get(&key).cloned().ok_or_else(not_found)
    }

    fn check(&self, condition: Condition, volume: &VolumeName, path: &FilePath) -> Result<(), FileError> {
        let there = self.find(volume, path).ok().map(|(file, _)| file.generation);
        let holds = match condition {
            Condition::Always => true,
            Condition::IfMatch(generation) => there == Some(generation),
            Condition::IfAbsent => there.is_none(),
            Condition::IfExists => there.is_some(),
        };
        if holds { Ok(()) } else { Err(FileError::PreconditionFailed("as asked".into())) }
    }
}

#[async_trait]
impl Files for FakeFiles {
    async fn upload(&self, spec: UploadSpec, mut content: ContentIn) -> Result<FileInfo, FileError> {
        let mut ended = DropCount(self.uploads_dropped.clone(), false);
        self.enter().await?;
        let mut whole = Vec::new();
        while let Some(data) = content.next().await {
            whole.extend_from_slice(&data?);
        }
        ended.1 = true;
        if let Some(declared) = spec.size_bytes
            && declared != whole.len() as u64
        {
            return Err(FileError::SizeMismatch { declared, received: whole.len() as u64 });
        }
        let blake3: [u8; 32] = blake3::hash(&whole).into();
        if let Some(declared) = spec.blake3
            && declared != blake3
        {
            let (declared, actual) = (hex::encode(declared), hex::encode(blake3));
            return Err(FileError::DigestMismatch { declared, actual });
        }
        if !self.volumes.lock().contains_key(spec.volume.as_str()) {
            return Err(FileError::VolumeNotFound(spec.volume.to_string()));
        }
        self.check(spec.condition, &spec.volume, &spec.path)?;
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let file = FileInfo {
            volume: spec.volume,
            path: spec.path,
            size_bytes: whole.len() as u64,
            generation: Generation(u128::from(count).to_be_bytes()),
            blake3,
            modified_unix_ms: 784_111_777_000,
            content_type: spec.content_type,
        };
        let key = (file.volume.to_string(), file.path.to_string());
        self.files.lock().insert(key, (file.clone(), whole.into()));
        Ok(file)
    }

    async fn download(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        ReadSpec { range, if_match, max_stale }: ReadSpec,
    ) -> Result<Download, FileError> {
        self.enter().await?;
        let stale = self.stale(path, max_stale)?;
        let (file, content) = self.find(volume, path)?;
        if if_match.is_some_and(|generation| generation != file.generation) {
            return Err(doubted(stale, FileError::PreconditionFailed("another version".into())));
        }
        let size = file.size_bytes;
        let (offset, end) = match range {
            RangeSpec::All => (0, size),
            RangeSpec::Last(count) => (size.saturating_sub(count), size),
            RangeSpec::From { offset, .. } if offset >= size => {
                return Err(FileError::RangeNotSatisfiable { offset, size_bytes: size });
            }
            RangeSpec::From { offset, length } => {
                (offset, offset.saturating_add(length.unwrap_or(size)).min(size))
            }
        };
        let wanted = content.slice(offset as usize..end as usize);
        let content = match self.fail_content.lock().clone() {
            None => stream::iter([Ok(wanted)]).boxed(),
            Some(error) => stream::iter([Ok(wanted.slice(..1)), Err(error)]).boxed(),
        };
        Ok(Download { file, stale, offset, length: end - offset, content, ended: Default::default() })
    }

    async fn stat(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<Stat, FileError> {
        self.enter().await?;
        let stale = self.stale(path, max_stale)?;
        Ok(Stat { file: self.find(volume, path)?.0, stale })
    }

    async fn locate(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<(Stat, Vec<ChunkLocation>), FileError> {
        let stat = self.stat(volume, path, max_stale).await?;
        let copies = vec![(NodeId(1), CopyState::Present), (NodeId(2), CopyState::Unreachable)];
        let chunk = ChunkLocation { index: 0, offset: 0, length: stat.file.size_bytes, pg: PgId(5), copies };
        Ok((stat, vec![chunk]))
    }

    async fn list(&self, volume: &VolumeName, spec: ListSpec) -> Result<Listing, FileError> {
        self.enter().await?;
        let mut listing = Listing::default();
        for ((its_volume, path), (file, _)) in self.files.lock().iter() {
            if its_volume != volume.as_str() || !path.starts_with(&spec.prefix) || *path <= spec.token {
                continue;
            }
            if listing.files.len() + listing.prefixes.len() == spec.limit {
                listing.next_token =
                    listing.files.last().map(|file| file.path.to_string()).unwrap_or_default();
                break;
            }
            match path[spec.prefix.len()..].find('/').filter(|_| spec.delimited) {
                Some(slash) => {
                    let prefix = path[..spec.prefix.len() + slash + 1].to_string();
                    if listing.prefixes.last() != Some(&prefix) {
                        listing.prefixes.push(prefix);
                    }
                }
                None => listing.files.push(file.clone()),
            }
        }
        Ok(listing)
    }

    async fn delete(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        condition: Condition,
    ) -> Result<FileInfo, FileError> {
        self.enter().await?;
        let (file, _) = self.find(volume, path)?;
        self.check(condition, volume, path)?;
        self.files.lock().remove(&(volume.to_string(), path.to_string()));
        Ok(file)
    }

    async fn move_file(&self, spec: MoveSpec) -> Result<FileInfo, FileError> {
        self.enter().await?;
        let (file, content) = self.find(&spec.volume, &spec.path)?;
        if spec.if_match.is_some_and(|generation| generation != file.generation) {
            return Err(FileError::PreconditionFailed("another version".into()));
        }
        self.check(spec.condition, &spec.volume, &spec.to)?;
        let mut files = self.files.lock();
        files.remove(&(spec.volume.to_string(), spec.path.to_string()));
        let moved = FileInfo { path: spec.to, ..file };
        files.insert((spec.volume.to_string(), moved.path.to_string()), (moved.clone(), content));
        Ok(moved)
    }

    async fn create_volume(
        &self,
        name: &VolumeName,
        copies: u8,
        chunk_size_bytes: u32,
    ) -> Result<(VolumeInfo, bool), FileError> {
        self.enter().await?;
        let mut volumes = self.volumes.lock();
        if let Some(volume) = volumes.get(name.as_str()) {
            let same = copies == 0 || copies == volume.copies;
            return if same {
                Ok((volume.clone(), false))
            } else {
                Err(FileError::VolumeExists(name.to_string()))
            };
        }
        let volume = VolumeInfo {
            name: name.clone(),
            id: VolumeId(volumes.len() as u32 + 1),
            copies: copies.max(1),
            chunk_size_bytes: chunk_size_bytes.max(65_536),
            state: VolumeState::Active,
            created_unix_ms: 0,
            count: None,
        };
        volumes.insert(name.to_string(), volume.clone());
        Ok((volume, true))
    }

    async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo, FileError> {
        self.enter().await?;
        let not_found = || FileError::VolumeNotFound(name.to_string());
        self.volumes.lock().get(name.as_str()).cloned().ok_or_else(not_found)
    }

    async fn volumes(&self, limit: usize, token: &str) -> Result<(Vec<VolumeInfo>, String), FileError> {
        self.enter().await?;
        let volumes = self.volumes.lock();
        let mut rest = volumes.iter().filter(|(name, _)| name.as_str() > token);
        let page: Vec<VolumeInfo> = rest.by_ref().take(limit).map(|(_, volume)| volume.clone()).collect();
        let next = rest.next().and(page.last()).map(|volume| volume.name.to_string()).unwrap_or_default();
        Ok((page, next))
    }

    async fn delete_volume(&self, name: &VolumeName, with_files: bool) -> Result<(), FileError> {
        self.enter().await?;
        let has_files = self.files.lock().keys().any(|(volume, _)| volume == name.as_str());
        if has_files && !with_files {
            return Err(FileError::VolumeNotEmpty(name.to_string()));
        }
        let removed = self.volumes.lock().remove(name.as_str());
        removed.map(|_| ()).ok_or_else(|| FileError::VolumeNotFound(name.to_string()))
    }
}

/// One of each error, with the code that it must become.
pub(super) fn every_error() -> Vec<FileError> {
    let text = || "because".to_string();
    vec![
        FileError::InvalidArgument(text()),
        FileError::InvalidPath(path::PathError::DotPart),
        FileError::from(VolumeName::parse("Bad").unwrap_err()),
        FileError::VolumeNotFound(text()),
        FileError::VolumeExists(text()),
        FileError::VolumeDeleting(text()),
        FileError::VolumeNotEmpty(text()),
        FileError::FileNotFound { volume: text(), path: text() },
        FileError::PreconditionFailed(text()),
        FileError::RangeNotSatisfiable { offset: 9, size_bytes: 3 },
        FileError::SizeMismatch { declared: 1, received: 2 },
        FileError::DigestMismatch { declared: text(), actual: text() },
        FileError::UploadIncomplete(text()),
        FileError::NotEnoughNodes { reached: 1, needed: 2, cause: text() },
        FileError::MetadataUnavailable(text()),
        FileError::CommitUnknown(text()),
        FileError::Conflict(text()),
        FileError::OutOfSpace(text()),
        FileError::ChunkUnavailable { path: text(), index: 0 },
        FileError::DataCorrupt { path: text(), index: 0 },
        FileError::NotReady(text()),
        FileError::Overloaded(text()),
        FileError::DeadlineExceeded,
        FileError::Internal(text()),
    ]
}

/// A running shell over the fakes.
pub(super) struct Rig {
    pub running: super::Running,
    pub files: Arc<FakeFiles>,
    pub cluster: Arc<FakeCluster>,
    pub metrics: Arc<crate::metrics::Metrics>,
    pub grpc: Dialer,
    pub http: Dialer,
    _tokens: tempfile::TempDir,
}

/// The token that [`Rig`]'s shell knows.
pub(super) const TOKEN: &str = "t-1";

impl Rig {
    pub(super) async fn start(others: tonic::service::Routes) -> Self {
        Self::start_in(env(FakeNetwork::none()), others).await
    }

    pub(super) async fn start_in(env: Env, others: tonic::service::Routes) -> Self {
        let (grpc_listener, grpc) = FakeListener::pair();
        let (http_listener, http) = FakeListener::pair();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, crate::secrets::token_line("tester", TOKEN)).unwrap();
        let (files, cluster) = (Arc::new(FakeFiles::default()), Arc::new(FakeCluster::default()));
        let metrics = Arc::new(crate::metrics::Metrics::default());
        let shell = super::Shell {
            env: env.clone(),
            files: files.clone(),
            cluster: cluster.clone(),
            tokens: super::Tokens::open(env, &path, crate::warnings::Warnings::default()).await.unwrap(),
            metrics: metrics.clone(),
            limits: super::Limits::default(),
        };
        let running = super::start(shell, grpc_listener, http_listener, others);
        Self { running, files, cluster, metrics, grpc, http, _tokens: folder }
    }
}
