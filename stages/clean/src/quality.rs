//! What a trained classifier says of a document: below a score it goes, or by lot.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_classify::Classifier;

use crate::Dropped;

/// What happens by the score of the classifier, which is the probability of a good document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quality {
    /// Smallest score, in [0, 1].
    pub min: f64,
    /// A document stays with probability (2 − score)^−pareto, by a hash of its id; null for all. GPT-3 took 9 (Brown
    /// et al. 2020, appendix A): a score of 1 always stays, of 0.9 in 42 of 100 cases, of 0 in one of 512.
    pub pareto: Option<u32>,
}

impl Default for Quality {
    fn default() -> Self {
        Quality { min: 0.5, pareto: None }
    }
}

/// A classifier and what follows from its scores.
#[derive(Debug)]
pub(crate) struct Scorer {
    pub classifier: Classifier,
    pub rule: Option<Quality>,
}

impl Scorer {
    pub(crate) fn judge(&self, id: &str, text: &str) -> Result<(), Dropped> {
        let Some(rule) = &self.rule else { return Ok(()) };
        let score = self.classifier.score(text);
        let dropped = |rule: &str| Dropped { rule: rule.into(), value: Some(score), detail: None };
        if score < rule.min {
            return Err(dropped("quality"));
        }
        match rule.pareto {
            Some(pareto) if lot(id) >= chance(score, pareto) => Err(dropped("quality_lot")),
            _ => Ok(()),
        }
    }
}

/// The probability with which a document of this score stays: that a draw of numpy's Pareto distribution exceeds
/// 1 − score, as GPT-3 has it.
fn chance(score: f64, pareto: u32) -> f64 {
    (0..pareto).fold(1.0, |chance, _| chance / (2.0 - score))
}

/// A number in [0, 1) that depends on the id alone.
fn lot(id: &str) -> f64 {
    let hash = blake3::hash(id.as_bytes());
    let first = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (first >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_stays_is_that_of_the_pareto_distribution() {
        for (score, share) in [(1.0, 1.0), (0.9, 0.424), (0.5, 0.026), (0.0, 1.0 / 512.0)] {
            assert!((chance(score, 9) - share).abs() < 1e-3, "{score}");
            let n = 100_000;
            let stay =
                (0..n).filter(|i| lot(&format!("document {i}")) < chance(score, 9)).count() as f64 / f64::from(n);
            // four standard errors
            assert!(
                (stay - share).abs() < 1e-3 + 4.0 * (share * (1.0 - share) / f64::from(n)).sqrt(),
                "{score}: {stay}"
            );
        }
    }
}
