//! `RUN --mount`.

use crate::parse::Complaint;
use crate::suggest::did_you_mean;

/// A mount of a RUN instruction, with its values expanded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// What it is.
    pub kind: MountType,
    /// Stage, named context or image that it comes from.
    pub from: Option<String>,
    /// Path in what it comes from; for a secret another word for `id`.
    pub source: String,
    /// Where it appears; empty if not said.
    pub target: String,
    /// Cannot be written.
    pub readonly: bool,
    /// Name of a cache, secret or agent; empty if not said.
    pub id: String,
    /// Who may use a cache at once.
    pub sharing: MountSharing,
    /// A secret or agent must be there.
    pub required: bool,
    /// Limit of a tmpfs in bytes; 0 for none.
    pub size: u64,
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// The variable that holds a secret.
    pub env: Option<String>,
}

/// The kinds of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountType {
    /// A tree.
    #[default]
    Bind,
    /// A folder that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret.
    Secret,
    /// The socket of an ssh agent.
    Ssh,
}

impl MountType {
    fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }
}

/// Who may use a cache mount at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountSharing {
    /// Everyone.
    #[default]
    Shared,
    /// One at a time, others get another.
    Private,
    /// One at a time, others wait.
    Locked,
}

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl Mount {
    /// Reads the value of a `--mount` flag, with `expand` applied to every value but `from`.
    ///
    /// # Errors
    /// With a sentence and a hint, when it makes no sense.
    pub fn parse(
        text: &str,
        expand: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Result<Self, Complaint> {
        let mut mount = Self::default();
        let mut readonly = None;
        let mut sharing = None;
        for field in csv(text)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (field.as_str(), None),
            };
            let key = key.to_lowercase();
            let value = match value {
                Some(value) if key == "from" => Some(value.to_owned()),
                Some(value) => Some(expand(value).map_err(Complaint::new)?),
                None => None,
            };
            match (key.as_str(), &value) {
                ("readonly" | "ro", _) => readonly = Some(boolean(&key, value.as_deref())?),
                ("readwrite" | "rw", _) => readonly = Some(!boolean(&key, value.as_deref())?),
                ("required", _) => {
                    if !matches!(mount.kind, MountType::Secret | MountType::Ssh) {
                        return Err(mount.unexpected(&key));
                    }
                    mount.required = boolean(&key, value.as_deref())?;
                }
                (key, None) if KEYS.contains(&key) => {
                    let message = format!("invalid field '{field}' must be a key=value pair");
                    return Err(Complaint::new(message).at(field));
                }
                (key, None) => {
                    let message = format!("invalid field '{field}' must be a key=value pair");
                    let hint = did_you_mean(key, KEYS.iter().copied());
                    return Err(Complaint::new(message).hint(hint).at(field));
                }
                (key, Some(value)) => match key {
                    "type" => mount.kind = kind(value)?,
                    "from" => mount.from = Some(value.clone()).filter(|from| !from.is_empty()),
                    "source" | "src" => mount.source.clone_from(value),
                    "target" | "dst" | "destination" => mount.target.clone_from(value),
                    "size" => {
                        if mount.kind != MountType::Tmpfs {
                            return Err(mount.unexpected(key));
                        }
                        mount.size = bytes(value).ok_or_else(|| {
                            let message = format!("invalid value for {key}: {value}");
                            Complaint::new(message).at(value)
                        })?;
                    }
                    "id" => mount.id.clone_from(value),
                    "sharing" => sharing = Some(parse_sharing(value)?),
                    "mode" => {
                        let mode = u32::from_str_radix(value, 8)
                            .ok()
                            .filter(|mode| *mode <= 0o7777);
                        mount.mode = Some(mode.ok_or_else(|| invalid(key, value))? as u16);
                    }
                    "uid" => mount.uid = Some(value.parse().map_err(|_| invalid(key, value))?),
                    "gid" => mount.gid = Some(value.parse().map_err(|_| invalid(key, value))?),
                    "env" => mount.env = Some(value.clone()),
                    _ => {
                        let message = format!("unexpected key '{key}' in '{field}'");
                        let hint = did_you_mean(key, KEYS.iter().copied());
                        return Err(Complaint::new(message).hint(hint).at(key));
                    }
                },
            }
        }
        mount.readonly =
            readonly.unwrap_or(!matches!(mount.kind, MountType::Cache | MountType::Tmpfs));
        mount.validate(sharing)?;
        mount.sharing = sharing.unwrap_or_default();
        Ok(mount)
    }

    /// The `from` of a `--mount` flag, without expanding anything.
    pub(crate) fn source_of(text: &str) -> Result<Option<String>, Complaint> {
        let mut from = None;
        for field in csv(text)? {
            let Some((key, value)) = field.split_once('=') else {
                continue;
            };
            if key.eq_ignore_ascii_case("from") {
                if value.find('$').is_some_and(|at| at + 1 < value.len()) {
                    let message = format!(
                        "'{key}' doesn't support variable expansion, define alias stage instead"
                    );
                    return Err(Complaint::new(message).at(value));
                }
                from = Some(value.to_owned()).filter(|from| !from.is_empty());
            }
        }
        Ok(from)
    }

    fn unexpected(&self, key: &str) -> Complaint {
        let kind = self.kind.name();
        Complaint::new(format!("unexpected key '{key}' for mount type '{kind}'")).at(key)
    }

    fn validate(&self, sharing: Option<MountSharing>) -> Result<(), Complaint> {
        let kind = self.kind.name();
        let complain = |message: String| Err(Complaint::new(message).at("--mount"));
        if matches!(self.kind, MountType::Bind | MountType::Tmpfs) {
            let given = [
                ("mode", self.mode.is_some()),
                ("uid", self.uid.is_some()),
                ("gid", self.gid.is_some()),
            ];
            if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
                let message = format!("{key} not allowed for {kind:?} type mounts");
                return Err(Complaint::new(message).at(*key));
            }
        }
        if self.env.is_some() && self.kind != MountType::Secret {
            return Err(self.unexpected("env"));
        }
        if self.kind == MountType::Secret {
            if self.from.is_some() {
                return complain("secret mount should not have a from".to_owned());
            }
            if sharing.is_some() {
                return complain("secret mount should not define sharing".to_owned());
            }
            if self.source.is_empty()
                && self.target.is_empty()
                && self.id.is_empty()
                && self.env.is_none()
            {
                return complain("invalid secret mount. one of source, target required".to_owned());
            }
            if !self.source.is_empty() && !self.id.is_empty() {
                return complain("both source and id can't be set".to_owned());
            }
        }
        if sharing.is_some() && self.kind != MountType::Cache {
            return complain(format!("invalid cache sharing set for {kind} mount"));
        }
        Ok(())
    }
}

fn invalid(key: &str, value: &str) -> Complaint {
    Complaint::new(format!("invalid value {value} for {key}")).at(value)
}

/// A flag alone is true. Go's `strconv.ParseBool` otherwise.
fn boolean(key: &str, value: Option<&str>) -> Result<bool, Complaint> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => {
            let message = format!("invalid value for {key}: {value}");
            Err(Complaint::new(message).at(value))
        }
    }
}

fn kind(value: &str) -> Result<MountType, Complaint> {
    let all = [
        MountType::Bind,
        MountType::Cache,
        MountType::Tmpfs,
        MountType::Secret,
        MountType::Ssh,
    ];
    all.into_iter()
        .find(|kind| value.eq_ignore_ascii_case(kind.name()))
        .ok_or_else(|| {
            let hint = did_you_mean(value, all.iter().map(|kind| kind.name()));
            Complaint::new(format!("unsupported mount type {value:?}"))
                .hint(hint)
                .at(value)
        })
}

fn parse_sharing(value: &str) -> Result<MountSharing, Complaint> {
    match value.to_lowercase().as_str() {
        "shared" => Ok(MountSharing::Shared),
        "private" => Ok(MountSharing::Private),
        "locked" => Ok(MountSharing::Locked),
        _ => {
            let hint = did_you_mean(value, ["shared", "private", "locked"]);
            let message = format!("unsupported sharing value {value:?}");
            Err(Complaint::new(message).hint(hint).at(value))
        }
    }
}

/// A size as Docker takes it: a number and one of `b k m g t p` (powers of 1024), with or without `b` or `ib` behind.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_lowercase();
    let digits = text
        .find(|char: char| !char.is_ascii_digit() && char != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let power = match unit.trim_start() {
        "" | "b" => 0,
        unit => {
            let (first, rest) = unit.split_at_checked(1)?;
            if !matches!(rest, "" | "b" | "ib") {
                return None;
            }
            1 + "kmgtp".find(first)?
        }
    };
    let size = number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(power).ok()?);
    (size.is_finite() && size < 2_f64.powi(63)).then_some(size as u64)
}

/// One record of comma-separated values (RFC 4180, as Go's `encoding/csv` reads it).
fn csv(text: &str) -> Result<Vec<String>, Complaint> {
    let bad = |what: &str| Complaint::new(format!("failed to parse csv mounts: {what}")).at(text);
    if text.is_empty() {
        return Err(bad("EOF"));
    }
    let mut fields = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut field = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next() {
                    None => return Err(bad("extraneous or missing \" in quoted-field")),
                    Some('"') if chars.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(char) => field.push(char),
                }
            }
            if chars.peek().is_some_and(|next| *next != ',') {
                return Err(bad("extraneous or missing \" in quoted-field"));
            }
        } else {
            while let Some(char) = chars.next_if(|next| *next != ',') {
                if char == '"' {
                    return Err(bad("bare \" in non-quoted-field"));
                }
                field.push(char);
            }
        }
        fields.push(field);
        if chars.next().is_none() {
            return Ok(fields);
        }
    }
}
