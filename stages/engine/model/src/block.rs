//! A transformer block: attention and feed-forward, each on a normed copy of the residual stream.

use crate::attention::AttentionSaved;
use crate::experts::ExpertsSaved;
use crate::layer::RmsNormSaved;
use crate::mlp::MlpSaved;
use crate::params::Specs;
use crate::{
    Attention, CacheRows, Config, Cx, Experts, Grads, Layer, Mlp, Recompute, RecomputeSaved, Recomputed, RmsNorm, Start,
};
use smelt_kernels::Tensor;

#[derive(Clone, Debug)]
pub struct Block {
    norm: RmsNorm,
    attention: Attention,
    ffn_norm: RmsNorm,
    ffn: FeedForward,
}

#[derive(Clone, Debug)]
pub enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

#[derive(Debug)]
pub enum BlockSaved {
    /// All, or what [`Recomputed::Light`] keeps.
    Inside(Box<InsideSaved>),
    Input(RecomputeSaved),
}

/// The layers of a block, without its policy of recomputation.
#[derive(Debug)]
struct Inside<'a>(&'a Block);

#[derive(Debug)]
pub struct InsideSaved {
    norm: RmsNormSaved,
    attention: AttentionSaved,
    ffn_norm: RmsNormSaved,
    ffn: FeedForwardSaved,
}

#[derive(Debug)]
enum FeedForwardSaved {
    Dense(Box<MlpSaved>),
    Experts(Box<ExpertsSaved>),
}

impl Block {
    /// `layer` counts from 0; MTP modules come after the last.
    pub(crate) fn new(specs: &mut Specs, c: &Config, layer: usize) -> Self {
        let name = format!("model.layers.{layer}");
        let mut norm = |part: &str| RmsNorm {
            gain: specs.one(format!("{name}.{part}.weight"), &[c.hidden_size], Start::One),
            eps: c.rms_norm_eps,
        };
        let (first, second) = (norm("input_layernorm"), norm("post_attention_layernorm"));
        let attention = Attention::new(specs, &format!("{name}.self_attn"), c);
        let ffn_name = format!("{name}.mlp");
        let ffn = match c.experts(layer) {
            None => FeedForward::Dense(Mlp::new(specs, &ffn_name, c.hidden_size, c.intermediate_size)),
            Some(v3) => FeedForward::Experts(Experts::new(specs, &ffn_name, c, v3, layer)),
        };
        Self { norm: first, attention, ffn_norm: second, ffn }
    }

    pub fn experts(&self) -> Option<&Experts> {
        match &self.ffn {
            FeedForward::Dense(_) => None,
            FeedForward::Experts(experts) => Some(experts),
        }
    }

    /// Generation: like forward, from the cache, saving nothing.
    pub fn decode(&self, cx: &Cx, x: Tensor, positions: &Tensor, requests: &mut [CacheRows], layer: usize) -> Tensor {
        let (y, _) = cx.backend.rms_norm(&x, cx.params.get(self.norm.gain), self.norm.eps);
        let mut residual = self.attention.decode(cx, &y, positions, requests, layer);
        let (y, _) = self.ffn_norm.forward_of_sum(cx, &mut residual, &x);
        let mut out = match &self.ffn {
            FeedForward::Dense(mlp) => mlp.apply(cx, &y),
            FeedForward::Experts(experts) => experts.apply(cx, &y),
        };
        cx.backend.add(&mut out, &residual);
        out
    }
}

impl FeedForwardSaved {
    fn recall_input(&mut self, cx: &Cx, x: &Tensor) {
        match self {
            FeedForwardSaved::Dense(saved) => saved.recall_input(cx, x),
            FeedForwardSaved::Experts(saved) => saved.recall_input(cx, x),
        }
    }
}

impl Layer for Block {
    type Saved = BlockSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, BlockSaved) {
        if cx.recompute == Recomputed::Full {
            let (y, saved) = Recompute(&Inside(self)).forward(cx, x);
            return (y, BlockSaved::Input(saved));
        }
        let (y, saved) = Inside(self).forward(cx, x);
        (y, BlockSaved::Inside(Box::new(saved)))
    }

    fn backward(&self, cx: &Cx, saved: BlockSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        match saved {
            BlockSaved::Inside(saved) => Inside(self).backward(cx, *saved, dy, grads),
            BlockSaved::Input(saved) => Recompute(&Inside(self)).backward(cx, saved, dy, grads),
        }
    }
}

impl Layer for Inside<'_> {
    type Saved = InsideSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, InsideSaved) {
        let Block { norm, attention, ffn_norm, ffn } = self.0;
        let (y, norm) = norm.forward(cx, x.clone());
        let (mut residual, attention) = attention.forward(cx, y);
        let (y, ffn_norm) = ffn_norm.forward_of_sum(cx, &mut residual, &x);
        let (mut out, ffn) = match ffn {
            FeedForward::Dense(mlp) => {
                let (out, saved) = mlp.forward(cx, y);
                (out, FeedForwardSaved::Dense(Box::new(saved)))
            }
            FeedForward::Experts(experts) => {
                let (out, saved) = experts.forward(cx, y);
                (out, FeedForwardSaved::Experts(Box::new(saved)))
            }
        };
        cx.backend.add(&mut out, &residual);
        (out, InsideSaved { norm, attention, ffn_norm, ffn })
    }

    fn backward(&self, cx: &Cx, mut s: InsideSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let Block { norm, attention, ffn_norm, ffn } = self.0;
        let recalls = cx.recompute.is_light();
        if recalls {
            s.ffn.recall_input(cx, &ffn_norm.again(cx, &s.ffn_norm));
        }
        let dffn = match (ffn, s.ffn) {
            (FeedForward::Dense(mlp), FeedForwardSaved::Dense(saved)) => mlp.backward(cx, *saved, dy.clone(), grads),
            (FeedForward::Experts(experts), FeedForwardSaved::Experts(saved)) => {
                experts.backward(cx, *saved, dy.clone(), grads)
            }
            _ => unreachable!("a block saves its own kind"),
        };
        let dresidual = ffn_norm.backward_beside(cx, &s.ffn_norm, &dffn, &dy, grads);
        if recalls {
            s.attention.recall_input(cx, &norm.again(cx, &s.norm));
        }
        let dattention = attention.backward(cx, s.attention, dresidual.clone(), grads);
        norm.backward_beside(cx, &s.norm, &dattention, &dresidual, grads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, tiny};

    #[test]
    fn a_dense_block_has_the_gradient_of_its_loss() {
        check_gradients(&[4, 2], 12, |specs, config| Block::new(specs, config, 0), tiny().hidden_size);
    }

    #[test]
    fn a_block_of_experts_has_the_gradient_of_its_loss() {
        check_gradients(&[4, 2], 12, |specs, config| Block::new(specs, config, 1), tiny().hidden_size);
    }
}
