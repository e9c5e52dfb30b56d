//! Fill-in-the-middle: some documents are learnt with their middle last, so that a model can complete between what
//! comes before and after (Bavarian et al. 2022; prefix-suffix-middle at the level of documents, before packing, as in
//! DeepSeek-V3, §4.1).

use smelt_kernels::random;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FillInMiddle {
    pub seed: u64,
    /// Share of documents.
    pub rate: f64,
    /// Special tokens: `begin prefix hole suffix end middle`.
    pub begin: u32,
    pub hole: u32,
    pub end: u32,
}

const STREAM: u64 = 0xf111;

impl FillInMiddle {
    /// Tokens that a document has more when it is rearranged.
    pub const ADDED: u32 = 3;

    /// Whether document number `document` is one of those to rearrange.
    pub fn chooses(&self, document: u64) -> bool {
        random::uniform(self.seed, STREAM, 3 * document) < self.rate
    }

    /// Document number `document`, rearranged if it is one of the chosen. Two cuts, uniform over all places, make the
    /// three parts.
    pub fn apply(&self, document: u64, ids: &[u32]) -> Option<Vec<u32>> {
        if !self.chooses(document) {
            return None;
        }
        let cut = |i| random::below(self.seed, STREAM, 3 * document + i, ids.len() as u64 + 1) as usize;
        let (first, second) = (cut(1).min(cut(2)), cut(1).max(cut(2)));
        let (prefix, middle, suffix) = (&ids[..first], &ids[first..second], &ids[second..]);
        Some([&[self.begin], prefix, &[self.hole], suffix, &[self.end], middle].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_documents_has_its_middle_last_and_nothing_is_lost() {
        let fim = FillInMiddle { seed: 5, rate: 0.1, begin: 100, hole: 101, end: 102 };
        let (mut chosen, mut middles) = (0, 0);
        for document in 0..10_000 {
            let ids: Vec<u32> = (0..document as u32 % 50).collect();
            let Some(found) = fim.apply(document, &ids) else { continue };
            chosen += 1;
            let place = |token| found.iter().position(|&id| id == token).unwrap();
            let (hole, end) = (place(101), place(102));
            assert_eq!(found[0], 100);
            assert_eq!([&found[1..hole], &found[end + 1..], &found[hole + 1..end]].concat(), ids);
            middles += usize::from(end + 1 < found.len());
        }
        // the standard error of the count is 30
        assert!((850..1150).contains(&chosen), "{chosen}");
        assert!(middles > chosen * 9 / 10);
    }
}
