//! Names from outside, parsed once: what has one of these types is safe to use in keys, URLs and messages.

use std::fmt;

/// Longest path, in bytes of UTF-8.
pub const MAX_PATH_BYTES: usize = 1_024;

/// A file's name in its volume: UTF-8, 1 to 1,024 bytes, parts separated by `/`, no empty, `.` or `..` part, no NUL.
/// Any other character is kept as it is: spaces, Unicode in whatever normal form, newlines, `%`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(String);

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the file name is empty")]
    Empty,
    #[error("the file name is over {MAX_PATH_BYTES} bytes long")]
    TooLong,
    #[error("the file name is not UTF-8")]
    NotUtf8,
    #[error(
        "the file name begins with \"/\", so its first part is empty; names are relative to their volume: leave that \"/\" away"
    )]
    Absolute,
    #[error("the file name has an empty part (\"//\", or \"/\" at its end); leave the surplus \"/\" away")]
    EmptyPart,
    #[error("the file name has the part \".\" or \"..\"")]
    DotPart,
    #[error("the file name has a NUL character")]
    Nul,
}

impl FilePath {
    /// Checks a path in text form.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong);
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        for part in text.split('/') {
            match part {
                "" => return Err(PathError::EmptyPart),
                "." | ".." => return Err(PathError::DotPart),
                _ if part.contains('\0') => return Err(PathError::Nul),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// Checks a path in bytes, as a URL has it after percent-decoding.
    pub fn parse_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        Self::parse(std::str::from_utf8(bytes).map_err(|_| PathError::NotUtf8)?)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A volume's name: a DNS label of 1 to 63 characters, as Kubernetes has them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

/// Why a volume name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a volume name: use 1 to 63 of a-z, 0-9 and \"-\", beginning and ending with a letter or a digit"
)]
pub struct VolumeNameError(String);

impl VolumeName {
    pub fn parse(text: &str) -> Result<Self, VolumeNameError> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let edges =
            bytes.first().zip(bytes.last()).is_some_and(|(a, z)| alphanumeric(*a) && alphanumeric(*z));
        if edges && bytes.len() <= 63 && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-') {
            return Ok(Self(text.to_owned()));
        }
        Err(VolumeNameError(text.chars().take(80).collect()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths_are_kept_as_they_are() {
        let longest = "é".repeat(512);
        for path in ["a", "a/b", "with space/ü—漢字", "...", "a/.hidden", "..a", "a\nb", "%2e%2e", &longest]
        {
            assert_eq!(FilePath::parse(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn bad_paths_are_refused_with_their_reason() {
        let long = "a".repeat(1025);
        let cases = [
            ("", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("..", PathError::DotPart),
            ("a/../b", PathError::DotPart),
            ("a/./b", PathError::DotPart),
            ("a//b", PathError::EmptyPart),
            ("a/", PathError::EmptyPart),
            ("a\0b", PathError::Nul),
            (&long, PathError::TooLong),
        ];
        for (path, error) in cases {
            assert_eq!(FilePath::parse(path), Err(error), "{path:?}");
        }
        assert_eq!(FilePath::parse_bytes(b"a\xff"), Err(PathError::NotUtf8));
    }

    #[test]
    fn volume_names_are_dns_labels() {
        for name in ["a", "a-b", "0", &"x".repeat(63)] {
            assert!(VolumeName::parse(name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a_b", "a.b", "é", &"x".repeat(64)] {
            assert!(VolumeName::parse(name).is_err(), "{name}");
        }
    }
}
