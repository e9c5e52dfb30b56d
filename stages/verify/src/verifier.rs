//! The check that a prompt carries with it, and what it makes of a model's text.
//!
//! A prompt's `verifier` column holds one of these as JSON, `{"family":"chain","problem":"3+4*2"}`: the family of the
//! problem and what the check needs beyond the expected answer, which stands in the same row.

use serde::{Deserialize, Serialize};
use smelt_schemas::{ExitCode, Fault};

use crate::addition::Addition;
use crate::chain::{Chain, answer_digit};
use crate::number::final_number;

/// A known way to check answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "lowercase")]
pub enum Verifier {
    /// Chains of operations on digits: the lone digit after the last `=`; steps can be checked one by one.
    Chain { problem: String },
    /// Addition by columns: the whole number after the last `;` or `=`; steps can be checked one by one.
    Addition { problem: String },
    /// A number, however it was found and written: see [`final_number`].
    Number,
}

/// What a verifier made of one text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Whether the final answer is the expected one.
    pub right: bool,
    /// Share of the worked steps that are right from the first on, in [0, 1]; 0 where steps cannot be checked.
    pub leading_steps: f64,
    /// Whether the text is a whole solution with every step right.
    pub every_step: bool,
}

/// A `verifier` column that this build does not understand.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no verifier: {source}")]
pub struct VerifierError {
    text: String,
    source: serde_json::Error,
}

impl Fault for VerifierError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Data
    }

    fn hint(&self) -> Option<String> {
        Some("known families are `chain`, `addition` and `number`".into())
    }
}

impl std::str::FromStr for Verifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        serde_json::from_str(text).map_err(|source| VerifierError { text: text.to_owned(), source })
    }
}

impl std::fmt::Display for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).expect("strings alone always serialize"))
    }
}

impl Verifier {
    /// Scores `text`, a model's answer, against `expected`, the right one.
    ///
    /// `None` where the problem or the expected answer is nothing this verifier can judge by: unscorable, neither right
    /// nor wrong. A text without an answer is scorable, and wrong.
    pub fn score(&self, expected: &str, text: &str) -> Option<Score> {
        match self {
            Verifier::Chain { problem } => {
                let chain = Chain::parse(problem)?;
                let right_answer = answer_digit(expected)?;
                Some(Score {
                    right: answer_digit(text) == Some(right_answer),
                    leading_steps: chain.leading_right(text),
                    every_step: chain.every_step_right(text),
                })
            }
            Verifier::Addition { problem } => {
                let sum = Addition::parse(problem)?;
                let right_answer = number(expected.trim())?;
                let right = sum.steps();
                let given: Vec<&str> = text.trim().split(';').collect();
                let leading = given.iter().zip(&right).take_while(|(given, right)| given == right).count();
                let last = given.last().and_then(|step| number(step.rsplit('=').next()?));
                Some(Score {
                    right: last == Some(right_answer),
                    leading_steps: leading as f64 / given.len().max(right.len()) as f64,
                    every_step: leading == right.len() && leading == given.len(),
                })
            }
            Verifier::Number => {
                let expected = final_number(expected)?;
                let right = final_number(text).is_some_and(|given| given.is_same(&expected));
                Some(Score { right, leading_steps: 0.0, every_step: right })
            }
        }
    }
}

/// A whole number as written: an optional minus and at most 30 digits, nothing else.
fn number(text: &str) -> Option<i128> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.len() <= 30 && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_scored_by_answer_and_by_steps() {
        let score = |text| chain("3+4*2-1").score("3", text).unwrap();
        let whole = score("3+4=7*2-1;7*2=4-1;4-1=3");
        assert!(whole.right && whole.every_step);
        let short = score("3");
        assert!(short.right && !short.every_step);
        let wrong = score("3+4=7*2-1;7*2=5-1;5-1=4");
        assert!(!wrong.right && wrong.leading_steps == 1.0 / 3.0);
        assert_eq!(score("").leading_steps, 0.0);
    }

    #[test]
    fn a_lucky_answer_after_wrong_steps_is_right_but_not_every_step() {
        let score = chain("3*0+1").score("1", "3*0=5+1;5+1=1").unwrap();
        assert!(score.right && !score.every_step && score.leading_steps == 0.0);
    }

    #[test]
    fn what_cannot_be_judged_scores_nothing() {
        assert_eq!(chain("what is love?").score("3", "3"), None);
        assert_eq!(chain("3+4").score("", "7"), None);
        assert_eq!(addition("3+x").score("3", "3"), None);
        assert_eq!(Verifier::Number.score("many", "7"), None);
    }

    #[test]
    fn additions_are_scored_by_their_last_number() {
        let score = |text| addition("478+65").score("543", text).unwrap();
        assert!(score("8+5+0=13;7+6+1=14;4+0+1=5;543").every_step);
        assert!(score("543").right && !score("543").every_step);
        assert_eq!(score("8+5+0=13;7+6+1=14;4+0+1=6;643").leading_steps, 0.5);
        assert!(!score("8+5+0=13;7+6+1=14;4+0+1=5;543;").right);
    }

    #[test]
    fn a_verifier_is_read_as_it_is_written() {
        let written = [
            (chain("3+4"), r#"{"family":"chain","problem":"3+4"}"#),
            (addition("3+4"), r#"{"family":"addition","problem":"3+4"}"#),
            (Verifier::Number, r#"{"family":"number"}"#),
        ];
        for (verifier, text) in written {
            assert_eq!(verifier.to_string(), text);
            assert_eq!(text.parse::<Verifier>().unwrap(), verifier);
        }
    }

    #[test]
    fn an_unknown_verifier_is_named() {
        let error = r#"{"family":"judge"}"#.parse::<Verifier>().unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(r#"`{"family":"judge"}` is no verifier: unknown variant `judge`"#), "{text}");
        assert_eq!(error.hint().unwrap(), "known families are `chain`, `addition` and `number`");
    }

    fn chain(problem: &str) -> Verifier {
        Verifier::Chain { problem: problem.to_owned() }
    }

    fn addition(problem: &str) -> Verifier {
        Verifier::Addition { problem: problem.to_owned() }
    }
}
