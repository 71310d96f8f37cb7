//! Splitting the text of an instruction: flags, words, JSON arrays.

/// The blanks that separate arguments.
pub(crate) fn is_blank(char: char) -> bool {
    matches!(char, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// Splits at runs of blanks. Empty for an empty text.
pub(crate) fn blanks(text: &str) -> Vec<String> {
    text.split(is_blank)
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The flags at the start of an instruction's arguments, unquoted, and what follows them.
pub(crate) fn flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (word, length) = flag(rest, escape);
        rest = rest[length..].trim_start();
        if word == "--" {
            break;
        }
        flags.push(word);
    }
    (flags, rest)
}

/// The first word of `text`, unquoted, and how many bytes it takes.
fn flag(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match quote {
            None if char.is_whitespace() => return (word, at),
            None if matches!(char, '\'' | '"') => quote = Some(char),
            Some(open) if char == open => quote = None,
            // At the end of the text an escape character is dropped.
            _ if char == escape => word.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => word.push(char),
        }
    }
    (word, text.len())
}

/// Splits at blanks that are neither quoted nor escaped. Quotes and escapes stay, for the expansion to remove.
pub(crate) fn quoted(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match quote {
            None if char.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if matches!(char, '\'' | '"') => quote = Some(char),
            Some(open) if char == open => quote = None,
            _ => {}
        }
        if char == escape && quote != Some('\'') {
            let Some(escaped) = chars.next() else { break };
            word.push(char);
            word.push(escaped);
        } else {
            word.push(char);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// What the text of an argument that may be JSON is.
pub(crate) enum Json {
    /// An array of strings.
    Strings(Vec<String>),
    /// An array with something else in it.
    Mixed,
    /// No array.
    No,
}

/// Reads a JSON array of strings.
pub(crate) fn json(text: &str) -> Json {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Json::No;
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Json::No;
    };
    let string = |value| {
        if let serde_json::Value::String(text) = value {
            Some(text)
        } else {
            None
        }
    };
    values
        .into_iter()
        .map(string)
        .collect::<Option<_>>()
        .map_or(Json::Mixed, Json::Strings)
}
