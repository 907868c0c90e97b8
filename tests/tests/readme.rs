//! Every command that the README and docs/http.md show is run here as it stands, in a copy of the checkout, and prints what
//! they show. A command that somebody adds is run by that alone.
//!
//! Commands are typed into one terminal after the other. A block that starts a cluster keeps its terminal until the end of
//! the test; what follows goes into another one, as the documents say.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::symlink},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use cairn_tests::{
    bed::netns,
    markdown::{Step, steps},
    process::{Process, Spec, poll},
    programs,
    scratch::Scratch,
    tools::{Need, Tools, require, skip, system},
};

const DOCUMENTS: [&str; 2] = ["README.md", "docs/http.md"];
/// What begins a line that runs until Ctrl-C.
const STAYS: &str = "cairn-operator local";
/// `make` targets that documents speak of, and the test that runs what each does: in blocks of commands they only say so.
/// What the Makefile makes of each word is held by `stages.rs`. `make test` cannot run in a test of its own: what it does
/// with its stages is tried there.
const MAKE: [(&str, &str); 12] = [
    ("", "stages.rs::make_alone_lists_every_target"),
    ("setup", "stages.rs::quick_lint_setup_and_build_are_parts_of_what_make_test_runs"),
    ("build", "readme.rs::make_build_builds_every_program"),
    ("demo", "process_demo.rs::the_demo_passes_and_leaves_nothing"),
    ("kube", "kubelets.rs::make_kube_shows_cairn_and_ends_at_ctrl_c"),
    ("soak", "stages.rs::soak_plays_more_of_what_make_test_plays"),
    ("mutants", "stages.rs::mutants_are_planted_by_a_program_of_their_own"),
    ("quick", "stages.rs::quick_lint_setup_and_build_are_parts_of_what_make_test_runs"),
    ("lint", "stages.rs::quick_lint_setup_and_build_are_parts_of_what_make_test_runs"),
    ("test", "stages.rs::every_test_binary_runs_once_and_all_are_counted"),
    ("bench", "process_bench.rs::a_short_run_gives_every_number"),
    ("readme", "tidy.rs::the_readme_lists_what_is_promised"),
];
/// Begins a line that says which command comes next: what it prints is to be seen without.
const TRACE: &str = "+ ";
/// How long the commands of one terminal may take, and a cluster to start or to end.
const LIMIT: Duration = Duration::from_secs(240);
/// Where `cairn-operator local` listens when nobody says otherwise.
const PORTS: std::ops::RangeInclusive<u16> = 7400..=7408;

#[test]
fn every_command_does_what_the_documents_say() {
    let Ok(tools) = require(&[Need::Grpcurl, Need::System("curl")]) else { return };
    let Some(network) = Network::new() else { return };
    let place = Place::new(&tools);
    let mut open = Vec::new();
    for terminal in terminals(&DOCUMENTS.map(|name| (name, text(name)))) {
        let running = Running::start(&terminal, &place, &network);
        if terminal.stays() {
            running.wait_shown(&terminal);
            open.push(running);
        } else {
            let ended = running.wait_ended();
            assert!(ended.success(), "{ended}\n{}", running.log());
            running.check(&terminal).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    place.check();
    for running in open {
        running.interrupt();
        let ended = running.wait_ended();
        assert!(ended.success(), "at Ctrl-C: {ended}\n{}", running.log());
    }
}

#[test]
fn every_make_target_exists_and_is_run_by_a_test() {
    let makefile = text("Makefile");
    let exists = |target: &str| makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
    let check = |place: String, target: &str| {
        assert!(target.is_empty() || exists(target), "{place}: the Makefile has no {target}");
        let covered = MAKE.iter().any(|(known, _)| *known == target);
        assert!(covered, "{place}: name the test that runs `make {target}` in MAKE");
    };
    for name in DOCUMENTS {
        let document = text(name);
        // Also those in the middle of a sentence or in a table.
        for target in document.split("`make").skip(1).filter_map(|rest| rest.split('`').next()) {
            check(name.to_owned(), target.trim());
        }
        for step in steps(&document) {
            step.make_targets().iter().for_each(|target| {
                check(format!("{name}:{}", step.commands.line), target);
            });
        }
    }
    for (target, test) in MAKE {
        let (file, function) = test.split_once("::").unwrap();
        let source = text(&format!("tests/tests/{file}"));
        let there = source.contains(&format!("#[test]\nfn {function}()"));
        assert!(there, "`make {target}` is run by {test}, which is no test");
    }
}

#[test]
fn make_build_builds_every_program() {
    let Ok(tools) = require(&[Need::System("make")]) else { return };
    let output = Command::new(tools.path("make"))
        .args(["--dry-run", "--no-print-directory", "build"])
        .current_dir(checkout())
        .env_remove("MAKEFLAGS")
        .output()
        .unwrap();
    let commands = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = commands.lines().collect();
    assert_eq!(lines.len(), 2, "{commands}");
    assert!(lines[0].ends_with(".ci/setup build"), "{commands}");
    assert!(lines[1].ends_with(" build --profile ci --workspace --bins"), "{commands}");
    for name in ["cairn", "cairn-operator", "cairn-node"] {
        assert!(programs::built(name).is_file(), "the same line has built {name} for this test");
    }
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn text(name: &str) -> String {
    fs::read_to_string(checkout().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What somebody types into one terminal.
#[derive(Default)]
struct Terminal {
    name: String,
    /// With the name of the document.
    steps: Vec<(String, Step)>,
}

/// A new one for each document, and after each cluster that stays.
fn terminals(documents: &[(&str, String)]) -> Vec<Terminal> {
    let mut found: Vec<Terminal> = Vec::new();
    for (name, text) in documents {
        let mut new = true;
        for step in steps(text) {
            if new {
                found.push(Terminal { name: format!("terminal-{}", found.len() + 1), steps: Vec::new() });
            }
            let terminal = found.last_mut().unwrap();
            terminal.steps.push((name.to_string(), step));
            new = terminal.stays();
        }
    }
    found
}

impl Terminal {
    /// Whether its last line runs until Ctrl-C.
    fn stays(&self) -> bool {
        let last = self.steps.last().and_then(|(_, step)| step.commands.text.lines().last());
        last.is_some_and(|line| line.starts_with(STAYS))
    }

    /// The blocks as they stand, each after a line that says which one comes.
    fn script(&self, alive: &Path) -> String {
        // Whatever is started here ends with the test, also when the test is killed: then nobody has the pipe open any more.
        let mut script = format!("{{ read -r _ <'{}' || kill -KILL 0; }} 2>/dev/null &\n", alive.display());
        script.push_str("make() { echo \"make $*: another test runs it\"; }\n");
        // A trace begins a line of its own, also after output that does not end one.
        script.push_str(&format!("PS4=$'\\n{TRACE}'\nset -x\n"));
        for (document, step) in &self.steps {
            script.push_str(&format!("echo '{}'\n{}", heading(document, step), step.commands.text));
        }
        script
    }
}

fn heading(document: &str, step: &Step) -> String {
    format!("=== {document}:{}", step.commands.line)
}

/// A copy of the checkout, and a home, that nobody else uses.
struct Place {
    folder: Scratch,
    environment: BTreeMap<&'static str, std::ffi::OsString>,
}

impl Place {
    fn new(tools: &Tools) -> Self {
        let folder = Scratch::new("readme").unwrap();
        let (home, copy) = (folder.path().join("home"), folder.path().join("cairn"));
        fs::create_dir(&home).unwrap();
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(checkout())
            .output()
            .expect("git lists the files: install it");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        for name in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
            let target = copy.join(name);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            // One that git knows may have been removed.
            let _ = fs::copy(checkout().join(name), target);
        }
        // `make build` has been here: target/TRIPLE/ci.
        let built = programs::built("cairn").parent().unwrap().to_path_buf();
        let triple = built.parent().and_then(Path::file_name).unwrap();
        fs::create_dir_all(copy.join("target").join(triple)).unwrap();
        symlink(&built, copy.join("target").join(triple).join("ci")).unwrap();

        // Where rustup keeps the toolchain, which does not lie in the new home.
        let of_rustup =
            std::env::var_os("RUSTUP_HOME").or_else(|| Some(std::env::home_dir()?.join(".rustup").into()));
        let mut environment = BTreeMap::from([
            ("PATH", tools.search_path()),
            ("HOME", home.into_os_string()),
            ("LANG", "C.UTF-8".into()),
        ]);
        environment.extend(of_rustup.map(|folder| ("RUSTUP_HOME", folder)));
        environment.extend(std::env::var_os("RUSTUP_TOOLCHAIN").map(|name| ("RUSTUP_TOOLCHAIN", name)));
        Self { folder, environment }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What was downloaded is what was uploaded, and nothing was written elsewhere.
    fn check(&self) {
        let copy = self.path("cairn");
        same(&copy.join("README.md"), &copy.join("copy.md"));
        same(&copy.join("README.md"), &copy.join("readme.copy"));
        let head = fs::read(copy.join("readme.head")).unwrap();
        assert!(head == fs::read(copy.join("README.md")).unwrap()[..1024], "the range is another");
        let files = |root: PathBuf| -> Vec<PathBuf> {
            let all = walkdir::WalkDir::new(&root).sort_by_file_name().into_iter().map(Result::unwrap);
            let files = all.filter(|entry| entry.file_type().is_file());
            files.map(|entry| entry.path().strip_prefix(&root).unwrap().to_owned()).collect()
        };
        assert_eq!(files(copy.join("docs")), files(copy.join("back")));
        for name in files(copy.join("docs")) {
            same(&copy.join("docs").join(&name), &copy.join("back").join(&name));
        }
        let left = files(self.path("home"));
        assert!(left.is_empty(), "in the home: {left:?}");
    }
}

fn same(a: &Path, b: &Path) {
    let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(read(a) == read(b), "{} and {} differ", a.display(), b.display());
}

/// A network where the documents' ports are free: a namespace of its own, if this user may make one.
struct Network(Option<File>);

impl Network {
    /// Nothing, with the test counted as skipped, if the ports are somebody else's.
    fn new() -> Option<Self> {
        if let Some(namespace) = namespace() {
            return Some(Self(Some(namespace)));
        }
        let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if let Some(taken) = PORTS.into_iter().find(|port| !free(*port)) {
            skip(&format!(
                "port {taken}, which the README uses, is taken: end what listens there, or run as root"
            ));
            return None;
        }
        Some(Self(None))
    }

    fn path(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
    }
}

/// Lives as long as the file is open.
fn namespace() -> Option<File> {
    let ip = system::find("ip").filter(|_| system::is_root())?;
    let made = std::thread::spawn(move || {
        // SAFETY: changes this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return None;
        }
        netns::ip(&ip, "link set lo up").ok()?;
        File::open("/proc/thread-self/ns/net").ok()
    });
    made.join().unwrap()
}

/// A terminal in which commands run. Dropping it kills all of them.
struct Running {
    shell: Process,
    log: PathBuf,
    /// Open as long as this lives.
    _alive: File,
}

impl Running {
    fn start(terminal: &Terminal, place: &Place, network: &Network) -> Self {
        let path = |end: &str| place.path(&format!("{}.{end}", terminal.name));
        let (script, log, pipe) = (path("sh"), path("log"), path("alive"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let alive = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        fs::write(&script, terminal.script(&pipe)).unwrap();
        let mut spec = Spec::new(&terminal.name, "/bin/bash").arg("-e").arg(&script).clear_env();
        for (name, value) in &place.environment {
            spec = spec.env(name, value);
        }
        let spec = spec.folder(place.path("cairn")).log(&log).netns(network.path());
        Self { shell: spec.spawn().unwrap(), log, _alive: alive }
    }

    fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Each step has printed what the document shows for it.
    fn check(&self, terminal: &Terminal) -> Result<(), String> {
        let log = self.log();
        let mut rest = log.as_str();
        for (document, step) in &terminal.steps {
            let heading = format!("\n{}\n", heading(document, step));
            let (_, after) =
                rest.split_once(&heading).ok_or_else(|| format!("no{heading}in what was printed:\n{log}"))?;
            rest = after;
            let end = after.find("\n=== ").unwrap_or(after.len());
            // What it prints is shown by the test that runs it.
            let elsewhere = step.make_targets().len() == step.commands.text.lines().count();
            if !elsewhere {
                let seen: Vec<&str> = after[..end].lines().filter(|line| !line.starts_with(TRACE)).collect();
                let checked = step.check(&seen.join("\n"));
                checked.map_err(|error| format!("{document}: {error}\nBut:\n{}", &after[..end]))?;
            }
        }
        Ok(())
    }

    /// Waits until everything that the document shows is printed.
    fn wait_shown(&self, terminal: &Terminal) {
        let shown = poll(LIMIT, Duration::from_millis(50), || {
            (self.check(terminal).is_ok() || self.shell.exited().is_some()).then_some(())
        });
        let ended = self.shell.exited();
        assert!(shown.is_some() && ended.is_none(), "{ended:?} {:?}\n{}", self.check(terminal), self.log());
    }

    fn wait_ended(&self) -> ExitStatus {
        let ended = poll(LIMIT, Duration::from_millis(20), || self.shell.exited());
        ended.unwrap_or_else(|| panic!("not done after {} s:\n{}", LIMIT.as_secs(), self.log()))
    }

    /// Ctrl-C: everything in the terminal gets it.
    fn interrupt(&self) {
        // SAFETY: the group of our own child, which we have not waited for.
        unsafe { libc::kill(-self.shell.pid(), libc::SIGINT) };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: the group that our child began; the reader of `alive` keeps its number from being given to another.
        unsafe { libc::kill(-self.shell.pid(), libc::SIGKILL) };
    }
}
