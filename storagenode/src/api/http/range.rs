//! The Range header (RFC 9110, section 14): one range of bytes. What is malformed, or asks for several ranges or in
//! another unit, is ignored, as the RFC wants it: the whole file is sent.

use ::http::{HeaderMap, header};

use crate::files::RangeSpec;

/// The range asked for, if there is one that we serve.
pub(super) fn of(headers: &HeaderMap) -> Option<RangeSpec> {
    let mut values = headers.get_all(header::RANGE).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() { None } else { parse(value) }
}

fn parse(value: &str) -> Option<RangeSpec> {
    let (unit, set) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    match (first, last) {
        ("", last) => number(last).map(RangeSpec::Last),
        (first, "") => Some(RangeSpec::From { offset: number(first)?, length: None }),
        (first, last) => {
            let (offset, last) = (number(first)?, number(last)?);
            // One more than their difference: the last byte belongs to the range. Only 0-(2^64-1) does not fit.
            let length = last.checked_sub(offset)?.checked_add(1);
            Some(RangeSpec::From { offset, length })
        }
    }
}

/// Digits only: `parse` alone would take "+1". A number beyond u64 is past any end.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL_FROM: fn(u64) -> RangeSpec = |offset| RangeSpec::From { offset, length: None };

    #[test]
    fn ranges() {
        for (value, range) in [
            ("bytes=0-", Some(ALL_FROM(0))),
            ("bytes=5-", Some(ALL_FROM(5))),
            ("bytes=5-5", Some(RangeSpec::From { offset: 5, length: Some(1) })),
            ("Bytes= 0-499 ", Some(RangeSpec::From { offset: 0, length: Some(500) })),
            ("bytes=-7", Some(RangeSpec::Last(7))),
            ("bytes=0-18446744073709551615", Some(ALL_FROM(0))),
            ("bytes=99999999999999999999-", Some(ALL_FROM(u64::MAX))),
            ("bytes=5-4", None),
            ("bytes=0-1,3-4", None),
            ("bytes=-", None),
            ("bytes=+1-2", None),
            ("bytes=a-b", None),
            ("bytes", None),
            ("chapters=1-2", None),
            ("", None),
        ] {
            assert_eq!(parse(value), range, "{value}");
        }
    }

    proptest! {
        /// Whatever a client asks for, exactly the bytes that the RFC means are found.
        #[test]
        fn first_and_last_are_inclusive(first in 0u64..300, extra in 0u64..300, size in 1u64..300) {
            let last = first + extra;
            let spec = parse(&format!("bytes={first}-{last}")).unwrap();
            let RangeSpec::From { offset, length: Some(length) } = spec else { panic!("{spec:?}") };
            let wanted: Vec<u64> = (0..size).filter(|byte| (first..=last).contains(byte)).collect();
            let end = offset.saturating_add(length).min(size);
            let given: Vec<u64> = (offset..end.max(offset)).collect();
            prop_assert_eq!(wanted, given);
        }

        #[test]
        fn nothing_makes_it_panic(value in "\\PC{0,40}") {
            let _ = parse(&value);
            let _ = parse(&format!("bytes={value}"));
        }
    }
}
