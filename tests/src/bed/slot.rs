//! A number that makes a bed's names unique on the machine, held by a file lock while the bed lives. A slot whose lock is
//! free but that has leavings belonged to a process that was killed: it is cleared first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::teardown;
use crate::tools;

/// More beds than this at once would be a mistake on any machine.
const SLOTS: usize = 4;
const RUN: &str = "/run/cairn-bed";

#[derive(Debug)]
pub struct Slot {
    number: usize,
    /// Logs, certificates, volumes, images: on a real disk.
    pub folder: PathBuf,
    /// Sockets and what a reboot forgets; the name is short, for a socket's path may have 107 bytes.
    pub run: PathBuf,
    /// Held as long as this lives.
    _lock: File,
}

impl Slot {
    /// Takes a free slot, after clearing every one that was left behind.
    pub fn take() -> io::Result<Self> {
        let disk = tools::cache_folder().map_err(io::Error::other)?.join("bed");
        fs::create_dir_all(RUN)?;
        let mut taken = None;
        for number in 0..SLOTS {
            let Some(slot) = Self::try_take(number, &disk)? else { continue };
            if taken.is_none() {
                fs::create_dir_all(&slot.folder)?;
                fs::create_dir_all(&slot.run)?;
                taken = Some(slot);
            }
        }
        taken.ok_or_else(|| {
            io::Error::other(format!("{SLOTS} test clusters run already: wait for one to end"))
        })
    }

    fn try_take(number: usize, disk: &Path) -> io::Result<Option<Self>> {
        let path = Path::new(RUN).join(format!("{number}.lock"));
        let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        let run = Path::new(RUN).join(number.to_string());
        // Whoever was here before may have had another cache folder: the lock file says which.
        let before = fs::read_to_string(&path).unwrap_or_default();
        let here = disk.join(number.to_string());
        if !before.is_empty() {
            drop(Self { number, folder: PathBuf::from(before), run: run.clone(), _lock: lock.try_clone()? });
        }
        let slot = Self { number, folder: here, run, _lock: lock.try_clone()? };
        teardown::all(&slot);
        lock.set_len(0)?;
        lock.write_all(slot.folder.as_os_str().as_encoded_bytes())?;
        Ok(Some(slot))
    }

    /// What the names of its namespaces and control groups begin with.
    pub fn prefix(&self) -> String {
        format!("cairn-bed-{}-", self.number)
    }
}

/// With the slot goes everything that was made in it; then its lock.
impl Drop for Slot {
    fn drop(&mut self) {
        teardown::all(self);
    }
}
