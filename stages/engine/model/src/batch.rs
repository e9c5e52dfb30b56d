//! What a pass reads: packed documents.

use smelt_kernels::DocumentBounds;

/// The target of a row that predicts nothing.
pub const IGNORE: u32 = u32::MAX;

/// Packed documents: row i holds `ids[i]` and predicts `targets[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub ids: Vec<u32>,     // [N]
    pub targets: Vec<u32>, // [N], or IGNORE
    pub documents: DocumentBounds,
    /// Rows whose scalar score is wanted; reward models only.
    pub score_rows: Vec<u32>,
    /// The MTP modules run too.
    pub runs_mtp: bool,
    /// The head's logits are divided by this: log-probabilities are those of a sampler at this temperature. The MTP
    /// modules' are not.
    pub temperature: f64,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            targets: Vec::new(),
            documents: DocumentBounds::default(),
            score_rows: Vec::new(),
            runs_mtp: false,
            temperature: 1.0,
        }
    }
}

impl Batch {
    /// Every row predicts its document's next token, and the MTP modules the ones after it: `[a, b, c]` gives rows a
    /// → b, b → c.
    pub fn next_token(documents: &[&[u32]]) -> Self {
        let documents: Vec<&[u32]> = documents.iter().copied().filter(|ids| ids.len() > 1).collect();
        let lengths: Vec<usize> = documents.iter().map(|ids| ids.len() - 1).collect();
        Self {
            ids: documents.iter().flat_map(|ids| &ids[..ids.len() - 1]).copied().collect(),
            targets: documents.iter().flat_map(|ids| &ids[1..]).copied().collect(),
            documents: DocumentBounds::of_lengths(&lengths),
            runs_mtp: true,
            ..Self::default()
        }
    }

    /// # Panics
    /// When ids, targets and documents do not have the same number of rows.
    pub(crate) fn expect_whole(&self) {
        let (n, targets, rows) = (self.ids.len(), self.targets.len(), self.documents.rows());
        assert!(targets == n && rows == n, "batch: {n} ids, {targets} targets, {rows} rows of documents");
    }

    /// Rows that predict something.
    pub fn target_rows(&self) -> Vec<u32> {
        (0..self.targets.len() as u32).filter(|&row| self.targets[row as usize] != IGNORE).collect()
    }
}
