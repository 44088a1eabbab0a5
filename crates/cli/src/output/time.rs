//! Times and sizes as people read them.

use jiff::Timestamp;

/// How long ago an RFC 3339 time was: `5s`, `3m12s`, `4h`, `2d`. `-` for what cannot be read.
pub(crate) fn age_since(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else {
        return "-".to_owned();
    };
    let seconds = now.duration_since(then).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..7_200 => format!("{minutes}m"),
        7_200..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// Microseconds with a fitting unit and three digits: `812 µs`, `3.41 ms`, `1.25 s`.
pub(crate) fn human_micros(micros: u64) -> String {
    let micros_f = micros as f64;
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.2} ms", micros_f / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", micros_f / 1e3),
        _ => format!("{:.2} s", micros_f / 1e6),
    }
}

/// Bytes with a binary unit: `512 B`, `1.4 MiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_few_digits() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (time, expected) in [
            ("2026-01-01T23:59:55.5Z", "4s"),
            ("2026-01-01T23:56:48Z", "3m12s"),
            ("2026-01-01T23:00:00Z", "60m"),
            ("2026-01-01T00:00:00Z", "24h"),
            ("2025-12-01T00:00:00Z", "32d"),
            ("2026-01-03T00:00:00Z", "0s"),
            ("soon", "-"),
        ] {
            assert_eq!(age_since(time, now), expected, "{time}");
        }
    }

    #[test]
    fn sizes_and_durations_fit_their_unit() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1_500_000), "1.4 MiB");
        assert_eq!(human_micros(812), "812 µs");
        assert_eq!(human_micros(3_412), "3.41 ms");
        assert_eq!(human_micros(1_250_000), "1.25 s");
    }
}
