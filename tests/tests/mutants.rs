//! The bugs that `make mutants` plants (`tests/mutants/*.patch`): each can still be planted, and what must find it is there.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use cairn_tests::tools::{Need, require};
use tempfile::TempDir;

/// What a patch says of itself.
struct Mutant {
    name: String,
    what: String,
    /// A test program, and what it runs of it.
    found_by: (String, String),
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in the repository")
}

fn mutants() -> Vec<Mutant> {
    let folder = root().join("tests/mutants");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let field = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            found.unwrap_or_else(|| panic!("{}: no line begins with \"{key}: \"", path.display()))
        };
        let (test, filter) = field("Found by").split_once(' ').expect("a test program and a test");
        Mutant {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            what: field("What").to_owned(),
            found_by: (test.to_owned(), filter.to_owned()),
        }
    };
    fs::read_dir(folder).unwrap().map(read).collect()
}

#[test]
fn every_mutant_can_be_planted_and_names_the_test_that_finds_it() {
    if require(&[Need::System("git")]).is_err() {
        return;
    }
    for Mutant { name, what, found_by: (test, filter) } in mutants() {
        let patch = format!("tests/mutants/{name}.patch");
        let check =
            Command::new("git").args(["apply", "--check", &patch]).current_dir(root()).output().unwrap();
        let told = String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success(), "{patch} does not apply any more, make it anew: {told}");
        let source = fs::read_to_string(root().join(format!("tests/tests/{test}.rs"))).unwrap();
        let found =
            source.lines().any(|line| line.strip_prefix("fn ").is_some_and(|line| line.contains(&filter)));
        assert!(found, "{patch}: --test {test} has no test {filter:?}");
        assert!(what.ends_with('.'), "{patch}: {what:?} is no sentence");
    }
}

/// With the same words.
#[test]
fn the_documentation_lists_them() {
    let page = fs::read_to_string(root().join("docs/simulation.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let listed: BTreeSet<(String, String)> = rows
        .filter_map(|(name, rest)| Some((name.to_owned(), rest.split_once(" | ")?.0.to_owned())))
        .collect();
    for Mutant { name, what, .. } in mutants() {
        let row = (name, what);
        assert!(listed.contains(&row), "docs/simulation.md needs a row | `{}` | {} |", row.0, row.1);
    }
}

/// The program itself, with a made-up cargo whose one test fails if a file has `bad` in it.
#[test]
fn what_is_not_found_is_told() {
    if require(&[Need::System("git")]).is_err() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in [".ci", "bin", "tests/mutants"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    fs::copy(root().join(".ci/mutants"), path(".ci/mutants")).unwrap();
    let cargo = "#!/bin/sh
case \"$*\" in *--no-run*) exit 0;; esac
! grep -q worst code || exit 124
! grep -q bad code || { echo 'test result: FAILED. 0 passed; 1 failed'; exit 1; }
";
    fs::write(path("bin/cargo"), cargo).unwrap();
    fs::set_permissions(path("bin/cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path("code"), "good\n").unwrap();
    fs::write(path(".gitignore"), "/target/\n").unwrap();
    for (name, from, to) in [
        ("found", "good", "bad"),
        ("lasts", "good", "worst"),
        ("missed", "good", "better"),
        ("stale", "other", "bad"),
    ] {
        let text = format!(
            "What: It is {to}.\nFound by: it whatever\n\n--- a/code\n+++ b/code\n@@ -1 +1 @@\n-{from}\n+{to}\n"
        );
        fs::write(path(&format!("tests/mutants/{name}.patch")), text).unwrap();
    }
    let search = format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap());
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let output =
            command.args(arguments).current_dir(folder.path()).env("PATH", &search).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    run("git", &["init", "--quiet"]);
    let (success, told) = run(".ci/mutants", &[]);
    assert!(!success && told.ends_with("1 caught, 3 not caught\n"), "{told}");
    assert!(told.contains("found: It is bad.\n    caught: "), "{told}");
    assert!(told.contains("missed: It is better.\n    NOT CAUGHT by --test it whatever\n"), "{told}");
    assert!(told.contains("lasts: It is worst.\n    neither passes nor fails: "), "{told}");
    assert!(told.contains("stale: It is bad.\n    cannot be planted: "), "{told}");
    assert_eq!(run(".ci/mutants", &["found"]), (true, told_of_one(&told)));
    assert_eq!(fs::read_to_string(path("code")).unwrap(), "good\n", "the tree itself is left alone");
    // A test that fails anyway finds nothing.
    fs::write(path("code"), "bad\n").unwrap();
    let (success, told) = run(".ci/mutants", &[]);
    assert!(!success && !told.contains("caught"), "{told}");
}

/// What a run of all says of the first, as a run of it alone does.
fn told_of_one(told: &str) -> String {
    let lines: Vec<&str> = told.lines().take(3).collect();
    format!("{}\n1 caught, 0 not caught\n", lines.join("\n"))
}
