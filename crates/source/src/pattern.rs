//! The pattern language of `.dockerignore`, `--exclude` and `--parents`: what moby's `patternmatcher` accepts.
//!
//! It is not gitignore: a pattern stands for a whole path from the root (`*.o` finds none below a folder), `**` stands
//! for any number of folders, a pattern that stands for a folder stands for all below it, `!` takes back, and the last
//! rule that fits decides. One difference is on purpose: `*` and `?` inside a class (`[*]`) are members of the class,
//! as in Go's `filepath.Match`; moby's translation to a regular expression makes nonsense of them.

pub use crate::glob::{BadPattern, Glob, go_clean, go_match};
use crate::glob::{Token, Tokens, class};

/// Why a list of patterns is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not well formed.
    #[error(transparent)]
    Bad(#[from] BadPattern),
    /// A `!` with nothing behind it.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyExclusion,
}

/// An ordered list of patterns.
#[derive(Debug, Clone, Default)]
pub struct PatternMatcher {
    rules: Vec<Rule>,
    exclusions: bool,
}

#[derive(Debug, Clone)]
struct Rule {
    /// Position in the list that was given.
    given: usize,
    exclusion: bool,
    tokens: Tokens,
}

/// Which rules stand for a folder, directly or through one of its parents; to be handed to the look-ups of what is in
/// the folder. The default knows nothing of the parents: each rule is tried on every one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MatchInfo(Vec<bool>);

impl PatternMatcher {
    /// Compiles the patterns. Blank ones are passed over; each is trimmed and cleaned.
    ///
    /// # Errors
    /// When a pattern is not well formed.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, PatternError> {
        let mut rules = Vec::new();
        for (given, pattern) in patterns.into_iter().enumerate() {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let cleaned = go_clean(pattern);
            let (exclusion, body) = match cleaned.strip_prefix('!') {
                Some("") => return Err(PatternError::EmptyExclusion),
                Some(body) => (true, body),
                None => (false, &*cleaned),
            };
            Glob::new(body)?;
            rules.push(Rule {
                given,
                exclusion,
                tokens: compile(body)?,
            });
        }
        let exclusions = rules.iter().any(|rule| rule.exclusion);
        Ok(Self { rules, exclusions })
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether there is a pattern with `!`.
    pub fn has_exclusions(&self) -> bool {
        self.exclusions
    }

    /// Whether the patterns stand for `path` (slashes between the names, none at the ends), by itself or through one
    /// of its parents.
    pub fn matches_or_parent_matches(&self, path: impl AsRef<[u8]>) -> bool {
        self.look_up(path.as_ref(), &MatchInfo::default())
            .0
            .is_some_and(|rule| !rule.exclusion)
    }

    /// Like [`PatternMatcher::matches_or_parent_matches`] for a walk from the top: `parent` is what the look-up of the
    /// folder gave. The two can differ where a rule for a parent was not asked because it could not have changed the
    /// parent's outcome (`a/b` then `!a`: a walk leaves `a/b` out); the walk is what a build sees.
    pub fn matches_using_parent(
        &self,
        path: impl AsRef<[u8]>,
        parent: &MatchInfo,
    ) -> (bool, MatchInfo) {
        let (rule, info) = self.look_up(path.as_ref(), parent);
        (rule.is_some_and(|rule| !rule.exclusion), info)
    }

    /// The rule that decides about `path` in a walk from the top, as its position in the list given to
    /// [`PatternMatcher::new`], and whether it stands for the path (`false`: it takes the path back). `None` when no
    /// rule has a say.
    pub fn deciding_rule(&self, path: impl AsRef<[u8]>) -> Option<(usize, bool)> {
        let path = path.as_ref();
        let mut info = MatchInfo::default();
        let mut decided = None;
        let ends = path
            .iter()
            .enumerate()
            .filter(|&(_, &byte)| byte == b'/')
            .map(|(at, _)| at)
            .chain([path.len()]);
        for end in ends {
            let (rule, next) = self.look_up(&path[..end], &info);
            decided = rule.map(|rule| (rule.given, !rule.exclusion));
            info = next;
        }
        decided
    }

    /// Whether something below the folder `folder`, which the patterns stand for, could still be taken back by a `!`.
    pub fn may_take_back_below(&self, folder: impl AsRef<[u8]>) -> bool {
        if !self.exclusions {
            return false;
        }
        let mut start = folder.as_ref().to_vec();
        start.push(b'/');
        self.rules
            .iter()
            .any(|rule| rule.exclusion && rule.tokens.matches_beyond(&start))
    }

    /// Whether the patterns can stand for something below `folder`, which they do not stand for.
    pub fn may_match_below(&self, folder: impl AsRef<[u8]>) -> bool {
        let mut start = folder.as_ref().to_vec();
        start.push(b'/');
        self.rules
            .iter()
            .any(|rule| !rule.exclusion && rule.tokens.matches_beyond(&start))
    }

    fn look_up(&self, path: &[u8], parent: &MatchInfo) -> (Option<&Rule>, MatchInfo) {
        let mut decided: Option<&Rule> = None;
        let mut info = vec![false; self.rules.len()];
        for (at, rule) in self.rules.iter().enumerate() {
            let matched = decided.is_some_and(|rule| !rule.exclusion);
            let inherited = parent.0.get(at).copied().unwrap_or(false);
            // A rule that could not change the outcome is not tried. Callers can see that (its place in the match
            // info stays false), so it is part of the meaning and not only for speed.
            let fits = inherited
                || (rule.exclusion == matched
                    && (rule.tokens.matches(path)
                        || (parent.0.is_empty() && rule.matches_parent(path))));
            info[at] = fits;
            if fits {
                decided = Some(rule);
            }
        }
        (decided, MatchInfo(info))
    }
}

impl Rule {
    fn matches_parent(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        slashes
            .into_iter()
            .any(|(at, _)| self.tokens.matches(&path[..at]))
    }
}

/// Compiles a cleaned pattern.
fn compile(pattern: &str) -> Result<Tokens, BadPattern> {
    let bad = || BadPattern {
        pattern: pattern.to_owned(),
    };
    let mut tokens = Tokens::default();
    let mut rest = pattern;
    let mut first = true;
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        match char {
            '*' => match rest.strip_prefix('*') {
                Some(behind) => {
                    rest = behind.strip_prefix('/').unwrap_or(behind);
                    // `**x` at the start stands for every path that ends in x, unless x has wildcards itself.
                    let plain =
                        first && behind == rest && !rest.contains(['*', '?', '[', ']', '\\']);
                    tokens.push(if rest.is_empty() || plain {
                        Token::Deep
                    } else {
                        Token::DeepFolder
                    });
                }
                None => tokens.push(Token::Star),
            },
            '?' => tokens.push(Token::One),
            '[' => {
                let (token, behind) = class(rest).ok_or_else(bad)?;
                if matches!(&token, Token::Class { ranges, .. } if ranges.iter().any(|(low, high)| low > high))
                {
                    return Err(bad());
                }
                tokens.push(token);
                rest = behind;
            }
            '\\' => {
                let escaped = rest.chars().next().ok_or_else(bad)?;
                rest = &rest[escaped.len_utf8()..];
                tokens.literal(escaped);
            }
            char => tokens.literal(char),
        }
        first = false;
    }
    Ok(tokens)
}
