//! The guard against loss spikes: a step whose loss stands out is skipped, and when several do in a row the training goes back.
//!
//! DeepSeek-V3 needed none (§1), which is no promise for others. Skipping batches around a spike and restarting from before it is PaLM's
//! remedy (Chowdhery et al. 2022, §5.1). All of its state is part of the training state, so a resumed training decides the same.

use crate::Optimizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_model::Params;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpikeGuard {
    /// Losses that a step's loss is compared with, and updates between two copies to go back to.
    pub window: usize,
    /// Standard deviations above their mean from which on a loss is a spike.
    pub z: f64,
    /// Skipped steps in a row after which the training goes back to the copy before.
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
    /// Where to go back to: parameters and optimizer.
    pub kept: Option<(Params, Optimizer)>,
}

impl SpikeGuard {
    /// A loss that is no number always is one; others need a full window to be judged by.
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
