//! `make bench` keeps working: a short run gives every number, and Ctrl-C leaves nothing behind.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_tests::{
    process::{Spec, poll, run, start_ticks},
    programs,
    tools::{Need, require},
};
use serde_json::Value;

/// A run takes about 25 s; other tests may have the cores.
const LIMIT: Duration = Duration::from_secs(240);

fn bench() -> Spec {
    Spec::new("bench", programs::built("bench")).args(["--seconds", "1", "--streams", "2"])
}

/// A number that must be there and above zero.
#[track_caller]
fn positive(value: &Value, pointer: &str) -> f64 {
    let number = value.pointer(pointer).and_then(Value::as_f64);
    let number = number.unwrap_or_else(|| panic!("no number {pointer} in {value:#}"));
    assert!(number > 0.0 && number.is_finite(), "{pointer} is {number} in {value:#}");
    number
}

#[test]
fn a_short_run_gives_every_number() {
    if require(&[Need::Etcd]).is_err() {
        return;
    }
    let arguments = ["--files", "2MiB,4KiB", "--chunks", "130000", "--json"];
    let output = run(bench().args(arguments), None, LIMIT).unwrap();
    assert!(output.success, "{}", output.stderr);
    let report: Value = serde_json::from_str(&output.stdout).expect("one JSON document");
    for ceiling in [
        "tls/mib_per_s",
        "tls/sender_cpu_s_per_gib",
        "tls/receiver_cpu_s_per_gib",
        "tls/round_trip_p50_ms",
        "disk/each_mib_per_s",
        "disk/grouped_mib_per_s",
        "disk/writers_mib_per_s",
        "disk/small_p50_ms",
        "sealing_mib_per_s",
        "etcd/0/creates_per_s",
        "etcd/0/reads_per_s",
    ] {
        positive(&report, &format!("/ceilings/{ceiling}"));
    }
    positive(&report, "/machine/cores");
    let cases = report["cases"].as_array().expect("cases");
    let told = |setup| {
        let of = cases.iter().filter(move |case| case["setup"] == setup);
        of.map(|case| (case["direction"].as_str(), &case["file_bytes"])).collect::<Vec<_>>()
    };
    let (large, small) = (Value::from(2 << 20), Value::from(4096));
    let (up, down) = (Some("upload"), Some("download"));
    for setup in ["cluster", "alone"] {
        assert_eq!(told(setup), [(up, &large), (down, &large), (up, &small), (down, &small)]);
    }
    let restart = &report["restart"];
    for number in ["stored_per_s", "open_s", "open_without_hints_s", "segments", "hints"] {
        positive(restart, &format!("/{number}"));
    }
    assert!(positive(restart, "/index_bytes_per_chunk") < 64.0, "{restart:#}");
    assert_eq!(restart["chunks"], 130_000);
    for case in cases {
        for number in ["files", "mib_per_s", "files_per_s", "p50_ms", "nodes_cpu_s_per_1000_files"] {
            positive(case, &format!("/{number}"));
        }
        // What people see has the server's CPU time for a GiB, too, also of the small ones.
        let per_gib = positive(case, "/nodes_cpu_s_per_gib");
        let in_table = match case["file_bytes"] == small {
            true => format!(" {per_gib:.1}"),
            false => format!(" {per_gib:.2} "),
        };
        let direction = case["direction"].as_str().unwrap();
        let mut rows = output.stderr.lines().filter(|line| line.starts_with(direction));
        assert!(rows.any(|row| row.contains(&in_table)), "no {in_table} in:\n{}", output.stderr);
        assert_eq!(case["failed"], 0, "{case:#}");
        assert!(positive(case, "/p99_ms") >= positive(case, "/p50_ms"));
        // A node that runs has some megabytes, and its budgets do not let it have gigabytes.
        let peak_mib = positive(case, "/largest_node_peak_bytes") / (1 << 20) as f64;
        assert!((4.0..2048.0).contains(&peak_mib), "{peak_mib} MiB");
        positive(case, "/usage/nodes_cpu_s");
        positive(case, "/ceiling/percent_reached");
        assert!(case["held_back_by"].as_str().is_some_and(|text| text.contains("CPU")), "{case:#}");
    }
}

/// Children of a process: pid, when it started, and its command line.
fn children(parent: i32) -> Vec<(i32, Option<u64>, String)> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let of: i32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        (of == parent).then(|| (pid, start_ticks(pid), command.replace('\0', " ")))
    })
    .collect()
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    if require(&[Need::Etcd]).is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bench = bench().args(["--chunks", "0"]).log(folder.path().join("log")).spawn().unwrap();
    let pause = Duration::from_millis(50);
    let all = poll(LIMIT, pause, || {
        assert!(bench.exited().is_none(), "it ended by itself:\n{}", bench.log_tail(20));
        Some(children(bench.pid())).filter(|children| children.len() == 7)
    });
    let all = all.unwrap_or_else(|| panic!("no three etcd and four nodes:\n{}", bench.log_tail(20)));
    let data = |command: &str| {
        let folder = command.split(' ').find_map(|word| word.strip_prefix("--data-dir="))?;
        Path::new(folder).parent().map(Path::to_path_buf)
    };
    let folders: Vec<PathBuf> = all.iter().filter_map(|(_, _, command)| data(command)).collect();
    assert!(folders.len() == 3 && folders.iter().all(|folder| folder.is_dir()), "{all:?}");
    bench.signal(libc::SIGINT);
    let status = poll(Duration::from_secs(60), pause, || bench.exited()).expect("it ends");
    assert!(!status.success(), "an interrupted run has no result");
    assert!(bench.log_tail(20).contains("interrupted"), "{}", bench.log_tail(20));
    for (pid, started, command) in &all {
        assert!(start_ticks(*pid) != *started, "still there: {command}");
    }
    assert!(folders.iter().all(|folder| !folder.exists()), "{folders:?}");
}
