//! Whose disk this is (R9): cluster, node, a random incarnation, and a boot counter that is raised durably at each open.
//!
//! It is kept twice, in two files with the same bytes, so that one damaged block does not cost a disk. Each is replaced as a
//! whole: written under another name, synced, renamed, and the folder synced. Both are durable before the boot that they
//! name is used for anything, so either of them alone is enough: none that is sound is behind a segment. At an opening the
//! sound one with the higher boot counts, and the other one is written first, so that one is sound at every moment. The
//! layout is in `docs/formats.md`.

use std::{io, path::Path, sync::Arc};

use cairn_placement::Incarnation;

use super::{OpenError, Opening, disk_error, format::SegmentId};
use crate::env::{Disk, DiskFile, OpenMode, Random, replace_file, sync_with_parents};

/// The identity, and the same again. Earlier versions know the first one only.
const FILES: [&str; 2] = ["identity", "identity.copy"];
const LOCK_FILE: &str = "lock";
/// Folder of segment files.
pub(super) const SEGMENTS_FOLDER: &str = "segments";
/// And of their hints.
pub(super) const HINTS_FOLDER: &str = "hints";
/// Far above any identity of any version.
const MAX_FILE_BYTES: u64 = 65_536;

/// Whose disk this is, since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: [u8; 16],
    pub node: String,
    /// One life of this disk: made when the folder was.
    pub incarnation: Incarnation,
    /// How often the folder was opened, this time included.
    pub boot: u64,
}

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    identity: Identity,
    retired: bool,
}

/// Format 1. Magic, version and the checksum at the end stay where they are in every later format.
mod v1 {
    use super::*;
    use crate::chunks::header::crc32c;

    pub const VERSION: u32 = 1;
    const MAGIC: &[u8; 8] = b"CAIRNIDT";
    const FIXED_BYTES: usize = 58;

    #[derive(Debug, PartialEq, Eq)]
    pub enum DecodeError {
        Damaged,
        Newer(u32),
    }

    pub fn encode(stored: &Stored) -> Vec<u8> {
        let Stored { identity, retired } = stored;
        let length = FIXED_BYTES + identity.node.len() + 4;
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(&identity.cluster_id);
        bytes.extend_from_slice(&identity.incarnation.0);
        bytes.extend_from_slice(&identity.boot.to_le_bytes());
        bytes.push(u8::from(*retired));
        bytes.push(identity.node.len() as u8);
        bytes.extend_from_slice(identity.node.as_bytes());
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Stored, DecodeError> {
        let (content, checksum) = bytes.split_last_chunk::<4>().ok_or(DecodeError::Damaged)?;
        if content.len() < 16 || &content[..8] != MAGIC || crc32c(content) != u32::from_le_bytes(*checksum) {
            return Err(DecodeError::Damaged);
        }
        let version = u32::from_le_bytes(content[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(DecodeError::Newer(version));
        }
        let (fixed, name) = content.split_at_checked(FIXED_BYTES).ok_or(DecodeError::Damaged)?;
        let length = u32::from_le_bytes(fixed[12..16].try_into().expect("4 bytes"));
        if length as usize != bytes.len() || usize::from(fixed[57]) != name.len() || fixed[56] > 1 {
            return Err(DecodeError::Damaged);
        }
        let identity = Identity {
            cluster_id: fixed[16..32].try_into().expect("16 bytes"),
            node: String::from_utf8(name.to_vec()).map_err(|_| DecodeError::Damaged)?,
            incarnation: Incarnation(fixed[32..48].try_into().expect("16 bytes")),
            boot: u64::from_le_bytes(fixed[48..56].try_into().expect("8 bytes")),
        };
        Ok(Stored { identity, retired: fixed[56] == 1 })
    }
}

/// The file that is locked while the folder is open.
pub(super) fn lock_path(folder: &Path) -> std::path::PathBuf {
    folder.join(LOCK_FILE)
}

/// Makes the folder if needed, durably, and takes its lock.
pub(super) fn lock_folder(disk: &dyn Disk, folder: &Path) -> Result<Arc<dyn DiskFile>, OpenError> {
    disk.create_folder(folder).map_err(disk_error("make the folder", folder))?;
    sync_with_parents(disk, folder).map_err(disk_error("sync the folder", folder))?;
    let path = lock_path(folder);
    let file = match disk.open(&path, OpenMode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk.open(&path, OpenMode::ReadWrite),
        other => other,
    }
    .map_err(disk_error("open the lock file", &path))?;
    match file.lock() {
        Ok(()) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(OpenError::Locked { folder: folder.to_owned() })
        }
        Err(error) => Err(disk_error("lock", &path)(error)),
    }
}

/// Reads the identity, or makes the first one, and raises its boot counter: on the disk, unless it is only looked at. The
/// folder must be locked.
pub(super) fn open_identity(
    disk: &dyn Disk,
    random: &dyn Random,
    folder: &Path,
    (cluster_id, node): ([u8; 16], &str),
    opening: Opening,
) -> Result<Identity, OpenError> {
    let (identity, order) = match find(disk, folder)? {
        Some(Chosen { stored, index, others_fault }) => {
            check(&stored, folder, cluster_id, node)?;
            // Before anything is written: else a second try would find a counter that has caught up.
            check_segments(disk, folder, stored.identity.boot)?;
            let other = 1 - index;
            if let Some(fault) = others_fault {
                let (file, from) = (folder.join(FILES[other]), FILES[index]);
                tracing::warn!(file = %file.display(), from, "the disk's identity {fault}: written again from the other one");
            }
            let identity = Identity { boot: stored.identity.boot + 1, ..stored.identity };
            (identity, [other, index])
        }
        None if opening == Opening::Inspect => {
            return Err(OpenError::NoIdentity { folder: folder.to_owned() });
        }
        None => {
            let incarnation = Incarnation(random.bytes());
            (Identity { cluster_id, node: node.to_owned(), incarnation, boot: 1 }, [1, 0])
        }
    };
    if opening == Opening::Inspect {
        return Ok(identity);
    }
    let stored = Stored { identity, retired: false };
    for index in order {
        let path = folder.join(FILES[index]);
        let mut written = replace_file(disk, &path, &v1::encode(&stored));
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            tracing::warn!(file = %path.display(), "the disk is full: hints make room, and this start reads every segment through");
            remove_hints(disk, folder);
            written = replace_file(disk, &path, &v1::encode(&stored));
        }
        written.map_err(disk_error("write", &path))?;
    }
    Ok(stored.identity)
}

/// What a disk can do without.
fn remove_hints(disk: &dyn Disk, folder: &Path) {
    let hints = folder.join(HINTS_FOLDER);
    for name in disk.list(&hints).unwrap_or_default() {
        let _ = disk.remove(&hints.join(name));
    }
}

/// Whose disk this is, without any change to it; `None` if there is none in the folder, or no folder.
pub fn peek_identity(disk: &dyn Disk, folder: &Path) -> Result<Option<Identity>, OpenError> {
    Ok(find(disk, folder)?.map(|chosen| chosen.stored.identity))
}

/// Whether a node's disk is in the folder, sound or not.
pub fn holds_disk(disk: &dyn Disk, folder: &Path) -> io::Result<bool> {
    let list = |folder: &Path| match disk.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    let names = list(folder)?;
    if names.iter().any(|name| FILES.contains(&name.as_str())) {
        return Ok(true);
    }
    Ok(names.iter().any(|name| name == SEGMENTS_FOLDER) && !list(&folder.join(SEGMENTS_FOLDER))?.is_empty())
}

/// As [`peek_identity`], for a folder that must hold a disk.
pub(super) fn read_identity(disk: &dyn Disk, folder: &Path) -> Result<Identity, OpenError> {
    peek_identity(disk, folder)?.ok_or_else(|| OpenError::NoIdentity { folder: folder.to_owned() })
}

/// What is wrong with one of the two files while the other says whose disk it is.
pub(super) fn fault_of_one(disk: &dyn Disk, folder: &Path) -> Result<Option<String>, OpenError> {
    let one = |chosen: Chosen| {
        let fault = chosen.others_fault?;
        let (other, this) = (FILES[1 - chosen.index], FILES[chosen.index]);
        Some(format!("{other} {fault}, {this} is whole"))
    };
    Ok(find(disk, folder)?.and_then(one))
}

/// What one of the two files says.
enum Found {
    Absent,
    Damaged,
    Unreadable(io::Error),
    Sound(Stored),
}

/// The file that counts.
struct Chosen {
    stored: Stored,
    /// Which it is.
    index: usize,
    /// What is wrong with the other one.
    others_fault: Option<String>,
}

/// What the two files say together; `None` if neither is there, nor anything that they belong to.
fn find(disk: &dyn Disk, folder: &Path) -> Result<Option<Chosen>, OpenError> {
    let [first, copy] = [folder.join(FILES[0]), folder.join(FILES[1])];
    match (look(disk, &first)?, look(disk, &copy)?) {
        (Found::Sound(one), Found::Sound(two)) => both(folder, one, two).map(Some),
        (Found::Sound(stored), other) => {
            Ok(Some(Chosen { stored, index: 0, others_fault: Some(fault(&other)) }))
        }
        (other, Found::Sound(stored)) => {
            Ok(Some(Chosen { stored, index: 1, others_fault: Some(fault(&other)) }))
        }
        (Found::Unreadable(error), _) => Err(disk_error("read", &first)(error)),
        (_, Found::Unreadable(error)) => Err(disk_error("read", &copy)(error)),
        (Found::Damaged, _) => Err(OpenError::Damaged { path: first }),
        (_, Found::Damaged) => Err(OpenError::Damaged { path: copy }),
        // The identity is durable before the first segment is made: segments without it lost it.
        (Found::Absent, Found::Absent) => match holds_disk(disk, folder) {
            Ok(true) => Err(OpenError::IdentityLost { folder: folder.to_owned() }),
            Ok(false) => Ok(None),
            Err(error) => Err(disk_error("list", folder)(error)),
        },
    }
}

/// Of two sound files, the one that was written last.
fn both(folder: &Path, one: Stored, two: Stored) -> Result<Chosen, OpenError> {
    let of = |stored: &Stored| {
        let Identity { cluster_id, node, incarnation, .. } = &stored.identity;
        format!("node {node} of cluster {}, disk {}", hex::encode(cluster_id), hex::encode(incarnation.0))
    };
    let (first, copy) = (of(&one), of(&two));
    if first != copy {
        return Err(OpenError::IdentitiesDiffer { folder: folder.to_owned(), first, copy });
    }
    let retired = one.retired || two.retired;
    let (index, stored) = if two.identity.boot > one.identity.boot { (1, two) } else { (0, one) };
    Ok(Chosen { stored: Stored { retired, ..stored }, index, others_fault: None })
}

fn fault(found: &Found) -> String {
    match found {
        Found::Absent => "is missing".to_owned(),
        Found::Unreadable(error) if error.kind() == io::ErrorKind::IsADirectory => {
            "is a folder: move it away".to_owned()
        }
        Found::Unreadable(error) => format!("cannot be read ({error})"),
        Found::Damaged | Found::Sound(_) => "is damaged".to_owned(),
    }
}

fn look(disk: &dyn Disk, path: &Path) -> Result<Found, OpenError> {
    let bytes = match read_file(disk, path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Ok(Found::Unreadable(error)),
    };
    match v1::decode(&bytes) {
        Ok(stored) => Ok(Found::Sound(stored)),
        Err(v1::DecodeError::Damaged) => Ok(Found::Damaged),
        Err(v1::DecodeError::Newer(found)) => {
            Err(OpenError::NewerFormat { path: path.to_owned(), found, known: v1::VERSION })
        }
    }
}

/// Refuses an identity that is older than what was written under it.
fn check_segments(disk: &dyn Disk, folder: &Path, boot: u64) -> Result<(), OpenError> {
    let segments = folder.join(SEGMENTS_FOLDER);
    let names = match disk.list(&segments) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(disk_error("list", &segments)(error)),
    };
    let is_newer = |name: &String| SegmentId::from_name(name).is_some_and(|id| id.boot > boot);
    match names.into_iter().find(is_newer) {
        Some(segment) => Err(OpenError::IdentityOld { folder: folder.to_owned(), segment, boot }),
        None => Ok(()),
    }
}

fn check(stored: &Stored, folder: &Path, cluster_id: [u8; 16], node: &str) -> Result<(), OpenError> {
    let folder = folder.to_owned();
    let Stored { identity, retired } = stored;
    if identity.cluster_id != cluster_id {
        let (found, wanted) = (hex::encode(identity.cluster_id), hex::encode(cluster_id));
        return Err(OpenError::OtherCluster { folder, found, wanted });
    }
    if identity.node != node {
        return Err(OpenError::OtherNode { folder, found: identity.node.clone(), wanted: node.to_owned() });
    }
    if *retired {
        return Err(OpenError::Retired { folder });
    }
    Ok(())
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; file.size()?.min(MAX_FILE_BYTES) as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
