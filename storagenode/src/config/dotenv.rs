//! The `.env` file, as compose and most tools read it:
//!
//! ```text
//! # a comment
//! NAME=value            # a comment after a space
//! export NAME=value
//! NAME="a value with \"escapes\", \n too"
//! NAME='taken as it is'
//! ```
//!
//! Names that are no settings are no mistakes, because the file may be shared with other programs; the node warns of them.

use std::collections::HashMap;

/// Values by name, each with its line. A later line wins.
pub(super) type Values = HashMap<String, (usize, String)>;

pub(super) fn parse(content: &str) -> Result<Values, String> {
    let mut values = Values::new();
    for (number, line) in content.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = parse_line(line)
            .map_err(|problem| format!("the .env file, line {}: {problem}; write NAME=VALUE", number + 1))?;
        values.insert(name, (number + 1, value));
    }
    Ok(values)
}

fn parse_line(line: &str) -> Result<(String, String), String> {
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=').ok_or("there is no \"=\"")?;
    let name = name.trim();
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.bytes().all(good) {
        return Err(format!("{name:?} is no name"));
    }
    Ok((name.to_owned(), parse_value(value.trim())?))
}

fn parse_value(text: &str) -> Result<String, String> {
    if let Some(rest) = text.strip_prefix('\'') {
        let (value, rest) = rest.split_once('\'').ok_or("a \"'\" is not closed")?;
        return end(rest).map(|()| value.to_owned());
    }
    let Some(rest) = text.strip_prefix('"') else {
        let comment = text.find(" #").or_else(|| text.find("\t#"));
        return Ok(if text.starts_with('#') { "" } else { text[..comment.unwrap_or(text.len())].trim_end() }
            .to_owned());
    };
    let mut value = String::new();
    let mut characters = rest.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return end(characters.as_str()).map(|()| value),
            '\\' => match characters.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some(escaped @ ('"' | '\\' | '$' | '`')) => value.push(escaped),
                Some(other) => value.extend(['\\', other]),
                None => break,
            },
            other => value.push(other),
        }
    }
    Err("a '\"' is not closed".into())
}

/// After a closing quote there may only be a comment.
fn end(rest: &str) -> Result<(), String> {
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        Ok(())
    } else {
        Err(format!("{rest:?} follows the closing quote"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let content = "\u{feff}# c\n\nA=1\r\nexport B = two # c\nC=\"a \\\"b\\\"\\n#\" # c\nD='a \\n #'\nE=\nF=#x\nG=a#b\nA=2\n";
        let values = parse(content).unwrap();
        for (name, value) in [
            ("A", "2"),
            ("B", "two"),
            ("C", "a \"b\"\n#"),
            ("D", "a \\n #"),
            ("E", ""),
            ("F", ""),
            ("G", "a#b"),
        ] {
            assert_eq!(values[name].1, value, "{name}");
        }
        assert_eq!(values["A"].0, 10);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for bad in ["A", "=1", "1A=1", "A B=1", "A=\"x", "A='x", "A='x' y"] {
            assert!(parse(&format!("OK=1\n{bad}")).unwrap_err().contains("line 2"), "{bad}");
        }
    }
}
