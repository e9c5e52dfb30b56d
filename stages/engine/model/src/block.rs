//! A transformer block: attention and feed-forward, each on a normed copy of the residual stream.

use crate::attention::AttentionSaved;
use crate::experts::ExpertsSaved;
use crate::layer::RmsNormSaved;
use crate::mlp::MlpSaved;
use crate::params::Specs;
use crate::{Attention, CacheRows, Config, Cx, Experts, Grads, Layer, Mlp, RmsNorm, Start};
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
pub struct BlockSaved {
    norm: RmsNormSaved,
    attention: AttentionSaved,
    ffn_norm: RmsNormSaved,
    ffn: FeedForwardSaved,
}

#[derive(Debug)]
enum FeedForwardSaved {
    Dense(MlpSaved),
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
        cx.backend.add(&mut residual, &x);
        let (y, _) = cx.backend.rms_norm(&residual, cx.params.get(self.ffn_norm.gain), self.ffn_norm.eps);
        let mut out = match &self.ffn {
            FeedForward::Dense(mlp) => mlp.apply(cx, &y),
            FeedForward::Experts(experts) => experts.apply(cx, &y),
        };
        cx.backend.add(&mut out, &residual);
        out
    }
}

impl Layer for Block {
    type Saved = BlockSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, BlockSaved) {
        let (y, norm) = self.norm.forward(cx, x.clone());
        let (mut residual, attention) = self.attention.forward(cx, y);
        cx.backend.add(&mut residual, &x);
        let (y, ffn_norm) = self.ffn_norm.forward(cx, residual.clone());
        let (mut out, ffn) = match &self.ffn {
            FeedForward::Dense(mlp) => {
                let (out, saved) = mlp.forward(cx, y);
                (out, FeedForwardSaved::Dense(saved))
            }
            FeedForward::Experts(experts) => {
                let (out, saved) = experts.forward(cx, y);
                (out, FeedForwardSaved::Experts(Box::new(saved)))
            }
        };
        cx.backend.add(&mut out, &residual);
        (out, BlockSaved { norm, attention, ffn_norm, ffn })
    }

    fn backward(&self, cx: &Cx, s: BlockSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let dffn = match (&self.ffn, s.ffn) {
            (FeedForward::Dense(mlp), FeedForwardSaved::Dense(saved)) => mlp.backward(cx, saved, dy.clone(), grads),
            (FeedForward::Experts(experts), FeedForwardSaved::Experts(saved)) => {
                experts.backward(cx, *saved, dy.clone(), grads)
            }
            _ => unreachable!("a block saves its own kind"),
        };
        let mut dresidual = self.ffn_norm.backward(cx, s.ffn_norm, dffn, grads);
        cx.backend.add(&mut dresidual, &dy);
        let dattention = self.attention.backward(cx, s.attention, dresidual.clone(), grads);
        let mut dx = self.norm.backward(cx, s.norm, dattention, grads);
        cx.backend.add(&mut dx, &dresidual);
        dx
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
