//! Amounts as Kubernetes writes them (`10Gi`, `1500m`, `2`), restricted to what storage and compute need.
//!
//! Grammar: digits, optionally a point and more digits, then one of `m k M G T P Ki Mi Gi Ti Pi` or nothing.
//! Signs and exponents are refused: no size here is negative, and `1E3` is a typing error more often than a wish.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The accepted grammar, as the schema's pattern.
pub const PATTERN: &str = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";

const KIB: u128 = 1024;
/// Suffix and its value in thousandths.
const SUFFIXES: [(&str, u128); 12] = [
    ("Ki", KIB * 1000),
    ("Mi", KIB.pow(2) * 1000),
    ("Gi", KIB.pow(3) * 1000),
    ("Ti", KIB.pow(4) * 1000),
    ("Pi", KIB.pow(5) * 1000),
    ("m", 1),
    ("k", 1000 * 1000),
    ("M", 1000 * 1000_u128.pow(2)),
    ("G", 1000 * 1000_u128.pow(3)),
    ("T", 1000 * 1000_u128.pow(4)),
    ("P", 1000 * 1000_u128.pow(5)),
    ("", 1000),
];

/// An amount, kept as written. In manifests it may be a string or a whole number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("{0:?} is not an amount: write digits and a unit, like 500Gi, 1.5Ti or 100M")]
    Grammar(String),
    #[error("{0} is too large: the largest amount is 8191Pi")]
    TooLarge(String),
}

impl Quantity {
    /// The amount in thousandths of one (of a byte, of a core).
    pub fn thousandths(&self) -> Result<u128, QuantityError> {
        let text = self.0.as_str();
        let grammar = || QuantityError::Grammar(text.chars().take(64).collect());
        let number_length = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(number_length);
        let (_, factor) = SUFFIXES.iter().find(|(name, _)| *name == suffix).ok_or_else(grammar)?;
        let (whole, fraction) = number.split_once('.').map_or((number, None), |(w, f)| (w, Some(f)));
        if whole.is_empty() || whole.len() > 15 {
            return Err(grammar());
        }
        let mut total = whole.parse::<u128>().map_err(|_| grammar())? * factor;
        if let Some(fraction) = fraction {
            if fraction.is_empty() || fraction.len() > 9 {
                return Err(grammar());
            }
            let digits = fraction.parse::<u128>().map_err(|_| grammar())?;
            // Rounded up, as Kubernetes does, so that no amount shrinks by being read.
            total += (digits * factor).div_ceil(10_u128.pow(fraction.len() as u32));
        }
        Ok(total)
    }

    /// The amount in whole bytes, rounded up.
    pub fn bytes(&self) -> Result<i64, QuantityError> {
        i64::try_from(self.thousandths()?.div_ceil(1000)).map_err(|_| QuantityError::TooLarge(self.0.clone()))
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount such as 10Gi, or a whole number")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
                u64::try_from(number)
                    .map(|n| Quantity(n.to_string()))
                    .map_err(|_| E::custom("an amount is not negative"))
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
                Err(E::custom(format!("write {number} in quotes, or as a whole number with a unit")))
            }
        }
        deserializer.deserialize_any(Amount).map_err(D::Error::custom)
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Structural schemas: an int-or-string has no type; the pattern judges it when it is a string.
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": PATTERN, "maxLength": 27 })
    }
}

/// Bytes for people, in binary units with three significant digits: `1.5Ti`, `42.3Gi`, `900`.
pub fn human_bytes(bytes: i64) -> String {
    let mut value = bytes.max(0) as f64;
    for unit in ["", "Ki", "Mi", "Gi", "Ti", "Pi"] {
        if value < 1023.5 || unit == "Pi" {
            let text = match value {
                v if unit.is_empty() || v >= 99.95 => format!("{v:.0}"),
                v if v >= 9.995 => format!("{v:.1}"),
                v => format!("{v:.2}"),
            };
            let text =
                if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
            return format!("{text}{unit}");
        }
        value /= 1024.0;
    }
    unreachable!("the last unit always returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("1500m", 2),
            ("1k", 1000),
            ("1Ki", 1024),
            ("1.5Gi", 3 << 29),
            ("0.1Ki", 103),
            ("500Gi", 500 << 30),
            ("8191Pi", 8191 << 50),
        ] {
            assert_eq!(Quantity::from(text).bytes(), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn bad_amounts_are_refused() {
        let pattern = regex::Regex::new(PATTERN).expect("the pattern compiles");
        for text in [
            "", "Gi", "-1Gi", "+1", "1e3", "1E3", "1.", ".5Gi", "1 Gi", "1GiB", "1gi", "1..5", "1.2.3", "٣Gi",
        ] {
            assert!(Quantity::from(text).bytes().is_err(), "{text}");
            assert!(!pattern.is_match(text), "the schema accepts {text}");
        }
        assert!(matches!(Quantity::from("8192Pi").bytes(), Err(QuantityError::TooLarge(_))));
        assert!(Quantity::from("9999999999999999999999Gi").bytes().is_err());
    }

    #[test]
    fn numbers_may_be_unquoted() {
        let read = |json: &str| serde_json::from_str::<Quantity>(json);
        assert_eq!(read("2").unwrap(), Quantity::from("2"));
        assert_eq!(read("\"2Gi\"").unwrap(), Quantity::from("2Gi"));
        assert!(read("-2").is_err());
        assert!(read("1.5").unwrap_err().to_string().contains("quotes"));
    }

    #[test]
    fn bytes_for_people() {
        for (bytes, text) in [
            (0, "0"),
            (900, "900"),
            (1024, "1Ki"),
            (1536, "1.5Ki"),
            (1 << 40, "1Ti"),
            ((1 << 40) - 1, "1Ti"),
            (45_400_000_000, "42.3Gi"),
            (-5, "0"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
