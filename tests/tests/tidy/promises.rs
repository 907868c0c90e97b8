//! `tests/promises.toml`: what Cairn promises, and which tests show it. The README's table is made from it.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::modules::Sources;
use super::tree::{Tree, Violation};

const FILE: &str = "tests/promises.toml";
const DURABILITY: &str = "docs/durability.md";
const README: &str = "README.md";
const BEGIN: &str = "<!-- promises:begin -->\n";
const END: &str = "<!-- promises:end -->";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promises {
    promise: Vec<Promise>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Promise {
    /// Lower-case words with hyphens.
    id: String,
    /// Groups the rows of the table.
    area: String,
    /// One sentence that a user understands.
    sentence: String,
    /// `file.rs::function`
    tests: Vec<String>,
}

pub fn read(tree: &Tree) -> Result<Promises, Violation> {
    let text = tree.text(FILE).ok_or_else(|| Violation::new(FILE, 0, "is not there"))?;
    toml::from_str(text).map_err(|e| Violation::new(FILE, 0, e.to_string()))
}

/// Each promise is well formed, and shown by tests that exist and run.
pub fn check(tree: &Tree, sources: &Sources) -> Vec<Violation> {
    let promises = match read(tree) {
        Ok(promises) => promises,
        Err(violation) => return vec![violation],
    };
    let mut found = Vec::new();
    let mut ids = BTreeSet::new();
    for promise in &promises.promise {
        let mut say = |what: String| found.push(Violation::new(FILE, 0, format!("{}: {what}", promise.id)));
        if !ids.insert(&promise.id) {
            say("stands there twice".to_string());
        }
        if !promise.id.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            say("an id is lower-case words with hyphens".to_string());
        }
        if !promise.sentence.ends_with('.') || promise.sentence.contains(['|', '\n']) {
            say("a sentence is one line, without |, and ends with a full stop".to_string());
        }
        if promise.tests.is_empty() {
            say("no test shows it: name one, or do not promise it".to_string());
        }
        promise.tests.iter().filter_map(|test| live(sources, test).err()).for_each(say);
    }
    found.extend(named_in(tree, sources, DURABILITY));
    found
}

/// Every test that a document names, as `file.rs::function`, exists and runs; in each of its tables' rows one is named.
fn named_in(tree: &Tree, sources: &Sources, document: &str) -> Vec<Violation> {
    let Some(text) = tree.text(document) else { return Vec::new() };
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut say = |what: String| found.push(Violation::new(document, number + 1, what));
        let tests: Vec<&str> = line.split('`').filter(|code| code.contains(".rs::")).collect();
        let heads = ["|---", "| promise", "| what fails"];
        if line.starts_with('|') && !heads.iter().any(|head| line.starts_with(head)) && tests.is_empty() {
            say("no test shows this: name one, or do not promise it".to_owned());
        }
        tests.into_iter().filter_map(|test| live(sources, test).err()).for_each(say);
    }
    found
}

fn live(sources: &Sources, test: &str) -> Result<(), String> {
    let (path, name) = test.split_once("::").ok_or_else(|| format!("{test}: write file.rs::function"))?;
    let Some(source) = sources.sources.iter().find(|s| s.path == path) else {
        return Err(format!("{test}: no crate has this file"));
    };
    match source.outline.functions.iter().find(|f| f.name == name) {
        None => Err(format!("{test}: the file has no such function")),
        Some(function) if !function.is_test => Err(format!("{test}: the function is no test")),
        Some(_) => Ok(()),
    }
}

/// The README with the table of the promises as they are now.
pub fn readme(tree: &Tree) -> Result<String, Violation> {
    let promises = read(tree)?;
    let text = tree.text(README).ok_or_else(|| Violation::new(README, 0, "is not there"))?;
    let missing = || Violation::new(README, 0, format!("has no {} … {END}", BEGIN.trim()));
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", table(&promises)))
}

/// The README's table is the one that the promises make.
pub fn stale(tree: &Tree) -> Vec<Violation> {
    let what = "its table is not the one that tests/promises.toml makes: run `make readme` and commit it";
    match readme(tree) {
        Ok(text) if tree.text(README) == Some(&text) => Vec::new(),
        Ok(_) => vec![Violation::new(README, 0, what)],
        Err(violation) => vec![violation],
    }
}

fn table(promises: &Promises) -> String {
    let mut lines = vec!["| | what works today | shown by |".to_string(), "|---|---|---|".to_string()];
    let mut areas: Vec<&str> = Vec::new();
    for promise in &promises.promise {
        if !areas.contains(&promise.area.as_str()) {
            areas.push(&promise.area);
        }
    }
    // Each area once, with the promises that were added to it later, too.
    for area in areas {
        let mut first = format!("**{area}**");
        for promise in promises.promise.iter().filter(|promise| promise.area == area) {
            let tests: Vec<String> = promise.tests.iter().filter_map(|test| link(test)).collect();
            lines.push(format!("| {first} | {} | {} |", promise.sentence, tests.join(", ")));
            first.clear();
        }
    }
    lines.join("\n") + "\n"
}

/// The file's name, and its folder where that says more, linked to the file.
fn link(test: &str) -> Option<String> {
    let (path, function) = test.split_once("::")?;
    Some(format!("[{}]({path})", function.replace('_', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[promise]]\nid = \"one\"\narea = \"A\"\nsentence = \"It works.\"\ntests = [\"a/src/lib.rs::works\"]\n";
    const CODE: &str = "#[cfg(test)] mod tests { #[test] fn works() {} fn helper() {} }";

    fn tree(promises: &str, readme: &str) -> Tree {
        Tree::of(&[("a/Cargo.toml", "[package]"), ("a/src/lib.rs", CODE), (FILE, promises), (README, readme)])
    }

    #[test]
    fn a_document_that_names_tests_names_live_ones() {
        let table = "| promise | shown by |\n|---|---|\n| It works. | `a/src/lib.rs::works` |\n| So does this. | |\n| And this. | `a/src/lib.rs::helper`, `a/src/lib.rs::gone` |\n";
        let tree = Tree::of(&[("a/Cargo.toml", "[package]"), ("a/src/lib.rs", CODE), (DURABILITY, table)]);
        let found = named_in(&tree, &Sources::of(&tree).unwrap(), DURABILITY);
        assert_eq!(found.len(), 3, "{found:?}");
    }

    fn violations(promises: &str) -> usize {
        let tree = tree(promises, "");
        check(&tree, &Sources::of(&tree).unwrap()).len()
    }

    #[test]
    fn promises_without_a_live_test_are_found() {
        assert_eq!(violations(ONE), 0);
        assert_eq!(violations(&ONE.replace("::works", "::gone")), 1);
        assert_eq!(violations(&ONE.replace("::works", "::helper")), 1);
        assert_eq!(violations(&ONE.replace("a/src/lib.rs", "a/src/b.rs")), 1);
        assert_eq!(violations(&ONE.replace("[\"a/src/lib.rs::works\"]", "[]")), 1);
    }

    #[test]
    fn malformed_promises_are_found() {
        assert_eq!(violations(&format!("{ONE}{ONE}")), 1);
        assert_eq!(violations(&ONE.replace("It works.", "It works")), 1);
        assert_eq!(violations(&ONE.replace("\"one\"", "\"One two\"")), 1);
        assert_eq!(violations(&format!("{ONE}more = 1\n")), 1);
    }

    #[test]
    fn a_stale_table_is_found_and_mended() {
        let old = tree(ONE, &format!("# A\n{BEGIN}old\n{END}\nrest\n"));
        assert_eq!(stale(&old).len(), 1);
        let mended = readme(&old).unwrap();
        assert!(mended.contains("| **A** | It works. | [works](a/src/lib.rs) |\n"), "{mended}");
        assert!(mended.ends_with("\nrest\n"));
        assert_eq!(stale(&tree(ONE, &mended)), []);
        assert_eq!(stale(&tree(ONE, "no markers")).len(), 1);
    }

    #[test]
    fn an_area_stands_in_the_table_once() {
        let named = |id: &str, area: &str| {
            let one = ONE.replace("\"one\"", &format!("{id:?}")).replace("\"A\"", &format!("{area:?}"));
            one.replace("It works", &format!("The {id}"))
        };
        let promises = [named("first", "A"), named("second", "B"), named("third", "A")].concat();
        let table = readme(&tree(&promises, &format!("{BEGIN}{END}"))).unwrap();
        let rows: Vec<&str> = table.lines().filter_map(|line| line.split(". |").next()).collect();
        assert_eq!(rows[3..6], ["| **A** | The first", "|  | The third", "| **B** | The second"], "{table}");
    }
}
