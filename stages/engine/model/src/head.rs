//! The end of the model: the last norm, the output head, the MTP modules (DeepSeek-V3, §2.2), and for reward models a
//! scalar head.

use crate::batch::{Batch, IGNORE};
use crate::layer::RmsNormSaved;
use crate::mtp::MtpSaved;
use crate::params::Specs;
use crate::{Balance, Config, Cx, Experts, Grads, Layer, Linear, Mtp, Param, RmsNorm, Start};
use smelt_kernels::{Backend, DocumentBounds, Head, Tensor};

/// What an objective sees of a pass. Vectors over `rows` are in their order.
#[derive(Debug, Default)]
pub struct HeadOutput {
    /// Rows with a target.
    pub rows: Vec<u32>,
    pub logp: Vec<f64>,
    pub lse: Vec<f64>,
    /// Per MTP module: log-probabilities of the tokens it predicts.
    pub mtp: Vec<Vec<f64>>,
    /// Of `score_rows`.
    pub scores: Vec<f64>,
    /// Weights of mean and least log-probability in a reward model's score.
    pub likelihood: [f64; 2],
}

/// The loss's derivatives in everything of a [`HeadOutput`].
#[derive(Debug, Default)]
pub struct OutputGradient {
    pub dlogp: Vec<f64>,
    pub dlse: Vec<f64>,
    pub mtp: Vec<Vec<f64>>,
    pub dscores: Vec<f64>,
    pub dlikelihood: [f64; 2],
}

/// How a reward model's score weighs the answer's mean and least log-probability at the start of its training.
const LIKELIHOOD: &[f32] = &[1.0, 0.2];

#[derive(Clone, Debug)]
pub(crate) struct OutputHead {
    norm: RmsNorm,
    embedding: Param, // [V, D], for the MTP modules
    head: Param,      // [V, D]; the embedding when tied
    mtp: Vec<Mtp>,
    score: Option<(Linear, Param)>, // [1, D], [2]
}

/// Everything backward needs of the head.
#[derive(Debug)]
pub(crate) struct OutputSaved {
    norm: RmsNormSaved,
    hidden: Tensor,         // after the norm, [N, D]
    read: Option<Read>,     // of the rows with targets
    scored: Option<Tensor>, // [M, D]
    mtp: Vec<MtpPass>,
}

/// The output head on some rows.
#[derive(Debug)]
struct Read {
    x: Tensor, // over the temperature, [M, D]
    head: Head,
    targets: Vec<u32>,
    temperature: f64,
}

#[derive(Debug)]
struct MtpPass {
    documents: DocumentBounds,
    from: Vec<u32>, // rows of the pass before
    ids: Vec<u32>,  // next tokens
    saved: MtpSaved,
    hidden: Tensor, // what the next module reads, [N', D]
    rows: Vec<u32>, // those with targets
    read: Read,
}

impl OutputHead {
    pub(crate) fn new(specs: &mut Specs, c: &Config, embedding: Param) -> Self {
        let gain = specs.one("model.norm.weight".into(), &[c.hidden_size], Start::One);
        let norm = RmsNorm { gain, eps: c.rms_norm_eps };
        let shape = [c.vocab_size, c.hidden_size];
        let head = if c.tie_word_embeddings { embedding } else { specs.linear("lm_head.weight".into(), &shape) };
        let layers = c.num_hidden_layers..c.num_hidden_layers + c.num_nextn_predict_layers();
        let mtp = layers.map(|layer| Mtp::new(specs, c, layer)).collect();
        let score = c.reward_head.then(|| {
            let w = specs.linear("score.weight".into(), &[1, c.hidden_size]);
            (Linear { w }, specs.one("score.likelihood".into(), &[2], Start::Values(LIKELIHOOD)))
        });
        Self { norm, embedding, head, mtp, score }
    }

    pub(crate) fn mtp(&self) -> &[Mtp] {
        &self.mtp
    }

    pub(crate) fn weight(&self) -> Param {
        self.head
    }

    pub(crate) fn experts(&self) -> impl Iterator<Item = &Experts> {
        self.mtp.iter().filter_map(Mtp::experts)
    }

    /// The last norm alone: what the head reads, `[N, D]`.
    pub(crate) fn normed(&self, cx: &Cx, x: &Tensor) -> Tensor {
        cx.backend.rms_norm(x, cx.params.get(self.norm.gain), self.norm.eps).0
    }

    /// x: what the last block gives, `[N, D]`. Without `has_mtp` the MTP modules do not run, whatever the batch says.
    pub(crate) fn forward(&self, cx: &Cx, batch: &Batch, x: Tensor, has_mtp: bool) -> (HeadOutput, OutputSaved) {
        let (hidden, norm) = self.norm.forward(cx, x);
        let mut out = HeadOutput { rows: batch.target_rows(), ..Default::default() };
        let read = (!out.rows.is_empty()).then(|| self.read(cx, &hidden, &out.rows, &batch.targets, batch.temperature));
        if let Some(Read { head, .. }) = &read {
            (out.logp, out.lse) = (head.logp.clone(), head.lse.clone());
        }
        let mut scored = None;
        if let Some((score, likelihood)) = &self.score {
            let values = cx.params.get(*likelihood).to_f64();
            out.likelihood = [values[0], values[1]];
            if !batch.score_rows.is_empty() {
                let rows = cx.backend.gather(&hidden, &batch.score_rows);
                out.scores = score.apply(&cx.full(), &rows).to_f64();
                scored = Some(rows);
            }
        }
        let mut mtp = Vec::new();
        for (depth, module) in self.mtp.iter().enumerate().filter(|_| has_mtp && batch.runs_mtp) {
            let before = mtp.last().map_or(&hidden, |pass: &MtpPass| &pass.hidden);
            let Some(pass) = self.mtp_pass(cx, module, depth + 1, batch, before) else { break };
            out.mtp.push(pass.read.head.logp.clone());
            mtp.push(pass);
        }
        (out, OutputSaved { norm, hidden, read, scored, mtp })
    }

    /// The output head on `rows` of `hidden`. Logits are linear in what it reads, so that is what a temperature
    /// divides.
    fn read(&self, cx: &Cx, hidden: &Tensor, rows: &[u32], targets: &[u32], temperature: f64) -> Read {
        let targets: Vec<u32> = rows.iter().map(|&row| targets[row as usize]).collect();
        let is_whole = rows.len() == hidden.rows();
        let mut x = if is_whole { hidden.clone() } else { cx.backend.gather(hidden, rows) };
        if temperature != 1.0 {
            x = if is_whole { x.copy() } else { x };
            cx.backend.scale(&mut x, 1.0 / temperature);
        }
        let head = cx.backend.head(&x, cx.params.get(self.head), &targets);
        Read { x, head, targets, temperature }
    }

    /// Module `depth` (from 1) over what came before; None when every document is too short, or nothing is predicted.
    fn mtp_pass(&self, cx: &Cx, module: &Mtp, depth: usize, batch: &Batch, before: &Tensor) -> Option<MtpPass> {
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
        let rows: Vec<u32> = (0..ids.len() as u32).filter(|&row| targets[row as usize] != IGNORE).collect();
        if rows.is_empty() {
            return None;
        }
        let documents = DocumentBounds::of_lengths(&lengths);
        let h = cx.backend.gather(before, &from);
        let embedding = cx.backend.embedding(&ids, cx.params.get(self.embedding));
        let balance = if cx.balance.mtp { cx.balance } else { Balance::NONE };
        let (hidden, saved) = module.forward(&Cx { documents: &documents, balance, ..*cx }, h, embedding);
        let read = self.read(cx, &hidden, &rows, &targets, 1.0);
        Some(MtpPass { documents, from, ids, saved, hidden, rows, read })
    }

    /// Returns dx.
    pub(crate) fn backward(
        &self,
        cx: &Cx,
        batch: &Batch,
        saved: OutputSaved,
        d: OutputGradient,
        grads: &mut Grads,
    ) -> Tensor {
        let (backend, dtype, n) = (cx.backend, saved.hidden.dtype(), saved.hidden.rows());
        let w = cx.params.get(self.head);
        let mut dhidden = match saved.read {
            Some(Read { x, head, targets, temperature }) => {
                let mut dx = backend.head_backward(head, &x, w, &targets, &d.dlogp, &d.dlse, grads.get_mut(self.head));
                if temperature != 1.0 {
                    backend.scale(&mut dx, 1.0 / temperature);
                }
                spread(backend, dx, &batch.target_rows(), n)
            }
            None => Tensor::zeros(saved.hidden.shape(), dtype),
        };
        if let (Some((score, likelihood)), Some(rows)) = (&self.score, saved.scored) {
            let dy = Tensor::new([rows.rows(), 1], &d.dscores).cast(dtype);
            let drows = score.backward(&cx.full(), rows, dy, grads);
            backend.embedding_backward(&batch.score_rows, &drows, &mut dhidden);
            let dlikelihood = Tensor::new([2], &d.dlikelihood).cast(dtype);
            backend.add(grads.get_mut(*likelihood), &dlikelihood);
        }
        // from the last module back to the hidden states: each hands the gradient of its input to the one before
        let mut dbefore: Option<Tensor> = None;
        let mut rows_of_before: Vec<usize> = saved.mtp.iter().map(|pass| pass.hidden.rows()).collect();
        rows_of_before.insert(0, n);
        for (depth, pass) in saved.mtp.into_iter().enumerate().rev() {
            let (Read { x, head, targets, .. }, dlse) = (pass.read, vec![0.0; pass.rows.len()]);
            let dx = backend.head_backward(head, &x, w, &targets, &d.mtp[depth], &dlse, grads.get_mut(self.head));
            let mut dy = spread(backend, dx, &pass.rows, pass.hidden.rows());
            if let Some(more) = dbefore.take() {
                backend.add(&mut dy, &more);
            }
            let (dh, de) = self.mtp[depth].backward(&Cx { documents: &pass.documents, ..*cx }, pass.saved, dy, grads);
            backend.embedding_backward(&pass.ids, &de, grads.get_mut(self.embedding));
            let mut back = Tensor::zeros([rows_of_before[depth], dh.cols()], dtype);
            backend.embedding_backward(&pass.from, &dh, &mut back);
            dbefore = Some(back);
        }
        if let Some(more) = dbefore {
            backend.add(&mut dhidden, &more);
        }
        drop(saved.hidden);
        self.norm.backward(cx, saved.norm, dhidden, grads)
    }
}

impl OutputSaved {
    /// What the head read, `[N, D]`.
    pub(crate) fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// What the head of MTP module `depth` (from 1) read, `[N', D]`.
    pub(crate) fn mtp_hidden(&self, depth: usize) -> &Tensor {
        &self.mtp[depth - 1].hidden
    }
}

/// Rows of dx to their places among `n`; zero elsewhere.
fn spread(backend: &dyn Backend, dx: Tensor, rows: &[u32], n: usize) -> Tensor {
    if rows.len() == n {
        return dx;
    }
    let mut all = Tensor::zeros([n, dx.cols()], dx.dtype());
    backend.embedding_backward(rows, &dx, &mut all);
    all
}
