//! What was measured, as rows of a Markdown table.

use std::fmt::{self, Display, Formatter, Write as _};
use std::time::Duration;

use super::measure::{Taken, median};

/// A scenario's figures.
#[derive(Debug)]
pub(super) struct Row {
    about: &'static str,
    /// Each side's name and runs, Kiln's first.
    pub(super) sides: Vec<(&'static str, Vec<Taken>)>,
    /// What the machine itself needs, and how long that took.
    pub(super) machine: Option<(&'static str, Vec<Duration>)>,
}

impl Row {
    /// A row without figures.
    pub(super) fn new(about: &'static str, sides: impl Iterator<Item = &'static str>) -> Self {
        Self {
            about,
            sides: sides.map(|name| (name, Vec::new())).collect(),
            machine: None,
        }
    }

    fn kiln(&self) -> Option<Duration> {
        wall(&self.sides.first()?.1)
    }
}

fn wall(runs: &[Taken]) -> Option<Duration> {
    median(runs.iter().map(|taken| taken.wall))
}

/// `12.3 ms`, `4.56 s`.
fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        0.0..0.01 => format!("{:.2} ms", seconds * 1e3),
        0.01..0.1 => format!("{:.1} ms", seconds * 1e3),
        0.1..1.0 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

fn ratio(of: Duration, to: Duration) -> f64 {
    of.as_secs_f64() / to.as_secs_f64().max(1e-9)
}

fn megabytes(bytes: u64) -> String {
    let megabytes = bytes / 100_000;
    format!("{}.{} MB", megabytes / 10, megabytes % 10)
}

impl Display for Row {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "| {} |", self.about)?;
        let kiln = self.kiln().unwrap_or_default();
        write!(out, " {} |", time(kiln))?;
        for (_, runs) in self.sides.iter().skip(1) {
            match wall(runs) {
                Some(peer) => write!(out, " {} ({:.1}x) |", time(peer), ratio(peer, kiln))?,
                None => write!(out, " |")?,
            }
        }
        let machine = self.machine.as_ref();
        match machine.and_then(|(what, times)| Some((what, median(times.iter().copied())?))) {
            Some((what, limit)) => {
                write!(
                    out,
                    " {what}: {} ({:.2}) |",
                    time(limit),
                    ratio(kiln, limit)
                )?;
            }
            None => write!(out, " |")?,
        }
        let peak = self
            .sides
            .first()
            .and_then(|(_, runs)| runs.iter().map(|it| it.peak).max());
        write!(out, " {} |", megabytes(peak.unwrap_or_default()))?;
        let written = self.sides.iter().map(|(_, runs)| {
            let written = median(runs.iter().filter_map(|taken| taken.written));
            written.map_or_else(|| "-".to_owned(), megabytes)
        });
        write!(out, " {} |", written.collect::<Vec<_>>().join(" / "))
    }
}

/// All rows below their head.
pub(super) fn table(rows: &[Row]) -> String {
    let Some(first) = rows.first() else {
        return String::new();
    };
    let names: Vec<&str> = first.sides.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "| scenario | {} | machine (kiln : machine) | peak memory | written: {} |\n|---|",
        names.join(" | "),
        names.join(" / ")
    );
    text.push_str(&"--:|".repeat(names.len() + 3));
    text.push('\n');
    for row in rows {
        let _ = writeln!(text, "{row}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_medians_and_ratios() {
        let taken = |milliseconds| Taken {
            wall: Duration::from_millis(milliseconds),
            peak: 7_900_000,
            written: Some(1_234_567),
        };
        let mut row = Row::new("a build", ["kiln", "docker"].into_iter());
        row.sides[0].1 = vec![taken(9), taken(5), taken(100)];
        row.sides[1].1 = vec![taken(450), taken(460), taken(440)];
        row.machine = Some(("`cp`", vec![Duration::from_millis(3)]));
        assert_eq!(
            row.to_string(),
            "| a build | 9.00 ms | 450 ms (50.0x) | `cp`: 3.00 ms (3.00) | 7.9 MB | 1.2 MB / 1.2 MB |"
        );
        assert_eq!(
            table(&[row]).lines().next(),
            Some(
                "| scenario | kiln | docker | machine (kiln : machine) | peak memory | written: kiln / docker |"
            )
        );
    }
}
