//! Grouped-query attention has the same bits for any number of threads, on any CPU level, in any batch.

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

/// Three query heads per key-value head, one, and all on one.
const SHAPES: [GroupedShape; 3] = [
    GroupedShape { heads: 6, kv_heads: 2, dim: 10, scale: 0.3 },
    GroupedShape { heads: 3, kv_heads: 3, dim: 8, scale: 0.4 },
    GroupedShape { heads: 5, kv_heads: 1, dim: 16, scale: 0.2 },
];

fn inputs(s: &GroupedShape, n: usize) -> [Tensor; 3] {
    [(1, s.heads), (2, s.kv_heads), (3, s.kv_heads)].map(|(seed, heads)| noise(seed, &[n, heads * s.dim]))
}

/// The cached form agrees with training's, and a row has the same bits alone, in its prompt and beside other requests.
/// 300 rows are more than a block.
#[test]
fn cached_attention_agrees_with_training_and_does_not_depend_on_the_batch() {
    let (cpu, alone) = (Cpu::new(2), Cpu::new(1));
    let documents = Documents::new(&cpu, DocumentBounds::of_lengths(&[7, 300, 1]));
    for s in SHAPES {
        let [q, k, v] = inputs(&s, documents.rows());
        let (expected, _) = cpu.grouped_attention(&s, &q, &k, &v, &documents);
        let (cache, width) = (cpu.join(&k, &v), 2 * s.kv_heads * s.dim);
        let part = |rows: std::ops::Range<usize>| {
            Tensor::new([rows.len(), width], &cache.read::<f32>()[rows.start * width..rows.end * width])
        };
        let parts: Vec<_> = documents.iter().map(|rows| (rows.clone(), part(rows))).collect();
        let requests = parts.iter().map(|(rows, cache)| CachedRows {
            rows: rows.clone(),
            pages: from_ref(cache),
            length: rows.len(),
        });
        let o = cpu.cached_attention(&s, &q, &requests.collect::<Vec<_>>());
        for (a, b) in o.to_f64().iter().zip(expected.to_f64()) {
            assert!((a - b).abs() < 1e-5, "{s:?}: {a} {b}");
        }
        for (start, row) in documents.iter().flat_map(|rows| rows.clone().map(move |row| (rows.start, row))) {
            let q = alone.gather(&q, &Tensor::new([1], &[row as u32]));
            let seen = part(start..row + 1);
            let one = CachedRows { rows: 0..1, pages: from_ref(&seen), length: seen.rows() };
            let wide = s.heads * s.dim;
            let o1 = alone.cached_attention(&s, &q, &[one]);
            assert_eq!(bits(&o1), bits(&o)[row * wide..(row + 1) * wide], "{s:?}, row {row}");
        }
    }
}

/// Forward, backward, cache and biases, as one list of bits.
fn everything(cpu: &Cpu) -> Vec<Vec<u32>> {
    let documents = Documents::new(cpu, DocumentBounds::of_lengths(&[150, 3, 200]));
    let n = documents.rows();
    let mut list = Vec::new();
    for s in SHAPES {
        let [q, k, v] = inputs(&s, n);
        let (o, softmax) = cpu.grouped_attention(&s, &q, &k, &v, &documents);
        let d_o = noise(5, &[n, o.cols()]);
        let (dq, dk, dv) = cpu.grouped_attention_backward(&s, &q, &k, &v, &o, &softmax, &d_o, &documents);
        let cache = cpu.join(&k, &v);
        let cached = cpu.cached_attention(&s, &q, &[CachedRows { rows: 0..n, pages: &[cache], length: n }]);
        list.extend([o, dq, dk, dv, cached]);
    }
    let (mut y, bias, mut dbias) = (noise(6, &[900, 50]), noise(7, &[50]), noise(8, &[50]));
    cpu.bias_backward(&y, &mut dbias);
    cpu.bias(&mut y, &bias);
    list.extend([y, dbias]);
    list.iter().map(bits).collect()
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
