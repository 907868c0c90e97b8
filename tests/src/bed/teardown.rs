//! Ends and removes all that a bed made, also what outlives its parent: shims of a killed containerd, containers whose
//! shim died, mounts, namespaces, control groups. Works from names alone, so the next bed can clear up after one whose
//! process was killed.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::slot::Slot;
use super::{cgroup, netns};
use crate::process::{poll, start_ticks};

/// Takes down whatever there is of a bed in this slot.
pub fn all(slot: &Slot) {
    for (pid, ticks) in recorded(slot) {
        if start_ticks(pid) == Some(ticks) {
            // SAFETY: a plain system call; the pid still names the process that was recorded.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    kill_shims(&slot.run);
    let groups = cgroup::named(&slot.prefix());
    for group in &groups {
        cgroup::kill(group);
    }
    unmount_below(&slot.folder);
    unmount_below(&slot.run);
    if let Ok(entries) = fs::read_dir("/run/netns") {
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&slot.prefix()) {
                netns::remove(&entry.path());
            }
        }
    }
    for group in &groups {
        cgroup::remove(group);
    }
    remove_folder(&slot.folder);
    remove_folder(&slot.run);
}

/// Writes down a process that is to be ended if this program cannot do it.
pub fn record(slot: &Slot, name: &str, pid: i32) {
    record_in(&slot.folder.join("pids"), name, pid);
}

/// The same, into the slot's folder of such records.
pub fn record_in(folder: &Path, name: &str, pid: i32) {
    let _ = fs::create_dir_all(folder);
    if let Some(ticks) = start_ticks(pid) {
        let _ = fs::write(folder.join(name), format!("{pid} {ticks}"));
    }
}

fn recorded(slot: &Slot) -> Vec<(i32, u64)> {
    let Ok(entries) = fs::read_dir(slot.folder.join("pids")) else { return Vec::new() };
    let parse = |text: String| {
        let (pid, ticks) = text.split_once(' ')?;
        Some((pid.parse().ok()?, ticks.parse().ok()?))
    };
    entries.flatten().filter_map(|e| fs::read_to_string(e.path()).ok().and_then(parse)).collect()
}

/// Shims are told their containerd's address, a path below the bed's own folder: that names them.
pub fn kill_shims(below: &Path) {
    poll(Duration::from_secs(5), Duration::from_millis(20), || {
        let shims = shims(below);
        for pid in &shims {
            // SAFETY: a plain system call; the pid was identified a moment ago.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        shims.is_empty().then_some(())
    });
}

fn shims(below: &Path) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter(|pid| {
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let arguments: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let is_ours = |pair: &[&[u8]]| {
            pair[0] == b"-address" && Path::new(std::ffi::OsStr::from_bytes(pair[1])).starts_with(below)
        };
        arguments.windows(2).any(is_ours)
    })
    .collect()
}

/// Detaches every mount below a folder, the deepest first.
pub fn unmount_below(folder: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return };
    let mut points: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(folder))
        .collect();
    points.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    for point in points {
        unmount(&point);
    }
}

/// Detaches what is mounted at a path, if anything is.
pub fn unmount(point: &Path) {
    if let Ok(path) = CString::new(point.as_os_str().as_bytes()) {
        // SAFETY: a valid path.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Removes a folder and all in it.
pub fn remove_folder(folder: &Path) {
    // Files of a process that has just been killed may appear until the kernel has ended it.
    poll(Duration::from_secs(3), Duration::from_millis(50), || {
        let _ = fs::remove_dir_all(folder);
        (!folder.exists()).then_some(())
    });
}
