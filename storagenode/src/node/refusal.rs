//! A node that must not start: what is refused before anything is changed, and what the other nodes are told of it.

use std::time::Duration;

use super::{NodeOptions, StartError};
use crate::{
    chunks::{Identity, OpenError, peek_identity},
    cluster::register::{self, RegisterError},
    env::Env,
    meta::{
        Op, SharedMeta, Txn,
        keys::{self, refused::RefusedRecord},
    },
};

/// For telling the others, and how much they are told.
const TELL_LIMIT: Duration = Duration::from_secs(3);
const CHARS_MAX: usize = 2_000;

/// Whose disk is in the node's folder, without any change to it.
pub async fn look_at_disk(env: &Env, options: &NodeOptions) -> Result<Option<Identity>, OpenError> {
    let (disk, folder) = (env.disk.clone(), options.folder.clone());
    env.blocking(move || peek_identity(&*disk, &folder)).await
}

/// Refuses what was found in the folder, or that nothing was.
pub async fn check_disk(
    options: &NodeOptions,
    meta: &SharedMeta,
    found: Option<&Identity>,
) -> Result<(), StartError> {
    let NodeOptions { folder, name, new_disk, .. } = options;
    Ok(register::check_disk(meta, folder, name, found, *new_disk).await?)
}

/// Leaves word of why a node does not start, for whoever asks the others (`cairn status`). Only of what will not pass by
/// itself, and not of a second process beside one that runs.
pub async fn tell(env: &Env, meta: &SharedMeta, name: &str, error: &StartError) {
    use RegisterError::{DiskBehind, NoDisk, Retired, RolledBack};
    match error {
        StartError::Disk(OpenError::Locked { .. }) => return,
        StartError::Disk(_) | StartError::Key { .. } => {}
        StartError::Register(DiskBehind { .. } | NoDisk { .. } | Retired | RolledBack { .. }) => {}
        StartError::Register(_) | StartError::Meta(_) => return,
    }
    let why = error.to_string().chars().take(CHARS_MAX).collect();
    let record = keys::to_json(&RefusedRecord { why });
    let key = keys::refused::key(name);
    let tell = async {
        // A node that tries again and again has nothing new to say.
        if meta.get(&key).await?.is_some_and(|entry| entry.value == record) {
            return Ok(());
        }
        let put = Txn { then: vec![Op::put(key.clone(), record.clone())], ..Txn::default() };
        meta.txn(put).await.map(|_| ())
    };
    if !matches!(env.timeout(TELL_LIMIT, tell).await, Some(Ok(()))) {
        tracing::warn!(node = name, "could not leave word of why this node does not start");
    }
}
