//! Programs of the operating system: found on PATH, or installed from their Debian package when we are root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ToolError, cache_folder};

/// Folders that hold system programs and that a user's PATH may lack.
const MORE_FOLDERS: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/cni", "/opt/cni/bin"];

/// The Debian package of each system program that tests use.
const PACKAGES: [(&str, &str); 13] = [
    ("bridge", "containernetworking-plugins"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("host-local", "containernetworking-plugins"),
    ("ip", "iproute2"),
    ("loopback", "containernetworking-plugins"),
    ("make", "make"),
    ("nft", "nftables"),
    ("protoc", "protobuf-compiler"),
    ("runc", "runc"),
    ("strip", "binutils"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
];

/// Where programs are looked for, in this order.
pub fn search_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for more in MORE_FOLDERS.map(PathBuf::from) {
        if !folders.contains(&more) {
            folders.push(more);
        }
    }
    folders
}

/// The path of a program, if it is anywhere.
pub fn find(program: &str) -> Option<PathBuf> {
    // The bridge of iproute2 and the bridge of CNI share a name: CNI's plugins are looked for in their own folders.
    let cni = ["bridge", "host-local", "loopback"].contains(&program);
    let folders = search_folders();
    let in_cni_folder = |f: &PathBuf| f.ends_with("cni") || f.ends_with("cni/bin");
    folders.iter().filter(|f| !cni || in_cni_folder(f)).map(|f| f.join(program)).find(|p| is_program(p))
}

/// Finds each program; as root on Debian, installs the packages of those that are missing.
pub fn ensure(programs: &[&str]) -> Result<Vec<PathBuf>, ToolError> {
    let missing: Vec<&str> = programs.iter().copied().filter(|p| find(p).is_none()).collect();
    if !missing.is_empty() && is_root() && find("apt-get").is_some() {
        install(&missing)?;
    }
    programs.iter().map(|p| find(p).ok_or_else(|| absent(p))).collect()
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    // SAFETY: always succeeds.
    unsafe { libc::geteuid() == 0 }
}

fn absent(program: &str) -> ToolError {
    let how = match package_of(program) {
        Some(package) => format!("apt-get install {package} (or your system's package of it)"),
        None => "install it".to_string(),
    };
    ToolError::NoProgram { program: program.to_string(), how }
}

fn package_of(program: &str) -> Option<&'static str> {
    PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package)
}

fn install(programs: &[&str]) -> Result<(), ToolError> {
    let cache = cache_folder()?;
    std::fs::create_dir_all(&cache).map_err(ToolError::io(cache.display().to_string()))?;
    let lock = File::create(cache.join(".lock-apt")).map_err(ToolError::io("cannot lock for apt-get"))?;
    lock.lock().map_err(ToolError::io("cannot lock for apt-get"))?;
    let mut packages: Vec<&str> =
        programs.iter().filter(|p| find(p).is_none()).filter_map(|p| package_of(p)).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", packages.join(" "));
    if apt_get(&[&["install"], packages.as_slice()].concat()) {
        return Ok(());
    }
    // No list of packages yet, or an old one.
    if apt_get(&["update"]) && apt_get(&[&["install"], packages.as_slice()].concat()) {
        return Ok(());
    }
    let how = format!("`apt-get install {}` failed: run it by hand to see why", packages.join(" "));
    Err(ToolError::NoProgram { program: programs.join(", "), how })
}

fn apt_get(arguments: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-y", "--no-install-recommends"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_shell_and_says_how_to_get_what_is_absent() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program").is_none());
        assert!(absent("nft").to_string().contains("apt-get install nftables"));
    }
}
