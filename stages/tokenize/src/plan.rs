//! Which documents the vocabulary learns from, which are held out, and which are written.
//!
//! All three are decided by a hash of the document's id: a document is on the same side in every run and in any
//! corpus, and workers need not communicate.

/// A number in [0, 1) that a document's id and the question decide; different questions are independent.
fn place(question: &str, id: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(question.as_bytes()).update(b"\0").update(id.as_bytes());
    let mut bits = [0; 8];
    bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1u64 << 53) as f64
}

/// Whether a document is held out; `share` of all are.
pub fn is_validation(id: &str, share: f64) -> bool {
    place("validation", id) < share
}

/// Whether the vocabulary learns from a document, when it learns from `share` of them.
pub fn is_learned_from(id: &str, share: f64) -> bool {
    place("vocabulary", id) < share
}

/// Whether a document is written, when `share` of its input is.
pub fn is_written(id: &str, share: f64) -> bool {
    place("mixture", id) < share
}

/// Share of every input to take, so that the amounts taken stand to each other as `weights` do and as much as possible
/// is taken. No document is taken twice: the input that is shortest for its weight is taken whole.
///
/// A weight of 0 takes nothing. Empty `weights` take everything.
pub fn shares(amounts: &[u64], weights: &[f64]) -> Vec<f64> {
    if weights.is_empty() {
        return vec![1.0; amounts.len()];
    }
    assert_eq!(amounts.len(), weights.len(), "shares: a weight for every input");
    let used = || amounts.iter().zip(weights).filter(|&(&amount, &weight)| weight > 0.0 && amount > 0);
    let scale = used().map(|(&amount, &weight)| amount as f64 / weight).fold(f64::INFINITY, f64::min);
    amounts
        .iter()
        .zip(weights)
        .map(
            |(&amount, &weight)| {
                if weight > 0.0 && amount > 0 { (scale * weight / amount as f64).min(1.0) } else { 0.0 }
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_input_for_its_weight_is_taken_whole() {
        assert_eq!(shares(&[100, 300], &[1.0, 1.0]), [1.0, 1.0 / 3.0]);
        assert_eq!(shares(&[100, 300], &[1.0, 6.0]), [0.5, 1.0]);
        assert_eq!(shares(&[100, 300], &[]), [1.0, 1.0]);
        assert_eq!(shares(&[100, 300], &[0.0, 2.0]), [0.0, 1.0]);
        assert_eq!(shares(&[0, 300], &[1.0, 2.0]), [0.0, 1.0]);
    }

    #[test]
    fn sides_have_their_shares_and_are_independent() {
        let ids: Vec<String> = (0..4000).map(|i| format!("crate-{i}/lib.rs")).collect();
        let held = ids.iter().filter(|id| is_validation(id, 0.05)).count();
        // Standard deviation 14: four of them.
        assert!((145..255).contains(&held), "{held}");
        let both = ids.iter().filter(|id| is_validation(id, 0.5) && is_written(id, 0.5)).count();
        assert!((880..1120).contains(&both), "{both}");
        assert!(ids.iter().all(|id| is_written(id, 1.0) && !is_validation(id, 0.0)));
    }
}
