//! `.ci/stages`, which `make test` runs: with a made-up cargo, it counts right and forgets nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;

const OK: &str = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'";

struct Run {
    success: bool,
    output: String,
    /// Each call of cargo: its arguments.
    calls: Vec<String>,
}

impl Run {
    fn summary(&self) -> &str {
        self.output.lines().rev().find(|line| line.ends_with(" skipped")).expect("there is a summary")
    }
}

/// Runs the stages in a made-up checkout, where `cargo` is `script`.
fn stages(which: &str, ci: bool, script: &str) -> Run {
    // One at a time: a program that was just written cannot be run while another thread's child still has it open.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|error| error.into_inner());
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in [".ci", "bin", "one/tests/big", "one/two/tests"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    for name in
        ["one/tests/tidy.rs", "one/tests/etcd.rs", "one/tests/big/main.rs", "one/two/tests/kubelets.rs"]
    {
        fs::write(path(name), "").unwrap();
    }
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/stages"), path(".ci/stages")).unwrap();
    program(&path(".ci/setup"), "true");
    program(&path("bin/cargo"), &format!("echo \"$*\" >>calls\n{script}"));
    let search = format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(path(".ci/stages"));
    command.arg(which).env("PATH", search).env_remove("CI");
    if ci {
        command.env("CI", "true");
    }
    let output = command.output().unwrap();
    let calls = fs::read_to_string(path("calls")).unwrap_or_default().lines().map(str::to_string).collect();
    Run { success: output.status.success(), output: String::from_utf8(output.stdout).unwrap(), calls }
}

fn program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn every_test_binary_runs_once_and_all_are_counted() {
    let run = stages("test", true, &format!("[ $1 != test ] || {OK}"));
    assert!(run.success, "{}", run.output);
    assert_eq!(run.summary(), "12 passed, 0 failed, 0 skipped");
    for name in ["tidy", "etcd", "big", "kubelets"] {
        let calls = run.calls.iter().filter(|call| call.contains(&format!("--test {name} "))).count();
        assert_eq!(calls, 1, "{name}: {:?}", run.calls);
    }
}

#[test]
fn a_failed_test_fails_the_run_and_later_stages_still_run() {
    let script = "case \"$*\" in *--lib*) echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured'; exit 101;; esac";
    let run = stages("test", false, script);
    assert!(!run.success);
    assert_eq!(run.summary(), "1 passed, 2 failed, 0 skipped");
    assert!(run.calls.iter().any(|call| call.contains("--test kubelets")), "{:?}", run.calls);
}

#[test]
fn a_stage_that_breaks_without_a_test_counts_as_failed() {
    let run = stages("test", false, "[ $1 != clippy ]");
    assert!(!run.success);
    assert_eq!(run.summary(), "0 passed, 1 failed, 0 skipped");
    let run = stages("test", false, "[ $1 != build ]");
    assert_eq!(run.summary(), "0 passed, 1 failed, 0 skipped");
    assert!(!run.calls.iter().any(|call| call.starts_with("test")), "nothing runs when nothing is built");
}

#[test]
fn skips_are_counted_and_allowed_on_a_laptop_only() {
    let script = format!("case \"$*\" in *--lib*) echo 'a: no etcd' >>$CAIRN_SKIP_FILE; {OK};; esac");
    for ci in [false, true] {
        let run = stages("test", ci, &script);
        assert_eq!(run.success, !ci);
        assert_eq!(run.summary(), "2 passed, 0 failed, 1 skipped");
        assert!(run.output.contains("  a: no etcd\n"));
    }
}
