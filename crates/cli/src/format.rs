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

/// A size as docker shows it: four significant digits, powers of 1000.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < 5 {
        value /= 1000.0;
        unit += 1;
    }
    let unit = ["B", "kB", "MB", "GB", "TB", "PB"][unit];
    let digits: usize = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{unit}")
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

/// A line for each row, of a template with docker's fields: `{{.Name}}`. `json` gives objects; `table` before a template
/// is passed over.
pub(crate) fn by_template(format: &str, rows: &[Vec<(&str, String)>]) -> anyhow::Result<()> {
    let template = format.strip_prefix("table").map_or(format, str::trim_start);
    for row in rows {
        if format == "json" || template.replace(' ', "") == "{{json.}}" {
            let object: serde_json::Map<_, _> = row
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
                .collect();
            say(&serde_json::Value::Object(object).to_string());
            continue;
        }
        let mut line = template.replace("\\t", "\t");
        for (name, value) in row {
            line = line
                .replace(&format!("{{{{.{name}}}}}"), value)
                .replace(&format!("{{{{ .{name} }}}}"), value);
        }
        if let Some(start) = line.find("{{") {
            let names: Vec<_> = row.iter().map(|(name, _)| *name).collect();
            anyhow::bail!(
                "--format: {:?}: expected one of {}",
                &line[start..],
                names.join(", ")
            );
        }
        say(&line);
    }
    Ok(())
}

/// The first twelve digits of a digest.
pub(crate) fn short(digest: &kiln_image::Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// A table as docker prints it: columns three blanks apart, headings in capitals.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (at, cell) in cells.enumerate() {
            text.push_str(cell);
            let pad = widths[at].saturating_sub(cell.chars().count()) + 3;
            if at + 1 < widths.len() {
                text.extend(std::iter::repeat_n(' ', pad));
            }
        }
        say(&text);
    };
    line(&mut heads.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
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
