//! Multi-token prediction (DeepSeek-V3, §2.2): one more block that sees what the model made of token i and the
//! embedding of token i + 1, and predicts token i + 2.
//!
//! `eh_proj` reads [enorm(embedding); hnorm(h)], the order of the released files (the report writes the reverse), and h
//! is taken after `model.norm`, as transformers and vLLM do. Embedding and output head are the model's own.

use crate::block::BlockSaved;
use crate::layer::RmsNormSaved;
use crate::params::Specs;
use crate::product::Input;
use crate::{Block, CacheRows, Config, Cx, Experts, Grads, Layer, Linear, RmsNorm, Start};
use smelt_kernels::Tensor;
use smelt_kernels::fp8::Operand;

#[derive(Clone, Debug)]
pub struct Mtp {
    enorm: RmsNorm,
    hnorm: RmsNorm,
    eh_proj: Linear, // [D, 2D]
    block: Block,
    norm: RmsNorm,
}

#[derive(Debug)]
pub struct MtpSaved {
    enorm: RmsNormSaved,
    hnorm: RmsNormSaved,
    joined: Option<Operand>, // [N, 2D]
    block: BlockSaved,
    norm: RmsNormSaved,
}

impl Mtp {
    pub(crate) fn new(specs: &mut Specs, c: &Config, layer: usize) -> Self {
        let (name, d) = (format!("model.layers.{layer}"), c.hidden_size);
        let mut norm = |part: &str| RmsNorm {
            gain: specs.one(format!("{name}.{part}.weight"), &[d], Start::One),
            eps: c.rms_norm_eps,
        };
        let (enorm, hnorm, last) = (norm("enorm"), norm("hnorm"), norm("shared_head.norm"));
        let eh_proj = Linear { w: specs.linear(format!("{name}.eh_proj.weight"), &[d, 2 * d]) };
        Self { enorm, hnorm, eh_proj, block: Block::new(specs, c, layer), norm: last }
    }

    pub fn experts(&self) -> Option<&Experts> {
        self.block.experts()
    }

    /// h and the next tokens' embeddings, both `[N, D]`, over shortened documents. Returns what the head reads.
    pub fn forward(&self, cx: &Cx, h: Tensor, embedding: Tensor) -> (Tensor, MtpSaved) {
        let (e, enorm) = self.enorm.forward(cx, embedding);
        let (g, hnorm) = self.hnorm.forward(cx, h);
        let joined = Input::new(cx, &cx.backend.join(&e, &g), None);
        let (y, block) = self.block.forward(cx, self.eh_proj.apply(cx, &joined));
        let (y, norm) = self.norm.forward(cx, y);
        (y, MtpSaved { enorm, hnorm, joined: joined.into_kept(), block, norm })
    }

    /// Generation: like forward, from the caches of layer `layer`, saving nothing.
    pub fn decode(
        &self,
        cx: &Cx,
        h: &Tensor,
        embedding: &Tensor,
        positions: &Tensor,
        requests: &mut [CacheRows],
        layer: usize,
    ) -> Tensor {
        let norm = |norm: &RmsNorm, x: &Tensor| cx.backend.rms_norm(x, cx.params.get(norm.gain), norm.eps).0;
        let joined = cx.backend.join(&norm(&self.enorm, embedding), &norm(&self.hnorm, h));
        let y = self.block.decode(cx, self.eh_proj.of(cx, &joined), positions, requests, layer);
        norm(&self.norm, &y)
    }

    /// Returns dh and dembedding.
    pub fn backward(&self, cx: &Cx, s: MtpSaved, dy: Tensor, grads: &mut Grads) -> (Tensor, Tensor) {
        let dy = self.norm.backward(cx, s.norm, dy, grads);
        let dy = self.block.backward(cx, s.block, dy, grads);
        let djoined = self.eh_proj.backward(cx, s.joined, dy, grads);
        let (de, dg) = cx.backend.split(&djoined, djoined.cols() / 2);
        (self.hnorm.backward(cx, s.hnorm, dg, grads), self.enorm.backward(cx, s.enorm, de, grads))
    }
}
