//! Text that is safe and right to print: output of steps without its control sequences, widths, sizes, times.

use std::time::Duration;

use unicode_width::UnicodeWidthChar;

/// Longer lines are cut into several: a step that never writes a line end must not fill the memory.
const LONGEST_LINE: usize = 64 * 1024;
const TAB: usize = 8;

/// Where in a terminal control sequence the output of a step is (ECMA-48, 5.4 to 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    None,
    Escape,
    /// After `ESC [`.
    Control,
    /// In an operating system command or another string, until BEL or `ESC \`.
    String,
    StringEscape,
}

/// Cuts the output of a step, which comes in pieces of any bytes, into lines of harmless text.
///
/// Control sequences are left out. A carriage return starts the line over, so that of a progress bar its last state
/// remains, as on a terminal.
#[derive(Debug)]
pub(crate) struct Lines {
    sequence: Sequence,
    /// The first bytes of a character that is not complete.
    partial: Vec<u8>,
    line: String,
    column: usize,
    /// A carriage return came: what comes next replaces the line.
    start_over: bool,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self {
            sequence: Sequence::None,
            partial: Vec::new(),
            line: String::new(),
            column: 0,
            start_over: false,
        }
    }

    /// Takes the next piece and gives every line that it completes.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for &byte in bytes {
            self.byte(byte, &mut line);
        }
    }

    /// The line that is not complete yet; empty when there is none.
    pub(crate) fn unfinished(&self) -> &str {
        &self.line
    }

    /// Ends the line that is not complete, if there is one.
    pub(crate) fn end(&mut self) -> Option<String> {
        self.broken_character();
        self.sequence = Sequence::None;
        (!self.line.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        self.column = 0;
        self.start_over = false;
        std::mem::take(&mut self.line)
    }

    fn byte(&mut self, byte: u8, line: &mut impl FnMut(String)) {
        if byte == b'\n' {
            // Also ends a sequence: a string that nobody closes must not swallow all that follows.
            self.broken_character();
            self.sequence = Sequence::None;
            line(self.take());
            return;
        }
        match self.sequence {
            Sequence::None => self.text(byte, line),
            Sequence::Escape => {
                self.sequence = match byte {
                    b'[' => Sequence::Control,
                    b']' | b'P' | b'X' | b'^' | b'_' => Sequence::String,
                    // Intermediate bytes, as in `ESC ( B`.
                    0x20..=0x2f => Sequence::Escape,
                    _ => Sequence::None,
                }
            }
            Sequence::Control => match byte {
                0x20..=0x3f => {}
                0x40..=0x7e => {
                    self.sequence = Sequence::None;
                    // Programs that draw bars go to the line's start with either of the two.
                    self.start_over |= byte == b'G';
                }
                _ => {
                    self.sequence = Sequence::None;
                    self.text(byte, line);
                }
            },
            Sequence::String => match byte {
                0x07 | 0x18 | 0x1a => self.sequence = Sequence::None,
                0x1b => self.sequence = Sequence::StringEscape,
                _ => {}
            },
            Sequence::StringEscape => {
                self.sequence = if byte == b'\\' {
                    Sequence::None
                } else {
                    Sequence::String
                };
            }
        }
    }

    fn text(&mut self, byte: u8, line: &mut impl FnMut(String)) {
        let continues = byte & 0xc0 == 0x80;
        if !continues {
            self.broken_character();
        }
        match byte {
            0x1b => self.sequence = Sequence::Escape,
            b'\r' => self.start_over = true,
            0x08 => {
                if !self.start_over && self.line.pop().is_some() {
                    self.column -= 1;
                }
            }
            b'\t' => {
                let stop = if self.start_over {
                    TAB
                } else {
                    TAB - self.column % TAB
                };
                for _ in 0..stop {
                    self.push(' ');
                }
            }
            0x20..=0x7e => self.push(byte as char),
            0..0x80 => {}
            0x80.. => {
                self.partial.push(byte);
                match std::str::from_utf8(&self.partial) {
                    Ok(text) => {
                        let char = text.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
                        self.partial.clear();
                        if harmless(char) {
                            self.push(char);
                        }
                    }
                    Err(error) if error.error_len().is_some() => self.broken_character(),
                    Err(_) => {}
                }
            }
        }
        if self.line.len() >= LONGEST_LINE {
            line(self.take());
        }
    }

    fn broken_character(&mut self) {
        if !self.partial.is_empty() {
            self.partial.clear();
            self.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn push(&mut self, char: char) {
        if self.start_over {
            self.take();
        }
        self.line.push(char);
        self.column += 1;
    }
}

/// Neither a control character nor one that reorders the text around it.
fn harmless(char: char) -> bool {
    !char.is_control() && !matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text from outside on one line: white space becomes a space, what is not harmless is left out.
pub(crate) fn one_line(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|char| if char.is_whitespace() { ' ' } else { char })
        .filter(|char| harmless(*char))
        .collect()
}

/// A text from outside as harmless lines; at least one.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut cutter = Lines::new();
    cutter.feed(text.trim_end().as_bytes(), |line| lines.push(line));
    if let Some(line) = cutter.end() {
        lines.push(line);
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

/// Terminal columns of a text, counted by character: a terminal that joins emoji sequences needs less, none needs more.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(|char| char.width().unwrap_or(0)).sum()
}

/// The text, cut to a number of columns; what was cut ends in `...` if there is room.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let dots = if columns > 6 { "..." } else { "" };
    let mut left = columns - dots.len();
    let mut cut = String::new();
    for char in text.chars() {
        let Some(rest) = left.checked_sub(char.width().unwrap_or(0)) else {
            break;
        };
        left = rest;
        cut.push(char);
    }
    cut + dots
}

/// `12B`, `3.20MB`: powers of 1000, as Docker's tools write sizes.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2}{}", UNITS[unit])
}

/// ` 1.20MB / 3.40MB`, ` 1.20MB` or nothing: what stands behind a status row's name.
pub(crate) fn amount(current: u64, total: u64) -> String {
    match (current, total) {
        (0, 0) => String::new(),
        (_, 0) => format!(" {}", bytes(current)),
        _ => format!(" {} / {}", bytes(current), bytes(total)),
    }
}

/// ` 1.20MB/s`: how fast a transfer goes that is under way; nothing where that cannot be told yet.
pub(crate) fn rate(current: u64, total: u64, time: Duration) -> String {
    if current == 0 || total == 0 || time < Duration::from_secs(1) {
        return String::new();
    }
    format!(" {}/s", bytes((current as f64 / time.as_secs_f64()) as u64))
}

/// `4.8s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// The time in front of a line of output: always about five characters.
pub(crate) fn log_time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..10.0 => format!("{seconds:.3}"),
        ..100.0 => format!("{seconds:.2}"),
        _ => format!("{seconds:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut cutter = Lines::new();
        for piece in pieces {
            cutter.feed(piece, |line| lines.push(line));
        }
        lines.extend(cutter.end());
        lines
    }

    #[test]
    fn output_becomes_lines_of_text() {
        let table: [(&[&[u8]], &[&str]); 17] = [
            (&[b"a\nb\n"], &["a", "b"]),
            (&[b"a\r\nb"], &["a", "b"]),
            (&[b"a", b"b\n\n"], &["ab", ""]),
            (&[b"10%\r20%\r100%\ndone"], &["100%", "done"]),
            (&[b"long line\rx\n"], &["x"]),
            (&[b"\x1b[1;31mred\x1b[0m \x1b[38;5;9mx\n"], &["red x"]),
            (&[b"\x1b[", b"2J\x1b[Hx"], &["x"]),
            (&[b"\x1b]0;title\x07x\x1b]8;;http://a\x1b\\y"], &["xy"]),
            (&[b"\x1b]never closed\nx"], &["", "x"]),
            (&[b"\x1b(Bx\x1bcy"], &["xy"]),
            (&[b"abc\x08\x08d\x07\x00"], &["ad"]),
            (&[b"a\tb\t\tc"], &["a       b               c"]),
            (
                &[b"\xc3", b"\xa4\xff\xe2\x82\n\xe2\x82\xac"],
                &["\u{e4}\u{fffd}\u{fffd}", "\u{20ac}"],
            ),
            (&[b"\xc2\x9b2Jx"], &["2Jx"]),
            (&["a\u{202e}b".as_bytes()], &["ab"]),
            (&[b"old\x1b[1Gnew\n"], &["new"]),
            (&[b"\x1b[3\x1b[1mx"], &["x"]),
        ];
        for (pieces, lines) in table {
            assert_eq!(cut(pieces), lines, "{pieces:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let lines = cut(&[&vec![b'x'; 3 * LONGEST_LINE / 2]]);
        assert_eq!(
            lines.iter().map(String::len).collect::<Vec<_>>(),
            [LONGEST_LINE, LONGEST_LINE / 2]
        );
    }

    #[test]
    fn sizes_and_times() {
        for (count, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (3_200_000, "3.20MB"),
            (999_999, "1.00MB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (millis, text) in [(312, "0.312"), (12_345, "12.35"), (123_456, "123.5")] {
            assert_eq!(log_time(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn rates() {
        let after = |millis| rate(3_000_000, 9_000_000, Duration::from_millis(millis));
        assert_eq!(after(999), "");
        assert_eq!(after(1500), " 2.00MB/s");
        assert_eq!(rate(3, 0, Duration::from_secs(3)), "");
    }

    #[test]
    fn texts_are_cut_by_columns() {
        for (text, columns, cut) in [
            ("RUN make", 8, "RUN make"),
            ("RUN make", 7, "RUN ..."),
            ("RUN make", 3, "RUN"),
            ("\u{4f60}\u{597d}\u{4f60}\u{597d}", 7, "\u{4f60}\u{597d}..."),
            ("\u{4f60}\u{597d}\u{4f60}\u{597d}", 3, "\u{4f60}"),
            ("x", 0, ""),
        ] {
            assert_eq!(fit(text, columns), cut, "{text:?} in {columns}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_harmless_text(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            for line in cut(&pieces) {
                prop_assert!(line.chars().all(harmless), "{line:?}");
            }
            prop_assert_eq!(cut(&pieces), cut(&[&pieces.concat()]));
        }

        #[test]
        fn cut_text_fits(text in ".*", columns in 0usize..40) {
            prop_assert!(width(&fit(&text, columns)) <= columns);
        }
    }
}
