//! Conditional requests (RFC 9110, section 13). ETags are strong: the generation in quotes.

use ::http::{HeaderMap, header};
use cairn_placement::Generation;
use cairn_proto::v1::ErrorCode;

use super::super::status::Refusal;
use super::single;
use crate::files::{Condition, FileInfo};

/// More in one header are refused.
const MAX_TAGS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tags {
    Any,
    List(Vec<Tag>),
}

/// One entity tag. One that is not ours has no generation, and matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tag {
    weak: bool,
    generation: Option<Generation>,
}

/// A file's ETag.
pub(super) fn etag(file: &FileInfo) -> String {
    format!("\"{}\"", file.generation)
}

/// A moment as HTTP writes it.
pub(super) fn http_date(unix_ms: i64) -> String {
    let moment = jiff::Timestamp::from_millisecond(unix_ms).unwrap_or_default();
    moment.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn parse_date(text: &str) -> Option<i64> {
    let date = jiff::civil::DateTime::strptime("%a, %d %b %Y %H:%M:%S GMT", text.trim()).ok()?;
    date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|moment| moment.timestamp().as_second())
}

/// For PUT and DELETE: all conditions must be ones that we check, or a file might be lost.
pub(super) fn for_write(headers: &HeaderMap) -> Result<Condition, Refusal> {
    for name in [header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE] {
        if headers.contains_key(&name) {
            return Err(Refusal::invalid(format!(
                "{name} is not for changing files; use If-Match with an ETag"
            )));
        }
    }
    match (tags(headers, &header::IF_MATCH)?, tags(headers, &header::IF_NONE_MATCH)?) {
        (None, None) => Ok(Condition::Always),
        (Some(Tags::Any), None) => Ok(Condition::IfExists),
        (None, Some(Tags::Any)) => Ok(Condition::IfAbsent),
        (Some(Tags::List(list)), None) => match list[..] {
            [Tag { weak: false, generation: Some(generation) }] => Ok(Condition::IfMatch(generation)),
            [_] => Err(Refusal::new(ErrorCode::PreconditionFailed, "no file has the ETag in If-Match")),
            _ => Err(Refusal::invalid("give one ETag in If-Match")),
        },
        (None, Some(Tags::List(_))) => {
            Err(Refusal::invalid("If-None-Match can only be * here; use If-Match to replace a known version"))
        }
        (Some(_), Some(_)) => Err(Refusal::invalid("give If-Match or If-None-Match, not both")),
    }
}

/// Conditions of GET and HEAD.
#[derive(Debug)]
pub(super) struct ReadConditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
    modified_since_s: Option<i64>,
    unmodified_since_s: Option<i64>,
    /// `Some(None)`: If-Range names something that no version of ours is.
    if_range: Option<Option<Generation>>,
}

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Send,
    NotModified,
}

impl ReadConditions {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let date = |name| Ok::<_, Refusal>(single(headers, &name)?.and_then(parse_date));
        let if_range = single(headers, &header::IF_RANGE)?.map(|text| match parse_tag(text) {
            Some(Tag { weak: false, generation }) => generation,
            _ => None, // A date, or a weak tag: cannot prove that the bytes are the same.
        });
        Ok(Self {
            if_match: tags(headers, &header::IF_MATCH)?,
            if_none_match: tags(headers, &header::IF_NONE_MATCH)?,
            modified_since_s: date(header::IF_MODIFIED_SINCE)?,
            unmodified_since_s: date(header::IF_UNMODIFIED_SINCE)?,
            if_range,
        })
    }

    /// Whether a range may be sent: `None` if there is no condition on it.
    pub(super) fn if_range(&self) -> Option<Option<Generation>> {
        self.if_range
    }

    pub(super) fn check(&self, file: &FileInfo) -> Result<Verdict, Refusal> {
        let modified_s = file.modified_unix_ms.div_euclid(1000);
        let holds = match (&self.if_match, self.unmodified_since_s) {
            (Some(tags), _) => tags.matches(file, true),
            (None, Some(since)) => modified_s <= since,
            (None, None) => true,
        };
        if !holds {
            let cause = format!(
                "the file's ETag is {}, last modified {}",
                etag(file),
                http_date(file.modified_unix_ms)
            );
            return Err(Refusal::new(ErrorCode::PreconditionFailed, cause));
        }
        let unchanged = match (&self.if_none_match, self.modified_since_s) {
            (Some(tags), _) => tags.matches(file, false),
            (None, Some(since)) => modified_s <= since,
            (None, None) => false,
        };
        Ok(if unchanged { Verdict::NotModified } else { Verdict::Send })
    }
}

impl Tags {
    fn matches(&self, file: &FileInfo, strong: bool) -> bool {
        match self {
            Self::Any => true,
            Self::List(tags) => {
                tags.iter().any(|tag| !(strong && tag.weak) && tag.generation == Some(file.generation))
            }
        }
    }
}

fn tags(headers: &HeaderMap, name: &header::HeaderName) -> Result<Option<Tags>, Refusal> {
    let mut all = Vec::new();
    let mut any = false;
    for value in headers.get_all(name) {
        let malformed = || Refusal::invalid(format!("{name} must be * or ETags in quotes"));
        let text = value.to_str().map_err(|_| malformed())?;
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if part == "*" {
                any = true;
            } else {
                all.push(parse_tag(part).ok_or_else(malformed)?);
            }
        }
        if all.len() > MAX_TAGS {
            return Err(Refusal::invalid(format!("{name} has more than {MAX_TAGS} ETags")));
        }
    }
    match (any, all.is_empty()) {
        (true, true) => Ok(Some(Tags::Any)),
        (true, false) => Err(Refusal::invalid(format!("{name} has both * and ETags"))),
        (false, false) => Ok(Some(Tags::List(all))),
        (false, true) if headers.contains_key(name) => Err(Refusal::invalid(format!("{name} is empty"))),
        (false, true) => Ok(None),
    }
}

fn parse_tag(text: &str) -> Option<Tag> {
    let (weak, quoted) = match text.strip_prefix("W/") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let opaque = quoted.strip_prefix('"')?.strip_suffix('"')?;
    (!opaque.contains('"')).then(|| Tag { weak, generation: opaque.parse().ok() })
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;
    use crate::files::{FilePath, VolumeName};

    const OURS: &str = "\"000000010203040506070809aabbccdd\"";

    fn file() -> FileInfo {
        FileInfo {
            volume: VolumeName::parse("v").unwrap(),
            path: FilePath::parse("p").unwrap(),
            size_bytes: 1,
            generation: OURS.trim_matches('"').parse().unwrap(),
            blake3: [0; 32],
            modified_unix_ms: 784_111_777_500,
            content_type: String::new(),
        }
    }

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn conditions_of_writes() {
        let condition = |pairs: &[_]| for_write(&headers(pairs)).map_err(|refusal| refusal.code);
        let ours = file().generation;
        assert_eq!(condition(&[]), Ok(Condition::Always));
        assert_eq!(condition(&[(header::IF_MATCH, OURS)]), Ok(Condition::IfMatch(ours)));
        assert_eq!(condition(&[(header::IF_MATCH, "*")]), Ok(Condition::IfExists));
        assert_eq!(condition(&[(header::IF_NONE_MATCH, "*")]), Ok(Condition::IfAbsent));
        let weak = format!("W/{OURS}");
        for lost in ["\"other\"", &weak] {
            assert_eq!(condition(&[(header::IF_MATCH, lost)]), Err(ErrorCode::PreconditionFailed));
        }
        for bad in ["", "x", "\"a", "*, \"a\"", "\"a\", \"b\"", "\"a\"b\""] {
            assert_eq!(condition(&[(header::IF_MATCH, bad)]), Err(ErrorCode::InvalidArgument), "{bad}");
        }
        for pairs in [
            &[(header::IF_NONE_MATCH, OURS)][..],
            &[(header::IF_MATCH, OURS), (header::IF_NONE_MATCH, "*")],
            &[(header::IF_UNMODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:37 GMT")],
        ] {
            assert_eq!(condition(pairs), Err(ErrorCode::InvalidArgument), "{pairs:?}");
        }
    }

    #[test]
    fn conditions_of_reads() {
        let verdict = |pairs: &[_]| {
            ReadConditions::of(&headers(pairs))
                .and_then(|read| read.check(&file()))
                .map_err(|refusal| refusal.code)
        };
        let list = format!("\"x\", W/{OURS}");
        let (before, at, after) = (
            "Sun, 06 Nov 1994 08:49:36 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:38 GMT",
        );
        assert_eq!(http_date(file().modified_unix_ms), at);
        let failed = Err(ErrorCode::PreconditionFailed);
        for (name, value, expected) in [
            (header::IF_MATCH, OURS, Ok(Verdict::Send)),
            (header::IF_MATCH, "*", Ok(Verdict::Send)),
            (header::IF_MATCH, &list, failed),
            (header::IF_NONE_MATCH, OURS, Ok(Verdict::NotModified)),
            (header::IF_NONE_MATCH, &list, Ok(Verdict::NotModified)),
            (header::IF_NONE_MATCH, "*", Ok(Verdict::NotModified)),
            (header::IF_NONE_MATCH, "\"x\"", Ok(Verdict::Send)),
            (header::IF_MODIFIED_SINCE, before, Ok(Verdict::Send)),
            (header::IF_MODIFIED_SINCE, at, Ok(Verdict::NotModified)),
            (header::IF_MODIFIED_SINCE, "yesterday", Ok(Verdict::Send)),
            (header::IF_UNMODIFIED_SINCE, before, failed),
            (header::IF_UNMODIFIED_SINCE, after, Ok(Verdict::Send)),
        ] {
            assert_eq!(verdict(&[(name.clone(), value)]), expected, "{name}: {value}");
        }
        let read = ReadConditions::of(&headers(&[(header::IF_RANGE, OURS)])).unwrap();
        assert_eq!(read.if_range(), Some(Some(file().generation)));
        let read = ReadConditions::of(&headers(&[(header::IF_RANGE, at)])).unwrap();
        assert_eq!(read.if_range(), Some(None));
    }
}
