//! Random numbers as a function of where they are used: `(seed, stream, index)`.
//!
//! There is no generator state that a checkpoint would have to store, and a draw does not depend on how many were made
//! before it.

/// Two rounds of multiply and xor-shift (Steele et al. 2014, "SplitMix64", as a hash).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 64 random bits for place `index` of stream `stream`.
pub fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    mix(mix(mix(seed) ^ stream) ^ index)
}

/// Uniform in [0, 1), 53 bits.
pub fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    (bits(seed, stream, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform in 0..n; the bias is below n/2⁶⁴.
pub fn below(seed: u64, stream: u64, index: u64, n: u64) -> u64 {
    ((u128::from(bits(seed, stream, index)) * u128::from(n)) >> 64) as u64
}

/// Standard normal (Box and Muller 1958).
pub fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    let (a, b) = (uniform(seed, stream, 2 * index), uniform(seed, stream, 2 * index + 1));
    (-2.0 * crate::math::ln(1.0 - a)).sqrt() * crate::math::sin_cos(2.0 * crate::math::PI * b).1
}

/// Where the permutation `(seed, stream)` of `0..n` moves `index`: a Feistel network of four rounds over the next power
/// of four, applied until the result is below n (Black and Rogaway 2002). Takes constant memory; each index is computed
/// alone.
pub fn permute(seed: u64, stream: u64, index: u64, n: u64) -> u64 {
    assert!(index < n, "permute: {index} of {n}");
    let half_bits = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut x = index;
    loop {
        let (mut left, mut right) = (x >> half_bits, x & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (bits(seed, stream ^ (round << 56), right) & mask));
        }
        x = left << half_bits | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_visits_every_place_once() {
        for n in [1, 2, 3, 7, 64, 1000] {
            for stream in 0..3 {
                let mut seen: Vec<u64> = (0..n).map(|i| permute(5, stream, i, n)).collect();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..n), "{n}");
            }
        }
        let orders: Vec<Vec<u64>> = (0..2).map(|stream| (0..64).map(|i| permute(5, stream, i, 64)).collect()).collect();
        assert_ne!(orders[0], orders[1]);
    }

    /// Mean and variance of 10⁵ draws: standard errors 0.003 and 0.0045; five of them is 1 in 10⁶ by chance.
    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let draws: Vec<f64> = (0..100_000).map(|i| normal(1, 2, i)).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023, "{mean} {variance}");
    }
}
