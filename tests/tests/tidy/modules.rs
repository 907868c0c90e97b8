//! Which files belong to which crate and module, and which way modules of the storage node may look.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::source::{LocalPath, Outline, outline};
use super::tree::{Tree, Violation};

/// What must not be imported by what, inside `storagenode/src`: DESIGN's api → files → replication → chunks, meta.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("chunks", &["files", "replication", "api", "cluster", "workers", "node"]),
    ("meta", &["files", "replication", "api", "cluster", "workers", "node"]),
    ("replication", &["files", "api", "workers", "node"]),
    ("files", &["api", "workers", "node"]),
    ("cluster", &["api", "node"]),
    ("workers", &["api", "node"]),
];
const NODE: &str = "storagenode/src/";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Product,
    /// A file of an integration test, or a module under `#[cfg(test)]`.
    Test,
}

pub struct Source {
    pub path: String,
    pub kind: Kind,
    /// Its module inside the crate, such as `files`, `path`; empty for a root.
    pub module: Vec<String>,
    pub outline: Outline,
}

/// Every Rust file that some crate is made of.
pub struct Sources {
    pub sources: Vec<Source>,
    /// Rust files that no `mod` leads to.
    pub orphans: Vec<String>,
}

impl Sources {
    /// Reads all crates of the tree. The violations are files that are no Rust.
    pub fn of(tree: &Tree) -> Result<Self, Vec<Violation>> {
        let mut outlines: BTreeMap<&str, Outline> = BTreeMap::new();
        let mut broken = Vec::new();
        for (path, text) in tree.ending(".rs") {
            match outline(text) {
                Ok(outline) => drop(outlines.insert(path, outline)),
                Err(error) => broken.push(Violation::new(path, 0, format!("is no Rust: {error}"))),
            }
        }
        if !broken.is_empty() {
            return Err(broken);
        }
        let mut places: VecDeque<(String, Kind, Vec<String>)> = roots(tree).into();
        let mut sources = Vec::new();
        while let Some((path, kind, module)) = places.pop_front() {
            let Some(outline) = outlines.remove(path.as_str()) else { continue }; // seen already, or rustc will say
            let root = module.is_empty();
            for declared in &outline.modules {
                let kind = if declared.in_tests { Kind::Test } else { kind };
                let module: Vec<String> = module.iter().chain(&declared.names).cloned().collect();
                for place in places_of(&path, root, &declared.names, declared.path.as_deref()) {
                    if outlines.contains_key(place.as_str()) {
                        places.push_back((place, kind, module.clone()));
                    }
                }
            }
            sources.push(Source { path, kind, module, outline });
        }
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { sources, orphans: outlines.into_keys().map(str::to_string).collect() })
    }
}

/// The root files of every crate, as cargo finds them.
fn roots(tree: &Tree) -> Vec<(String, Kind, Vec<String>)> {
    let mut roots = Vec::new();
    for (manifest, text) in tree.ending("Cargo.toml") {
        if !text.contains("[package]") {
            continue;
        }
        let base = manifest.strip_suffix("Cargo.toml").expect("it ends so");
        let named: BTreeSet<&str> =
            text.lines().filter_map(|l| l.strip_prefix("path = \"")?.strip_suffix('"')).collect();
        for (path, _) in tree.ending(".rs") {
            let Some(inside) = path.strip_prefix(base) else { continue };
            let words: Vec<&str> = inside.split('/').collect();
            let kind = match words.as_slice() {
                ["build.rs"]
                | ["src", "lib.rs" | "main.rs"]
                | ["src", "bin", _]
                | ["src", "bin", _, "main.rs"] => Kind::Product,
                ["tests" | "benches" | "examples", _] | ["tests" | "benches" | "examples", _, "main.rs"] => {
                    Kind::Test
                }
                _ if named.contains(inside) => Kind::Product,
                _ => continue,
            };
            roots.push((path.to_string(), kind, Vec::new()));
        }
    }
    roots
}

/// Where the file of a module may lie that `path` declares.
fn places_of(path: &str, root: bool, names: &[String], given: Option<&str>) -> Vec<String> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    if let Some(given) = given {
        return vec![format!("{folder}/{given}")];
    }
    let base =
        if root || file == "mod.rs" { folder.to_string() } else { path.trim_end_matches(".rs").to_string() };
    let place = format!("{base}/{}", names.join("/"));
    vec![format!("{place}.rs"), format!("{place}/mod.rs")]
}

/// Every file belongs to a crate: what no `mod` leads to is compiled by nobody.
pub fn orphans(sources: &Sources) -> Vec<Violation> {
    let what = "no `mod` leads here, so nothing compiles it: declare it, or remove it";
    sources.orphans.iter().map(|path| Violation::new(path, 0, what)).collect()
}

/// The layers of the storage node.
pub fn directions(sources: &Sources) -> Vec<Violation> {
    let mut found = Vec::new();
    let of_node = |s: &&Source| s.path.starts_with(NODE) && s.kind == Kind::Product;
    for source in sources.sources.iter().filter(of_node) {
        let Some(layer) = source.module.first() else { continue };
        let Some((_, forbidden)) = FORBIDDEN.iter().find(|(name, _)| name == layer) else { continue };
        for path in &source.outline.paths {
            if let Some(target) = target(&source.module, path)
                && forbidden.contains(&target.as_str())
            {
                let what = format!(
                    "{layer} must not use {target}: dependencies point api → files → replication → chunks, meta"
                );
                found.push(Violation::new(&source.path, path.line, what));
            }
        }
    }
    found
}

/// The module at the crate's top that a path leads into.
fn target(module: &[String], path: &LocalPath) -> Option<String> {
    let ups = path.words.iter().take_while(|w| *w == "super").count();
    if path.words.first().is_some_and(|w| w == "crate") {
        return path.words.get(1).cloned();
    }
    let here: Vec<&String> = module.iter().chain(&path.inside).collect();
    let above = here.len().checked_sub(ups)?;
    if above == 0 { path.words.get(ups).cloned() } else { Some(here[0].clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        let manifest = [("storagenode/Cargo.toml", "[package]")];
        Sources::of(&Tree::of(&[&manifest, files].concat())).unwrap()
    }

    #[test]
    fn a_file_without_a_mod_is_found() {
        let sources = sources(&[
            ("storagenode/src/lib.rs", "mod a; #[cfg(test)] mod c; mod d { mod e; }"),
            ("storagenode/src/a.rs", "mod b;"),
            ("storagenode/src/a/b.rs", ""),
            ("storagenode/src/c/mod.rs", "mod f;"),
            ("storagenode/src/c/f.rs", ""),
            ("storagenode/src/d/e.rs", ""),
            ("storagenode/src/left.rs", ""),
            ("storagenode/tests/t.rs", "mod helper;"),
            ("storagenode/tests/helper/mod.rs", ""),
        ]);
        let found = orphans(&sources);
        assert_eq!(found.iter().map(|v| v.path.as_str()).collect::<Vec<_>>(), ["storagenode/src/left.rs"]);
        let tests = sources
            .sources
            .iter()
            .filter(|s| s.kind == Kind::Test)
            .map(|s| s.path.rsplit('/').next().unwrap());
        assert_eq!(tests.collect::<Vec<_>>(), ["f.rs", "mod.rs", "mod.rs", "t.rs"]);
    }

    #[test]
    fn looking_up_the_layers_is_found() {
        let of = |path: &str, text: &str| {
            let lib = "mod chunks; mod files; mod api;";
            let files = "mod path;";
            directions(&sources(&[
                ("storagenode/src/lib.rs", lib),
                ("storagenode/src/files.rs", files),
                ("storagenode/src/chunks.rs", ""),
                (path, text),
            ]))
            .len()
        };
        assert_eq!(of("storagenode/src/chunks.rs", "use crate::files::Path;"), 1);
        assert_eq!(of("storagenode/src/chunks.rs", "use super::{env::Env, api::Status};"), 1);
        assert_eq!(of("storagenode/src/files/path.rs", "fn f() { macro!(super::super::api::x()) }"), 1);
        assert_eq!(of("storagenode/src/files/path.rs", "use super::api; use crate::chunks::ChunkStore;"), 0);
        assert_eq!(of("storagenode/src/chunks.rs", "#[cfg(test)] mod tests { use crate::files::X; }"), 0);
    }

    #[test]
    fn what_is_no_rust_is_found() {
        let tree = Tree::of(&[("a/Cargo.toml", "[package]"), ("a/src/lib.rs", "fn f( {")]);
        assert_eq!(Sources::of(&tree).err().unwrap().len(), 1);
    }
}
