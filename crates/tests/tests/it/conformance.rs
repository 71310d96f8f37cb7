//! The cases of `conformance/`, one test a group; `cargo xtask conformance` runs them by name. Groups about files
//! and processes are run by a plain user, too.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use kiln_tests::{Kiln, Setting};
use xtask::conformance::{Builder, Case, check_all, folder};

fn check(group: &str, setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let work: PathBuf = kiln.file(group);
    std::fs::create_dir(&work).expect("own folder");
    let command = |args: &[OsString]| {
        let mut command = kiln.command(&[]);
        command.args(args);
        command
    };
    let home = work.parent().expect("below the home");
    let home = std::fs::metadata(home).expect("a home");
    let owner = (home.uid(), home.gid());
    std::os::unix::fs::chown(&work, Some(owner.0), Some(owner.1)).expect("own folder");
    let mut builder = Builder::new(&command, &work, &work).expect("the base can be saved");
    builder.owner = (setting != Setting::Root).then_some(owner);
    let mut cases = Case::all(&folder(), &format!("{group}/")).expect("well-formed cases");
    cases.retain(|case| setting == Setting::Root || !case.needs_root);
    assert!(!cases.is_empty(), "no cases in {group}");
    let mut report = String::new();
    for (case, error) in check_all(&builder, &cases) {
        let _ = writeln!(report, "{}: {error:#}\n", case.title());
    }
    assert!(report.is_empty(), "{report}");
}

macro_rules! groups {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name), Setting::Root);
            }
        )*

        #[test]
        fn no_group_is_forgotten() {
            let tested: BTreeSet<String> = [$(stringify!($name)),*].map(str::to_owned).into();
            let cases = Case::all(&folder(), "").expect("well-formed cases");
            let there: BTreeSet<String> = cases.into_iter().map(|case| case.group).collect();
            assert_eq!(there, tested);
        }
    };
}

groups! { add args behaviours copy env errors exclude from heredoc ignore metadata mounts onbuild parents run stages workdir }

mod by_a_plain_user {
    use super::{Setting, check};

    macro_rules! groups {
        ($($name:ident)*) => {
            $(
                #[test]
                fn $name() {
                    check(stringify!($name), Setting::User);
                }
            )*
        };
    }

    groups! { add behaviours copy from ignore mounts parents run workdir }
}
