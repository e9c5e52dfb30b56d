//! How many tokens a training computes at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::device::{self, Opened, size};
use smelt_model::{Model, Recomputed};
use smelt_stage::Context;
use smelt_train::{Hyper, Memory};

/// In a config: a number, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Written", into = "Written")]
#[schemars(with = "Written")]
pub enum TokensAtOnce {
    Count(usize),
    /// What the memory of the device allows.
    Auto,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TokensAtOnce")]
#[serde(untagged, expecting = "expected a number of tokens, or `auto`")]
enum Written {
    Count(#[schemars(range(min = 1, max = 1_000_000_000))] usize),
    Name(Name),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TokensAtOnceName")]
#[serde(rename_all = "snake_case")]
enum Name {
    Auto,
}

impl From<Written> for TokensAtOnce {
    fn from(written: Written) -> Self {
        match written {
            Written::Count(count) => TokensAtOnce::Count(count),
            Written::Name(Name::Auto) => TokensAtOnce::Auto,
        }
    }
}

impl From<TokensAtOnce> for Written {
    fn from(tokens: TokensAtOnce) -> Self {
        match tokens {
            TokensAtOnce::Count(count) => Written::Count(count),
            TokensAtOnce::Auto => Written::Name(Name::Auto),
        }
    }
}

/// Tokens at once beyond which a CPU is no faster: its products are large enough by then.
const ENOUGH_FOR_A_CPU: usize = 16_384;

/// A step as its memory sees it.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    pub model: &'a Model,
    pub hyper: &'a Hyper,
    pub recompute: Recomputed,
    /// Of a whole step.
    pub sequences: usize,
    /// Tokens of the longest.
    pub longest: usize,
    /// Bytes that lie beside the training: snapshots, other models.
    pub beside: u64,
}

impl Step<'_> {
    /// Bytes that it takes with so many sequences at once.
    fn takes(&self, opened: &Opened, recompute: Recomputed, sequences: usize) -> u64 {
        let Step { model, hyper, longest, beside, .. } = *self;
        beside + Memory::of(&opened.meta(), model, hyper, recompute, [sequences, longest]).peak
    }

    /// What to change should there be no memory for `sequences` at once: counted on shapes.
    fn advice(&self, opened: &Opened, sequences: usize) -> String {
        let budget = opened.memory.unwrap_or(0);
        let fits = |recompute, n| self.takes(opened, recompute, n) <= budget;
        let tokens = |n: usize| n * self.longest;
        if fits(self.recompute, sequences) {
            return "by its shapes the step fits: other programs may use the GPU, or lower `micro_batch_tokens`".into();
        }
        if fits(self.recompute, 1) {
            let n = largest(sequences, |n| fits(self.recompute, n));
            return format!("`micro_batch_tokens: {}` would fit, by the shapes of a step; `auto` finds it", tokens(n));
        }
        if fits(Recomputed::Full, 1) {
            let n = largest(sequences, |n| fits(Recomputed::Full, n));
            return format!("`recompute: full` with `micro_batch_tokens: {}` would fit, by its shapes", tokens(n));
        }
        let least = size(self.takes(opened, Recomputed::Full, 1));
        format!("nothing would fit: by its shapes a step takes {least} at least, {} are there", size(budget))
    }
}

impl TokensAtOnce {
    /// The number, where it is known before the device is.
    pub fn count(self) -> Option<usize> {
        match self {
            TokensAtOnce::Count(count) => Some(count),
            TokensAtOnce::Auto => None,
        }
    }

    /// The number. `auto` cuts a step into as few parts as the memory of the device allows, all of one size; it depends
    /// on how much memory the device has, not on how much of it is free.
    pub fn on(self, opened: &Opened, step: &Step, cx: &Context) -> usize {
        let most = match self {
            TokensAtOnce::Count(count) => count / step.longest.max(1),
            TokensAtOnce::Auto if opened.is_gpu() => usize::MAX,
            TokensAtOnce::Auto => ENOUGH_FOR_A_CPU / step.longest.max(1),
        };
        let most = step.sequences.min(most.max(1));
        if opened.is_gpu() {
            device::would_fit(step.advice(opened, most));
        }
        if let TokensAtOnce::Count(count) = self {
            return count;
        }
        let take = |sequences| step.takes(opened, step.recompute, sequences);
        let sequences = opened.memory.map_or(1, |budget| largest(most, |n| take(n) <= budget));
        let parts = step.sequences.div_ceil(sequences);
        let count = step.sequences.div_ceil(parts) * step.longest;
        cx.result("tokens_at_once", count as f64);
        count
    }
}

/// The largest of 1 to `most` that fits, or 1; what is larger than one that does not fit does not fit.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, most.max(1));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_count_is_a_number_or_auto() {
        for (written, tokens) in [(json!(4096), TokensAtOnce::Count(4096)), (json!("auto"), TokensAtOnce::Auto)] {
            assert_eq!(serde_json::from_value::<TokensAtOnce>(written.clone()).unwrap(), tokens);
            assert_eq!(serde_json::to_value(tokens).unwrap(), written);
        }
        let text = serde_json::from_value::<TokensAtOnce>(json!("all")).unwrap_err().to_string();
        assert!(text.contains("expected a number of tokens, or `auto`"), "{text}");
    }

    #[test]
    fn the_largest_that_fits_is_found() {
        for most in [0, 1, 2, 7, 64] {
            for limit in 0..70 {
                assert_eq!(largest(most, |n| n <= limit), most.min(limit).max(1), "{most} {limit}");
            }
        }
    }
}
