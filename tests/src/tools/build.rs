//! Builds missing programs with the ordinary `go` client and keeps them.
//!
//! A program lies at `cairn/tools/NAME-VERSION-INPUTS/NAME` in the cache, INPUTS being eight digits of a digest over go.mod,
//! go.sum and our own source. Builds go into a folder aside, which is then renamed: what has a name is whole. One file
//! lock for each Go module keeps two test processes from building the same thing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use super::catalog::{Module, Program};
use super::{ToolError, cache_folder, system};

/// Folders of other versions that nothing has used for so long are removed when a program is built.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(14 * 24 * 3600);

/// Who hears about a build that takes minutes.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    Stderr,
    Stdout,
}

impl Progress {
    fn say(self, line: &str) {
        match self {
            Self::Stderr => eprintln!("{line}"),
            Self::Stdout => println!("{line}"),
        }
    }
}

#[derive(Debug)]
pub struct Built {
    pub program: &'static Program,
    pub path: PathBuf,
}

/// Where a program is, if it is there: `KUBEBUILDER_ASSETS` first, then the cache.
pub fn find(program: &'static Program) -> Result<Option<PathBuf>, ToolError> {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        let path = PathBuf::from(assets).join(program.name);
        if path.is_file() {
            return Ok(Some(path));
        }
    }
    let folder = home(program)?;
    let path = folder.join(program.name);
    if !path.is_file() {
        return Ok(None);
    }
    if let Ok(folder) = File::open(&folder) {
        let _ = folder.set_modified(SystemTime::now()); // in use: see FORGOTTEN_AFTER
    }
    Ok(Some(path))
}

/// Builds the programs, module by module, and says how many seconds after its module's start each was there.
pub fn build(programs: &[&'static Program], progress: Progress) -> Result<Vec<Built>, ToolError> {
    let mut modules: Vec<&'static Module> = Vec::new();
    for program in programs {
        if !modules.iter().any(|m| m.folder == program.module.folder) {
            modules.push(program.module);
        }
    }
    let mut built = Vec::new();
    for module in modules {
        let of_module: Vec<_> =
            programs.iter().copied().filter(|p| p.module.folder == module.folder).collect();
        built.extend(build_module(module, &of_module, progress)?);
    }
    Ok(built)
}

fn build_module(
    module: &'static Module,
    programs: &[&'static Program],
    progress: Progress,
) -> Result<Vec<Built>, ToolError> {
    let base = cache_folder()?.join("tools");
    fs::create_dir_all(&base).map_err(ToolError::io(format!("cannot make {}", base.display())))?;
    let lock_path = base.join(format!(".lock-{}", module.folder));
    let lock = File::create(&lock_path).map_err(ToolError::io(lock_path.display().to_string()))?;
    lock.lock().map_err(ToolError::io(format!("cannot lock {}", lock_path.display())))?;

    let mut built = Vec::new();
    let mut missing = Vec::new();
    for program in programs {
        match find(program)? {
            Some(path) => built.push(Built { program, path }), // another process was faster
            None => missing.push(*program),
        }
    }
    // Programs that are linked alike are built by one command, which uses both cores for all of them.
    while let Some(first) = missing.first() {
        let flags = first.linker_flags();
        let (alike, rest): (Vec<_>, Vec<_>) = missing.into_iter().partition(|p| p.linker_flags() == flags);
        missing = rest;
        let aside = base.join(format!(".build-{}", module.folder));
        let _ = fs::remove_dir_all(&aside); // left by a build that was ended
        fs::create_dir_all(&aside).map_err(ToolError::io(aside.display().to_string()))?;
        let result = go_build(module, &alike, &flags, &aside, progress)
            .and_then(|()| alike.iter().map(|p| install(p, &aside, &base)).collect::<Result<Vec<_>, _>>());
        let _ = fs::remove_dir_all(&aside);
        built.extend(result?);
    }
    Ok(built)
}

fn go_build(
    module: &Module,
    programs: &[&'static Program],
    flags: &str,
    out: &Path,
    progress: Progress,
) -> Result<(), ToolError> {
    let names: Vec<_> = programs.iter().map(|p| p.name).collect();
    let names = names.join(" ");
    let go = system::find("go").ok_or_else(|| ToolError::NoGo(names.clone()))?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/go").join(module.folder);
    progress.say(&format!("building {names} (once; kept in {})", cache_folder()?.join("tools").display()));
    let mut command = Command::new(go);
    command
        .args(["build", "-buildvcs=false", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o"])
        .arg(out);
    command.args(programs.iter().map(|p| p.package)).current_dir(&folder);
    command.env("CGO_ENABLED", "0").env("GOWORK", "off").stdin(Stdio::null());

    let done = AtomicBool::new(false);
    let start = Instant::now();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| report_as_they_come(programs, out, start, &done, progress));
        let output = command.output();
        done.store(true, Ordering::Release);
        output
    });
    let output = output.map_err(ToolError::io("cannot run go"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(ToolError::GoBuild { what: names, folder: folder.display().to_string(), output: text });
    }
    Ok(())
}

fn report_as_they_come(
    programs: &[&'static Program],
    out: &Path,
    start: Instant,
    done: &AtomicBool,
    progress: Progress,
) {
    let mut waiting: Vec<_> = programs.to_vec();
    while !waiting.is_empty() {
        let finished = done.load(Ordering::Acquire);
        waiting.retain(|p| {
            let there = out.join(p.built_as).is_file();
            if there {
                let seconds = start.elapsed().as_secs_f64();
                progress.say(&format!("  {:<24} {:<10} {seconds:6.1} s", p.name, p.version()));
            }
            !there
        });
        if finished {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn install(program: &'static Program, aside: &Path, base: &Path) -> Result<Built, ToolError> {
    let ready = aside.join(format!("ready-{}", program.name));
    let to = home(program)?;
    let moved = fs::create_dir_all(&ready)
        .and_then(|()| fs::rename(aside.join(program.built_as), ready.join(program.name)))
        .and_then(|()| fs::rename(&ready, &to));
    moved.map_err(ToolError::io(format!("cannot put {} into {}", program.name, to.display())))?;
    remove_forgotten(program, base, &to);
    Ok(Built { program, path: to.join(program.name) })
}

fn remove_forgotten(program: &Program, base: &Path, current: &Path) {
    let prefix = format!("{}-v", program.name);
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let used = entry.metadata().and_then(|m| m.modified());
        let old = used.is_ok_and(|t| t.elapsed().is_ok_and(|age| age > FORGOTTEN_AFTER));
        if old && entry.path() != current && entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The folder of a program in the cache.
fn home(program: &Program) -> Result<PathBuf, ToolError> {
    let mut digest = Sha256::new();
    for input in program.inputs() {
        digest.update((input.len() as u64).to_le_bytes());
        digest.update(input);
    }
    let inputs = hex::encode(&digest.finalize()[..4]);
    Ok(cache_folder()?.join("tools").join(format!("{}-{}-{inputs}", program.name, program.version())))
}
