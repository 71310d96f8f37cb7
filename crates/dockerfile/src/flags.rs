//! The flags of one instruction.

use crate::parse::Complaint;
use crate::suggest::did_you_mean;

/// Flags by name, taken out one by one by those who know them; what is left is unknown.
pub(crate) struct Flags {
    /// Name, value if there was an equals sign.
    given: Vec<(String, Option<String>)>,
    known: Vec<&'static str>,
}

impl Flags {
    pub(crate) fn new(words: &[String]) -> Self {
        let split = |word: &String| {
            let word = word.trim_start_matches("--");
            match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word.to_owned(), None),
            }
        };
        Self {
            given: words.iter().map(split).collect(),
            known: Vec::new(),
        }
    }

    fn take(&mut self, name: &'static str) -> impl Iterator<Item = Option<String>> {
        self.known.push(name);
        self.given
            .extract_if(.., move |(given, _)| given == name)
            .map(|(_, value)| value)
    }

    #[expect(
        clippy::option_option,
        reason = "not given, given alone, given with a value"
    )]
    fn take_one(&mut self, name: &'static str) -> Result<Option<Option<String>>, Complaint> {
        let mut all = self.take(name);
        let first = all.next();
        if all.next().is_some() {
            let message = format!("duplicate flag specified: --{name}");
            return Err(Complaint::new(message).at(format!("--{name}")));
        }
        Ok(first)
    }

    /// The value of a flag that may be given once.
    pub(crate) fn string(&mut self, name: &'static str) -> Result<Option<String>, Complaint> {
        match self.take_one(name)? {
            Some(None) => Err(missing(name)),
            Some(value) => Ok(value.filter(|value| !value.is_empty())),
            None => Ok(None),
        }
    }

    /// The values of a flag that may be given many times.
    pub(crate) fn strings(&mut self, name: &'static str) -> Result<Vec<String>, Complaint> {
        self.take(name)
            .map(|value| value.ok_or_else(|| missing(name)))
            .collect()
    }

    /// A flag that is true, false, or given alone.
    pub(crate) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, Complaint> {
        let Some(value) = self.take_one(name)? else {
            return Ok(None);
        };
        match value.as_deref().map(str::to_lowercase).as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some("") => Err(missing(name)),
            Some(other) => {
                let message = format!("expecting boolean value for flag --{name}, not: {other}");
                Err(Complaint::new(message).at(format!("--{name}={other}")))
            }
        }
    }

    /// Every flag must have been taken.
    pub(crate) fn finish(self) -> Result<(), Complaint> {
        let Some((name, _)) = self.given.first() else {
            return Ok(());
        };
        let hint = did_you_mean(name, self.known);
        Err(Complaint::new(format!("unknown flag: --{name}"))
            .hint(hint.map(|hint| hint.replace("mean ", "mean --")))
            .at(format!("--{name}")))
    }
}

fn missing(name: &str) -> Complaint {
    Complaint::new(format!("missing a value on flag: --{name}")).at(format!("--{name}"))
}
