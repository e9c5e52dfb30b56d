//! Stops reinforcement learning that diverges.

use crate::Config;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smelt_stage::Error;

/// Stops a training whose policy drifts too far from its reference, no longer ends its answers, or has collapsed. Its
/// count is part of every save: a training that was killed stops at the same step as one that was not.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guard {
    truncated_steps: u64,
}

impl Guard {
    pub(crate) fn save(&self) -> Value {
        serde_json::json!(self)
    }

    /// Takes up the count of a save; starts at zero if the save has none.
    pub(crate) fn restore(saved: Value) -> Result<Self, Error> {
        let saved: Option<Self> = serde_json::from_value(saved)
            .map_err(|e| Error::bug(format!("what a save says of the guard cannot be read: {e}")))?;
        Ok(saved.unwrap_or_default())
    }

    /// `entropy` in nats per token; none in a step whose groups had no spread.
    pub(crate) fn check(
        &mut self,
        config: &Config,
        step: u64,
        kl: f64,
        truncated: f64,
        entropy: Option<f64>,
    ) -> Result<(), Error> {
        if kl > config.max_kl {
            let what = format!("step {step}: the KL to the reference is {kl:.2} per token, above {}", config.max_kl);
            return Err(Error::config("/max_kl", what).hint("lower `lr` or raise `beta`"));
        }
        if let Some(entropy) = entropy.filter(|entropy| *entropy < config.min_entropy) {
            let least = config.min_entropy;
            let what = format!(
                "step {step}: the policy has collapsed: its entropy is {entropy:.3} nats per token, below {least}"
            );
            return Err(
                Error::config("/min_entropy", what).hint("lower `lr`, raise `beta`, or stop earlier by `steps`")
            );
        }
        self.truncated_steps = if truncated > config.max_truncated { self.truncated_steps + 1 } else { 0 };
        if self.truncated_steps >= 10 {
            let what = format!(
                "step {step}: for 10 steps more than {:.0} % of answers were cut off",
                100.0 * config.max_truncated
            );
            return Err(Error::config("/max_truncated", what)
                .hint("raise `max_tokens`, or look at `samples`: the answers may not end"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_runs_away_is_stopped() {
        let (config, mut guard) = (Config::default(), Guard::default());
        assert!(guard.check(&config, 1, 0.1, 0.2, None).is_ok());
        let error = guard.check(&config, 2, 9.0, 0.2, None).unwrap_err().to_string();
        assert_eq!(error, "step 2: the KL to the reference is 9.00 per token, above 5");
        assert!((3..12).all(|step| guard.check(&config, step, 0.1, 0.95, None).is_ok()));
        assert!(guard.check(&config, 12, 0.1, 0.95, None).is_err());
    }

    #[test]
    fn a_policy_that_collapses_is_stopped_when_asked_for() {
        let (config, mut guard) = (Config::default(), Guard::default());
        assert!(guard.check(&config, 1, 0.1, 0.0, Some(0.0)).is_ok(), "by default nobody looks");
        let config = Config { min_entropy: 0.05, ..config };
        assert!(guard.check(&config, 2, 0.1, 0.0, Some(0.05)).is_ok());
        assert!(guard.check(&config, 3, 0.1, 0.0, None).is_ok(), "a step without an update has no entropy");
        let error = guard.check(&config, 4, 0.1, 0.0, Some(0.0123)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "step 4: the policy has collapsed: its entropy is 0.012 nats per token, below 0.05"
        );
        assert_eq!(error.problem().field.as_deref(), Some("/min_entropy"));
    }

    #[test]
    fn a_guard_taken_up_from_a_save_counts_on() {
        let (config, mut guard) = (Config::default(), Guard::default());
        assert!((1..10).all(|step| guard.check(&config, step, 0.1, 0.95, None).is_ok()));
        let mut resumed = Guard::restore(guard.save()).unwrap();
        assert_eq!(resumed, guard);
        let [undisturbed, resumed] =
            [&mut guard, &mut resumed].map(|guard| guard.check(&config, 10, 0.1, 0.95, None).unwrap_err().to_string());
        assert_eq!(resumed, undisturbed);
        assert_eq!(Guard::restore(Value::Null).unwrap(), Guard::default(), "saves of before know no guard");
    }
}
