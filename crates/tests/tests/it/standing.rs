//! A COPY of many files of which few changed: its layer stands on the folder of the one before, and nobody can tell.

use std::path::Path;

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! {
    seen_as_if_made_whole kept_as_long_as_needed made_again_when_damaged whole_where_it_cannot_stand
}

const FILES: usize = 400;

/// All that can be told of files and folders, but what a folder's size and link count are: an overlay gives those of one
/// of the folders that it merges.
const LOOK: &str = "cd /app; find . -type d -exec stat -c '%n %a %u:%g %Y' {} + | sort; \
    find . ! -type d -exec stat -c '%n %a %u:%g %h %Y %s' {} + | sort; find . -type f -exec md5sum {} + | sort -k 2";

/// All that does not depend on when steps ran.
const CONTENT: &str = "cd /app; find . -exec stat -c '%n %a %u:%g %F' {} + | sort; find . -type f -exec md5sum {} + | sort -k 2";

const DOCKERFILE: &str = "FROM busybox AS a\nWORKDIR /app\nCOPY --chown=3:4 tree .\n\
    RUN find . -name 'f*' | wc -l; cat d3/f13; echo more >> d3/f13; echo more >> d4/f14; rm d5/f15; mv d6/f16 d6/moved; rm -r d7; \
    ls d4 d5 d6; cat d3/f13 d4/f14\n\
    FROM busybox\nCOPY --from=a /app /app\n";

fn context(kiln: &Kiln, dockerfile: &str) -> String {
    let names: Vec<String> = (0..FILES)
        .map(|number| format!("tree/d{}/f{number}", number % 10))
        .collect();
    let mut files: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "as it was\n")).collect();
    files.push(("Dockerfile", dockerfile));
    kiln.context(&files)
}

fn change(context: &str, path: &str, content: &str) {
    std::fs::write(Path::new(context).join("tree").join(path), content).expect("own file");
}

fn sh(kiln: &Kiln, script: &str) -> String {
    let output = kiln
        .wrapped(&["sh", "-c", script], &[])
        .output()
        .expect("sh starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The layers that stand on another one, each with that one.
fn standing(kiln: &Kiln) -> Vec<(String, String)> {
    let said = sh(
        kiln,
        "cd \"$KILN_ROOT/layers\" && for f in */below; do [ -f $f ] && echo ${f%/below} $(cat $f); done",
    );
    let pair = |line: &str| {
        line.split_once(' ')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
    };
    said.lines().filter_map(pair).collect()
}

fn layers(kiln: &Kiln, image: &str) -> String {
    let layers = [
        "image",
        "inspect",
        "--format",
        "{{json .RootFS.Layers}}",
        image,
    ];
    kiln.run(&layers).ok().stdout
}

fn seen_as_if_made_whole(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = context(&kiln, DOCKERFILE);
    kiln.build(&["-t", "one", &context]).ok();
    assert_eq!(standing(&kiln), []);
    change(&context, "d3/f13", "changed\n");
    change(&context, "d3/new", "new\n");
    kiln.build(&["-t", "two", &context])
        .ok()
        .says(&["why: tree/d3/f13 changed (and 1 more file)", "changed"]);
    let stand = standing(&kiln);
    assert_eq!(stand.len(), 2, "both COPYs: {stand:?}");
    // Never on one that stands itself.
    change(&context, "d8/f18", "changed, too\n");
    kiln.build(&["-t", "two", &context]).ok();
    let again = standing(&kiln);
    assert_eq!(again.len(), 4, "{again:?}");
    let whole = |(_, below): &(String, String)| stand.iter().any(|(_, known)| known == below);
    assert!(again.iter().all(whole), "{again:?}");
    // The same, made whole.
    kiln.build(&["-t", "whole", "--no-cache", &context]).ok();
    assert!(standing(&kiln).iter().all(|it| again.contains(it)));
    let look = |image: &str, script: &str| {
        let run = ["run", "--rm", image, "sh", "-c", script];
        kiln.run(&run).ok().stdout
    };
    assert_eq!(look("two", CONTENT), look("whole", CONTENT));
    // Of a COPY alone all is the same, to the last byte and second.
    let file = Path::new(&context).join("Dockerfile");
    std::fs::write(&file, "FROM busybox\nCOPY --chown=3:4 tree /app\n").expect("own file");
    kiln.build(&["-t", "plain", &context]).ok();
    change(&context, "d9/f19", "another\n");
    kiln.build(&["-t", "stands", &context]).ok();
    kiln.build(&["-t", "made-whole", "--no-cache", &context])
        .ok();
    let seen = look("stands", LOOK);
    assert_eq!(seen, look("made-whole", LOOK));
    assert!(seen.lines().count() > 2 * FILES, "{seen}");
    assert_eq!(layers(&kiln, "stands"), layers(&kiln, "made-whole"));
    std::fs::write(&file, DOCKERFILE).expect("own file");
    // All ways out, and all that is looked at.
    let out = kiln.file("out");
    let to = format!("type=local,dest={}", out.display());
    kiln.build(&["-o", &to, &context]).ok();
    let names = sh(
        &kiln,
        &format!(
            "cd '{}/app' && ls | wc -l; cat d8/f18 d9/f19",
            out.display()
        ),
    );
    assert_eq!(names, "9\nchanged, too\nanother\n");
    let archive = kiln.file("saved.tar");
    let name = archive.to_string_lossy();
    kiln.run(&["save", "-o", &name, "stands"]).ok();
    kiln.run(&["rmi", "stands"]).ok();
    kiln.run(&["load", "-i", &name]).ok();
    assert_eq!(look("stands", LOOK), seen);
    kiln.run(&["system", "check", "--deep"]).ok();
    kiln.leaves_nothing();
}

/// What `kiln system df` and `du` say.
fn space(kiln: &Kiln) -> (u64, u64) {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let df = || {
        let said = kiln
            .run(&["system", "df", "--format", "{{.StoreBytes}}"])
            .ok();
        number(said.stdout.lines().next().expect("a number"))
    };
    let du = || {
        let said = sh(kiln, "du -s -B1 \"$KILN_ROOT\" 2>/dev/null");
        number(said.split_whitespace().next().expect("a number"))
    };
    let mut said = (df(), du());
    for _ in 0..50 {
        // What runs on after a build may still be writing to the database.
        if said.0 == said.1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        said = (df(), du());
    }
    said
}

fn kept_as_long_as_needed(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = context(&kiln, "FROM busybox\nCOPY tree /app\n");
    kiln.build(&["-t", "one", &context]).ok();
    let (ours, theirs) = space(&kiln);
    assert_eq!(ours, theirs, "before");
    change(&context, "d3/f13", "changed\n");
    kiln.build(&["-t", "two", &context]).ok();
    assert_eq!(standing(&kiln).len(), 1);
    let (with, theirs) = space(&kiln);
    assert_eq!(with, theirs, "with a layer that stands");
    assert!(with < ours + 1_000_000, "{ours} {with}");
    // Nothing but the image is left of the one, and all that the other needs.
    kiln.run(&["rmi", "one"]).ok();
    kiln.run(&["builder", "prune", "-a", "-f"]).ok();
    let count = [
        "run",
        "--rm",
        "two",
        "sh",
        "-c",
        "find /app -type f | wc -l; cat /app/d3/f13",
    ];
    kiln.run(&count).ok().says(&["400", "changed"]);
    kiln.run(&["system", "check", "--deep"]).ok();
    let (ours, theirs) = space(&kiln);
    assert_eq!(ours, theirs, "after the prune");
    // And the other way round: the one that is stood on stays without what stands on it.
    kiln.build(&["-t", "three", &context]).ok();
    kiln.run(&["rmi", "two", "three"]).ok();
    kiln.run(&["builder", "prune", "-a", "-f"]).ok();
    assert_eq!(standing(&kiln), []);
    let left = sh(&kiln, "ls \"$KILN_ROOT/layers\"");
    assert_eq!(left.lines().count(), 1, "the base image's: {left}");
}

fn made_again_when_damaged(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let mut text = "FROM busybox\nCOPY tree /app\nRUN find /app -type f | wc -l\n".to_owned();
    let context = context(&kiln, &text);
    kiln.build(&[&context]).ok();
    change(&context, "d3/f13", "changed\n");
    kiln.build(&[&context]).ok();
    let stand = standing(&kiln);
    let [(_, below)] = &*stand else {
        panic!("{stand:?}")
    };
    sh(&kiln, &format!("rm -r \"$KILN_ROOT/layers/{below}/fs\""));
    kiln.run(&["system", "check"])
        .failed()
        .says(&["the layer that it stands on is not there"]);
    // A further change cannot stand on it.
    change(&context, "d3/f13", "changed again\n");
    kiln.build(&[&context]).ok().says(&["400"]);
    assert_eq!(standing(&kiln), stand);
    // What stands on it is made again.
    change(&context, "d3/f13", "changed\n");
    text.push_str("RUN cat /app/d3/f13 /app/d4/f14\n");
    std::fs::write(Path::new(&context).join("Dockerfile"), &text).expect("own file");
    kiln.build(&[&context]).ok().says(&[
        "the layer that it stands on is not there",
        "changed",
        "as it was",
    ]);
    kiln.run(&["system", "check", "--deep", "--repair"]);
    kiln.build(&[&context]).ok();
    kiln.run(&["system", "check", "--deep"]).ok();
}

fn whole_where_it_cannot_stand(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = context(
        &kiln,
        "FROM busybox\nCOPY tree /app\nRUN find /app -type f | wc -l\n",
    );
    let build = || kiln.build(&[&context]).ok();
    build().says(&["400"]);
    // Something is gone.
    std::fs::remove_file(Path::new(&context).join("tree/d3/f13")).expect("own file");
    build().says(&["399"]);
    assert_eq!(standing(&kiln), []);
    // Too much is different.
    for number in 0..150 {
        if number != 13 {
            change(
                &context,
                &format!("d{}/f{number}", number % 10),
                "changed\n",
            );
        }
    }
    build().says(&["399"]);
    assert_eq!(standing(&kiln), []);
    change(&context, "d4/f14", "once more\n");
    build().says(&["399"]);
    assert_eq!(standing(&kiln).len(), 1);
}
