//! MinHash signatures (Broder 1997): short sketches whose agreement estimates the Jaccard similarity of two documents.
//!
//! The arithmetic and the constants are datatrove's, so that signatures agree with those that FineWeb was made with:
//! shingles are runs of words of the simplified text, hashed with xxHash-64; hash i of a shingle is
//! `((aᵢ·x + bᵢ) mod 2⁶⁴) mod (2⁶¹ − 1)`. It wraps at 2⁶⁴ first; the textbook form gives other
//! signatures.

use smelt_words::{parts, shingles, simplify, simplify_keeping_numbers, words};
use xxhash_rust::xxh64::xxh64;

const PRIME: u64 = (1 << 61) - 1;

/// The parameters `a`, `b` of every hash function, and how many words a shingle has.
#[derive(Debug)]
pub struct MinHash {
    coefficients: Vec<(u64, u64)>,
    words: usize,
    /// Whether two numbers are different words; in the published signatures they are all one.
    pub keep_numbers: bool,
    /// Whether characters stand for words in scripts without blanks; in the published signatures such text between two
    /// marks is one word.
    pub by_script: bool,
}

impl MinHash {
    /// As published: `hashes` functions drawn from `seed` in the order numpy's legacy generator draws them, all `a`,
    /// then all `b`; numbers folded, words between blanks.
    pub fn new(words: usize, hashes: usize, seed: u32) -> Self {
        let mut twister = Twister::new(seed);
        let a: Vec<u64> = (0..hashes).map(|_| 1 + twister.at_most(PRIME - 2)).collect();
        let b = (0..hashes).map(|_| twister.at_most(PRIME - 1));
        MinHash { coefficients: a.into_iter().zip(b).collect(), words, keep_numbers: false, by_script: false }
    }

    /// The signature of a text: per hash function the smallest hash of any shingle. `None` for a text of fewer words
    /// than a shingle has, which therefore never is a near-duplicate.
    pub fn signature(&self, text: &str) -> Option<Vec<u64>> {
        self.of_hashes(&self.shingles(text))
    }

    /// The hashes of a text's shingles, sorted, each once.
    pub fn shingles(&self, text: &str) -> Vec<u64> {
        let simple = if self.keep_numbers { simplify_keeping_numbers(text) } else { simplify(text) };
        let words: Vec<&str> = match self.by_script {
            true => words(&simple).flat_map(parts).collect(),
            false => words(&simple).collect(),
        };
        let mut hashes = Vec::with_capacity(words.len());
        let mut runs = shingles(&words, self.words);
        while let Some(shingle) = runs.next() {
            hashes.push(xxh64(shingle.as_bytes(), 0));
        }
        // A repeated shingle cannot lower a minimum.
        hashes.sort_unstable();
        hashes.dedup();
        hashes
    }

    fn of_hashes(&self, shingles: &[u64]) -> Option<Vec<u64>> {
        if shingles.is_empty() {
            return None;
        }
        let smallest = |&(a, b): &(u64, u64)| {
            let hash = |&x: &u64| modulo_prime(a.wrapping_mul(x).wrapping_add(b));
            shingles.iter().map(hash).min().expect("there is a shingle")
        };
        Some(self.coefficients.iter().map(smallest).collect())
    }
}

/// Share of equal hashes: the estimate of the Jaccard similarity; its standard error is at most 1 / (2·√hashes).
pub fn similarity<T: PartialEq>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "similarity: signatures of different lengths");
    a.iter().zip(b).filter(|(x, y)| x == y).count() as f64 / a.len() as f64
}

/// The Jaccard similarity of two sorted sets.
pub fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut common) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        common += usize::from(a[i] == b[j]);
        let (x, y) = (a[i], b[j]);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    common as f64 / (a.len() + b.len() - common).max(1) as f64
}

/// `x mod (2⁶¹ − 1)` without a division.
fn modulo_prime(x: u64) -> u64 {
    let folded = (x & PRIME) + (x >> 61);
    if folded >= PRIME { folded - PRIME } else { folded }
}

/// MT19937 (Matsumoto & Nishimura 1998), as far as it is needed to draw the coefficients.
struct Twister {
    state: [u32; 624],
    next: usize,
}

impl Twister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Twister { state, next: 624 }
    }

    fn bits32(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number in `0..=largest`, `largest` below 2⁶¹: 61 random bits, drawn again while too large.
    fn at_most(&mut self, largest: u64) -> u64 {
        loop {
            let high = u64::from(self.bits32());
            let bits = ((high << 32) | u64::from(self.bits32())) & PRIME;
            if bits <= largest {
                return bits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_are_the_published_ones() {
        let minhash = MinHash::new(5, 112, 1);
        let a: Vec<u64> = minhash.coefficients.iter().map(|c| c.0).take(3).collect();
        assert_eq!(a, [775_169_054_918_279_404, 1_758_426_461_858_698_313, 2_109_959_069_025_162]);
    }

    #[test]
    fn folding_is_the_remainder() {
        for x in [0, 1, PRIME - 1, PRIME, PRIME + 1, 2 * PRIME, u64::MAX - 1, u64::MAX] {
            assert_eq!(modulo_prime(x), x % PRIME, "{x}");
        }
    }

    #[test]
    fn marks_case_and_numbers_do_not_change_a_signature() {
        let minhash = MinHash::new(5, 112, 1);
        let a = minhash.signature("The quick brown fox jumps over 13 lazy dogs.").unwrap();
        let b = minhash.signature("the QUICK (brown) fox, jumps -- over 7 lazy dogs!").unwrap();
        assert_eq!(a, b);
        assert_eq!(similarity(&a, &b), 1.0);
    }

    #[test]
    fn numbers_are_words_when_asked() {
        let minhash = MinHash { keep_numbers: true, ..MinHash::new(5, 112, 1) };
        let sum = |n: u32| minhash.signature(&format!("how many minutes does {n} take")).unwrap();
        assert!(similarity(&sum(7), &sum(8)) < 0.5);
    }

    #[test]
    fn text_without_blanks_is_compared_by_its_characters() {
        let minhash = MinHash { by_script: true, ..MinHash::new(5, 112, 1) };
        let shingles = |text| minhash.shingles(text).len();
        assert_eq!(shingles("今天早上港口的管理员"), 6);
        assert_eq!(shingles("今天 早 上，港口"), 2);
    }

    #[test]
    fn a_short_text_has_no_signature() {
        assert_eq!(MinHash::new(5, 112, 1).signature("only four words here"), None);
    }

    #[test]
    fn the_estimate_is_near_the_similarity() {
        // 1000 words each, 900 of them shared at the front: 896 shared of 1096 distinct 5-grams = 0.8175.
        let text = |from: usize| -> String {
            let shared = (0..900).map(|i| format!("w{} ", letters(i)));
            shared.chain((0..100).map(|i| format!("w{} ", letters(from + i)))).collect()
        };
        let minhash = MinHash::new(5, 1024, 1);
        let estimate = similarity(&minhash.signature(&text(2000)).unwrap(), &minhash.signature(&text(3000)).unwrap());
        let exact = jaccard(&minhash.shingles(&text(2000)), &minhash.shingles(&text(3000)));
        assert_eq!(exact, 896.0 / 1096.0);
        // Four standard errors of √(s(1−s)/1024).
        assert!((estimate - 0.8175).abs() < 0.049, "{estimate}");
    }

    /// Numbers would all be simplified to `0`.
    fn letters(mut i: usize) -> String {
        let mut word = String::new();
        while i > 0 || word.is_empty() {
            word.push((b'a' + (i % 26) as u8) as char);
            i /= 26;
        }
        word
    }
}
