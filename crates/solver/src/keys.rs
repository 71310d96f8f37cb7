//! What is in the keys of each kind of operation.

use kiln_fileop::FileOpError;
use kiln_graph::{
    CopyAction, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Mount, MountKind, Op,
    OpKind, SourceOp,
};
use kiln_image::Key;
use kiln_source::ScanError;

use crate::parts::Parts;

/// Why what an operation reads cannot be told.
#[derive(Debug)]
pub(crate) struct KeyError {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// The local context that it is about.
    pub(crate) context: Option<String>,
    /// The path that is not there, when that is why.
    pub(crate) missing: Option<String>,
}

impl From<FileOpError> for KeyError {
    fn from(error: FileOpError) -> Self {
        let hint = error.hint();
        let missing = match &error {
            FileOpError::NotFound { path, .. } => Some(path.clone()),
            _ => None,
        };
        Self {
            message: error.to_string(),
            hint,
            context: None,
            missing,
        }
    }
}

impl From<ScanError> for KeyError {
    fn from(error: ScanError) -> Self {
        Self {
            message: error.to_string(),
            hint: None,
            context: None,
            missing: None,
        }
    }
}

/// What a key is made from: the definition of an input, or what is read of it.
pub(crate) trait InputKeys {
    /// The identity of a whole input; `None` when it is not known yet.
    fn whole(&self, input: usize) -> Option<Key>;

    /// The identity of what a copy reads of an input, when that is known without its definition: for local contexts
    /// always, for trees when keys are made from contents. `Ok(None)` when [`InputKeys::whole`] must stand in.
    fn selected(&self, input: usize, copy: &CopyAction) -> Result<Option<Key>, KeyError>;
}

/// Semantics versions: raised when a fixed bug must miss what was recorded before.
const EXEC: u32 = 1;
const FILE: u32 = 2;
const SOURCE: u32 = 1;
const MERGE: u32 = 1;

/// What the keys of this version mean, in a few words: of another version's none can be used.
pub fn semantics() -> String {
    format!("exec {EXEC}, file {FILE}, source {SOURCE}, merge {MERGE}")
}

/// The parts of an operation's key; `None` when an input's identity is not known yet, nor, for a source from the
/// network, its own `identity`.
pub(crate) fn parts(
    op: &Op,
    identity: Option<&str>,
    inputs: &dyn InputKeys,
) -> Result<Option<Parts>, KeyError> {
    match &op.kind {
        OpKind::Source(source) => Ok(source_parts(source, op, identity)),
        OpKind::Exec(exec) => exec_parts(exec, op, inputs),
        OpKind::File(file) => file_parts(file, inputs),
        OpKind::Merge => {
            let mut parts = Parts::new("merge", MERGE);
            for input in 0..op.inputs.len() {
                let Some(key) = inputs.whole(input) else {
                    return Ok(None);
                };
                parts.add("layers", key.as_bytes());
            }
            Ok(Some(parts))
        }
        OpKind::Diff { lower, upper } => {
            let mut parts = Parts::new("diff", MERGE);
            for (name, input) in [("lower", lower), ("upper", upper)] {
                if let Some(input) = input {
                    let Some(key) = inputs.whole(*input) else {
                        return Ok(None);
                    };
                    parts.add(name, key.as_bytes());
                }
            }
            Ok(Some(parts))
        }
    }
}

fn source_parts(source: &SourceOp, op: &Op, identity: Option<&str>) -> Option<Parts> {
    let mut parts = Parts::new("source", SOURCE);
    match source {
        SourceOp::Image { reference } | SourceOp::OciLayout { reference, .. } => {
            // The digest alone: the same image under another name is the same.
            let digest = reference
                .rsplit_once('@')
                .map_or(reference.as_str(), |(_, digest)| digest);
            parts.add("image", digest);
            if let Some(platform) = &op.platform {
                parts.add("platform", format!("{platform:?}"));
            }
        }
        SourceOp::Local { .. } => return None,
        SourceOp::Git {
            url,
            keep_git_dir,
            skip_submodules,
            checkout_times,
            checksum: _,
        } => {
            let (remote, fragment) = url.split_once('#').unwrap_or((url, ""));
            let folder = fragment.split_once(':').map_or("", |(_, folder)| folder);
            parts.add("commit", identity?).add("folder", folder);
            if *keep_git_dir {
                // It names the remote.
                parts.add("keep .git", remote);
            }
            if *skip_submodules {
                parts.add("submodules", "none");
            }
            if *checkout_times {
                parts.add("times", "checkout");
            }
        }
        SourceOp::Http {
            filename,
            mode,
            owner,
            ..
        } => {
            // Where the file comes from does not count.
            parts.add("content", identity?).add("name", filename);
            parts
                .add("mode", format!("{mode:?}"))
                .add("owner", format!("{owner:?}"));
        }
    }
    Some(parts)
}

fn exec_parts(exec: &ExecOp, op: &Op, inputs: &dyn InputKeys) -> Result<Option<Parts>, KeyError> {
    let mut parts = Parts::new("exec", EXEC);
    for (at, arg) in exec.args.iter().enumerate() {
        parts.add(format!("command {at}"), arg);
    }
    for variable in &exec.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        parts.add(format!("environment {name}"), value);
    }
    parts
        .add("working folder", &exec.cwd)
        .add("user", &exec.user)
        .add("host name", &exec.hostname);
    for (name, _) in &exec.extra_hosts {
        // The address is where the name is found today, not what the step does.
        parts.add("extra host", name);
    }
    parts
        .add("network", format!("{:?}", exec.network))
        .add("security", format!("{:?}", exec.security));
    for (name, soft, hard) in &exec.ulimits {
        parts.add(format!("limit {name}"), format!("{soft}:{hard}"));
    }
    if let Some(platform) = &op.platform {
        parts.add("platform", format!("{platform:?}"));
    }
    for mount in &exec.mounts {
        let selected = match mount.input {
            Some(input) if mount.dest != "/" => inputs.selected(input, &mount_selection(mount))?,
            _ => None,
        };
        let identity = mount_identity(mount, selected.is_none());
        parts.add(format!("mount {}", mount.dest), identity);
        let Some(input) = mount.input else { continue };
        let key = match selected {
            Some(key) => key,
            None => match inputs.whole(input) {
                Some(key) => key,
                None => return Ok(None),
            },
        };
        parts.add(mounted(mount), key.as_bytes());
    }
    Ok(Some(parts))
}

/// The part that stands for what a mount shows.
fn mounted(mount: &Mount) -> String {
    if mount.dest == "/" {
        "base".to_owned()
    } else {
        format!("files mounted at {}", mount.dest)
    }
}

/// The part that stands for what a copy reads.
fn copied(copy: &CopyAction) -> String {
    format!("files of {}", copy.src)
}

/// The parts that stand for whole inputs, each with the number of the input.
pub(crate) fn named_inputs(op: &Op) -> Vec<(String, usize)> {
    let named = |name: &str, input| (name.to_owned(), input);
    match &op.kind {
        OpKind::Source(_) => Vec::new(),
        OpKind::Exec(exec) => exec
            .mounts
            .iter()
            .filter_map(|mount| Some((mounted(mount), mount.input?)))
            .collect(),
        OpKind::File(file) => {
            let mut names = Vec::new();
            for action in &file.actions {
                if let FileInput::Input(input) = action.on {
                    names.push(named("base", input));
                }
                if let FileActionKind::Copy(copy) = &action.kind
                    && let Some(FileInput::Input(input)) = copy.from
                {
                    names.push(named("source", input));
                }
            }
            names
        }
        OpKind::Merge => (0..op.inputs.len())
            .map(|input| named("layers", input))
            .collect(),
        OpKind::Diff { lower, upper } => {
            let lower = lower.map(|input| named("lower", input));
            lower
                .into_iter()
                .chain(upper.map(|input| named("upper", input)))
                .collect()
        }
    }
}

/// The parts that stand for files of an input, each with the number of the input and the copy that reads them.
pub(crate) fn selections(op: &Op) -> Vec<(String, usize, CopyAction)> {
    match &op.kind {
        OpKind::Exec(exec) => exec
            .mounts
            .iter()
            .filter(|mount| mount.dest != "/")
            .filter_map(|mount| Some((mounted(mount), mount.input?, mount_selection(mount))))
            .collect(),
        OpKind::File(file) => file
            .actions
            .iter()
            .filter_map(|action| match &action.kind {
                FileActionKind::Copy(copy) => match copy.from {
                    Some(FileInput::Input(input)) => {
                        Some((copied(copy), input, copy.as_ref().clone()))
                    }
                    _ => None,
                },
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// What counts of a mount besides its input. The names of secrets count, their values do not; of a cache mount only that
/// it is there, for what it holds is not the step's to depend on. Where a bind mount's files lie in their tree counts only
/// if the whole tree stands for them.
fn mount_identity(mount: &Mount, whole: bool) -> String {
    let kind = match &mount.kind {
        MountKind::Bind => format!("bind {}", if whole { &mount.selector } else { "" }),
        MountKind::Cache { .. } => "cache".to_owned(),
        MountKind::Tmpfs { .. } => "tmpfs".to_owned(),
        MountKind::Secret {
            id,
            env,
            file,
            mode,
            uid,
            gid,
            optional,
        } => {
            format!("secret {id} {env:?} {file} {mode:?} {uid:?} {gid:?} {optional}")
        }
        MountKind::Ssh {
            id,
            mode,
            uid,
            gid,
            optional,
        } => format!("ssh {id} {mode:?} {uid:?} {gid:?} {optional}"),
    };
    format!(
        "{kind} readonly={} output={:?}",
        mount.readonly, mount.output
    )
}

/// Where what a mount takes of a local context lies in the tree made for it: a file or a folder.
pub(crate) const MOUNTED: &str = "/mounted";

/// The copy that reads just what a bind mount shows.
pub(crate) fn mount_selection(mount: &Mount) -> CopyAction {
    let src = if mount.selector.is_empty() {
        "/".to_owned()
    } else {
        mount.selector.clone()
    };
    CopyAction {
        src,
        dest: MOUNTED.to_owned(),
        follow_symlinks: true,
        ..CopyAction::default()
    }
}

fn file_parts(file: &FileOp, inputs: &dyn InputKeys) -> Result<Option<Parts>, KeyError> {
    let mut parts = Parts::new("file", FILE);
    for FileAction { on, output, kind } in &file.actions {
        match on {
            FileInput::Input(input) => {
                let Some(key) = inputs.whole(*input) else {
                    return Ok(None);
                };
                parts.add("base", key.as_bytes());
            }
            FileInput::Scratch => {
                parts.add("base", "empty");
            }
            FileInput::Action(action) => {
                parts.add("action", action.to_le_bytes());
            }
        }
        parts.add("output", format!("{output:?}"));
        let FileActionKind::Copy(copy) = kind else {
            parts.add(
                "action",
                serde_json::to_vec(kind).expect("an action always serialises"),
            );
            continue;
        };
        let selected = match copy.from {
            Some(FileInput::Input(input)) => inputs.selected(input, copy)?.map(|key| (input, key)),
            _ => None,
        };
        if let Some((_, key)) = selected {
            // Where the files lie in their tree does not count, only what they are and what they are called.
            let mut here = copy.as_ref().clone();
            last_component(&copy.src).clone_into(&mut here.src);
            parts.add(
                "copy",
                serde_json::to_vec(&here).expect("an action always serialises"),
            );
            parts.add(copied(copy), key.as_bytes());
            continue;
        }
        parts.add(
            "copy",
            serde_json::to_vec(copy).expect("an action always serialises"),
        );
        if let Some(FileInput::Input(input)) = copy.from {
            let Some(key) = inputs.whole(input) else {
                return Ok(None);
            };
            parts.add("source", key.as_bytes());
        }
    }
    Ok(Some(parts))
}

fn last_component(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
