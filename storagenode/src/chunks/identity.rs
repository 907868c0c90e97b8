//! Whose disk this is (R9): cluster, node, a random incarnation, and a boot counter that is raised durably at each open.
//!
//! The file is replaced as a whole: written under another name, synced, renamed, and the folder synced. The layout is in
//! `docs/formats.md`.

use std::{io, path::Path, sync::Arc};

use cairn_placement::Incarnation;

use super::{OpenError, disk_error};
use crate::env::{Disk, DiskFile, OpenMode, Random, sync_with_parents};

const FILE: &str = "identity";
const NEW_FILE: &str = "identity.new";
const LOCK_FILE: &str = "lock";
/// Folder of segment files.
pub(super) const SEGMENTS_FOLDER: &str = "segments";
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

/// Makes the folder if needed, durably, and takes its lock.
pub(super) fn lock_folder(disk: &dyn Disk, folder: &Path) -> Result<Arc<dyn DiskFile>, OpenError> {
    disk.create_folder(folder).map_err(disk_error("make the folder", folder))?;
    sync_with_parents(disk, folder).map_err(disk_error("sync the folder", folder))?;
    let path = folder.join(LOCK_FILE);
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

/// Reads the identity, or makes the first one, and raises its boot counter on the disk. The folder must be locked.
pub(super) fn open_identity(
    disk: &dyn Disk,
    random: &dyn Random,
    folder: &Path,
    cluster_id: [u8; 16],
    node: &str,
) -> Result<Identity, OpenError> {
    let identity = match read_file(disk, &folder.join(FILE)) {
        Ok(bytes) => {
            let stored = decode(&bytes, folder)?;
            check(&stored, folder, cluster_id, node)?;
            Identity { boot: stored.identity.boot + 1, ..stored.identity }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The identity is durable before the first segment is made: segments without it lost it.
            if disk.list(&folder.join(SEGMENTS_FOLDER)).is_ok_and(|names| !names.is_empty()) {
                return Err(OpenError::IdentityLost { folder: folder.to_owned() });
            }
            Identity { cluster_id, node: node.to_owned(), incarnation: Incarnation(random.bytes()), boot: 1 }
        }
        Err(error) => return Err(disk_error("read", &folder.join(FILE))(error)),
    };
    replace(disk, folder, &Stored { identity: identity.clone(), retired: false })
        .map_err(disk_error("write", &folder.join(FILE)))?;
    Ok(identity)
}

/// Whose disk this is, without any change to it.
pub(super) fn read_identity(disk: &dyn Disk, folder: &Path) -> Result<Identity, OpenError> {
    match read_file(disk, &folder.join(FILE)) {
        Ok(bytes) => Ok(decode(&bytes, folder)?.identity),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(OpenError::NoIdentity { folder: folder.to_owned() })
        }
        Err(error) => Err(disk_error("read", &folder.join(FILE))(error)),
    }
}

fn decode(bytes: &[u8], folder: &Path) -> Result<Stored, OpenError> {
    v1::decode(bytes).map_err(|error| match error {
        v1::DecodeError::Damaged => OpenError::Damaged { path: folder.join(FILE) },
        v1::DecodeError::Newer(found) => {
            OpenError::NewerFormat { path: folder.join(FILE), found, known: v1::VERSION }
        }
    })
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

fn replace(disk: &dyn Disk, folder: &Path, stored: &Stored) -> io::Result<()> {
    let new = folder.join(NEW_FILE);
    match disk.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&new, OpenMode::CreateNew)?;
    file.write_at(&[io::IoSlice::new(&v1::encode(stored))], 0)?;
    file.sync_all()?;
    disk.rename(&new, &folder.join(FILE))?;
    disk.sync_folder(folder)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
