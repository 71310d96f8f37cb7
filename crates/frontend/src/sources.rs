//! What a node starts from, in terms of facts, needs and source operations.

use kiln_graph::{
    CopyAction, Edge, FileAction, FileActionKind, FileInput, FileOp, Graph, Op, OpKind, Place,
    SourceOp,
};
use kiln_image::{ImageConfig, Platform, Reference};
use kiln_source::PatternMatcher;

use crate::build::Wrong;
use crate::git::{self, percent_decoded};
use crate::stages::{NodeId, Nodes, Origin};
use crate::{Context, Facts, ImageFact, Need, Options};

/// The name of the main context.
pub(crate) const MAIN_CONTEXT: &str = "context";

/// The default `PATH` of Unix systems, put into images that have none.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The base of a node.
pub(crate) struct Base {
    /// Its tree; `None` for an empty one.
    pub source: Option<SourceOp>,
    /// The platform, where the source depends on it.
    pub platform: Option<Platform>,
    /// What it says of itself.
    pub config: ImageConfig,
    /// What the displays show.
    pub title: String,
    /// It is an image that a FROM names.
    pub is_image: bool,
    /// How many layers it has, when it is an image.
    pub layers: usize,
    /// It is an image of which nothing is known: all it says of itself is made up.
    pub unknown: bool,
    /// What becomes of the source before it is a tree.
    pub made: Made,
}

/// What becomes of a source before it is a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    /// Nothing: it is one.
    AsItIs,
    /// The file of that name is unpacked if it is an archive; what these patterns say is left out.
    Unpacked { file: String, exclude: Vec<String> },
}

/// Why there is no base.
pub(crate) enum Missing {
    /// Something must be known first.
    Need(Box<Need>),
    /// It cannot be.
    Wrong(String),
}

/// Gives bases to nodes as far as the facts go.
#[derive(Clone, Copy)]
pub(crate) struct Bases<'a> {
    pub options: &'a Options,
    pub facts: &'a Facts,
}

impl Bases<'_> {
    /// The platform that a node's base is for.
    pub(crate) fn platform(&self, nodes: &Nodes<'_>, node: NodeId) -> Platform {
        nodes.all[node]
            .platform
            .clone()
            .unwrap_or_else(|| self.options.target_platform.clone())
    }

    /// The base of a node that starts from no other stage.
    pub(crate) fn base(&self, nodes: &Nodes<'_>, node: NodeId) -> Result<Base, Missing> {
        let platform = self.platform(nodes, node);
        let lines = nodes.all[node].lines;
        let place = |title: String| Place {
            title,
            step: String::new(),
            stage: nodes.all[node].label.clone(),
            lines: Some((lines.first, lines.last)),
        };
        match &nodes.all[node].origin {
            Origin::Scratch | Origin::Stage(_) => Ok(Base {
                source: None,
                platform: None,
                config: empty_config(&self.options.target_platform),
                title: String::new(),
                is_image: false,
                layers: 0,
                unknown: false,
                made: Made::AsItIs,
            }),
            Origin::Image(reference) => self.image(reference, platform, &place),
            Origin::Context(name) => match &self.options.contexts[name] {
                Context::Image(text) => match text.parse() {
                    Ok(reference) => {
                        let base = self.image(&reference, platform, &place)?;
                        Ok(Base {
                            title: format!("[context {name}] {}", base.title),
                            ..base
                        })
                    }
                    Err(error) => Err(Missing::Wrong(format!(
                        "invalid context name {name}: {error}"
                    ))),
                },
                Context::OciLayout(suffix) => {
                    let tag = suffix.split('@').next().unwrap_or_default();
                    let separator = if suffix.is_empty() || suffix.starts_with('@') {
                        ""
                    } else {
                        ":"
                    };
                    let reference = format!("oci-layout://{name}{separator}{suffix}");
                    let fact = self.fact(&reference, &platform, place)?;
                    let source = SourceOp::OciLayout {
                        store: name.clone(),
                        reference: format!("{tag}@{}", fact.digest),
                    };
                    Ok(Base {
                        unknown: self.facts.unknown.contains(&reference),
                        ..self.of_image(
                            fact,
                            source,
                            platform,
                            format!("[context {name}] {reference}"),
                        )
                    })
                }
                plain => self.plain(name, plain, &platform),
            },
        }
    }

    fn image(
        &self,
        reference: &Reference,
        platform: Platform,
        place: &dyn Fn(String) -> Place,
    ) -> Result<Base, Missing> {
        let fact = self.fact(&reference.to_string(), &platform, place)?;
        let pinned = reference.with_digest(fact.digest).to_string();
        let title = format!("FROM {pinned}");
        let unknown = self.facts.unknown.contains(&reference.to_string());
        let source = SourceOp::Image { reference: pinned };
        Ok(Base {
            unknown,
            ..self.of_image(fact, source, platform, title)
        })
    }

    fn fact(
        &self,
        reference: &str,
        platform: &Platform,
        place: impl Fn(String) -> Place,
    ) -> Result<&ImageFact, Missing> {
        let key = (reference.to_owned(), platform.clone());
        self.facts.images.get(&key).ok_or_else(|| {
            let for_platform = if self.options.multi_platform {
                format!("{platform} ")
            } else {
                String::new()
            };
            let title = format!("[{for_platform}internal] load metadata for {reference}");
            let (reference, platform) = key;
            Missing::Need(Box::new(Need::ImageConfig {
                reference,
                platform,
                place: place(title),
            }))
        })
    }

    #[expect(clippy::unused_self, reason = "reads better beside its callers")]
    fn of_image(
        &self,
        fact: &ImageFact,
        source: SourceOp,
        platform: Platform,
        title: String,
    ) -> Base {
        let mut config = fact.config.clone();
        let layers = config.rootfs.diff_ids.len();
        let empty =
            config.rootfs.diff_ids.is_empty() && config.history.iter().all(|step| step.empty_layer);
        // What belongs to the base alone, and what no builder knows, is not handed on.
        config.created = None;
        config.rootfs.diff_ids.clear();
        config.extra.clear();
        config.config.extra.clear();
        Base {
            source: (!empty).then_some(source),
            platform: Some(platform),
            config,
            title,
            is_image: true,
            layers,
            unknown: false,
            made: Made::AsItIs,
        }
    }

    /// A context that is no image.
    fn plain(&self, name: &str, context: &Context, platform: &Platform) -> Result<Base, Missing> {
        let exclude = || match self.facts.ignore.get(name) {
            Some(exclude) => Ok(exclude.clone()),
            None => Err(Missing::Need(Box::new(Need::IgnoreFile {
                context: name.to_owned(),
            }))),
        };
        let mut made = Made::AsItIs;
        let source = match context {
            Context::Local => Some(SourceOp::Local {
                name: name.to_owned(),
                exclude: exclude()?,
            }),
            Context::Archive => {
                made = Made::Unpacked {
                    file: MAIN_CONTEXT.to_owned(),
                    exclude: exclude()?,
                };
                Some(SourceOp::Local {
                    name: name.to_owned(),
                    exclude: Vec::new(),
                })
            }
            Context::Git(url) => {
                Some(git::context(url, &self.options.build_args).map_err(Missing::Wrong)?)
            }
            Context::Http(url) => {
                let filename = file_name(url);
                made = Made::Unpacked {
                    file: filename.clone(),
                    exclude: Vec::new(),
                };
                Some(SourceOp::Http {
                    url: url.clone(),
                    checksum: None,
                    filename,
                    mode: None,
                    owner: None,
                })
            }
            Context::Empty | Context::Image(_) | Context::OciLayout(_) => None,
        };
        let title = match (name, context) {
            (MAIN_CONTEXT, Context::Local) => "[internal] load build context".to_owned(),
            (MAIN_CONTEXT, Context::Git(url)) => format!("[internal] load git source {url}"),
            (MAIN_CONTEXT, _) => "[internal] load remote build context".to_owned(),
            (name, Context::Local) => format!("[context {name}] load from client"),
            (name, _) => format!("[context {name}] load"),
        };
        Ok(Base {
            source,
            platform: None,
            config: empty_config(platform),
            title,
            is_image: false,
            layers: 0,
            unknown: false,
            made,
        })
    }

    /// What the ignore file of the main context leaves out, where that is known.
    pub(crate) fn ignored(&self) -> Result<Option<PatternMatcher>, Wrong> {
        if !matches!(self.options.context, Context::Local | Context::Archive) {
            return Ok(None);
        }
        let Some(patterns) = self.facts.ignore.get(MAIN_CONTEXT) else {
            return Ok(None);
        };
        let wrong = |error| Wrong::new(format!("invalid pattern in .dockerignore: {error}"));
        Ok(Some(PatternMatcher::new(patterns).map_err(wrong)?)
            .filter(|matcher| !matcher.is_empty()))
    }

    /// The main context.
    pub(crate) fn main_context(&self) -> Result<Base, Missing> {
        self.plain(
            MAIN_CONTEXT,
            &self.options.context,
            &self.options.target_platform,
        )
    }
}

impl Base {
    /// Adds the base to a graph, as a tree to copy from.
    pub(crate) fn add(&self, graph: &mut Graph, place: Place) -> Option<Edge> {
        let op = graph.add(Op {
            kind: OpKind::Source(self.source.clone()?),
            inputs: Vec::new(),
            platform: self.platform.clone(),
            ignore_cache: false,
            place: place.clone(),
        });
        let source = Edge { op, output: 0 };
        let Made::Unpacked { file, exclude } = &self.made else {
            return Some(source);
        };
        let mut copies = vec![CopyAction {
            src: format!("/{file}"),
            attempt_unpack: true,
            ..everything(FileInput::Input(0))
        }];
        if !exclude.is_empty() {
            copies.push(CopyAction {
                exclude_patterns: exclude.clone(),
                ..everything(FileInput::Action(0))
            });
        }
        Some(add_copies(graph, source, copies, place))
    }

    /// Adds the base to a graph, as the tree that a stage starts from: layers.
    pub(crate) fn add_root(&self, graph: &mut Graph, place: Place) -> Option<Edge> {
        let tree = self.add(graph, place.clone())?;
        if self.is_image || self.made != Made::AsItIs {
            return Some(tree);
        }
        let copy = everything(FileInput::Input(0));
        Some(add_copies(graph, tree, vec![copy], place))
    }
}

/// The copy of all that is in a tree to the root of another.
fn everything(from: FileInput) -> CopyAction {
    CopyAction {
        from: Some(from),
        src: "/".to_owned(),
        dest: "/".to_owned(),
        dir_copy_contents: true,
        create_dest_path: true,
        ..CopyAction::default()
    }
}

/// Copies, each onto nothing; the last one is the result.
fn add_copies(graph: &mut Graph, source: Edge, copies: Vec<CopyAction>, place: Place) -> Edge {
    let last = copies.len() - 1;
    let actions = copies.into_iter().enumerate().map(|(at, copy)| FileAction {
        on: FileInput::Scratch,
        output: (at == last).then_some(0),
        kind: FileActionKind::Copy(Box::new(copy)),
    });
    let file = FileOp {
        actions: actions.collect(),
    };
    let op = graph.add(Op {
        kind: OpKind::File(file),
        inputs: vec![source],
        platform: None,
        ignore_cache: false,
        // The source has the row in the displays.
        place: Place {
            title: String::new(),
            ..place
        },
    });
    Edge { op, output: 0 }
}

/// The name of the file that an address leads to: the last part of its path, as in `BuildKit`.
pub(crate) fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('/'))
        .map_or("", |(_, path)| path);
    let name = path
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    match percent_decoded(name) {
        name if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) => {
            "__unnamed__".to_owned()
        }
        name => name,
    }
}

/// The config of an image that is made from nothing.
fn empty_config(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig::scratch(platform);
    "/".clone_into(&mut config.config.working_dir);
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    config
}
