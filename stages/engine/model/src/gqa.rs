//! Grouped-query attention (Ainslie et al. 2023) as the dense families have it: rotary halves over the whole head, a
//! block of query heads for each key-value head, biases in some, and in Qwen3 a norm of every query and key head before
//! rope.

use crate::layer::RmsNormSaved;
use crate::params::Specs;
use crate::product::Input;
use crate::projection::Projection;
use crate::{CacheRows, Config, Cx, Grads, Grouped, Layer, RmsNorm, Start};
use smelt_kernels::fp8::Operand;
use smelt_kernels::{CachedRows, GroupedShape, Softmax, Tensor, Write};

#[derive(Clone, Debug)]
pub struct Gqa {
    shape: GroupedShape,
    q: Projection, // [H·d, D]
    k: Projection, // [G·d, D], of G key-value heads
    v: Projection, // [G·d, D]
    o: Projection, // [D, H·d]
    /// Of query and key heads, `[d]` each.
    norms: Option<[RmsNorm; 2]>,
}

#[derive(Debug)]
pub struct GqaSaved {
    x: Option<Operand>, // [N, D]
    q: Tensor,          // rotated, [N, H·d]
    k: Tensor,          // rotated, [N, G·d]
    v: Tensor,          // [N, G·d]
    o: Tensor,          // [N, H·d]
    softmax: Softmax,
    norms: Option<[RmsNormSaved; 2]>,
}

impl GqaSaved {
    pub(crate) fn recall_input(&mut self, cx: &Cx, x: &Tensor) {
        self.x = Some(Input::again(cx, x, None));
    }
}

/// Queries and keys, rotated, and values; and what backward of the norms needs.
type Projected = ([Tensor; 3], Option<[RmsNormSaved; 2]>);

impl Gqa {
    pub(crate) fn new(specs: &mut Specs, name: &str, c: &Config, g: Grouped) -> Self {
        let (heads, kv_heads, dim) = (c.num_attention_heads, g.heads.num_key_value_heads, g.heads.head_dim);
        let shape = GroupedShape { heads, kv_heads, dim, scale: 1.0 / (dim as f64).sqrt() };
        let (d, q_width, kv_width) = (c.hidden_size, heads * dim, kv_heads * dim);
        let mut projection = |part: &str, out, inner, has_bias| {
            Projection::new(specs, &format!("{name}.{part}_proj"), out, inner, has_bias)
        };
        let q = projection("q", q_width, d, g.has_qkv_bias);
        let [k, v] = ["k", "v"].map(|part| projection(part, kv_width, d, g.has_qkv_bias));
        let o = projection("o", d, q_width, g.has_o_bias);
        let mut norm = |part: &str| RmsNorm {
            gain: specs.one(format!("{name}.{part}_norm.weight"), &[dim], Start::One),
            eps: c.rms_norm_eps,
        };
        Self { shape, q, k, v, o, norms: g.has_norms.then(|| ["q", "k"].map(&mut norm)) }
    }

    fn project(&self, cx: &Cx, x: &Input, positions: &Tensor) -> Projected {
        let GroupedShape { heads, kv_heads, dim, .. } = self.shape;
        let (mut q, mut k, v) = (self.q.apply(cx, x), self.k.apply(cx, x), self.v.apply(cx, x));
        let mut saved = None;
        if let Some([q_norm, k_norm]) = &self.norms {
            let n = q.rows();
            let (q_normed, q_saved) = q_norm.forward(cx, q.reshape([n * heads, dim]));
            let (k_normed, k_saved) = k_norm.forward(cx, k.reshape([n * kv_heads, dim]));
            (q, k) = (q_normed.reshape([n, heads * dim]), k_normed.reshape([n, kv_heads * dim]));
            saved = Some([q_saved, k_saved]);
        }
        cx.backend.rope(&mut q, heads, 0, cx.rope, positions, false);
        cx.backend.rope(&mut k, kv_heads, 0, cx.rope, positions, false);
        ([q, k, v], saved)
    }

    /// Generation: appends the rows of `x` to the caches of layer `layer` and attends to them.
    pub fn decode(&self, cx: &Cx, x: &Tensor, positions: &Tensor, requests: &mut [CacheRows], layer: usize) -> Tensor {
        let ([q, k, v], _) = self.project(cx, &Input::new(cx, x, None), positions);
        for request in requests.iter_mut() {
            request.cache.append(cx.backend, layer, [&k, &v], request.rows.clone());
        }
        let rows: Vec<CachedRows> = requests.iter().map(|r| r.cache.layer(layer, r.rows.clone())).collect();
        let o = cx.backend.cached_attention(&self.shape, &q, &rows);
        self.o.apply(cx, &Input::new(cx, &o, None))
    }
}

impl Layer for Gqa {
    type Saved = GqaSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, GqaSaved) {
        let x = Input::new(&cx.light(), &x, None);
        let ([q, k, v], norms) = self.project(cx, &x, cx.documents.positions());
        let (o, softmax) = cx.backend.grouped_attention(&self.shape, &q, &k, &v, cx.documents);
        // o itself is needed in backward, so what its product keeps is made of it there
        let y = self.o.apply(cx, &Input::new(&Cx { keeps: false, ..*cx }, &o, None));
        (y, GqaSaved { x: x.into_kept(), q, k, v, o, softmax, norms })
    }

    fn backward(&self, cx: &Cx, s: GqaSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let GroupedShape { heads, kv_heads, dim, .. } = self.shape;
        let x = s.x.expect("attention: its input is kept or recalled");
        let (n, positions) = (s.o.rows(), cx.documents.positions());
        let mut d_o = cx.backend.empty(s.o.shape(), s.o.dtype());
        let width = dy.cols();
        self.o.backward_into(cx, Input::again(cx, &s.o, None), dy, &mut d_o, Write::Set, grads);
        let (mut dq, mut dk, dv) =
            cx.backend.grouped_attention_backward(&self.shape, &s.q, &s.k, &s.v, &s.o, &s.softmax, &d_o, cx.documents);
        cx.backend.rope(&mut dq, heads, 0, cx.rope, positions, true);
        cx.backend.rope(&mut dk, kv_heads, 0, cx.rope, positions, true);
        if let (Some([q_norm, k_norm]), Some([q_saved, k_saved])) = (&self.norms, s.norms) {
            dq = q_norm.backward(cx, q_saved, dq.reshape([n * heads, dim]), grads).reshape([n, heads * dim]);
            dk = k_norm.backward(cx, k_saved, dk.reshape([n * kv_heads, dim]), grads).reshape([n, kv_heads * dim]);
        }
        let mut dx = cx.backend.empty([n, width].into(), s.o.dtype());
        self.q.backward_into(cx, x.clone(), dq, &mut dx, Write::Set, grads);
        self.k.backward_into(cx, x.clone(), dk, &mut dx, Write::Add, grads);
        self.v.backward_into(cx, x, dv, &mut dx, Write::Add, grads);
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, tiny};
    use crate::{Family, KeyValueHeads};

    fn check(kv_heads: usize, has_biases: bool, has_norms: bool) {
        let heads = KeyValueHeads { num_key_value_heads: kv_heads, head_dim: 6 };
        let layer = |specs: &mut Specs, config: &mut Config| {
            config.num_attention_heads = 4;
            config.family = Family::Qwen2(heads); // for the rotary tables
            let grouped = Grouped { heads, has_qkv_bias: has_biases, has_o_bias: has_biases, has_norms };
            Gqa::new(specs, "attn", config, grouped)
        };
        check_gradients(&[5, 1, 3], 12, layer, tiny().hidden_size);
    }

    #[test]
    fn grouped_attention_has_the_gradient_of_its_loss() {
        check(2, false, false);
    }

    #[test]
    fn grouped_attention_with_biases_has_the_gradient_of_its_loss() {
        check(2, true, false);
    }

    #[test]
    fn grouped_attention_with_norms_has_the_gradient_of_its_loss() {
        check(2, false, true);
    }

    #[test]
    fn attention_with_one_key_value_head_has_the_gradient_of_its_loss() {
        check(1, true, true);
    }

    #[test]
    fn attention_with_as_many_key_value_heads_as_queries_has_the_gradient_of_its_loss() {
        check(4, true, true);
    }
}
