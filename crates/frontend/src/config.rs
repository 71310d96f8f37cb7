//! The image's config: history lines as `BuildKit` writes them, ports, signals.

use std::fmt::Write as _;

use kiln_dockerfile::Healthcheck;
use kiln_image::config::History;

/// The comment of every history line, `BuildKit`'s own, which tools look for.
pub(crate) const COMMENT: &str = "buildkit.dockerfile.v0";

/// A history line.
pub(crate) fn history(created_by: String, layer: bool, epoch: Option<i64>) -> History {
    History {
        created: epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()),
        created_by,
        comment: COMMENT.to_owned(),
        empty_layer: !layer,
        ..History::default()
    }
}

/// A list in Go's `%q`: quoted strings between brackets, with blanks.
pub(crate) fn quoted_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quote(item)).collect();
    format!("[{}]", quoted.join(" "))
}

/// A list in Go's `%v`.
pub(crate) fn plain_list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// Go's `strconv.Quote`.
fn quote(text: &str) -> String {
    quote_with('"', text.chars())
}

/// Go's `strconv.Quote` and `strconv.QuoteRune`, which differ in the mark only.
fn quote_with(mark: char, text: impl Iterator<Item = char>) -> String {
    // Writing into a string cannot fail.
    let mut quoted = String::from(mark);
    for char in text {
        match char {
            char if char == mark || char == '\\' => quoted.extend(['\\', char]),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            char if (char as u32) < 0x20 || char == '\u{7f}' => {
                let _ = write!(quoted, "\\x{:02x}", char as u32);
            }
            char if char.is_control() || (char.is_whitespace() && char != ' ') => {
                let _ = write!(quoted, "\\u{:04x}", char as u32);
            }
            char => quoted.push(char),
        }
    }
    quoted.push(mark);
    quoted
}

/// A health check in Go's `%q`, which makes a character of the number of retries.
pub(crate) fn healthcheck_text(check: &Healthcheck) -> String {
    let retries = u32::try_from(check.retries).ok().and_then(char::from_u32);
    format!(
        "&{{{} \"{}\" \"{}\" \"{}\" \"{}\" {}}}",
        quoted_list(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        quote_with(
            '\'',
            std::iter::once(retries.unwrap_or(char::REPLACEMENT_CHARACTER))
        ),
    )
}

/// Go's `time.Duration.String`.
fn duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let decimal = |whole: u64, rest: u64, digits: usize| {
        let fraction = format!("{rest:0digits$}");
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() {
            whole.to_string()
        } else {
            format!("{whole}.{fraction}")
        }
    };
    let text = match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}\u{b5}s", decimal(nanos / 1_000, nanos % 1_000, 3)),
        1_000_000..1_000_000_000 => {
            format!("{}ms", decimal(nanos / 1_000_000, nanos % 1_000_000, 6))
        }
        _ => {
            let seconds = nanos / 1_000_000_000;
            let last = decimal(seconds % 60, nanos % 1_000_000_000, 9);
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => format!("{last}s"),
                (0, minutes) => format!("{minutes}m{last}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{last}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// What an EXPOSE argument says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exposed {
    /// `80/tcp`, one per port of a range.
    pub ports: Vec<String>,
    /// The protocol was not in lower case.
    pub odd_case: bool,
    /// There was more than a port and a protocol: an address, a port of the host.
    pub mapping: bool,
}

/// Reads an argument of EXPOSE.
pub(crate) fn expose(text: &str) -> Result<Exposed, String> {
    let (rest, written) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = written.to_lowercase();
    if rest.is_empty() {
        return Err(format!("invalid port: {text:?}: no port specified"));
    }
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {written}"));
    }
    let (mapping, range) = match rest.rsplit_once(':') {
        Some((_, range)) => (true, range),
        None => (false, rest),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let port = |digits: &str| {
        digits
            .parse::<u16>()
            .map_err(|_| format!("invalid containerPort: {range}"))
    };
    let (first, last) = (port(first)?, port(last)?);
    if last < first {
        return Err(format!("invalid range specified for port: {range}"));
    }
    let ports = (first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect();
    Ok(Exposed {
        ports,
        odd_case: protocol != written,
        mapping,
    })
}

/// Whether a text names a signal: a number, or a name with or without `SIG`.
pub(crate) fn is_signal(text: &str) -> bool {
    const NAMES: &[&str] = &[
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT",
        "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM",
        "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
        "RTMIN", "RTMAX",
    ];
    if let Ok(number) = text.parse::<i32>() {
        return number != 0;
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let realtime = |prefix: &str, limit: u32| {
        name.strip_prefix(prefix)
            .and_then(|offset| offset.parse::<u32>().ok())
            .is_some_and(|offset| (1..=limit).contains(&offset))
    };
    NAMES.contains(&name) || realtime("RTMIN+", 15) || realtime("RTMAX-", 14)
}
