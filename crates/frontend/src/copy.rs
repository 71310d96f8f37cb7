//! COPY and ADD.

use kiln_dockerfile::{Expander, Rule, Transfer};
use kiln_graph::{
    CopyAction, Edge, FileAction, FileActionKind, FileInput, FileOp, Op, OpKind, Place, SourceOp,
};
use kiln_image::LayerPath;

use crate::build::{Stage, Wrong, owner};
use crate::git::{self, GitSource};
use crate::sources::file_name;
use crate::stages::NodeId;

/// Whether a source is an address, not a path.
pub(crate) fn is_remote(source: &str) -> bool {
    is_http(source) || git::parse(source).is_some_and(|parsed| parsed.is_ok())
}

fn is_http(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The inputs and actions of the operation under construction.
struct Copies {
    inputs: Vec<Edge>,
    actions: Vec<FileAction>,
    on: FileInput,
    template: CopyAction,
}

impl Copies {
    fn push(&mut self, from: Option<Edge>, action: CopyAction) {
        let from = match from {
            None => FileInput::Scratch,
            Some(edge) => {
                let known = self.inputs.iter().position(|known| *known == edge);
                FileInput::Input(known.unwrap_or_else(|| {
                    self.inputs.push(edge);
                    self.inputs.len() - 1
                }))
            }
        };
        let on = self
            .actions
            .len()
            .checked_sub(1)
            .map_or(self.on, FileInput::Action);
        let kind = FileActionKind::Copy(Box::new(CopyAction {
            from: Some(from),
            ..action
        }));
        self.actions.push(FileAction {
            on,
            output: None,
            kind,
        });
    }
}

impl Stage<'_, '_> {
    /// Adds a COPY or ADD.
    pub(crate) fn copy(
        &mut self,
        copy: &Transfer,
        add: bool,
        original: &str,
        from: Option<NodeId>,
    ) -> Result<(), Wrong> {
        let keyword = if add { "ADD" } else { "COPY" };
        let copy = self.expand_transfer(copy)?;
        let step = self.step_text(original, Expander::new(self.builder.escape));
        let place = self.numbered_place(&step);
        let linked = copy.link && copy.chmod.is_none();
        let (on, inputs) = if linked {
            (FileInput::Scratch, Vec::new())
        } else {
            self.tree()
        };
        let several = copy.sources.len() + copy.heredocs.len() > 1;
        let mut copies = Copies {
            inputs,
            actions: Vec::new(),
            on,
            template: CopyAction {
                dest: destination(&self.state.cwd, &copy.destination, several),
                owner: owner(copy.chown.as_deref().unwrap_or_default(), on),
                mode: copy.chmod.as_deref().map(chmod).transpose()?,
                create_dest_path: true,
                exclude_patterns: copy.exclude.clone(),
                ..CopyAction::default()
            },
        };
        self.check_checksum(&copy, add)?;
        for source in &copy.sources {
            match git::parse(source) {
                Some(parsed) => {
                    let parsed = parsed.map_err(|message| Wrong::new(message).at(source))?;
                    if !add {
                        return Err(Wrong::new("source can't be a git ref for COPY")
                            .at(source)
                            .hint("ADD takes git repositories"));
                    }
                    self.add_git(parsed, &copy, &place, &mut copies)?;
                }
                None if is_http(source) && !add => {
                    return Err(Wrong::new("source can't be a URL for COPY")
                        .at(source)
                        .hint("ADD takes addresses"));
                }
                None if is_http(source) => self.add_http(source, &copy, &place, &mut copies),
                None => self.add_path(source, &copy, add, from, &mut copies)?,
            }
        }
        for heredoc in &copy.heredocs {
            let edge = self.inline_file(&heredoc.name, 0o644, heredoc.content());
            let src = LayerPath::clean(&heredoc.name).to_string();
            let action = CopyAction {
                src,
                ..copies.template.clone()
            };
            copies.push(Some(edge), action);
        }
        let Copies {
            inputs,
            mut actions,
            ..
        } = copies;
        let Some(last) = actions.last_mut() else {
            return Err(Wrong::new(format!("{keyword} has no sources")));
        };
        last.output = Some(0);
        self.add_file_op(FileOp { actions }, inputs, linked, &step, place);
        self.history(history(keyword, &copy), true);
        Ok(())
    }

    fn add_file_op(
        &mut self,
        file: FileOp,
        inputs: Vec<Edge>,
        linked: bool,
        step: &str,
        place: Place,
    ) {
        let below = self.state.edge;
        let ignore_cache = self.ignore_cache;
        self.add(Op {
            kind: OpKind::File(file),
            inputs,
            platform: None,
            ignore_cache,
            place,
        });
        if let (true, Some(below), Some(copied)) = (linked, below, self.state.edge) {
            let link = format!("LINK {step}");
            let place = self.place(self.titled(&link), link);
            let inputs = vec![below, copied];
            self.add(Op {
                kind: OpKind::Merge,
                inputs,
                platform: None,
                ignore_cache,
                place,
            });
        }
    }

    fn expand_transfer(&mut self, copy: &Transfer) -> Result<Transfer, Wrong> {
        let mut copy = copy.clone();
        for text in [&mut copy.chown, &mut copy.chmod, &mut copy.checksum]
            .into_iter()
            .flatten()
        {
            *text = self.word(text)?;
        }
        // Not the patterns of --exclude: BuildKit takes them as they are.
        for text in &mut copy.sources {
            *text = self.word(text)?;
        }
        copy.destination = self.word(&copy.destination)?;
        // Quotes mean nothing in a file's content.
        let how = Expander {
            ignore_quotes: true,
            ..Expander::new('\\')
        };
        for heredoc in copy.heredocs.iter_mut().filter(|heredoc| heredoc.expand) {
            heredoc.body = self.word_with(&heredoc.content(), how)?;
            heredoc.strip_tabs = false;
        }
        copy.chown = copy.chown.filter(|text| !text.is_empty());
        copy.chmod = copy.chmod.filter(|text| !text.is_empty());
        copy.checksum = copy.checksum.filter(|text| !text.is_empty());
        Ok(copy)
    }

    #[expect(clippy::unused_self, reason = "reads better beside its callers")]
    fn check_checksum(&self, copy: &Transfer, add: bool) -> Result<(), Wrong> {
        if copy.checksum.is_none() {
            return Ok(());
        }
        if !add {
            return Err(Wrong::new("checksum can't be specified for COPY").at("--checksum"));
        }
        match &copy.sources[..] {
            [source] if copy.heredocs.is_empty() && is_remote(source) => Ok(()),
            [_] if copy.heredocs.is_empty() => {
                Err(Wrong::new("checksum requires HTTP(S) or Git sources").at("--checksum"))
            }
            _ => {
                Err(Wrong::new("checksum can't be specified for multiple sources").at("--checksum"))
            }
        }
    }

    fn source_edge(&mut self, source: SourceOp, title: &str, place: &Place) -> Edge {
        let kind = OpKind::Source(source);
        let place = Place {
            title: title.to_owned(),
            ..place.clone()
        };
        let op = self.builder.graph.add(Op {
            kind,
            inputs: Vec::new(),
            platform: None,
            ignore_cache: false,
            place,
        });
        Edge { op, output: 0 }
    }

    fn add_git(
        &mut self,
        source: GitSource,
        copy: &Transfer,
        place: &Place,
        copies: &mut Copies,
    ) -> Result<(), Wrong> {
        let keep = match (copy.keep_git_dir, source.keep_git_dir) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(
                    Wrong::new("inconsistent keep-git-dir configuration").at("--keep-git-dir")
                );
            }
            (flag, query) => query.or(flag).unwrap_or(false),
        };
        let checksum = match (&copy.checksum, &source.checksum) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(Wrong::new(format!(
                    "checksum mismatch {flag:?} != {query:?}"
                )));
            }
            (flag, query) => query.as_ref().or(flag.as_ref()).cloned(),
        };
        let title = source.url.clone();
        let source = GitSource { checksum, ..source }.op(keep);
        let edge = self.source_edge(source, &title, place);
        let action = CopyAction {
            src: "/".to_owned(),
            dir_copy_contents: true,
            ..copies.template.clone()
        };
        copies.push(Some(edge), action);
        Ok(())
    }

    fn add_http(&mut self, url: &str, copy: &Transfer, place: &Place, copies: &mut Copies) {
        let filename = file_name(url);
        let source = SourceOp::Http {
            url: url.to_owned(),
            checksum: copy.checksum.clone(),
            filename: filename.clone(),
            mode: None,
            owner: None,
        };
        let edge = self.source_edge(source, url, place);
        let action = CopyAction {
            src: format!("/{filename}"),
            attempt_unpack: copy.unpack.unwrap_or(false),
            ..copies.template.clone()
        };
        copies.push(Some(edge), action);
    }

    /// Warns about a path that the ignore file leaves out.
    fn check_ignored(&mut self, source: &str, add: bool) -> Result<(), Wrong> {
        if has_wildcards(source) {
            return Ok(());
        }
        let path = LayerPath::clean(source);
        let ignored = self.builder.bases.ignored()?.is_some_and(|matcher| {
            // What `!` takes back below a folder is still copied with it.
            matcher.matches_or_parent_matches(path.as_bytes())
                && !matcher.may_take_back_below(path.as_bytes())
        });
        if ignored && !path.is_root() {
            let keyword = if add { "Add" } else { "Copy" };
            let message = format!(
                "Attempting to {keyword} file {source:?} that is excluded by .dockerignore"
            );
            self.builder
                .checks
                .add(Rule::CopyIgnoredFile, self.lines, message);
        }
        Ok(())
    }

    fn add_path(
        &mut self,
        source: &str,
        copy: &Transfer,
        add: bool,
        from: Option<NodeId>,
        copies: &mut Copies,
    ) -> Result<(), Wrong> {
        let tree = match from {
            None => {
                self.check_ignored(source, add)?;
                self.main_context()?
            }
            Some(node) => {
                let later = || {
                    let (name, own) = (copy.from.as_deref().unwrap_or_default(), &self.node.label);
                    Wrong::new(format!(
                        "cannot copy from stage {name:?}, it needs to be defined before current stage {own:?}"
                    ))
                    .at(name)
                };
                self.builder.built(node).ok_or_else(later)?.edge
            }
        };
        let mut action = CopyAction {
            src: LayerPath::clean(source).to_string(),
            follow_symlinks: true,
            dir_copy_contents: true,
            attempt_unpack: copy.unpack.unwrap_or(add),
            allow_wildcard: true,
            allow_empty_wildcard: true,
            ..copies.template.clone()
        };
        if copy.parents {
            let (pivot, below) = source.split_once("/./").unwrap_or(("/", source));
            let pivot = LayerPath::clean(pivot).to_string();
            let pattern = LayerPath::clean(below).to_string();
            action.include_patterns = vec![pattern.trim_start_matches('/').to_owned()];
            action.src.clone_from(&pivot);
            action.parents_pivot = Some(pivot);
        }
        copies.push(tree, action);
        Ok(())
    }
}

/// Whether a path is a pattern.
fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(char) = chars.next() {
        match char {
            '*' | '?' | '[' => return true,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    false
}

/// The destination as an absolute path; a slash at its end stays, and several sources need one.
fn destination(cwd: &str, text: &str, several: bool) -> String {
    let path = match text {
        "" => format!("{cwd}/"),
        text if text.starts_with('/') => text.to_owned(),
        text => format!("{cwd}/{text}"),
    };
    let folder = several || text == "." || ["/", "/."].iter().any(|end| path.ends_with(end));
    let clean = LayerPath::clean(&path).to_string();
    if folder && clean != "/" {
        clean + "/"
    } else {
        clean
    }
}

/// Checks a mode: octal up to 07777, or symbolic.
fn chmod(text: &str) -> Result<String, Wrong> {
    let numeric = text.starts_with(|char: char| char.is_ascii_digit());
    if numeric {
        return match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(text.to_owned()),
            _ => Err(Wrong::new(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            ))
            .at(text)),
        };
    }
    let clause = |clause: &str| {
        let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        let mut parts = rest.split_inclusive(['+', '-', '=']);
        // What stands before the first operator was taken off: the first part is the operator alone.
        parts
            .next()
            .is_some_and(|first| matches!(first, "+" | "-" | "="))
            && parts.all(|part| {
                let perms = part.trim_end_matches(['+', '-', '=']);
                perms.chars().all(|char| "rwxXst".contains(char))
                    || matches!(perms, "u" | "g" | "o")
            })
    };
    if text.split(',').all(clause) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!(
        "invalid chmod parameter: '{text}'. it should be octal or symbolic (u=rwX,go=rX)"
    ))
    .at(text))
}

fn history(keyword: &str, copy: &Transfer) -> String {
    let mut line = keyword.to_owned();
    if copy.parents {
        line.push_str(" --parents");
    }
    for (flag, value) in [("chown", &copy.chown), ("chmod", &copy.chmod)] {
        if let Some(value) = value {
            line.extend([" --", flag, "=", value]);
        }
    }
    for source in &copy.sources {
        line.extend([" ", source]);
    }
    for heredoc in &copy.heredocs {
        line.extend([" <<", &heredoc.name]);
    }
    line.extend([" ", &copy.destination, " # buildkit"]);
    line
}
