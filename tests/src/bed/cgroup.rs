//! A control group for each node: kubelet puts its pods below it, and whatever is in it can be found and ended.
//! Works with one unified hierarchy (v2) and with one per controller (v1).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::poll;

const BASE: &str = "/sys/fs/cgroup";

/// The root of each hierarchy.
fn hierarchies() -> Vec<PathBuf> {
    let base = Path::new(BASE);
    if base.join("cgroup.controllers").is_file() {
        return vec![base.to_path_buf()];
    }
    let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
    let mut all: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| p.is_dir() && !p.is_symlink()).collect();
    all.sort();
    all
}

/// Makes the group in every hierarchy.
pub fn create(name: &str) -> io::Result<()> {
    for root in hierarchies() {
        if root == Path::new(BASE) {
            // v2: a group has the controllers that its parent hands down. Some may be taken: kubelet says what it lacks.
            for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
                let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        let group = root.join(name);
        fs::create_dir_all(&group)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // v1: a new group may use no processor until told which.
            if group.join(file).is_file() && root != Path::new(BASE) {
                fs::write(group.join(file), fs::read(root.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Kills everything in the group and below, until nothing is left or ten seconds are over.
pub fn kill(name: &str) {
    poll(Duration::from_secs(10), Duration::from_millis(20), || {
        let mut found = false;
        for root in hierarchies() {
            for pid in members(&root.join(name)) {
                found = true;
                // SAFETY: a plain system call. The pid was read from a group of our own a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        (!found).then_some(())
    });
}

/// Removes the emptied group everywhere; the kernel takes a moment until a group counts as empty.
pub fn remove(name: &str) {
    poll(Duration::from_secs(3), Duration::from_millis(50), || {
        let mut left = false;
        for root in hierarchies() {
            let group = root.join(name);
            remove_below(&group);
            left |= group.exists();
        }
        (!left).then_some(())
    });
}

/// Groups whose names begin with `prefix`.
pub fn named(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = hierarchies()
        .iter()
        .filter_map(|root| fs::read_dir(root).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn members(group: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(group.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).collect())
        .unwrap_or_default();
    pids.extend(folders(group).iter().flat_map(|g| members(g)));
    pids
}

fn remove_below(group: &Path) {
    for below in folders(group) {
        remove_below(&below);
    }
    let _ = fs::remove_dir(group);
}

fn folders(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}
