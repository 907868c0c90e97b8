//! Registration: the cluster's record, the node's record and number, and the lease that says it is alive.
//!
//! Order (R9): the disk's boot counter is raised on the disk before the node registers; registering raises it in the
//! store. So the store may be behind the disk (a crash in between), never ahead: a counter behind the store's means
//! that the disk was rolled back, and the node refuses to serve from it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_placement::NodeId;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    chunks::Identity,
    env::Env,
    meta::{
        Compare, LeaseId, MetaError, Op, SharedMeta, Txn,
        keys::{
            self,
            cluster::ClusterRecord,
            node::{LiveRecord, MAX_RETIRED, NodeRecord},
        },
    },
};

const RETRY: Duration = Duration::from_millis(500);
/// Attempts at a transaction that others keep getting ahead of.
const ATTEMPTS: usize = 32;

/// Why a node may not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error(
        "the metadata store belongs to cluster {stored:?}, this node is configured for {configured:?}: \
         check DATABASE_URL and CLUSTER_NAME"
    )]
    OtherCluster { stored: String, configured: String },
    #[error(
        "this disk's boot counter is {disk}, the cluster has seen {stored}: the disk was rolled back or copied. \
         If all other nodes are well, move the data folder away (do not delete it) to join as new: what the others have is \
         fetched from them. If several disks were rolled back together, restore what fits them instead. If there is no newer \
         disk and no other node, `cairn-node recover --accept-disk {node}` takes this one as it is"
    )]
    RolledBack { node: String, disk: u64, stored: u64 },
    #[error(
        "this disk remembers the cluster's minute {disk}, and had remembered minute {stored}: it is an older copy of what it \
         was, or has lost what was written last. Put the newer disk back. If there is none, \
         `cairn-node recover --accept-disk {node}` takes this one as it is, and `cairn status` lists the files that it lost"
    )]
    DiskBehind { node: String, disk: u64, stored: u64 },
    #[error(
        "the metadata store holds no cluster, and {folder} holds a disk of cluster {cluster_id}: check DATABASE_URL, or restore \
         the store from a backup (docs/restore.md); a new cluster needs a DATA_DIR of its own", folder = folder.display()
    )]
    EmptyStore { folder: PathBuf, cluster_id: String },
    #[error(
        "{folder} holds no disk, and node {node} had one there: mount it, or put the folder back. If that disk is lost, start \
         once with --new-disk {node} (cairn-node also takes NEW_DISK={node} in its environment): what other nodes have of it \
         is fetched from them"
    )]
    NoDisk { folder: PathBuf, node: String },
    #[error(
        "this disk was replaced by another one and may not come back: move the data folder away (do not \
         delete it while files are missing) to join as new"
    )]
    Retired,
    #[error(
        "another node named {0:?} with another disk is alive: give each node its own name, or stop the other one"
    )]
    NameTaken(String),
    #[error("too many nodes register at the same time: start this node again")]
    Contention,
    #[error("the cluster has given out all {0} node numbers")]
    OutOfNumbers(u16),
}

/// What this node tells of itself.
#[derive(Debug, Clone)]
pub struct Registration {
    pub name: String,
    pub zone: String,
    pub address: String,
    pub incarnation: [u8; 16],
    pub boot: u64,
    pub process: [u8; 16],
    pub capacity_bytes: u64,
    pub lease_ttl: Duration,
}

/// Reads the cluster's record, or makes it if this is the cluster's first node: one whose folder holds no `disk` yet. Waits
/// for the store, `patience` at most.
pub async fn join_cluster(
    env: &Env,
    meta: &SharedMeta,
    name: &str,
    disk: Option<(&Path, &Identity)>,
    patience: Duration,
) -> Result<ClusterRecord, RegisterError> {
    let deadline = env.clock.monotonic() + patience;
    loop {
        let error = match try_join(env, meta, name, disk).await {
            Err(RegisterError::Meta(error @ (MetaError::Unavailable(_) | MetaError::Unknown(_)))) => error,
            other => return other,
        };
        if env.clock.monotonic() >= deadline {
            return Err(error.into());
        }
        warn!(%error, "waiting for the metadata store");
        env.clock.sleep(RETRY).await;
    }
}

async fn try_join(
    env: &Env,
    meta: &SharedMeta,
    name: &str,
    disk: Option<(&Path, &Identity)>,
) -> Result<ClusterRecord, RegisterError> {
    let key = keys::cluster::key();
    let mut stored = meta.get(&key).await?;
    if stored.is_none() {
        if let Some((folder, identity)) = disk {
            let cluster_id = hex::encode(identity.cluster_id);
            return Err(RegisterError::EmptyStore { folder: folder.to_owned(), cluster_id });
        }
        let record = ClusterRecord {
            id: env.random.bytes(),
            name: name.to_owned(),
            created_unix_ms: env.clock.unix_ms(),
        };
        let create = Txn {
            compare: vec![Compare::absent(key.clone())],
            then: vec![Op::put(key.clone(), keys::to_json(&record))],
            otherwise: vec![],
        };
        meta.txn(create).await?;
        stored = meta.get(&key).await?;
    }
    let entry = stored.ok_or(MetaError::Damaged("the cluster's record vanished".into()))?;
    let record: ClusterRecord = keys::from_json(&entry)?;
    if record.name != name {
        return Err(RegisterError::OtherCluster { stored: record.name, configured: name.to_owned() });
    }
    Ok(record)
}

/// Refuses a disk that may not serve, before anything is changed on it: an opening raises the boot counter, so a disk that
/// was rolled back would have caught up after some of them. `disk` is what is in the node's folder.
pub async fn check_disk(
    meta: &SharedMeta,
    folder: &Path,
    name: &str,
    disk: Option<&Identity>,
    new_disk: bool,
) -> Result<(), RegisterError> {
    let Some(entry) = meta.get(&keys::node::key(name)).await? else { return Ok(()) };
    let record: NodeRecord = keys::from_json(&entry)?;
    match disk {
        // Nobody would notice that a disk is not mounted: the node would be filled again into the folder below, and its disk
        // could not come back.
        None if !new_disk => Err(RegisterError::NoDisk { folder: folder.to_owned(), node: name.to_owned() }),
        None => Ok(()),
        Some(disk) if disk.incarnation.0 == record.incarnation && disk.boot < record.boot => {
            Err(RegisterError::RolledBack { node: name.to_owned(), disk: disk.boot, stored: record.boot })
        }
        Some(disk) if record.retired.contains(&hex::encode(disk.incarnation.0)) => {
            Err(RegisterError::Retired)
        }
        Some(_) => Ok(()),
    }
}

/// Registers the node and its disk; gives its number, and the revision at which that happened. Does not make it live: see
/// [`keep_alive`].
pub async fn register(meta: &SharedMeta, me: &Registration) -> Result<(NodeId, u64), RegisterError> {
    let key = keys::node::key(&me.name);
    for _ in 0..ATTEMPTS {
        let reads =
            vec![Op::get(key.clone()), Op::get(keys::node_id_key()), Op::get(keys::node::live_key(&me.name))];
        let read = meta.txn(Txn { compare: vec![], then: reads, otherwise: vec![] }).await?.reads;
        let [node, last_id, live] = &read[..] else {
            return Err(MetaError::Damaged("a transaction answered with too few reads".into()).into());
        };
        let live: Option<LiveRecord> = live.as_ref().map(keys::from_json).transpose()?;
        let mut txn = Txn::default();
        let record = match node {
            Some(entry) => {
                txn.compare.push(Compare::unchanged(key.clone(), entry.mod_revision));
                renew(keys::from_json(entry)?, live.as_ref(), me)?
            }
            None => {
                let last = last_id.as_ref().map(keys::number).transpose()?.unwrap_or(0);
                let id = u16::try_from(last + 1).map_err(|_| RegisterError::OutOfNumbers(u16::MAX))?;
                let revision = last_id.as_ref().map_or(0, |entry| entry.mod_revision);
                txn.compare.push(Compare::absent(key.clone()));
                txn.compare.push(Compare::unchanged(keys::node_id_key(), revision));
                txn.then.push(Op::put(keys::node_id_key(), id.to_string()));
                new_record(id, me)
            }
        };
        txn.then.push(Op::put(key.clone(), keys::to_json(&record)));
        txn.then.push(Op::put(keys::starts_key(), me.name.clone()));
        txn.then.push(Op::delete(keys::refused::key(&me.name)));
        let done = meta.txn(txn).await?;
        if done.succeeded {
            info!(node = me.name, id = record.id, boot = me.boot, "registered");
            return Ok((NodeId(record.id), done.revision));
        }
    }
    Err(RegisterError::Contention)
}

/// Writes the node's record again, as it is: what others concluded about this disk before that is void.
pub async fn touch(meta: &SharedMeta, me: &Registration) -> Result<(), RegisterError> {
    let key = keys::node::key(&me.name);
    for _ in 0..ATTEMPTS {
        let Some(entry) = meta.get(&key).await? else {
            return Err(MetaError::Damaged("this node's record vanished".into()).into());
        };
        let record: NodeRecord = keys::from_json(&entry)?;
        if record.incarnation != me.incarnation || record.boot != me.boot {
            return Err(RegisterError::NameTaken(me.name.clone()));
        }
        let compare = vec![Compare::unchanged(key.clone(), entry.mod_revision)];
        let then = vec![Op::put(key.clone(), entry.value), Op::put(keys::starts_key(), me.name.clone())];
        if meta.txn(Txn { compare, then, otherwise: vec![] }).await?.succeeded {
            return Ok(());
        }
    }
    Err(RegisterError::Contention)
}

fn new_record(id: u16, me: &Registration) -> NodeRecord {
    NodeRecord {
        id,
        zone: me.zone.clone(),
        incarnation: me.incarnation,
        boot: me.boot,
        retired: vec![],
        capacity_bytes: me.capacity_bytes,
        file_format: keys::file::NEWEST,
    }
}

/// The record after this start, if the disk may serve (R9).
fn renew(
    record: NodeRecord,
    live: Option<&LiveRecord>,
    me: &Registration,
) -> Result<NodeRecord, RegisterError> {
    if record.incarnation == me.incarnation {
        if me.boot <= record.boot {
            let node = me.name.clone();
            return Err(RegisterError::RolledBack { node, disk: me.boot, stored: record.boot });
        }
        return Ok(NodeRecord { retired: record.retired, ..new_record(record.id, me) });
    }
    if record.retired.contains(&hex::encode(me.incarnation)) {
        return Err(RegisterError::Retired);
    }
    if live.is_some() {
        return Err(RegisterError::NameTaken(me.name.clone()));
    }
    warn!(node = me.name, "joins with a new disk; what the old one held is fetched from the other nodes");
    let mut retired = record.retired;
    retired.push(hex::encode(record.incarnation));
    let surplus = retired.len().saturating_sub(MAX_RETIRED);
    retired.drain(..surplus);
    Ok(NodeRecord { retired, ..new_record(record.id, me) })
}

/// Keeps the node's lease alive until `stop`, then gives it back. Calls `lost` if another process has taken the name.
///
/// While the store is away it goes on trying: the node serves what needs no store, and is live again by itself.
pub async fn keep_alive(
    env: Env,
    meta: SharedMeta,
    me: Registration,
    stop: CancellationToken,
    lost: impl FnOnce(String) + Send + 'static,
) {
    let mut lease = None;
    loop {
        match renew_lease(&meta, &me, lease).await {
            Ok(renewed) => lease = Some(renewed),
            Err(RegisterError::Meta(error)) => {
                warn!(%error, "could not renew the node's lease");
                if error == MetaError::LeaseNotFound {
                    lease = None;
                    continue;
                }
            }
            Err(error) => return lost(error.to_string()),
        }
        tokio::select! {
            biased;
            () = env.clock.sleep(me.lease_ttl / 4) => {}
            () = stop.cancelled() => break,
        }
    }
    if let Some(lease) = lease {
        let _ = env.timeout(Duration::from_secs(2), meta.revoke(lease)).await;
    }
}

async fn renew_lease(
    meta: &SharedMeta,
    me: &Registration,
    lease: Option<LeaseId>,
) -> Result<LeaseId, RegisterError> {
    if let Some(lease) = lease {
        meta.keep_alive(lease).await?;
        return Ok(lease);
    }
    let lease = meta.grant(me.lease_ttl).await?;
    let record = LiveRecord {
        address: me.address.clone(),
        incarnation: me.incarnation,
        process: me.process,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let (key, live_key) = (keys::node::key(&me.name), keys::node::live_key(&me.name));
    for _ in 0..ATTEMPTS {
        let reads = vec![Op::get(key.clone()), Op::get(live_key.clone())];
        let read = meta.txn(Txn { compare: vec![], then: reads, otherwise: vec![] }).await?.reads;
        let [Some(node), live] = &read[..] else {
            return Err(MetaError::Damaged("this node's record vanished".into()).into());
        };
        let current: NodeRecord = keys::from_json(node)?;
        if current.incarnation != me.incarnation || current.boot != me.boot {
            return Err(RegisterError::NameTaken(me.name.clone()));
        }
        // An earlier attempt without an answer may still be on its way, with a lease that nobody renews. It compares what
        // this one changes, so that it cannot take the place of this one.
        let live_revision = live.as_ref().map_or(0, |entry| entry.mod_revision);
        let compare = vec![
            Compare::unchanged(key.clone(), node.mod_revision),
            Compare::unchanged(live_key.clone(), live_revision),
        ];
        let put = Op::Put { key: live_key.clone(), value: keys::to_json(&record), lease: Some(lease) };
        if meta.txn(Txn { compare, then: vec![put], otherwise: vec![] }).await?.succeeded {
            return Ok(lease);
        }
    }
    Err(MetaError::Unavailable("this node's live record keeps changing".into()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(incarnation: u8, boot: u64) -> Registration {
        Registration {
            name: "n1".into(),
            zone: "a".into(),
            address: "n1:1".into(),
            incarnation: [incarnation; 16],
            boot,
            process: [0; 16],
            capacity_bytes: 1,
            lease_ttl: Duration::from_secs(10),
        }
    }

    #[test]
    fn the_same_disk_comes_back_only_forwards() {
        let record = new_record(3, &me(1, 5));
        assert_eq!(renew(record.clone(), None, &me(1, 6)).unwrap().boot, 6);
        assert_eq!(renew(record.clone(), None, &me(1, 9)).unwrap().id, 3);
        let node = "n1".to_owned();
        assert_eq!(
            renew(record, None, &me(1, 5)),
            Err(RegisterError::RolledBack { node, disk: 5, stored: 5 })
        );
    }

    #[test]
    fn a_replaced_disk_may_not_come_back() {
        let replaced = renew(new_record(3, &me(1, 5)), None, &me(2, 1)).unwrap();
        assert_eq!(replaced.incarnation, [2; 16]);
        assert_eq!(renew(replaced, None, &me(1, 6)), Err(RegisterError::Retired));
    }

    #[test]
    fn two_disks_cannot_share_a_name() {
        let live = LiveRecord {
            address: "x:1".into(),
            incarnation: [1; 16],
            process: [1; 16],
            version: String::new(),
        };
        let error = renew(new_record(3, &me(1, 5)), Some(&live), &me(2, 1));
        assert_eq!(error, Err(RegisterError::NameTaken("n1".into())));
    }
}
