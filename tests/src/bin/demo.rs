//! `make demo`: four nodes in three zones on this machine, from the manifest that users get; a real tree goes in, a node
//! is lost, more goes in, every byte is compared, the node comes back and catches up. Ends with one line, and leaves
//! nothing: no process and no file, also after Ctrl-C in the middle.
//!
//! The tree is what every machine has that has built Cairn: the Rust toolchain's libraries and the sources of crates.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use cairn_tests::{
    process::{Process, Spec, poll},
    programs,
    scratch::Scratch,
    stop::{INTERRUPTED, Stop},
};

/// Starting four nodes takes a second or two; a machine under load, longer.
const START_LIMIT: Duration = Duration::from_secs(120);
/// The node that is lost: the only one of its zone.
const LOST_NODE: &str = "demo-main-b-0";

/// A command with more than so many arguments is shown without most of them.
const ARGUMENTS_SHOWN: usize = 10;

fn main() -> ExitCode {
    let begun = Instant::now();
    let stop = match Stop::on_signals("demo") {
        Ok(stop) => stop,
        Err(error) => return failed(&error),
    };
    match demo(&stop) {
        _ if stop.is_set() => {
            eprintln!("\nDEMO INTERRUPTED: nothing is left running");
            ExitCode::from(INTERRUPTED)
        }
        Ok(verdict) => {
            println!("\nDEMO PASSED in {:.0} s: {verdict}", begun.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("\nDEMO FAILED: {error:#}");
    ExitCode::FAILURE
}

fn demo(stop: &Stop) -> Result<String> {
    let repository = repository()?;
    let (libraries, crates) = (libraries()?, crates(&repository)?);
    let folder = Scratch::new("demo")?;
    let cluster = Cluster::start(&repository, folder.path(), stop)?;
    let result = tour(&cluster, folder.path(), &libraries, &crates);
    if result.is_err() && !stop.is_set() {
        eprintln!("--- end of the cluster's log\n{}", cluster.process.log_tail(30));
    }
    let ended = cluster.process.terminate(Duration::from_secs(30));
    ensure!(ended.success(), "the cluster ended with {ended}");
    folder.close().context("the demo's folder cannot be removed")?;
    result
}

fn tour(cluster: &Cluster, folder: &Path, libraries: &Path, crates: &[PathBuf]) -> Result<String> {
    let edges = edge_cases(folder)?;
    let say = |step: &str| println!("\n== {step}");
    say("upload the Rust toolchain's libraries");
    cluster.cairn(&["put", text(libraries)?, "files/libraries"])?;
    cluster.cairn(&["put", text(&edges)?, "files/edges"])?;
    cluster.cairn(&["status"])?;
    say(&format!("stop the node {LOST_NODE}, as a power cut would, and upload the sources of all crates"));
    cluster.cairn(&["node", "stop", LOST_NODE])?;
    let mut put = vec!["put"];
    for folder in crates {
        put.push(text(folder)?);
    }
    put.push("files/crates/");
    cluster.cairn(&put)?;
    say("download everything, with that node still away, and compare every byte");
    let back = folder.join("back");
    cluster.cairn(&["get", "files", text(&back)?])?;
    let mut compared = Compared::default();
    compared.tree(libraries, &back.join("libraries"), &cluster.stop)?;
    compared.tree(&edges, &back.join("edges"), &cluster.stop)?;
    for folder in crates {
        let name = folder.file_name().context("a crate has a name")?;
        compared.tree(folder, &back.join("crates").join(name), &cluster.stop)?;
    }
    println!("{} files, {:.1} MiB: all equal", compared.files, mebibytes(compared.bytes));
    say("start the node again, and wait until it has caught up");
    cluster.cairn(&["node", "start", LOST_NODE])?;
    cluster.cairn(&["status", "--wait-settled", "--timeout", "15m"])?;
    Ok(format!(
        "{} files ({:.1} MiB, the largest {:.1} MiB) survived a lost node byte for byte, and every placement group is \
         settled again",
        compared.files,
        mebibytes(compared.bytes),
        mebibytes(compared.largest)
    ))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// The supervisor with its nodes.
struct Cluster {
    process: Process,
    config: PathBuf,
    stop: Stop,
}

impl Cluster {
    fn start(repository: &Path, folder: &Path, stop: &Stop) -> Result<Self> {
        let ready = folder.join("ready.json");
        let data = folder.join("data");
        println!("== start four nodes in three zones from docs/examples/laptop.yaml");
        let process = Spec::new("cairn-operator", programs::built("cairn-operator"))
            .args(["local", "-f"])
            .arg(repository.join("docs/examples/laptop.yaml"))
            .arg("--data-dir")
            .arg(&data)
            .args(["--base-port", "0", "--ready-file"])
            .arg(&ready)
            .env("LOG", "warn")
            .log(folder.join("cluster.log"))
            .spawn()?;
        let up = poll(START_LIMIT, Duration::from_millis(100), || {
            (ready.exists() || process.exited().is_some() || stop.is_set()).then_some(())
        });
        ensure!(!stop.is_set(), "interrupted");
        if up.is_none() || process.exited().is_some() {
            bail!("the cluster did not become ready:\n{}", process.log_tail(30));
        }
        println!("{}", banner(&process.log_tail(40)));
        Ok(Self { process, config: data.join("config.yaml"), stop: stop.clone() })
    }

    /// Runs the command line as a person would, with its output shown.
    fn cairn(&self, arguments: &[&str]) -> Result<()> {
        match arguments {
            [verb, first, more @ .., last] if more.len() > ARGUMENTS_SHOWN => {
                println!("$ cairn {verb} {first} [and {} more] {last}", more.len());
            }
            _ => println!("$ cairn {}", arguments.join(" ")),
        }
        let spec = programs::cairn().args(arguments);
        let child = spec.env("CAIRN_CONFIG", &self.config).shown().spawn()?;
        loop {
            if let Some(status) = child.exited() {
                ensure!(status.success(), "cairn {} ended with {status}", arguments[0]);
                return Ok(());
            }
            ensure!(!self.stop.is_set(), "interrupted");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the supervisor says to people, but that its data stays after Ctrl-C: here it goes.
fn banner(said: &str) -> String {
    let guide: Vec<&str> = said.lines().filter(|line| !line.starts_with("Ctrl-C")).collect();
    format!(
        "{}\n\nThat works until the demo has ended: then the cluster and its data are removed. Ctrl-C ends it now.",
        guide.join("\n").trim_end()
    )
}

/// What was compared so far.
#[derive(Default)]
struct Compared {
    files: u64,
    bytes: u64,
    largest: u64,
}

impl Compared {
    /// Every regular file below `original` must be below `copy`, byte for byte, and nothing else. Copies are removed at once:
    /// soon they would be on the disk, and take minutes to be removed from some.
    fn tree(&mut self, original: &Path, copy: &Path, stop: &Stop) -> Result<()> {
        for entry in walkdir::WalkDir::new(original) {
            let entry = entry?;
            if !entry.file_type().is_file() {
                continue;
            }
            ensure!(!stop.is_set(), "interrupted");
            let other = copy.join(entry.path().strip_prefix(original)?);
            let length = same(entry.path(), &other)
                .with_context(|| format!("{} and {}", entry.path().display(), other.display()))?;
            std::fs::remove_file(other)?;
            self.files += 1;
            self.bytes += length;
            self.largest = self.largest.max(length);
        }
        let left = walkdir::WalkDir::new(copy).into_iter().filter_map(Result::ok);
        if let Some(other) = left.into_iter().find(|entry| entry.file_type().is_file()) {
            bail!("{} came back, and was never uploaded", other.path().display());
        }
        Ok(())
    }
}

/// The length of two equal files.
fn same(a: &Path, b: &Path) -> Result<u64> {
    let (mut a, mut b) = (BufReader::new(File::open(a)?), BufReader::new(File::open(b)?));
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut total = 0;
    loop {
        let (m, n) = (fill(&mut a, &mut left)?, fill(&mut b, &mut right)?);
        ensure!(left[..m] == right[..n], "the contents differ after {total} bytes");
        total += m as u64;
        if m == 0 {
            return Ok(total);
        }
    }
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Files whose sizes lie around the borders of frames and chunks, and names that are easily mangled.
fn edge_cases(folder: &Path) -> Result<PathBuf> {
    let edges = folder.join("edges");
    std::fs::create_dir_all(edges.join("a folder/ü—漢字"))?;
    for size in [0, 1, 65_535, 65_536, 65_537, 4_194_304, 4_194_305] {
        let bytes: Vec<u8> = (0..size).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(edges.join(format!("{size} bytes")), bytes)?;
    }
    std::fs::write(edges.join("a folder/ü—漢字/100%.txt"), "percent")?;
    Ok(edges)
}

/// The Rust toolchain's libraries.
fn libraries() -> Result<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output();
    let output = output.context("rustc cannot be started: put the Rust toolchain's `bin` on PATH")?;
    let root = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    // A distribution's toolchain shares its `lib` with all programs of the system.
    let shared = [Path::new("/usr"), Path::new("/usr/local")].contains(&root.as_path());
    let libraries = root.join(if shared { "lib/rustlib" } else { "lib" });
    ensure!(libraries.is_dir(), "{} is missing: is the Rust toolchain installed?", libraries.display());
    Ok(libraries)
}

/// Folders of the crates that Cairn is built from. Other projects may have downloaded gigabytes more.
fn crates(repository: &Path) -> Result<Vec<PathBuf>> {
    let lock: Lock = toml::from_str(&std::fs::read_to_string(repository.join("Cargo.lock"))?)?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let sources = home.context("there is no home folder: set HOME")?.join("registry/src");
    let go_on = || format!("{}: run `cargo fetch`, which downloads the sources of crates", sources.display());
    let registries: Vec<_> = std::fs::read_dir(&sources).with_context(go_on)?.flatten().collect();
    let places = lock.package.iter().flat_map(|package| {
        let name = format!("{}-{}", package.name, package.version);
        registries.iter().map(move |registry| registry.path().join(&name))
    });
    // Those for other systems are not downloaded by a build.
    let mut found: Vec<PathBuf> = places.filter(|folder| folder.is_dir()).collect();
    ensure!(!found.is_empty(), "there is no crate in {}", go_on());
    // The same crate of two registries has one name.
    found.dedup_by(|a, b| a.file_name() == b.file_name());
    Ok(found)
}

#[derive(serde::Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(serde::Deserialize)]
struct Package {
    name: String,
    version: String,
}

fn repository() -> Result<PathBuf> {
    let mine = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(mine.parent().context("the repository's folder")?.to_path_buf())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
