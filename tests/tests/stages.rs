//! `make` and `.ci/stages`, which it runs: with a made-up cargo, each target calls what it should, and a run of all stages
//! counts right and forgets nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use cairn_tests::tools::{Need, require};
use tempfile::TempDir;

const OK: &str = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'";

struct Run {
    success: bool,
    output: String,
    /// Each call of cargo, and of the setup: `cargo` or `setup`, and the arguments.
    calls: Vec<String>,
}

impl Run {
    fn summary(&self) -> &str {
        self.output.lines().rev().find(|line| line.ends_with(" skipped")).expect("there is a summary")
    }
}

/// Runs a target of the Makefile in a made-up checkout, where `cargo` is `script`. Without `make` the test is skipped.
fn make(arguments: &[&str], ci: bool, script: &str) -> Run {
    make_with(arguments, ci, script, |stages| stages)
}

/// The same with other stages.
fn make_with(arguments: &[&str], ci: bool, script: &str, change: impl FnOnce(String) -> String) -> Run {
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
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::copy(repository.join("Makefile"), path("Makefile")).unwrap();
    executable(&path(".ci/stages"), &change(fs::read_to_string(repository.join(".ci/stages")).unwrap()));
    program(&path(".ci/setup"), "echo setup $* >>calls");
    program(&path(".ci/mutants"), "echo mutants $* >>calls");
    program(&path("bin/cargo"), &format!("echo cargo \"$*\" >>calls\n{script}"));
    let search = format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("make");
    command.args(arguments).current_dir(folder.path()).env("PATH", search);
    // What may be set where this test runs is no matter of these runs.
    for name in ["CI", "MAKEFLAGS", "MAKELEVEL", "CARGO"] {
        command.env_remove(name);
    }
    if ci {
        command.env("CI", "true");
    }
    let output = command.output().unwrap();
    let calls = fs::read_to_string(path("calls")).unwrap_or_default().lines().map(str::to_string).collect();
    Run { success: output.status.success(), output: String::from_utf8(output.stdout).unwrap(), calls }
}

fn program(path: &Path, script: &str) {
    executable(path, &format!("#!/bin/sh\n{script}\n"));
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn every_test_binary_runs_once_and_all_are_counted() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let run = make(&["test"], true, &format!("[ $1 != test ] || {OK}"));
    assert!(run.success, "{}", run.output);
    assert_eq!(run.summary(), "12 passed, 0 failed, 0 skipped");
    for name in ["tidy", "etcd", "big", "kubelets"] {
        let calls = run.calls.iter().filter(|call| call.contains(&format!("--test {name} "))).count();
        assert_eq!(calls, 1, "{name}: {:?}", run.calls);
    }
}

#[test]
fn a_failed_test_fails_the_run_and_later_stages_still_run() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let script = "case \"$*\" in *--lib*) echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured'; exit 101;; esac";
    let run = make(&["test"], false, script);
    assert!(!run.success);
    assert_eq!(run.summary(), "1 passed, 2 failed, 0 skipped");
    assert!(run.calls.iter().any(|call| call.contains("--test kubelets")), "{:?}", run.calls);
}

#[test]
fn a_stage_that_breaks_without_a_test_counts_as_failed() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let run = make(&["test"], false, "[ $1 != clippy ]");
    assert!(!run.success);
    assert_eq!(run.summary(), "0 passed, 1 failed, 0 skipped");
    let run = make(&["test"], false, "[ $1 != build ]");
    assert_eq!(run.summary(), "0 passed, 1 failed, 0 skipped");
    assert!(
        !run.calls.iter().any(|call| call.starts_with("cargo test")),
        "nothing runs when nothing is built"
    );
}

#[test]
fn skips_are_counted_and_allowed_on_a_laptop_only() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let script = format!("case \"$*\" in *--lib*) echo 'a: no etcd' >>$CAIRN_SKIP_FILE; {OK};; esac");
    for ci in [false, true] {
        let run = make(&["test"], ci, &script);
        assert_eq!(run.success, !ci);
        assert_eq!(run.summary(), "2 passed, 0 failed, 1 skipped");
        assert!(run.output.contains("  a: no etcd\n"));
    }
}

/// With all calls of cargo and of the setup.
fn calls(arguments: &[&str]) -> Vec<String> {
    let run = make(arguments, false, OK);
    assert!(run.success, "make {arguments:?}: {}", run.output);
    run.calls
}

#[test]
fn quick_lint_setup_and_build_are_parts_of_what_make_test_runs() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let all = calls(&["test"]);
    assert_eq!(calls(&["setup"]), ["setup"]);
    assert_eq!(all[0], "setup", "{all:?}");
    let lint = calls(&["lint"]);
    assert!(lint.len() == 3 && lint[0] == "setup build", "{lint:?}");
    assert!(lint[1..].iter().all(|call| all.contains(call)), "{lint:?} of {all:?}");
    // The programs; a run of all tests builds these with the same words.
    assert_eq!(calls(&["build"]), ["setup build", "cargo build --profile ci --workspace --bins"]);
    assert!(all.iter().any(|call| call == "cargo build --profile ci --workspace --bins --tests"), "{all:?}");
    // The unit tests and one of the light test programs; a run of all tests runs these with more beside them.
    let quick = calls(&["quick"]);
    assert_eq!(
        quick,
        [
            "setup build",
            "cargo fmt --all --check",
            "cargo test --profile ci --workspace --no-fail-fast --lib --test tidy"
        ]
    );
    let runs = |words: &str| {
        let begin = "cargo test --profile ci --workspace --no-fail-fast ";
        all.iter().any(|call| call.starts_with(begin) && format!("{call} ").contains(words))
    };
    assert!(all.contains(&quick[1]) && runs(" --lib ") && runs(" --test tidy "), "{quick:?} of {all:?}");
}

#[test]
fn demo_kube_and_bench_run_the_programs_that_tests_run() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    for program in ["demo", "kube"] {
        let run = format!("cargo run --quiet --profile ci --bin {program}");
        assert_eq!(calls(&[program]), ["setup build", "cargo build --profile ci --workspace --bins", &run]);
    }
    let bench = calls(&["bench", "ARGS=--seconds 3 --json"]);
    let build = "cargo build --release --workspace --bin cairn-node --bin bench";
    let run = "cargo run --quiet --release --bin bench -- --seconds 3 --json";
    assert_eq!(bench, ["setup build", build, run]);
}

#[test]
fn soak_plays_more_of_what_make_test_plays() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let soak = calls(&["soak"]);
    let test = "cargo test --profile ci --workspace --test";
    let build = "cargo build --profile ci --workspace --bins --tests".to_owned();
    let rest = [format!("{test} process_rounds"), format!("{test} simulation whatever")];
    assert_eq!(soak, [vec!["setup".to_owned(), build], rest.to_vec()].concat());
}

#[test]
fn mutants_are_planted_by_a_program_of_their_own() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    assert_eq!(calls(&["mutants"]), ["setup build", "mutants"]);
    assert_eq!(calls(&["mutants", "ONLY=one another"]), ["setup build", "mutants one another"]);
}

#[test]
fn make_alone_lists_every_target() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let run = make(&[], false, OK);
    assert!(run.success && run.calls.is_empty(), "{}", run.output);
    let makefile = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Makefile")).unwrap();
    let targets = makefile.lines().find_map(|line| line.strip_prefix(".PHONY: ")).unwrap();
    for target in targets.split(' ').filter(|target| *target != "help") {
        let told =
            |line: &str| line.strip_prefix("make ").and_then(|rest| rest.split(' ').next()) == Some(target);
        assert!(run.output.lines().any(told), "no make {target} in:\n{}", run.output);
    }
}

#[test]
fn a_run_that_takes_longer_than_it_should_says_so() {
    if require(&[Need::System("make")]).is_err() {
        return;
    }
    let hour = "all_aim_s=3600";
    let late = |stages: String| {
        assert!(stages.contains(hour), "{stages}");
        stages.replace(hour, "all_aim_s=-1")
    };
    let run = make_with(&["lint"], true, OK, late);
    assert!(run.success && run.output.contains(" s  LATE: more than "), "{}", run.output);
    let run = make(&["lint"], true, OK);
    assert!(run.success && !run.output.contains("LATE"), "{}", run.output);
    // With everything built, as here, where nothing is.
    let warm = "all_aim_s=1200";
    let late = |stages: String| {
        assert!(stages.contains(warm), "{stages}");
        stages.replace(warm, "all_aim_s=-1")
    };
    let run = make_with(&["test"], true, OK, late);
    assert!(run.success && run.output.contains(" s  LATE: more than "), "{}", run.output);
    for stage in ["format", "clippy", "all"] {
        let timed = |line: &str| line.starts_with(stage) && line.contains(" s");
        assert!(run.output.lines().any(timed), "how long {stage} took: {}", run.output);
    }
}
