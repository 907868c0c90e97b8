//! What comes from outside, checked once, for both interfaces.

use std::time::Duration;

use cairn_placement::Generation;
use cairn_proto::v1::ErrorCode;

use super::status::Refusal;
use crate::files::{
    DEFAULT_PAGE, FileError, FilePath, ListSpec, MAX_PAGE, VolumeName,
    path::{MAX_PATH_BYTES, PathError},
};

const MAX_CONTENT_TYPE_BYTES: usize = 127;
const MAX_PAGE_TOKEN_BYTES: usize = 4_096;
pub const MAX_COPIES: u32 = 7;
pub const MIN_CHUNK_BYTES: u32 = 65_536;
pub const MAX_CHUNK_BYTES: u32 = 16_777_216;

pub fn volume_name(text: &str) -> Result<VolumeName, Refusal> {
    Ok(VolumeName::parse(text).map_err(FileError::from)?)
}

pub fn file_path(text: &str) -> Result<FilePath, Refusal> {
    Ok(FilePath::parse(text).map_err(FileError::from)?)
}

/// Visible ASCII and spaces, short: it is sent back as a header later.
pub fn content_type(text: &str) -> Result<String, Refusal> {
    if text.len() > MAX_CONTENT_TYPE_BYTES || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(Refusal::invalid(format!(
            "the content type must be at most {MAX_CONTENT_TYPE_BYTES} bytes of visible ASCII"
        )));
    }
    Ok(text.trim().to_owned())
}

pub fn blake3(bytes: &[u8]) -> Result<[u8; 32], Refusal> {
    bytes
        .try_into()
        .map_err(|_| Refusal::invalid(format!("a BLAKE3 digest has 32 bytes, this one has {}", bytes.len())))
}

/// A generation in the text form that the API gives out.
pub fn etag(text: &str) -> Result<Generation, Refusal> {
    text.parse().map_err(|_| Refusal::invalid("an etag of this store has 32 hexadecimal digits (0-9, a-f)"))
}

/// The version that is meant; none if the text is empty.
pub fn if_match(text: &str) -> Result<Option<Generation>, Refusal> {
    (!text.is_empty()).then(|| etag(text)).transpose()
}

/// How old an answer may be; over gRPC there is no bound.
pub fn max_stale(allowed: bool) -> Option<Duration> {
    allowed.then_some(Duration::MAX)
}

/// What a message of gRPC says with a number that has 0 for "not given".
pub fn given(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

/// In the answer, 0 stands for what was not given: the gateway has a default for both.
pub fn volume_settings(copies: Option<u32>, chunk_size_bytes: Option<u32>) -> Result<(u8, u32), Refusal> {
    if let Some(copies) = copies
        && !(1..=MAX_COPIES).contains(&copies)
    {
        return Err(Refusal::invalid(format!("a volume keeps 1 to {MAX_COPIES} copies, not {copies}")));
    }
    if let Some(bytes) = chunk_size_bytes
        && (!(MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) || !bytes.is_multiple_of(MIN_CHUNK_BYTES))
    {
        return Err(Refusal::invalid(format!(
            "the chunk size must be a multiple of {MIN_CHUNK_BYTES}, up to {MAX_CHUNK_BYTES}, not {bytes}"
        )));
    }
    Ok((copies.unwrap_or(0) as u8, chunk_size_bytes.unwrap_or(0)))
}

/// Entries of a page. `shown` is what was asked for, as it was written; `None` is no number that could be.
pub fn page_limit(wanted: Option<u64>, shown: &str) -> Result<usize, Refusal> {
    let limit = wanted.and_then(|wanted| usize::try_from(wanted).ok());
    limit.filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or_else(|| {
        Refusal::invalid(format!(
            "a page has a whole number of entries from 1 to {MAX_PAGE} ({DEFAULT_PAGE} if none is given), not {shown}"
        ))
    })
}

/// As [`page_limit`], with 0 for the default.
pub fn page_size(size: u32) -> Result<usize, Refusal> {
    given(size).map_or(Ok(DEFAULT_PAGE), |size| page_limit(Some(size.into()), &size.to_string()))
}

pub fn page_token(token: &str) -> Result<String, Refusal> {
    if token.len() > MAX_PAGE_TOKEN_BYTES {
        return Err(Refusal::invalid("this page token is longer than any that was given out"));
    }
    Ok(token.to_owned())
}

pub fn listing(prefix: &str, delimiter: &str, limit: usize, token: &str) -> Result<ListSpec, Refusal> {
    if prefix.len() > MAX_PATH_BYTES {
        return Err(Refusal::new(ErrorCode::InvalidPath, format!("prefix: {}", PathError::TooLong)));
    }
    if prefix.contains('\0') {
        return Err(Refusal::new(ErrorCode::InvalidPath, format!("prefix: {}", PathError::Nul)));
    }
    let delimited = match delimiter {
        "" => false,
        "/" => true,
        other => {
            return Err(Refusal::invalid(format!("the delimiter can be \"/\" or nothing, not {other:?}")));
        }
    };
    Ok(ListSpec { prefix: prefix.to_owned(), delimited, limit, token: page_token(token)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!(content_type("text/plain; charset=utf-8").unwrap(), "text/plain; charset=utf-8");
        for bad in ["a\r\nb", "ü", &"x".repeat(128)] {
            assert!(content_type(bad).is_err(), "{bad:?}");
        }
        assert!(blake3(&[0; 31]).is_err() && blake3(&[0; 32]).is_ok());
        assert!(etag(&"0a".repeat(16)).is_ok());
        for bad in ["", "*", &"0A".repeat(16), &"0a".repeat(17)] {
            assert!(etag(bad).is_err(), "{bad:?}");
        }
        assert_eq!(volume_settings(None, None).unwrap(), (0, 0));
        assert_eq!(volume_settings(given(0), given(65_536)).unwrap(), (0, 65_536));
        for (copies, chunk, good) in [
            (7, 65_536, true),
            (1, 16_777_216, true),
            (0, 65_536, false),
            (8, 65_536, false),
            (1, 0, false),
            (1, 65_535, false),
            (1, 65_537, false),
            (1, 16_777_216 + 65_536, false),
            (u32::MAX, u32::MAX, false),
        ] {
            assert_eq!(volume_settings(Some(copies), Some(chunk)).is_ok(), good, "{copies} {chunk}");
        }
        assert_eq!([page_size(0).unwrap(), page_size(1).unwrap()], [DEFAULT_PAGE, 1]);
        assert_eq!(page_size(MAX_PAGE as u32).unwrap(), MAX_PAGE);
        for bad in [None, Some(0), Some(MAX_PAGE as u64 + 1), Some(u64::MAX)] {
            let refused = page_limit(bad, "what was written").unwrap_err();
            assert_eq!(refused.code, ErrorCode::InvalidArgument, "{bad:?}");
            assert!(refused.cause.ends_with("not what was written"), "{}", refused.cause);
        }
        assert!(page_size(MAX_PAGE as u32 + 1).is_err());
        assert!(page_token(&"x".repeat(5_000)).is_err());
    }

    #[test]
    fn listings() {
        let spec = listing("a/", "/", 5, "t").unwrap();
        assert!(spec.delimited && spec.prefix == "a/" && spec.limit == 5 && spec.token == "t");
        assert_eq!(listing("", ",", 1, "").unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(listing("\0", "", 1, "").unwrap_err().code, ErrorCode::InvalidPath);
        assert_eq!(listing(&"x".repeat(1_025), "", 1, "").unwrap_err().code, ErrorCode::InvalidPath);
    }
}
