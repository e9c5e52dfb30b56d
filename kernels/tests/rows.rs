//! The property that everything else builds on: a row has the same bits in any batch.
//!
//! The reference is the chain itself, in a loop. Equality is to the bit, so there is no tolerance to choose.

use smelt_kernels::Write;
use smelt_kernels::gemm::{Bf16, Causal, Factor, Gemm, Level, PackedB, RightSide, View};

/// Numbers of both signs over many magnitudes; a small share are zero or subnormal.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let number = |bits: u64| match bits % 97 {
        0 => 0.0,
        1 => f32::from_bits((bits >> 32) as u32 & 0x807f_ffff),
        _ => (bits >> 40) as f32 / (1 << 23) as f32 - 1.0,
    };
    (0..len).map(|_| number(next())).collect()
}

trait Test: Factor {
    fn of(x: f32) -> Self;
}

impl Test for f32 {
    fn of(x: f32) -> f32 {
        x
    }
}

impl Test for Bf16 {
    fn of(x: f32) -> Bf16 {
        Bf16::from_f32(x)
    }
}

fn matrix<T: Test>(seed: u64, len: usize) -> Vec<T> {
    noise(seed, len).into_iter().map(T::of).collect()
}

/// The definition: one chain per element, ascending k.
fn chain<T: Factor>(a: View<T>, b: View<T>, c: &mut [f32]) {
    for i in 0..a.rows {
        for j in 0..b.cols {
            let c = &mut c[i * b.cols + j];
            for k in (0..a.cols).step_by(T::PER_CELL) {
                let last = k + T::PER_CELL - 1;
                let pair =
                    |at: &dyn Fn(usize) -> T| T::cell([at(k), if last < a.cols { at(last) } else { T::default() }]);
                *c = T::step(*c, pair(&|k| a.at(i, k)), pair(&|k| b.at(k, j)));
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn all_levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_supported())
}

/// Every layout, level, thread count, way of passing B, `Set` and `Add`, against the chain.
fn every_way_gives_the_chain<T: Test>(seed: u64, m: usize, n: usize, k: usize) {
    let (a, b, start) = (matrix::<T>(seed, m * k), matrix::<T>(seed + 1, k * n), noise(seed + 2, m * n));
    for layout in 0..4 {
        let a = if layout & 1 == 0 { View::new(&a, m, k) } else { View::new(&a, k, m).t() };
        let b = if layout & 2 == 0 { View::new(&b, k, n) } else { View::new(&b, n, k).t() };
        let (mut set, mut add) = (vec![0.0; m * n], start.clone());
        chain(a, b, &mut set);
        chain(a, b, &mut add);
        let packed = PackedB::new(b);
        for level in all_levels() {
            for threads in 1..=2 {
                let gemm = Gemm::new(threads).at(level);
                for operand in [RightSide::from(&packed), RightSide::from(b)] {
                    let (mut c, mut d) = (vec![f32::NAN; m * n], start.clone());
                    gemm.multiply(a, operand, &mut c, Write::Set);
                    gemm.multiply(a, operand, &mut d, Write::Add);
                    assert!(
                        bits(&c) == bits(&set),
                        "set: {level:?}, {threads} threads, layout {layout}, [{m},{n},{k}]"
                    );
                    assert!(
                        bits(&d) == bits(&add),
                        "add: {level:?}, {threads} threads, layout {layout}, [{m},{n},{k}]"
                    );
                }
            }
        }
    }
}

/// Rows of a batch, alone and in smaller batches from any position.
fn a_row_is_the_same_in_any_batch<T: Test>(seed: u64, n: usize, k: usize) {
    let rows = 512;
    let (x, w) = (matrix::<T>(seed, rows * k), matrix::<T>(seed + 1, n * k));
    let (x, w) = (View::new(&x, rows, k), PackedB::new(View::new(&w, n, k).t()));
    let gemms = [Gemm::new(1), Gemm::new(2)];
    let mut whole = vec![0.0; rows * n];
    gemms[1].multiply(x, &w, &mut whole, Write::Set);
    for m in 1..=70 {
        let first = (seed as usize * 31 + m * 97) % (rows - m + 1);
        for gemm in &gemms {
            let mut part = vec![0.0; m * n];
            gemm.multiply(x.slice(first, first + m), &w, &mut part, Write::Set);
            assert!(bits(&part) == bits(&whole[first * n..(first + m) * n]), "{m} rows from {first}, n {n}, k {k}");
        }
    }
}

/// Shapes drawn from a fixed stream, so that a failure is reproducible.
fn shapes(limits: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let draw = |case: usize, dim: usize| (noise((case * 3 + dim + 1) as u64, 2)[1].abs() * 1e4) as usize;
    (0..24).map(move |case| std::array::from_fn(|dim| 1 + draw(case, dim) % limits[dim]))
}

#[test]
fn every_way_gives_the_chain_of_any_shape() {
    for (seed, [m, n, k]) in shapes([40, 200, 90]).enumerate() {
        every_way_gives_the_chain::<f32>(seed as u64, m, n, k);
        every_way_gives_the_chain::<Bf16>(seed as u64, m, n, k);
    }
}

#[test]
fn a_row_is_the_same_in_any_batch_of_any_shape() {
    for (seed, [n, k, _]) in shapes([200, 300, 1]).take(6).enumerate() {
        a_row_is_the_same_in_any_batch::<f32>(seed as u64, n, k);
        a_row_is_the_same_in_any_batch::<Bf16>(seed as u64, n, 2 * k - 1);
    }
}

#[test]
fn blocks_over_k_and_many_tasks_change_no_bit() {
    every_way_gives_the_chain::<f32>(1, 50, 400, 780); // 3 blocks of K, 2 of panels, above the serial cutoff
    every_way_gives_the_chain::<Bf16>(2, 50, 400, 1561);
}

#[test]
fn empty_shapes_are_fine() {
    for (m, n, k) in [(0, 5, 3), (5, 0, 3), (5, 3, 0), (0, 0, 0)] {
        every_way_gives_the_chain::<f32>(3, m, n, k);
        every_way_gives_the_chain::<Bf16>(3, m, n, k);
    }
}

#[test]
fn two_halves_of_a_batch_give_the_gradient_of_the_whole() {
    let (rows, out, inner) = (300, 130, 70);
    let (dy, x) = (noise(4, rows * out), noise(5, rows * inner));
    let (dy, x) = (View::new(&dy, rows, out), View::new(&x, rows, inner));
    let gemm = Gemm::new(2);
    let (mut whole, mut halves) = (vec![0.0; out * inner], vec![0.0; out * inner]);
    gemm.multiply(dy.t(), x, &mut whole, Write::Add);
    gemm.multiply(dy.slice(0, 137).t(), x.slice(0, 137), &mut halves, Write::Add);
    gemm.multiply(dy.slice(137, rows).t(), x.slice(137, rows), &mut halves, Write::Add);
    assert!(bits(&whole) == bits(&halves));
}

#[test]
fn callers_who_share_a_pool_do_not_disturb_each_other() {
    let (m, n, k) = (60, 200, 300); // above the serial cutoff
    let (a, b) = (noise(6, m * k), noise(7, k * n));
    let (a, b) = (View::new(&a, m, k), View::new(&b, k, n));
    let mut alone = vec![0.0; m * n];
    Gemm::new(1).multiply(a, b, &mut alone, Write::Set);
    let gemm = Gemm::new(2);
    let call = || {
        for _ in 0..200 {
            let mut c = vec![f32::NAN; m * n];
            gemm.multiply(a, b, &mut c, Write::Set);
            assert!(bits(&c) == bits(&alone));
        }
    };
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(call))));
}

/// The part of a product that a causal mask leaves has the bits of the whole product, for every blocking: the products
/// of attention for a block of queries that begins at `first`, with more keys than a block of K holds.
#[test]
fn a_causal_product_is_a_part_of_the_whole() {
    const STRIDE: usize = 1024 + 16;
    for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
        let gemm = Gemm::new(1).at(level);
        for (first, count, width) in [(0, 1, 3), (0, 48, 24), (48, 20, 32), (900, 48, 40), (960, 64, 70), (0, 500, 5)] {
            let (last, mut scores) = (first + count, noise(1, count * STRIDE));
            for (i, row) in scores.chunks_mut(STRIDE).enumerate() {
                row[first + i + 1..].fill(0.0);
            }
            let scores = View::strided(&scores, count, last, STRIDE);
            let (queries, keys) = (noise(2, count * width), noise(3, last * width));
            let (queries, keys) = (View::new(&queries, count, width), View::new(&keys, last, width));
            let both = |a: View<f32>, b: View<f32>, write, causal| {
                [Causal::All, causal].map(|causal| {
                    let mut c = vec![0.5; a.rows * b.cols];
                    gemm.alone_into(a, b, &mut c, b.cols, write, causal);
                    c
                })
            };
            let what = format!("{level:?}, {count} from {first} by {width}");
            for write in [Write::Set, Write::Add] {
                let [whole, part] = both(scores, keys, write, Causal::Before { first });
                assert_eq!(bits(&part), bits(&whole), "before, {write:?}, {what}");
                let [whole, part] = both(queries, keys.t(), write, Causal::Columns { first });
                for i in 0..count {
                    let seen = i * last..i * last + first + i + 1;
                    assert_eq!(bits(&part[seen.clone()]), bits(&whole[seen]), "columns, {write:?}, {what}");
                }
                let [whole, part] = both(scores.t(), queries, write, Causal::After { first });
                assert_eq!(bits(&part), bits(&whole), "after, {write:?}, {what}");
            }
        }
    }
}
