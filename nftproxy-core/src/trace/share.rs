//! Exact parts of a whole.

use std::fmt;

/// A part of all new connections, as a fraction in lowest terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    numerator: u64,
    denominator: u64,
}

impl Share {
    /// One of `n`, where 0 counts as 1.
    pub fn one_in(n: u64) -> Self {
        Self {
            numerator: 1,
            denominator: n.max(1),
        }
    }

    /// What stands above the line.
    pub fn numerator(self) -> u64 {
        self.numerator
    }

    /// What stands below the line; never 0.
    pub fn denominator(self) -> u64 {
        self.denominator
    }

    /// The sum of two parts.
    pub(super) fn plus(self, other: Self) -> Self {
        let [a, b, c, d] = [
            self.numerator,
            self.denominator,
            other.numerator,
            other.denominator,
        ]
        .map(u128::from);
        let (numerator, denominator) = (a * d + c * b, b * d);
        let divisor = gcd(numerator, denominator);
        let lowest = |n: u128| u64::try_from(n / divisor).unwrap_or(u64::MAX);
        Self {
            numerator: lowest(numerator),
            denominator: lowest(denominator),
        }
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denominator == 1 {
            write!(f, "{}", self.numerator)
        } else {
            write!(f, "{}/{}", self.numerator, self.denominator)
        }
    }
}
