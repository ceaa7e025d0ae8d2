//! Sizes and durations as an operator writes them: `32KiB`, `1ms`.
//!
//! Floor 0, part of `config`. Units are spelled one way only, so that `MB` and `m` are refused
//! instead of guessed at. Whole numbers only.

use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 3] = [("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// A size in bytes from text like `64MiB`; `None` if it is not one, or does not fit 64 bits.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZE_UNITS)
}

/// A duration from text like `250us`, `1ms` or `2s`; `None` if it is not one.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATION_UNITS).map(Duration::from_micros)
}

/// A size in the largest unit that keeps it whole: what [`parse_size`] reads back.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    text(bytes, &SIZE_UNITS)
}

/// A duration in the largest unit that keeps it whole, to the microsecond.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    text(
        u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        &DURATION_UNITS,
    )
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

fn text(number: u64, units: &[(&str, u64)]) -> String {
    let smallest = units[units.len() - 1];
    let whole = |&&(_, scale): &&(&str, u64)| number != 0 && number.is_multiple_of(scale);
    let (name, scale) = units.iter().find(whole).copied().unwrap_or(smallest);
    format!("{}{name}", number / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_whole_numbers_with_a_unit_are_sizes() {
        assert_eq!(parse_size("0B"), Some(0));
        assert_eq!(parse_size("8KiB"), Some(8192));
        assert_eq!(parse_size("8 KiB"), Some(8192));
        assert_eq!(parse_size("16777215TiB"), Some(16_777_215 << 40));
        for text in [
            "",
            "8",
            "KiB",
            "8KB",
            "8kib",
            "8K",
            "8M",
            "-8KiB",
            "+8KiB",
            " 8KiB",
            "8  KiB",
            "8KiB ",
            "1.5MiB",
            "0x8KiB",
            "5 pounds",
            "16777216TiB",
            "99999999999999999999B",
            "８KiB",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_whole_numbers_with_a_unit_are_durations() {
        assert_eq!(parse_duration("0us"), Some(Duration::ZERO));
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        for text in ["", "0", "1m", "1min", "1µs", "1ns", "1.5ms", "fast"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
        assert_eq!(duration_text(Duration::ZERO), "0us");
        assert_eq!(duration_text(Duration::from_micros(1500)), "1500us");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes: u64, shift in 0..50u32) {
            let bytes = bytes >> shift << (shift % 41);
            prop_assert_eq!(parse_size(&size_text(bytes)), Some(bytes));
            let duration = Duration::from_micros(bytes);
            prop_assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }
    }
}
