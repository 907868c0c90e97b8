//! Every node's own copy of the volumes' records, with their wrapped keys (R10, R14): `DATA_DIR/volumes`.
//!
//! Without its key nothing of a volume can be read, ever; and a metadata store that was restored, or in which somebody
//! deleted too much, may lack it. A node looks at the volumes at its start and with every tick, and replaces the file as a
//! whole when something has changed. A volume that has gone from the store stays in the file, marked, for a week, unless the
//! store is in doubt: then nothing is marked. `cairn-node recover` puts back what is missing ([`put_back`]): after it has
//! accepted a restored store, the volumes that were there when it was restored, or one that is named.
//!
//! ```text
//! absent ── seen in the store ──► kept ── not in the store, which nobody doubts ──► gone since tick t
//!    ▲                              ▲ ──── seen again, or put back ─────────────────┘     │
//!    └──────────────────────────────── t + KEEP_TICKS ────────────────────────────────────┘
//! ```
//!
//! Its format is in `docs/formats.md`. The keys in it are as they are in the store: wrapped, of no use without the KEK.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    chunks::ChunkStore,
    cluster::{ClusterState, View},
    env::{Disk, Env, OpenMode, replace_file},
    meta::{
        Compare, KeyValue, MetaError, Op, RangeRead, SharedMeta, Txn,
        keys::{
            self,
            volume::{State, VolumeRecord},
        },
    },
};

const FILE: &str = "volumes";
/// For how long a volume that is gone is kept: as long as deletions are remembered (R7).
const KEEP_TICKS: u64 = 7 * 1_440;
/// Far above what a cluster has volumes for.
const MAX_FILE_BYTES: u64 = 64 << 20;
const ATTEMPTS: usize = 16;

/// What is kept of one volume; of several with one number the name tells which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub name: String,
    /// The tick at which it was first missed in the store.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gone: Option<u64>,
    pub record: VolumeRecord,
}

/// Volumes by name and number: a name may have been given again.
pub type Keyring = BTreeMap<(String, u32), Kept>;

/// Why the file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error("it is damaged")]
    Damaged,
    #[error("it has format {0}, and this version knows 1: use the version that wrote it")]
    Newer(u32),
}

/// Format 1: a line with format and checksum, then one line of JSON for each volume.
mod v1 {
    use super::*;

    const NAME: &str = "cairn-volumes";
    const VERSION: u32 = 1;

    pub fn encode(keyring: &Keyring) -> Vec<u8> {
        let mut lines = String::new();
        for kept in keyring.values() {
            lines.push_str(&serde_json::to_string(kept).expect("records are plain data"));
            lines.push('\n');
        }
        format!("{NAME} {VERSION} {}\n{lines}", blake3::hash(lines.as_bytes())).into_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Result<Keyring, KeyringError> {
        let text = std::str::from_utf8(bytes).map_err(|_| KeyringError::Damaged)?;
        let (head, lines) = text.split_once('\n').ok_or(KeyringError::Damaged)?;
        let mut head = head.split(' ');
        if head.next() != Some(NAME) {
            return Err(KeyringError::Damaged);
        }
        match head.next().and_then(|version| version.parse().ok()).ok_or(KeyringError::Damaged)? {
            VERSION => {}
            newer => return Err(KeyringError::Newer(newer)),
        }
        if head.next() != Some(blake3::hash(lines.as_bytes()).to_hex().as_str()) {
            return Err(KeyringError::Damaged);
        }
        let kept = lines.lines().map(serde_json::from_str::<Kept>);
        let kept = kept.map(|kept| kept.map(|kept| ((kept.name.clone(), kept.record.id), kept)));
        kept.collect::<Result<_, _>>().map_err(|_| KeyringError::Damaged)
    }
}

/// What a node's folder keeps; nothing if it has no such file yet. Blocks.
pub fn read(disk: &dyn Disk, folder: &Path) -> Result<Keyring, KeyringError> {
    let file = match disk.open(&folder.join(FILE), OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Keyring::new()),
        other => other?,
    };
    let mut bytes = vec![0; file.size()?.min(MAX_FILE_BYTES) as usize];
    file.read_at(&mut bytes, 0)?;
    v1::decode(&bytes)
}

/// What to keep after a look at the store, at `tick`. Where the store is in doubt, what it lacks is not gone.
fn merge(mut keyring: Keyring, stored: Vec<(String, VolumeRecord)>, tick: u64, in_doubt: bool) -> Keyring {
    let there: BTreeMap<_, _> =
        stored.into_iter().map(|(name, record)| ((name, record.id), record)).collect();
    if !in_doubt {
        for (key, kept) in &mut keyring {
            kept.gone = if there.contains_key(key) { None } else { kept.gone.or(Some(tick)) };
        }
        keyring.retain(|_, kept| kept.gone.is_none_or(|gone| tick < gone.saturating_add(KEEP_TICKS)));
    }
    for ((name, id), record) in there {
        keyring.insert((name.clone(), id), Kept { name, gone: None, record });
    }
    keyring
}

/// Keeps the file true, until dropped.
pub async fn keep(env: Env, meta: SharedMeta, view: View, store: ChunkStore) {
    let folder = store.folder().to_owned();
    let (disk, from) = (env.disk.clone(), folder.clone());
    let mut known = match env.blocking(move || read(&*disk, &from)).await {
        Ok(keyring) => keyring,
        Err(KeyringError::Newer(version)) => {
            warn!(version, "DATA_DIR/volumes is of a newer version: it is left as it is, and not kept true");
            return;
        }
        Err(error) => {
            warn!(%error, "DATA_DIR/volumes cannot be read: it is made anew");
            Keyring::new()
        }
    };
    let mut written = None;
    loop {
        let state = view.current();
        match look(&meta, &state, known.clone()).await {
            Ok(keyring) if written.as_ref() != Some(&keyring) => {
                let (disk, path, content) = (env.disk.clone(), folder.join(FILE), v1::encode(&keyring));
                match env.blocking(move || replace_file(&*disk, &path, &content)).await {
                    Ok(()) => written = Some(keyring.clone()),
                    Err(error) => warn!(%error, "the volumes' keys could not be kept on this disk, too"),
                }
                known = keyring;
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "the volumes could not be looked at"),
        }
        view.wait_for(|now| (now.tick != state.tick).then_some(())).await;
    }
}

/// Whether a store that is at `revision` may lack what it had; it may have gone back without this node's mirror knowing it yet.
fn is_doubtful(state: &ClusterState, revision: u64) -> bool {
    !state.may_delete() || revision < state.revision
}

async fn look(meta: &SharedMeta, state: &ClusterState, known: Keyring) -> Result<Keyring, MetaError> {
    let page = meta.range(RangeRead::prefix(keys::volume::PREFIX)).await?;
    let record = |entry: &KeyValue| {
        let record: VolumeRecord = keys::from_json(entry)?;
        let name = entry.key[keys::volume::PREFIX.len()..].to_vec();
        let name = String::from_utf8(name).map_err(|_| MetaError::Damaged(keys::name(&entry.key)))?;
        Ok((name, record))
    };
    let stored = page.entries.iter().map(record).collect::<Result<_, MetaError>>()?;
    Ok(merge(known, stored, state.tick, is_doubtful(state, page.revision)))
}

/// What became of the volumes that the store lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    pub volumes: Vec<String>,
    /// Why others were not put back.
    pub refused: Vec<String>,
}

/// Puts back what the store lacks: every volume that had not gone before, or the one that is named, also if it had.
pub async fn put_back(
    meta: &SharedMeta,
    keyring: &Keyring,
    named: Option<&str>,
) -> Result<PutBack, MetaError> {
    let wanted = |kept: &&Kept| named.map_or(kept.gone.is_none(), |name| name == kept.name);
    let mut done = PutBack::default();
    for kept in keyring.values().filter(wanted) {
        match put_one(meta, kept).await? {
            Put::There => {}
            Put::Back => done.volumes.push(kept.name.clone()),
            Put::Refused(why) => done.refused.push(format!("volume {}: {why}", kept.name)),
        }
    }
    Ok(done)
}

enum Put {
    There,
    Back,
    Refused(String),
}

async fn put_one(meta: &SharedMeta, kept: &Kept) -> Result<Put, MetaError> {
    let key = keys::volume::key(&kept.name);
    for _ in 0..ATTEMPTS {
        let counter = meta.get(&keys::volume_id_key()).await?;
        for entry in meta.range(RangeRead::prefix(keys::volume::PREFIX)).await?.entries {
            let record: VolumeRecord = keys::from_json(&entry)?;
            match (entry.key == key, record.id == kept.record.id) {
                (true, true) => return Ok(Put::There),
                (true, false) => return Ok(Put::Refused("another one has that name now".into())),
                (false, true) => {
                    let other = keys::name(&entry.key);
                    return Ok(Put::Refused(format!("{other} has its number {} now", record.id)));
                }
                (false, false) => {}
            }
        }
        let last = counter.as_ref().map(keys::number).transpose()?.unwrap_or(0).max(kept.record.id.into());
        let record = VolumeRecord { state: State::Active, ..kept.record.clone() };
        let txn = Txn {
            compare: vec![
                Compare::absent(key.clone()),
                Compare::unchanged(keys::volume_id_key(), counter.map_or(0, |entry| entry.mod_revision)),
            ],
            then: vec![
                Op::put(key.clone(), keys::to_json(&record)),
                Op::put(keys::volume_id_key(), last.to_string()),
            ],
            otherwise: vec![],
        };
        if meta.txn(txn).await?.succeeded {
            return Ok(Put::Back);
        }
    }
    Ok(Put::Refused("volumes are being created at the same time: try once more".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u32) -> VolumeRecord {
        VolumeRecord {
            id,
            copies: 3,
            chunk_size_bytes: 65_536,
            state: State::Active,
            created_unix_ms: 5,
            wrapped_key: "00ff".into(),
        }
    }

    fn stored(volumes: &[(&str, u32)]) -> Vec<(String, VolumeRecord)> {
        volumes.iter().map(|(name, id)| ((*name).to_owned(), record(*id))).collect()
    }

    fn gone(keyring: &Keyring) -> Vec<(&str, u32, Option<u64>)> {
        keyring.iter().map(|((name, id), kept)| (&**name, *id, kept.gone)).collect()
    }

    #[test]
    fn what_goes_from_the_store_stays_for_a_week() {
        let seen = merge(Keyring::new(), stored(&[("a", 1), ("b", 2)]), 10, false);
        let missed = merge(seen, stored(&[("a", 1)]), 11, false);
        assert_eq!(gone(&missed), [("a", 1, None), ("b", 2, Some(11))]);
        let later = merge(missed.clone(), stored(&[("a", 1)]), 11 + KEEP_TICKS - 1, false);
        assert_eq!(gone(&later), [("a", 1, None), ("b", 2, Some(11))], "since it was missed first");
        assert_eq!(gone(&merge(later, stored(&[("a", 1)]), 11 + KEEP_TICKS, false)), [("a", 1, None)]);
        let again = merge(missed.clone(), stored(&[("b", 2)]), 12, false);
        assert_eq!(gone(&again), [("a", 1, Some(12)), ("b", 2, None)]);
        let given_again = merge(missed, stored(&[("a", 1), ("b", 3)]), 12, false);
        assert_eq!(gone(&given_again), [("a", 1, None), ("b", 2, Some(11)), ("b", 3, None)]);
    }

    #[test]
    fn nothing_is_gone_while_the_store_is_in_doubt() {
        let seen = merge(Keyring::new(), stored(&[("a", 1), ("b", 2)]), 10, false);
        let doubted = merge(seen, stored(&[("c", 3)]), 10 + 2 * KEEP_TICKS, true);
        assert_eq!(gone(&doubted), [("a", 1, None), ("b", 2, None), ("c", 3, None)]);
    }

    #[test]
    fn a_store_that_went_back_is_doubted_before_anybody_says_so() {
        let state = ClusterState { revision: 10, ..ClusterState::default() };
        assert!(!is_doubtful(&state, 10) && !is_doubtful(&state, 11));
        assert!(is_doubtful(&state, 9));
        assert!(is_doubtful(&ClusterState { in_doubt: true, ..state }, 10));
    }

    #[test]
    fn the_file_is_as_it_was_or_says_nothing() {
        let keyring = merge(Keyring::new(), stored(&[("a", 1), ("ü \"b\"", 2)]), 10, false);
        let bytes = v1::encode(&keyring);
        assert_eq!(v1::decode(&bytes).unwrap(), keyring);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(v1::decode(&damaged).is_err(), "byte {at}");
            assert!(v1::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let newer = String::from_utf8(bytes).unwrap().replacen(" 1 ", " 2 ", 1);
        assert!(matches!(v1::decode(newer.as_bytes()), Err(KeyringError::Newer(2))));
    }

    /// Byte for byte: it may never change.
    #[test]
    fn format_1_stays_what_it_is() {
        let keyring = merge(Keyring::new(), stored(&[("a", 1)]), 10, false);
        let lines = r#"{"name":"a","record":{"id":1,"copies":3,"chunk_size_bytes":65536,"state":"active","created_unix_ms":5,"wrapped_key":"00ff"}}"#;
        let lines = format!("{lines}\n");
        let head = format!("cairn-volumes 1 {}\n", blake3::hash(lines.as_bytes()));
        assert_eq!(String::from_utf8(v1::encode(&keyring)).unwrap(), head + &lines);
    }
}
