//! Which crate may depend on which, and what the pure ones may not touch: read from the manifests.

use super::tree::{Tree, Violation};

/// Crate → ours that it may depend on. Dependencies point down; only `cairn-tests` sees everything.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("cairn-proto", &[]),
    ("cairn-crds", &[]),
    ("cairn-placement", &[]),
    ("cairn-client", &["cairn-proto"]),
    ("cairn-cli", &["cairn-client", "cairn-crds"]),
    ("cairn-node", &["cairn-placement", "cairn-proto"]),
    ("cairn-planner", &["cairn-crds"]),
    ("cairn-operator", &["cairn-planner", "cairn-client", "cairn-crds", "cairn-node"]),
];
const SEES_EVERYTHING: &str = "cairn-tests";

/// Crates whose manifest proves that they do no I/O.
const PURE: [&str; 2] = ["cairn-placement", "cairn-planner"];
/// Libraries that read clocks, draw random numbers, or talk to disks and networks; more words after a hyphen count too.
const IMPURE: [&str; 20] = [
    "async-trait",
    "axum",
    "etcd-client",
    "fastrand",
    "futures",
    "getrandom",
    "hyper",
    "jiff",
    "kube",
    "libc",
    "rand",
    "redb",
    "reqwest",
    "rustls",
    "tempfile",
    "time",
    "tokio",
    "tonic",
    "tracing",
    "walkdir",
];

pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in tree.ending("Cargo.toml") {
        let manifest: toml::Table = match toml::from_str(text) {
            Ok(manifest) => manifest,
            Err(error) => {
                found.push(Violation::new(path, 0, format!("is no TOML: {error}")));
                continue;
            }
        };
        let Some(name) = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str()) else {
            continue; // the workspace's
        };
        for dependency in dependencies(&manifest) {
            found.extend(judge(name, &dependency).map(|what| Violation::new(path, 0, what)));
        }
    }
    found
}

fn judge(name: &str, dependency: &str) -> Option<String> {
    let impure = |library: &str| dependency == library || dependency.starts_with(&format!("{library}-"));
    if PURE.contains(&name) && IMPURE.iter().any(|library| impure(library)) {
        return Some(format!(
            "{name} is pure and must not depend on {dependency}: let the caller pass in what it needs"
        ));
    }
    if !dependency.starts_with("cairn-") || name == SEES_EVERYTHING {
        return None;
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
        return Some(format!(
            "{name} has no place in docs/ARCHITECTURE.md: give it one, there and in tests/tests/tidy/edges.rs"
        ));
    };
    let upwards =
        || format!("{name} must not depend on {dependency}: dependencies point down (docs/ARCHITECTURE.md)");
    (!allowed.contains(&dependency)).then(upwards)
}

/// Names of normal, build and development dependencies, those of one platform too.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let platforms = manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values());
    let tables = std::iter::once(manifest).chain(platforms.filter_map(|p| p.as_table()));
    let lists = tables.flat_map(|table| KINDS.iter().filter_map(|kind| table.get(*kind)?.as_table()));
    lists.flat_map(|list| list.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, section: &str, dependency: &str) -> usize {
        let text = format!("[package]\nname = \"{name}\"\n[{section}]\n{dependency}.workspace = true\n");
        check(&Tree::of(&[("x/Cargo.toml", &text)])).len()
    }

    #[test]
    fn edges_that_point_up_are_found() {
        assert_eq!(of("cairn-client", "dependencies", "cairn-node"), 1);
        assert_eq!(of("cairn-node", "dev-dependencies", "cairn-operator"), 1);
        assert_eq!(of("cairn-proto", "target.'cfg(unix)'.dependencies", "cairn-crds"), 1);
        assert_eq!(of("cairn-new", "dependencies", "cairn-proto"), 1);
        assert_eq!(of("cairn-operator", "dependencies", "cairn-node"), 0);
        assert_eq!(of("cairn-tests", "dependencies", "cairn-operator"), 0);
    }

    #[test]
    fn pure_crates_that_touch_the_world_are_found() {
        for library in ["tokio", "tokio-stream", "tonic", "kube", "etcd-client"] {
            assert_eq!(of("cairn-placement", "dependencies", library), 1, "{library}");
            assert_eq!(of("cairn-planner", "dependencies", library), 1, "{library}");
        }
        assert_eq!(of("cairn-planner", "dependencies", "timely"), 0);
        assert_eq!(of("cairn-node", "dependencies", "tokio"), 0);
    }
}
