//! Expansion: tables, and that it never panics.

use kiln_dockerfile::{Expander, Variables, did_you_mean, nearest};
use proptest::prelude::*;

fn variables() -> Variables {
    [
        ("HOME", "/home/u"),
        ("EMPTY", ""),
        ("TWO", "one two"),
        ("FILE", "dir/name.tar.gz"),
        ("STARS", "a*b*c"),
        ("ÜBER", "umlaut"),
        ("REP", "foo bar foo"),
    ]
    .into_iter()
    .collect()
}

fn expand(text: &str) -> Result<String, String> {
    let expanded = Expander::new('\\').expand(text, &variables());
    expanded
        .map(|expanded| expanded.text)
        .map_err(|error| error.kind.to_string())
}

#[test]
fn substitution() {
    let cases = [
        ("plain", "plain"),
        ("$HOME", "/home/u"),
        ("${HOME}x", "/home/ux"),
        ("a$HOME/b", "a/home/u/b"),
        ("$UNSET-", "-"),
        ("$", "$"),
        ("$ x", "$ x"),
        ("a$.b", "a$.b"),
        ("$$", ""),
        ("$1x", "x"),
        ("$ÜBER", "umlaut"),
        ("\\$HOME", "$HOME"),
        ("\\\\$HOME", "\\/home/u"),
        ("'$HOME'", "$HOME"),
        ("\"$HOME\"", "/home/u"),
        ("\"\\$HOME \\\" \\\\ \\n\"", "$HOME \" \\ \\n"),
        ("a\\b", "ab"),
        ("end\\", "end"),
        ("${UNSET:-w}", "w"),
        ("${UNSET-w}", "w"),
        ("${EMPTY:-w}", "w"),
        ("${EMPTY-w}", ""),
        ("${HOME:-w}", "/home/u"),
        ("${UNSET:-${EMPTY:-$HOME}}", "/home/u"),
        ("${UNSET:-a b 'c d'}", "a b c d"),
        ("${UNSET:-\\}}", "}"),
        ("${HOME:+w}", "w"),
        ("${EMPTY:+w}", ""),
        ("${EMPTY+w}", "w"),
        ("${UNSET+w}", ""),
        ("${HOME:?no}", "/home/u"),
        ("${FILE#*/}", "name.tar.gz"),
        ("${FILE##*.}", "gz"),
        ("${FILE#*.}", "tar.gz"),
        ("${FILE%.*}", "dir/name.tar"),
        ("${FILE%%.*}", "dir/name"),
        ("${FILE%nothing}", "dir/name.tar.gz"),
        ("${FILE%?gz}", "dir/name.tar"),
        ("${FILE#dir\\/}", "name.tar.gz"),
        ("${STARS#a\\*}", "b*c"),
        ("${STARS%\\*c}", "a*b"),
        ("${STARS//\\*/-}", "a-b-c"),
        ("${UNSET#x}", ""),
        ("${REP/foo/x}", "x bar foo"),
        ("${REP//foo/x}", "x bar x"),
        ("${REP//o/}", "f bar f"),
        ("${REP/b*/x}", "foo x"),
        ("${REP//?oo/$EMPTY}", " bar "),
        ("${REP/zip/x}", "foo bar foo"),
        ("${UNSET/a/b}", ""),
    ];
    for (text, wanted) in cases {
        assert_eq!(expand(text).as_deref(), Ok(wanted), "{text}");
    }
}

#[test]
fn errors() {
    let cases = [
        ("${HOME", "syntax error: missing '}'"),
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:x}", "syntax error: bad substitution"),
        ("${HOME^}", "unsupported modifier (^) in substitution"),
        ("${HOME:x}", "unsupported modifier (:x) in substitution"),
        ("${HOME:-a", "syntax error: missing '}'"),
        ("${HOME/a}", "syntax error: missing '/' in ${}"),
        ("${UNSET:?}", "UNSET: is not allowed to be unset"),
        ("${UNSET?say it}", "UNSET: say it"),
        ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
        (
            "'open",
            "unexpected end of statement while looking for matching single-quote",
        ),
        (
            "\"open",
            "unexpected end of statement while looking for matching double-quote",
        ),
        (
            "${FILE#\\a}",
            "invalid pattern (\\a) in substitution: invalid escape '\\a'",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(expand(text), Err(wanted.to_owned()), "{text}");
    }
}

#[test]
fn words() {
    let cases: [(&str, &[&str]); 6] = [
        ("a  b", &["a", "b"]),
        ("$TWO three", &["one", "two", "three"]),
        ("\"$TWO\" three", &["one two", "three"]),
        ("a\\ b c", &["a b", "c"]),
        ("'' x", &["x"]),
        ("<< EOF <<x", &["<<EOF", "<<x"]),
    ];
    for (text, wanted) in cases {
        assert_eq!(
            Expander::new('\\')
                .expand(text, &variables())
                .unwrap()
                .words,
            wanted,
            "{text}"
        );
    }
}

#[test]
fn other_ways() {
    let variables = variables();
    let keep = Expander {
        keep_quotes: true,
        keep_unset: true,
        ..Expander::new('\\')
    };
    let kept = keep
        .expand("\"$HOME\" '$x' $x ${x:-w} ${x} ${x/a/b}", &variables)
        .unwrap();
    assert_eq!(kept.text, "\"/home/u\" '$x' $x ${x:-w} ${x} ${x/a/b}");
    let content = Expander {
        ignore_quotes: true,
        ..Expander::new('\\')
    };
    assert_eq!(
        content
            .expand("it's \"$HOME\" \\$x", &variables)
            .unwrap()
            .text,
        "it's \"/home/u\" $x"
    );
    assert_eq!(
        Expander::new('`')
            .expand("`$HOME C:\\x", &variables)
            .unwrap()
            .text,
        "$HOME C:\\x"
    );
}

#[test]
fn what_was_used() {
    let expanded = Expander::new('\\')
        .expand("$HOME ${A:-$B} '$C'", &variables())
        .unwrap();
    assert_eq!(expanded.used.into_iter().collect::<Vec<_>>(), ["HOME"]);
    assert_eq!(expanded.missing.into_iter().collect::<Vec<_>>(), ["A", "B"]);
}

#[test]
fn near_names() {
    let options = ["FROM", "RUN", "COPY"];
    assert_eq!(nearest("FORM", options), Some("FROM"));
    assert_eq!(nearest("copyy", options), Some("COPY"));
    assert_eq!(nearest("RUN", options), None, "it is one of them");
    assert_eq!(nearest("nothing", options), None);
    assert_eq!(
        did_you_mean("bulid", ["build"]).as_deref(),
        Some("did you mean build?")
    );
}

#[test]
fn deep_nesting_is_an_error() {
    let text = "${a:-".repeat(100_000);
    assert!(expand(&text).is_err());
}

/// Each level makes the value a hundred times as long.
#[test]
fn growth_without_measure_is_an_error() {
    let variables: Variables = [("A", "a".repeat(100))].into_iter().collect();
    let text = format!("{}b{}", "${A//a/".repeat(12), "}".repeat(12));
    let error = Expander::new('\\').expand(&text, &variables).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("substitutions give more than 1048576 bytes")
    );
    let error = Expander::new('\\')
        .expand(&"$A".repeat(20_000), &variables)
        .unwrap_err();
    assert_eq!(error.kind, kiln_dockerfile::ExpandErrorKind::TooLong);
}

/// A pattern of this size would take a backtracking matcher longer than the universe has.
#[test]
fn patterns_do_not_backtrack() {
    let variables: Variables = [("A", "a".repeat(2000))].into_iter().collect();
    let text = format!("${{A##{}b}}", "*a".repeat(50));
    assert_eq!(
        Expander::new('\\')
            .expand(&text, &variables)
            .unwrap()
            .text
            .len(),
        2000
    );
}

proptest! {
    #[test]
    fn never_panics(text in "[$a-c{}:#%/?*+\\\\'\" <x-]{0,40}", quotes: bool, escapes: bool, unset: bool) {
        let how = Expander { keep_quotes: quotes, keep_escapes: escapes, keep_unset: unset, ..Expander::new('\\') };
        let variables: Variables = [("a", "xabcx"), ("b", ""), ("c", "*")].into_iter().collect();
        let _ = how.expand(&text, &variables);
    }

    #[test]
    fn never_panics_on_anything(text in "\\PC*") {
        let _ = Expander::new('\\').expand(&text, &Variables::default());
    }

    /// Quoted text comes out as it went in.
    #[test]
    fn single_quotes_protect(text in "[^']*") {
        prop_assert_eq!(expand(&format!("'{text}'")), Ok(text));
    }

    /// Removing the longest match leaves no more than removing the shortest, and a part of the value.
    #[test]
    fn trimming(value in "[ab/.]{0,12}", pattern in "[ab/.*?]{0,6}") {
        let variables: Variables = [("v", value.clone())].into_iter().collect();
        let pattern = pattern.replace('/', "\\/");
        let trim = |modifier: &str| {
            Expander::new('\\').expand(&format!("${{v{modifier}{pattern}}}"), &variables).unwrap().text
        };
        let (short, long) = (trim("#"), trim("##"));
        prop_assert!(value.ends_with(&short) && short.ends_with(&long));
        let (short, long) = (trim("%"), trim("%%"));
        prop_assert!(value.starts_with(&short) && short.starts_with(&long));
    }
}
