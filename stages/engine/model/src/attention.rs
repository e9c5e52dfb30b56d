//! A block's attention: latent (DeepSeek-V3) or grouped-query (the dense families).

use crate::gqa::GqaSaved;
use crate::mla::MlaSaved;
use crate::params::Specs;
use crate::{AttentionKind, CacheRows, Config, Cx, Gqa, Grads, Layer, Mla};
use smelt_kernels::Tensor;

#[derive(Clone, Debug)]
pub enum Attention {
    Mla(Mla),
    Gqa(Gqa),
}

#[derive(Debug)]
pub enum AttentionSaved {
    Mla(Box<MlaSaved>),
    Gqa(Box<GqaSaved>),
}

impl AttentionSaved {
    pub(crate) fn recall_input(&mut self, cx: &Cx, x: &Tensor) {
        match self {
            AttentionSaved::Mla(saved) => saved.recall_input(cx, x),
            AttentionSaved::Gqa(saved) => saved.recall_input(cx, x),
        }
    }
}

impl Attention {
    pub(crate) fn new(specs: &mut Specs, name: &str, c: &Config) -> Self {
        match c.family.attention() {
            AttentionKind::Latent(v3) => Attention::Mla(Mla::new(specs, name, c, v3)),
            AttentionKind::Grouped(grouped) => Attention::Gqa(Gqa::new(specs, name, c, grouped)),
        }
    }

    /// Generation: like forward, from the caches of layer `layer`, which get the rows of `x`.
    pub fn decode(&self, cx: &Cx, x: &Tensor, positions: &Tensor, requests: &mut [CacheRows], layer: usize) -> Tensor {
        match self {
            Attention::Mla(mla) => mla.decode(cx, x, positions, requests, layer),
            Attention::Gqa(gqa) => gqa.decode(cx, x, positions, requests, layer),
        }
    }
}

impl Layer for Attention {
    type Saved = AttentionSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, AttentionSaved) {
        match self {
            Attention::Mla(mla) => {
                let (y, saved) = mla.forward(cx, x);
                (y, AttentionSaved::Mla(Box::new(saved)))
            }
            Attention::Gqa(gqa) => {
                let (y, saved) = gqa.forward(cx, x);
                (y, AttentionSaved::Gqa(Box::new(saved)))
            }
        }
    }

    fn backward(&self, cx: &Cx, saved: AttentionSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        match (self, saved) {
            (Attention::Mla(mla), AttentionSaved::Mla(saved)) => mla.backward(cx, *saved, dy, grads),
            (Attention::Gqa(gqa), AttentionSaved::Gqa(saved)) => gqa.backward(cx, *saved, dy, grads),
            _ => unreachable!("attention saves its own kind"),
        }
    }
}
