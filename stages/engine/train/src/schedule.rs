//! The learning rate as a function of the step.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    Constant,
    Cosine,
    Linear,
}

/// Steps at one rate at the end of a training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    #[schemars(range(max = 1_000_000_000))]
    pub steps: u64,
    /// Of the peak.
    #[schemars(range(min = 0.0))]
    pub share: f64,
}

/// Linear warm-up to `peak`, `constant` steps there, then `decay` steps down to `floor · peak`, then the tails one
/// after the other; the last rate stays. DeepSeek-V3 (§4.2): cosine to a tenth, and tails of 0.1 and 0.033 of the
/// peak.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub peak: f64,
    pub warmup: u64,
    pub constant: u64,
    pub decay: u64,
    pub shape: Decay,
    /// As a share of the peak.
    pub floor: f64,
    pub tails: Vec<Tail>,
}

impl Schedule {
    /// Decays over all of `steps` after the warm-up.
    pub fn over(steps: u64, peak: f64, warmup: u64, shape: Decay, floor: f64) -> Self {
        let warmup = warmup.min(steps);
        Self { peak, warmup, constant: 0, decay: steps - warmup, shape, floor, tails: Vec::new() }
    }

    /// Of step `step`, from 1.
    pub fn lr(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let after = step - self.warmup;
        if after <= self.constant {
            return self.peak;
        }
        let mut left = after.saturating_sub(self.constant + self.decay);
        if left > 0
            && let Some(last) = self.tails.last()
        {
            let tail = self.tails.iter().find(|tail| {
                let is_here = left <= tail.steps;
                left = left.saturating_sub(tail.steps);
                is_here
            });
            return self.peak * tail.unwrap_or(last).share;
        }
        if self.shape == Decay::Constant {
            return self.peak;
        }
        let floor = self.floor * self.peak;
        let done = ((after - self.constant) as f64 / self.decay.max(1) as f64).min(1.0);
        let left = match self.shape {
            Decay::Linear => 1.0 - done,
            _ => 0.5 * (1.0 + smelt_kernels::math::sin_cos(smelt_kernels::math::PI * done).1),
        };
        floor + (self.peak - floor) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The report's course (§4.2) in steps of 100 billion tokens: 10 T constant, cosine over 4.3 T, tails of 333 B and
    /// 167 B.
    #[test]
    fn two_tails_follow_the_decay() {
        let tails = vec![Tail { steps: 3, share: 0.1 }, Tail { steps: 2, share: 7.3e-6 / 2.2e-4 }];
        let s = Schedule { peak: 2.2e-4, warmup: 2, constant: 98, decay: 43, shape: Decay::Cosine, floor: 0.1, tails };
        let found = [2, 100, 143, 144, 146, 147, 148, 1000].map(|step| s.lr(step));
        let expected = [2.2e-4, 2.2e-4, 2.2e-5, 2.2e-5, 2.2e-5, 7.3e-6, 7.3e-6, 7.3e-6];
        assert!(found.iter().zip(expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn warm_up_decay_and_floor_meet_their_corners() {
        for shape in [Decay::Cosine, Decay::Linear] {
            let s = Schedule { peak: 2.0, warmup: 4, constant: 10, decay: 20, shape, floor: 0.1, tails: Vec::new() };
            let near = |step, expected: f64| {
                assert!((s.lr(step) - expected).abs() < 1e-12, "{shape:?} {step}: {}", s.lr(step))
            };
            near(1, 0.5);
            near(4, 2.0);
            near(14, 2.0);
            near(24, 1.1); // half way, in both shapes
            near(34, 0.2);
            near(1000, 0.2);
            assert!((14..34).all(|step| s.lr(step + 1) < s.lr(step)));
        }
        assert_eq!(Schedule::over(100, 3.0, 0, Decay::Constant, 0.0).lr(70), 3.0);
    }
}
