//! What can be said of a Dockerfile without building anything: checks, outline, targets.

use std::path::PathBuf;

use kiln_dockerfile::{Diagnostic, SourceText, Warning};
use kiln_frontend::{Facts, ImageFact, Need, Outline, Target};
use kiln_image::{Digest, ImageConfig};
use kiln_progress::Sink;

use crate::build::{BuildRequest, find_out};
use crate::images::Images;
use crate::inputs::Inputs;
use crate::rows::Rows;
use crate::{BuildError, CancelFlag, Engine};

/// What is asked of a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// What the checks find.
    Check,
    /// What a build of the target takes.
    Outline,
    /// Which stages can be built.
    Targets,
}

/// What is said of it.
#[derive(Debug)]
pub enum Answer {
    /// What the checks found, in the order in which `BuildKit` finds it, and what stands in the way of a build.
    Checked(Vec<Warning>, Option<Box<Diagnostic>>),
    /// What a build of the target takes.
    Outline(Outline),
    /// Which stages can be built.
    Targets(Vec<Target>),
}

/// An answer about a Dockerfile.
#[derive(Debug)]
pub struct Analysis {
    /// The Dockerfile.
    pub source: SourceText,
    /// Where it lies, if it is a file of this machine.
    pub path: Option<PathBuf>,
    /// What is said of it.
    pub answer: Answer,
    /// What could not be found out, one sentence each.
    pub notes: Vec<String>,
}

impl Engine {
    /// Answers a question about a Dockerfile. Nothing is executed, no layer is fetched. An image that neither the
    /// store nor its registry knows anything of fails nothing: what depends on it is left out, and a note says so.
    ///
    /// # Errors
    /// When the Dockerfile cannot be read; for other questions than [`Question::Check`] also when it is wrong.
    pub fn analyse(
        &self,
        request: &BuildRequest,
        question: Question,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<Analysis, BuildError> {
        let mut rows = Rows::new(sink);
        let inputs = self.inputs(request, &mut rows, cancel)?;
        let source = SourceText::new(&inputs.dockerfile.name, &inputs.dockerfile.bytes);
        let failed = |error: Box<Diagnostic>| BuildError::diagnostic(&error, &source);
        let mut asking = Asking {
            engine: self,
            inputs: &inputs,
            source: &source,
            images: Images::new(self, request, cancel),
            rows,
            facts: Facts::default(),
            notes: Vec::new(),
        };
        let options = &inputs.options;
        let answer = match question {
            Question::Targets => Answer::Targets(kiln_frontend::targets(&source).map_err(failed)?),
            Question::Outline => loop {
                let outline = kiln_frontend::outline(&source, options, &asking.facts);
                match outline.map_err(failed)? {
                    Ok(outline) => break Answer::Outline(outline),
                    Err(needs) => asking.find_out(needs)?,
                }
            },
            Question::Check => {
                let mut warnings = Vec::new();
                let error = loop {
                    let facts = &asking.facts;
                    match kiln_frontend::check(&source, options, facts, &mut warnings) {
                        Ok(needs) if needs.is_empty() => break None,
                        Ok(needs) => asking.find_out(needs)?,
                        Err(error) => break Some(error),
                    }
                };
                Answer::Checked(warnings, error)
            }
        };
        let notes = asking.notes;
        Ok(Analysis {
            path: inputs.dockerfile.path.clone(),
            source,
            answer,
            notes,
        })
    }
}

struct Asking<'a> {
    engine: &'a Engine,
    inputs: &'a Inputs,
    source: &'a SourceText,
    images: Images<'a>,
    rows: Rows<'a>,
    facts: Facts,
    notes: Vec<String>,
}

impl Asking<'_> {
    /// What the store knows of an image for the platform of this machine, so that a check can tell that it is for
    /// another one than the file asks for.
    fn for_another_platform(&self, reference: &str) -> Option<ImageFact> {
        let name = reference.parse().ok()?;
        let platform = &self.inputs.options.build_platform;
        let found = self.engine.local_image(&name, platform).ok()??;
        Some(ImageFact {
            digest: found.manifest,
            config: found.config,
        })
    }

    fn find_out(&mut self, needs: Vec<Need>) -> Result<(), BuildError> {
        for need in needs {
            let asked = need.clone();
            let Self {
                inputs,
                source,
                images,
                rows,
                facts,
                ..
            } = self;
            let outcome = find_out(need, inputs, source, images, rows, facts);
            match (outcome, asked) {
                (
                    Err(error),
                    Need::ImageConfig {
                        reference,
                        platform,
                        ..
                    },
                ) if !error.canceled => {
                    let fact = self.for_another_platform(&reference).unwrap_or_else(|| {
                        self.notes.push(format!(
                            "nothing is known of {reference}: what depends on it is not checked ({error})"
                        ));
                        self.facts.unknown.insert(reference.clone());
                        ImageFact {
                            digest: Digest::new([0; 32]),
                            config: ImageConfig::scratch(&platform),
                        }
                    });
                    self.facts.images.insert((reference, platform), fact);
                }
                (outcome, _) => outcome?,
            }
        }
        Ok(())
    }
}
