//! What is minimised, as a function of token log-probabilities with a derivative in closed form.
//!
//! The head turns `dlogp` into gradients once for all of them. An objective holds the data of one micro-batch and is
//! given the sums of the whole step, so the loss is the same however the step is cut into micro-batches.

use crate::StepTotals;
use smelt_kernels::{Backend, DType, Tensor, math};
use smelt_model::{Batch, HeadOutput, OutputGradient};

/// What an objective makes of one micro-batch, on the device.
#[derive(Debug)]
pub struct Loss {
    /// F64: what [`Objective::value`] is given when the step is done, with everything else that the host reads.
    pub sums: Tensor,
    pub gradient: OutputGradient,
}

/// What the host reads of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Value {
    pub loss: f64,
    /// Named terms and measures; summed over micro-batches.
    pub parts: Vec<(&'static str, f64)>,
}

pub trait Objective {
    /// `totals`: of the whole step, of which `batch` is a part.
    fn loss(&self, backend: &dyn Backend, head: &HeadOutput, batch: &Batch, totals: &StepTotals) -> Loss;
    /// The value of a micro-batch from the sums of its loss.
    fn value(&self, sums: &[f64], totals: &StepTotals) -> Value;
}

/// Pretraining: mean negative log-likelihood, plus `mtp_weight` times the mean over the MTP modules of theirs
/// (DeepSeek-V3, eq. 24 and 25). The host reads no log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NextToken {
    /// λ of the report.
    pub mtp_weight: f64,
    /// Weight of the mean of lse², which keeps logits near zero (Chowdhery et al. 2022, §5); 0 leaves it out.
    pub z: f64,
}

impl NextToken {
    /// λ for each of the modules.
    fn lambda(&self, totals: &StepTotals) -> f64 {
        self.mtp_weight / totals.mtp_targets.len().max(1) as f64
    }
}

impl Objective for NextToken {
    fn loss(&self, backend: &dyn Backend, head: &HeadOutput, _: &Batch, totals: &StepTotals) -> Loss {
        let (n, lambda, modules) = (totals.targets as f64, self.lambda(totals), head.mtp.len());
        let mut sums = backend.zeros([2 + modules], DType::F64);
        let mut gradient = OutputGradient::zeros(backend, head);
        backend.total(&head.logp, false, &mut sums, 0);
        backend.fill(&mut gradient.dlogp, -1.0 / n);
        for (depth, (logp, &n)) in head.mtp.iter().zip(&totals.mtp_targets).enumerate() {
            backend.total(logp, false, &mut sums, 2 + depth);
            backend.fill(&mut gradient.mtp[depth], -lambda / n as f64);
        }
        if self.z > 0.0 {
            backend.total(&head.lse, true, &mut sums, 1);
            gradient.dlse = backend.copy(&head.lse);
            backend.scale(&mut gradient.dlse, 2.0 * self.z, n);
        }
        Loss { sums, gradient }
    }

    fn value(&self, sums: &[f64], totals: &StepTotals) -> Value {
        let (n, lambda) = (totals.targets as f64, self.lambda(totals));
        let main = -sums[0] / n;
        let (mut value, mut parts) = (main, vec![("main", main)]);
        for (sum, &n) in sums[2..].iter().zip(&totals.mtp_targets) {
            let loss = -sum / n as f64;
            value += lambda * loss;
            parts.push(("mtp", loss));
        }
        if self.z > 0.0 {
            let square = sums[1] / n;
            value += self.z * square;
            parts.push(("z", square));
        }
        Value { loss: value, parts }
    }
}

/// Fine-tuning on masked examples: mean over the trained tokens of the step. The host reads no log-probabilities.
#[derive(Clone, Copy, Debug)]
pub struct Masked;

impl Objective for Masked {
    fn loss(&self, backend: &dyn Backend, head: &HeadOutput, _: &Batch, totals: &StepTotals) -> Loss {
        let (mut sums, mut gradient) = (backend.zeros([1], DType::F64), OutputGradient::zeros(backend, head));
        backend.total(&head.logp, false, &mut sums, 0);
        backend.fill(&mut gradient.dlogp, -1.0 / totals.targets as f64);
        Loss { sums, gradient }
    }

    fn value(&self, sums: &[f64], totals: &StepTotals) -> Value {
        Value { loss: -sums[0] / totals.targets as f64, parts: Vec::new() }
    }
}

/// Group-relative policy optimisation (Shao et al. 2024, eq. 3; DeepSeek-R1, eq. 1): the clipped ratio times the
/// answer's advantage, minus `beta` times an estimate of the KL to the reference, `r − ln r − 1` with r = p_ref/p
/// (never negative).
///
/// All vectors run over the rows with a target, in order. The host reads the log-probabilities once per micro-batch.
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
    fn loss(&self, backend: &dyn Backend, head: &HeadOutput, _: &Batch, _: &StepTotals) -> Loss {
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
        for (i, &logp) in backend.download(&head.logp).read::<f64>().iter().enumerate() {
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
        let gradient = OutputGradient { dlogp: backend.numbers(&dlogp), ..OutputGradient::zeros(backend, head) };
        Loss { sums: backend.numbers(&[surrogate, kl, clipped, entropy]), gradient }
    }

    fn value(&self, sums: &[f64], _: &StepTotals) -> Value {
        let names = ["surrogate", "kl", "clipped", "entropy"];
        let parts = names.into_iter().zip(sums.iter().copied()).collect();
        Value { loss: sums[0] + self.beta * sums[1], parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_kernels::Reference;

    fn numbers(values: &[f64]) -> Tensor {
        Tensor::new([values.len()], values)
    }

    /// Value, dlogp and dlse.
    fn run(objective: &dyn Objective, logp: &[f64], lse: &[f64], totals: &StepTotals) -> (f64, Vec<f64>, Vec<f64>) {
        let (logp, lse, rows) = (numbers(logp), numbers(lse), (0..logp.len() as u32).collect());
        let head = HeadOutput { rows, logp, lse, mtp: Vec::new(), scores: None, likelihood: None };
        let Loss { sums, gradient } = objective.loss(&Reference, &head, &Batch::default(), totals);
        let value = objective.value(&sums.to_f64(), totals);
        (value.loss, gradient.dlogp.to_f64(), gradient.dlse.to_f64())
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
        let run = |logp: &[f64]| run(&grpo, logp, &vec![0.0; logp.len()], &StepTotals::default());
        let (_, dlogp, _) = run(&logp);
        assert_eq!(dlogp.len(), 5);
        for i in 0..5 {
            let at = |step: f64| {
                let mut logp = logp;
                logp[i] += step;
                run(&logp).0
            };
            let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
            let found = dlogp[i];
            assert!((found - expected).abs() < 1e-7 * expected.abs().max(1.0), "{i}: {found} {expected}");
        }
        // a positive advantage beyond the clip pulls no further
        assert!((dlogp[2] - 0.3 * 0.4 * (1.0 - math::exp(-0.4))).abs() < 1e-12);
    }

    /// Central differences with steps of 1e-6, as above.
    #[test]
    fn the_loss_of_large_logits_has_the_derivative_of_its_value() {
        let (logp, lse) = ([-1.0, -2.0, -0.5], [3.0, -1.0, 7.0]);
        let (objective, totals) =
            (NextToken { mtp_weight: 0.0, z: 0.01 }, StepTotals { targets: 6, ..Default::default() });
        let (value, _, dlse) = run(&objective, &logp, &lse, &totals);
        assert!((value - (3.5 + 0.01 * 59.0) / 6.0).abs() < 1e-12, "{value}");
        for i in 0..3 {
            let at = |step: f64| {
                let mut lse = lse;
                lse[i] += step;
                run(&objective, &logp, &lse, &totals).0
            };
            let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((dlse[i] - expected).abs() < 1e-8, "{i}: {} {expected}", dlse[i]);
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
        assert_eq!(run(&grpo, &logp, &[0.0; 2], &StepTotals::default()).1, [-0.5, 0.5]);
    }
}
