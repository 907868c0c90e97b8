//! What the rules need to kind.as_deref().is_none_or(|k| LINES.contains(&k))now of a Rust file: functions, modules, test code and paths.
//!
//! It works on tokens and not on a syntax tree, and so sees into macros too (`proptest! { #[test] fn … }`).

use std::collections::BTreeSet;
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// What a file consists of. Lines count from 1.
#[derive(Debug, Default)]
pub struct Outline {
    pub lines: usize,
    /// Lines of items under `#[cfg(test)]`, the attribute's too.
    pub test_lines: BTreeSet<usize>,
    pub functions: Vec<Function>,
    pub modules: Vec<Module>,
    /// Paths that start at `crate` or `super`, in code outside of tests; of a list in braces, each first word.
    pub paths: Vec<LocalPath>,
    /// Attributes other than documentation, without white space.
    pub attributes: Vec<(usize, String)>,
    /// Macros that are called: line and name.
    pub macros: Vec<(usize, String)>,
}

#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// From the keyword `fn` to the closing brace.
    pub first_line: usize,
    pub last_line: usize,
    /// Stands under `#[cfg(test)]`.
    pub in_tests: bool,
    /// `#[test]`, `#[tokio::test]` or the like stands before it.
    pub is_test: bool,
}

/// `mod name;`: a module in a file of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Modules with braces around it, then its name.
    pub names: Vec<String>,
    pub in_tests: bool,
    /// From `#[path = "…"]`.
    pub path: Option<String>,
}

#[derive(Debug)]
pub struct LocalPath {
    pub line: usize,
    /// Modules with braces around it.
    pub inside: Vec<String>,
    /// Such as `crate`, `files`.
    pub words: Vec<String>,
}

/// Reads a file. The error says that it is no Rust.
pub fn outline(text: &str) -> Result<Outline, String> {
    let stream = TokenStream::from_str(text).map_err(|e| e.to_string())?;
    let mut outline = Outline { lines: text.lines().count(), ..Outline::default() };
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    Walker { outline: &mut outline, inside: Vec::new(), in_tests: false }.walk(&tokens);
    Ok(outline)
}

struct Walker<'a> {
    outline: &'a mut Outline,
    inside: Vec<String>,
    in_tests: bool,
}

impl Walker<'_> {
    fn walk(&mut self, tokens: &[TokenTree]) {
        let mut pending: Vec<(usize, String)> = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            if let Some((attribute, length)) = attribute_at(tokens, at) {
                let line = line_of(&tokens[at]);
                if !attribute.starts_with("doc=") {
                    self.outline.attributes.push((line, attribute.clone()));
                }
                if length == 2 {
                    pending.push((line, attribute));
                }
                at += length;
                continue;
            }
            let begins_tests = pending.iter().any(|(_, a)| is_cfg_test(a));
            if begins_tests && !self.in_tests {
                let end = item_end(tokens, at);
                let last = tokens[..end].last().map_or(0, last_line_of);
                self.outline.test_lines.extend(pending[0].0..=last);
                self.in_tests = true;
                at = self.item(tokens, at, &mut pending);
                while at < end {
                    at = self.item(tokens, at, &mut pending);
                }
                self.in_tests = false;
            } else {
                at = self.item(tokens, at, &mut pending);
            }
        }
    }

    /// Looks at the token at `at`, and gives where to go on.
    fn item(&mut self, tokens: &[TokenTree], at: usize, pending: &mut Vec<(usize, String)>) -> usize {
        match (word(tokens, at).as_deref(), word(tokens, at + 1).as_deref()) {
            (Some("fn"), Some(name)) => {
                let end = body_end(tokens, at + 2);
                self.outline.functions.push(Function {
                    name: name.to_string(),
                    first_line: line_of(&tokens[at]),
                    last_line: tokens[..end].last().map_or(0, last_line_of),
                    in_tests: self.in_tests,
                    is_test: pending.iter().any(|(_, a)| is_test(a)),
                });
                pending.clear();
                self.walk(&tokens[at + 2..end]);
                end
            }
            (Some("mod"), Some(name)) => {
                self.module(name, tokens.get(at + 2), pending);
                pending.clear();
                at + 3
            }
            (Some("crate" | "super"), _) if !follows_colon(tokens, at) => self.path(tokens, at),
            (Some(name), None)
                if punct(tokens, at + 1, '!') && matches!(tokens.get(at + 2), Some(TokenTree::Group(_))) =>
            {
                self.outline.macros.push((line_of(&tokens[at]), name.to_string()));
                at + 2
            }
            _ => {
                match &tokens[at] {
                    TokenTree::Group(group) => {
                        let ends = group.delimiter() == Delimiter::Brace;
                        self.group(group);
                        if ends {
                            pending.clear();
                        }
                    }
                    TokenTree::Punct(p) if matches!(p.as_char(), ';' | ',') => pending.clear(),
                    _ => {}
                }
                at + 1
            }
        }
    }

    fn group(&mut self, group: &Group) {
        let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
        self.walk(&tokens);
    }

    fn module(&mut self, name: &str, after: Option<&TokenTree>, pending: &[(usize, String)]) {
        self.inside.push(name.to_string());
        match after {
            Some(TokenTree::Group(group)) => self.group(group),
            _ => {
                let path = pending.iter().find_map(|(_, a)| a.strip_prefix("path=\"")?.strip_suffix('"'));
                self.outline.modules.push(Module {
                    names: self.inside.clone(),
                    in_tests: self.in_tests,
                    path: path.map(str::to_string),
                });
            }
        }
        self.inside.pop();
    }

    fn path(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let mut words = vec![word(tokens, at).expect("the caller looked")];
        let mut next = at + 1;
        while punct(tokens, next, ':') && punct(tokens, next + 1, ':') {
            match tokens.get(next + 2) {
                Some(TokenTree::Ident(name)) => words.push(name.to_string()),
                Some(TokenTree::Group(list)) if list.delimiter() == Delimiter::Brace => {
                    self.list(list, line_of(&tokens[at]), &words);
                    return next + 3;
                }
                _ => break,
            }
            next += 3;
        }
        self.found(line_of(&tokens[at]), words);
        next
    }

    fn list(&mut self, list: &Group, line: usize, words: &[String]) {
        let tokens: Vec<TokenTree> = list.stream().into_iter().collect();
        for entry in tokens.split(|t| matches!(t, TokenTree::Punct(p) if p.as_char() == ',')) {
            if let Some(TokenTree::Ident(first)) = entry.first() {
                let more = entry[1..].iter().filter_map(|t| match t {
                    TokenTree::Ident(name) => Some(name.to_string()),
                    _ => None,
                });
                self.found(line, words.iter().cloned().chain([first.to_string()]).chain(more).collect());
            }
        }
    }

    fn found(&mut self, line: usize, words: Vec<String>) {
        if !self.in_tests {
            self.outline.paths.push(LocalPath { line, inside: self.inside.clone(), words });
        }
    }
}

/// `#[…]` or `#![…]` at a place: its text without white space, and how many tokens it takes.
fn attribute_at(tokens: &[TokenTree], at: usize) -> Option<(String, usize)> {
    if !punct(tokens, at, '#') {
        return None;
    }
    let length = if punct(tokens, at + 1, '!') { 3 } else { 2 };
    match tokens.get(at + length - 1) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            Some((group.stream().to_string().split_whitespace().collect(), length))
        }
        _ => None,
    }
}

fn is_cfg_test(attribute: &str) -> bool {
    attribute == "cfg(test)" || attribute.starts_with("cfg(all(test,")
}

fn is_test(attribute: &str) -> bool {
    let path = attribute.split('(').next().unwrap_or("");
    path.rsplit("::").next() == Some("test")
}

/// Where an item that starts at `at` ends: after its braces, its semicolon, or (a field, an arm) its comma.
fn item_end(tokens: &[TokenTree], at: usize) -> usize {
    const BLOCKS: [&str; 7] = ["fn", "mod", "impl", "struct", "enum", "trait", "macro_rules"];
    const LINES: [&str; 4] = ["use", "static", "type", "let"]; // not const: `const fn`
    let words = (at..tokens.len().min(at + 8)).filter_map(|i| word(tokens, i));
    let kind = words.into_iter().find(|w| BLOCKS.contains(&w.as_str()) || LINES.contains(&w.as_str()));
    let lines = kind.as_deref().is_none_or(|k| LINES.contains(&k));
    if matches!(&tokens[at], TokenTree::Group(g) if g.delimiter() == Delimiter::Brace) {
        return at + 1;
    }
    for (i, token) in tokens.iter().enumerate().skip(at) {
        match token {
            TokenTree::Punct(p) if p.as_char() == ';' => return i + 1,
            TokenTree::Punct(p) if p.as_char() == ',' && kind.is_none() => return i + 1,
            TokenTree::Group(g) if g.delimiter() == Delimiter::Brace && !lines => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

fn body_end(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(p) => p.as_char() == ';',
        TokenTree::Group(g) => g.delimiter() == Delimiter::Brace,
        _ => false,
    };
    tokens[at..].iter().position(ends).map_or(tokens.len(), |n| at + n + 1)
}

fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn punct(tokens: &[TokenTree], at: usize, what: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == what)
}

fn follows_colon(tokens: &[TokenTree], at: usize) -> bool {
    at > 0 && punct(tokens, at - 1, ':') && at > 1 && punct(tokens, at - 2, ':')
}

fn line_of(token: &TokenTree) -> usize {
    token.span().start().line
}

fn last_line_of(token: &TokenTree) -> usize {
    token.span().end().line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_tests_and_modules_are_told_apart() {
        let text = r#"//! A file.
use crate::{files::path, chunks};
#[cfg(test)]
mod one;
mod two { #[path = "else.rs"] mod three; }
pub const fn long(
    a: u8,
) -> u8 {
    super::super::api::call!(a)
}
#[cfg(test)]
mod tests {
    use crate::api::Hidden;
    #[test]
    fn works() {}
}
proptest! {
    #[tokio::test(flavor = "x")]
    async fn holds(a in 0..3u8) {}
}
"#;
        let outline = outline(text).unwrap();
        let functions: Vec<_> = outline
            .functions
            .iter()
            .map(|f| (f.name.as_str(), f.first_line, f.last_line, f.in_tests, f.is_test))
            .collect();
        let expected =
            [("long", 6, 10, false, false), ("works", 15, 15, true, true), ("holds", 19, 19, false, true)];
        assert_eq!(functions, expected);
        assert_eq!(outline.test_lines, (3..=4).chain(11..=16).collect());
        let paths: Vec<_> = outline.paths.iter().map(|p| p.words.join("::")).collect();
        assert_eq!(paths, ["crate::files::path", "crate::chunks", "super::super::api::call"]);
        let modules: Vec<_> =
            outline.modules.iter().map(|m| (m.names.join("/"), m.in_tests, m.path.clone())).collect();
        assert_eq!(
            modules,
            [("one".into(), true, None), ("two/three".into(), false, Some("else.rs".into()))]
        );
    }

    #[test]
    fn test_items_end_where_they_end() {
        let text =
            "fn a() {\n#[cfg(test)]\nassert!(b\n);\nc();\n}\nstruct S {\n#[cfg(test)]\nd: u8,\ne: u8,\n}\n";
        assert_eq!(outline(text).unwrap().test_lines, [2, 3, 4, 8, 9].into());
        assert!(outline("fn a( {").is_err());
    }
}
