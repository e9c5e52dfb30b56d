//! The whole model: a list of chunks over which forward and backward go.

use crate::batch::{Batch, IGNORE};
use crate::chunk::{Chunk, ChunkSaved, Flow, FlowGradient};
use crate::head::{HeadOutput, OutputGradient, OutputHead};
use crate::params::{Spec, Specs, layer_of};
use crate::prepared::Prepared;
use crate::{
    Balance, Block, Cache, CacheRows, Config, Cx, Error, Experts, Grads, Init, Param, Params, Precision, Recomputed,
    Start, Stats,
};
use smelt_kernels::{Backend, DType, DocumentBounds, Documents, Layout, Rope, Tensor, Write};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

pub struct Model {
    config: Config,
    precision: Precision,
    specs: Arc<Specs>,
    chunks: Vec<Chunk>,
    rope: Mutex<Arc<Rope>>,
}

/// Everything backward needs of a pass.
#[derive(Debug)]
pub struct Saved {
    rope: Arc<Rope>,
    recompute: Recomputed,
    batch: Prepared,
    chunks: Vec<ChunkSaved>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let blocks: Vec<usize> = self.chunks.iter().map(|chunk| chunk.blocks.len()).collect();
        f.debug_struct("Model").field("config", &self.config).field("blocks", &blocks).finish_non_exhaustive()
    }
}

impl Model {
    pub fn new(config: Config) -> Result<Self, Error> {
        let blocks = config.num_hidden_layers;
        Self::in_chunks(config, &[blocks])
    }

    /// With so many blocks in each chunk; every cut computes the same bits.
    ///
    /// # Panics
    /// When the counts do not sum to the model's blocks.
    pub fn in_chunks(config: Config, blocks: &[usize]) -> Result<Self, Error> {
        config.check()?;
        let (c, mut specs, count) = (&config, Specs::default(), blocks.iter().sum::<usize>());
        assert!(count == c.num_hidden_layers, "chunks of {blocks:?} blocks: the model has {}", c.num_hidden_layers);
        let shape = [c.vocab_size, c.hidden_size];
        let embedding = specs.one("model.embed_tokens.weight".into(), &shape, Start::Embedding);
        let (mut chunks, mut next) = (Vec::new(), 0);
        for &count in blocks {
            let blocks = (next..next + count).map(|layer| Block::new(&mut specs, c, layer)).collect();
            next += count;
            chunks.push(Chunk { embedding: chunks.is_empty().then_some(embedding), blocks, head: None });
        }
        let head = OutputHead::new(&mut specs, c, embedding);
        chunks.last_mut().expect("a model has a chunk").head = Some(head);
        let rope = Mutex::new(Arc::new(config.rope(64)));
        Ok(Self { specs: Arc::new(specs), chunks, rope, config, precision: Precision::Fp32 })
    }

    /// Computes the products of its linear layers in `precision`, in training, scoring and generation. A new model
    /// computes in f32.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn init(&self, init: &Init) -> Params {
        Params::init(self.specs.clone(), init)
    }

    /// Parameters with unspecified values, on the device of `backend`: for [`Meta`](smelt_kernels::Meta), which needs
    /// their shapes.
    pub fn shapes(&self, backend: &dyn Backend) -> Params {
        let values = self.specs.0.iter().map(|spec| backend.empty(spec.shape, DType::F32));
        Params::new(self.specs.clone(), values.collect())
    }

    /// All trainable elements.
    pub fn parameters(&self) -> usize {
        self.specs.count()
    }

    /// What the MTP modules have of their own: frozen in a training that does not run them.
    pub fn mtp_parameters(&self) -> impl Iterator<Item = Param> {
        let first = self.config.num_hidden_layers;
        let is_mtp = move |spec: &Spec| layer_of(&spec.parts[0].name).is_some_and(|layer| layer >= first);
        self.specs.0.iter().enumerate().filter(move |(_, spec)| is_mtp(spec)).map(|(at, _)| Param::at(at))
    }

    pub(crate) fn specs(&self) -> &Arc<Specs> {
        &self.specs
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.chunks.iter().flat_map(|chunk| &chunk.blocks)
    }

    fn head(&self) -> &OutputHead {
        self.chunks.last().and_then(|chunk| chunk.head.as_ref()).expect("the last chunk has the head")
    }

    fn embedding(&self) -> Param {
        self.chunks[0].embedding.expect("the first chunk has the embedding")
    }

    /// The layers of experts, those of the MTP modules included.
    pub fn experts(&self) -> impl Iterator<Item = &Experts> {
        self.blocks().filter_map(Block::experts).chain(self.head().experts())
    }

    /// Blocks; in a request's cache the first MTP module has the layer behind them.
    pub fn layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// Of a request: a layer per block, and one for the first MTP module.
    pub fn new_cache(&self) -> Cache {
        Cache::new(self.layers() + self.head().mtp().len().min(1))
    }

    /// Tables for at least `positions` positions, where the parameters are: on the device of `backend`.
    fn rope(&self, backend: &dyn Backend, params: &Params, positions: usize) -> Arc<Rope> {
        let mut rope = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if rope.positions() < positions || rope.cos.device() != params.get(self.embedding()).device() {
            *rope = Arc::new(self.config.rope(positions.next_power_of_two()).on(backend));
        }
        rope.clone()
    }

    /// `batch` on the device of `backend`, for [`forward_in`](Self::forward_in).
    pub fn prepare(&self, backend: &dyn Backend, batch: &Batch) -> Prepared {
        batch.expect_whole();
        Prepared::new(backend, batch, self.head().mtp().len())
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
        self.forward_in(Recomputed::None, backend, params, self.prepare(backend, batch), balance, stats)
    }

    /// The same over what [`prepare`](Self::prepare) uploaded, keeping what `recompute` says.
    pub fn forward_in(
        &self,
        recompute: Recomputed,
        backend: &dyn Backend,
        params: &Params,
        batch: Prepared,
        balance: Balance,
        stats: &RefCell<Stats>,
    ) -> (HeadOutput, Saved) {
        let rope = self.rope(backend, params, batch.documents.longest());
        let (documents, precision) = (&batch.documents, self.precision);
        let cx = Cx { backend, params, documents, rope: &rope, balance, precision, recompute, keeps: true, stats };
        let (mut x, mut out, mut chunks) = (None, None, Vec::with_capacity(self.chunks.len()));
        for chunk in &self.chunks {
            let (flow, saved) = chunk.forward(&cx, &batch, x.take());
            match flow {
                Flow::Hidden(y) => x = Some(y),
                Flow::Output(y) => out = Some(y),
            }
            chunks.push(saved);
        }
        (out.expect("the last chunk has the head"), Saved { rope: rope.clone(), recompute, batch, chunks })
    }

    /// What [`forward`](Self::forward) tells, to the bit, without the MTP modules; nothing is kept for backward.
    pub fn score(&self, backend: &dyn Backend, params: &Params, batch: &Batch) -> HeadOutput {
        let (rope, stats) = (self.rope(backend, params, batch.documents.longest()), RefCell::default());
        let batch = &Prepared::new(backend, batch, 0);
        let (documents, balance, precision) = (&batch.documents, Balance::NONE, self.precision);
        let (recompute, keeps) = (Recomputed::Full, false);
        let cx = Cx { backend, params, documents, rope: &rope, balance, precision, recompute, keeps, stats: &stats };
        let (mut x, mut out) = (None, None);
        for chunk in &self.chunks {
            match chunk.score(&cx, batch, x.take()) {
                Flow::Hidden(y) => x = Some(y),
                Flow::Output(y) => out = Some(y),
            }
        }
        out.expect("the last chunk has the head")
    }

    /// Adds the gradients of a pass to `grads`. `stats`: as in forward.
    pub fn backward(
        &self,
        backend: &dyn Backend,
        params: &Params,
        saved: Saved,
        d: OutputGradient,
        grads: &mut Grads,
        stats: &RefCell<Stats>,
    ) {
        let batch = &saved.batch;
        let cx = Cx {
            backend,
            params,
            documents: &batch.documents,
            rope: &saved.rope,
            balance: Balance::NONE, // its gradient was computed in forward, and saved
            precision: self.precision,
            recompute: saved.recompute,
            keeps: true,
            stats,
        };
        let mut d = Some(FlowGradient::Output(d));
        for (chunk, saved) in self.chunks.iter().zip(saved.chunks).rev() {
            let dy = d.take().expect("every chunk but the first hands back a gradient");
            d = chunk.backward(&cx, batch, saved, dy, grads).map(FlowGradient::Hidden);
        }
    }

    /// Trains the correction biases without a loss (Wang et al. 2024), by the rows each expert got in a step, by layer:
    /// `bias += speed · sign(mean − load)`, after the optimizer's step. Those in `frozen` stay.
    pub fn balance(
        &self,
        backend: &dyn Backend,
        params: &mut Params,
        loads: &BTreeMap<usize, Tensor>,
        speed: f64,
        frozen: &[Param],
    ) {
        for experts in self.experts().filter(|experts| !frozen.contains(&experts.bias())) {
            let Some(loads) = loads.get(&experts.layer()) else { continue };
            backend.balance_bias(params.get_mut(experts.bias()), loads, speed);
        }
    }

    /// Generation: runs `ids` at `positions` through the blocks, reading and extending the requests' caches. Returns
    /// what the head reads, `[N, D]`.
    pub fn decode(
        &self,
        backend: &dyn Backend,
        params: &Params,
        ids: &[u32],
        positions: &[u32],
        requests: &mut [CacheRows],
    ) -> Tensor {
        self.decode_cx(backend, params, positions, |cx, positions| {
            let mut x = backend.embedding(&backend.ids(ids), params.get(self.embedding()));
            for (layer, block) in self.blocks().enumerate() {
                x = block.decode(cx, x, positions, requests, layer);
            }
            self.head().normed(cx, &x)
        })
    }

    /// Speculation: the first MTP module reads `hidden` `[N, D]`, as [`decode`](Self::decode) gave it, and the tokens
    /// that follow each row, and extends its own layer of the caches. Returns what the head reads to guess the tokens
    /// after those.
    ///
    /// # Panics
    /// If the model has no such module.
    pub fn decode_mtp(
        &self,
        backend: &dyn Backend,
        params: &Params,
        hidden: &Tensor,
        next: &[u32],
        positions: &[u32],
        requests: &mut [CacheRows],
    ) -> Tensor {
        self.decode_cx(backend, params, positions, |cx, positions| {
            let embedding = backend.embedding(&backend.ids(next), params.get(self.embedding()));
            self.head().mtp()[0].decode(cx, hidden, &embedding, positions, requests, self.layers())
        })
    }

    fn decode_cx<R>(
        &self,
        backend: &dyn Backend,
        params: &Params,
        positions: &[u32],
        run: impl FnOnce(&Cx, &Tensor) -> R,
    ) -> R {
        let rope = self.rope(backend, params, positions.iter().max().map_or(1, |&p| p as usize + 1));
        let (stats, documents) = (RefCell::default(), Documents::new(backend, DocumentBounds::default()));
        let cx = Cx {
            backend,
            params,
            documents: &documents,
            rope: &rope,
            balance: Balance::NONE,
            precision: self.precision,
            recompute: Recomputed::Full,
            keeps: false,
            stats: &stats,
        };
        run(&cx, &backend.ids(positions))
    }

    /// Logits `[N, V]` of what the head reads.
    pub fn logits(&self, backend: &dyn Backend, params: &Params, hidden: &Tensor) -> Tensor {
        let w = params.get(self.head().weight());
        let mut z = backend.empty([hidden.rows(), w.rows()].into(), DType::F32);
        backend.gemm(Layout::Nt, hidden, w, &mut z, Write::Set);
        z
    }
}

impl Saved {
    /// What the head read, `[N, D]`.
    pub fn hidden(&self) -> &Tensor {
        self.head().hidden()
    }

    /// What the head of MTP module `depth` (from 1) read, `[N', D]`.
    pub fn mtp_hidden(&self, depth: usize) -> &Tensor {
        self.head().mtp_hidden(depth)
    }

    fn head(&self) -> &crate::head::OutputSaved {
        self.chunks.last().and_then(|chunk| chunk.head.as_ref()).expect("the last chunk has the head")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{deepseek, tiny};
    use smelt_kernels::Cpu;

    /// Loss and gradients of a model cut into chunks of so many blocks; what is scored without saving beside them.
    fn pass(blocks: &[usize]) -> Vec<Vec<u64>> {
        let mut config = Config { num_hidden_layers: 4, ..tiny() };
        deepseek(&mut config).num_nextn_predict_layers = 2;
        let model = Model::in_chunks(config, blocks).unwrap();
        let params = model.init(&Init { seed: 2, embedding: 1.0, router: 0.5, weight: None });
        let batch = Batch::next_token(&[&[3, 1, 4, 1, 5, 9], &[2, 6, 5, 3]]);
        let (cpu, stats) = (Cpu::new(2), RefCell::default());
        let mut grads = Grads::zeros(&cpu, &params);
        let (out, saved) = model.forward(&cpu, &params, &batch, Balance::NONE, &stats);
        let ones = |x: &Tensor| Tensor::new(x.shape(), &vec![-1.0; x.len()]);
        let d = OutputGradient {
            dlogp: ones(&out.logp),
            dlse: ones(&out.lse),
            mtp: out.mtp.iter().map(ones).collect(),
            dscores: None,
            dlikelihood: None,
        };
        model.backward(&cpu, &params, saved, d, &mut grads, &stats);
        let (out, scored) = (out.on_host(&cpu), model.score(&cpu, &params, &batch).on_host(&cpu));
        assert!(scored.mtp.is_empty() && (&scored.logp, &scored.lse) == (&out.logp, &out.lse));
        let bits = |x: Vec<f64>| x.into_iter().map(f64::to_bits).collect();
        let grads = params.handles().map(|p| grads.get(p).to_f64());
        [vec![out.logp], out.mtp].concat().into_iter().chain(grads).map(bits).collect()
    }

    #[test]
    fn a_model_in_chunks_computes_the_same_bits() {
        let whole = pass(&[4]);
        assert!(whole.iter().flatten().any(|&bits| bits != 0));
        for blocks in [&[1, 3][..], &[2, 1, 1], &[0, 4, 0]] {
            assert!(pass(blocks) == whole, "{blocks:?}");
        }
    }
}
