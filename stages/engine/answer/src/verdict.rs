//! What a verifier makes of an answer.

use crate::Unusable;
use smelt_checkpoint::fault;
use smelt_stage::Error;
use smelt_stage::kinds::Prompt;
use smelt_verify::Verifier;

/// A whole answer as its verifier sees it. An answer that was cut off is never right, whatever stands at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The final answer is the expected one.
    pub is_right: bool,
    /// The answer is a whole solution with every step right.
    pub is_right_throughout: bool,
    /// Share of the worked steps that are right from the first on, in [0, 1]; 0 where steps cannot be checked.
    pub leading_steps: f64,
}

impl Verdict {
    /// None where the problem or its expected answer is nothing that its verifier can judge by. An unknown verifier is
    /// an error.
    pub(crate) fn of(row: &Prompt, text: &str, is_whole: bool) -> Result<Option<Self>, Error> {
        let verifier: Verifier = row.verifier.parse().map_err(fault)?;
        Ok(verifier.score(&row.answer, text.trim_end()).map(|score| Self {
            is_right: score.right && is_whole,
            is_right_throughout: score.every_step && is_whole,
            leading_steps: score.leading_steps,
        }))
    }

    /// Why answers to a prompt cannot be judged; None when they can.
    pub(crate) fn objection(row: &Prompt) -> Option<Unusable> {
        match row.verifier.parse::<Verifier>() {
            Err(error) => Some(Unusable::new(&row.id, "verifier", error.to_string())),
            Ok(verifier) if verifier.score(&row.answer, "").is_none() => {
                let answer: String = row.answer.chars().take(100).collect();
                Some(Unusable::new(&row.id, "unscorable", format!("its verifier cannot read the answer `{answer}`")))
            }
            Ok(_) => None,
        }
    }

    /// The rule's reward: 1 for a right answer, else `partial_credit` times the share of leading right steps.
    pub fn reward(&self, partial_credit: f64) -> f64 {
        if self.is_right { 1.0 } else { partial_credit * self.leading_steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(answer: &str, verifier: &str) -> Prompt {
        Prompt { id: "p".into(), messages: Vec::new(), answer: answer.into(), verifier: verifier.into() }
    }

    #[test]
    fn an_answer_that_was_cut_off_is_not_right() {
        let row = prompt("3", r#"{"family":"chain","problem":"3+4*2-1"}"#);
        let solution = "3+4=7*2-1;7*2=4-1;4-1=3\n";
        let whole = Verdict::of(&row, solution, true).unwrap().unwrap();
        assert!(whole.is_right && whole.is_right_throughout && whole.reward(0.5) == 1.0);
        let cut = Verdict::of(&row, solution, false).unwrap().unwrap();
        assert!(!cut.is_right && !cut.is_right_throughout);
        assert_eq!((cut.leading_steps, cut.reward(0.5), cut.reward(0.0)), (1.0, 0.5, 0.0));
    }

    #[test]
    fn what_cannot_be_judged_has_no_verdict_and_an_unknown_verifier_is_named() {
        assert_eq!(Verdict::of(&prompt("many", r#"{"family":"number"}"#), "7", true).unwrap(), None);
        let rule = |row| Verdict::objection(&row).map(|unusable| (unusable.rule, unusable.detail));
        let (unscorable, detail) = rule(prompt("many", r#"{"family":"number"}"#)).unwrap();
        assert_eq!((unscorable, detail.as_str()), ("unscorable", "its verifier cannot read the answer `many`"));
        assert_eq!(rule(prompt("7", "{}")).unwrap().0, "verifier");
        assert_eq!(rule(prompt("7", r#"{"family":"number"}"#)), None);
        let error = Verdict::of(&prompt("7", r#"{"family":"judge"}"#), "7", true).unwrap_err();
        assert!(error.to_string().starts_with(r#"`{"family":"judge"}` is no verifier: unknown variant"#), "{error}");
        assert_eq!(error.problem().hint.as_deref(), Some("known families are `chain`, `addition` and `number`"));
    }
}
