//! The display of docker's builder before `BuildKit`: the steps of the Dockerfile one after the other, whatever order
//! they are executed in.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::SystemTime;

use crate::color::Colors;
use crate::display::Renderer;
use crate::event::Event;
use crate::model::{Model, State};

/// An instruction of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicStep {
    /// As it is written.
    pub text: String,
    /// The stage that it belongs to, as titles name it.
    pub stage: String,
    /// Its number in the stage, if it is one that is executed.
    pub number: Option<usize>,
}

pub(crate) struct Classic {
    model: Model,
    steps: Vec<ClassicStep>,
    /// The stage of titles that name none.
    target: String,
    vertices: HashMap<(String, usize), usize>,
    /// Lines that are not shown yet, for each vertex.
    waiting: Vec<Vec<String>>,
    /// A step began, so that all that will be there are known.
    begun: bool,
    /// The step that is shown, and whether its first line was.
    next: usize,
    headed: bool,
    /// Of the texts of all steps so far: what the steps are called.
    names: DefaultHasher,
    /// Twelve digits of the image's id.
    image: Option<String>,
}

impl Classic {
    pub(crate) fn new(steps: Vec<ClassicStep>, target: String) -> Self {
        Self {
            model: Model::new(),
            steps,
            target,
            vertices: HashMap::new(),
            waiting: Vec::new(),
            begun: false,
            next: 0,
            headed: false,
            names: DefaultHasher::new(),
            image: None,
        }
    }

    /// The stage and the number of `[stage 2/4] RUN x`.
    fn place(&self, title: &str) -> Option<(String, usize)> {
        let (place, _) = title.strip_prefix('[')?.split_once("] ")?;
        let (stage, numbers) = place.rsplit_once(' ').unwrap_or((&self.target, place));
        let (number, _) = numbers.split_once('/')?;
        Some((stage.to_owned(), number.parse().ok()?))
    }

    /// Shows as many steps as are known, in order.
    fn advance(&mut self, over: bool, out: &mut Vec<u8>) {
        while let Some(step) = self.steps.get(self.next) {
            let is_run = is(step, "RUN");
            let vertex = step
                .number
                .and_then(|number| self.vertices.get(&(step.stage.clone(), number)).copied());
            let needed = self.vertices.keys().any(|(stage, _)| *stage == step.stage);
            if !self.begun && !over {
                return;
            }
            let state = vertex.map(|at| &self.model.vertices[at].state);
            if over && (!needed || matches!(state, Some(State::Idle))) {
                // The build ended before it, or does not need it.
                if needed {
                    return;
                }
            } else if matches!(state, Some(State::Idle)) {
                return;
            }
            if !self.headed {
                let line = format!(
                    "Step {}/{} : {}\n",
                    self.next + 1,
                    self.steps.len(),
                    step.text
                );
                out.extend_from_slice(line.as_bytes());
                step.text.hash(&mut self.names);
                self.headed = true;
                if is_run && matches!(state, Some(State::Running | State::Done | State::Failed(_)))
                {
                    out.extend_from_slice(
                        format!(" ---> Running in {}\n", self.name(1)).as_bytes(),
                    );
                }
            }
            if let Some(lines) = vertex.and_then(|at| self.waiting.get_mut(at)) {
                for line in lines.drain(..) {
                    out.extend_from_slice(line.as_bytes());
                    out.push(b'\n');
                }
            }
            // What the last step made is the image, whose id scripts look for. It is known a little later.
            let is_last = step_is_last(&self.steps, self.next, &self.target);
            if is_last && self.image.is_none() && !over {
                return;
            }
            let state = vertex.map(|at| &self.model.vertices[at].state);
            match state {
                Some(State::Running) => return,
                Some(State::Failed(_) | State::Canceled) => {
                    // Nothing comes after it.
                    self.next = self.steps.len();
                    return;
                }
                Some(State::Cached) if !is(&self.steps[self.next], "FROM") => {
                    out.extend_from_slice(b" ---> Using cache\n");
                }
                Some(State::Done) if is_run => {
                    let line = format!(" ---> Removed intermediate container {}\n", self.name(1));
                    out.extend_from_slice(line.as_bytes());
                }
                _ => {}
            }
            if !needed && self.begun {
                out.extend_from_slice(b" ---> Skipped: the target does not need it\n");
            } else {
                let image = self.image.clone().filter(|_| is_last);
                let name = image.unwrap_or_else(|| self.name(0));
                out.extend_from_slice(format!(" ---> {name}\n").as_bytes());
            }
            self.next += 1;
            self.headed = false;
        }
    }

    /// Twelve digits for the step, or for the container that it ran in.
    fn name(&self, what: u8) -> String {
        let mut hasher = self.names.clone();
        what.hash(&mut hasher);
        format!("{:012x}", hasher.finish() >> 16)
    }
}

/// Whether a step is the last one of the target.
fn step_is_last(steps: &[ClassicStep], at: usize, target: &str) -> bool {
    steps.iter().rposition(|step| step.stage == target) == Some(at)
}

fn is(step: &ClassicStep, keyword: &str) -> bool {
    let first = step.text.split_whitespace().next().unwrap_or_default();
    first.eq_ignore_ascii_case(keyword)
}

impl Renderer for Classic {
    fn event(&mut self, event: Event, _: SystemTime, out: &mut Vec<u8>) {
        if let Event::Status { name, .. } = &event
            && let Some(digits) = name.strip_prefix("writing image sha256:")
        {
            self.image = digits.get(..12).map(str::to_owned);
        }
        let change = self.model.apply(&event);
        self.waiting
            .resize_with(self.model.vertices.len(), Vec::new);
        if let Some(change) = change {
            let lines = change.lines.into_iter().map(|line| line.text);
            self.waiting[change.vertex].extend(lines);
            let title = &self.model.vertices[change.vertex].title;
            if let Some(place) = self.place(title) {
                self.begun |= !matches!(event, Event::Vertex { .. } | Event::Reason { .. });
                self.vertices.insert(place, change.vertex);
            }
        }
        self.advance(false, out);
    }

    fn finish(&mut self, _: SystemTime, out: &mut Vec<u8>) {
        self.advance(true, out);
        self.model.write_warnings(&Colors::default(), out);
    }
}
