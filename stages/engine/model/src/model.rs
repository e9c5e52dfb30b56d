//! The whole model: embedding, blocks, norm, output head, modules for further tokens, and for reward models a scalar head.

use crate::block::BlockSaved;
use crate::layer::RmsNormSaved;
use crate::mtp::MtpSaved;
use crate::params::Specs;
use crate::{
    Balance, Block, Cache, CacheRows, Config, Cx, Error, Experts, Grads, Init, Kind, Layer, Linear, Mtp, Param, Params,
    Precision, RmsNorm, Stats,
};
use smelt_kernels::{Backend, DType, DocumentBounds, Head, Layout, Rope, Tensor, Write};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

/// The target of a row that predicts nothing.
pub const IGNORE: u32 = u32::MAX;

/// Packed documents: row i holds `ids[i]` and predicts `targets[i]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub ids: Vec<u32>,     // [N]
    pub targets: Vec<u32>, // [N], or IGNORE
    pub documents: DocumentBounds,
    /// Rows whose scalar score is wanted; reward models only.
    pub score_rows: Vec<u32>,
    /// The modules for further tokens run too.
    pub predicts_further: bool,
}

impl Batch {
    /// Every document predicts its next token everywhere, and further ones where the model does: `[a, b, c]` gives rows a → b, b → c.
    pub fn next_token(documents: &[&[u32]]) -> Self {
        let documents: Vec<&[u32]> = documents.iter().copied().filter(|ids| ids.len() > 1).collect();
        let lengths: Vec<usize> = documents.iter().map(|ids| ids.len() - 1).collect();
        Self {
            ids: documents.iter().flat_map(|ids| &ids[..ids.len() - 1]).copied().collect(),
            targets: documents.iter().flat_map(|ids| &ids[1..]).copied().collect(),
            documents: DocumentBounds::of_lengths(&lengths),
            score_rows: Vec::new(),
            predicts_further: true,
        }
    }

    /// Rows that predict something.
    pub fn target_rows(&self) -> Vec<u32> {
        (0..self.targets.len() as u32).filter(|&row| self.targets[row as usize] != IGNORE).collect()
    }
}

/// What an objective sees of a pass. Vectors over `rows` are in their order.
#[derive(Debug, Default)]
pub struct HeadOutput {
    /// Rows with a target.
    pub rows: Vec<u32>,
    pub logp: Vec<f64>,
    pub lse: Vec<f64>,
    /// Per module for further tokens: log-probabilities of the tokens it predicts.
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

pub struct Model {
    config: Config,
    specs: Arc<Specs>,
    embedding: Param, // [V, D]
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Param, // [V, D]; the embedding when tied
    mtp: Vec<Mtp>,
    score: Option<(Linear, Param)>, // [1, D], [2]
    rope: Mutex<Arc<Rope>>,
}

/// Everything backward needs of a pass.
pub struct Saved {
    rope: Arc<Rope>,
    precision: Precision,
    blocks: Vec<BlockSaved>,
    norm: RmsNormSaved,
    hidden: Tensor,                         // after the norm, [N, D]
    head: Option<(Tensor, Head, Vec<u32>)>, // the rows with targets, and their targets
    scored: Option<Tensor>,                 // [M, D]
    mtp: Vec<MtpPass>,
}

struct MtpPass {
    documents: DocumentBounds,
    from: Vec<u32>, // rows of the pass before
    ids: Vec<u32>,  // next tokens
    saved: MtpSaved,
    hidden: Tensor, // what the next module reads, [N', D]
    rows: Vec<u32>, // those with targets
    read: Tensor,   // hidden, of those rows
    head: Head,
    targets: Vec<u32>,
}

impl Model {
    pub fn new(config: Config) -> Result<Self, Error> {
        config.check()?;
        let (c, mut specs) = (&config, Specs::default());
        let shape = [c.vocab_size, c.hidden_size];
        let embedding = specs.one("model.embed_tokens.weight".into(), &shape, Kind::Embedding);
        let blocks = (0..c.num_hidden_layers).map(|layer| Block::new(&mut specs, c, layer)).collect();
        let gain = specs.one("model.norm.weight".into(), &[c.hidden_size], Kind::Gain);
        let norm = RmsNorm { gain, eps: c.rms_norm_eps };
        let head =
            if c.tie_word_embeddings { embedding } else { specs.one("lm_head.weight".into(), &shape, Kind::Weight) };
        let further = c.num_hidden_layers..c.num_hidden_layers + c.num_nextn_predict_layers();
        let mtp = further.map(|layer| Mtp::new(&mut specs, c, layer)).collect();
        let score = c.reward_head.then(|| {
            let w = specs.one("score.weight".into(), &[1, c.hidden_size], Kind::Weight);
            (Linear { w }, specs.one("score.likelihood".into(), &[2], Kind::Fixed([1.0, 0.2])))
        });
        let rope = Mutex::new(Arc::new(config.rope(64)));
        Ok(Self { specs: Arc::new(specs), embedding, blocks, norm, head, mtp, score, rope, config })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn init(&self, init: &Init) -> Params {
        Params::init(self.specs.clone(), init)
    }

    /// All trainable elements.
    pub fn parameters(&self) -> usize {
        self.specs.count()
    }

    pub(crate) fn specs(&self) -> &Arc<Specs> {
        &self.specs
    }

    /// The layers of experts, the further modules' included.
    pub fn experts(&self) -> impl Iterator<Item = &Experts> {
        self.blocks.iter().filter_map(Block::experts).chain(self.mtp.iter().filter_map(Mtp::experts))
    }

    /// Blocks; in a request's cache the first module for further tokens has the layer behind them.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Of a request: a layer per block, and one for the first module for further tokens.
    pub fn new_cache(&self) -> Cache {
        Cache::new(self.blocks.len() + self.mtp.len().min(1))
    }

    /// Tables for at least `positions` positions.
    fn rope(&self, positions: usize) -> Arc<Rope> {
        let mut rope = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if rope.positions() < positions {
            *rope = Arc::new(self.config.rope(positions.next_power_of_two()));
        }
        rope.clone()
    }

    /// Whether all of `ids` are in the vocabulary, and a sequence of `longest` has positions.
    pub fn check(&self, ids: &[u32], longest: usize) -> Result<(), Error> {
        let (vocabulary, limit) = (self.config.vocab_size, self.config.max_position_embeddings);
        if longest > limit {
            return Err(Error::Position { found: longest, limit });
        }
        match ids.iter().position(|&id| id as usize >= vocabulary && id != IGNORE) {
            Some(place) => Err(Error::TokenId { id: ids[place], place, vocabulary }),
            None => Ok(()),
        }
    }

    /// One pass over `batch`.
    pub fn forward(
        &self,
        backend: &dyn Backend,
        params: &Params,
        batch: &Batch,
        balance: Balance,
        stats: &RefCell<Stats>,
    ) -> (HeadOutput, Saved) {
        self.forward_in(Precision::Fp32, backend, params, batch, balance, stats)
    }

    /// The same, its products in `precision`; backward takes the same one.
    pub fn forward_in(
        &self,
        precision: Precision,
        backend: &dyn Backend,
        params: &Params,
        batch: &Batch,
        balance: Balance,
        stats: &RefCell<Stats>,
    ) -> (HeadOutput, Saved) {
        let (n, rope) = (batch.ids.len(), self.rope(batch.documents.longest()));
        assert!(
            batch.targets.len() == n && batch.documents.rows() == n,
            "batch: {n} ids, {} targets",
            batch.targets.len()
        );
        let cx = Cx { backend, params, documents: &batch.documents, rope: &rope, balance, precision, stats };
        let mut x = backend.embedding(&batch.ids, params.get(self.embedding));
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(&cx, x);
            blocks.push(saved);
            x = y;
        }
        let (hidden, norm) = self.norm.forward(&cx, x);
        let mut out = HeadOutput { rows: batch.target_rows(), ..Default::default() };
        let head = (!out.rows.is_empty()).then(|| self.read(&cx, &hidden, &out.rows, &batch.targets));
        if let Some((_, head, _)) = &head {
            (out.logp, out.lse) = (head.logp.clone(), head.lse.clone());
        }
        let mut scored = None;
        if let Some((score, likelihood)) = &self.score {
            let values = params.get(*likelihood).to_f64();
            out.likelihood = [values[0], values[1]];
            if !batch.score_rows.is_empty() {
                let rows = backend.gather(&hidden, &batch.score_rows);
                out.scores = score.apply(&cx.full(), &rows).to_f64();
                scored = Some(rows);
            }
        }
        let mut mtp = Vec::new();
        for (depth, module) in self.mtp.iter().enumerate().filter(|_| batch.predicts_further) {
            let before = mtp.last().map_or(&hidden, |pass: &MtpPass| &pass.hidden);
            let Some(pass) = self.mtp_pass(&cx, module, depth + 1, batch, before) else { break };
            out.mtp.push(pass.head.logp.clone());
            mtp.push(pass);
        }
        let saved = Saved { rope: rope.clone(), precision, blocks, norm, hidden, head, scored, mtp };
        (out, saved)
    }

    /// The output head on `rows` of `hidden`.
    fn read(&self, cx: &Cx, hidden: &Tensor, rows: &[u32], targets: &[u32]) -> (Tensor, Head, Vec<u32>) {
        let targets: Vec<u32> = rows.iter().map(|&row| targets[row as usize]).collect();
        let x = if rows.len() == hidden.rows() { hidden.clone() } else { cx.backend.gather(hidden, rows) };
        let head = cx.backend.head(&x, cx.params.get(self.head), &targets);
        (x, head, targets)
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
        let balance = if cx.balance.further { cx.balance } else { Balance::NONE };
        let (hidden, saved) = module.forward(&Cx { documents: &documents, balance, ..*cx }, h, embedding);
        let (read, head, targets) = self.read(cx, &hidden, &rows, &targets);
        Some(MtpPass { documents, from, ids, saved, hidden, rows, read, head, targets })
    }

    /// Adds the gradients of a pass to `grads`.
    pub fn backward(
        &self,
        backend: &dyn Backend,
        params: &Params,
        batch: &Batch,
        saved: Saved,
        d: OutputGradient,
        grads: &mut Grads,
    ) {
        let stats = RefCell::<Stats>::default();
        let cx = Cx {
            backend,
            params,
            documents: &batch.documents,
            rope: &saved.rope,
            balance: Balance::NONE, // what there was is in what was saved
            precision: saved.precision,
            stats: &stats,
        };
        let dtype = saved.hidden.dtype();
        let mut dhidden = None;
        if let Some((x, head, targets)) = saved.head {
            let w = params.get(self.head);
            let dx = backend.head_backward(head, &x, w, &targets, &d.dlogp, &d.dlse, grads.get_mut(self.head));
            dhidden = Some(self.spread(backend, dx, &batch.target_rows(), saved.hidden.rows()));
        }
        let mut dhidden = dhidden.unwrap_or_else(|| Tensor::zeros(saved.hidden.shape(), dtype));
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
        rows_of_before.insert(0, saved.hidden.rows());
        for (depth, pass) in saved.mtp.into_iter().enumerate().rev() {
            let dlse = vec![0.0; pass.rows.len()];
            let w = params.get(self.head);
            let dx = backend.head_backward(
                pass.head,
                &pass.read,
                w,
                &pass.targets,
                &d.mtp[depth],
                &dlse,
                grads.get_mut(self.head),
            );
            let mut dy = self.spread(backend, dx, &pass.rows, pass.hidden.rows());
            if let Some(more) = dbefore.take() {
                backend.add(&mut dy, &more);
            }
            let (dh, de) = self.mtp[depth].backward(&Cx { documents: &pass.documents, ..cx }, pass.saved, dy, grads);
            backend.embedding_backward(&pass.ids, &de, grads.get_mut(self.embedding));
            let mut back = Tensor::zeros([rows_of_before[depth], dh.cols()], dtype);
            backend.embedding_backward(&pass.from, &dh, &mut back);
            dbefore = Some(back);
        }
        if let Some(more) = dbefore {
            backend.add(&mut dhidden, &more);
        }
        drop(saved.hidden);
        let mut dx = self.norm.backward(&cx, saved.norm, dhidden, grads);
        for (block, saved) in self.blocks.iter().zip(saved.blocks).rev() {
            dx = block.backward(&cx, saved, dx, grads);
        }
        backend.embedding_backward(&batch.ids, &dx, grads.get_mut(self.embedding));
        grads.note_saturated(stats.borrow().has_saturated);
    }

    /// Rows of dx to their places among `n`; zero elsewhere.
    fn spread(&self, backend: &dyn Backend, dx: Tensor, rows: &[u32], n: usize) -> Tensor {
        if rows.len() == n {
            return dx;
        }
        let mut all = Tensor::zeros([n, dx.cols()], dx.dtype());
        backend.embedding_backward(rows, &dx, &mut all);
        all
    }

    /// Trains the correction biases without a loss (Wang et al. 2024): `bias += speed · sign(mean − load)`, after the optimizer's step.
    pub fn balance(&self, params: &mut Params, stats: &Stats, speed: f64) {
        for experts in self.experts() {
            let Some(loads) = stats.loads.get(&experts.layer()) else { continue };
            let (total, count) = (loads.iter().sum::<u64>(), loads.len() as u64);
            let bias = params.get_mut(experts.bias()).write::<f32>();
            for (bias, load) in bias.iter_mut().zip(loads) {
                *bias += match total.cmp(&(load * count)) {
                    std::cmp::Ordering::Greater => speed as f32,
                    std::cmp::Ordering::Less => -speed as f32,
                    std::cmp::Ordering::Equal => 0.0,
                };
            }
        }
    }

    /// Generation: runs `ids` at `positions` through the blocks, reading and extending the requests' caches. Returns what the head
    /// reads, `[N, D]`.
    pub fn decode(
        &self,
        backend: &dyn Backend,
        params: &Params,
        ids: &[u32],
        positions: &[u32],
        requests: &mut [CacheRows],
    ) -> Tensor {
        self.decode_cx(backend, params, positions, |cx| {
            let mut x = backend.embedding(ids, params.get(self.embedding));
            for (layer, block) in self.blocks.iter().enumerate() {
                x = block.decode(cx, x, positions, requests, layer);
            }
            backend.rms_norm(&x, params.get(self.norm.gain), self.norm.eps).0
        })
    }

    /// Speculation: the first module for further tokens reads `hidden` `[N, D]`, as [`decode`](Self::decode) gave it, and the tokens
    /// that follow each row, and extends its own layer of the caches. Returns what the head reads to guess the tokens after those.
    ///
    /// # Panics
    /// If the model has no such module.
    pub fn decode_further(
        &self,
        backend: &dyn Backend,
        params: &Params,
        hidden: &Tensor,
        next: &[u32],
        positions: &[u32],
        requests: &mut [CacheRows],
    ) -> Tensor {
        self.decode_cx(backend, params, positions, |cx| {
            let embedding = backend.embedding(next, params.get(self.embedding));
            self.mtp[0].decode(cx, hidden, &embedding, positions, requests, self.blocks.len())
        })
    }

    fn decode_cx<R>(&self, backend: &dyn Backend, params: &Params, positions: &[u32], run: impl FnOnce(&Cx) -> R) -> R {
        let rope = self.rope(positions.iter().max().map_or(1, |&p| p as usize + 1));
        let (stats, documents) = (RefCell::default(), DocumentBounds::default());
        run(&Cx {
            backend,
            params,
            documents: &documents,
            rope: &rope,
            balance: Balance::NONE,
            precision: Precision::Fp32,
            stats: &stats,
        })
    }

    /// Logits `[N, V]` of what the head reads.
    pub fn logits(&self, backend: &dyn Backend, params: &Params, hidden: &Tensor) -> Tensor {
        let w = params.get(self.head);
        let mut z = Tensor::empty([hidden.rows(), w.rows()], DType::F32);
        backend.gemm(Layout::Nt, hidden, w, &mut z, Write::Set);
        z
    }
}

impl Saved {
    /// What the head read, `[N, D]`.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// What the head of module `depth` (from 1) read, `[N', D]`.
    pub fn mtp_hidden(&self, depth: usize) -> &Tensor {
        &self.mtp[depth - 1].hidden
    }
}
