//! `make demo`: four nodes in three zones on this machine, from the manifest that users get; a real tree goes in, a node
//! is lost, more goes in, every byte is compared, the node comes back and catches up. Ends with one line.
//!
//! The tree is what every Rust machine has: the toolchain's library folder and the sources of downloaded crates.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use cairn_tests::{
    etcd::disk_folder,
    process::{Process, Spec, poll},
    programs,
};

/// Starting four nodes takes a second or two; a machine under load, longer.
const START_LIMIT: Duration = Duration::from_secs(120);
/// The node that is lost: the only one of its zone.
const LOST_NODE: &str = "demo-main-b-0";

fn main() -> ExitCode {
    let begun = Instant::now();
    match demo() {
        Ok(verdict) => {
            println!("\nDEMO PASSED in {:.0} s: {verdict}", begun.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nDEMO FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<String> {
    let repository = repository()?;
    let folder = tempfile::Builder::new().prefix("demo-").tempdir_in(disk_folder()?)?;
    let (libraries, crates) = sources()?;
    let cluster = Cluster::start(&repository, folder.path())?;
    let result = tour(&cluster, folder.path(), &libraries, &crates);
    if result.is_err() {
        eprintln!("--- end of the cluster's log\n{}", cluster.process.log_tail(30));
    }
    let ended = cluster.process.terminate(Duration::from_secs(30));
    ensure!(ended.success(), "the cluster ended with {ended}");
    result
}

fn tour(cluster: &Cluster, folder: &Path, libraries: &Path, crates: &Path) -> Result<String> {
    let edges = edge_cases(folder)?;
    let say = |step: &str| println!("\n== {step}");
    say("upload the Rust toolchain's libraries");
    cluster.cairn(&["put", text(libraries)?, "files/libraries"])?;
    cluster.cairn(&["put", text(&edges)?, "files/edges"])?;
    cluster.cairn(&["status"])?;
    say(&format!("stop the node {LOST_NODE}, as a power cut would, and upload the sources of all crates"));
    cluster.cairn(&["node", "stop", LOST_NODE])?;
    cluster.cairn(&["put", text(crates)?, "files/crates"])?;
    say("download everything, with that node still away, and compare every byte");
    let back = folder.join("back");
    cluster.cairn(&["get", "files", text(&back)?])?;
    let mut compared = Compared::default();
    compared.tree(libraries, &back.join("libraries"))?;
    compared.tree(&edges, &back.join("edges"))?;
    compared.tree(crates, &back.join("crates"))?;
    println!("{} files, {:.1} MiB: all equal", compared.files, compared.bytes as f64 / 1_048_576.0);
    say("start the node again, and wait until it has caught up");
    cluster.cairn(&["node", "start", LOST_NODE])?;
    cluster.cairn(&["status", "--wait-settled", "--timeout", "15m"])?;
    Ok(format!(
        "{} files ({:.1} MiB, the largest {:.1} MiB) survived a lost node byte for byte, and every placement group is \
         settled again",
        compared.files,
        compared.bytes as f64 / 1_048_576.0,
        compared.largest as f64 / 1_048_576.0
    ))
}

/// The supervisor with its nodes.
struct Cluster {
    process: Process,
    config: PathBuf,
}

impl Cluster {
    fn start(repository: &Path, folder: &Path) -> Result<Self> {
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
            (ready.exists() || process.exited().is_some()).then_some(())
        });
        if up.is_none() || process.exited().is_some() {
            bail!("the cluster did not become ready:\n{}", process.log_tail(30));
        }
        println!("{}", process.log_tail(40));
        Ok(Self { process, config: data.join("config.yaml") })
    }

    /// Runs the command line as a person would, with its output shown.
    fn cairn(&self, arguments: &[&str]) -> Result<()> {
        println!("$ cairn {}", arguments.join(" "));
        let status = Command::new(programs::built("cairn"))
            .args(arguments)
            .env("CAIRN_CONFIG", &self.config)
            .stdin(Stdio::null())
            .status()
            .context("cairn cannot be started")?;
        ensure!(status.success(), "cairn {} ended with {status}", arguments.join(" "));
        Ok(())
    }
}

/// What was compared so far.
#[derive(Default)]
struct Compared {
    files: u64,
    bytes: u64,
    largest: u64,
}

impl Compared {
    /// Every regular file below `original` must be below `copy`, byte for byte, and nothing else.
    fn tree(&mut self, original: &Path, copy: &Path) -> Result<()> {
        let mut names = 0u64;
        for entry in walkdir::WalkDir::new(original) {
            let entry = entry?;
            if !entry.file_type().is_file() {
                continue;
            }
            names += 1;
            let other = copy.join(entry.path().strip_prefix(original)?);
            let length = same(entry.path(), &other)
                .with_context(|| format!("{} and {}", entry.path().display(), other.display()))?;
            self.files += 1;
            self.bytes += length;
            self.largest = self.largest.max(length);
        }
        let copies = walkdir::WalkDir::new(copy).into_iter().filter_map(Result::ok);
        let copies = copies.filter(|entry| entry.file_type().is_file()).count() as u64;
        ensure!(copies == names, "{} has {copies} files instead of {names}", copy.display());
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

fn sources() -> Result<(PathBuf, PathBuf)> {
    let output =
        Command::new("rustc").args(["--print", "sysroot"]).output().context("rustc cannot be started")?;
    let libraries = Path::new(String::from_utf8(output.stdout)?.trim()).join("lib");
    ensure!(libraries.is_dir(), "{} is missing: is the Rust toolchain installed?", libraries.display());
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let crates = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    ensure!(crates.is_dir(), "{} is missing: run `cargo fetch` first", crates.display());
    Ok((libraries, crates))
}

fn repository() -> Result<PathBuf> {
    let mine = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(mine.parent().context("the repository's folder")?.to_path_buf())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
