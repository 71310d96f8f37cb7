//! Findings as SARIF 2.1.0 (OASIS), which code hosts and editors read.

use std::fmt::Write as _;

use kiln_dockerfile::{Lines, Rule, Warning};
use serde_json::{Value, json};

use super::Checked;

/// The id of the result that tells why nothing can be built.
const BUILD_ERROR: &str = "BuildError";

pub(super) fn checked(checked: &Checked<'_>) -> String {
    let mut rules: Vec<Value> = Rule::ALL.iter().map(|rule| rule_of(*rule)).collect();
    rules.push(json!({
        "id": BUILD_ERROR,
        "shortDescription": { "text": "The Dockerfile cannot be built" },
        "defaultConfiguration": { "level": "error" },
    }));
    let mut results: Vec<Value> = Vec::new();
    for warning in checked.warnings.iter().chain(&checked.own) {
        results.push(result_of(warning, checked));
    }
    if let Some(error) = checked.error {
        let mut result = json!({
            "ruleId": BUILD_ERROR,
            "ruleIndex": Rule::ALL.len(),
            "level": "error",
            "message": { "text": error.to_string() },
        });
        let mut region = error.lines.map(|lines| whole(lines, checked));
        if let Some(span) = error.span(checked.source) {
            region = Some(json!({
                "startLine": span.line,
                "startColumn": span.first,
                "endLine": span.line,
                "endColumn": span.end,
            }));
        }
        result["locations"] = json!([location(region, checked)]);
        results.push(result);
    }
    let document = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {
                "driver": {
                    "name": "kiln",
                    "version": env!("CARGO_PKG_VERSION"),
                    "rules": rules,
                },
            },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    format!("{document:#}\n")
}

fn level(rule: Rule) -> &'static str {
    if rule.is_own() { "note" } else { "warning" }
}

fn rule_of(rule: Rule) -> Value {
    let mut object = json!({
        "id": rule.name(),
        "shortDescription": { "text": rule.about() },
        "defaultConfiguration": { "level": level(rule), "enabled": !rule.experimental() },
    });
    match rule.hint() {
        Some(hint) => object["help"] = json!({ "text": hint }),
        None if rule.url().is_empty() => {}
        None => object["helpUri"] = json!(rule.url()),
    }
    object
}

fn result_of(warning: &Warning, checked: &Checked<'_>) -> Value {
    let index = Rule::ALL.iter().position(|rule| *rule == warning.rule);
    json!({
        "ruleId": warning.rule.name(),
        "ruleIndex": index,
        "level": level(warning.rule),
        "message": { "text": warning.message },
        "locations": [location(Some(whole(warning.lines, checked)), checked)],
    })
}

fn location(region: Option<Value>, checked: &Checked<'_>) -> Value {
    let mut place = json!({ "artifactLocation": { "uri": uri(checked.path) } });
    if let Some(region) = region {
        place["region"] = region;
    }
    json!({ "physicalLocation": place })
}

/// Whole lines, from the first sign to the last.
fn whole(lines: Lines, checked: &Checked<'_>) -> Value {
    let line = |number: u32| {
        let line = checked
            .source
            .text
            .lines()
            .nth(number.saturating_sub(1) as usize);
        line.unwrap_or_default()
    };
    let blanks = line(lines.first)
        .chars()
        .take_while(|char| char.is_whitespace());
    json!({
        "startLine": lines.first,
        "startColumn": blanks.count() + 1,
        "endLine": lines.last,
        "endColumn": line(lines.last).trim_end().chars().count() + 1,
    })
}

/// A path as a URI reference (RFC 3986): everything but letters, digits and a few signs is percent-encoded.
fn uri(path: &str) -> String {
    let mut uri = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    if path.starts_with('/') {
        uri.insert_str(0, "file://");
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::uri;

    #[test]
    fn uris() {
        assert_eq!(uri("docker/a b.Dockerfile"), "docker/a%20b.Dockerfile");
        assert_eq!(uri("/srv/Dockerfile"), "file:///srv/Dockerfile");
    }
}
