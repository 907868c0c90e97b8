//! Names in the `.env` file that are no settings: warned of, because a setting that was misspelt has no effect, but not
//! refused, because the file may be shared with other programs.

use super::{Given, SETTINGS, dotenv};

/// What the program reads besides the settings.
const OTHERS: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];
/// Letters that may be wrong, missing or too many in a name that was meant for another.
const MISTAKES_MAX: usize = 2;

/// What should be said about the `.env` file once the log is there. A file that cannot be parsed was refused already.
pub fn warnings(given: &Given<'_>) -> Vec<String> {
    let values = given.dotenv.as_deref().and_then(|content| dotenv::parse(content).ok()).unwrap_or_default();
    let is_known = |name: &str| OTHERS.contains(&name) || SETTINGS.iter().any(|setting| setting.name == name);
    let mut unknown: Vec<_> =
        values.iter().filter(|(name, _)| !is_known(name)).map(|(name, (line, _))| (*line, name)).collect();
    unknown.sort();
    let warning = |(line, name): &(usize, &String)| {
        let ignored =
            format!("the .env file, line {line}: {name} is no setting of cairn-node and is ignored");
        match nearest(name) {
            Some(near) => format!("{ignored}; did you mean {near}?"),
            None => format!("{ignored} (`cairn-node --help` lists the settings)"),
        }
    };
    unknown.iter().map(warning).collect()
}

/// The setting that a name was probably meant for.
fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_uppercase();
    let near = |setting: &'static str| {
        let extended = setting.contains(&name) || name.contains(setting);
        let mistakes = distance(&name, setting);
        // In a short name, two letters are half of it.
        let close = mistakes <= MISTAKES_MAX && mistakes * 3 <= setting.len();
        (close || (extended && name.len() >= 4)).then_some((mistakes, setting))
    };
    SETTINGS.iter().filter_map(|setting| near(setting.name)).min().map(|(_, setting)| setting)
}

/// Letters to change, add or take away to make `a` of `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j].min(diagonal) + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(content: &str) -> Vec<String> {
        warnings(&Given {
            environment: &|_| None,
            dotenv: Some(content.to_owned()),
            host_name: String::new(),
        })
    }

    #[test]
    fn a_misspelt_setting_is_told_with_the_right_one() {
        for (wrong, right) in [
            ("ZONES", "ZONE"),
            ("GPRC_PORT", "GRPC_PORT"),
            ("DATABSE_URL", "DATABASE_URL"),
            ("database_url", "DATABASE_URL"),
            ("CAIRN_DATA_DIR", "DATA_DIR"),
            ("CLIENT_TOKENS", "CLIENT_TOKENS_FILE"),
            ("EXPECTED_NODE", "EXPECTED_NODES"),
        ] {
            let said = warned(&format!("ZONE=a\n{wrong}=1"));
            assert_eq!(said.len(), 1, "{said:?}");
            for part in ["line 2", &format!("{wrong} is no setting"), &format!("did you mean {right}?")] {
                assert!(said[0].contains(part), "{part}: {said:?}");
            }
        }
    }

    #[test]
    fn names_of_other_programs_are_told_without_a_guess_and_settings_not_at_all() {
        let said = warned("POSTGRES_PASSWORD=x\nZONE=a\nTZ=UTC\nRUST_BACKTRACE=1\n");
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("POSTGRES_PASSWORD") && said[1].contains("TZ"), "{said:?}");
        assert!(said.iter().all(|said| !said.contains("did you mean")), "{said:?}");
        assert_eq!(warned(include_str!("../../../.env.example")), Vec::<String>::new());
    }

    #[test]
    fn distances() {
        for (a, b, letters) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), letters, "{a} {b}");
        }
    }
}
