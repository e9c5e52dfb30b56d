//! The reward model's score, and what trains it (Bradley and Terry 1952).
//!
//! A score is the mean of the scalar head over the answer, plus a₀ times the mean and a₁ times the least of the
//! answer's own log-probabilities. The last two do most of the work on problems with steps: one wrong digit is one
//! improbable token, which a mean of hidden states does not show.

use crate::batch::{Example, micro_batches};
use crate::objective::{Loss, Objective, Value};
use crate::{Error, StepTotals};
use smelt_kernels::{Backend, DocumentBounds, math};
use smelt_model::{Batch, HeadOutput, HostOutput, IGNORE, Model, OutputGradient, Params};
use std::ops::Range;

/// Where the answers of a scored batch lie in `HeadOutput`'s vectors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    pub targets: Vec<Range<usize>>,
    pub rows: Vec<Range<usize>>,
}

/// Every token is an input, the last too, for its hidden state counts; masked tokens are the answer.
pub fn scored_batch<'a>(examples: impl IntoIterator<Item = &'a Example>) -> (Batch, Scored) {
    let (mut batch, mut scored, mut lengths, mut targets) = (Batch::default(), Scored::default(), Vec::new(), 0);
    for Example { ids, mask } in examples {
        let (start, first) = (batch.ids.len() as u32, batch.score_rows.len());
        batch.score_rows.extend((0..ids.len() as u32).filter(|&i| mask[i as usize]).map(|i| start + i));
        scored.rows.push(first..batch.score_rows.len());
        batch.ids.extend(ids);
        let shifted = ids.iter().zip(mask).skip(1).map(|(&id, &is_trained)| if is_trained { id } else { IGNORE });
        batch.targets.extend(shifted.chain((!ids.is_empty()).then_some(IGNORE)));
        let count = mask.iter().skip(1).filter(|&&is_trained| is_trained).count();
        assert!(count > 0, "scored_batch: an example without an answer");
        scored.targets.push(targets..targets + count);
        targets += count;
        lengths.push(ids.len());
    }
    batch.documents = DocumentBounds::of_lengths(&lengths);
    (batch, scored)
}

/// Index and value of the least.
fn least(x: &[f64]) -> (usize, f64) {
    x.iter().copied().enumerate().fold((0, f64::INFINITY), |best, (i, x)| if x < best.1 { (i, x) } else { best })
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

impl Scored {
    /// One score per example.
    pub fn scores(&self, head: &HostOutput) -> Vec<f64> {
        let score = |(targets, rows): (&Range<usize>, &Range<usize>)| {
            let logp = &head.logp[targets.clone()];
            mean(&head.scores[rows.clone()]) + head.likelihood[0] * mean(logp) + head.likelihood[1] * least(logp).1
        };
        self.targets.iter().zip(&self.rows).map(score).collect()
    }
}

/// Scores of whole sequences, about `limit` tokens at a time.
pub fn reward_scores(
    model: &Model,
    params: &Params,
    backend: &dyn Backend,
    examples: &[Example],
    limit: usize,
) -> Result<Vec<f64>, Error> {
    let mut scores = Vec::with_capacity(examples.len());
    for part in micro_batches(examples.iter().map(|example| example.ids.len()), limit) {
        let (batch, scored) = scored_batch(&examples[part]);
        model.check(&batch.ids, batch.documents.longest())?;
        scores.extend(scored.scores(&model.score(backend, params, &batch).on_host(backend)));
    }
    Ok(scores)
}

/// −log σ(score of the chosen − score of the rejected), mean over the pairs of the step. Examples 2i and 2i + 1
/// are chosen and rejected. The host reads log-probabilities and scores once per micro-batch.
#[derive(Clone, Debug)]
pub struct BradleyTerry {
    pub scored: Scored,
    /// Pairs of the whole step.
    pub pairs: usize,
}

impl Objective for BradleyTerry {
    fn loss(&self, backend: &dyn Backend, output: &HeadOutput, _: &Batch, _: &StepTotals) -> Loss {
        let head = output.on_host(backend);
        let (scores, n) = (self.scored.scores(&head), self.pairs as f64);
        let (mut dlogp, mut dscores) = (vec![0.0; head.logp.len()], vec![0.0; head.scores.len()]);
        let mut dlikelihood = [0.0; 2];
        let (mut value, mut right) = (0.0, 0.0);
        for (pair, scores) in scores.chunks_exact(2).enumerate() {
            let gap = scores[0] - scores[1];
            value += math::softplus(-gap) / n;
            right += f64::from(u8::from(gap > 0.0)) / n;
            let dgap = -math::sigmoid(-gap) / n;
            for (side, dscore) in [(0, dgap), (1, -dgap)] {
                let (targets, rows) = (&self.scored.targets[2 * pair + side], &self.scored.rows[2 * pair + side]);
                let logp = &head.logp[targets.clone()];
                let (at, low) = least(logp);
                dscores[rows.clone()].fill(dscore / rows.len() as f64);
                dlogp[targets.clone()].fill(dscore * head.likelihood[0] / logp.len() as f64);
                dlogp[targets.start + at] += dscore * head.likelihood[1];
                dlikelihood[0] += dscore * mean(logp);
                dlikelihood[1] += dscore * low;
            }
        }
        let gradient = OutputGradient {
            dlogp: backend.numbers(&dlogp),
            dscores: Some(backend.numbers(&dscores)),
            dlikelihood: Some(backend.numbers(&dlikelihood)),
            ..OutputGradient::zeros(backend, output)
        };
        Loss { sums: backend.numbers(&[value, right]), gradient }
    }

    fn value(&self, sums: &[f64], _: &StepTotals) -> Value {
        Value { loss: sums[0], parts: vec![("accuracy", sums[1])] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_kernels::{Reference, Tensor};

    /// Central differences with steps of 1e-6: truncation 1e-12, rounding 1e-10.
    #[test]
    fn the_pair_loss_has_the_derivative_of_its_value() {
        let examples = [Example::new(&[1, 2], &[3, 4]), Example::new(&[1], &[5, 6, 7])];
        let (batch, scored) = scored_batch(&examples);
        assert_eq!(batch.targets, [IGNORE, 3, 4, IGNORE, 5, 6, 7, IGNORE]);
        assert_eq!(batch.score_rows, [2, 3, 5, 6, 7]);
        let objective = BradleyTerry { scored, pairs: 3 };
        let head = || HostOutput {
            logp: vec![-0.5, -1.0, -0.2, -2.0, -0.7],
            scores: vec![0.3, -0.2, 0.5, 0.1, 0.9],
            likelihood: [1.0, 0.2],
            ..Default::default()
        };
        let numbers = |values: &[f64]| Tensor::new([values.len()], values);
        let run = |head: &HostOutput| {
            let head = HeadOutput {
                rows: Vec::new(),
                logp: numbers(&head.logp),
                lse: numbers(&vec![0.0; head.logp.len()]),
                mtp: Vec::new(),
                scores: Some(numbers(&head.scores)),
                likelihood: Some(numbers(&head.likelihood)),
            };
            objective.loss(&Reference, &head, &batch, &StepTotals::default())
        };
        let d = run(&head()).gradient;
        let [dlogp, dscores, dlikelihood] = [d.dlogp, d.dscores.unwrap(), d.dlikelihood.unwrap()].map(|d| d.to_f64());
        let check = |found: f64, nudge: &dyn Fn(&mut HostOutput, f64), what: &str| {
            let at = |step: f64| {
                let mut head = head();
                nudge(&mut head, step);
                objective.value(&run(&head).sums.to_f64(), &StepTotals::default()).loss
            };
            let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((found - expected).abs() < 1e-8, "{what}: {found} {expected}");
        };
        for i in 0..5 {
            check(dlogp[i], &|head, step| head.logp[i] += step, "dlogp");
            check(dscores[i], &|head, step| head.scores[i] += step, "dscores");
        }
        for (i, &found) in dlikelihood.iter().enumerate() {
            check(found, &|head, step| head.likelihood[i] += step, "dlikelihood");
        }
    }
}
