//! The data order: which sample stands at place i of step s.
//!
//! A pure function of (seed, s·B + i): every pass over the data is its own permutation, computed place by place in
//! constant memory. A stateful iterator would be easier to read, but could not resume exactly.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::random;

/// Growth of the step at the start of a training: from `from` sequences, in equal parts, over `steps` steps
/// (DeepSeek-V3, §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub from: u64,
    #[schemars(range(max = 10_000_000))]
    pub steps: u64,
}

/// How many samples the steps have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Per step, after the ramp.
    pub sequences: u64,
    pub ramp: Option<Ramp>,
}

impl Batches {
    /// Samples of step `step`, from 0.
    pub fn size(&self, step: u64) -> u64 {
        match self.ramp {
            Some(Ramp { from, steps }) if step < steps => from + self.sequences.saturating_sub(from) * step / steps,
            _ => self.sequences,
        }
    }

    /// Samples of all steps before `step`.
    pub fn before(&self, step: u64) -> u64 {
        let ramp = self.ramp.map_or(0, |ramp| ramp.steps.min(step));
        (0..ramp).map(|step| self.size(step)).sum::<u64>() + (step - ramp) * self.sequences
    }
}

/// Places per block of a mixture, in which every dataset has its fixed number of places.
const BLOCK: u64 = 1 << 16;

/// Which sample of which dataset stands at a place, for datasets with weights.
///
/// Places come in blocks. In a block each dataset has its share of the places, scattered by a permutation of the
/// block's own; the datasets' samples fill them in the order of their epochs. So shares hold exactly, an epoch of any
/// dataset visits each of its samples once, and a place can be asked for alone.
#[derive(Clone, Debug)]
pub struct Mixture {
    seed: u64,
    /// Samples per dataset.
    counts: Vec<u64>,
    /// Where the places of each dataset end in a block; the last is [`BLOCK`].
    ends: Vec<u64>,
}

impl Mixture {
    /// Every dataset has a sample and a positive weight.
    pub fn new(seed: u64, counts: &[u64], weights: &[f64]) -> Self {
        assert!(counts.len() == weights.len() && !counts.is_empty(), "mixture: {} of {}", weights.len(), counts.len());
        assert!(counts.iter().all(|&n| n > 0) && weights.iter().all(|&w| w > 0.0), "mixture: {counts:?} {weights:?}");
        let (total, mut sum) = (weights.iter().sum::<f64>(), 0.0);
        let mut ends: Vec<u64> = Vec::with_capacity(weights.len());
        for weight in weights {
            sum += weight;
            let end = (sum / total * BLOCK as f64).round() as u64;
            ends.push(end.max(ends.last().map_or(1, |before| before + 1)));
        }
        *ends.last_mut().expect("there is one") = BLOCK;
        Self { seed, counts: counts.to_vec(), ends }
    }

    /// Dataset and index of the sample at place `at`.
    pub fn sample(&self, at: u64) -> (usize, u64) {
        let (dataset, rank) = if self.counts.len() == 1 {
            (0, at)
        } else {
            let (block, place) = (at / BLOCK, random::permute(self.seed, 1 << 48 | (at / BLOCK), at % BLOCK, BLOCK));
            let dataset = self.ends.partition_point(|&end| end <= place);
            let start = if dataset == 0 { 0 } else { self.ends[dataset - 1] };
            (dataset, block * (self.ends[dataset] - start) + place - start)
        };
        let count = self.counts[dataset];
        let stream = (dataset as u64) << 40 | (rank / count);
        (dataset, random::permute(self.seed, stream, rank % count, count))
    }
}

/// Index in `0..count` of sample `place` of step `step` (from 0) with `batch` samples per step.
pub fn sample(seed: u64, step: u64, batch: u64, place: u64, count: u64) -> u64 {
    let at = step * batch + place;
    random::permute(seed, at / count, at % count, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_sample_once_in_an_order_of_its_own() {
        let (batch, count) = (6, 37);
        let all: Vec<u64> =
            (0..37).flat_map(|step| (0..batch).map(move |i| sample(3, step, batch, i, count))).collect();
        let epochs: Vec<&[u64]> = all.chunks(count as usize).collect();
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..count));
        }
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn the_order_does_not_depend_on_how_a_step_is_cut() {
        let by_8: Vec<u64> = (0..8).map(|i| sample(1, 3, 8, i, 100)).collect();
        let by_4: Vec<u64> = (6..8).flat_map(|step| (0..4).map(move |i| sample(1, step, 4, i, 100))).collect();
        assert_eq!(by_8, by_4);
    }

    #[test]
    fn a_ramp_grows_in_equal_parts_and_counts_what_went_before() {
        let batches = Batches { sequences: 10, ramp: Some(Ramp { from: 2, steps: 4 }) };
        let sizes: Vec<u64> = (0..6).map(|step| batches.size(step)).collect();
        assert_eq!(sizes, [2, 4, 6, 8, 10, 10]);
        let before: Vec<u64> = (0..7).map(|step| batches.before(step)).collect();
        assert_eq!(before, [0, 2, 6, 12, 20, 30, 40]);
        assert_eq!(Batches { sequences: 3, ramp: None }.before(5), 15);
    }

    #[test]
    fn a_mixture_keeps_its_shares_and_visits_every_sample_of_an_epoch_once() {
        let (counts, weights) = ([1000, 37, 20_000], [2.0, 1.0, 5.0]);
        let mixture = Mixture::new(3, &counts, &weights);
        let places = 2 * BLOCK;
        let mut seen: Vec<Vec<u64>> = counts.iter().map(|&count| vec![0; count as usize]).collect();
        (0..places).for_each(|at| {
            let (dataset, index) = mixture.sample(at);
            seen[dataset][index as usize] += 1;
        });
        for ((seen, count), weight) in seen.iter().zip(counts).zip(weights) {
            let drawn: u64 = seen.iter().sum();
            assert_eq!(drawn, (places as f64 * weight / 8.0).round() as u64);
            assert!(seen.iter().all(|&times| times == drawn / count || times == drawn / count + 1), "{drawn} {count}");
        }
        // one in eight over the first thousand too: 4 standard deviations of scattered places
        let early = (0..1000).filter(|&at| mixture.sample(at).0 == 1).count() as f64;
        assert!((early - 125.0).abs() < 4.0 * (1000.0f64 * 0.125 * 0.875).sqrt(), "{early}");
        let alone = Mixture::new(3, &[100], &[0.1]);
        assert!((0..300).all(|at| alone.sample(at) == (0, sample(3, 0, 1, at, 100))));
    }
}
