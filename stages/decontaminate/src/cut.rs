//! What is left of a document around the places that are cut out of it.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much is cut out with a hit, and what is left. Defaults are those of GPT-3 (Brown et al. 2020, appendix C).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cut {
    /// Characters that go with a hit before and behind it.
    #[schemars(range(max = 1_000_000))]
    pub margin: usize,
    /// Shorter pieces are left out, in characters.
    #[schemars(range(max = 1_000_000))]
    pub min_piece: usize,
    /// A document that falls into more pieces is dropped.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pieces: usize,
}

impl Default for Cut {
    fn default() -> Self {
        Cut { margin: 200, min_piece: 200, max_pieces: 10 }
    }
}

/// The pieces of `text` between `hits`, which are ranges of bytes in any order; `Err` with their number if they are too
/// many.
pub(crate) fn pieces<'t>(text: &'t str, hits: &[Range<usize>], cut: &Cut) -> Result<Vec<&'t str>, usize> {
    let before = |at: usize| text[..at].char_indices().rev().take(cut.margin).last().map_or(at, |(i, _)| i);
    let behind = |at: usize| text[at..].char_indices().nth(cut.margin).map_or(text.len(), |(i, _)| at + i);
    let mut gone: Vec<Range<usize>> = hits.iter().map(|hit| before(hit.start)..behind(hit.end)).collect();
    gone.sort_unstable_by_key(|range| range.start);
    let (mut left, mut end) = (Vec::new(), 0);
    for range in gone.into_iter().chain(std::iter::once(text.len()..text.len())) {
        if range.start > end {
            left.push(text[end..range.start].trim());
        }
        end = end.max(range.end);
    }
    left.retain(|piece| !piece.is_empty());
    if left.len() > cut.max_pieces {
        return Err(left.len());
    }
    left.retain(|piece| piece.chars().count() >= cut.min_piece);
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_hits_and_their_margins_is_left() {
        let text = "äbcdefghijklmnopqrstuvwxyz";
        let cut = |margin, min_piece, max_pieces| Cut { margin, min_piece, max_pieces };
        let hit = [13..15, 6..8];
        assert_eq!(pieces(text, &hit, &cut(0, 0, 10)), Ok(vec!["äbcde", "hijkl", "opqrstuvwxyz"]));
        assert_eq!(pieces(text, &hit, &cut(2, 0, 10)), Ok(vec!["äbc", "j", "qrstuvwxyz"]));
        assert_eq!(pieces(text, &hit, &cut(3, 2, 10)), Ok(vec!["äb", "rstuvwxyz"]), "margins meet");
        assert_eq!(pieces(text, &hit, &cut(100, 0, 10)), Ok(vec![]));
        assert_eq!(pieces(text, &hit, &cut(0, 0, 2)), Err(3));
        assert_eq!(pieces(text, &[0..4, 4..text.len()], &cut(0, 0, 2)), Ok(vec![]));
    }
}
