//! Errors as people read them: what, where, with which values, and the one thing to do.

use smelt_schemas::{ExitCode, Fault, Problem};
use std::fmt;
use std::io::IsTerminal;

/// A place in a pipeline file; 1-based.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub file: String,
    pub line: u64,
    pub column: u64,
}

impl Place {
    /// A place that is not in a file: `--store`, `--set job.config.field=value`, a variable.
    pub(crate) fn named(what: impl Into<String>) -> Self {
        Self { file: what.into(), line: 0, column: 0 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    pub code: ExitCode,
    pub message: String,
    pub place: Option<Place>,
    pub hint: Option<String>,
}

pub(crate) type Result<T> = std::result::Result<T, Diagnostic>;

impl Diagnostic {
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), place: None, hint: None }
    }
    /// What another program said went wrong.
    pub(crate) fn of(code: ExitCode, problem: Problem) -> Self {
        Self { code, message: problem.message, place: None, hint: problem.hint }
    }
    /// The pipeline file or the command line is wrong.
    pub(crate) fn pipeline(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Pipeline, message)
    }
    #[must_use]
    pub(crate) fn at(mut self, place: Option<Place>) -> Self {
        self.place = self.place.or(place);
        self
    }
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// To standard error, coloured on a terminal.
    pub(crate) fn print(&self) {
        let text = self.to_string();
        if std::io::stderr().is_terminal() {
            eprintln!(
                "{}",
                text.replacen("error:", "\x1b[1;31merror:\x1b[0m", 1).replacen("\nhint:", "\n\x1b[1mhint:\x1b[0m", 1)
            );
        } else {
            eprintln!("{text}");
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(p) = &self.place {
            match p.line {
                0 => write!(f, "\n  --> {}", p.file)?,
                _ => write!(f, "\n  --> {}:{}:{}", p.file, p.line, p.column)?,
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl From<smelt_store::Error> for Diagnostic {
    fn from(e: smelt_store::Error) -> Self {
        Self::of(e.exit_code(), Problem::of(&e))
    }
}

/// The candidate that `name` is most likely meant to be.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = candidates.into_iter().map(|c| (distance(name, c), c)).min()?;
    (best.0 <= 1 + name.len() / 3).then_some(best.1)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_name() {
        assert_eq!(nearest("jacard", ["hashes", "jaccard", "seed"]), Some("jaccard"));
        assert_eq!(nearest("colour", ["hashes", "jaccard"]), None);
    }
}
