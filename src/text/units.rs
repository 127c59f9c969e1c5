//! Numbers formatted for people.

use std::time::Duration;

/// Bytes with a binary unit and three significant digits, such as `3.56 MiB`.
#[must_use]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A whole number with thin groups of three digits: `8,393,216`.
#[must_use]
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number and a noun in the form that fits it: `1 tensor`, `2 tensors`.
#[must_use]
pub(crate) fn counted(count: usize, noun: &str) -> String {
    let number = grouped(count as u64);
    if count == 1 { format!("{number} {noun}") } else { format!("{number} {noun}s") }
}

/// A duration in one unit that fits it: `0.41 s`, `12.3 s`, `4 min 5 s`.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command shows it"))]
#[must_use]
pub(crate) fn seconds(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    match seconds {
        _ if seconds < 9.995 => format!("{seconds:.2} s"),
        _ if seconds < 99.95 => format!("{seconds:.1} s"),
        _ if seconds < 3600.0 => format!("{} min {} s", took.as_secs() / 60, took.as_secs() % 60),
        _ => format!("{} h {} min", took.as_secs() / 3600, took.as_secs() % 3600 / 60),
    }
}

/// A value of JSON; of a number without a fraction of zero, as in 50 for 50.0.
#[must_use]
pub(crate) fn number(value: &serde_json::Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |number| number.to_string())
}

/// Decibels with one digit, or why there are none.
#[must_use]
pub(crate) fn decibels(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1} dB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(3_734_312), "3.56 MiB");
        assert_eq!(bytes(1 << 40), "1.00 TiB");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(counted(1, "tensor"), "1 tensor");
        assert_eq!(counted(2, "tensor"), "2 tensors");
        let took = |millis| seconds(Duration::from_millis(millis));
        assert_eq!([took(414), took(12_345), took(245_000)], ["0.41 s", "12.3 s", "4 min 5 s"]);
        assert_eq!(took(7_500_000), "2 h 5 min");
    }
}
