//! The functions: Go's and docker's.

use std::cmp::Ordering;
use std::fmt::Write as _;

use crate::print::{float, json, show};
use crate::value::{Shape, Value};

/// Their names.
pub(crate) const NAMES: [&str; 23] = [
    "and", "or", "not", "len", "index", "slice", "print", "println", "printf", "eq", "ne", "lt",
    "le", "gt", "ge", "json", "join", "split", "lower", "upper", "title", "pad", "truncate",
];

/// Calls a function; the message says what is wrong with its arguments.
pub(crate) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    Ok(match (name, arguments) {
        ("not", [value]) => Value::Bool(!value.is_true()),
        ("len", [value]) => Value::Int(match value {
            Value::Text(text) => text.len(),
            Value::List(list) => list.len(),
            Value::Map(fields) if fields.shape == Shape::Map => fields.list.len(),
            Value::NilList | Value::NilMap => 0,
            other => return Err(format!("{} has no length", other.kind())),
        } as i64),
        ("index", [value, keys @ ..]) => {
            let mut value = value;
            let empty = Value::Text(String::new());
            for key in keys {
                value = match (value, key) {
                    (Value::Map(fields), Value::Text(name)) => fields.get(name).unwrap_or(&empty),
                    (Value::NilMap | Value::Missing, Value::Text(_)) => &empty,
                    (Value::List(list), Value::Int(number)) => usize::try_from(*number)
                        .ok()
                        .and_then(|number| list.get(number))
                        .ok_or_else(|| {
                            format!("there is no element {number} in a list of {}", list.len())
                        })?,
                    (Value::NilList, Value::Int(number)) => {
                        return Err(format!("there is no element {number} in a list of 0"));
                    }
                    (of, with) => {
                        return Err(format!(
                            "{} has no index that is {}",
                            of.kind(),
                            with.kind()
                        ));
                    }
                };
            }
            value.clone()
        }
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds)?,
        ("print", values) => {
            let mut text = String::new();
            for (number, value) in values.iter().enumerate() {
                // A blank where neither is a text, as Go does.
                if number > 0
                    && !matches!(value, Value::Text(_))
                    && !matches!(values[number - 1], Value::Text(_))
                {
                    text.push(' ');
                }
                text += &show(value);
            }
            Value::Text(text)
        }
        ("println", values) => {
            let words: Vec<_> = values.iter().map(show).collect();
            Value::Text(words.join(" ") + "\n")
        }
        ("printf", [Value::Text(format), values @ ..]) => Value::Text(printf(format, values)),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            Value::Bool(others.iter().any(|other| equal(first, other)))
        }
        ("ne", [left, right]) => Value::Bool(!equal(left, right)),
        ("lt" | "le" | "gt" | "ge", [left, right]) => {
            let order = compare(left, right)
                .ok_or_else(|| format!("{} and {} have no order", left.kind(), right.kind()))?;
            Value::Bool(match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            })
        }
        ("json", [value]) => {
            let mut text = String::new();
            json(value, false, &mut text);
            Value::Text(text)
        }
        ("join", [list, Value::Text(between)]) => match list {
            Value::List(list) => {
                Value::Text(list.iter().map(show).collect::<Vec<_>>().join(between))
            }
            Value::NilList => Value::Text(String::new()),
            other => return Err(format!("expected a list, this is {}", other.kind())),
        },
        ("split", [Value::Text(text), Value::Text(at)]) => {
            let parts: Vec<Value> = if at.is_empty() {
                text.chars()
                    .map(|letter| Value::Text(letter.to_string()))
                    .collect()
            } else {
                text.split(at.as_str()).map(Value::from).collect()
            };
            Value::List(parts)
        }
        ("lower", [Value::Text(text)]) => Value::Text(text.to_lowercase()),
        ("upper", [Value::Text(text)]) => Value::Text(text.to_uppercase()),
        ("title", [Value::Text(text)]) => Value::Text(title(text)),
        ("pad", [Value::Text(text), Value::Int(before), Value::Int(behind)]) => {
            if text.is_empty() {
                return Ok(Value::Text(String::new()));
            }
            let blanks =
                |count: &i64| " ".repeat(usize::try_from(*count).unwrap_or(0).min(1 << 12));
            Value::Text(format!("{}{text}{}", blanks(before), blanks(behind)))
        }
        ("truncate", [Value::Text(text), Value::Int(most)]) => {
            let most = usize::try_from(*most).unwrap_or(0);
            Value::Text(text.chars().take(most).collect())
        }
        _ => {
            let kinds: Vec<_> = arguments.iter().map(Value::kind).collect();
            return Err(format!(
                "expected {}, got {}",
                expected(name),
                if kinds.is_empty() {
                    "nothing".to_owned()
                } else {
                    kinds.join(", ")
                }
            ));
        }
    })
}

fn expected(name: &str) -> &'static str {
    match name {
        "not" | "len" | "json" => "one value",
        "index" => "a list or a map, and what to look for",
        "slice" => "a list or a text, and one or two numbers",
        "printf" => "a format and values",
        "join" => "a list and a text",
        "split" => "two texts",
        "lower" | "upper" | "title" => "a text",
        "pad" => "a text and two numbers",
        "truncate" => "a text and a number",
        _ => "two values",
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, String> {
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(list) => list.len(),
        Value::NilList => 0,
        other => return Err(format!("{} cannot be cut", other.kind())),
    };
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(Value::Int(number)) => usize::try_from(*number)
            .ok()
            .filter(|number| *number <= length)
            .ok_or_else(|| format!("{number} is outside of a length of {length}")),
        Some(other) => Err(format!("expected a number, got {}", other.kind())),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    if from > to {
        return Err(format!("{from} is behind {to}"));
    }
    Ok(match value {
        Value::Text(text) => {
            Value::Text(String::from_utf8_lossy(&text.as_bytes()[from..to]).into_owned())
        }
        Value::List(list) => Value::List(list[from..to].to_vec()),
        _ => Value::NilList,
    })
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
            compare(left, right) == Some(Ordering::Equal)
        }
        (
            Value::Null | Value::Missing | Value::NilList | Value::NilMap,
            Value::Null | Value::Missing,
        ) => true,
        _ => left == right,
    }
}

fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
        (Value::Int(left), Value::Float(right)) => (*left as f64).partial_cmp(right),
        (Value::Float(left), Value::Int(right)) => left.partial_cmp(&(*right as f64)),
        (Value::Float(left), Value::Float(right)) => left.partial_cmp(right),
        (Value::Text(left), Value::Text(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

fn title(text: &str) -> String {
    let mut before = ' ';
    text.chars()
        .map(|letter| {
            let first = !(before == '_' || before == '\'' || before.is_alphanumeric());
            before = letter;
            if first {
                letter.to_uppercase().to_string()
            } else {
                letter.to_string()
            }
        })
        .collect()
}

/// Most blanks that a width makes: nobody has a terminal that is wider.
const WIDEST: usize = 1 << 12;

/// Go's `Sprintf` for the verbs that make sense here.
fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let (mut left, mut zero, mut plus) = (false, false, false);
        while let Some(flag) = letters.next_if(|letter| "-0+# ".contains(*letter)) {
            left |= flag == '-';
            zero |= flag == '0';
            plus |= flag == '+';
        }
        let mut number = || {
            let mut digits = String::new();
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            digits.parse::<usize>().ok()
        };
        let width = number().unwrap_or(0).min(WIDEST);
        let precision = if letters.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            Some(digits.parse().unwrap_or(0).min(WIDEST))
        } else {
            None
        };
        let Some(verb) = letters.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            let _ = write!(out, "%!{verb}(MISSING)");
            continue;
        };
        let mut text = one(verb, value, precision);
        if plus && matches!(value, Value::Int(0..)) && verb == 'd' {
            text.insert(0, '+');
        }
        let blanks = width.saturating_sub(text.chars().count());
        let fill = if zero && !left { "0" } else { " " }.repeat(blanks);
        if left {
            out += &text;
            out += &fill;
        } else {
            out += &fill;
            out += &text;
        }
    }
    let more: Vec<_> = values.map(show).collect();
    if !more.is_empty() {
        let _ = write!(out, "%!(EXTRA {})", more.join(", "));
    }
    out
}

fn one(verb: char, value: &Value, precision: Option<usize>) -> String {
    let cut = |text: String| match precision {
        Some(most) => text.chars().take(most).collect(),
        None => text,
    };
    match (verb, value) {
        ('q', Value::Text(text)) => {
            let mut quoted = String::new();
            json(&Value::Text(text.clone()), false, &mut quoted);
            quoted
        }
        ('d', Value::Int(value)) => value.to_string(),
        ('x', Value::Int(value)) => format!("{value:x}"),
        ('X', Value::Int(value)) => format!("{value:X}"),
        ('o', Value::Int(value)) => format!("{value:o}"),
        ('b', Value::Int(value)) => format!("{value:b}"),
        ('c', Value::Int(value)) => u32::try_from(*value)
            .ok()
            .and_then(char::from_u32)
            .unwrap_or(char::REPLACEMENT_CHARACTER)
            .to_string(),
        ('x', Value::Text(text)) => text.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
        ('f', Value::Float(value)) => format!("{value:.*}", precision.unwrap_or(6)),
        ('e' | 'g', Value::Float(value)) => float(*value),
        ('t', Value::Bool(value)) => value.to_string(),
        ('s' | 'v', value) if !matches!(value, Value::Int(_)) || verb == 'v' => cut(show(value)),
        // What Go prints where verb and value do not fit.
        (verb, value) => format!("%!{verb}({}={})", go_type(value), show(value)),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::Float(_) => "float64",
        Value::Text(_) => "string",
        _ => "interface {}",
    }
}
