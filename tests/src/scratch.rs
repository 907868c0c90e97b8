//! Folders on a real disk that go with the run that made them. A run that is killed cannot remove its own: each is locked
//! as long as its process lives, and whoever makes the next one removes those that nobody holds.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::etcd::disk_folder;

/// Ends the names of these folders. Others in the same place are not touched.
const SUFFIX: &str = ".run";
/// Held while a folder is made and locked: between the two it looks as if nobody wanted it.
const GATE: &str = "scratch.lock";

/// A new folder. It is removed when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    /// After the folder: it is ours until it is gone.
    _lock: File,
}

impl Scratch {
    /// Below `target/`, its name beginning with `name`. Also removes what runs that were killed have left.
    pub fn new(name: &str) -> io::Result<Self> {
        Self::below(&disk_folder()?, name)
    }

    fn below(parent: &Path, name: &str) -> io::Result<Self> {
        let gate = File::create(parent.join(GATE))?;
        gate.lock()?;
        let folder =
            tempfile::Builder::new().prefix(&format!("{name}-")).suffix(SUFFIX).tempdir_in(parent)?;
        let lock = File::open(folder.path())?;
        lock.lock()?;
        let left = abandoned(parent)?;
        // Removing may take long, and the locks keep others from it.
        drop(gate);
        for (path, _lock) in left {
            if let Err(error) = fs::remove_dir_all(&path) {
                eprintln!("{}, left by a run that was killed, cannot be removed: {error}", path.display());
            }
        }
        Ok(Self { folder, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes it now, and says if that cannot be.
    pub fn close(self) -> io::Result<()> {
        self.folder.close()
    }
}

/// Copies a folder with all that is in it; what is there already is overwritten.
pub fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry?;
        let below = entry.path().strip_prefix(from).expect("the walk stays below its root");
        if entry.file_type().is_dir() {
            fs::create_dir_all(to.join(below))?;
        } else {
            fs::copy(entry.path(), to.join(below))?;
        }
    }
    Ok(())
}

/// Folders whose processes have ended, now locked by us.
fn abandoned(parent: &Path) -> io::Result<Vec<(PathBuf, File)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)?.flatten() {
        let path = entry.path();
        if !path.to_string_lossy().ends_with(SUFFIX) || !path.is_dir() {
            continue;
        }
        // One that is gone by now was removed by its owner.
        let Ok(folder) = File::open(&path) else { continue };
        match folder.try_lock() {
            Ok(()) => found.push((path, folder)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_with_the_next_one() {
        let parent = tempfile::tempdir().unwrap();
        let running = Scratch::below(parent.path(), "demo").unwrap();
        fs::write(running.path().join("file"), "data").unwrap();
        let left = parent.path().join("demo-left.run");
        fs::create_dir_all(left.join("a/b")).unwrap();
        let other = parent.path().join("demo-other");
        fs::create_dir(&other).unwrap();

        let next = Scratch::below(parent.path(), "demo").unwrap();
        assert!(!left.exists(), "nobody held it");
        assert!(running.path().join("file").exists(), "somebody holds it");
        assert!(other.exists(), "it is none of ours");
        let (first, second) = (running.path().to_owned(), next.path().to_owned());
        drop(running);
        next.close().unwrap();
        assert!(!first.exists() && !second.exists());
    }
}
