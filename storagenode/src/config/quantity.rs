//! Amounts of bytes as Kubernetes writes them: `100Gi`, `1.5T`, `42`.

const UNITS: &[(&str, u64)] = &[
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// Less would not even hold two segments.
const MIN_BYTES: u64 = 1 << 20;

pub(super) fn parse(text: &str) -> Result<u64, String> {
    let malformed = || {
        format!(
            "{text:?} is no amount of bytes: use a number with Ki, Mi, Gi, Ti, k, M, G or T, such as 100Gi"
        )
    };
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return Err(malformed());
    }
    let whole: u128 = whole.parse().map_err(|_| malformed())?;
    let parts: u128 = format!("{fraction:0<9}").parse().map_err(|_| malformed())?;
    let bytes = whole * u128::from(factor) + parts * u128::from(factor) / 1_000_000_000;
    match u64::try_from(bytes) {
        Ok(bytes @ MIN_BYTES..) => Ok(bytes),
        Ok(bytes) => {
            Err(format!("{text} ({bytes} bytes) is too little for a node; did you leave the unit out?"))
        }
        Err(_) => Err(format!("{text} is more than any disk")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("100Gi", 100 << 30),
            ("1.5Gi", 3 << 29),
            ("20M", 20_000_000),
            ("2000000", 2_000_000),
            ("0.5T", 500_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "Gi",
            "-1Gi",
            "1 Gi",
            "1gi",
            "1e9x",
            "1.2.3Gi",
            "100",
            "99999999999Ei",
            "0x10",
            "+1Gi",
            ".5Gi",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
