//! How things are shown: sizes, times, ids, tables.

use std::io::Write;
use std::time::{Duration, SystemTime};

/// Writes a line to standard output. A closed pipe ends the program quietly, as with every other tool.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes a whole text to standard output, as [`say`] does a line.
pub(crate) fn say_all(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written.is_err() {
        std::process::exit(0);
    }
}

/// Writes a line to standard error.
pub(crate) fn complain(text: &str) {
    // There is nobody left to tell.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A size as docker shows it in most places: three significant digits, powers of 1000.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes, 3)
}

/// A size with four significant digits, as docker shows sums.
pub(crate) fn size4(bytes: u64) -> String {
    scaled(bytes, 4)
}

fn scaled(bytes: u64, significant: usize) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < 5 {
        value /= 1000.0;
        unit += 1;
    }
    let unit = ["B", "kB", "MB", "GB", "TB", "PB"][unit];
    let whole = match value {
        v if v >= 100.0 => 3,
        v if v >= 10.0 => 2,
        _ => 1,
    };
    let digits = significant.saturating_sub(whole);
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{unit}")
}

/// A time as Go shows it, in this machine's zone: `2026-11-21 16:28:21 +0000 UTC`.
pub(crate) fn local_time(time: SystemTime) -> String {
    zoned(time, "%Y-%m-%d %H:%M:%S %z %Z")
}

/// A time as programs read it, in this machine's zone: `2026-11-21T16:28:21Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let text = zoned(time, "%Y-%m-%dT%H:%M:%S%:z");
    match text.strip_suffix("+00:00") {
        Some(text) => format!("{text}Z"),
        None => text,
    }
}

fn zoned(time: SystemTime, format: &str) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    let time = time.to_zoned(jiff::tz::TimeZone::system());
    time.strftime(format).to_string()
}

/// How long ago, in docker's words.
pub(crate) fn ago(then: SystemTime) -> String {
    let past = SystemTime::now()
        .duration_since(then)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (minutes, hours) = (past / 60, (past + 1800) / 3600);
    let text = match past {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{past} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 46 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    };
    format!("{text} ago")
}

/// The first twelve digits of a digest.
pub(crate) fn short(digest: &kiln_image::Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// A table as docker prints it: columns at least ten wide and three blanks apart, headings in capitals.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) {
    let mut lines = vec![heads.join("\t")];
    lines.extend(rows.iter().map(|row| row.join("\t")));
    crate::listing::say_aligned(&lines);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_dockers() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1536, "1.54kB"),
            (12_345_678, "12.3MB"),
            (123_456_789, "123MB"),
            (1_234_567_890, "1.23GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size4(1_982_599), "1.983MB");
        assert_eq!(size4(8_688_000_000), "8.688GB");
        assert_eq!(size4(0), "0B");
    }

    #[test]
    fn times_read_as_dockers() {
        let past = |seconds| ago(SystemTime::now() - Duration::from_secs(seconds));
        for (seconds, text) in [
            (0, "Less than a second ago"),
            (5, "5 seconds ago"),
            (90, "About a minute ago"),
            (600, "10 minutes ago"),
            (3500, "About an hour ago"),
            (7300, "2 hours ago"),
            (86400 * 3, "3 days ago"),
            (86400 * 21, "3 weeks ago"),
            (86400 * 100, "3 months ago"),
        ] {
            assert_eq!(past(seconds), text);
        }
    }
}
