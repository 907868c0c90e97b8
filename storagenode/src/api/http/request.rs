//! Names and parameters in addresses. Percent-escapes are undone exactly once, and nothing is tidied up on the way:
//! a name that is not allowed is refused, never turned into another one.

use ::http::Uri;
use cairn_proto::v1::ErrorCode;

use super::super::{decode, status::Refusal};
use crate::files::{DEFAULT_PAGE, FileError, FilePath, VolumeName};

/// The volume in `/v1/volumes/{volume}` and below.
pub(super) fn volume_of(uri: &Uri) -> Result<VolumeName, Refusal> {
    let rest = uri.path().strip_prefix("/v1/volumes/").unwrap_or_default();
    let raw = rest.split('/').next().unwrap_or_default();
    let bytes =
        unescape(raw.as_bytes(), false).map_err(|what| Refusal::new(ErrorCode::InvalidVolumeName, what))?;
    decode::volume_name(&String::from_utf8_lossy(&bytes))
}

/// Volume and file in `/v1/volumes/{volume}/files/{path}`, without parameters.
pub(super) fn file_of(uri: &Uri) -> Result<(VolumeName, FilePath), Refusal> {
    let (volume, path, []) = file_with(uri, [])?;
    Ok((volume, path))
}

/// As [`file_of`], and parameters.
pub(super) fn file_with<const N: usize>(
    uri: &Uri,
    names: [&str; N],
) -> Result<(VolumeName, FilePath, [Option<String>; N]), Refusal> {
    let volume = volume_of(uri)?;
    // A file's name may have a question mark, and what is cut off would be another file.
    let values = query(uri, names)?;
    let raw = uri.path().splitn(6, '/').nth(5).unwrap_or_default();
    let refused = |what| Refusal::new(ErrorCode::InvalidPath, what);
    // A client that escapes a slash means a name with a slash in a part, which there is not.
    if raw.as_bytes().windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f")) {
        return Err(refused("the file name has an escaped slash (%2F); write slashes as they are"));
    }
    let bytes = unescape(raw.as_bytes(), false).map_err(refused)?;
    Ok((volume, FilePath::parse_bytes(&bytes).map_err(FileError::from)?, values))
}

/// The parameters after `?`, each of `names` at most once; others are refused, for a misspelt one must not be ignored.
pub(super) fn query<const N: usize>(uri: &Uri, names: [&str; N]) -> Result<[Option<String>; N], Refusal> {
    let mut values = [const { None }; N];
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let text = |raw: &str| {
            let bytes = unescape(raw.as_bytes(), true).map_err(Refusal::invalid)?;
            String::from_utf8(bytes).map_err(|_| Refusal::invalid("a parameter is not UTF-8"))
        };
        let name = text(name)?;
        let Some(place) = names.iter().position(|known| *known == name) else {
            let known = match N {
                0 => "there are none here; in a file's name, `?` is written %3F".to_owned(),
                _ => format!("there are {}", names.join(", ")),
            };
            return Err(Refusal::invalid(format!("unknown parameter {name:?}; {known}")));
        };
        if values[place].replace(text(value)?).is_some() {
            return Err(Refusal::invalid(format!("the parameter {name} is there twice")));
        }
    }
    Ok(values)
}

/// The parameter `limit` of a listing.
pub(super) fn page_limit(text: Option<String>) -> Result<usize, Refusal> {
    text.map_or(Ok(DEFAULT_PAGE), |text| decode::page_limit(text.parse().ok(), &format!("limit={text:?}")))
}

pub(super) fn flag(name: &str, text: Option<String>) -> Result<bool, Refusal> {
    match text.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(text) => Err(Refusal::invalid(format!("{name}={text:?} is neither true nor false"))),
    }
}

/// Undoes percent-escapes, once. In queries, `+` is a space.
fn unescape(raw: &[u8], plus_is_space: bool) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(*digit).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err("a \"%\" is not followed by two hexadecimal digits; write \"%\" as %25"),
                }
            }
            b'+' if plus_is_space => b' ',
            other => *other,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str) -> Result<String, ErrorCode> {
        let uri: Uri = format!("/v1/volumes/v/files/{path}").parse().unwrap();
        file_of(&uri).map(|(_, path)| path.to_string()).map_err(|refusal| refusal.code)
    }

    #[test]
    fn names_are_unescaped_once() {
        for (raw, name) in [
            ("a", "a"),
            ("a/b%20c/%C3%BC", "a/b c/ü"),
            ("100%25", "100%"),
            ("%252F", "%2F"),
            ("%252e%252e", "%2e%2e"),
            ("a+b", "a+b"),
            ("files/x", "files/x"),
            ("a%3Fb%23c", "a?b#c"),
        ] {
            assert_eq!(file(raw).as_deref(), Ok(name), "{raw}");
        }
    }

    #[test]
    fn bad_names_are_refused_not_mended() {
        for raw in [
            "", "..", "a/../b", "%2e%2e/x", "a/%2E/b", "a%2Fb", "a%2fb", "/etc", "a//b", "a/", "%00", "%ff",
            "%", "%zz", "a%4",
        ] {
            assert_eq!(file(raw), Err(ErrorCode::InvalidPath), "{raw}");
        }
        let uri: Uri = "/v1/volumes/%41/files/x".parse().unwrap();
        assert_eq!(file_of(&uri).unwrap_err().code, ErrorCode::InvalidVolumeName);
    }

    #[test]
    fn parameters() {
        let uri: Uri = "/x?prefix=a%2Fb+c&limit=7".parse().unwrap();
        let [prefix, limit, token] = query(&uri, ["prefix", "limit", "page_token"]).unwrap();
        assert_eq!((prefix.as_deref(), token), (Some("a/b c"), None));
        assert_eq!((page_limit(limit).unwrap(), page_limit(None).unwrap()), (7, DEFAULT_PAGE));
        for bad in ["/x?prefx=a", "/x?limit=1&limit=2", "/x?prefix=%ff", "/x?prefix=%"] {
            assert!(query(&bad.parse().unwrap(), ["prefix", "limit"]).is_err(), "{bad}");
        }
        let cut: Uri = "/v1/volumes/v/files/what?1.txt".parse().unwrap();
        let refused = file_of(&cut).unwrap_err();
        assert!(
            refused.code == ErrorCode::InvalidArgument && refused.to_string().contains("%3F"),
            "{refused:?}"
        );
        assert!(page_limit(Some("-1".into())).is_err());
        assert!(flag("with_files", Some("yes".into())).is_err());
    }

    proptest! {
        #[test]
        fn any_allowed_name_comes_through(name in "\\PC{1,40}(/\\PC{1,40}){0,3}") {
            prop_assume!(FilePath::parse(&name).is_ok());
            let raw: String = name
                .split('/')
                .map(|part| percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string())
                .collect::<Vec<_>>()
                .join("/");
            prop_assert_eq!(file(&raw), Ok(name));
        }
    }
}
