//! Page tokens: where a listing goes on. A token says which listing it is of, so that it is refused by any other, which would
//! go on in the middle of names that nobody has seen the beginning of.
//!
//! `TAG.NAME`: the name after which to go on, in base64, behind 16 hexadecimal digits of BLAKE3 over the listing and the name.
//! No secret is in it: it keeps mistakes out. Who forges one sees what the listing shows anyway.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::FileError;

/// Of the digest.
const TAG_BYTES: usize = 8;

/// The token of the page after `name`, in the listing that `listing` describes.
pub(super) fn token(listing: &[u8], name: &str) -> String {
    format!("{}.{}", tag(listing, name), URL_SAFE_NO_PAD.encode(name))
}

/// The name in a token; refused if it is not one of this listing.
pub(super) fn name(listing: &[u8], token: &str) -> Result<String, FileError> {
    let read = || {
        let (found, name) = token.split_once('.')?;
        let name = String::from_utf8(URL_SAFE_NO_PAD.decode(name).ok()?).ok()?;
        (found == tag(listing, &name)).then_some(name)
    };
    read().ok_or_else(foreign)
}

pub(super) fn foreign() -> FileError {
    let cause = "the page token is not one of this listing: give the next_page_token of a page of the same volume, prefix and \
                 delimiter, or none to begin anew";
    FileError::InvalidArgument(cause.into())
}

fn tag(listing: &[u8], name: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    // With its length, or "a" and "bc" would be "ab" and "c".
    hasher.update(&(listing.len() as u64).to_le_bytes());
    hasher.update(listing);
    hasher.update(name.as_bytes());
    hex::encode(&hasher.finalize().as_bytes()[..TAG_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_listing() {
        let ours = b"files 7 a/";
        let token = token(ours, "a/ü b");
        assert_eq!(name(ours, &token).unwrap(), "a/ü b");
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)), "{token}");
        for other in ["files 8 a/", "files 7 a", "files 7 ", "volumes"] {
            let other = other.as_bytes();
            assert_eq!(name(other, &token), Err(foreign()), "{other:?}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let ours = b"files";
        let token = token(ours, "name");
        let (tag, encoded) = token.split_once('.').unwrap();
        let cut = &token[..token.len() - 1];
        for bad in ["AAAA", "name", ".", tag, encoded, cut, &format!("{tag}.AAAA"), &format!("{token}A")] {
            assert_eq!(name(ours, bad), Err(foreign()), "{bad:?}");
        }
    }
}
