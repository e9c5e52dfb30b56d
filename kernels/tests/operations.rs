//! Results have the same bits for any number of threads, on any CPU level, in any batch.

use smelt_kernels::gemm::Level;
use smelt_kernels::*;
use std::slice::from_ref;

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product::<usize>()).map(|i| random::normal(seed, 0, i as u64) as f32).collect();
    Tensor::new(shape, &values)
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.read::<f32>().iter().map(|x| x.to_bits()).collect()
}

const SHAPE: AttentionShape = AttentionShape { heads: 3, nope: 8, rope: 4, value: 6, scale: 0.3 };
const LATENT: usize = 10;

fn attention_inputs(documents: &DocumentBounds) -> [Tensor; 3] {
    let (n, s) = (documents.rows(), SHAPE);
    [(1, s.heads * (s.nope + s.rope)), (2, s.heads * (s.nope + s.value)), (3, s.rope)]
        .map(|(seed, d)| noise(seed, &[n, d]))
}

/// The latent form sums in another order: the design allows 1e-4, and here it stays within 2e-5.
#[test]
fn latent_attention_agrees_with_training_and_does_not_depend_on_the_batch() {
    let cpu = Cpu::new(2);
    let (s, lengths) = (SHAPE, [7, 40, 1]);
    let documents = Documents::new(&cpu, DocumentBounds::of_lengths(&lengths));
    let (n, width) = (documents.rows(), LATENT + s.rope);
    let q = noise(1, &[n, s.heads * (s.nope + s.rope)]);
    let (latents, k_rope) = (noise(2, &[n, LATENT]), noise(3, &[n, s.rope]));
    let kv_b = noise(4, &[s.heads * (s.nope + s.value), LATENT]);
    let mut kv = Tensor::empty([n, kv_b.rows()], DType::F32);
    cpu.gemm(Layout::Nt, &latents, &kv_b, &mut kv, Write::Set);
    let (expected, _) = cpu.attention(&s, &q, &kv, &k_rope, &documents);

    let cache = cpu.join(&latents, &k_rope);
    let part = |rows: std::ops::Range<usize>| {
        Tensor::new([rows.len(), width], &cache.read::<f32>()[rows.start * width..rows.end * width])
    };
    let parts: Vec<_> = documents.iter().map(|rows| (rows.clone(), part(rows))).collect();
    let whole: Vec<CachedRows> = parts
        .iter()
        .map(|(rows, cache)| CachedRows { rows: rows.clone(), pages: from_ref(cache), length: rows.len() })
        .collect();
    let o = cpu.latent_attention(&s, &q, &kv_b, &whole);
    for (a, b) in o.to_f64().iter().zip(expected.to_f64()) {
        assert!((a - b).abs() < 2e-5 * b.abs().max(1.0), "{a} {b}");
    }
    let alone = Cpu::new(1);
    for row in documents.iter().flat_map(|rows| rows.clone().map(move |row| (rows.start, row))) {
        let (start, row) = row;
        let q = alone.gather(&q, &Tensor::new([1], &[row as u32]));
        let seen = part(start..row + 1);
        let one = CachedRows { rows: 0..1, pages: from_ref(&seen), length: seen.rows() };
        let o1 = alone.latent_attention(&s, &q, &kv_b, &[one]);
        let wide = s.heads * s.value;
        assert_eq!(bits(&o1), bits(&o)[row * wide..(row + 1) * wide], "row {row}");
    }
}

/// Every operation on every level and thread count, as one list of bits.
fn everything(cpu: &Cpu) -> Vec<Vec<u32>> {
    let documents = Documents::new(cpu, DocumentBounds::of_lengths(&[150, 3, 200]));
    let n = documents.rows();
    let [q, kv, k_rope] = attention_inputs(&documents);
    let (o, softmax) = cpu.attention(&SHAPE, &q, &kv, &k_rope, &documents);
    let d_o = noise(5, &[n, o.cols()]);
    let (dq, dkv, dk) = cpu.attention_backward(&SHAPE, &q, &kv, &k_rope, &o, &softmax, &d_o, &documents);
    let (x, gain, dy) = (noise(6, &[n, 50]), noise(7, &[50]), noise(8, &[n, 50]));
    let (y, rstd) = cpu.rms_norm(&x, &gain, 1e-6);
    let mut dgain = Tensor::zeros([50], DType::F32);
    let dx = cpu.rms_norm_backward(&x, &rstd, &gain, &dy, &mut dgain);
    let half = noise(9, &[n, 25]);
    let (act, dact) = (cpu.swiglu(&x), cpu.swiglu_backward(&x, &half));
    let router = Router { experts: 12, expert_groups: 4, node_limit: 2, top_k: 3, normalise: true, scale: 2.5 };
    let routing = cpu.route(&router, &noise(10, &[n, 12]), &noise(11, &[12]));
    let rows = cpu.gather(&x, &routing.tokens);
    let mut sum = x.copy();
    cpu.combine(&rows, &routing, &mut sum);
    let (drows, dweights) = cpu.combine_backward(&rows, &routing, &dy);
    let dlogits = cpu.route_backward(&router, &routing, &dweights, None);
    let mut back = dy.copy();
    cpu.gather_backward(&drows, &routing.slots, &mut back);
    let (w, mut dw) = (noise(12, &[700, 50]), Tensor::zeros([700, 50], DType::F32));
    let targets = Tensor::new([n], &(0..n as u32).map(|i| i * 7 % 700).collect::<Vec<_>>());
    let head = cpu.head(&x, &w, &targets);
    let logp = Tensor::new([n], &head.logp.to_f32());
    let dhead = cpu.head_backward(
        head,
        &x,
        &w,
        &targets,
        &Tensor::new([n], &vec![0.1; n]),
        &Tensor::new([n], &vec![0.2; n]),
        &mut dw,
    );
    let mut square = Tensor::zeros([1], DType::F64);
    cpu.square_sum(&w, &mut square);
    let square = square.read::<f64>()[0];
    let (mut p, mut m, mut v) = (w.copy(), noise(13, &[700, 50]), noise(14, &[700, 50]));
    v.write::<f32>().iter_mut().for_each(|v| *v = v.abs());
    let hyper = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step: 3 };
    cpu.adamw(&hyper, &mut p, &dw, &Tensor::new([1], &[0.5]), &mut m, &mut v);
    let mut list: Vec<Vec<u32>> = [
        o,
        dq,
        dkv,
        dk,
        y,
        rstd,
        dgain,
        dx,
        act,
        dact,
        routing.weights,
        rows,
        sum,
        drows,
        dweights,
        dlogits,
        back,
        dw,
        logp,
        dhead,
        p,
        m,
        v,
    ]
    .iter()
    .map(bits)
    .collect();
    list.push(vec![square.to_bits() as u32, (square.to_bits() >> 32) as u32]);
    list.push(routing.ids.read().to_vec());
    list
}

#[test]
fn threads_and_cpu_level_change_no_bit() {
    let expected = everything(&Cpu::new(1).at(Level::Portable));
    for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
        for threads in [1, 2, 3] {
            let found = everything(&Cpu::new(threads).at(level));
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(found == expected, "result {i} at {level:?}, {threads} threads");
            }
        }
    }
}

/// Attention keeps the exponentials when they are at most 320 per query and head, and computes them again otherwise,
/// with the same bits. One document of 700 tokens has 380; with ten more of 100 tokens the average is 200.
#[test]
fn attention_has_the_same_bits_kept_or_computed_again() {
    let (cpu, s) = (Cpu::new(2), SHAPE);
    let gradients = |lengths: &[usize]| {
        let documents = &Documents::new(&cpu, DocumentBounds::of_lengths(lengths));
        let [q, kv, k_rope] = attention_inputs(documents);
        let (o, softmax) = cpu.attention(&s, &q, &kv, &k_rope, documents);
        let d_o = noise(5, &[documents.rows(), o.cols()]);
        let (dq, dkv, dk) = cpu.attention_backward(&s, &q, &kv, &k_rope, &o, &softmax, &d_o, documents);
        [o, dq, dkv, dk]
    };
    let again = gradients(&[700]);
    let kept = gradients(&[[700].as_slice(), &[100; 10]].concat());
    for (i, (again, kept)) in again.iter().zip(&kept).enumerate() {
        assert!(bits(again) == bits(kept)[..again.len()], "result {i}");
    }
}

/// A head with too many logits to keep computes them again, with the same bits: 8200 rows of 2100 are over the limit.
#[test]
fn the_head_has_the_same_bits_kept_or_computed_again() {
    let cpu = Cpu::new(2);
    let (n, v, d) = (8200, 2100, 4);
    let (x, w) = (noise(1, &[n, d]), noise(2, &[v, d]));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 31 % v as u32).collect();
    let ids = |ids: &[u32]| Tensor::new([ids.len()], ids);
    let numbers = |value: f64, n: usize| Tensor::new([n], &vec![value; n]);
    let whole = cpu.head(&x, &w, &ids(&targets));
    let mut dw = Tensor::zeros([v, d], DType::F32);
    let logp = whole.logp.to_f64();
    let dx = cpu.head_backward(whole, &x, &w, &ids(&targets), &numbers(-0.5, n), &numbers(0.01, n), &mut dw);
    let mut dw2 = Tensor::zeros([v, d], DType::F32);
    for rows in [0..4000usize, 4000..8200] {
        let part = cpu.gather(&x, &ids(&rows.clone().map(|i| i as u32).collect::<Vec<_>>()));
        let (n, targets) = (rows.len(), ids(&targets[rows.clone()]));
        let head = cpu.head(&part, &w, &targets);
        assert_eq!(head.logp.read::<f64>(), &logp[rows.clone()]);
        let dpart = cpu.head_backward(head, &part, &w, &targets, &numbers(-0.5, n), &numbers(0.01, n), &mut dw2);
        assert_eq!(bits(&dpart), bits(&dx)[rows.start * d..rows.end * d]);
    }
    assert_eq!(bits(&dw), bits(&dw2));
}
