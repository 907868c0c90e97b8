//! The repository's files as the rules see them: a map from path to text, so that a test of a rule can make up its own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Text files by their path below the root, `/` between folders.
#[derive(Debug, Default)]
pub struct Tree {
    pub files: BTreeMap<String, String>,
    /// Whether a path may be linked to although it is not a text file of ours, such as a folder or a picture.
    others: Vec<String>,
}

impl Tree {
    /// All files of the checkout that git does not ignore, committed or not.
    pub fn of_checkout() -> Self {
        let root = root();
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()
            .expect("tidy lists the files with git: install git");
        assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let mut tree = Self::default();
        for name in String::from_utf8(listed.stdout).expect("file names are UTF-8").split_terminator('\0') {
            match std::fs::read(root.join(name)).map(String::from_utf8) {
                Ok(Ok(text)) => drop(tree.files.insert(name.to_string(), text)),
                Ok(Err(_)) => tree.others.push(name.to_string()),
                Err(_) => {} // removed, but not yet in a commit
            }
        }
        tree
    }

    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        Self { files, others: Vec::new() }
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Whether there is a file or a folder of this path.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().chain(&self.others).any(|name| name == path || inside(name))
    }

    /// Files whose name ends so.
    pub fn ending<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.ends_with(suffix))
            .map(|(p, t)| (p.as_str(), t.as_str()))
    }
}

/// The checkout's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout").to_path_buf()
}

/// One line that breaks a rule, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub path: String,
    /// 0 when it is about the whole file.
    pub line: usize,
    pub what: String,
}

impl Violation {
    pub fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_string(), line, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

#[test]
fn folders_and_files_are_there_and_others_are_not() {
    let tree = Tree::of(&[("docs/a.md", ""), ("README.md", "")]);
    for path in ["docs", "docs/", "docs/a.md", "README.md"] {
        assert!(tree.has(path), "{path}");
    }
    assert!(!tree.has("doc") && !tree.has("docs/b.md"));
}
