//! What a classifier sees of a text.

use smelt_words::Folder;

/// Buckets with their values, in the order of buckets; the sum of squares is 1, or 0 for a text without words.
pub type Features = Vec<(u32, f32)>;

/// Words and pairs of neighbouring words of the folded text (numbers are all alike), counted by bucket; `bits`: of a
/// bucket's number, at most 32.
///
/// Part of what a stored classifier means: change nothing here without another format in `classifier.rs`.
pub fn features(text: &str, bits: u32) -> Features {
    let (mut folder, mut word, mut before) = (Folder::new(text, true), String::new(), None);
    let mut buckets = Vec::new();
    let bucket = |hash: u64| (hash >> (64 - bits)) as u32;
    while folder.next_word(&mut word).is_some() {
        let hash = hash(word.as_bytes());
        buckets.push(bucket(hash));
        if let Some(before) = before.replace(hash) {
            buckets.push(bucket(mix(u64::rotate_left(before, 17) ^ hash)));
        }
        word.clear();
    }
    buckets.sort_unstable();
    let mut counted: Features = buckets.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as f32)).collect();
    let squares: f64 = counted.iter().map(|&(_, count)| f64::from(count) * f64::from(count)).sum();
    let length = squares.sqrt();
    counted.iter_mut().for_each(|(_, value)| *value = (f64::from(*value) / length) as f32);
    counted
}

/// FNV-1a, mixed: its own highest bits know little of the last letters.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    mix(fnv)
}

/// The finaliser of MurmurHash3.
fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_pairs_are_counted_and_the_length_is_one() {
        let found = features("The dog, the DOG!", 20);
        // the ×2, dog ×2, the dog ×2, dog the
        assert_eq!(found.len(), 4);
        let squares: f32 = found.iter().map(|(_, value)| value * value).sum();
        assert!((squares - 1.0).abs() < 1e-6, "{squares}");
        let mut values: Vec<f32> = found.iter().map(|&(_, value)| value * 13f32.sqrt()).collect();
        values.sort_by(f32::total_cmp);
        assert!(values.iter().zip([1.0, 2.0, 2.0, 2.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?}");
        assert!(found.is_sorted_by_key(|&(bucket, _)| bucket) && found.iter().all(|&(bucket, _)| bucket < 1 << 20));
    }

    #[test]
    fn order_counts_and_form_does_not() {
        assert_eq!(features("a b", 24), features(" A -- b\n", 24));
        assert_ne!(features("a b", 24), features("b a", 24));
        assert_eq!(features("room 12", 24), features("room 7", 24));
        assert_eq!(features("...", 24), vec![]);
    }

    /// What stored classifiers were trained on.
    #[test]
    fn buckets_are_the_same_in_every_version() {
        let buckets: Vec<u32> = features("one text 3", 20).into_iter().map(|(bucket, _)| bucket).collect();
        assert_eq!(buckets, [28_208, 323_275, 403_858, 718_650, 794_178]);
    }
}
