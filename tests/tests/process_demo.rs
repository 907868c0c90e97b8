//! `make demo`, whole: the program that it runs after the build.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_tests::{
    markdown::{Step, steps},
    process::{Process, Spec, poll},
    programs,
};
use tempfile::TempDir;

/// It takes a minute or two; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(600);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// In the environment of the demo, and so of everything that it starts.
/// Not `CAIRN_…`: such variables the demo keeps from what it starts.
const MARK: &str = "DEMO_TEST_OF";

/// A demo under way.
struct Demo {
    folder: TempDir,
    process: Process,
}

impl Demo {
    fn start() -> Self {
        Self::start_with(|spec| spec)
    }

    fn start_with(change: impl FnOnce(Spec) -> Spec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spec = Spec::new("demo", programs::built("demo")).env(MARK, folder.path());
        let process = change(spec.log(folder.path().join("log"))).spawn().unwrap();
        Self { folder, process }
    }

    fn printed(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Where the demo keeps its cluster, as it said.
    fn data(&self) -> PathBuf {
        let printed = self.printed();
        let said = printed.split("data in ").nth(1).and_then(|rest| rest.lines().next());
        said.unwrap_or_else(|| panic!("no word of the data's folder:\n{printed}")).into()
    }

    fn wait(&self, limit: Duration) -> Option<i32> {
        let ended = poll(limit, Duration::from_millis(100), || self.process.exited());
        ended.unwrap_or_else(|| panic!("not done after {} s:\n{}", limit.as_secs(), self.printed())).code()
    }

    /// Waits until the demo says `words`.
    fn wait_said(&self, words: &str) {
        let said = poll(LIMIT, Duration::from_millis(20), || {
            (self.printed().contains(words) || self.process.exited().is_some()).then_some(())
        });
        assert!(said.is_some() && self.process.exited().is_none(), "{}", self.printed());
    }

    /// Processes that the demo has started, or these in turn.
    fn descendants(&self) -> Vec<String> {
        let mark = format!("{MARK}={}", self.folder.path().display());
        let started_by_it = |process: &Path| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let started = all.filter(|process| started_by_it(process));
        started.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(self.descendants(), [""; 0], "it left processes");
        let folder = self.data();
        let folder = folder.parent().unwrap();
        assert!(!folder.exists(), "it left {}", folder.display());
    }
}

#[test]
fn the_demo_passes_and_leaves_nothing() {
    // Whoever followed `make kube` has such variables; the demo must not touch that cluster.
    let demo = Demo::start_with(|spec| {
        let spec =
            spec.env("CAIRN_ENDPOINT", "https://elsewhere.invalid:1").env("CAIRN_CONTEXT", "elsewhere");
        spec.env("CAIRN_TOKEN", "theirs").env("CAIRN_CA_FILE", "/nowhere")
    });
    demo.wait_said("== upload");
    assert!(demo.data().exists());
    assert!(demo.descendants().len() >= 2, "the demo and its cluster: {:?}", demo.descendants());
    let code = demo.wait(LIMIT);
    let printed = demo.printed();
    assert_eq!(code, Some(0), "{printed}");
    let verdict = printed.lines().last().unwrap();
    assert!(verdict.starts_with("DEMO PASSED in "), "{printed}");
    assert!(verdict.ends_with(" and every placement group is settled again"), "{verdict}");
    println!("{verdict}");
    let files = verdict.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(files.parse::<u64>().unwrap() > 1_000, "a real tree: {verdict}");
    assert_eq!(printed.matches("DEMO ").count(), 1, "one verdict");
    assert!(printed.contains("the cluster and its data are removed"), "{printed}");
    assert!(!printed.contains("the data stays"), "it does not: {printed}");
    in_readme().check(&printed).unwrap_or_else(|error| panic!("README.md: {error}\n{printed}"));
    demo.assert_nothing_is_left();
}

/// What the README shows of it.
fn in_readme() -> Step {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let steps = steps(&fs::read_to_string(readme).unwrap());
    let step = steps.into_iter().find(|step| step.make_targets() == ["demo"]);
    let step = step.expect("the README shows `make demo`");
    assert!(!step.outputs.is_empty(), "and its last lines");
    step
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() {
    let demo = Demo::start();
    demo.wait_said("== stop the node");
    demo.wait_said("$ cairn put"); // some command or other is running
    assert!(demo.data().exists());
    demo.process.signal(libc::SIGINT);
    // A terminal that is closed at that moment sends these, too: the end stays an orderly one.
    demo.process.signal(libc::SIGHUP);
    demo.process.signal(libc::SIGHUP);
    assert_eq!(demo.wait(STOP_LIMIT), Some(130), "{}", demo.printed());
    assert!(demo.printed().contains("DEMO INTERRUPTED: nothing is left running"), "{}", demo.printed());
    demo.assert_nothing_is_left();
}

#[test]
fn after_kill_9_nothing_runs_and_the_next_demo_removes_the_data() {
    let demo = Demo::start();
    demo.wait_said("$ cairn put");
    let data = demo.data();
    demo.process.kill();
    let ended = poll(STOP_LIMIT, Duration::from_millis(50), || demo.descendants().is_empty().then_some(()));
    assert!(ended.is_some(), "still running: {:?}", demo.descendants());
    let next = Demo::start();
    next.wait_said("$ cairn put");
    assert!(!data.exists(), "{} is still there", data.display());
    assert!(next.data().exists());
    next.process.signal(libc::SIGINT);
    assert_eq!(next.wait(STOP_LIMIT), Some(130), "{}", next.printed());
    next.assert_nothing_is_left();
}

#[test]
fn what_is_missing_is_said_in_one_line() {
    let empty = tempfile::tempdir().unwrap();
    let without_crates = |spec: Spec| spec.env("CARGO_HOME", empty.path());
    let without_rust = |spec: Spec| spec.env("PATH", empty.path());
    for (demo, advice) in [
        (Demo::start_with(without_crates), "run `cargo fetch`"),
        (Demo::start_with(without_rust), "put the Rust toolchain's `bin` on PATH"),
    ] {
        assert_eq!(demo.wait(STOP_LIMIT), Some(1), "{}", demo.printed());
        let printed = demo.printed();
        assert_eq!(printed.trim().lines().count(), 1, "{printed}");
        assert!(printed.trim().starts_with("DEMO FAILED: ") && printed.contains(advice), "{printed}");
    }
}
