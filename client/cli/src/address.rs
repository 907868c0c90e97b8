//! `VOLUME` and `VOLUME/PATH`, as typed.

use std::fmt;
use std::str::FromStr;

use cairn_client::names::{PathProblem, check_path, is_volume_name};

/// What an argument names: a volume, a file in it, or everything below a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub volume: String,
    /// Without a "/" at either end; empty for the volume itself.
    pub path: String,
    /// Whether the argument ended in "/", or named only a volume: "below this", not "this".
    pub is_folder: bool,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, path) = text.split_once('/').unwrap_or((text, ""));
        if !is_volume_name(volume) {
            let shown: String = volume.chars().take(80).collect();
            return Err(format!(
                "{shown:?} is not a volume's name; write VOLUME/PATH, where VOLUME is 1 to 63 of a-z, 0-9 and \"-\""
            ));
        }
        let is_folder = path.is_empty() || path.ends_with('/');
        // What was meant to stand between the slashes of "files//" is missing, a variable perhaps: that is not the volume.
        let path = if path == "/" { path } else { path.strip_suffix('/').unwrap_or(path) };
        if !path.is_empty() {
            check_path(path).map_err(|problem| refusal(volume, path, problem))?;
        }
        Ok(Self { volume: volume.to_owned(), path: path.to_owned(), is_folder })
    }
}

/// Why a path after a volume cannot be. People who write too many slashes are shown what they mean.
fn refusal(volume: &str, path: &str, problem: PathProblem) -> String {
    if !matches!(problem, PathProblem::Absolute | PathProblem::EmptyPart) {
        return problem.to_string();
    }
    let shown = |text: &str| -> String { text.chars().take(200).collect() };
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return format!(
            "{:?} has no name between its slashes (an empty variable?); the whole volume is {:?}",
            format!("{volume}/{}", shown(path)),
            format!("{volume}/")
        );
    }
    format!(
        "what follows the volume {volume:?} is the file's name {:?}, which has an empty part: no name begins with \"/\" or has \
         \"//\" in it; write {:?}",
        shown(path),
        format!("{volume}/{}", shown(&parts.join("/")))
    )
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.volume)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

impl Address {
    /// What all paths below this one begin with.
    pub fn prefix(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!("{}/", self.path) }
    }

    /// The last part of the path; the volume's name if there is no path.
    pub fn name(&self) -> &str {
        match self.path.rsplit('/').next() {
            Some("") | None => &self.volume,
            Some(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> (String, String, bool) {
        let address: Address = text.parse().unwrap();
        (address.volume, address.path, address.is_folder)
    }

    #[test]
    fn volumes_files_and_folders() {
        assert_eq!(parse("files"), ("files".into(), "".into(), true));
        assert_eq!(parse("files/"), ("files".into(), "".into(), true));
        assert_eq!(parse("files/a b/ü"), ("files".into(), "a b/ü".into(), false));
        assert_eq!(parse("files/a/"), ("files".into(), "a".into(), true));
        let photos: Address = "files/2026/photos/".parse().unwrap();
        assert_eq!((photos.prefix().as_str(), photos.name()), ("2026/photos/", "photos"));
        assert_eq!("files".parse::<Address>().unwrap().name(), "files");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "",
            "/",
            "/files/a",
            "Files/a",
            "files//",
            "files///",
            "files//a",
            "files/a//",
            "files/../x",
            "files/.",
            "./files",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn too_many_slashes_are_told_where_and_what_to_write() {
        let refused = |text: &str| text.parse::<Address>().unwrap_err();
        for (text, name, meant) in [
            ("files//x", "/x", "files/x"),
            ("files/a//b", "a//b", "files/a/b"),
            ("files/a//", "a/", "files/a"),
        ] {
            let said = refused(text);
            assert!(said.contains(&format!("the file's name {name:?}")), "{said}");
            assert!(said.contains("empty part") && said.ends_with(&format!("write {meant:?}")), "{said}");
        }
        assert!(refused("files/../x").contains("\"..\""));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string(), text.trim_end_matches('/'));
            }
        }
    }
}
