//! What is minimised, as a function of token log-probabilities with a derivative in closed form.
//!
//! The head turns `dlogp` into gradients once for all of them. An objective holds the data of one micro-batch and is
//! given the sums of the whole step, so the loss is the same however the step is cut into micro-batches.

use crate::StepTotals;
use smelt_kernels::math;
use smelt_model::{Batch, HeadOutput, OutputGradient};

#[derive(Debug, Default)]
pub struct Loss {
    pub value: f64,
    /// Named terms and measures; summed over micro-batches.
    pub parts: Vec<(&'static str, f64)>,
    pub gradient: OutputGradient,
}

pub trait Objective {
    /// `totals`: of the whole step, of which `batch` is a part.
    fn loss(&self, head: &HeadOutput, batch: &Batch, totals: &StepTotals) -> Loss;
}

/// Pretraining: mean negative log-likelihood, plus `mtp_weight` times the mean over the MTP modules of theirs
/// (DeepSeek-V3, eq. 24 and 25).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NextToken {
    /// λ of the report.
    pub mtp_weight: f64,
    /// Weight of the mean of lse², which keeps logits near zero (Chowdhery et al. 2022, §5); 0 leaves it out.
    pub z: f64,
}

impl Objective for NextToken {
    fn loss(&self, head: &HeadOutput, _: &Batch, totals: &StepTotals) -> Loss {
        let (n, lambda) = (totals.targets as f64, self.mtp_weight / totals.mtp_targets.len().max(1) as f64);
        let main = -head.logp.iter().sum::<f64>() / n;
        let (mut value, mut parts) = (main, vec![("main", main)]);
        let mut mtp = Vec::new();
        for (logp, &n) in head.mtp.iter().zip(&totals.mtp_targets) {
            let n = n as f64;
            let loss = -logp.iter().sum::<f64>() / n;
            value += lambda * loss;
            parts.push(("mtp", loss));
            mtp.push(vec![-lambda / n; logp.len()]);
        }
        let mut dlse = vec![0.0; head.lse.len()];
        if self.z > 0.0 {
            let square = head.lse.iter().map(|lse| lse * lse).sum::<f64>() / n;
            value += self.z * square;
            parts.push(("z", square));
            dlse.iter_mut().zip(&head.lse).for_each(|(d, lse)| *d = 2.0 * self.z * lse / n);
        }
        let dlogp = vec![-1.0 / n; head.logp.len()];
        let gradient = OutputGradient { dlogp, dlse, mtp, ..Default::default() };
        Loss { value, parts, gradient }
    }
}

/// Fine-tuning on masked examples: mean over the trained tokens of the step.
#[derive(Clone, Copy, Debug)]
pub struct Masked;

impl Objective for Masked {
    fn loss(&self, head: &HeadOutput, _: &Batch, totals: &StepTotals) -> Loss {
        let n = totals.targets as f64;
        let value = -head.logp.iter().sum::<f64>() / n;
        let gradient = OutputGradient {
            dlogp: vec![-1.0 / n; head.logp.len()],
            dlse: vec![0.0; head.logp.len()],
            mtp: head.mtp.iter().map(|logp| vec![0.0; logp.len()]).collect(),
            ..Default::default()
        };
        Loss { value, parts: Vec::new(), gradient }
    }
}

/// Group-relative policy optimisation (Shao et al. 2024, eq. 3; DeepSeek-R1, eq. 1): the clipped ratio times the
/// answer's advantage, minus `beta` times an estimate of the KL to the reference, `r − ln r − 1` with r = p_ref/p
/// (never negative).
///
/// All vectors run over the rows with a target, in order.
#[derive(Clone, Debug, Default)]
pub struct Grpo {
    /// Of each token's answer, normalised within its group.
    pub advantage: Vec<f64>,
    /// Log-probabilities at the time of sampling.
    pub old: Vec<f64>,
    /// Log-probabilities of the reference.
    pub reference: Vec<f64>,
    /// Each token's share of the loss: 1/(|answer| · answers of the step).
    pub weight: Vec<f64>,
    pub clip: f64,
    pub beta: f64,
}

/// Below this a group's rewards count as equal.
const SPREAD: f64 = 1e-3;

/// The advantages of answers in groups of `group`, one after the other: (reward − mean) / (standard deviation + 1e-4)
/// within each group (Shao et al. 2024, §4.1.2). None for the answers of a group without spread.
pub fn group_advantages(rewards: &[f64], group: usize) -> Vec<Option<f64>> {
    let of_group = |rewards: &[f64]| {
        let n = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let squares = rewards.iter().map(|reward| (reward - mean) * (reward - mean)).sum::<f64>();
        let deviation = (squares / (n - 1.0)).sqrt();
        let advantage = |reward| (deviation > SPREAD).then(|| (reward - mean) / (deviation + 1e-4));
        rewards.iter().map(advantage).collect::<Vec<_>>()
    };
    rewards.chunks(group).flat_map(of_group).collect()
}

impl Objective for Grpo {
    fn loss(&self, head: &HeadOutput, _: &Batch, _: &StepTotals) -> Loss {
        let n = head.logp.len();
        for (what, length) in [
            ("advantage", self.advantage.len()),
            ("old", self.old.len()),
            ("reference", self.reference.len()),
            ("weight", self.weight.len()),
        ] {
            assert!(length == n, "grpo: {length} values of `{what}` for {n} rows");
        }
        let (mut surrogate, mut kl, mut clipped, mut entropy) = (0.0, 0.0, 0.0, 0.0);
        let mut dlogp = Vec::with_capacity(n);
        for (i, &logp) in head.logp.iter().enumerate() {
            let (a, w) = (self.advantage[i], self.weight[i]);
            let ratio = math::exp(logp - self.old[i]);
            let bounded = ratio.clamp(1.0 - self.clip, 1.0 + self.clip);
            let is_free = ratio * a <= bounded * a;
            // beyond a ratio of e⁵ the estimate and its gradient explode, so it is continued linearly
            let log_r = self.reference[i] - logp;
            let r = math::exp(log_r.min(5.0));
            let (k3, dk3) =
                if log_r < 5.0 { (r - log_r - 1.0, 1.0 - r) } else { (r * (log_r - 4.0) - log_r - 1.0, 1.0 - r) };
            surrogate -= w * if is_free { ratio * a } else { bounded * a };
            kl += w * k3;
            clipped += w * f64::from(u8::from(!is_free));
            entropy -= w * logp;
            dlogp.push(w * (if is_free { -ratio * a } else { 0.0 } + self.beta * dk3));
        }
        let gradient = OutputGradient {
            dlogp,
            dlse: vec![0.0; n],
            mtp: head.mtp.iter().map(|logp| vec![0.0; logp.len()]).collect(),
            ..Default::default()
        };
        let parts = vec![("surrogate", surrogate), ("kl", kl), ("clipped", clipped), ("entropy", entropy)];
        Loss { value: surrogate + self.beta * kl, parts, gradient }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(logp: &[f64]) -> HeadOutput {
        HeadOutput {
            rows: (0..logp.len() as u32).collect(),
            logp: logp.to_vec(),
            lse: vec![0.0; logp.len()],
            ..Default::default()
        }
    }

    #[test]
    fn advantages_are_normalised_within_groups_and_flat_groups_are_left_out() {
        let found = group_advantages(&[1.0, 0.0, 0.5, 0.5], 2);
        assert!((found[0].unwrap() - 0.5 / (0.5f64.sqrt() + 1e-4)).abs() < 1e-12);
        assert_eq!(found[1].unwrap(), -found[0].unwrap());
        assert_eq!(found[2..], [None, None]);
    }

    /// Central differences with steps of 1e-6: truncation 1e-12, rounding 1e-10.
    #[test]
    fn grpo_has_the_derivative_of_its_value() {
        let grpo = Grpo {
            advantage: vec![1.0, -0.5, 2.0, -1.0, 0.3],
            old: vec![-1.0, -1.0, -0.5, -3.0, -2.0],
            reference: vec![-1.2, -0.5, -0.6, -2.0, -1.0],
            weight: vec![0.1, 0.2, 0.3, 0.1, 0.3],
            clip: 0.2,
            beta: 0.4,
        };
        // inside the trust region, clipped above, clipped below, free on the pessimistic side, and far below the
        // reference
        let logp = [-1.1, -0.3, -0.2, -2.0, -9.0];
        let loss = grpo.loss(&head(&logp), &Batch::default(), &StepTotals::default());
        assert_eq!(loss.gradient.dlogp.len(), 5);
        for i in 0..5 {
            let at = |step: f64| {
                let mut logp = logp;
                logp[i] += step;
                grpo.loss(&head(&logp), &Batch::default(), &StepTotals::default()).value
            };
            let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
            let found = loss.gradient.dlogp[i];
            assert!((found - expected).abs() < 1e-7 * expected.abs().max(1.0), "{i}: {found} {expected}");
        }
        // a positive advantage beyond the clip pulls no further
        assert!((loss.gradient.dlogp[2] - 0.3 * 0.4 * (1.0 - math::exp(-0.4))).abs() < 1e-12);
    }

    /// Central differences with steps of 1e-6, as above.
    #[test]
    fn the_loss_of_large_logits_has_the_derivative_of_its_value() {
        let mut head = head(&[-1.0, -2.0, -0.5]);
        head.lse = vec![3.0, -1.0, 7.0];
        let (objective, totals) =
            (NextToken { mtp_weight: 0.0, z: 0.01 }, StepTotals { targets: 6, ..Default::default() });
        let loss = objective.loss(&head, &Batch::default(), &totals);
        assert!((loss.value - (3.5 + 0.01 * 59.0) / 6.0).abs() < 1e-12, "{}", loss.value);
        for i in 0..3 {
            let mut at = |step: f64| {
                head.lse[i] += step;
                let value = objective.loss(&head, &Batch::default(), &totals).value;
                head.lse[i] -= step;
                value
            };
            let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((loss.gradient.dlse[i] - expected).abs() < 1e-8, "{i}: {} {expected}", loss.gradient.dlse[i]);
        }
    }

    #[test]
    fn on_policy_grpo_is_the_policy_gradient() {
        let logp = vec![-0.5, -1.5];
        let grpo = Grpo {
            advantage: vec![2.0, -1.0],
            old: logp.clone(),
            reference: logp.clone(),
            weight: vec![0.25, 0.5],
            clip: 0.2,
            beta: 0.1,
        };
        assert_eq!(grpo.loss(&head(&logp), &Batch::default(), &StepTotals::default()).gradient.dlogp, [-0.5, 0.5]);
    }
}
