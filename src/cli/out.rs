//! What commands print: lines for people, JSON for programs.
//!
//! Floor 5. Everything goes through one buffer; a reader that has seen enough ends the command
//! without a word.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, Stdout, Write};

use helios::id::ObjectId;
use serde::Serialize;

/// Digits of an id in tables.
const SHORT_DIGITS: usize = 12;

/// Standard output.
pub(super) struct Out {
    to: BufWriter<Stdout>,
    /// Programs read it.
    pub(super) json: bool,
}

impl Out {
    pub(super) fn new(json: bool) -> Self {
        Self {
            to: BufWriter::new(io::stdout()),
            json,
        }
    }

    /// A line for people.
    pub(super) fn line(&mut self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(self.to, "{text}")
    }

    /// An object for programs, on a line of its own.
    pub(super) fn object(&mut self, object: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.to, object).map_err(io::Error::from)?;
        self.to.write_all(b"\n")?;
        Ok(())
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)
    }

    /// Writes out what is buffered: the last of a command.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Whether an error is that nobody reads what we print.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Bytes as text: as they are where a terminal shows them as one line, else with escapes.
pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.contains(char::is_control) => Cow::Borrowed(text),
        _ => Cow::Owned(format!("\"{}\"", bytes.escape_ascii())),
    }
}

/// Bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes for programs: as text if they are UTF-8, else in hexadecimal digits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bytes {
    Text(String),
    Hex(String),
}

impl Bytes {
    pub(super) fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex(hex(bytes)),
        }
    }
}

/// The beginning of an id: enough to tell it, and to write it.
pub(super) fn short(id: &ObjectId) -> String {
    let mut text = id.to_string();
    text.truncate(SHORT_DIGITS);
    text
}

/// A number of bytes.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A noun with its number.
pub(super) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Milliseconds since 1970 as a date, in UTC.
pub(super) fn date(wall_ms: u64) -> String {
    let (seconds, ms) = (wall_ms / 1000, wall_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the day that comes and goes is the last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let dates = [
            (0, "1970-01-01 00:00:00.000 UTC"),
            (951_782_400_001, "2000-02-29 00:00:00.001 UTC"),
            (951_868_799_999, "2000-02-29 23:59:59.999 UTC"),
            (1_709_251_199_000, "2024-02-29 23:59:59.000 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000 UTC"),
        ];
        for (wall_ms, text) in dates {
            assert_eq!(date(wall_ms), text);
        }
    }

    #[test]
    fn keys_are_shown_so_that_nothing_is_mistaken() {
        let shown = [
            (&b"notes/1"[..], "notes/1"),
            ("später".as_bytes(), "später"),
            (b"", "\"\""),
            (b"a\nb", "\"a\\nb\""),
            (b"\xff\x00", "\"\\xff\\x00\""),
        ];
        for (key, wanted) in shown {
            assert_eq!(text(key), wanted);
        }
    }
}
