//! The Dockerfile language.

use kiln_dockerfile::{
    Dockerfile, Expander, Heredoc, Instruction, Kind, Lines, MAX_EXPANDED, SourceText, Variables,
    parse,
};
use kiln_frontend::{Facts, ImageFact, Need, Options, Outcome};
use kiln_graph::llb;
use kiln_image::{Digest, ImageConfig, Platform};

/// Lines are those of the file and in order, and what was read can be written and read again.
pub(crate) fn dockerfile(data: &[u8]) {
    let source = SourceText::new("Dockerfile", data);
    let count = u32::try_from(source.text.lines().count()).unwrap_or(u32::MAX);
    let within =
        |lines: Lines| 1 <= lines.first && lines.first <= lines.last && lines.last <= count;
    let parsed = match parse(&source) {
        Ok(parsed) => parsed,
        Err(error) => {
            if let Some(lines) = error.lines {
                assert!(within(lines), "{lines:?} of {count}");
                assert!(error.excerpt(&source).is_some());
            }
            return;
        }
    };
    let mut before = 0;
    for stage in &parsed.stages {
        let instructions = stage.instructions.iter().map(|one| one.lines);
        for lines in std::iter::once(stage.lines).chain(instructions) {
            assert!(
                within(lines) && before < lines.first,
                "{lines:?} of {count}"
            );
            before = lines.last;
        }
        for instruction in &stage.instructions {
            if let Kind::Run(run) = &instruction.kind {
                // An error is fine, a panic is not.
                let _ = run.mounts(|value| Ok(value.to_owned()));
            }
        }
    }
    assert!(parsed.warnings.iter().all(|warning| within(warning.lines)));

    let Some(text) = printed(&parsed) else { return };
    let again = parse(&SourceText::new("Dockerfile", &text))
        .unwrap_or_else(|error| panic!("{text:?} cannot be read again: {error}"));
    assert_eq!(meaning(&parsed), meaning(&again), "printed as {text:?}");
}

/// What a file says, without where.
fn meaning(file: &Dockerfile) -> String {
    let kinds = |instructions: &[Instruction]| {
        let kinds = instructions.iter().map(|one| format!("{:?}", one.kind));
        kinds.collect::<Vec<_>>()
    };
    let stages = file.stages.iter().map(|stage| {
        let kinds = kinds(&stage.instructions);
        (&stage.name, &stage.base, &stage.platform, kinds)
    });
    format!(
        "{:?} {:?} {:?}",
        file.escape,
        kinds(&file.global_args),
        stages.collect::<Vec<_>>()
    )
}

/// The file with one line an instruction. `None` where that is no Dockerfile: a joined line that is too long, or that
/// would be continued since what kept it from it (a blank that is none to the lexer) was trimmed off.
fn printed(file: &Dockerfile) -> Option<String> {
    let mut text = format!("# escape={}\n", file.escape);
    let mut line = |original: &str, heredocs: &[Heredoc]| {
        if original.len() > 60_000 || original.ends_with(file.escape) || original.contains('\n') {
            return None;
        }
        text.push_str(original);
        text.push('\n');
        for heredoc in heredocs {
            text.push_str(&heredoc.body);
            text.push_str(&heredoc.name);
            text.push('\n');
        }
        Some(())
    };
    for argument in &file.global_args {
        line(&argument.original, &[])?;
    }
    for stage in &file.stages {
        line(&stage.original, &[])?;
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Run(run) => line(&instruction.original, &run.heredocs)?,
                Kind::Copy(copy) | Kind::Add(copy) => {
                    line(&instruction.original, &copy.heredocs)?;
                }
                // The trigger's bodies stand in its text, and only there.
                Kind::Onbuild(trigger) if trigger.contains('\n') => return None,
                _ => line(&instruction.original, &[])?,
            }
        }
    }
    Some(text)
}

/// Planning comes to an end, and the graph survives the way to LLB and back.
pub(crate) fn plan(data: &[u8]) {
    let source = SourceText::new("Dockerfile", data);
    let platform = Platform::new("linux", "amd64", "");
    let options = Options::new(platform.clone());
    let mut facts = Facts::default();
    let mut config = ImageConfig::scratch(&platform);
    config.config.env = vec!["PATH=/bin".to_owned()];
    config.config.on_build = vec!["RUN x".to_owned()];
    for _ in 0..200 {
        match kiln_frontend::plan(&source, &options, &facts) {
            Err(error) => {
                if let Some(lines) = error.lines {
                    assert!(error.excerpt(&source).is_some(), "{lines:?}");
                }
                return;
            }
            Ok(Outcome::Plan(plan)) => {
                let Some(result) = plan.result else { return };
                let bytes = llb::encode(&llb::to_definition(&plan.graph, result));
                let definition = llb::decode(&bytes).expect("what was encoded can be decoded");
                let (graph, target) = llb::from_definition(&definition).expect("a graph");
                assert_eq!((&graph, target), (&plan.graph, result));
                return;
            }
            Ok(Outcome::Needs(needs)) => {
                assert!(!needs.is_empty());
                for need in needs {
                    match need {
                        Need::ImageConfig {
                            reference,
                            platform,
                            ..
                        } => {
                            let fact = ImageFact {
                                digest: Digest::new([0xab; 32]),
                                config: config.clone(),
                            };
                            let old = facts.images.insert((reference, platform), fact);
                            assert!(old.is_none(), "asked twice for an image");
                        }
                        Need::IgnoreFile { context } => {
                            let old = facts.ignore.insert(context, Vec::new());
                            assert!(old.is_none(), "asked twice for an ignore file");
                        }
                    }
                }
            }
        }
    }
    panic!("needs without end");
}

/// The first byte says how, the first two lines are variables, the rest is the text.
pub(crate) fn expand(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let data = String::from_utf8_lossy(data);
    let mut parts = data.splitn(3, '\n');
    let (x, y, text) = (parts.next(), parts.next(), parts.next());
    let (x, y, text) = (
        x.unwrap_or_default(),
        y.unwrap_or_default(),
        text.unwrap_or_default(),
    );
    let expander = Expander {
        escape: if how & 0x20 == 0 { '\\' } else { '`' },
        keep_quotes: how & 1 != 0,
        keep_escapes: how & 2 != 0,
        keep_unset: how & 4 != 0,
        ignore_quotes: how & 8 != 0,
    };
    let variables: Variables = [("x", x), ("y", y)].into_iter().collect();
    if let Ok(expanded) = expander.expand(text, &variables) {
        assert!(expanded.used.iter().all(|name| name == "x" || name == "y"));
        assert!(expanded.used.is_disjoint(&expanded.missing));
        assert!(
            expanded.words.iter().all(|word| !word.is_empty()),
            "an empty word of {text:?}"
        );
        assert!(
            expanded.text.len() <= text.len() + MAX_EXPANDED,
            "{} bytes of {} bytes",
            expanded.text.len(),
            text.len()
        );
    }
    let special = |char: char| matches!(char, '$' | '\'' | '"') || char == expander.escape;
    if !text.contains(special) {
        let expanded = expander
            .expand(text, &variables)
            .expect("nothing to expand");
        assert_eq!(expanded.text, text);
        if !text.contains("<<") {
            assert!(expanded.words.iter().eq(text.split_whitespace()));
        }
    }
    // What keeps everything changes nothing: here-documents are found in a text like that.
    let keep = Expander {
        keep_quotes: true,
        keep_escapes: true,
        keep_unset: true,
        ignore_quotes: false,
        ..expander
    };
    if let Ok(kept) = keep.expand(text, &Variables::default())
        && kept.missing.is_empty()
    {
        assert_eq!(kept.text, text);
    }
}
