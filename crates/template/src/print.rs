//! Values as texts: as Go prints them, and as JSON.

use std::fmt::Write as _;

use crate::value::{Fields, Shape, Value};

/// As `{{.}}` shows it.
pub(crate) fn show(value: &Value) -> String {
    if *value == Value::Missing {
        return "<no value>".to_owned();
    }
    let mut out = String::new();
    plain(value, &mut out);
    out
}

fn plain(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Missing => out.push_str("<nil>"),
        Value::NilList => out.push_str("[]"),
        Value::NilMap => out.push_str("map[]"),
        Value::Bool(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Int(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Duration(value) => out.push_str(&duration(*value)),
        Value::Text(text) => out.push_str(text),
        Value::List(list) => {
            out.push('[');
            for (number, item) in list.iter().enumerate() {
                if number > 0 {
                    out.push(' ');
                }
                plain(item, out);
            }
            out.push(']');
        }
        Value::Map(fields) if fields.shape == Shape::Map => {
            let mut sorted: Vec<_> = fields.list.iter().collect();
            sorted.sort_by(|left, right| left.name.cmp(&right.name));
            out.push_str("map[");
            for (number, field) in sorted.into_iter().enumerate() {
                if number > 0 {
                    out.push(' ');
                }
                out.push_str(&field.name);
                out.push(':');
                plain(&field.value, out);
            }
            out.push(']');
        }
        Value::Map(fields) => {
            out.push('{');
            for (number, field) in fields.list.iter().enumerate() {
                if number > 0 {
                    out.push(' ');
                }
                plain(&field.value, out);
            }
            out.push('}');
        }
        Value::Lookup(_) | Value::Echo => out.push_str("<method>"),
    }
}

/// As Go's `%v` does: with an exponent where that is shorter to read.
pub(crate) fn float(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e21).contains(&size) {
        let text = format!("{value:e}");
        // Go writes the sign and two digits: 1e-05.
        if let Some((digits, exponent)) = text.split_once('e') {
            let (sign, number) = exponent
                .strip_prefix('-')
                .map_or(('+', exponent), |number| ('-', number));
            return format!("{digits}e{sign}{number:0>2}");
        }
        return text;
    }
    format!("{value}")
}

/// As Go writes durations: `1h0m5s`, `1.5s`, `20ms`, `0s`.
fn duration(value: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let nanos = value.unsigned_abs();
    let small = |unit: u64, name: &str| format!("{sign}{}{name}", nanos as f64 / unit as f64);
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => small(1, "ns"),
        1_000..1_000_000 => small(1_000, "µs"),
        1_000_000..1_000_000_000 => small(1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
            let seconds = format!("{}s", rest as f64 / 1e9);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// As Go's encoder writes it; `safe`: without what HTML would read.
pub(crate) fn json(value: &Value, safe: bool, out: &mut String) {
    match value {
        Value::Null | Value::Missing | Value::NilList | Value::NilMap | Value::Echo => {
            out.push_str("null");
        }
        Value::Bool(_) | Value::Int(_) => plain(value, out),
        Value::Float(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Duration(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Text(text) => quote(text, safe, out),
        Value::List(list) => {
            out.push('[');
            for (number, item) in list.iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                json(item, safe, out);
            }
            out.push(']');
        }
        Value::Map(fields) => object(fields, safe, out),
        Value::Lookup(pairs) => {
            let mut fields = Fields::new(Shape::Map);
            for (name, value) in pairs {
                fields.add(name, value.as_str());
            }
            object(&fields, safe, out);
        }
    }
}

fn object(fields: &Fields, safe: bool, out: &mut String) {
    let safe = safe || fields.shape == Shape::Row;
    let mut shown: Vec<_> = fields.list.iter().filter(|field| !field.hidden).collect();
    if fields.shape != Shape::Struct {
        shown.sort_by(|left, right| left.name.cmp(&right.name));
    }
    out.push('{');
    for (number, field) in shown.into_iter().enumerate() {
        if number > 0 {
            out.push(',');
        }
        quote(&field.name, safe, out);
        out.push(':');
        json(&field.value, safe, out);
    }
    out.push('}');
}

fn quote(text: &str, safe: bool, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '<' | '>' | '&' if safe => {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            '\0'..='\x1f' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}
