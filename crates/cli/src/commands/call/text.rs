//! The answers for people, as docker prints them.

use std::fmt::Write as _;

use kiln_dockerfile::{SourceText, Warning, excerpt};
use kiln_frontend::{Outline, OutlineMount, Target};

use super::Checked;
use super::document::SUBREQUESTS;

/// Rows in columns: each as wide as its widest cell and `gap` blanks, but for the last one.
fn table(gap: usize, rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default() + gap
    };
    let widths: Vec<usize> = (0..columns.saturating_sub(1)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing into a string cannot fail.
            let _ = write!(text, "{cell:<width$}");
        }
        text.extend(row.last().map(String::as_str));
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

pub(super) fn outline(outline: &Outline) -> String {
    let mut text = String::new();
    let mut head = Vec::new();
    head.extend(outline.name.as_deref().map(|name| row(["TARGET:", name])));
    let description = outline.description.as_deref();
    head.extend(description.map(|words| row(["DESCRIPTION:", words])));
    let mut add = |gap: usize, rows: &[Vec<String>]| {
        text.push_str(&table(gap, rows));
        text.push('\n');
    };
    if !head.is_empty() {
        add(1, &head);
    }
    if !outline.args.is_empty() {
        let mut rows = vec![row(["BUILD ARG", "VALUE", "DESCRIPTION"])];
        for arg in &outline.args {
            let value = arg.value.as_deref().unwrap_or_default();
            let description = arg.description.as_deref().unwrap_or_default();
            rows.push(row([&arg.name, value, description]));
        }
        add(3, &rows);
    }
    let mut mounts = |title: &str, mounts: &[OutlineMount]| {
        if mounts.is_empty() {
            return;
        }
        let mut rows = vec![row([title, "REQUIRED"])];
        for mount in mounts {
            rows.push(row([&mount.name, if mount.required { "true" } else { "" }]));
        }
        add(3, &rows);
    };
    mounts("SECRET", &outline.secrets);
    mounts("SSH", &outline.ssh);
    text
}

pub(super) fn targets(targets: &[Target]) -> String {
    let mut rows = vec![row(["TARGET", "DESCRIPTION"])];
    for target in targets {
        let name = match (target.name.as_deref(), target.default) {
            (Some(name), true) => format!("{name} (default)"),
            (None, true) => "(default)".to_owned(),
            (name, false) => name.unwrap_or_default().to_owned(),
        };
        rows.push(vec![name, target.description.clone().unwrap_or_default()]);
    }
    table(1, &rows)
}

pub(super) fn subrequests() -> String {
    let mut rows = vec![row(["NAME", "VERSION", "DESCRIPTION"])];
    rows.extend(SUBREQUESTS.map(|(name, description)| row([name, "1.0.0", description])));
    table(1, &rows)
}

fn warning(warning: &Warning, source: &SourceText, text: &mut String) {
    let (rule, message) = (warning.rule, &warning.message);
    let page = match rule.url() {
        "" => String::new(),
        url => format!(" - {url}"),
    };
    let _ = writeln!(text, "\nWARNING: {}{page}\n{message}", rule.name());
    text.push_str(&excerpt(source, warning.lines).unwrap_or_default());
}

pub(super) fn checked(checked: &Checked<'_>) -> String {
    let source = SourceText {
        name: checked.path.to_owned(),
        text: checked.source.text.clone(),
    };
    let mut warnings = checked.warnings.clone();
    warnings.sort_by_key(|warning| warning.lines.first);
    let mut text = match (warnings.len(), checked.error) {
        (0, Some(_)) => String::new(),
        (0, None) => "Check complete, no warnings found.\n".to_owned(),
        (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
        (count, _) => format!("Check complete, {count} warnings have been found!\n"),
    };
    for found in &warnings {
        warning(found, &source, &mut text);
    }
    if checked.error.is_some() && !warnings.is_empty() {
        text.push('\n');
    }
    if !checked.own.is_empty() {
        text.push_str("\nFindings of Kiln's own rules, which fail no check:\n");
        for found in &checked.own {
            warning(found, &source, &mut text);
            let hint = found.rule.hint().unwrap_or_default();
            let _ = writeln!(text, "hint: {hint}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{row, table};

    #[test]
    fn tables() {
        let rows = [row(["A", "LONG", "X"]), row(["bcd", "", "y z"])];
        assert_eq!(table(1, &rows), "A   LONG X\nbcd      y z\n");
        assert_eq!(table(3, &rows[..1]), "A   LONG   X\n");
        assert_eq!(table(3, &[]), "");
    }
}
