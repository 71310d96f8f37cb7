//! The display for programs: `BuildKit`'s `SolveStatus`, one JSON object a line.

use std::collections::HashMap;
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::display::Renderer;
use crate::event::{Event, Finding, Stream, VertexId};
use crate::text;

pub(crate) struct RawJson {
    /// What was last said of each vertex: the stream repeats the whole object.
    vertices: HashMap<VertexId, Map<String, Value>>,
    /// When each status row began.
    statuses: HashMap<(VertexId, String), String>,
}

impl RawJson {
    pub(crate) fn new() -> Self {
        Self {
            vertices: HashMap::new(),
            statuses: HashMap::new(),
        }
    }

    fn vertex(&mut self, id: VertexId, fields: &[(&str, Value)]) -> Value {
        let vertex = self.vertices.entry(id).or_default();
        vertex.insert("digest".to_owned(), json!(digest(id)));
        for (name, value) in fields {
            vertex.insert((*name).to_owned(), value.clone());
        }
        json!({ "vertexes": [vertex] })
    }

    fn status(
        &mut self,
        id: VertexId,
        name: &str,
        current: u64,
        total: u64,
        done: bool,
        at: SystemTime,
    ) -> Value {
        let at = time(at);
        let name = text::one_line(name);
        let started = self
            .statuses
            .entry((id, name.clone()))
            .or_insert_with(|| at.clone());
        let mut status = json!({
            "id": name, "vertex": digest(id), "current": current, "total": total, "timestamp": at, "started": started,
        });
        if done {
            status["completed"] = json!(at);
        }
        json!({ "statuses": [status] })
    }
}

impl Renderer for RawJson {
    fn event(&mut self, event: Event, now: SystemTime, out: &mut Vec<u8>) {
        let line = match event {
            Event::Vertex { id, title } => {
                self.vertex(id, &[("name", json!(text::one_line(&title)))])
            }
            Event::Started { id, at } => self.vertex(id, &[("started", json!(time(at)))]),
            Event::Cached { id } => {
                let now = json!(time(now));
                self.vertex(
                    id,
                    &[
                        ("started", now.clone()),
                        ("completed", now),
                        ("cached", json!(true)),
                    ],
                )
            }
            Event::Finished { id, at } => self.vertex(id, &[("completed", json!(time(at)))]),
            Event::Failed { id, error, at } => self.vertex(
                id,
                &[
                    ("completed", json!(time(at))),
                    ("error", json!(text::lines(&error).join("\n"))),
                ],
            ),
            // How the client library's consumers recognise it: the error's text ends in Go's own words.
            Event::Canceled { id, at } => self.vertex(
                id,
                &[
                    ("completed", json!(time(at))),
                    ("error", json!("context canceled")),
                ],
            ),
            // The stream has no place for these two, but every reader shows status rows.
            Event::Reason { id, text } => self.status(id, &format!("why: {text}"), 0, 0, true, now),
            Event::Waiting { id, text } => {
                self.status(id, &format!("waiting {text}"), 0, 0, false, now)
            }
            Event::Status {
                id,
                name,
                current,
                total,
                done,
                at,
            } => self.status(id, &name, current, total, done, at),
            Event::Log {
                id,
                stream,
                bytes,
                at,
            } => {
                let stream = match stream {
                    Stream::Stdout => 1,
                    Stream::Stderr => 2,
                };
                let data = BASE64_STANDARD.encode(bytes);
                json!({ "logs": [{ "vertex": digest(id), "stream": stream, "data": data, "timestamp": time(at) }] })
            }
            Event::Warning { text } => {
                json!({ "warnings": [{ "level": 1, "short": BASE64_STANDARD.encode(text) }] })
            }
            Event::Found(finding) => {
                let (first, last) = finding.lines.unwrap_or((1, 0));
                let range = |line| json!({ "start": { "line": line }, "end": { "line": line } });
                let mut warning = json!({
                    "level": 1,
                    "short": BASE64_STANDARD.encode(finding.line()),
                    "detail": [BASE64_STANDARD.encode(&finding.about)],
                    "url": finding.url,
                    "sourceInfo": { "filename": finding.file, "language": "Dockerfile" },
                    "range": (first..=last).map(range).collect::<Vec<Value>>(),
                });
                if let Some(object) = warning.as_object_mut() {
                    plain(&finding, object);
                }
                json!({ "warnings": [warning] })
            }
            // The stream has no place for errors either; readers of the client library leave unknown keys out.
            Event::Error(finding) => {
                let mut error = Map::new();
                plain(&finding, &mut error);
                json!({ "errors": [error] })
            }
            // The stream has no place for notes.
            Event::Note { .. } | Event::Ended { .. } => return,
        };
        out.extend_from_slice(line.to_string().as_bytes());
        out.push(b'\n');
    }

    fn finish(&mut self, _: SystemTime, _: &mut Vec<u8>) {}
}

/// The parts of a finding in plain text.
fn plain(finding: &Finding, object: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    if let Some(rule) = &finding.rule {
        put("rule", json!(rule));
    }
    put("message", json!(finding.message));
    if let Some(hint) = &finding.hint {
        put("hint", json!(hint));
    }
    if !finding.file.is_empty() {
        put("file", json!(finding.file));
    }
    if let Some((first, last)) = finding.lines {
        put("line", json!(first));
        put("endLine", json!(last));
    }
    if let Some((first, end)) = finding.columns {
        put("column", json!(first));
        put("endColumn", json!(end));
    }
}

/// Readers know vertices by digest, and only compare them.
fn digest(id: VertexId) -> String {
    format!("sha256:{:064x}", id.0)
}

/// RFC 3339 with nanoseconds, as Go writes times into JSON.
fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .unwrap_or_default()
        .to_string()
}
