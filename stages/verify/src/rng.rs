//! The random numbers of generated data: SplitMix64 (Steele, Lea, Flood 2014), keyed by seed and stream.
//!
//! Item i of a dataset draws from `Rng::of(seed, stream, i)`, so that it is the same whichever worker makes it.

/// A stream of random numbers; the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// The stream of item `index` in stream `name` under `seed`; other names give unrelated numbers.
    pub fn of(seed: u64, name: &str, index: u64) -> Self {
        let mut state = mix(seed.wrapping_add(GOLDEN));
        for byte in name.bytes() {
            state = mix(state ^ u64::from(byte)).wrapping_add(GOLDEN);
        }
        Rng(mix(state ^ mix(index.wrapping_add(GOLDEN))))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number in `0..n`, all equally likely; `n` must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "Rng::below: n is 0");
        // Numbers past the last whole multiple of n would favour the small results.
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let bits = self.bits();
            if bits < limit {
                return bits % n;
            }
        }
    }

    /// A number in `first..=last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        assert!(first <= last, "Rng::between: {first} is above {last}");
        match (last - first).checked_add(1) {
            Some(n) => first + self.below(n),
            None => self.bits(),
        }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        // 53 bits fill a double's mantissa: every multiple of 2^-53 in [0, 1) is equally likely.
        ((self.bits() >> 11) as f64) * (1.0 / (1u64 << 53) as f64) < p
    }

    /// One of `items`, all equally likely.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// 64 bits of a text, all of them even: FNV-1a, then SplitMix64's last step. Not against adversaries.
pub fn hash(text: &str) -> u64 {
    mix(text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_published_ones() {
        // First outputs of SplitMix64 from state 0.
        let mut rng = Rng(0);
        assert_eq!([rng.bits(), rng.bits()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn streams_differ_by_seed_name_and_index() {
        let first = |seed, name, index| Rng::of(seed, name, index).bits();
        let all = [first(0, "a", 0), first(1, "a", 0), first(0, "b", 0), first(0, "a", 1), first(0, "aa", 0)];
        for (i, x) in all.iter().enumerate() {
            assert!(!all[..i].contains(x));
        }
    }

    #[test]
    fn hashes_of_short_texts_are_even_in_every_bit() {
        let hashes: Vec<u64> = (0..4000).map(|i| hash(&i.to_string())).collect();
        for bit in 0..64 {
            // Standard deviation 32: five of them.
            let ones = hashes.iter().filter(|h| *h >> bit & 1 == 1).count();
            assert!((1840..2160).contains(&ones), "bit {bit}: {ones}");
        }
    }

    #[test]
    fn draws_are_even() {
        let mut rng = Rng::of(7, "even", 0);
        let mut counts = [0u32; 10];
        for _ in 0..10_000 {
            counts[rng.below(10) as usize] += 1;
        }
        // Standard deviation of a count is 30: five of them.
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
        let heads = (0..10_000).filter(|_| rng.chance(0.1)).count();
        assert!((850..1150).contains(&heads), "{heads}");
    }
}
