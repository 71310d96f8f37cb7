//! `kiln info`: where Kiln runs and how.

use std::process::ExitCode;

use anyhow::Result;
use kiln_sandbox::Isolation;

use crate::context::Place;
use crate::format::say;

pub(super) fn info(place: &Place) -> Result<ExitCode> {
    let engine = place.engine()?;
    let isolation = match &place.isolation {
        Isolation::Root => "root",
        Isolation::MappedIds { tools: None, .. } => "user namespace with all own ids",
        Isolation::MappedIds { .. } => "user namespace with subordinate ids",
        Isolation::SingleId { .. } => "user namespace with a single id",
    };
    say(&format!("Version: {}", env!("CARGO_PKG_VERSION")));
    say(&format!("Store: {}", place.root.display()));
    say(&format!("Isolation: {isolation} ({})", place.reason));
    let facts = engine.worker.facts()?;
    say(&format!(
        "Root file systems: {} ({})",
        facts.provider, facts.reason
    ));
    say(&format!("Platform: {}", kiln_image::Platform::host()));
    say(&format!("Processors: {}", crate::context::cores()));
    Ok(ExitCode::SUCCESS)
}
