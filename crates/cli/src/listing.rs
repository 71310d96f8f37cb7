//! Lists as docker prints them: a table, JSON lines, or a template for each row.

use anyhow::{Context as _, Result};
use kiln_template::{Fields, Shape, Template, Value};

use crate::format::say;

/// Columns are at least so wide, as docker's.
const NARROWEST: usize = 10;
/// Blanks between columns.
const GAP: usize = 3;

/// What a list can show of its rows.
pub(crate) struct Listing {
    /// The fields with their headings; one without a heading takes an argument, which is the heading.
    pub(crate) heads: &'static [(&'static str, &'static str)],
    /// The fields of the usual table.
    pub(crate) usual: &'static [&'static str],
}

impl Listing {
    /// Prints rows. `quiet` shows ids only, unless a format is given.
    pub(crate) fn print(
        &self,
        format: Option<&str>,
        quiet: bool,
        rows: impl IntoIterator<Item = Fields>,
    ) -> Result<()> {
        let format = format.unwrap_or("table").trim();
        let (template, is_table) = match format.strip_prefix("table") {
            Some(_) if quiet => ("{{.ID}}".to_owned(), false),
            Some("") => {
                let cells: Vec<_> = self
                    .usual
                    .iter()
                    .map(|it| format!("{{{{.{it}}}}}"))
                    .collect();
                (cells.join("\t"), true)
            }
            Some(template) => (template.trim_start().to_owned(), true),
            None if format == "json" => ("{{json .}}".to_owned(), false),
            None => (format.to_owned(), false),
        };
        let template = template.replace("\\t", "\t").replace("\\n", "\n");
        let template = Template::parse(&template).context("--format")?;
        let mut lines = Vec::new();
        if is_table {
            lines.push(template.render(&self.headings()).context("--format")?);
        } else {
            // A mistake is told where there is nothing to list, too.
            template.render(&self.headings()).context("--format")?;
        }
        for row in rows {
            lines.push(template.render(&row.into()).context("--format")?);
        }
        if is_table {
            say_aligned(&lines);
        } else {
            for line in &lines {
                say(line);
            }
        }
        Ok(())
    }

    fn headings(&self) -> Value {
        let mut fields = Fields::new(Shape::Row);
        for (name, heading) in self.heads {
            if heading.is_empty() {
                fields.hide(name, Value::Echo);
            } else {
                fields.add(name, *heading);
            }
        }
        fields.into()
    }
}

/// Prints lines whose cells are separated by tabs, with the cells below each other.
pub(crate) fn say_aligned(lines: &[String]) {
    for line in aligned(lines) {
        say(&line);
    }
}

/// Lines whose cells are separated by tabs, with the cells below each other.
pub(crate) fn aligned(lines: &[String]) -> Vec<String> {
    let rows: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split('\t').collect())
        .collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        // What stands behind the last tab needs no width.
        for (at, cell) in row.iter().take(row.len() - 1).enumerate() {
            let width = (cell.chars().count() + GAP).max(NARROWEST);
            match widths.get_mut(at) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    let line = |row: &Vec<&str>| {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if at + 1 < row.len() {
                let gap = widths[at] - cell.chars().count();
                line.extend(std::iter::repeat_n(' ', gap));
            }
        }
        line
    };
    rows.iter().map(line).collect()
}

/// Prints one thing as a template says, or as JSON in one line.
pub(crate) fn print_one(format: &str, value: &Value) -> Result<()> {
    let text = if format == "json" {
        "{{json .}}"
    } else {
        format
    };
    let template = Template::parse(text).context("--format")?;
    say(&template.render(value).context("--format")?);
    Ok(())
}
