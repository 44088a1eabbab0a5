//! Quantities with their units in the type: bytes, milli-CPUs, points in time.
//!
//! Parsing follows the Kubernetes quantity grammar (decimal number, optional exponent, suffix
//! `n u m k M G T P E` or `Ki Mi Gi Ti Pi Ei`), exactly, in integers, rounding up.

use std::fmt;

/// Why a quantity was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a quantity at all.
    #[error("{text:?} is not a quantity; write for example '500m', '2', '64Mi' or '1Gi'")]
    Malformed {
        /// The text as given, shortened.
        text: String,
    },
    /// Negative.
    #[error("{text:?} is negative")]
    Negative {
        /// The text as given.
        text: String,
    },
    /// Zero where something is needed.
    #[error("must be more than 0")]
    Zero,
    /// More than can be represented.
    #[error("{text:?} is too large")]
    TooLarge {
        /// The text as given, shortened.
        text: String,
    },
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// Thousandths of one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MilliCpu(pub u64);

/// A point in time: microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMicros(pub i64);

impl Bytes {
    /// That many mebibytes.
    #[must_use]
    pub const fn from_mib(mebibytes: u64) -> Self {
        Self(mebibytes * 1024 * 1024)
    }

    /// Parses a quantity such as `64Mi`.
    ///
    /// # Errors
    /// [`QuantityError`] for anything that is not a non-negative quantity that fits.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse_quantity(text, 0).map(Self)
    }
}

impl MilliCpu {
    /// Parses a CPU quantity such as `250m`, `0.5` or `2`.
    ///
    /// # Errors
    /// [`QuantityError`] for anything that is not a non-negative quantity that fits.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse_quantity(text, 3).map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIXES: [(&str, u64); 4] =
            [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
        match SUFFIXES.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

/// Longest text that is looked at: any real quantity is far shorter.
const LONGEST_TEXT: usize = 64;

/// `text` times 10^`scale`, rounded up.
fn parse_quantity(text: &str, scale: i32) -> Result<u64, QuantityError> {
    let shown = || text.chars().take(LONGEST_TEXT).collect::<String>();
    let malformed = || QuantityError::Malformed { text: shown() };
    if text.is_empty() || text.len() > LONGEST_TEXT {
        return Err(malformed());
    }
    if let Some(rest) = text.strip_prefix('-') {
        let negative = rest.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        return Err(if negative { QuantityError::Negative { text: shown() } } else { malformed() });
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(malformed());
    }
    let (binary_shift, decimal_exponent) = parse_suffix(suffix).ok_or_else(malformed)?;
    let digits = format!("{whole}{fraction}");
    let trimmed = digits.trim_start_matches('0');
    let exponent = decimal_exponent + scale - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let too_large = || QuantityError::TooLarge { text: shown() };
    if trimmed.is_empty() {
        return Ok(0);
    }
    let mantissa: u128 = trimmed.parse().map_err(|_| too_large())?;
    let shifted = mantissa
        .checked_mul(1_u128.checked_shl(binary_shift).ok_or_else(too_large)?)
        .ok_or_else(too_large)?;
    let value = if exponent >= 0 {
        let factor = 10_u128.checked_pow(exponent.unsigned_abs()).ok_or_else(too_large)?;
        shifted.checked_mul(factor).ok_or_else(too_large)?
    } else {
        match 10_u128.checked_pow(exponent.unsigned_abs()) {
            Some(divisor) => shifted.div_ceil(divisor),
            None => 1,
        }
    };
    // i64::MAX is the largest value that every consumer (kernel files, JSON clients) takes.
    u64::try_from(value).ok().filter(|v| i64::try_from(*v).is_ok()).ok_or_else(too_large)
}

/// (power of two, power of ten) of a suffix.
fn parse_suffix(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            return exponent.parse::<i32>().ok().filter(|e| e.abs() <= 1000).map(|e| (0, e));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_mean_what_kubernetes_says() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("1k", 1000),
            ("1e3", 1000),
            ("1E3", 1000),
            ("100m", 1),
            ("0.1", 1),
            ("+5", 5),
        ] {
            assert_eq!(Bytes::parse(text), Ok(Bytes(bytes)), "{text}");
        }
        for (text, milli) in [("250m", 250), ("0.5", 500), ("2", 2000), (".25", 250), ("1u", 1)] {
            assert_eq!(MilliCpu::parse(text), Ok(MilliCpu(milli)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_right_word() {
        assert!(matches!(Bytes::parse("-1"), Err(QuantityError::Negative { .. })));
        assert!(matches!(Bytes::parse("1e400"), Err(QuantityError::TooLarge { .. })));
        assert!(matches!(Bytes::parse("16Ei"), Err(QuantityError::TooLarge { .. })));
        for bad in ["", "x", "1.2.3", "1 Mi", "Mi", "1mi", "1e", "--1", "NaN", &"9".repeat(65)] {
            assert!(matches!(Bytes::parse(bad), Err(QuantityError::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn display_reads_back() {
        for text in ["64Mi", "1Gi", "1000", "3Ki"] {
            assert_eq!(Bytes::parse(text).map(|b| b.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(MilliCpu(1500).to_string(), "1500m");
        assert_eq!(MilliCpu(2000).to_string(), "2");
    }
}
