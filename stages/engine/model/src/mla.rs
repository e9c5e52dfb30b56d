//! Multi-head latent attention (DeepSeek-V2, §2.1): keys and values come from one small latent per token, positions
//! from one rotary key shared by all heads.
//!
//! Rows of `q` hold per head [nope | rope]; rows of `kv_b_proj` per head [k_nope | v]; rows of `kv_a_proj_with_mqa` are
//! [latent | rope], of which the latent alone is normed. The latent norms use eps 1e-6 whatever the config says, as
//! transformers does.

use crate::layer::RmsNormSaved;
use crate::params::Specs;
use crate::product::Input;
use crate::{CacheRows, Config, Cx, DeepseekV3, Grads, Layer, Linear, Precision, RmsNorm, Start};
use smelt_kernels::fp8::Operand;
use smelt_kernels::{AttentionShape, CachedRows, DType, Softmax, Tensor, Write};

const LATENT_EPS: f64 = 1e-6;

#[derive(Clone, Debug)]
pub struct Mla {
    shape: AttentionShape,
    latent: usize,
    query: Query,
    kv_a: Linear, // [latent + rope, D]
    kv_norm: RmsNorm,
    kv_b: Linear, // [H·(nope + value), latent]
    o: Linear,    // [D, H·value]
}

#[derive(Clone, Debug)]
enum Query {
    Direct(Linear),
    Compressed { a: Linear, norm: RmsNorm, b: Linear },
}

/// Its input is that of the whole layer.
#[derive(Debug)]
enum QuerySaved {
    Direct,
    Compressed { norm: RmsNormSaved, b: Option<Operand> },
}

impl Query {
    fn apply(&self, cx: &Cx, x: &Input) -> (Tensor, QuerySaved) {
        match self {
            Query::Direct(q) => (q.apply(cx, x), QuerySaved::Direct),
            Query::Compressed { a, norm, b } => {
                let (y, norm_saved) = norm.forward(cx, a.apply(cx, x));
                let y = Input::new(cx, &y, None);
                (b.apply(cx, &y), QuerySaved::Compressed { norm: norm_saved, b: y.into_kept() })
            }
        }
    }

    fn backward(&self, cx: &Cx, x: Operand, saved: QuerySaved, dq: Tensor, dx: &mut Tensor, grads: &mut Grads) {
        match (self, saved) {
            (Query::Direct(q), QuerySaved::Direct) => q.backward_into(cx, x, dq, dx, Write::Set, grads),
            (Query::Compressed { a, norm, b }, QuerySaved::Compressed { norm: norm_saved, b: y }) => {
                let dy = b.backward(cx, y, dq, grads);
                let dy = norm.backward(cx, norm_saved, dy, grads);
                a.backward_into(cx, x, dy, dx, Write::Set, grads);
            }
            _ => unreachable!("a query saves its own kind"),
        }
    }
}

#[derive(Debug)]
pub struct MlaSaved {
    query: QuerySaved,
    x: Option<Operand>, // [N, D]
    kv_norm: RmsNormSaved,
    latent: Option<Operand>, // normed, [N, latent]
    q: Tensor,               // rotated, [N, H·(nope + rope)]
    kv: Tensor,              // [N, H·(nope + value)]
    k_rope: Tensor,          // rotated, [N, rope]
    o: Tensor,               // [N, H·value]
    softmax: Softmax,
}

impl MlaSaved {
    pub(crate) fn recall_input(&mut self, cx: &Cx, x: &Tensor) {
        self.x = Some(Input::again(cx, x, None));
    }
}

impl Mla {
    pub(crate) fn new(specs: &mut Specs, name: &str, c: &Config, v3: &DeepseekV3) -> Self {
        let shape = v3.attention_shape(c);
        let (d, latent) = (c.hidden_size, v3.kv_lora_rank);
        let mut linear = |part: &str, out: usize, inner: usize| Linear {
            w: specs.linear(format!("{name}.{part}.weight"), &[out, inner]),
        };
        let q_width = shape.heads * (shape.nope + shape.rope);
        let projections = match v3.q_lora_rank {
            None => (linear("q_proj", q_width, d), None),
            Some(rank) => (linear("q_a_proj", rank, d), Some(linear("q_b_proj", q_width, rank))),
        };
        let kv_a = linear("kv_a_proj_with_mqa", latent + shape.rope, d);
        let kv_b = linear("kv_b_proj", shape.heads * (shape.nope + shape.value), latent);
        let o = linear("o_proj", d, shape.heads * shape.value);
        let mut norm = |part: &str, width: usize| RmsNorm {
            gain: specs.one(format!("{name}.{part}.weight"), &[width], Start::One),
            eps: LATENT_EPS,
        };
        let query = match projections {
            (q, None) => Query::Direct(q),
            (a, Some(b)) => Query::Compressed { a, norm: norm("q_a_layernorm", v3.q_lora_rank.unwrap_or(0)), b },
        };
        Self { shape, latent, query, kv_a, kv_norm: norm("kv_a_layernorm", latent), kv_b, o }
    }

    /// Rotated queries, what backward of them needs, the normed latent, and the rotated key.
    fn project(&self, cx: &Cx, x: &Input, positions: &Tensor) -> (Tensor, QuerySaved, (Tensor, RmsNormSaved), Tensor) {
        let s = &self.shape;
        let (mut q, query) = self.query.apply(cx, x);
        cx.backend.rope(&mut q, s.heads, s.nope, cx.rope, positions, false);
        let (latent, mut k_rope) = cx.backend.split(&self.kv_a.apply(cx, x), self.latent);
        cx.backend.rope(&mut k_rope, 1, 0, cx.rope, positions, false);
        (q, query, self.kv_norm.forward(cx, latent), k_rope)
    }

    /// Generation: appends the rows of `x` to the caches of layer `layer` and attends from the latents. In bf16 latents
    /// and `kv_b` are those that training multiplies; in FP8 they stay in f32.
    pub fn decode(&self, cx: &Cx, x: &Tensor, positions: &Tensor, requests: &mut [CacheRows], layer: usize) -> Tensor {
        let (q, _, (latent, _), k_rope) = self.project(cx, &Input::new(cx, x, None), positions);
        let multiplied = |x: &Tensor| match cx.precision {
            Precision::Bf16(_) => cx.backend.cast(&cx.backend.cast(x, DType::Bf16), DType::F32),
            _ => x.clone(),
        };
        let (latent, kv_b) = (multiplied(&latent), multiplied(cx.params.get(self.kv_b.w)));
        for request in requests.iter_mut() {
            request.cache.append(cx.backend, layer, [&latent, &k_rope], request.rows.clone());
        }
        let rows: Vec<CachedRows> = requests.iter().map(|r| r.cache.layer(layer, r.rows.clone())).collect();
        let o = cx.backend.latent_attention(&self.shape, &q, &kv_b, &rows);
        self.o.of(cx, &o)
    }
}

impl Layer for Mla {
    type Saved = MlaSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, MlaSaved) {
        let x = Input::new(&cx.light(), &x, None);
        let (q, query, (latent, kv_norm), k_rope) = self.project(cx, &x, cx.documents.positions());
        let latent = Input::new(cx, &latent, None);
        let kv = self.kv_b.apply(cx, &latent);
        let (o, softmax) = cx.backend.attention(&self.shape, &q, &kv, &k_rope, cx.documents);
        // o itself is needed in backward, so what its product keeps is made of it there
        let y = self.o.of(&Cx { keeps: false, ..*cx }, &o);
        (y, MlaSaved { query, x: x.into_kept(), kv_norm, latent: latent.into_kept(), q, kv, k_rope, o, softmax })
    }

    fn backward(&self, cx: &Cx, s: MlaSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let x = s.x.expect("attention: its input is kept or recalled");
        let d_o = self.o.backward(cx, Some(Input::again(cx, &s.o, None)), dy, grads);
        let (mut dq, dkv, mut dk_rope) =
            cx.backend.attention_backward(&self.shape, &s.q, &s.kv, &s.k_rope, &s.o, &s.softmax, &d_o, cx.documents);
        let (shape, positions) = (&self.shape, cx.documents.positions());
        cx.backend.rope(&mut dq, shape.heads, shape.nope, cx.rope, positions, true);
        cx.backend.rope(&mut dk_rope, 1, 0, cx.rope, positions, true);
        let dlatent = self.kv_b.backward(cx, s.latent, dkv, grads);
        let dlatent = self.kv_norm.backward(cx, s.kv_norm, dlatent, grads);
        let mut dx = cx.backend.empty([s.o.rows(), cx.params.get(self.kv_a.w).cols()].into(), s.o.dtype());
        self.query.backward(cx, x.clone(), s.query, dq, &mut dx, grads);
        self.kv_a.backward_into(cx, x, cx.backend.join(&dlatent, &dk_rope), &mut dx, Write::Add, grads);
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, deepseek, tiny};

    #[test]
    fn attention_has_the_gradient_of_its_loss() {
        let layer = |specs: &mut Specs, config: &mut Config| {
            let v3 = deepseek(config).clone();
            Mla::new(specs, "attn", config, &v3)
        };
        check_gradients(&[5, 1, 3], 12, layer, tiny().hidden_size);
    }

    #[test]
    fn attention_without_query_compression_and_interleaving_has_the_gradient_of_its_loss() {
        let layer = |specs: &mut Specs, config: &mut Config| {
            let v3 = deepseek(config);
            v3.q_lora_rank = None;
            v3.rope_interleave = false;
            let v3 = v3.clone();
            Mla::new(specs, "attn", config, &v3)
        };
        check_gradients(&[4, 2], 12, layer, tiny().hidden_size);
    }
}
