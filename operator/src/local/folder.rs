//! The data folder of a local cluster: everything that survives a restart.
//!
//! | path | what |
//! |---|---|
//! | `supervisor.lock` | held by the one process that runs the cluster |
//! | `installed.json` | what is installed: the cluster's name, the planner's record, the ports |
//! | `secrets/` | CA, certificates, token and key; made once, never overwritten |
//! | `metadata/` | the embedded metadata store |
//! | `nodes/NAME/` | the disk of each node |
//! | `config.yaml` | contexts for `cairn` |

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cairn_node::{chunks::holds_disk, env::real::RealDisk};
use cairn_planner::Record;
use serde::{Deserialize, Serialize};

use super::ports::Ports;

/// Version of `installed.json`.
const VERSION: u32 = 1;
/// Larger than any record.
const STATE_BYTES_MAX: u64 = 1 << 20;
const LOCK: &str = "supervisor.lock";
const STATE: &str = "installed.json";
const NODES: &str = "nodes";

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path}: {error}; give --data-dir a folder that this user may write", path = path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "{path} is in use by another process: end that one (only one may run a cluster), or give another --data-dir",
        path = path.display()
    )]
    InUse { path: PathBuf },
    #[error("{path} cannot be read ({problem}); restore it from a backup, or start with another --data-dir", path = path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("{path} is of format {found}, and this program knows {VERSION}: use a newer cairn-operator", path = path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "{path} is not empty, and holds no local cluster; give --data-dir an empty folder, or one that was used before",
        path = path.display()
    )]
    Foreign { path: PathBuf },
}

/// What is installed in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    pub version: u32,
    pub cluster: String,
    pub record: Record,
    pub ports: Ports,
}

impl Installed {
    pub fn new(cluster: String, record: Record, ports: Ports) -> Self {
        Self { version: VERSION, cluster, record, ports }
    }
}

/// The folder, locked for this process.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes the folder, and makes it first if it does not exist.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let failed = |error| FolderError::Io { path: path.to_owned(), error };
        create(path).map_err(failed)?;
        let root = path.canonicalize().map_err(failed)?;
        let lock_path = root.join(LOCK);
        if !lock_path.exists() && fs::read_dir(&root).map_err(failed)?.next().is_some() {
            return Err(FolderError::Foreign { path: root });
        }
        let mut options = File::options();
        let lock =
            options.create(true).truncate(false).write(true).mode(0o600).open(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse { path: root }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    pub fn metadata(&self) -> PathBuf {
        self.root.join("metadata")
    }

    pub fn node(&self, name: &str) -> PathBuf {
        self.nodes().join(name)
    }

    pub fn contexts(&self) -> PathBuf {
        self.root.join("config.yaml")
    }

    /// Makes the folders that others expect to exist. Each node makes its own: one that is there and empty tells something.
    pub fn prepare(&self) -> Result<(), FolderError> {
        for path in [self.nodes(), self.secrets(), self.metadata()] {
            create(&path).map_err(|error| FolderError::Io { path: path.clone(), error })?;
        }
        Ok(())
    }

    /// The folder of the nodes' disks.
    pub fn nodes(&self) -> PathBuf {
        self.root.join(NODES)
    }

    /// Whether a node's disk is here, sound or not. What cannot be looked at counts as one.
    pub fn holds_disks(&self) -> bool {
        let nodes = fs::read_dir(self.nodes()).into_iter().flatten().flatten();
        let mut disks = nodes.map(|node| holds_disk(&RealDisk, &node.path()));
        disks.any(|held| held.unwrap_or(true))
    }

    /// Whether metadata or a node's disk holds anything. The folders alone are made before; what is in them was written
    /// with the key at hand.
    pub fn is_in_use(&self) -> bool {
        let holds_any =
            |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        let nodes = fs::read_dir(self.nodes());
        let mut nodes = nodes.into_iter().flatten().flatten();
        holds_any(&self.metadata()) || nodes.any(|node| holds_any(&node.path()))
    }

    /// What is installed; `None` before the first start.
    pub fn installed(&self) -> Result<Option<Installed>, FolderError> {
        let path = self.root.join(STATE);
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => {
                let read = file.take(STATE_BYTES_MAX).read_to_string(&mut text);
                read.map_err(|error| FolderError::Io { path: path.clone(), error })?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FolderError::Io { path, error }),
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| FolderError::Damaged {
            path: path.clone(),
            problem: error.to_string(),
        };
        let version = serde_json::from_str::<Version>(&text).map_err(damaged)?.version;
        if version > VERSION {
            return Err(FolderError::Newer { path, found: version });
        }
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// Remembers what is installed, durably.
    pub fn install(&self, installed: &Installed) -> Result<(), FolderError> {
        let path = self.root.join(STATE);
        let mut text = serde_json::to_vec_pretty(installed).expect("a record is plain data");
        text.push(b'\n');
        write_whole(&path, &text).map_err(|error| FolderError::Io { path, error })
    }
}

/// For this user only: keys and metadata are inside.
fn create(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file so that it is there whole or not at all, also after a power cut.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or_else(|| io::Error::other("it is not the path of a file"))?);
    name.push(".draft");
    let draft = folder.join(name);
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt};

    use super::*;

    fn installed() -> Installed {
        let record = serde_json::json!({
            "renderer": 1, "pool": "main", "zones": [{ "name": "a", "nodes": 1 }], "zoneLabel": "z",
            "diskBytes": 1, "diskSize": "1", "keySecret": "k",
        });
        let record = Record::parse(&record.to_string()).unwrap();
        Installed::new("laptop".into(), record, Ports { supervisor: 1, nodes: BTreeMap::new() })
    }

    #[test]
    fn what_is_installed_is_found_again() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let folder = Folder::open(&path).unwrap();
        assert_eq!(folder.installed().unwrap(), None);
        folder.install(&installed()).unwrap();
        folder.prepare().unwrap();
        assert!(matches!(Folder::open(&path), Err(FolderError::InUse { .. })));
        drop(folder);
        let folder = Folder::open(&path).unwrap();
        assert_eq!(folder.installed().unwrap(), Some(installed()));
        assert_eq!(fs::metadata(folder.root()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(folder.metadata().is_dir() && !folder.node("n-0").exists());
    }

    #[test]
    fn metadata_or_a_nodes_disk_alone_is_use() {
        for held in ["metadata/store", "nodes/n-1/identity"] {
            let parent = tempfile::tempdir().unwrap();
            let folder = Folder::open(&parent.path().join("data")).unwrap();
            assert!(!folder.is_in_use(), "nothing is there");
            folder.prepare().unwrap();
            ["n-0", "n-1"].iter().for_each(|name| create(&folder.node(name)).unwrap());
            assert!(!folder.is_in_use(), "empty folders");
            fs::write(folder.root().join(held), "x").unwrap();
            assert!(folder.is_in_use(), "{held}");
        }
    }

    #[test]
    fn newer_damaged_and_foreign_folders_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(&parent.path().join("x")).unwrap();
        let state = folder.root().join(STATE);
        fs::write(&state, "{").unwrap();
        assert!(matches!(folder.installed(), Err(FolderError::Damaged { .. })));
        fs::write(&state, "{\"version\": 9, \"anything\": 1}").unwrap();
        assert!(matches!(folder.installed(), Err(FolderError::Newer { found: 9, .. })));
        fs::write(parent.path().join("letter.txt"), "dear").unwrap();
        assert!(matches!(Folder::open(parent.path()), Err(FolderError::Foreign { .. })));
    }
}
