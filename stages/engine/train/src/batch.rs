//! Examples with a mask, and how they become batches.

use smelt_kernels::DocumentBounds;
use smelt_model::{Batch, IGNORE};
use std::ops::Range;

/// A sequence of which some tokens are to be learnt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// Whether token i is trained; the first cannot be.
    pub mask: Vec<bool>,
}

impl Example {
    /// `prompt` as context, `answer` to be learnt.
    pub fn new(prompt: &[u32], answer: &[u32]) -> Self {
        let mask = (0..prompt.len() + answer.len()).map(|i| i >= prompt.len()).collect();
        Self { ids: [prompt, answer].concat(), mask }
    }
}

/// One document per example; its last token is no input, for it predicts nothing.
pub fn masked_batch<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Batch {
    let (mut batch, mut lengths) = (Batch::default(), Vec::new());
    for Example { ids, mask } in examples {
        assert!(ids.len() == mask.len(), "masked_batch: {} ids, {} mask", ids.len(), mask.len());
        let Some(last) = ids.len().checked_sub(1) else { continue };
        batch.ids.extend(&ids[..last]);
        batch
            .targets
            .extend(ids[1..].iter().zip(&mask[1..]).map(|(&id, &is_trained)| if is_trained { id } else { IGNORE }));
        lengths.extend((last > 0).then_some(last));
    }
    batch.documents = DocumentBounds::of_lengths(&lengths);
    batch
}

/// Cuts a list of sequences, in order, so that each part has at most `limit` tokens (one sequence may have more).
pub fn micro_batches(lengths: impl IntoIterator<Item = usize>, limit: usize) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut end, mut tokens) = (Vec::new(), 0, 0, 0);
    for (i, length) in lengths.into_iter().enumerate() {
        if tokens + length > limit && i > start {
            parts.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += length;
        end = i + 1;
    }
    if start < end {
        parts.push(start..end);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_masked_tokens_are_targets() {
        let batch = masked_batch(&[Example::new(&[5, 6], &[7, 8]), Example::new(&[9], &[3])]);
        assert_eq!(batch.ids, [5, 6, 7, 9]);
        assert_eq!(batch.targets, [IGNORE, 7, 8, 3]);
        assert_eq!(batch.documents, DocumentBounds::of_lengths(&[3, 1]));
        assert_eq!(batch.target_rows(), [1, 2, 3]);
    }

    #[test]
    fn parts_keep_the_order_and_the_limit() {
        assert_eq!(micro_batches([3, 3, 3, 9, 1], 6), [0..2, 2..3, 3..4, 4..5]);
        assert!(micro_batches([], 6).is_empty());
    }
}
