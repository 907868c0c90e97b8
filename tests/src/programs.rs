//! Cairn's own programs, as built beside the running test.

use std::path::PathBuf;

use crate::process::Spec;

/// The program `name`, built by the same build as the running one.
///
/// # Panics
/// If it is not there: `make build` makes it.
pub fn built(name: &str) -> PathBuf {
    let running = std::env::current_exe().expect("a running program has a path");
    // Tests run in `ci/deps`, programs in `ci`.
    let found =
        running.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built beside {}: run `make build`", running.display()))
}

/// The command line, which knows nothing of the cluster that the caller's environment names: it may be theirs.
pub fn cairn() -> Spec {
    Spec::new("cairn", built("cairn")).without_env("CAIRN_")
}
