//! The end of the model: the last norm, the output head, the MTP modules (DeepSeek-V3, §2.2), and for reward models a
//! scalar head.

use crate::layer::RmsNormSaved;
use crate::mtp::MtpSaved;
use crate::params::Specs;
use crate::prepared::{Prepared, Read, Shifted};
use crate::product::Input;
use crate::{Balance, Config, Cx, Experts, Grads, Layer, Linear, Mtp, Param, RmsNorm, Start};
use smelt_kernels::{Backend, DType, Head, Tensor};

/// What an objective sees of a pass, on the device. Tensors over `rows` are in their order.
#[derive(Debug)]
pub struct HeadOutput {
    /// Rows with a target.
    pub rows: Vec<u32>,
    pub logp: Tensor, // F64, [M]
    pub lse: Tensor,  // F64, [M]
    /// Per MTP module: log-probabilities of the tokens it predicts, F64.
    pub mtp: Vec<Tensor>,
    /// Of `score_rows`, F64; of a reward model only.
    pub scores: Option<Tensor>,
    /// Weights of mean and least log-probability in a reward model's score: F64 `[2]`.
    pub likelihood: Option<Tensor>,
}

/// A [`HeadOutput`] on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostOutput {
    pub logp: Vec<f64>,
    pub lse: Vec<f64>,
    pub mtp: Vec<Vec<f64>>,
    pub scores: Vec<f64>,
    pub likelihood: [f64; 2],
}

impl HeadOutput {
    /// Of a pass in which no row predicts anything.
    fn new(backend: &dyn Backend, rows: Vec<u32>) -> Self {
        let [logp, lse] = [(); 2].map(|()| backend.empty([0].into(), DType::F64));
        Self { rows, logp, lse, mtp: Vec::new(), scores: None, likelihood: None }
    }

    /// Everything on the host: waits once.
    pub fn on_host(&self, backend: &dyn Backend) -> HostOutput {
        let parts = [&self.logp, &self.lse].into_iter().chain(&self.mtp).chain(&self.scores).chain(&self.likelihood);
        let parts: Vec<&Tensor> = parts.collect();
        let all = backend.download(&backend.collect(&parts)).to_f64();
        let mut rest = all.as_slice();
        let mut next = |part: &Tensor| rest.split_off(..part.len()).expect("all parts are there").to_vec();
        HostOutput {
            logp: next(&self.logp),
            lse: next(&self.lse),
            mtp: self.mtp.iter().map(&mut next).collect(),
            scores: self.scores.as_ref().map(&mut next).unwrap_or_default(),
            likelihood: self.likelihood.as_ref().map_or([0.0; 2], |part| {
                let values = next(part);
                [values[0], values[1]]
            }),
        }
    }
}

/// The loss's derivatives in everything of a [`HeadOutput`], on the device.
#[derive(Debug)]
pub struct OutputGradient {
    pub dlogp: Tensor,    // F64, [M]
    pub dlse: Tensor,     // F64, [M]
    pub mtp: Vec<Tensor>, // F64
    pub dscores: Option<Tensor>,
    pub dlikelihood: Option<Tensor>,
}

impl OutputGradient {
    /// Zero in everything.
    pub fn zeros(backend: &dyn Backend, of: &HeadOutput) -> Self {
        let zeros = |x: &Tensor| backend.zeros(x.shape(), DType::F64);
        Self {
            dlogp: zeros(&of.logp),
            dlse: zeros(&of.lse),
            mtp: of.mtp.iter().map(zeros).collect(),
            dscores: of.scores.as_ref().map(zeros),
            dlikelihood: of.likelihood.as_ref().map(zeros),
        }
    }
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
    read: Option<HeadPass>, // of the rows with targets
    scored: Option<Tensor>, // [M, D]
    mtp: Vec<MtpPass>,
}

/// The output head on some rows.
#[derive(Debug)]
struct HeadPass {
    x: Tensor, // over the temperature, [M, D]
    head: Head,
}

#[derive(Debug)]
struct MtpPass {
    saved: MtpSaved,
    hidden: Tensor, // what the next module reads, [N', D]
    read: HeadPass,
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
    pub(crate) fn forward(&self, cx: &Cx, batch: &Prepared, x: Tensor, has_mtp: bool) -> (HeadOutput, OutputSaved) {
        let (hidden, norm) = self.norm.forward(cx, x);
        let mut out = HeadOutput::new(cx.backend, batch.target_rows.clone());
        let read = batch.read.as_ref().map(|read| self.read(cx, &hidden, read, batch.temperature));
        if let Some(HeadPass { head, .. }) = &read {
            (out.logp, out.lse) = (head.logp.clone(), head.lse.clone());
        }
        let mut scored = None;
        if let Some((score, likelihood)) = &self.score {
            out.likelihood = Some(cx.backend.cast(cx.params.get(*likelihood), DType::F64));
            if let Some(rows) = &batch.score_rows {
                let rows = cx.backend.gather(&hidden, rows);
                out.scores = Some(cx.backend.cast(&score.of(&cx.full(), &rows), DType::F64));
                scored = Some(rows);
            }
        }
        let mut mtp = Vec::new();
        for (module, shifted) in self.mtp.iter().zip(&batch.mtp).filter(|_| has_mtp) {
            let before = mtp.last().map_or(&hidden, |pass: &MtpPass| &pass.hidden);
            let pass = self.mtp_pass(cx, module, shifted, before);
            out.mtp.push(pass.read.head.logp.clone());
            mtp.push(pass);
        }
        (out, OutputSaved { norm, hidden, read, scored, mtp })
    }

    fn read(&self, cx: &Cx, hidden: &Tensor, read: &Read, temperature: f64) -> HeadPass {
        let mut x = match &read.rows {
            None => hidden.clone(),
            Some(rows) => cx.backend.gather(hidden, rows),
        };
        if temperature != 1.0 {
            x = if read.rows.is_none() { cx.backend.copy(&x) } else { x };
            cx.backend.scale(&mut x, 1.0 / temperature, 1.0);
        }
        let head = cx.backend.head(&x, cx.params.get(self.head), &read.targets);
        HeadPass { x, head }
    }

    fn mtp_pass(&self, cx: &Cx, module: &Mtp, shifted: &Shifted, before: &Tensor) -> MtpPass {
        let h = cx.backend.gather(before, &shifted.from);
        let embedding = cx.backend.embedding(&shifted.ids, cx.params.get(self.embedding));
        let balance = if cx.balance.mtp { cx.balance } else { Balance::NONE };
        let (hidden, saved) = module.forward(&Cx { documents: &shifted.documents, balance, ..*cx }, h, embedding);
        let read = self.read(cx, &hidden, &shifted.read, 1.0);
        MtpPass { saved, hidden, read }
    }

    pub(crate) fn backward(
        &self,
        cx: &Cx,
        batch: &Prepared,
        saved: OutputSaved,
        d: OutputGradient,
        grads: &mut Grads,
    ) -> Tensor {
        let (backend, dtype, n) = (cx.backend, saved.hidden.dtype(), saved.hidden.rows());
        let mut dhidden = match (saved.read, &batch.read) {
            (Some(pass), Some(read)) => {
                let mut dx = self.read_backward(cx, pass, read, &d.dlogp, &d.dlse, grads);
                if batch.temperature != 1.0 {
                    backend.scale(&mut dx, 1.0 / batch.temperature, 1.0);
                }
                spread(backend, dx, read, n)
            }
            _ => backend.zeros(saved.hidden.shape(), dtype),
        };
        if let (Some((score, likelihood)), Some(rows)) = (&self.score, saved.scored) {
            let [dscores, dlikelihood] = [d.dscores, d.dlikelihood].map(|d| d.expect("head: a score has a gradient"));
            let dy = backend.cast(&dscores, dtype).reshape([rows.rows(), 1]);
            let full = cx.full();
            let drows = score.backward(&full, Some(Input::again(&full, &rows, None)), dy, grads);
            backend.embedding_backward(batch.score_rows.as_ref().expect("scored rows"), &drows, &mut dhidden);
            backend.add(grads.get_mut(backend, *likelihood), &backend.cast(&dlikelihood, dtype));
        }
        // from the last module back to the hidden states: each hands the gradient of its input to the one before
        let mut dbefore: Option<Tensor> = None;
        let mut rows_of_before: Vec<usize> = saved.mtp.iter().map(|pass| pass.hidden.rows()).collect();
        rows_of_before.insert(0, n);
        for (depth, pass) in saved.mtp.into_iter().enumerate().rev() {
            let (shifted, dlogp) = (&batch.mtp[depth], &d.mtp[depth]);
            let dlse = backend.zeros(dlogp.shape(), DType::F64);
            let rows = pass.hidden.rows();
            let dx = self.read_backward(cx, pass.read, &shifted.read, dlogp, &dlse, grads);
            let mut dy = spread(backend, dx, &shifted.read, rows);
            if let Some(more) = dbefore.take() {
                backend.add(&mut dy, &more);
            }
            let cx = Cx { documents: &shifted.documents, ..*cx };
            let (dh, de) = self.mtp[depth].backward(&cx, pass.saved, dy, grads);
            backend.embedding_backward(&shifted.ids, &de, grads.get_mut(backend, self.embedding));
            let mut back = backend.zeros([rows_of_before[depth], dh.cols()], dtype);
            backend.embedding_backward(&shifted.from, &dh, &mut back);
            dbefore = Some(back);
        }
        if let Some(more) = dbefore {
            backend.add(&mut dhidden, &more);
        }
        drop(saved.hidden);
        self.norm.backward(cx, saved.norm, dhidden, grads)
    }

    fn read_backward(
        &self,
        cx: &Cx,
        HeadPass { x, head }: HeadPass,
        read: &Read,
        dlogp: &Tensor,
        dlse: &Tensor,
        grads: &mut Grads,
    ) -> Tensor {
        let (w, dw) = (cx.params.get(self.head), grads.get_mut(cx.backend, self.head));
        cx.backend.head_backward(head, &x, w, &read.targets, dlogp, dlse, dw)
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
fn spread(backend: &dyn Backend, dx: Tensor, read: &Read, n: usize) -> Tensor {
    let Some(rows) = &read.rows else { return dx };
    let mut all = backend.zeros([n, dx.cols()], dx.dtype());
    backend.embedding_backward(rows, &dx, &mut all);
    all
}
