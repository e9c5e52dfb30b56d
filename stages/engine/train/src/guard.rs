//! The guard against loss spikes: a step whose loss stands out is skipped, and when several do in a row the training
//! goes back.
//!
//! DeepSeek-V3's pretraining had no irrecoverable spike (§1); other trainings may. PaLM restarted from a checkpoint
//! before the spike and skipped the batches around it (Chowdhery et al. 2022, §5.1). The guard's state is saved with
//! the training, so a resumed training makes the same decisions.

use crate::Optimizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_model::Params;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpikeGuard {
    /// Number of recent losses that a step's loss is compared with, and of updates between two snapshots.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub window: usize,
    /// A loss this many standard deviations above their mean is a spike.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub z: f64,
    /// Skipped steps in a row after which the training returns to the last snapshot.
    #[schemars(range(min = 1))]
    pub patience: u64,
}

impl Default for SpikeGuard {
    fn default() -> Self {
        Self { window: 100, z: 6.0, patience: 3 }
    }
}

/// What the guard remembers.
#[derive(Default)]
pub(crate) struct Spikes {
    pub losses: VecDeque<f64>,
    /// Skipped steps since the last update.
    pub skipped: u64,
    /// The last snapshot: parameters and optimizer.
    pub kept: Option<(Params, Optimizer)>,
}

impl SpikeGuard {
    /// A NaN or infinite loss is always a spike; other losses are judged once the window is full.
    pub(crate) fn is_spike(&self, spikes: &Spikes, loss: f64) -> bool {
        if !loss.is_finite() {
            return true;
        }
        let n = spikes.losses.len() as f64;
        if spikes.losses.len() < self.window.max(2) {
            return false;
        }
        let mean = spikes.losses.iter().sum::<f64>() / n;
        let variance = spikes.losses.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
        loss > mean + self.z * variance.sqrt()
    }

    pub(crate) fn accept(&self, spikes: &mut Spikes, loss: f64) {
        spikes.skipped = 0;
        spikes.losses.push_back(loss);
        if spikes.losses.len() > self.window.max(2) {
            spikes.losses.pop_front();
        }
    }
}
