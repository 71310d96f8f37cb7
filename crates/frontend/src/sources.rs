//! What a node starts from, in terms of facts, needs and source operations.

use kiln_graph::{Edge, Op, OpKind, Place, SourceOp};
use kiln_image::{ImageConfig, Platform, Reference};
use kiln_source::PatternMatcher;

use crate::build::Wrong;
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
                    Ok(self.of_image(
                        fact,
                        source,
                        platform,
                        format!("[context {name}] {reference}"),
                    ))
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
        Ok(self.of_image(fact, SourceOp::Image { reference: pinned }, platform, title))
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
        }
    }

    /// A context that is no image.
    fn plain(&self, name: &str, context: &Context, platform: &Platform) -> Result<Base, Missing> {
        let source = match context {
            Context::Local => {
                let Some(exclude) = self.facts.ignore.get(name) else {
                    return Err(Missing::Need(Box::new(Need::IgnoreFile {
                        context: name.to_owned(),
                    })));
                };
                Some(SourceOp::Local {
                    name: name.to_owned(),
                    exclude: exclude.clone(),
                })
            }
            Context::Git(url) => {
                let keep = self.options.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
                let keep_git_dir = keep.is_some_and(|value| matches!(value.as_str(), "1" | "true"));
                Some(SourceOp::Git {
                    url: url.clone(),
                    keep_git_dir,
                    checksum: None,
                })
            }
            Context::Http(url) => Some(SourceOp::Http {
                url: url.clone(),
                checksum: None,
                filename: MAIN_CONTEXT.to_owned(),
                mode: None,
                owner: None,
            }),
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
        })
    }

    /// What the ignore file of the main context leaves out, where that is known.
    pub(crate) fn ignored(&self) -> Result<Option<PatternMatcher>, Wrong> {
        if self.options.context != Context::Local {
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
    /// Adds the base to a graph.
    pub(crate) fn add(&self, graph: &mut kiln_graph::Graph, place: Place) -> Option<Edge> {
        let source = self.source.clone()?;
        let op = graph.add(Op {
            kind: OpKind::Source(source),
            inputs: Vec::new(),
            platform: self.platform.clone(),
            ignore_cache: false,
            place,
        });
        Some(Edge { op, output: 0 })
    }
}

/// The config of an image that is made from nothing.
fn empty_config(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig::scratch(platform);
    "/".clone_into(&mut config.config.working_dir);
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    config
}
