//! [`Gateway`]: the implementation of [`Files`] on this node. Each operation is in a file of its own; here is what they
//! share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use cairn_placement::{ClusterMap, VolumeId};
use parking_lot::Mutex;

use super::{
    ChunkLocation, Condition, ContentIn, Download, FileError, FileInfo, FilePath, Files, ListSpec, Listing,
    MoveSpec, ReadSpec, Stat, UploadSpec, VolumeInfo, VolumeName, VolumeState, budget::Budget, commit::Slots,
    damage::Damage, pins::Pins, recent::Recent, turns::Turns,
};
use crate::{
    chunks::{Kek, VolumeKey},
    cluster::{ClusterState, View},
    env::Env,
    meta::{
        MetaError, SharedMeta,
        keys::{
            file::FileRecord,
            volume::{State, VolumeRecord},
        },
    },
    replication::{read::Reader, write::Writer},
};

/// How long an operation tries to reach the metadata store (R13). With the last try it ends before clients, who wait for
/// 20 s, have given up: they are to read the reason.
pub(super) const META_PATIENCE: Duration = Duration::from_secs(12);

/// What a gateway is made of.
#[derive(Clone)]
pub struct Gateway {
    pub(super) env: Env,
    pub(super) meta: SharedMeta,
    pub(super) view: View,
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) kek: Arc<Kek>,
    pub(super) slots: Arc<Slots>,
    pub(super) turns: Arc<Turns>,
    pub(super) damage: Arc<Damage>,
    pub(super) pins: Arc<Pins>,
    pub(super) recent: Arc<Recent>,
    pub(super) budget: Budget,
    volumes: Arc<Mutex<HashMap<VolumeName, Arc<OpenVolume>>>>,
}

/// What a gateway is told of its surroundings.
#[derive(Debug, Clone, Copy)]
pub struct GatewayLimits {
    /// Content in flight through this gateway.
    pub budget_bytes: usize,
    /// For how long deleted files are kept at least.
    pub rest: Duration,
}

/// Volumes whose keys are kept unwrapped at the same time.
const MAX_OPEN_VOLUMES: usize = 4_096;

/// A volume as last read, with its data key.
pub(super) struct OpenVolume {
    pub name: VolumeName,
    pub record: VolumeRecord,
    /// Revision of the record.
    pub revision: u64,
    pub key: VolumeKey,
}

impl OpenVolume {
    pub fn id(&self) -> VolumeId {
        VolumeId(self.record.id)
    }

    pub fn info(&self) -> VolumeInfo {
        volume_info(&self.name, &self.record)
    }
}

/// A volume's record, as callers see it.
pub(super) fn volume_info(name: &VolumeName, record: &VolumeRecord) -> VolumeInfo {
    VolumeInfo {
        name: name.clone(),
        id: VolumeId(record.id),
        copies: record.copies,
        chunk_size_bytes: record.chunk_size_bytes,
        state: match record.state {
            State::Active => VolumeState::Active,
            State::Deleting => VolumeState::Deleting,
        },
        created_unix_ms: record.created_unix_ms,
        count: None,
    }
}

/// A file's record, as callers see it.
pub(super) fn file_info(volume: &VolumeName, path: &FilePath, record: &FileRecord) -> FileInfo {
    FileInfo {
        volume: volume.clone(),
        path: path.clone(),
        size_bytes: record.size_bytes(),
        generation: record.generation(),
        blake3: record.blake3,
        modified_unix_ms: record.modified_unix_ms,
        content_type: record.content_type.clone(),
    }
}

impl Gateway {
    /// `node` names the slots and pins.
    pub fn new(
        env: Env,
        meta: SharedMeta,
        view: View,
        (writer, reader): (Writer, Reader),
        kek: Arc<Kek>,
        node: &str,
        limits: GatewayLimits,
    ) -> Self {
        let budget = Budget::new(env.clone(), limits.budget_bytes);
        let pins = Pins::new(env.clone(), meta.clone(), view.clone(), node, limits.rest);
        Self {
            env,
            meta,
            view,
            writer,
            reader,
            kek,
            slots: Arc::new(Slots::new(node)),
            turns: Arc::default(),
            damage: Arc::default(),
            pins: Arc::new(pins),
            recent: Arc::default(),
            budget,
            volumes: Arc::default(),
        }
    }

    /// What keeps long downloads' chunks; to be run beside the gateway.
    pub fn pins(&self) -> Arc<Pins> {
        self.pins.clone()
    }

    /// The cluster's state and map, once there is a map.
    pub(super) fn placed(&self) -> Result<(Arc<ClusterState>, Arc<ClusterMap>), FileError> {
        let state = self.view.current();
        let map = state.map.clone();
        let missing =
            || FileError::NotReady("the cluster has no map yet; it waits for its nodes to register".into());
        map.map(|map| (state, map)).ok_or_else(missing)
    }

    /// The volume as last read, if it was.
    pub(super) fn open_volume(&self, name: &VolumeName) -> Option<Arc<OpenVolume>> {
        self.volumes.lock().get(name).cloned()
    }

    /// The volume as last read, or read now; its record may have changed since.
    pub(super) async fn known_volume(&self, name: &VolumeName) -> Result<Arc<OpenVolume>, FileError> {
        match self.open_volume(name) {
            Some(volume) => Ok(volume),
            None => self.fresh_volume(name).await,
        }
    }

    /// The volume, read linearizably.
    pub(super) async fn fresh_volume(&self, name: &VolumeName) -> Result<Arc<OpenVolume>, FileError> {
        let key = crate::meta::keys::volume::key(name.as_str());
        let entry = self.retry_read(|| self.meta.get(&key)).await?;
        let Some(entry) = entry else {
            self.volumes.lock().remove(name);
            return Err(FileError::VolumeNotFound(name.to_string()));
        };
        let record: VolumeRecord = crate::meta::keys::from_json(&entry)?;
        let wrapped = hex::decode(&record.wrapped_key)
            .map_err(|_| FileError::Internal(format!("the key of volume {name} is not hexadecimal")))?;
        let unwrapped = self.kek.unwrap(VolumeId(record.id), &wrapped);
        let key = unwrapped.map_err(|error| FileError::NotReady(error.to_string()))?;
        let volume = Arc::new(OpenVolume { name: name.clone(), record, revision: entry.mod_revision, key });
        let mut volumes = self.volumes.lock();
        if volumes.len() >= MAX_OPEN_VOLUMES {
            volumes.clear();
        }
        volumes.insert(name.clone(), volume.clone());
        Ok(volume)
    }

    /// Repeats a read while the store cannot be reached, in bounded time (R13).
    pub(super) async fn retry_read<T, F>(&self, mut read: impl FnMut() -> F) -> Result<T, FileError>
    where
        F: Future<Output = Result<T, MetaError>>,
    {
        let deadline = self.env.clock.monotonic() + META_PATIENCE;
        let mut pause = Duration::from_millis(50);
        loop {
            match read().await {
                Ok(value) => return Ok(value),
                Err(MetaError::Unavailable(_) | MetaError::Unknown(_))
                    if self.env.clock.monotonic() + pause < deadline =>
                {
                    self.env.clock.sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Refuses what a volume that is going cannot do.
    pub(super) fn must_be_active(volume: &OpenVolume) -> Result<(), FileError> {
        match volume.record.state {
            State::Active => Ok(()),
            State::Deleting => Err(FileError::VolumeDeleting(volume.name.to_string())),
        }
    }
}

impl From<MetaError> for FileError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::Unavailable(cause) | MetaError::Unknown(cause) => Self::MetadataUnavailable(cause),
            MetaError::Compacted | MetaError::LeaseNotFound => Self::MetadataUnavailable(error.to_string()),
            MetaError::Full(_) => Self::OutOfSpace(error.to_string()),
            MetaError::Refused(_) | MetaError::Damaged(_) => Self::Internal(error.to_string()),
        }
    }
}

#[async_trait]
impl Files for Gateway {
    async fn upload(&self, spec: UploadSpec, content: ContentIn) -> Result<FileInfo, FileError> {
        self.do_upload(spec, content).await
    }

    async fn download(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        spec: ReadSpec,
    ) -> Result<Download, FileError> {
        self.do_download(volume, path, spec).await
    }

    async fn stat(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<Stat, FileError> {
        let known = self.find_known(volume, path, max_stale).await?;
        Ok(Stat { file: file_info(volume, path, &known.record), stale: known.stale })
    }

    async fn locate(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<(Stat, Vec<ChunkLocation>), FileError> {
        self.do_locate(volume, path, max_stale).await
    }

    async fn list(&self, volume: &VolumeName, spec: ListSpec) -> Result<Listing, FileError> {
        self.do_list(volume, spec).await
    }

    async fn delete(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        condition: Condition,
    ) -> Result<FileInfo, FileError> {
        self.do_delete(volume, path, condition).await
    }

    async fn move_file(&self, spec: MoveSpec) -> Result<FileInfo, FileError> {
        self.do_move(spec).await
    }

    async fn create_volume(
        &self,
        name: &VolumeName,
        copies: u8,
        chunk_size_bytes: u32,
    ) -> Result<(VolumeInfo, bool), FileError> {
        self.do_create_volume(name, copies, chunk_size_bytes).await
    }

    async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo, FileError> {
        self.do_volume(name).await
    }

    async fn volumes(&self, limit: usize, token: &str) -> Result<(Vec<VolumeInfo>, String), FileError> {
        self.do_list_volumes(limit, token).await
    }

    async fn delete_volume(&self, name: &VolumeName, with_files: bool) -> Result<(), FileError> {
        self.do_delete_volume(name, with_files).await
    }
}
