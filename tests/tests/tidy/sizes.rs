//! No file and no function grows until nobody wants to read it.

use super::modules::{Kind, Sources};
use super::tree::Violation;

/// Lines of a file outside of `#[cfg(test)]`.
const FILE_LINES: usize = 500;
/// Lines of a file that is all test.
const TEST_FILE_LINES: usize = 700;
/// From `fn` to the closing brace.
const FUNCTION_LINES: usize = 70;
/// A test may tell a story from its beginning to its end.
const TEST_FUNCTION_LINES: usize = 120;

pub fn check(sources: &Sources) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in &sources.sources {
        let all_test = source.kind == Kind::Test;
        let (lines, most) = match all_test {
            true => (source.outline.lines, TEST_FILE_LINES),
            false => (source.outline.lines - source.outline.test_lines.len(), FILE_LINES),
        };
        if lines > most {
            let kind = if all_test { "lines" } else { "lines outside of tests" };
            found.push(Violation::new(&source.path, 0, format!("{lines} {kind}, at most {most}: split it")));
        }
        for function in &source.outline.functions {
            let test = all_test || function.in_tests;
            let lines = function.last_line - function.first_line + 1;
            let most = if test { TEST_FUNCTION_LINES } else { FUNCTION_LINES };
            if lines > most {
                let what = format!("{} has {lines} lines, at most {most}: split it", function.name);
                found.push(Violation::new(&source.path, function.first_line, what));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    fn file(body: &str) -> Vec<Violation> {
        check(&Sources::of(&Tree::of(&[("a/Cargo.toml", "[package]"), ("a/src/lib.rs", body)])).unwrap())
    }

    #[test]
    fn long_files_are_found_and_their_tests_do_not_count() {
        let code = "\n".repeat(499);
        let tests = format!("#[cfg(test)]\nmod tests {{{}}}\n", "\n".repeat(400));
        assert_eq!(file(&format!("//! A.\n{code}{tests}")), []);
        assert_eq!(file(&format!("//! A.\n{code}\n{tests}")).len(), 1);
        let whole = [("a/Cargo.toml", "[package]"), ("a/tests/b.rs", &"\n".repeat(701) as &str)];
        assert_eq!(check(&Sources::of(&Tree::of(&whole)).unwrap()).len(), 1);
    }

    #[test]
    fn long_functions_are_found() {
        assert_eq!(file(&format!("fn f() {{{}}}", "\n".repeat(69))), []);
        let found = file(&format!("\nfn f() {{{}}}", "\n".repeat(70)));
        assert_eq!(found, [Violation::new("a/src/lib.rs", 2, "f has 71 lines, at most 70: split it")]);
    }
}
