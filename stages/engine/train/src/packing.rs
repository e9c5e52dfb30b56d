//! Packing: documents end to end, cut into windows of one length; attention and loss stay inside a document.

/// Tokens of all documents, and where each ends.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    tokens: Vec<u32>,
    ends: Vec<usize>,
}

impl Corpus {
    pub fn push(&mut self, document: &[u32]) {
        self.tokens.extend_from_slice(document);
        self.ends.push(self.tokens.len());
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn documents(&self) -> usize {
        self.ends.len()
    }

    /// Windows of `context` tokens; the last may be shorter.
    pub fn windows(&self, context: usize) -> usize {
        self.tokens.len().div_ceil(context)
    }

    /// The pieces of documents in window `i`. A piece that goes on in the next window ends with that window's first
    /// token, which is its last target: every pair of neighbours within a document is in exactly one window.
    pub fn window(&self, i: usize, context: usize) -> Vec<&[u32]> {
        let (mut start, end) = (i * context, ((i + 1) * context).min(self.tokens.len()));
        let mut pieces = Vec::new();
        let mut document = self.ends.partition_point(|&e| e <= start);
        while start < end {
            let document_end = self.ends[document];
            let stop = if document_end > end { end + 1 } else { document_end };
            if stop - start > 1 {
                pieces.push(&self.tokens[start..stop]);
            }
            start = document_end;
            document += 1;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_kernels::random;

    #[test]
    fn every_pair_of_neighbours_is_packed_exactly_once() {
        for case in 0..20 {
            let (mut corpus, mut expected, mut next) = (Corpus::default(), Vec::new(), 0);
            for document in 0..1 + case * 3 {
                let length = random::below(case, 1, document, 40) as u32;
                let ids: Vec<u32> = (next..next + length).collect();
                expected.extend(ids.windows(2).map(|pair| (pair[0], pair[1])));
                corpus.push(&ids);
                next += length;
            }
            for context in [1, 7, 16, 1000] {
                let windows = (0..corpus.windows(context)).flat_map(|i| corpus.window(i, context));
                let found: Vec<(u32, u32)> =
                    windows.flat_map(|piece| piece.windows(2).map(|pair| (pair[0], pair[1]))).collect();
                assert_eq!(found, expected, "case {case}, context {context}");
            }
        }
    }
}
