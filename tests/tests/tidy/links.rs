//! Links between documents lead somewhere.

use super::tree::{Tree, Violation};

pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in tree.ending(".md") {
        for (line, target) in links(text) {
            if let Err(what) = follow(tree, path, target) {
                found.push(Violation::new(path, line, format!("the link ({target}) leads nowhere: {what}")));
            }
        }
    }
    found
}

/// Relative targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let mut code = false;
        let mut rest = line;
        while let Some(at) = rest.find(['`', ']']) {
            code ^= rest[at..].starts_with('`');
            let after = &rest[at + 1..];
            if !code && let Some(target) = after.strip_prefix('(').and_then(|t| Some(&t[..t.find(')')?])) {
                let target = target.split_whitespace().next().unwrap_or("");
                if !target.contains("://") && !target.starts_with("mailto:") {
                    found.push((number, target));
                }
            }
            rest = after;
        }
    }
    found
}

/// Lines outside of fenced code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(i, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((i + 1, line))
    })
}

fn follow(tree: &Tree, from: &str, target: &str) -> Result<(), String> {
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { from.to_string() } else { join(from, file)? };
    if !tree.has(&path) {
        return Err(format!("there is no {path}"));
    }
    match tree.text(&path) {
        Some(text) if path.ends_with(".md") && !heading.is_empty() => {
            let known = prose(text)
                .filter(|(_, line)| line.starts_with('#'))
                .any(|(_, line)| anchor(line) == heading);
            if known { Ok(()) } else { Err(format!("{path} has no heading for #{heading}")) }
        }
        _ => Ok(()),
    }
}

/// The path of `target` as seen from the folder of `from`.
fn join(from: &str, target: &str) -> Result<String, String> {
    let mut words: Vec<&str> = from.split('/').collect();
    words.pop();
    for word in target.split('/') {
        match word {
            "." | "" => {}
            ".." => drop(words.pop().ok_or("it leaves the repository")?),
            _ => words.push(word),
        }
    }
    Ok(words.join("/"))
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let tree = Tree::of(&[
            (
                "README.md",
                "[a](docs/a.md) [b](docs) ![c](docs/c.png)\n[d](https://x/y) `[e](f)`\n```\n[g](h)\n```\n",
            ),
            (
                "docs/a.md",
                "## Two words: `here`\n[up](../README.md) [x](#two-words-here)\n[y](#three) [z](../../z)",
            ),
        ]);
        let found: Vec<_> = check(&tree).into_iter().map(|v| (v.path, v.line)).collect();
        let expected = [("README.md", 1), ("docs/a.md", 3), ("docs/a.md", 3)];
        assert_eq!(found, expected.map(|(path, line)| (path.to_string(), line)));
    }
}
