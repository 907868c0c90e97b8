//! The outside programs that tests need, found or made once and kept.
//!
//! - [`catalog`]: which programs, from which Go module; their versions stand in the committed `tests/tools/go/*/go.mod`,
//!   their contents are held by the `go.sum` beside it.
//! - [`build`]: builds what is missing with the ordinary `go` client into `${XDG_CACHE_HOME:-$HOME/.cache}/cairn/tools/`,
//!   one folder for each program and version.
//! - [`system`]: programs of the operating system, found on PATH or installed from Debian packages when we are root.
//! - [`require`](require()): what a test calls first: all it needs is there, or the test is skipped (on a laptop) or fails (in CI).
//!
//! ```no_run
//! use cairn_tests::tools::{Need, require};
//! let Ok(tools) = require(&[Need::Etcd]) else { return };
//! println!("{}", tools.path("etcd").display());
//! ```

pub mod build;
pub mod catalog;
mod require;
pub mod system;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use require::{Need, Skip, require, skip};

#[derive(Debug, Error)]
pub enum ToolError {
    #[error("no program named {0} in tests/src/tools/catalog.rs")]
    Unknown(String),
    #[error(
        "the tests build {0} from Go modules and there is no `go` on PATH: install Go 1.21 or newer (https://go.dev/dl)"
    )]
    NoGo(String),
    #[error("`go build` of {what} failed; run it by hand in {folder}:\n{output}")]
    GoBuild { what: String, folder: String, output: String },
    #[error("{program} is not on PATH: {how}")]
    NoProgram { program: String, how: String },
    #[error("neither XDG_CACHE_HOME nor HOME is set: set one, the tests keep their programs there")]
    NoCache,
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

impl ToolError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |e| Self::Io(what, e)
    }
}

/// Programs that were found: name → path.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    paths: BTreeMap<String, PathBuf>,
}

impl Tools {
    /// Finds each named program (of the catalog) and builds those that are missing.
    pub fn ensure(names: &[&str]) -> Result<Self, ToolError> {
        let mut tools = Self::default();
        let mut missing = Vec::new();
        for name in names {
            let program = catalog::program(name).ok_or_else(|| ToolError::Unknown(name.to_string()))?;
            match build::find(program)? {
                Some(path) => drop(tools.paths.insert(name.to_string(), path)),
                None => missing.push(program),
            }
        }
        for built in build::build(&missing, build::Progress::Stderr)? {
            tools.paths.insert(built.program.name.to_string(), built.path);
        }
        Ok(tools)
    }

    pub(crate) fn insert(&mut self, name: &str, path: PathBuf) {
        self.paths.insert(name.to_string(), path);
    }

    pub(crate) fn extend(&mut self, other: Tools) {
        self.paths.extend(other.paths);
    }

    /// The path of a program that was asked for. Panics when it was not: name it in `require` or `ensure`.
    pub fn path(&self, name: &str) -> &Path {
        self.paths.get(name).unwrap_or_else(|| panic!("{name} was not required by this test"))
    }

    /// A PATH on which every program found here comes first.
    pub fn search_path(&self) -> OsString {
        let mut folders: Vec<PathBuf> = Vec::new();
        for path in self.paths.values() {
            let folder = path.parent().expect("a program lies in a folder").to_path_buf();
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        folders.extend(system::search_folders());
        std::env::join_paths(folders).expect("no colon in the cache folder's name")
    }
}

/// `${XDG_CACHE_HOME:-$HOME/.cache}/cairn`, where everything lives that outlasts a checkout.
pub fn cache_folder() -> Result<PathBuf, ToolError> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("cairn")).ok_or(ToolError::NoCache)
}
