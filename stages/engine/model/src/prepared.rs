//! A batch on the device.

use crate::batch::{Batch, IGNORE};
use smelt_kernels::{Backend, DocumentBounds, Documents, Tensor};

/// What a pass reads of a batch, uploaded: the host makes all of it before the pass, for the MTP modules too. A clone
/// shares it.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(crate) ids: Tensor, // [N]
    pub(crate) documents: Documents,
    /// Places of `read`'s rows in the batch, for those who read log-probabilities on the host.
    pub(crate) target_rows: Vec<u32>,
    pub(crate) read: Option<Read>,
    pub(crate) score_rows: Option<Tensor>, // [M]
    pub(crate) mtp: Vec<Shifted>,
    pub(crate) temperature: f64,
}

/// Rows that the head reads.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    /// None when it is all of them.
    pub rows: Option<Tensor>, // [M]
    pub targets: Tensor, // [M]
}

/// What an MTP module reads: the rows of the pass before without the last of each document, and the tokens after them.
#[derive(Clone, Debug)]
pub(crate) struct Shifted {
    pub documents: Documents,
    pub from: Tensor, // rows of the pass before, [N']
    pub ids: Tensor,  // next tokens, [N']
    pub read: Read,
}

impl Read {
    /// None if no row has a target.
    fn new(backend: &dyn Backend, targets: &[u32]) -> Option<Self> {
        let rows: Vec<u32> = (0..targets.len() as u32).filter(|&row| targets[row as usize] != IGNORE).collect();
        let is_whole = rows.len() == targets.len();
        let targets: Vec<u32> = targets.iter().copied().filter(|&target| target != IGNORE).collect();
        (!rows.is_empty())
            .then(|| Self { rows: (!is_whole).then(|| backend.ids(&rows)), targets: backend.ids(&targets) })
    }
}

impl Prepared {
    /// For a model with `modules` MTP modules; of them those have rows that come before the first without a target.
    pub(crate) fn new(backend: &dyn Backend, batch: &Batch, modules: usize) -> Self {
        let modules = if batch.runs_mtp { modules } else { 0 };
        Self {
            ids: backend.ids(&batch.ids),
            documents: Documents::new(backend, batch.documents.clone()),
            target_rows: batch.target_rows(),
            read: Read::new(backend, &batch.targets),
            score_rows: (!batch.score_rows.is_empty()).then(|| backend.ids(&batch.score_rows)),
            mtp: (1..=modules).map_while(|depth| Shifted::new(backend, batch, depth)).collect(),
            temperature: batch.temperature,
        }
    }
}

impl Shifted {
    /// Of module `depth`, from 1.
    fn new(backend: &dyn Backend, batch: &Batch, depth: usize) -> Option<Self> {
        let (mut from, mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut start = 0; // of the document in the pass before, where it has depth − 1 rows fewer
        for rows in batch.documents.iter() {
            let length = rows.len().saturating_sub(depth);
            from.extend(start..start + length as u32);
            ids.extend(&batch.ids[rows.start + rows.len() - length..rows.end]);
            targets.extend(&batch.targets[rows.start + rows.len() - length..rows.end]);
            lengths.extend((length > 0).then_some(length));
            start += rows.len().saturating_sub(depth - 1) as u32;
        }
        let read = Read::new(backend, &targets)?;
        let documents = Documents::new(backend, DocumentBounds::of_lengths(&lengths));
        Some(Self { documents, from: backend.ids(&from), ids: backend.ids(&ids), read })
    }
}
