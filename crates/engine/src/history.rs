//! What is remembered of builds, and what a build would do.

use std::time::{Duration, SystemTime};

use kiln_progress::{Event, Sink};
use kiln_store::{Build, BuildOutcome, BuildStep, NewBuild, Store};

use crate::build::{BuildRequest, DockerfileFrom, Goal, MainContext, Reached};

use crate::{BuildError, CancelFlag, Engine};

impl Engine {
    /// What a build would execute and why. Executes nothing, and writes nothing but what it learnt of contexts.
    ///
    /// # Errors
    /// When the plan cannot be made.
    pub fn look_ahead(
        &self,
        request: &BuildRequest,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<Vec<BuildStep>, BuildError> {
        let started = SystemTime::now();
        let mut steps = Vec::new();
        let outcome = self.build_inner(Goal::Look, request, sink, cancel, &mut steps);
        sink.emit(Event::Ended {
            took: started.elapsed().unwrap_or_default(),
            ok: outcome.is_ok(),
        });
        outcome.map(|_| steps)
    }

    /// The latest build of the same Dockerfile in the same context.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn latest_build(&self, request: &BuildRequest) -> Result<Option<Build>, BuildError> {
        Ok(self.store.builds(Some(&origin(request)), 1)?.pop())
    }

    /// Remembers a build.
    pub(crate) fn remember(
        &self,
        request: &BuildRequest,
        started: SystemTime,
        took: Duration,
        outcome: &Result<Reached, BuildError>,
        mut steps: Vec<BuildStep>,
        log: Option<String>,
    ) {
        for step in &mut steps {
            let more = step.changes.len().saturating_sub(BuildStep::MOST_CHANGES);
            if more > 0 {
                step.changes.truncate(BuildStep::MOST_CHANGES);
                step.changes.push(format!("and {more} more"));
            }
        }
        let (ended, error, image) = match outcome {
            Ok(Reached::Image(built)) => {
                let image = built.image.as_ref().map(|image| image.config);
                (BuildOutcome::Done, None, image)
            }
            Ok(Reached::Step(_) | Reached::Looked) => (BuildOutcome::Done, None, None),
            Err(error) if error.canceled => (BuildOutcome::Canceled, None, None),
            Err(error) => (BuildOutcome::Failed, Some(error.message.clone()), None),
        };
        let mut names = Vec::new();
        for output in &request.outputs {
            names.extend(output.names().iter().map(ToString::to_string));
        }
        let build = NewBuild {
            origin: origin(request),
            command: request.command.clone(),
            names,
            started,
            took,
            outcome: ended,
            error,
            image,
            log,
            steps,
        };
        // The result is there; a build is not worth failing for its own history.
        let has_file = build.log.as_deref().is_some_and(Store::is_log_file);
        let _ = self.store.put_build(&build);
        if has_file {
            let _ = self.store.sweep_logs();
        }
    }
}

/// The same text for the same Dockerfile in the same context.
pub(crate) fn origin(request: &BuildRequest) -> String {
    let context = match &request.context {
        MainContext::Folder(folder) => {
            let folder = folder.canonicalize().unwrap_or_else(|_| folder.clone());
            folder.display().to_string()
        }
        MainContext::Empty => String::new(),
        MainContext::Stream(_) => "-".to_owned(),
        MainContext::Git(address) | MainContext::Http(address) => address.clone(),
    };
    let dockerfile = match &request.dockerfile {
        DockerfileFrom::Text(dockerfile) => match &dockerfile.path {
            Some(path) => path
                .canonicalize()
                .unwrap_or_else(|_| path.clone())
                .display()
                .to_string(),
            None => "-".to_owned(),
        },
        DockerfileFrom::Context(path) => path.clone().unwrap_or_default(),
        DockerfileFrom::Url(url) => url.clone(),
    };
    format!("{context}\n{dockerfile}")
}
