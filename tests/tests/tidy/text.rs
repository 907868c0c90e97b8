//! Words: every file says what it is, nothing is left unfinished, nothing tells of the machine it was written on.

use super::modules::Sources;
use super::tree::{Tree, Violation};

/// Every Rust file opens with a `//!` comment, so that a reader knows where they are.
pub fn openings(tree: &Tree) -> Vec<Violation> {
    let opens = |text: &str| {
        let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
        first.strip_prefix("//!").is_some_and(|said| !said.trim().is_empty())
    };
    let what = "opens without a `//!` comment: say what the file is for";
    let silent = tree.ending(".rs").filter(|(_, text)| !opens(text));
    silent.map(|(path, _)| Violation::new(path, 1, what)).collect()
}

/// Macros that stand for code that is not there.
const STUBS: [&str; 3] = ["todo", "unimplemented", "dbg"];
/// Written in two halves: this file is read too.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// No stub, no test that is switched off, no note to oneself.
pub fn unfinished(tree: &Tree, sources: &Sources) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in &sources.sources {
        for (line, name) in source.outline.macros.iter().filter(|(_, name)| STUBS.contains(&name.as_str())) {
            found.push(Violation::new(&source.path, *line, format!("{name}!: write it, or leave it out")));
        }
        for (line, attribute) in &source.outline.attributes {
            if attribute == "ignore" || attribute.starts_with("ignore=") {
                found.push(Violation::new(
                    &source.path,
                    *line,
                    "a test that never runs: mend it, or remove it",
                ));
            }
        }
    }
    for (path, line, text) in lines(tree) {
        if let Some(mark) = MARKS.iter().find(|mark| has_word(text, mark)) {
            found.push(Violation::new(
                path,
                line,
                format!("{mark}: do it, or file an issue and say its number"),
            ));
        }
    }
    found
}

/// Folders of people's machines. In two parts, as above.
const HOMES: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

/// No absolute path of the machine that something was written or built on: `homes` besides the usual ones.
pub fn private_paths(tree: &Tree, homes: &[String]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, line, text) in lines(tree) {
        let usual = HOMES.iter().find(|home| begins_a_path(text, home)).copied();
        if let Some(home) =
            usual.or_else(|| homes.iter().find(|h| text.contains(h.as_str())).map(String::as_str))
        {
            found.push(Violation::new(
                path,
                line,
                format!("{home} is a path of one machine: use a relative one"),
            ));
        }
    }
    found
}

/// Folders of this machine that nobody else has: the checkout, and the home unless every system has it.
pub fn homes_here() -> Vec<String> {
    let root = super::tree::root().display().to_string();
    let home = std::env::var("HOME").unwrap_or_default();
    [root, home].into_iter().filter(|path| path.matches('/').count() >= 2).collect()
}

fn lines(tree: &Tree) -> impl Iterator<Item = (&str, usize, &str)> {
    let generated = |path: &str| path.ends_with("Cargo.lock") || path.ends_with("go.sum");
    let written = tree.files.iter().filter(move |(path, _)| !generated(path));
    written.flat_map(|(path, text)| text.lines().enumerate().map(|(i, line)| (path.as_str(), i + 1, line)))
}

fn has_word(text: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(letter) && !text[at + word.len()..].starts_with(letter))
}

/// Whether `home` begins an absolute path, and not the middle of another.
fn begins_a_path(text: &str, home: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | '~' | ')' | '*');
    text.match_indices(home).any(|(at, _)| !text[..at].ends_with(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_file_is_found() {
        let tree =
            Tree::of(&[("a.rs", "//! An a.\n"), ("b.rs", "\n// B.\n"), ("c.rs", "//!\n"), ("d.md", "x")]);
        assert_eq!(openings(&tree).iter().map(|v| v.path.as_str()).collect::<Vec<_>>(), ["b.rs", "c.rs"]);
    }

    #[test]
    fn unfinished_work_is_found() {
        let of = |text: &str| {
            let tree = Tree::of(&[("a/Cargo.toml", "[package]"), ("a/src/lib.rs", text)]);
            unfinished(&tree, &Sources::of(&tree).unwrap()).len()
        };
        assert_eq!(of("fn f() { todo!() }"), 1);
        assert_eq!(of("#[cfg(test)] mod tests { #[test] #[ignore = \"slow\"] fn f() {} }"), 1);
        assert_eq!(of(&format!("// {}: later", MARKS[0])), 1);
        assert_eq!(of("// what there is todo; \"unimplemented!\"\nfn todo() {}"), 0);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let of = |text: &str| private_paths(&Tree::of(&[("a.md", text)]), &["/srv/me".to_string()]).len();
        assert_eq!(of(&format!("see {}x/notes", HOMES[0])), 1);
        assert_eq!(of("see /srv/me/notes"), 1);
        assert_eq!(of(&format!("https://example.org{}x, $DIR{0}x and /etc/x", "/x/home/")), 0);
    }
}
