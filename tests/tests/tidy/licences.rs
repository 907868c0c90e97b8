//! Whatever is linked into our programs may be given away under its licence.

use serde::Deserialize;

/// Licences that ask for no more than to be named, and MPL, which covers only its own files.
const ALLOWED: [&str; 16] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// What `cargo metadata` says, as far as we ask.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
pub struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
}

/// Says what is wrong with the licence of each package that is in use.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let used = |package: &&Package| metadata.resolve.nodes.iter().any(|n| n.id == package.id);
    let mut found = Vec::new();
    for package in metadata.packages.iter().filter(used) {
        let what = match &package.license {
            None => "states no licence".to_string(),
            Some(licence) => match allowed(licence) {
                Some(true) => continue,
                Some(false) => {
                    format!("is under {licence}, which tests/tests/tidy/licences.rs does not allow")
                }
                None => format!("has a licence that is no SPDX expression: {licence}"),
            },
        };
        found.push(format!(
            "{} {} {what}: use another library, or decide and note it in docs/decisions/",
            package.name, package.version
        ));
    }
    found
}

/// Whether an SPDX expression can be met with allowed licences; none if it is not well formed.
fn allowed(expression: &str) -> Option<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR "); // the old way to write OR
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let result = either(&mut rest)?;
    rest.is_empty().then_some(result)
}

fn either(rest: &mut &[&str]) -> Option<bool> {
    let mut result = both(rest)?;
    while take(rest, "OR") {
        result |= both(rest)?;
    }
    Some(result)
}

fn both(rest: &mut &[&str]) -> Option<bool> {
    let mut result = one(rest)?;
    while take(rest, "AND") {
        result &= one(rest)?;
    }
    Some(result)
}

fn one(rest: &mut &[&str]) -> Option<bool> {
    if take(rest, "(") {
        let result = either(rest)?;
        return take(rest, ")").then_some(result);
    }
    let (name, after) = rest.split_first()?;
    *rest = after;
    let mut name = name.to_string();
    if take(rest, "WITH") {
        let (exception, after) = rest.split_first()?;
        *rest = after;
        name = format!("{name} WITH {exception}");
    }
    (!["AND", "OR", ")", "WITH"].contains(&name.as_str())).then_some(ALLOWED.contains(&name.as_str()))
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    let is_next = rest.first() == Some(&word);
    if is_next {
        *rest = &rest[1..];
    }
    is_next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_understood() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-2.0 OR (MIT AND ISC)",
            "MIT/X",
            "Apache-2.0 WITH LLVM-exception OR X",
        ] {
            assert_eq!(allowed(good), Some(true), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND AGPL-3.0", "(MIT OR ISC) AND GPL-2.0 WITH x", "LGPL-2.1 OR SSPL-1.0"]
        {
            assert_eq!(allowed(bad), Some(false), "{bad}");
        }
        for ill in ["", "MIT OR", "(MIT", "MIT ISC", "AND"] {
            assert_eq!(allowed(ill), None, "{ill}");
        }
    }

    #[test]
    fn packages_that_cannot_be_given_away_are_found() {
        let package = |name: &str, license: Option<&str>| Package {
            id: name.to_string(),
            name: name.to_string(),
            version: "1.0.0".to_string(),
            license: license.map(str::to_string),
        };
        let nodes = ["a", "b", "c"].map(|id| Node { id: id.to_string() }).into();
        let packages = vec![
            package("a", Some("MIT")),
            package("b", None),
            package("c", Some("GPL-3.0")),
            package("unused", None),
        ];
        let found = check(&Metadata { packages, resolve: Resolve { nodes } });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("c 1.0.0 is under GPL-3.0"));
    }
}
