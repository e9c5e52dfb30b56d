//! MinHash signatures (Broder 1997): short sketches whose agreement estimates the Jaccard similarity of two documents.
//!
//! The arithmetic and the constants are datatrove's, so that signatures agree with those that FineWeb was made with:
//! shingles are runs of words of the simplified text, hashed with xxHash-64; hash i of a shingle is
//! `((aᵢ·x + bᵢ) mod 2⁶⁴) mod (2⁶¹ − 1)`. It wraps at 2⁶⁴ first; the textbook form gives other
//! signatures.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use smelt_words::{EnglishWords, Span, parts, simplify, simplify_keeping_numbers, words};
use xxhash_rust::xxh64::xxh64;

const PRIME: u64 = (1 << 61) - 1;

/// How a shingle is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShingleHash {
    /// xxHash-64.
    #[default]
    Xxhash64,
    /// The first 64 bits of SHA-1.
    #[serde(rename = "sha1_64")]
    Sha1Long,
    /// The first 32 bits of SHA-1; signatures have 32 bits a hash too.
    #[serde(rename = "sha1_32")]
    Sha1Short,
}

impl ShingleHash {
    fn of(self, shingle: &[u8]) -> u64 {
        if self == ShingleHash::Xxhash64 {
            return xxh64(shingle, 0);
        }
        let digest = Sha1::digest(shingle);
        let first = u64::from_le_bytes(digest[..8].try_into().expect("SHA-1 has 20 bytes"));
        first & self.mask()
    }

    /// The bits that a hash of a signature has.
    fn mask(self) -> u64 {
        if self == ShingleHash::Sha1Short { u64::from(u32::MAX) } else { u64::MAX }
    }
}

/// The parameters `a`, `b` of every hash function, and how many words a shingle has.
#[derive(Debug)]
pub struct MinHash {
    /// Padded to whole blocks with functions that nobody asks for.
    a: Vec<u64>,
    b: Vec<u64>,
    hashes: usize,
    words: usize,
    /// Whether two numbers are different words; in the published signatures they are all one.
    pub keep_numbers: bool,
    /// Whether characters stand for words in scripts without blanks; the published signatures know English words only.
    pub by_script: bool,
    /// How a shingle is hashed.
    pub hash: ShingleHash,
}

/// Buffers that are kept from text to text.
#[derive(Debug, Default)]
pub struct Scratch {
    english: EnglishWords,
    spans: Vec<Span>,
    joined: Vec<u8>,
    /// Where each word begins in `joined`, and where a next one would.
    starts: Vec<usize>,
    hashes: Vec<u64>,
}

impl MinHash {
    /// As published: `hashes` functions drawn from `seed` in the order numpy's legacy generator draws them, all `a`,
    /// then all `b`; numbers folded, English words, xxHash-64.
    pub fn new(words: usize, hashes: usize, seed: u32) -> Self {
        let mut twister = Twister::new(seed);
        let mut a: Vec<u64> = (0..hashes).map(|_| 1 + twister.at_most(PRIME - 2)).collect();
        let mut b: Vec<u64> = (0..hashes).map(|_| twister.at_most(PRIME - 1)).collect();
        let padded = hashes.next_multiple_of(BLOCK);
        a.resize(padded, 1);
        b.resize(padded, 0);
        let hash = ShingleHash::default();
        MinHash { a, b, hashes, words, keep_numbers: false, by_script: false, hash }
    }

    /// The form of a text whose words make the shingles.
    pub fn simple(&self, text: &str) -> String {
        if self.keep_numbers { simplify_keeping_numbers(text) } else { simplify(text) }
    }

    /// The signature of a text: per hash function the smallest hash of any shingle. `None` for a text of fewer words
    /// than a shingle has, which therefore never is a near-duplicate.
    pub fn signature(&self, text: &str) -> Option<Vec<u64>> {
        self.signature_of_simple(&self.simple(text), &mut Scratch::default())
    }

    /// The signature of a text in its [`simple`](Self::simple) form.
    pub fn signature_of_simple(&self, simple: &str, scratch: &mut Scratch) -> Option<Vec<u64>> {
        // A shingle that stands twice lowers no minimum.
        self.hash_shingles(simple, scratch);
        if scratch.hashes.is_empty() {
            return None;
        }
        let mut signature = vec![0; self.a.len()];
        minima(&self.a, &self.b, self.hash.mask(), &scratch.hashes, &mut signature);
        signature.truncate(self.hashes);
        Some(signature)
    }

    /// The hashes of a text's shingles, sorted, each once.
    pub fn shingles(&self, text: &str) -> Vec<u64> {
        let mut scratch = Scratch::default();
        self.hash_shingles(&self.simple(text), &mut scratch);
        let mut hashes = scratch.hashes;
        hashes.sort_unstable();
        hashes.dedup();
        hashes
    }

    fn hash_shingles(&self, simple: &str, scratch: &mut Scratch) {
        let Scratch { english, spans, joined, starts, hashes } = scratch;
        let words = if self.by_script {
            let place = |word: &str| {
                let start = (word.as_ptr() as usize - simple.as_ptr() as usize) as u32;
                Span { start, end: start + word.len() as u32 }
            };
            spans.clear();
            spans.extend(words(simple).flat_map(parts).map(place));
            &spans[..]
        } else {
            english.split(simple)
        };
        // All words joined by one blank hold every shingle.
        joined.clear();
        starts.clear();
        for word in words {
            starts.push(joined.len());
            joined.extend_from_slice(word.of(simple).as_bytes());
            joined.push(b' ');
        }
        starts.push(joined.len());
        hashes.clear();
        hashes.extend(starts.windows(self.words + 1).map(|w| self.hash.of(&joined[w[0]..w[self.words] - 1])));
    }
}

/// Hash functions whose minima are kept in registers at a time.
const BLOCK: usize = 16;

/// Per hash function the smallest `((a·x + b) mod 2⁶⁴) mod (2⁶¹ − 1)` of all `x`, masked.
fn minima(a: &[u64], b: &[u64], mask: u64, hashes: &[u64], out: &mut [u64]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { minima_avx512(a, b, mask, hashes, out) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { minima_avx2(a, b, mask, hashes, out) };
        }
    }
    minima_plain(a, b, mask, hashes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn minima_avx512(a: &[u64], b: &[u64], mask: u64, hashes: &[u64], out: &mut [u64]) {
    minima_plain(a, b, mask, hashes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn minima_avx2(a: &[u64], b: &[u64], mask: u64, hashes: &[u64], out: &mut [u64]) {
    minima_plain(a, b, mask, hashes, out);
}

/// The same integers whatever the vectors of the processor.
#[inline(always)]
fn minima_plain(a: &[u64], b: &[u64], mask: u64, hashes: &[u64], out: &mut [u64]) {
    let (a, _) = a.as_chunks::<BLOCK>();
    let (b, _) = b.as_chunks::<BLOCK>();
    let (out, _) = out.as_chunks_mut::<BLOCK>();
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        let mut least = [u64::MAX; BLOCK];
        for &x in hashes {
            for i in 0..BLOCK {
                let hash = modulo_prime(a[i].wrapping_mul(x).wrapping_add(b[i])) & mask;
                least[i] = least[i].min(hash);
            }
        }
        *out = least;
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

/// `x mod (2⁶¹ − 1)` without a division or a branch.
#[inline(always)]
fn modulo_prime(x: u64) -> u64 {
    let folded = (x & PRIME) + (x >> 61);
    folded.min(folded.wrapping_sub(PRIME))
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
        assert_eq!(minhash.a[..3], [775_169_054_918_279_404, 1_758_426_461_858_698_313, 2_109_959_069_025_162]);
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
            let shared = (0..900).map(|i| format!("q{} ", letters(i)));
            shared.chain((0..100).map(|i| format!("q{} ", letters(from + i)))).collect()
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

    #[test]
    fn vectors_change_no_bit() {
        let mut twister = Twister::new(3);
        let mut draw = |n: usize| -> Vec<u64> { (0..n).map(|_| twister.at_most(PRIME - 1) * 8 + 5).collect() };
        for mask in [u64::MAX, u64::from(u32::MAX)] {
            let (a, b, x) = (draw(2 * BLOCK), draw(2 * BLOCK), draw(100));
            let mut found = vec![0; 2 * BLOCK];
            minima(&a, &b, mask, &x, &mut found);
            let hash = |i: usize, x: u64| (a[i].wrapping_mul(x).wrapping_add(b[i]) % PRIME) & mask;
            let expected: Vec<u64> = (0..2 * BLOCK).map(|i| x.iter().map(|&x| hash(i, x)).min().unwrap()).collect();
            assert_eq!(found, expected);
        }
    }
}
