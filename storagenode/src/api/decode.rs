//! What comes from outside, checked once, for both interfaces.

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

/// 0 means the default for both.
pub fn volume_settings(copies: u32, chunk_size_bytes: u32) -> Result<(u8, u32), Refusal> {
    if copies > MAX_COPIES {
        return Err(Refusal::invalid(format!("a volume keeps 1 to {MAX_COPIES} copies, not {copies}")));
    }
    let allowed = MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES;
    if chunk_size_bytes != 0
        && (!allowed.contains(&chunk_size_bytes) || !chunk_size_bytes.is_multiple_of(MIN_CHUNK_BYTES))
    {
        return Err(Refusal::invalid(format!(
            "the chunk size must be a multiple of {MIN_CHUNK_BYTES}, up to {MAX_CHUNK_BYTES}, not {chunk_size_bytes}"
        )));
    }
    Ok((copies as u8, chunk_size_bytes))
}

/// 0 means the default, more than the most means the most.
pub fn page_limit(size: u64) -> usize {
    match size {
        0 => DEFAULT_PAGE,
        _ => size.min(MAX_PAGE as u64) as usize,
    }
}

pub fn page_token(token: &str) -> Result<String, Refusal> {
    if token.len() > MAX_PAGE_TOKEN_BYTES {
        return Err(Refusal::invalid("this page token is longer than any that was given out"));
    }
    Ok(token.to_owned())
}

pub fn listing(prefix: &str, delimiter: &str, size: u64, token: &str) -> Result<ListSpec, Refusal> {
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
    Ok(ListSpec { prefix: prefix.to_owned(), delimited, limit: page_limit(size), token: page_token(token)? })
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
        for (copies, chunk, good) in [
            (0, 0, true),
            (7, 65_536, true),
            (1, 16_777_216, true),
            (8, 0, false),
            (1, 65_535, false),
            (1, 65_537, false),
            (1, 16_777_216 + 65_536, false),
            (u32::MAX, u32::MAX, false),
        ] {
            assert_eq!(volume_settings(copies, chunk).is_ok(), good, "{copies} {chunk}");
        }
        assert_eq!([page_limit(0), page_limit(1), page_limit(u64::MAX)], [DEFAULT_PAGE, 1, MAX_PAGE]);
        assert!(page_token(&"x".repeat(5_000)).is_err());
    }

    #[test]
    fn listings() {
        let spec = listing("a/", "/", 5, "t").unwrap();
        assert!(spec.delimited && spec.prefix == "a/" && spec.limit == 5 && spec.token == "t");
        assert_eq!(listing("", ",", 0, "").unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(listing("\0", "", 0, "").unwrap_err().code, ErrorCode::InvalidPath);
        assert_eq!(listing(&"x".repeat(1_025), "", 0, "").unwrap_err().code, ErrorCode::InvalidPath);
    }
}
