//! What is summed over a whole step: over all its micro-batches, and over all ranks.
//!
//! Losses over tokens and balance losses divide by what is counted before the passes (a loss over answers or pairs
//! brings its own count of the step); the routers' biases and clipping use what is summed after them. With several
//! ranks, this is what they exchange.

use smelt_model::{Batch, IGNORE};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTotals {
    /// Input tokens.
    pub tokens: usize,
    /// Documents that are not empty.
    pub sequences: usize,
    /// Rows that predict a token.
    pub targets: usize,
    /// The same of each MTP module.
    pub mtp_targets: Vec<usize>,
    /// Rows each expert got, by layer. Known after the passes.
    pub loads: BTreeMap<usize, Vec<u64>>,
    /// Of the gradients of everything that is trained. Known after the passes.
    pub square_sum: f64,
}

impl StepTotals {
    /// What is known before the passes, for a model with `modules` MTP modules.
    pub fn count<'a>(batches: impl Iterator<Item = &'a Batch> + Clone, modules: usize) -> Self {
        // module d reads all but the last d rows of a document, and predicts what those after its first d predict
        let targets = |skipped: usize| {
            let trained = |batch: &Batch| {
                let rows = batch.documents.iter().flat_map(|rows| rows.skip(skipped));
                rows.filter(|&row| batch.targets[row] != IGNORE).count()
            };
            batches.clone().map(trained).sum()
        };
        let sequences = |batch: &Batch| batch.documents.iter().filter(|rows| !rows.is_empty()).count();
        Self {
            tokens: batches.clone().map(|batch| batch.ids.len()).sum(),
            sequences: batches.clone().map(sequences).sum(),
            targets: targets(0),
            mtp_targets: (1..=modules).map(targets).collect(),
            ..Self::default()
        }
    }

    /// Of all gradients together, before clipping.
    pub fn gradient_norm(&self) -> f64 {
        self.square_sum.sqrt()
    }

    /// The largest over the layers of (most loaded expert − mean) / mean (DeepSeek-V3, §4.5.2: MaxVio).
    pub fn max_violation(&self) -> f64 {
        let violation = |loads: &Vec<u64>| {
            let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
            loads.iter().max().map_or(0.0, |&most| (most as f64 - mean) / mean.max(1.0))
        };
        self.loads.values().map(violation).fold(0.0, f64::max)
    }
}
