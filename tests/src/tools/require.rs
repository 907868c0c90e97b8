//! What a test asks for before it begins. On a laptop a missing program or privilege skips the test, says so and is
//! counted; with `CI=true` it fails the test, so that a green run has run everything.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Tools, catalog, system};

/// Names a file to which each skipped test appends a line; `make test` counts them.
pub const SKIP_FILE: &str = "CAIRN_SKIP_FILE";

/// System programs that a node needs.
const OF_A_NODE: [&str; 7] = ["runc", "nft", "conntrack", "ip", "bridge", "host-local", "loopback"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// etcd and etcdctl.
    Etcd,
    /// A Kubernetes API server, its etcd, and kubectl.
    KubeApi,
    /// The API server with controllers and scheduler, and helm.
    KubeControl,
    /// Kubelets: everything above, containers, and the right to make them.
    Kubelets,
    /// grpcurl.
    Grpcurl,
    /// A program of the operating system, such as `tcpdump`.
    System(&'static str),
    /// To be root.
    Root,
    /// To be root and allowed to make network namespaces.
    Namespaces,
}

/// Why a test cannot run here. It has been printed and counted already.
#[derive(Debug)]
pub struct Skip {
    pub why: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Skip {}

/// Everything in `needs`, found, built or installed; else the test is to end here: see the module's description.
///
/// # Panics
/// With `CI=true`, when something is missing.
pub fn require(needs: &[Need]) -> Result<Tools, Skip> {
    let mut tools = Tools::default();
    for need in needs {
        match provide(*need) {
            Ok(found) => tools.extend(found),
            Err(why) => return Err(skip(&why)),
        }
    }
    Ok(tools)
}

/// Prints and counts a skipped test.
///
/// # Panics
/// With `CI=true`.
pub fn skip(why: &str) -> Skip {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test").to_string();
    if std::env::var("CI").is_ok_and(|v| v == "true") {
        panic!("{test} cannot run, and CI=true allows no skips: {why}");
    }
    eprintln!("SKIPPED: {test}: {why}");
    if let Some(path) = std::env::var_os(SKIP_FILE)
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let line = why.lines().next().unwrap_or("");
        let _ = file.write_all(format!("{test}: {line}\n").as_bytes());
    }
    Skip { why: why.to_string() }
}

fn provide(need: Need) -> Result<Tools, String> {
    let build = |names: &[&str]| Tools::ensure(names).map_err(|e| e.to_string());
    match need {
        Need::Etcd => build(catalog::ETCD),
        Need::KubeApi => build(catalog::API),
        Need::KubeControl => build(catalog::CONTROL),
        Need::Grpcurl => build(&["grpcurl"]),
        Need::System(program) => of_system(&[program]),
        Need::Root => root().map(|()| Tools::default()),
        Need::Namespaces => root().and_then(|()| namespaces()).map(|()| Tools::default()),
        Need::Kubelets => {
            root()?;
            namespaces()?;
            cgroups()?;
            let mut tools = of_system(&OF_A_NODE)?;
            tools.extend(build(catalog::KUBELETS)?);
            Ok(tools)
        }
    }
}

fn of_system(programs: &[&str]) -> Result<Tools, String> {
    let paths = system::ensure(programs).map_err(|e| e.to_string())?;
    let mut tools = Tools::default();
    for (name, path) in programs.iter().zip(paths) {
        tools.insert(name, path);
    }
    Ok(tools)
}

fn root() -> Result<(), String> {
    if system::is_root() { Ok(()) } else { Err("it needs root: run the tests with sudo -E".to_string()) }
}

/// Tries it in a thread of its own, whose namespace is gone with it.
fn namespaces() -> Result<(), String> {
    let tried = std::thread::spawn(|| {
        // SAFETY: changes this thread alone.
        unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 }
    });
    match tried.join() {
        Ok(true) => Ok(()),
        _ => Err("this machine allows no network namespaces: give the container CAP_SYS_ADMIN".to_string()),
    }
}

fn cgroups() -> Result<(), String> {
    let how = "mount cgroups writable (in a container: --privileged)";
    let base = Path::new("/sys/fs/cgroup");
    let memory = if base.join("memory").is_dir() { base.join("memory") } else { base.to_path_buf() };
    static COUNT: AtomicU32 = AtomicU32::new(0); // tests of one process ask at once
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let probe = memory.join(format!("cairn-probe-{}-{number}", std::process::id()));
    fs::create_dir(&probe)
        .map_err(|e| format!("cannot make a control group in {}: {e}: {how}", memory.display()))?;
    fs::remove_dir(&probe).map_err(|e| format!("cannot remove {}: {e}: {how}", probe.display()))
}
