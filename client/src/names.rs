//! File names, as every part of Cairn has them: checked before sending, and before using one that a server sent.

/// Longest path, in bytes of UTF-8.
pub const MAX_PATH_BYTES: usize = 1_024;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    #[error("the file name is empty")]
    Empty,
    #[error("the file name is over {MAX_PATH_BYTES} bytes long")]
    TooLong,
    #[error("the file name begins with \"/\", so its first part is empty; leave that \"/\" away")]
    Absolute,
    #[error("the file name has an empty part (\"//\", or \"/\" at its end); leave the surplus \"/\" away")]
    EmptyPart,
    #[error("the file name has the part \".\" or \"..\"")]
    DotPart,
    #[error("the file name has a NUL character")]
    Nul,
}

/// Checks that a path is 1 to 1,024 bytes, relative, and without empty, `.` or `..` parts and NUL.
pub fn check_path(path: &str) -> Result<(), PathProblem> {
    if path.is_empty() {
        return Err(PathProblem::Empty);
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(PathProblem::TooLong);
    }
    if path.starts_with('/') {
        return Err(PathProblem::Absolute);
    }
    for part in path.split('/') {
        match part {
            "" => return Err(PathProblem::EmptyPart),
            "." | ".." => return Err(PathProblem::DotPart),
            _ if part.contains('\0') => return Err(PathProblem::Nul),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a text is a volume's name: a DNS label.
pub fn is_volume_name(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let edges = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    edges && bytes.len() <= 63 && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_paths_are_refused_with_their_reason() {
        let long = "a".repeat(1025);
        for (path, problem) in [
            ("", PathProblem::Empty),
            ("/etc/passwd", PathProblem::Absolute),
            ("..", PathProblem::DotPart),
            ("a/../b", PathProblem::DotPart),
            ("a/.", PathProblem::DotPart),
            ("a//b", PathProblem::EmptyPart),
            ("a/", PathProblem::EmptyPart),
            ("a\0b", PathProblem::Nul),
            (&long, PathProblem::TooLong),
        ] {
            assert_eq!(check_path(path), Err(problem), "{path:?}");
        }
        for path in ["a", "a/b c/漢字", "...", ".a", "a\nb", "a\\b"] {
            assert_eq!(check_path(path), Ok(()), "{path:?}");
        }
    }

    #[test]
    fn volume_names_are_dns_labels() {
        assert!(["a", "a-b", "0", &"x".repeat(63)].into_iter().all(is_volume_name));
        assert!(!["", "-a", "a-", "A", "a_b", "a.b", "é", &"x".repeat(64)].into_iter().any(is_volume_name));
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_folder(path in "[a./\\\\ \0]{0,12}") {
            if check_path(&path).is_ok() {
                let plain = std::path::Path::new(&path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(plain);
            }
        }
    }
}
