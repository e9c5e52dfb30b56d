//! The data order: which sample stands at place i of step s.
//!
//! A pure function of (seed, s·B + i): every pass over the data is its own permutation, computed place by place in constant memory. A
//! stateful iterator would read nicer and cost exact resume.

use smelt_kernels::random;

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
}
