//! `kiln pull` and `kiln push`.

use std::process::ExitCode;

use anyhow::Result;
use kiln_engine::{BuildError, Engine, PushRequest};
use kiln_image::Reference;

use super::platforms::{find_image_for, find_target, platform};
use super::{display, reference};
use crate::args::{PullArgs, PushArgs};
use crate::context::{Place, cores};
use crate::format::say;

/// The name, and whether its tag is the usual one because none was given.
fn named(text: &str) -> Result<(Reference, bool)> {
    let name = reference(text)?;
    let exact = Reference::parse_exact(text)?;
    let added = exact.tag().is_none() && exact.digest().is_none();
    Ok((name, added))
}

/// What is left over of work that failed goes.
fn clean_up(engine: &Engine) {
    engine.worker.end();
    // The next build looks again.
    let _ = engine.sweep();
}

pub(super) fn pull(place: &Place, args: &PullArgs) -> Result<ExitCode> {
    args.docker.check()?;
    let (name, added) = named(&args.name)?;
    let platform = platform(args.platform.as_deref())?;
    let mode = display::mode(args.quiet, &args.progress)?;
    let engine = place.engine()?;
    let cancel = crate::signals::give_up_on_signal()?;
    if added && !args.quiet {
        say("Using default tag: latest");
    }
    let display = kiln_progress::display(display::options(mode));
    let pulled = engine.pull(&name, &platform, &display, &cancel);
    // Who closes standard error does not want to see it.
    let _ = display.finish();
    let pulled = pulled.inspect_err(|_| clean_up(&engine))?;
    if pulled.new {
        engine.sweep()?;
        crate::worker::settle_later(place);
    }
    if !args.quiet {
        say(&format!("Digest: {}", pulled.digest));
        say(&if pulled.new {
            format!("Status: Downloaded newer image for {}", name.familiar())
        } else {
            format!("Status: Image is up to date for {}", name.familiar())
        });
    }
    say(&name.to_string());
    Ok(ExitCode::SUCCESS)
}

/// Hands an image to the Docker Engine.
fn push_to_docker(place: &Place, args: &PushArgs, text: &str) -> Result<ExitCode> {
    let host = crate::context::docker_host()?;
    let (name, _) = named(text)?;
    if name.digest().is_some() {
        return Err(
            BuildError::new(format!("{text}: Docker takes no digest as a name"))
                .with_hint("give the image a tag: kiln tag")
                .into(),
        );
    }
    let mode = display::mode(args.quiet, &args.progress)?;
    let engine = place.engine()?;
    let wanted = args.platform.as_deref().map(|text| platform(Some(text)));
    let image = find_image_for(&engine.store, text, wanted.transpose()?.as_ref())?;
    let cancel = crate::signals::give_up_on_signal()?;
    let display = kiln_progress::display(display::options(mode));
    let names = vec![name.clone()];
    let said = engine.push_to_docker(&host, (image, names), cores(), &display, &cancel);
    // Who closes standard error does not want to see it.
    let _ = display.finish();
    let said = said.inspect_err(|_| engine.worker.end())?;
    say(if args.quiet || said.trim().is_empty() {
        name.familiar()
    } else {
        said.trim().to_owned()
    }
    .as_str());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn push(place: &Place, args: &PushArgs) -> Result<ExitCode> {
    args.docker.check()?;
    if let Some(name) = args.name.strip_prefix("docker-daemon:") {
        return push_to_docker(place, args, name);
    }
    let (name, added) = named(&args.name)?;
    let Some(tag) = name.tag().filter(|_| name.digest().is_none()) else {
        return Err(
            BuildError::new(format!("{}: cannot push a digest", args.name))
                .with_hint("give the image a tag: kiln tag")
                .into(),
        );
    };
    let mode = display::mode(args.quiet, &args.progress)?;
    let engine = place.engine()?;
    let cancel = crate::signals::give_up_on_signal()?;
    if !args.quiet {
        if added {
            say("Using default tag: latest");
        }
        say(&format!("The push refers to repository [{}]", name.name()));
    }
    let image = find_target(&engine.store, &args.name).map_err(|_| {
        BuildError::new(format!(
            "an image does not exist locally with the tag: {}",
            name.familiar_name()
        ))
        .with_hint("see kiln images; kiln tag gives an image a further name")
    })?;
    let image = match &args.platform {
        None => image,
        Some(text) => find_image_for(&engine.store, &args.name, Some(&platform(Some(text))?))?,
    };
    let request = PushRequest {
        image,
        name: name.clone(),
        packing: kiln_export::Packing {
            distribute_foreign: args.push_foreign_layers,
            ..kiln_export::Packing::default()
        },
        cores: cores(),
    };
    let display = kiln_progress::display(display::options(mode));
    let pushed = engine.push(&request, &display, &cancel);
    // Who closes standard error does not want to see it.
    let _ = display.finish();
    let pushed = pushed.inspect_err(|_| engine.worker.end())?;
    say(&if args.quiet {
        name.to_string()
    } else {
        format!("{tag}: digest: {} size: {}", pushed.digest, pushed.size)
    });
    Ok(ExitCode::SUCCESS)
}
