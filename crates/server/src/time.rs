//! The wall clock as the API shows it: RFC 3339, UTC, always six digits of a second, so that text order is time order.

use std::time::Duration;

use atoll_model::units::UnixMicros;

/// Now.
pub(crate) fn now() -> UnixMicros {
    UnixMicros(atoll_sys::clock::unix_micros())
}

/// Now, as text.
pub(crate) fn now_text() -> String {
    text(now())
}

/// So long after that.
pub(crate) fn after(then: UnixMicros, span: Duration) -> UnixMicros {
    let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    UnixMicros(then.0.saturating_add(micros))
}

/// A time as text. What lies outside jiff's range (years -9999 to 9999) is shown as its bound.
pub(crate) fn text(time: UnixMicros) -> String {
    let shown = jiff::Timestamp::from_microsecond(time.0).unwrap_or(if time.0 < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    });
    format!("{shown:.6}")
}

/// Reads a time.
pub(crate) fn parse(text: &str) -> Option<UnixMicros> {
    text.parse::<jiff::Timestamp>().ok().map(|time| UnixMicros(time.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_and_sort_as_text() {
        let times = [0, 1, 999_999, 1_000_000, 1_767_225_600_000_000, 1_767_225_600_100_000]
            .map(UnixMicros);
        let texts = times.map(text);
        assert_eq!(texts[0], "1970-01-01T00:00:00.000000Z");
        assert!(texts.is_sorted());
        assert!(texts.iter().zip(times).all(|(text, time)| parse(text) == Some(time)));
        assert!(!text(UnixMicros(i64::MAX)).is_empty());
    }
}
