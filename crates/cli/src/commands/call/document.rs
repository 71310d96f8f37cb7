//! The answers as JSON, with docker's keys in docker's order.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln_dockerfile::{Lines, SourceText, Warning};
use kiln_frontend::{Outline, OutlineMount, Target};
use serde::Serialize;

use super::{Checked, each};

#[derive(Serialize)]
struct Position {
    line: u32,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

fn location(lines: Option<Lines>) -> Location {
    let range = |line| Range {
        start: Position { line },
        end: Position { line },
    };
    Location {
        ranges: lines.into_iter().flat_map(each).map(range).collect(),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckedDocument<'a> {
    warnings: Option<Vec<WarningDocument<'a>>>,
    sources: [Source<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<ErrorDocument>,
    /// What docker has no word for: findings of Kiln's own rules, only when there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    kiln: Option<Own<'a>>,
}

#[derive(Serialize)]
struct Own<'a> {
    warnings: Vec<WarningDocument<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WarningDocument<'a> {
    rule_name: &'a str,
    description: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    detail: &'a str,
    location: Location,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

#[derive(Serialize)]
struct Source<'a> {
    filename: &'a str,
    data: String,
    language: &'static str,
}

#[derive(Serialize)]
struct ErrorDocument {
    message: String,
    location: Location,
}

fn warnings<'a>(found: &[&'a Warning]) -> Vec<WarningDocument<'a>> {
    let document = |warning: &&'a Warning| WarningDocument {
        rule_name: warning.rule.name(),
        description: warning.rule.about(),
        url: warning.rule.url(),
        detail: &warning.message,
        location: location(Some(warning.lines)),
        hint: warning.rule.hint(),
    };
    found.iter().map(document).collect()
}

pub(super) fn checked(checked: &Checked<'_>) -> String {
    let present = |list: Vec<_>| Some(list).filter(|list| !list.is_empty());
    let name = checked.source.name.rsplit('/').next();
    written(&CheckedDocument {
        warnings: present(warnings(&checked.warnings)),
        sources: [Source {
            filename: name.unwrap_or_default(),
            data: BASE64_STANDARD.encode(&checked.source.text),
            language: "Dockerfile",
        }],
        build_error: checked.error.map(|error| ErrorDocument {
            message: error.to_string(),
            location: location(error.lines),
        }),
        kiln: present(warnings(&checked.own)).map(|warnings| Own { warnings }),
    })
}

#[derive(Serialize)]
struct OutlineDocument<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<ArgDocument<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<MountDocument<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<MountDocument<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct ArgDocument<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    location: Location,
}

#[derive(Serialize)]
struct MountDocument<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

pub(super) fn outline(outline: &Outline, source: &SourceText) -> String {
    fn mounts(mounts: &[OutlineMount]) -> Vec<MountDocument<'_>> {
        let document = |mount| {
            let OutlineMount {
                name,
                required,
                lines,
            }: &OutlineMount = mount;
            MountDocument {
                name,
                required: *required,
                location: location(Some(*lines)),
            }
        };
        mounts.iter().map(document).collect()
    }
    written(&OutlineDocument {
        name: outline.name.as_deref(),
        description: outline.description.as_deref(),
        args: outline
            .args
            .iter()
            .map(|arg| ArgDocument {
                name: &arg.name,
                description: arg.description.as_deref(),
                value: arg.value.as_deref().filter(|value| !value.is_empty()),
                location: location(Some(arg.lines)),
            })
            .collect(),
        secrets: mounts(&outline.secrets),
        ssh: mounts(&outline.ssh),
        sources: [BASE64_STANDARD.encode(&source.text)],
    })
}

#[derive(Serialize)]
struct TargetsDocument<'a> {
    targets: Vec<TargetDocument<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct TargetDocument<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    base: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
    location: Location,
}

pub(super) fn targets(targets: &[Target], source: &SourceText) -> String {
    let document = |target| {
        let Target {
            name,
            default,
            description,
            base,
            platform,
            lines,
        }: &Target = target;
        TargetDocument {
            name: name.as_deref(),
            default: *default,
            description: description.as_deref(),
            base,
            platform: platform.as_deref(),
            location: location(Some(*lines)),
        }
    };
    written(&TargetsDocument {
        targets: targets.iter().map(document).collect(),
        sources: [BASE64_STANDARD.encode(&source.text)],
    })
}

#[derive(Serialize)]
struct Subrequest {
    name: String,
    version: &'static str,
    r#type: &'static str,
    description: &'static str,
    opts: Option<Vec<Named>>,
    inputs: Option<Vec<Named>>,
    metadata: [Named; 2],
    refs: Option<Vec<Named>>,
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    description: &'static str,
}

/// Name, description.
pub(super) const SUBREQUESTS: [(&str, &str); 3] = [
    (
        "outline",
        "List all parameters current build target supports",
    ),
    ("targets", "List all targets current build supports"),
    ("subrequests.describe", "List available subrequest types"),
];

pub(super) fn subrequests() -> String {
    let named = |name| Named {
        name,
        description: "",
    };
    let subrequest = |(name, description): (&str, &'static str)| Subrequest {
        name: format!("frontend.{name}"),
        version: "1.0.0",
        r#type: "rpc",
        description,
        opts: match name {
            "outline" => Some(vec![Named {
                name: "target",
                description: "Target build stage",
            }]),
            "targets" => Some(Vec::new()),
            _ => None,
        },
        inputs: None,
        metadata: [named("result.json"), named("result.txt")],
        refs: None,
    };
    written(&SUBREQUESTS.map(subrequest))
}

/// As Go writes JSON: indented by two blanks, without the signs that mean something in HTML.
fn written(document: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(document).expect("no maps with odd keys");
    for (sign, code) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        // Outside of strings there are none of these.
        if text.contains(sign) {
            text = text.replace(sign, code);
        }
    }
    text.push('\n');
    text
}
