//! What a step tells the host: one download.

use smelt_kernels::{Backend, Tensor};
use smelt_model::Stats;
use std::collections::BTreeMap;

/// Everything that decides about an update, and that a report shows.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Of each micro-batch's loss.
    pub sums: Vec<Vec<f64>>,
    /// Of all gradients together.
    pub square_sum: f64,
    /// Balance losses, weighted.
    pub balance: f64,
    /// An infinite or NaN value was quantised.
    pub has_saturated: bool,
    /// Rows each expert got, by layer.
    pub loads: BTreeMap<usize, Vec<u64>>,
}

impl Record {
    /// Waits until the passes are done.
    pub(crate) fn read(backend: &dyn Backend, sums: &[Tensor], square_sum: &Tensor, stats: &mut Stats) -> Self {
        stats.balance(backend);
        let (saturated, balance) = (stats.saturated(backend).clone(), stats.balance(backend).clone());
        let mut parts: Vec<&Tensor> = vec![square_sum, &balance, &saturated];
        parts.extend(stats.loads.values());
        parts.extend(sums);
        let all = backend.download(&backend.collect(&parts)).to_f64();
        let (counts, layers) = (stats.loads.values().map(Tensor::len), stats.loads.keys());
        let mut rest = &all[3..];
        let mut next = |len: usize| rest.split_off(..len).expect("all parts are there");
        let loads = counts.map(|len| next(len).iter().map(|&count| count as u64).collect::<Vec<u64>>());
        let loads = layers.copied().zip(loads).collect();
        let sums = sums.iter().map(|part| next(part.len()).to_vec()).collect();
        Self { sums, square_sum: all[0], balance: all[1], has_saturated: all[2] != 0.0, loads }
    }
}
