//! The cases of `conformance/`, one test a group; `cargo xtask conformance` runs them by name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use kiln_tests::{Kiln, Setting};
use xtask::conformance::{Builder, Case, check_all, folder};

fn check(group: &str) {
    let Some(kiln) = Kiln::shared(Setting::Root, &["busybox"]) else {
        return;
    };
    let work: PathBuf = kiln.file(group);
    std::fs::create_dir(&work).expect("own folder");
    let command = |args: &[OsString]| {
        let mut command = kiln.command(&[]);
        command.args(args);
        command
    };
    let builder = Builder::new(&command, &work, &work).expect("the base can be saved");
    let cases = Case::all(&folder(), &format!("{group}/")).expect("well-formed cases");
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
                check(stringify!($name));
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

groups! { add args copy env errors exclude from heredoc ignore metadata mounts onbuild parents run stages workdir }
