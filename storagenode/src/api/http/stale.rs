//! Old answers (RFC 9111): a request allows them with `Cache-Control: max-stale` (section 5.2.1.2), an answer tells its `Age`
//! (section 5.1). Here they are given only while the metadata store is away. What is malformed or contradicts itself allows
//! nothing.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::super::status::Refusal;
use crate::files::{self, FileError};

const CAIRN_STALE: HeaderName = HeaderName::from_static("cairn-stale");

/// How old the answer may be; absent: not at all.
pub(super) fn allowed(headers: &HeaderMap) -> Option<Duration> {
    let mut allowed: Option<Duration> = None;
    for value in headers.get_all(header::CACHE_CONTROL) {
        for directive in value.to_str().ok()?.split(',') {
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name.trim(), Some(argument.trim())),
                None => (directive.trim(), None),
            };
            // Of two that differ, the stricter counts (section 4.2.1).
            if name.eq_ignore_ascii_case("max-stale") {
                let given = argument.map_or(Some(Duration::MAX), seconds)?;
                allowed = Some(allowed.map_or(given, |known| known.min(given)));
            } else if name.eq_ignore_ascii_case("no-cache") || name.eq_ignore_ascii_case("min-fresh") {
                return None;
            }
        }
    }
    allowed
}

/// Digits only, perhaps in quotes; a number beyond u64 is as good as endless.
fn seconds(text: &str) -> Option<Duration> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let digits = !inner.is_empty() && inner.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_secs(inner.parse().unwrap_or(u64::MAX)))
}

/// Says how old the answer is, if it is; in whole seconds, never fewer than it is.
pub(super) fn tell(stale: Option<Duration>, headers: &mut HeaderMap) {
    let Some(age) = stale else { return };
    let age_s = age.as_secs() + u64::from(age.subsec_nanos() > 0);
    headers.insert(header::AGE, HeaderValue::from(age_s));
    headers.insert(CAIRN_STALE, HeaderValue::from_static("true"));
}

/// A condition that does not hold of an old answer may hold of the present file.
pub(super) fn doubted(stale: Option<Duration>, refusal: Refusal) -> Refusal {
    match stale {
        None => refusal,
        Some(_) => files::doubted(stale, FileError::PreconditionFailed(refusal.cause)).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        allowed(&headers)
    }

    #[test]
    fn only_what_is_clear_allows_old_answers() {
        let seconds = |count| Some(Duration::from_secs(count));
        for (values, expected) in [
            (&["max-stale"][..], Some(Duration::MAX)),
            (&["Max-Stale = 60"], seconds(60)),
            (&["no-transform, max-stale=\"60\", x=y"], seconds(60)),
            (&["max-stale=0"], seconds(0)),
            (&["max-stale=99999999999999999999"], seconds(u64::MAX)),
            // Twice: the stricter one.
            (&["max-stale", "max-stale=5"], seconds(5)),
            (&["max-stale=5, max-stale=3"], seconds(3)),
            (&["max-stale=5", "max-stale=-1"], None),
            // No number of seconds.
            (&["max-stale=-1"], None),
            (&["max-stale=+1"], None),
            (&["max-stale=1.5"], None),
            (&["max-stale="], None),
            (&["max-stale=\"\""], None),
            (&["max-stale=\"5"], None),
            (&["max-stale=5 6"], None),
            (&["max-stale=0x10"], None),
            // Asked not to.
            (&["max-stale, no-cache"], None),
            (&["no-cache", "max-stale=5"], None),
            (&["max-stale=5, min-fresh=5"], None),
            (&["max-stale", "\u{fc}"], None),
            (&["max-age=5", "x-max-stale", "maxstale"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(of(values), expected, "{values:?}");
        }
    }

    #[test]
    fn an_age_is_never_shown_shorter_than_it_is() {
        let shown = |millis| {
            let mut headers = HeaderMap::new();
            tell(Some(Duration::from_millis(millis)), &mut headers);
            assert_eq!(headers[CAIRN_STALE], "true");
            headers[header::AGE].to_str().unwrap().to_owned()
        };
        assert_eq!([0, 1, 1_000, 1_001].map(shown), ["0", "1", "1", "2"]);
        let mut headers = HeaderMap::new();
        tell(None, &mut headers);
        assert!(headers.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(value in "\\PC{0,40}") {
            let _ = of(&[&format!("max-stale={value}")]);
            let _ = of(&[&value]);
        }
    }
}
