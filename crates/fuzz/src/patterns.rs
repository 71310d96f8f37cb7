//! The pattern languages, against matchers that try everything.

use kiln_image::LayerPath;
use kiln_source::ignore;
use kiln_source::pattern::{MatchInfo, PatternMatcher, go_match};

/// Whether trying everything takes no longer than one would wait.
fn is_small(pattern: &str, path: &str) -> bool {
    const MOST: usize = 24;
    const MOST_STARS: usize = 5;
    pattern.len().max(path.len()) <= MOST && pattern.matches('*').count() <= MOST_STARS
}

/// The last line is a path, those before it are an ignore file.
pub(crate) fn patterns(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (file, path) = text.rsplit_once('\n').unwrap_or(("", &text));
    let rules = ignore::parse(file.as_bytes());
    let path = LayerPath::clean(path.as_bytes()).to_string();
    let path = path.trim_start_matches('/');

    for rule in &rules {
        let matched = go_match(rule, path);
        if let Ok(matched) = matched
            && is_small(rule, path)
            // Go's star can end inside a character.
            && path.is_ascii()
        {
            let expected = tried(&chars(rule), &chars(path), None);
            assert_eq!(matched, expected, "{rule:?} {path:?}");
        }
    }

    let Ok(matcher) = PatternMatcher::new(&rules) else {
        return;
    };
    if path.is_empty() {
        return;
    }
    // From the top to the path, as a walk does it.
    let mut info = MatchInfo::default();
    let mut decided = Vec::new();
    let ends = path.match_indices('/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        let (ignored, next) = matcher.matches_using_parent(&path[..end], &info);
        decided.push((&path[..end], ignored));
        info = next;
    }
    let ignored = decided.last().is_some_and(|(_, ignored)| *ignored);
    let by_rule = matcher.deciding_rule(path);
    assert_eq!(by_rule.is_some_and(|(_, ignored)| ignored), ignored);
    // A folder that is cut off holds nothing that would be there.
    for (folder, cut) in &decided[..decided.len() - 1] {
        if *cut && !ignored {
            assert!(
                matcher.may_take_back_below(folder),
                "{rules:?} {folder:?} {path:?}"
            );
        }
        if !*cut && ignored {
            assert!(
                matcher.may_match_below(folder),
                "{rules:?} {folder:?} {path:?}"
            );
        }
    }
    if rules.len() <= 8 && rules.iter().all(|rule| is_small(rule, path)) {
        assert_eq!(ignored, walked(&rules, path), "{rules:?} {path:?}");
    }
}

/// Whether a walk leaves a path out: the rules of moby's `MatchesUsingParentResults`, one after the other.
fn walked(rules: &[String], path: &str) -> bool {
    let rules: Vec<(bool, Vec<char>)> = rules
        .iter()
        .map(|rule| kiln_source::pattern::go_clean(rule.trim()))
        .map(|rule| match rule.strip_prefix('!') {
            Some(rest) => (true, chars(rest)),
            None => (false, chars(&rule)),
        })
        .collect();
    let mut fitted = vec![false; rules.len()];
    let mut ignored = false;
    let ends = path.match_indices('/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        ignored = false;
        let name = chars(&path[..end]);
        for ((taken_back, rule), fitted) in rules.iter().zip(&mut fitted) {
            *fitted = *fitted || (*taken_back == ignored && tried(rule, &name, Some(true)));
            if *fitted {
                ignored = !taken_back;
            }
        }
    }
    ignored
}

fn chars(text: &str) -> Vec<char> {
    text.chars().collect()
}

/// Whether a well-formed pattern stands for a name. `deep`: `**` is more than two stars, and whether this is where the
/// pattern starts.
fn tried(pattern: &[char], name: &[char], deep: Option<bool>) -> bool {
    let next = deep.map(|_| false);
    let Some((&first, rest)) = pattern.split_first() else {
        return name.is_empty();
    };
    let one = |fits: &dyn Fn(char) -> bool, rest: &[char]| {
        name.split_first()
            .is_some_and(|(&char, name)| fits(char) && tried(rest, name, next))
    };
    match first {
        '*' if deep.is_some() && rest.first() == Some(&'*') => {
            let behind = &rest[1..];
            let rest = behind.strip_prefix(&['/']).unwrap_or(behind);
            let wild = |char: &char| matches!(char, '*' | '?' | '[' | ']' | '\\');
            if rest.is_empty() {
                return true;
            }
            if deep == Some(true) && rest.len() == behind.len() && !rest.iter().any(wild) {
                return name.ends_with(rest);
            }
            let folders = (0..name.len()).filter(|&at| name[at] == '/');
            tried(rest, name, next)
                || folders
                    .into_iter()
                    .any(|at| tried(rest, &name[at + 1..], next))
        }
        '*' => {
            let length = name.iter().take_while(|&&char| char != '/').count();
            (0..=length).any(|taken| tried(rest, &name[taken..], next))
        }
        '?' => one(&|char| char != '/', rest),
        '\\' => one(&|char| char == rest[0], &rest[1..]),
        '[' => {
            let (negated, mut class) = match rest.strip_prefix(&['^']) {
                Some(class) => (true, class),
                None => (false, rest),
            };
            let mut ranges = Vec::new();
            let mut take = || {
                class = class.strip_prefix(&['\\']).unwrap_or(class);
                let char = class[0];
                class = &class[1..];
                let more = class[0];
                if more == '-' {
                    class = &class[1..];
                }
                (char, more)
            };
            let behind = loop {
                let (low, more) = take();
                let (high, more) = if more == '-' { take() } else { (low, more) };
                ranges.push((low, high));
                if more == ']' {
                    break &class[1..];
                }
            };
            let within = |char| {
                ranges
                    .iter()
                    .any(|&(low, high)| low <= char && char <= high)
            };
            one(&|char| within(char) != negated, behind)
        }
        char => one(&|there| there == char, rest),
    }
}
