//! Durations as Go writes them (`1h2m3.5s`, `300ms`, `15m0s`), which is what kube-proxy's file and
//! flags contain.
//!
//! Knows nothing of the settings that hold them. Entry point: [`GoDuration`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NANOSECOND: i64 = 1;
const MICROSECOND: i64 = 1_000 * NANOSECOND;
const MILLISECOND: i64 = 1_000 * MICROSECOND;
const SECOND: i64 = 1_000 * MILLISECOND;

/// A signed number of nanoseconds, read and written in the syntax of Go's `time.Duration`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoDuration(i64);

impl GoDuration {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn from_secs(seconds: i64) -> Self {
        Self(seconds * SECOND)
    }

    pub(crate) const fn from_nanos(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// The same span as a standard duration. Negative spans, which validation refuses, become zero.
    pub(crate) fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

/// Why a text is not a Go duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration {0:?}: expected a number with a unit, such as \"1h30m\" or \"500ms\"")]
pub(crate) struct DurationError(String);

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        parse(text)
            .map(Self)
            .ok_or_else(|| DurationError(text.to_owned()))
    }
}

/// Follows `time.ParseDuration`: an optional sign, then either `0` or one or more of
/// number-with-optional-fraction and unit.
fn parse(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (whole, after_whole) = split_digits(rest);
        let (fraction, after_number) = match after_whole.strip_prefix('.') {
            Some(after_point) => split_digits(after_point),
            None => ("", after_whole),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_len = after_number
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after_number.len());
        let (unit, after_unit) = after_number.split_at(unit_len);
        let unit = i128::from(unit_nanoseconds(unit)?);
        if !whole.is_empty() {
            total = total.checked_add(whole.parse::<i128>().ok()?.checked_mul(unit)?)?;
        }
        // Digits beyond the eighteenth are far below a nanosecond even in hours.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
            total += i128::from(fraction.parse::<i64>().ok()?) * unit / scale;
        }
        rest = after_unit;
    }
    i64::try_from(sign * total).ok()
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

fn unit_nanoseconds(unit: &str) -> Option<i64> {
    Some(match unit {
        "ns" => NANOSECOND,
        // The micro sign (U+00B5) and the Greek letter mu (U+03BC) are both in use.
        "us" | "\u{b5}s" | "\u{3bc}s" => MICROSECOND,
        "ms" => MILLISECOND,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3600 * SECOND,
        _ => return None,
    })
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SECOND: u64 = self::SECOND.unsigned_abs();
        const MILLISECOND: u64 = self::MILLISECOND.unsigned_abs();
        const MICROSECOND: u64 = self::MICROSECOND.unsigned_abs();
        let nanoseconds = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanoseconds {
            0 => f.write_str("0s"),
            1..MICROSECOND => write!(f, "{nanoseconds}ns"),
            MICROSECOND..MILLISECOND => write_decimal(f, nanoseconds, MICROSECOND, "\u{b5}s"),
            MILLISECOND..SECOND => write_decimal(f, nanoseconds, MILLISECOND, "ms"),
            _ => {
                let minutes = nanoseconds / (60 * SECOND);
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                write_decimal(f, nanoseconds % (60 * SECOND), SECOND, "s")
            }
        }
    }
}

/// Writes `amount / unit` as a decimal without trailing zeros; `unit` is a power of ten.
fn write_decimal(f: &mut fmt::Formatter<'_>, amount: u64, unit: u64, suffix: &str) -> fmt::Result {
    let (whole, fraction) = (amount / unit, amount % unit);
    if fraction == 0 {
        return write!(f, "{whole}{suffix}");
    }
    let digits = format!("{fraction:0width$}", width = unit.ilog10() as usize);
    write!(f, "{whole}.{}{suffix}", digits.trim_end_matches('0'))
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> GoDuration {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn o_4_reads_go_syntax() {
        let cases = [
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("1h2m3.5s", 3_723_500_000_000),
            ("300ms", 300_000_000),
            ("1.5h", 5_400_000_000_000),
            ("-1.5s", -1_500_000_000),
            ("+5s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("7ns", 7),
            ("7us", 7_000),
            ("7\u{b5}s", 7_000),
            ("7\u{3bc}s", 7_000),
            ("0.3333333333333333333333333h", 1_200_000_000_000 - 1),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
        ];
        for (text, nanoseconds) in cases {
            assert_eq!(parsed(text).0, nanoseconds, "{text}");
        }
    }

    #[test]
    fn o_4_refuses_what_go_refuses() {
        let overflow = "9223372036854775808ns";
        for text in [
            "", "5", "-", "+", "s", ".s", "1d", "1 s", " 1s", "1s ", "1h-2m", overflow,
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?} was read");
        }
    }

    #[test]
    fn o_4_writes_go_syntax() {
        let cases = [
            ("0", "0s"),
            ("15m", "15m0s"),
            ("24h", "24h0m0s"),
            ("90s", "1m30s"),
            ("1h0m0.25s", "1h0m0.25s"),
            ("1.1ms", "1.1ms"),
            ("1us", "1\u{b5}s"),
            ("999ns", "999ns"),
            ("-90s", "-1m30s"),
        ];
        for (text, written) in cases {
            assert_eq!(parsed(text).to_string(), written, "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_duration() {
        let mut nanoseconds: i64 = 1;
        while let Some(next) = nanoseconds.checked_mul(7) {
            for value in [nanoseconds, -nanoseconds, nanoseconds + 1_000_000] {
                assert_eq!(parsed(&GoDuration(value).to_string()).0, value);
            }
            nanoseconds = next;
        }
    }
}
