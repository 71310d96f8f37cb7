//! The display that shows only what failed.

use std::time::SystemTime;

use crate::display::Renderer;
use crate::event::Event;
use crate::model::Model;

pub(crate) struct Quiet(Model);

impl Quiet {
    pub(crate) fn new() -> Self {
        Self(Model::new())
    }
}

impl Renderer for Quiet {
    fn event(&mut self, event: Event, _: SystemTime, _: &mut Vec<u8>) {
        self.0.apply_keeping_output(&event);
    }

    fn finish(&mut self, _: SystemTime, out: &mut Vec<u8>) {
        self.0.write_failures(out);
    }
}
