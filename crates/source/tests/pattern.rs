//! The pattern language, by table and by property.

use kiln_source::ignore::{self, Rule};
use kiln_source::pattern::{MatchInfo, PatternMatcher, go_clean, go_match};
use proptest::prelude::*;

#[test]
fn names_match_as_in_go() {
    let cases = [
        ("abc", "abc", true),
        ("", "", true),
        ("*", "", true),
        ("*", "abc", true),
        ("*", "a/c", false),
        ("*c", "abc", true),
        ("a*", "a", true),
        ("a*/b", "abc/b", true),
        ("a*/b", "a/c/b", false),
        ("a*b*c*d*e*", "axbxcxdxe/f", false),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("**/x", "a/x", true),
        ("**/x", "a/b/x", false),
        ("?", "é", true),
        ("?", "/", false),
        ("a?b", "a☺b", true),
        ("a???b", "a☺b", false),
        ("[a-c]x", "bx", true),
        ("[^a-c]x", "bx", false),
        ("[^a-c]x", "/x", true),
        ("a[^a][^a][^a]b", "a☺b", false),
        ("[é-ü]", "ö", true),
        ("[[]x]", "[x]", true),
        ("[\\]a]", "]", true),
        ("[\\-x]", "-", true),
        ("[x\\-]", "z", false),
        ("[*]", "*", true),
        ("[*]", "x", false),
        ("a\\*b", "a*b", true),
        ("a\\*b", "axb", false),
        ("arr[[]0].txt", "arr[0].txt", true),
        ("]", "]", true),
        ("*.[oa]", "lib.a", true),
        // Go's own: the star takes one byte of three.
        ("*??", "☺", true),
    ];
    for (pattern, name, expected) in cases {
        assert_eq!(go_match(pattern, name), Ok(expected), "{pattern} {name}");
    }
    for pattern in [
        "[", "[]", "[]a]", "[-x]", "[x-]", "[a-b-c]", "a[", "\\", "x*\\", "[^", "[\\", "[a",
        "[^bc", "[-]",
    ] {
        assert!(go_match(pattern, "anything").is_err(), "{pattern}");
    }
    assert!(
        go_match("?", [0xff]).unwrap(),
        "a byte that is not UTF-8 is one character"
    );
}

#[test]
fn paths_are_cleaned_as_in_go() {
    let cases = [
        ("", "."),
        ("a//b/", "a/b"),
        ("./a/./b", "a/b"),
        ("a/../..", ".."),
        ("../../a", "../../a"),
        ("/../a", "/a"),
        ("/", "/"),
        ("a/b/../c", "a/c"),
    ];
    for (path, expected) in cases {
        assert_eq!(go_clean(path), expected, "{path}");
    }
}

/// What a walk from the top says about a path.
fn walked(matcher: &PatternMatcher, path: &str) -> bool {
    let mut info = MatchInfo::default();
    let mut matched = false;
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        (matched, info) = matcher.matches_using_parent(&path[..end], &info);
    }
    matched
}

#[test]
fn patterns_match_as_in_moby() {
    let cases: &[(&[&str], &[&str], &[&str])] = &[
        // Patterns stand for whole paths, and for all that is below.
        (&["a"], &["a", "a/b", "a/b/c"], &["b/a", "ab"]),
        (&["*.o"], &["x.o", "x.o/y"], &["a/x.o", "x.oo"]),
        (&["a/*.o"], &["a/x.o"], &["a/b/x.o", "x.o"]),
        (&["/a", "b/"], &["b/x"], &["a"]),
        (&["./a/../b"], &["b"], &["a"]),
        (&["a*/b"], &["abc/b", "abc/b/d"], &["a", "b"]),
        // Any number of folders.
        (&["**"], &["a", "a/b", ".x"], &[]),
        (&["**/"], &["a", "a/b"], &[]),
        (&["a/**"], &["a/b", "a/b/c"], &["a", "ab"]),
        (&["a**"], &["a", "ab", "a/b"], &["b"]),
        (&["**/a"], &["a", "b/a", "b/c/a/d"], &["ba", "b/aa"]),
        (&["**a"], &["a", "ba", "b/ca"], &["ab"]),
        (&["**/a/**"], &["a/b", "x/a/b"], &["a", "x/a"]),
        (&["a/**/b"], &["a/b", "a/x/b", "a/x/y/b/z"], &["a/xb", "ab"]),
        (&["a**b"], &["ab", "a/b", "ax/b"], &["axb"]),
        (&["**/*.py[co]"], &["x.pyc", "a/b/x.pyo"], &["x.py"]),
        (&["**/.git"], &[".git", "a/.git/config"], &["a.git"]),
        (&["*"], &["a", "a/b"], &[]),
        (&["*??"], &["☺☺", "ab"], &["☺"]),
        (&["*/*"], &["a/b", "a/b/c"], &["a"]),
        (&["a[^x]c"], &["abc", "a/c"], &["axc"]),
        (&["a\\*"], &["a*"], &["ab"]),
        (&["a+b.c(d)$"], &["a+b.c(d)$"], &["aab.c(d)$", "a+bxc(d)$"]),
        (&["  a  ", "", " "], &["a"], &[" "]),
        // The last rule that fits decides.
        (&["a", "!a/b"], &["a", "a/c"], &["a/b", "a/b/c"]),
        (&["!a/b", "a"], &["a", "a/b"], &[]),
        (
            &["*", "!README*", "README-secret"],
            &["x", "README-secret"],
            &["README", "README.md"],
        ),
        (
            &["**", "!a/**/*.c", "a/b/x.c"],
            &["a/b/x.c", "a/x.h", "a"],
            &["a/x.c", "a/b/y.c"],
        ),
        (&["*/x", "!b/x"], &["a/x"], &["b/x", "b/x/y"]),
        (&["!a"], &[], &["a", "b"]),
        (&["a/b", "a", "!a/b/c"], &["a/b", "a/b/d"], &["a/b/c"]),
    ];
    for (patterns, matching, other) in cases {
        let matcher = PatternMatcher::new(*patterns).unwrap();
        for (paths, expected) in [(matching, true), (other, false)] {
            for path in *paths {
                assert_eq!(
                    matcher.matches_or_parent_matches(path),
                    expected,
                    "{patterns:?} {path}"
                );
                assert_eq!(
                    walked(&matcher, path),
                    expected,
                    "walking: {patterns:?} {path}"
                );
            }
        }
    }
    for bad in ["[", "a\\", "[z-a]", "!["] {
        assert!(PatternMatcher::new([bad]).is_err(), "{bad}");
    }
    assert_eq!(
        PatternMatcher::new(["!"]).unwrap_err().to_string(),
        "illegal exclusion pattern: \"!\""
    );
    assert_eq!(
        PatternMatcher::new(["a[b"]).unwrap_err().to_string(),
        "syntax error in pattern \"a[b\""
    );
}

/// A walk passes over rules that could not change the outcome for a folder, so that they do not count for what is in
/// it. BuildKit 0.25 was tried with both contexts.
#[test]
fn a_walk_does_not_see_rules_that_were_passed_over() {
    let matcher = PatternMatcher::new(["src/vendor", "!src"]).unwrap();
    assert!(!matcher.matches_or_parent_matches("src/vendor/v"));
    assert!(walked(&matcher, "src/vendor") && walked(&matcher, "src/vendor/v"));
    assert!(!walked(&matcher, "src/b"));
    assert_eq!(matcher.deciding_rule("src/vendor/v"), Some((0, true)));
}

#[test]
fn ignore_files() {
    let text = b"\xef\xbb\xbf# comment\r\n\n  /a/b/  \r\n #not a comment\n! /c//d\n!\n./e/../f\n..\n/\nlast";
    assert_eq!(
        ignore::parse(text),
        ["a/b", "#not a comment", "!c/d", "!", "f", "..", "/", "last"]
    );
    assert_eq!(
        ignore::rules(text)[1],
        Rule {
            line: 4,
            pattern: "#not a comment".to_owned()
        }
    );
    assert!(ignore::parse(b"").is_empty());
}

#[test]
fn explanations() {
    let text = b"# built\n*.log\n\nnode_modules\n!node_modules/keep\n**/secret\n!a\n";
    let line = |path: &str| {
        ignore::explain(text, path)
            .unwrap()
            .map(|rule| (rule.line, rule.pattern))
    };
    assert_eq!(line("x.log"), Some((2, "*.log".to_owned())));
    assert_eq!(
        line("node_modules/a/b"),
        Some((4, "node_modules".to_owned()))
    );
    assert_eq!(line("node_modules/keep/b"), None);
    assert_eq!(
        line("node_modules/keep/secret/x"),
        Some((6, "**/secret".to_owned()))
    );
    assert_eq!(line("a"), None);
    assert!(ignore::explain(b"[", "a").is_err());
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]{1,2}", 1..5).prop_map(|names| names.join("/"))
}

fn pattern() -> impl Strategy<Value = String> {
    let name = prop_oneof![4 => "[ab]{1,2}", 1 => Just("*".to_owned()), 1 => Just("**".to_owned()),
        1 => Just("a*".to_owned()), 1 => Just("?".to_owned()), 1 => Just("[^b]".to_owned()), 1 => Just("**b".to_owned())];
    (any::<bool>(), prop::collection::vec(name, 1..4))
        .prop_map(|(not, names)| format!("{}{}", if not { "!" } else { "" }, names.join("/")))
}

/// Go's `Match` without classes, by trying everything.
fn naive(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => {
            naive(rest, name)
                || name
                    .split_first()
                    .is_some_and(|(&first, name)| first != b'/' && naive(pattern, name))
        }
        Some((b'?', rest)) => name
            .split_first()
            .is_some_and(|(&first, name)| first != b'/' && naive(rest, name)),
        Some((char, rest)) => name
            .split_first()
            .is_some_and(|(first, name)| first == char && naive(rest, name)),
    }
}

proptest! {
    #[test]
    fn globs_agree_with_trying_everything(pattern in "[ab*?/]{0,8}", name in "[ab/]{0,8}") {
        prop_assert_eq!(go_match(&pattern, &name).unwrap(), naive(pattern.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn no_pattern_panics(patterns in prop::collection::vec("\\PC{0,12}", 0..4), name in "\\PC{0,12}") {
        let _ = go_match(&patterns.concat(), &name);
        if let Ok(matcher) = PatternMatcher::new(&patterns) {
            matcher.matches_or_parent_matches(&name);
        }
    }

    /// What is cut off a walk holds nothing that would have been taken back.
    #[test]
    fn pruning_is_sound(patterns in prop::collection::vec(pattern(), 1..5), path in path(), rest in path()) {
        let matcher = PatternMatcher::new(&patterns).unwrap();
        let below = format!("{path}/{rest}");
        if walked(&matcher, &path) && !walked(&matcher, &below) {
            // One of the folders in between may still be entered only if each above it may.
            prop_assert!(matcher.may_take_back_below(&path), "{patterns:?} {path} {rest}");
        }
        if !walked(&matcher, &path) && walked(&matcher, &below) {
            prop_assert!(matcher.may_match_below(&path), "{patterns:?} {path} {rest}");
        }
        prop_assert_eq!(matcher.deciding_rule(&below).is_some_and(|(_, ignored)| ignored), walked(&matcher, &below));
    }
}
