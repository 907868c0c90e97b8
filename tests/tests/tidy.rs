//! Lints the repository: rules that nobody runs are wishes. What each rule asks stands in its file under `tidy/`, with
//! a test that it catches a violation.

use std::fmt::Display;
use std::process::Command;
use std::sync::LazyLock;

use tidy::modules::{self, Sources};
use tidy::tree::{Tree, root};
use tidy::{edges, licences, links, promises, sizes, text};

mod tidy {
    pub mod edges;
    pub mod licences;
    pub mod links;
    pub mod modules;
    pub mod promises;
    pub mod sizes;
    pub mod source;
    pub mod text;
    pub mod tree;
}

static TREE: LazyLock<Tree> = LazyLock::new(Tree::of_checkout);
static SOURCES: LazyLock<Sources> = LazyLock::new(|| {
    Sources::of(&TREE).unwrap_or_else(|broken| {
        hold(broken);
        unreachable!("there was a violation")
    })
});

fn hold<V: Display>(violations: Vec<V>) {
    let lines: Vec<String> = violations.iter().map(|v| format!("  {v}")).collect();
    assert!(lines.is_empty(), "{} against the habits of this repository:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn files_and_functions_are_short() {
    hold(sizes::check(&SOURCES));
}

#[test]
fn every_file_says_what_it_is_for() {
    hold(text::openings(&TREE));
}

#[test]
fn nothing_is_left_unfinished() {
    hold(text::unfinished(&TREE, &SOURCES));
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    hold(text::private_paths(&TREE, &text::homes_here()));
}

#[test]
fn every_file_is_compiled() {
    hold(modules::orphans(&SOURCES));
}

#[test]
fn crates_depend_downwards_and_pure_ones_on_nothing_that_acts() {
    hold(edges::check(&TREE));
}

#[test]
fn layers_of_the_storage_node_look_downwards() {
    hold(modules::directions(&SOURCES));
}

#[test]
fn links_between_documents_lead_somewhere() {
    hold(links::check(&TREE));
}

#[test]
fn every_promise_is_shown_by_a_live_test() {
    hold(promises::check(&TREE, &SOURCES));
}

/// With `UPDATE=1` it writes the table instead of complaining.
#[test]
fn the_readme_lists_what_is_promised() {
    if std::env::var_os("UPDATE").is_some() {
        let text = promises::readme(&TREE).unwrap_or_else(|violation| panic!("{violation}"));
        std::fs::write(root().join("README.md"), text).unwrap();
        return;
    }
    hold(promises::stale(&TREE));
}

#[test]
fn dependencies_may_be_given_away() {
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output().unwrap().stdout;
    let host = String::from_utf8(host).unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", host.trim()])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: licences::Metadata = serde_json::from_slice(&output.stdout).unwrap();
    assert!(metadata.packages.len() > 50, "cargo metadata lists all dependencies");
    hold(licences::check(&metadata));
}
