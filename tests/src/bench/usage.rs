//! What a case costs, read from `/proc`: CPU time of nodes, etcd, this process (the clients), the kernel and everything
//! else on the machine, how busy the disk was, and the most memory that a node had.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Instant};

use anyhow::{Context, Result};
use cairn_node::env::{Disk, real::RealDisk};
use serde::Serialize;

/// Bytes of a sector, as `/proc/diskstats` counts, whatever the device has.
const SECTOR_BYTES: u64 = 512;
/// The process (`kthreadd`) whose children are the kernel's threads.
const KERNEL_THREADS: i32 = 2;

/// What the machine is.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub measured_at: String,
    pub cores: usize,
    pub processor: String,
    pub memory_bytes: u64,
    pub kernel: String,
    pub disk: String,
    pub disk_free_bytes: u64,
    pub optimised: bool,
}

/// The machine that this runs on, with the disk that holds `folder`.
pub fn machine(folder: &Path) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let memory = value(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let memory_kib: u64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let now = k8s_openapi::jiff::Timestamp::now();
    Machine {
        measured_at: now.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        cores: cores(),
        processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
        memory_bytes: memory_kib * 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        disk: disk_name(folder),
        disk_free_bytes: RealDisk.space(folder).map_or(0, |space| space.available_bytes),
        optimised: !cfg!(debug_assertions),
    }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// File system and device, such as `ext4 on vda`.
fn disk_name(folder: &Path) -> String {
    let device = fs::metadata(folder).map_or(0, |metadata| metadata.dev());
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    let kind = mount.and_then(|line| line.split_once(" - ")).and_then(|(_, rest)| rest.split(' ').next());
    let name = fs::read_link(format!("/sys/dev/block/{number}")).ok();
    let name = name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    match (kind, name) {
        (Some(kind), Some(name)) => format!("{kind} on {name}"),
        (Some(kind), None) => kind.to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Reads counters of the processes that take part.
pub struct Meter {
    nodes: Vec<i32>,
    etcd: Vec<i32>,
    /// Of the disk, as in the first columns of `/proc/diskstats`.
    device: (u32, u32),
}

/// All counters at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    at: Instant,
    nodes_cpu_s: f64,
    /// The part of that in system calls.
    nodes_system_cpu_s: f64,
    etcd_cpu_s: f64,
    client_cpu_s: f64,
    kernel_threads_cpu_s: f64,
    machine: MachineCpu,
    disk: Option<DiskCounters>,
}

/// Seconds of all CPUs together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct MachineCpu {
    /// Everything but idling.
    busy: f64,
    /// Of that, interrupts. Kernels differ in whether processes' times hold them, too.
    interrupts: f64,
    stolen: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DiskCounters {
    busy_ms: u64,
    written_bytes: u64,
}

/// What happened between two readings.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    pub seconds: f64,
    /// All `cairn-node` processes.
    pub nodes_cpu_s: f64,
    /// The part of that in system calls.
    pub nodes_system_cpu_s: f64,
    pub etcd_cpu_s: f64,
    /// The clients, which are this process.
    pub client_cpu_s: f64,
    /// The kernel's threads, which write to the disk, and interrupts.
    pub kernel_cpu_s: f64,
    /// Whatever else ran on this machine.
    pub other_cpu_s: f64,
    /// What the hypervisor gave to somebody else.
    pub stolen_cpu_s: f64,
    /// Part of the time that the disk had work; absent if the device is not in `/proc/diskstats`.
    pub disk_busy: Option<f64>,
    pub disk_written_bytes: Option<u64>,
}

impl Meter {
    /// `nodes` are pids; members of etcd are found among this process's children.
    pub fn new(nodes: Vec<i32>, folder: &Path) -> Result<Self> {
        let device = fs::metadata(folder)?.dev();
        let etcd = children(std::process::id() as i32)?.into_iter().filter(|(_, name)| name == "etcd");
        let etcd = etcd.map(|(pid, _)| pid).collect();
        Ok(Self { nodes, etcd, device: (libc::major(device), libc::minor(device)) })
    }

    pub fn read(&self) -> Result<Reading> {
        let sum =
            |pids: &[i32], of: fn(i32) -> Result<f64>| pids.iter().map(|pid| of(*pid)).sum::<Result<f64>>();
        let stat = fs::read_to_string("/proc/stat")?;
        let machine = machine_cpu(&stat).context("/proc/stat has no line of all CPUs")?;
        let disks = fs::read_to_string("/proc/diskstats").unwrap_or_default();
        Ok(Reading {
            at: Instant::now(),
            nodes_cpu_s: sum(&self.nodes, cpu_s)?,
            nodes_system_cpu_s: sum(&self.nodes, system_cpu_s)?,
            etcd_cpu_s: sum(&self.etcd, cpu_s)?,
            client_cpu_s: cpu_s(std::process::id() as i32)?,
            // One that has ended since the folder was read has no time any more.
            kernel_threads_cpu_s: children(KERNEL_THREADS)?
                .iter()
                .filter_map(|(pid, _)| cpu_s(*pid).ok())
                .sum(),
            machine,
            disk: disk_counters(&disks, self.device),
        })
    }

    /// From now on a node's peak is that of what follows.
    pub fn reset_peaks(&self) {
        for pid in &self.nodes {
            // Without the right to do so, the peak is the one since the node's start: larger, never smaller.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    /// The largest resident set of any node since the last reset, in bytes.
    pub fn largest_node_peak(&self) -> Option<u64> {
        let peak = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        };
        self.nodes.iter().filter_map(peak).max()
    }
}

impl Reading {
    pub fn since(&self, before: &Self) -> Usage {
        let seconds = (self.at - before.at).as_secs_f64();
        let nodes_cpu_s = self.nodes_cpu_s - before.nodes_cpu_s;
        let etcd_cpu_s = self.etcd_cpu_s - before.etcd_cpu_s;
        let client_cpu_s = self.client_cpu_s - before.client_cpu_s;
        let busy = self.machine.busy - before.machine.busy;
        // Counters of processes and of the machine are not read at the same instant: no part is below zero.
        let rest = (busy - nodes_cpu_s - etcd_cpu_s - client_cpu_s).max(0.0);
        let kernel = self.kernel_threads_cpu_s - before.kernel_threads_cpu_s;
        let kernel = kernel + self.machine.interrupts - before.machine.interrupts;
        let kernel_cpu_s = kernel.clamp(0.0, rest);
        let disk = self.disk.zip(before.disk);
        Usage {
            seconds,
            nodes_cpu_s,
            nodes_system_cpu_s: self.nodes_system_cpu_s - before.nodes_system_cpu_s,
            etcd_cpu_s,
            client_cpu_s,
            kernel_cpu_s,
            other_cpu_s: rest - kernel_cpu_s,
            stolen_cpu_s: self.machine.stolen - before.machine.stolen,
            disk_busy: disk.map(|(now, then)| {
                let busy_ms = now.busy_ms.saturating_sub(then.busy_ms);
                (busy_ms as f64 / 1e3 / seconds).min(1.0)
            }),
            disk_written_bytes: disk.map(|(now, then)| now.written_bytes.saturating_sub(then.written_bytes)),
        }
    }
}

fn ticks_a_second() -> f64 {
    // SAFETY: asks for a number.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

/// The fields of `/proc/PID/stat` after the name, which may hold spaces and brackets; the first is the state.
fn stat_fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect())
}

/// User and system time of a process with all its threads, ended ones too.
fn cpu_s(pid: i32) -> Result<f64> {
    Ok(times_s(pid)?.iter().sum())
}

fn system_cpu_s(pid: i32) -> Result<f64> {
    Ok(times_s(pid)?[1])
}

/// User and system time apart.
fn times_s(pid: i32) -> Result<[f64; 2]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone: it ended while it was measured"))?;
    let fields = stat_fields(&stat).context("an unknown form of /proc/PID/stat")?;
    let seconds = |at: usize| {
        let ticks = fields.get(at).and_then(|text| text.parse::<u64>().ok());
        ticks.map(|ticks| ticks as f64 / ticks_a_second()).context("/proc/PID/stat has too few fields")
    };
    Ok([seconds(11)?, seconds(12)?])
}

/// Time of guests is part of user time already.
fn machine_cpu(stat: &str) -> Option<MachineCpu> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().filter_map(|text| text.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
    let seconds = |ticks: u64| ticks as f64 / ticks_a_second();
    Some(MachineCpu {
        busy: seconds(user + nice + system + irq + softirq),
        interrupts: seconds(irq + softirq),
        stolen: seconds(steal),
    })
}

fn disk_counters(diskstats: &str, (major, minor): (u32, u32)) -> Option<DiskCounters> {
    let row = diskstats
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .find(|row| row.len() > 12 && row[0].parse() == Ok(major) && row[1].parse() == Ok(minor))?;
    let sectors: u64 = row[9].parse().ok()?;
    Some(DiskCounters { busy_ms: row[12].parse().ok()?, written_bytes: sectors * SECTOR_BYTES })
}

/// Pids and names of a process's children.
fn children(parent: i32) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()) else { continue };
        // It may have ended since the folder was read.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")).map(|(name, _)| name);
        let of = stat_fields(&stat).and_then(|fields| fields.get(1)?.parse().ok());
        if let (Some(name), true) = (name, of == Some(parent)) {
            found.push((pid, name.to_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_what_the_kernel_prints() {
        let disks =
            " 254       0 vda 100 0 800 50 200 0 4096 70 0 1500 120 0 0 0 0 10 5\n 254 1 vda1 1 2 3\n";
        let found = disk_counters(disks, (254, 0)).unwrap();
        assert_eq!(found, DiskCounters { busy_ms: 1500, written_bytes: 4096 * 512 });
        assert_eq!(disk_counters(disks, (8, 0)), None);
        let stat = "42 (a (b) c) S 7 1 1 0 -1 0 0 0 0 0 30 12 0";
        let fields = stat_fields(stat).unwrap();
        assert_eq!((fields[1], fields[11], fields[12]), ("7", "30", "12"));
        let cpu = machine_cpu("cpu  100 0 80 900 50 10 10 100 0 0\ncpu0 1\n").unwrap();
        assert_eq!((cpu.busy, cpu.interrupts), (cpu.stolen * 2.0, cpu.stolen / 5.0));
    }

    #[test]
    fn time_that_is_spent_is_seen() {
        let meter = Meter::new(vec![std::process::id() as i32], Path::new(".")).unwrap();
        let before = meter.read().unwrap();
        let spent = || meter.read().unwrap().since(&before);
        let limit = std::time::Duration::from_secs(20);
        let mut sum = 0u64;
        let seen = crate::process::poll(limit, std::time::Duration::ZERO, || {
            (0..1_000_000).for_each(|n| sum = std::hint::black_box(sum ^ n));
            (spent().client_cpu_s > 0.03).then_some(())
        });
        assert!(seen.is_some());
        assert!(meter.largest_node_peak().unwrap() > 1 << 20);
    }
}
