//! The three products of a weight, in the precision of the pass.

use crate::{Cx, Grads, Param, Precision, WeightGemm};
use smelt_kernels::fp8::{Operand, Quantiser, Tile};
use smelt_kernels::{DType, Layout, Segments, Tensor, Write};

/// What products read, in the precision of the pass: lowered once for all weights that read it.
#[derive(Debug)]
pub(crate) struct Input {
    /// For forward.
    rows: Operand,
    /// For the gradients of the weights; None in a pass that no backward follows. It takes 4 bytes an element in f32, 2
    /// in bf16, 1 in FP8.
    kept: Option<Operand>,
}

impl Input {
    /// `segments`: those of the products that read it.
    pub(crate) fn new(cx: &Cx, x: &Tensor, segments: Option<&Segments>) -> Self {
        let Precision::Fp8(fp8) = cx.precision else {
            let rows = lower(cx, x, None, segments);
            return Self { kept: cx.keeps.then(|| rows.clone()), rows };
        };
        let [row, column] = [fp8.activations(Tile::Row), fp8.activations(Tile::Column)];
        if cx.keeps && row != column {
            let [rows, columns] = lower_both(cx, x, [row, column], segments);
            return Self { rows, kept: Some(columns) };
        }
        let rows = lower(cx, x, Some(row), segments);
        Self { kept: cx.keeps.then(|| rows.clone()), rows }
    }

    /// Of `swiglu(h)`.
    pub(crate) fn gated(cx: &Cx, h: &Tensor, segments: Option<&Segments>) -> Self {
        if let Precision::Fp8(fp8) = cx.precision {
            let how = [fp8.activations(Tile::Row), fp8.activations(Tile::Column)];
            if cx.keeps && how[0] != how[1] {
                expect_f32(cx, h);
                let mut stats = cx.stats.borrow_mut();
                let [rows, columns] = cx.backend.swiglu_lower(h, how, segments, stats.saturated(cx.backend));
                return Self { rows, kept: Some(columns) };
            }
        }
        Self::new(cx, &cx.backend.swiglu(h), segments)
    }

    /// What backward needs of it, if backward follows.
    pub(crate) fn into_kept(self) -> Option<Operand> {
        self.kept
    }

    /// What [`into_kept`](Self::into_kept) gives, from the same x.
    pub(crate) fn again(cx: &Cx, x: &Tensor, segments: Option<&Segments>) -> Operand {
        let how = match cx.precision {
            Precision::Fp8(fp8) => Some(fp8.activations(Tile::Column)),
            _ => None,
        };
        lower(cx, x, how, segments)
    }
}

/// The gradient of a product's result, in the precision of the pass.
pub(crate) struct Gradient {
    /// For the gradient of the input.
    rows: Operand,
    /// For the gradient of the weight.
    columns: Operand,
}

impl Gradient {
    pub(crate) fn new(cx: &Cx, dy: &Tensor, segments: Option<&Segments>) -> Self {
        if let Some(how) = Self::forms(cx) {
            let [rows, columns] = lower_both(cx, dy, how, segments);
            return Self { rows, columns };
        }
        let how = match cx.precision {
            Precision::Fp8(fp8) => Some(fp8.gradients(Tile::Row)),
            _ => None,
        };
        let rows = lower(cx, dy, how, segments);
        Self { columns: rows.clone(), rows }
    }

    /// Of h, when `swiglu(h)` has the gradient `dact`.
    pub(crate) fn gated(cx: &Cx, h: &Tensor, dact: &Tensor, segments: Option<&Segments>) -> Self {
        if let Some(how) = Self::forms(cx) {
            expect_f32(cx, h);
            let mut stats = cx.stats.borrow_mut();
            let [rows, columns] = cx.backend.swiglu_backward_lower(h, dact, how, segments, stats.saturated(cx.backend));
            return Self { rows, columns };
        }
        Self::new(cx, &cx.backend.swiglu_backward(h, dact), segments)
    }

    /// Its two forms in FP8, where they differ.
    fn forms(cx: &Cx) -> Option<[Quantiser; 2]> {
        let Precision::Fp8(fp8) = cx.precision else { return None };
        let how = [fp8.gradients(Tile::Row), fp8.gradients(Tile::Column)];
        (how[0] != how[1]).then_some(how)
    }
}

/// `y = x·Wᵀ` with W `[out, in]`, or per segment with `W[e]` of `[E, out, in]`.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub w: Param,
    pub segments: Option<&'a Segments>,
}

impl Product<'_> {
    pub(crate) fn forward(self, cx: &Cx, x: &Input) -> Tensor {
        let w = cx.params.get(self.w);
        let out = if self.segments.is_some() { w.dims::<3>("experts")[1] } else { w.rows() };
        let (rows, dtype) = match &x.rows {
            Operand::Plain(x) => (x.rows(), if x.dtype() == DType::Bf16 { DType::F32 } else { x.dtype() }),
            Operand::Fp8(x) => (x.q.rows(), DType::F32),
        };
        let mut y = cx.backend.empty([rows, out].into(), dtype);
        self.multiply(cx, Layout::Nt, &x.rows, &mut y, Write::Set);
        y
    }

    /// `dx = dy·W`, or `+=`, and the weight's gradient. `x`: what forward kept.
    pub(crate) fn backward(self, cx: &Cx, x: Operand, dy: Gradient, dx: &mut Tensor, write: Write, grads: &mut Grads) {
        let Gradient { rows, columns } = dy;
        self.multiply(cx, Layout::Nn, &rows, dx, write);
        grads.add(cx, WeightGemm { param: self.w, dy: columns, x, segments: self.segments.cloned() });
    }

    fn multiply(self, cx: &Cx, layout: Layout, a: &Operand, c: &mut Tensor, write: Write) {
        let w = cx.params.get(self.w);
        match (a, self.segments) {
            (Operand::Plain(a), None) if a.dtype() != DType::Bf16 => cx.backend.gemm(layout, a, w, c, write),
            (Operand::Plain(a), Some(segments)) if a.dtype() != DType::Bf16 => {
                cx.backend.grouped_gemm(layout, a, w, segments, c, write);
            }
            _ => cx.backend.low_gemm(layout, a, w, self.segments, c, write),
        }
    }
}

/// One side of a product, in the precision of the pass.
///
/// # Panics
/// When a lower precision is asked of anything but F32.
fn lower(cx: &Cx, x: &Tensor, how: Option<Quantiser>, segments: Option<&Segments>) -> Operand {
    if cx.precision == Precision::Fp32 {
        return Operand::Plain(x.clone());
    }
    expect_f32(cx, x);
    cx.backend.lower(x, how, segments, cx.stats.borrow_mut().saturated(cx.backend))
}

fn lower_both(cx: &Cx, x: &Tensor, how: [Quantiser; 2], segments: Option<&Segments>) -> [Operand; 2] {
    expect_f32(cx, x);
    cx.backend.lower_both(x, how, segments, cx.stats.borrow_mut().saturated(cx.backend))
}

fn expect_f32(cx: &Cx, x: &Tensor) {
    let (dtype, precision) = (x.dtype(), cx.precision);
    assert!(dtype == DType::F32, "product: {dtype:?} rows cannot be lowered to {precision:?}, expected F32");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Specs;
    use crate::{Fp8, GradientTiles, Init, Params, Recomputed, Scaling, Stats};
    use smelt_kernels::{Cpu, DocumentBounds, Documents, Reference, bf16, random};
    use std::cell::RefCell;
    use std::sync::Arc;

    const N: usize = 150;
    const OUT: usize = 140;
    const IN: usize = 200;

    fn noise(seed: u64, rows: usize, cols: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * cols).map(|i| random::normal(seed, 0, i as u64) as f32).collect();
        Tensor::new([rows, cols], &values)
    }

    /// The nearest E4M3 value, ties to even, by its steps: 2⁻³ of the power of two below, never under 2⁻⁹.
    fn e4m3(x: f32) -> f64 {
        let a = f64::from(x).abs().min(448.0);
        let step = (-9..=5).map(|e| 2f64.powi(e)).find(|step| a < 16.0 * step).unwrap_or(32.0);
        ((a / step).round_ties_even() * step).copysign(x.into())
    }

    /// What `x` is worth in tiles of `height × width`.
    fn tiles(x: &Tensor, [height, width]: [usize; 2], floor: f32) -> Vec<f64> {
        let (n, d, x) = (x.rows(), x.cols(), x.read::<f32>());
        let mut y = vec![0.0; n * d];
        for (top, left) in (0..n).step_by(height).flat_map(|i| (0..d).step_by(width).map(move |j| (i, j))) {
            let places = (top..n.min(top + height)).flat_map(|i| (left..d.min(left + width)).map(move |j| i * d + j));
            let scale = places.clone().map(|at| x[at].abs()).fold(floor, f32::max) / 448.0;
            places.for_each(|at| y[at] = e4m3(x[at] / scale) * f64::from(scale));
        }
        y
    }

    /// y, dx and dw of one linear layer, and the worth of the five sides they are made of: x, w, dy for dx, dy for dw,
    /// x for dw.
    fn check(precision: Precision, sides: impl Fn(&Tensor, &Tensor, &Tensor) -> [Vec<f64>; 5]) {
        let mut specs = Specs::default();
        let w = specs.linear("w".into(), &[OUT, IN]);
        let params = Params::init(Arc::new(specs), &Init { seed: 3, embedding: 1.0, router: 1.0, weight: None });
        let (x, dy, cpu) = (noise(1, N, IN), noise(2, N, OUT), Cpu::new(2));
        let (documents, stats) = (Documents::new(&cpu, DocumentBounds::of_lengths(&[N])), RefCell::default());
        let rope = smelt_kernels::Rope::new(&[1.0], 1, 1.0, true);
        let cx = Cx {
            backend: &cpu,
            params: &params,
            documents: &documents,
            rope: &rope,
            balance: crate::Balance::NONE,
            precision,
            recompute: Recomputed::None,
            keeps: true,
            stats: &stats,
        };
        let product = Product { w, segments: None };
        let mut grads = Grads::zeros(&cpu, &params);
        let input = Input::new(&cx, &x, None);
        let y = product.forward(&cx, &input);
        let kept = input.into_kept().unwrap();
        let mut dx = Tensor::empty([N, IN], DType::F32);
        product.backward(&cx, kept.clone(), Gradient::new(&cx, &dy, None), &mut dx, Write::Set, &mut grads);
        let mut held = Grads::zeros(&cpu, &params).holding();
        product.backward(&cx, kept.clone(), Gradient::new(&cx, &dy, None), &mut dx, Write::Set, &mut held);
        assert!(held.get(w).read::<f32>().iter().all(|&x| x == 0.0), "a product that waits has done nothing yet");
        let work = held.take_deferred();
        held.run(&cx, work);
        assert_eq!(held.get(w).read::<f32>(), grads.get(w).read::<f32>(), "at once, and held back");
        let once = grads.get(w).copy();
        grads.clear();
        product.backward(&cx, kept.clone(), Gradient::new(&cx, &dy, None), &mut dx, Write::Set, &mut grads);
        assert_eq!(grads.get(w).read::<f32>(), once.read::<f32>(), "in memory that held another gradient");

        let [xf, wf, dyr, dyc, xc] = sides(&x, params.get(w), &dy);
        let sum = |k: usize, term: &dyn Fn(usize) -> f64| (0..k).map(term).sum::<f64>();
        // the sides are exact; sums of up to 200 terms in f32 round to within 1e-6 of the norm
        let close = |what: &str, found: &Tensor, expected: &dyn Fn(usize, usize) -> f64| {
            let (mut off, mut size) = (0.0, 0.0);
            for (at, &found) in found.read::<f32>().iter().enumerate() {
                let expected = expected(at / found_cols(what), at % found_cols(what));
                off += (f64::from(found) - expected).powi(2);
                size += expected.powi(2);
            }
            assert!((off / size).sqrt() < 1e-6, "{precision:?}: {what} is off by {}", (off / size).sqrt());
        };
        fn found_cols(what: &str) -> usize {
            if what == "y" { OUT } else { IN }
        }
        close("y", &y, &|i, j| sum(IN, &|k| xf[i * IN + k] * wf[j * IN + k]));
        close("dx", &dx, &|i, j| sum(OUT, &|k| dyr[i * OUT + k] * wf[k * IN + j]));
        close("dw", grads.get(w), &|i, j| sum(N, &|k| dyc[k * OUT + i] * xc[k * IN + j]));
    }

    #[test]
    fn a_linear_layer_in_fp8_is_the_loops_over_its_quantised_sides() {
        const ALL: usize = 1000;
        let (small, none) = (1e-4, f32::MIN_POSITIVE * 448.0);
        for (scaling, gradients, [row, column, block, dy_row, dy_column]) in [
            (Scaling::Tile, GradientTiles::Tile, [[1, 128], [128, 1], [128, 128], [1, 128], [128, 1]]),
            (Scaling::Tile, GradientTiles::Block, [[1, 128], [128, 1], [128, 128], [128, 128], [128, 128]]),
            (Scaling::Tensor, GradientTiles::Tile, [[ALL, ALL]; 5]),
        ] {
            let precision = Precision::Fp8(Fp8 { scaling, gradients, power_of_two: false });
            check(precision, |x, w, dy| {
                let gradient = |tile| tiles(dy, tile, none);
                let [x_row, x_column] = [row, column].map(|tile| tiles(x, tile, small));
                [x_row, tiles(w, block, none), gradient(dy_row), gradient(dy_column), x_column]
            });
        }
    }

    #[test]
    fn a_linear_layer_in_bf16_is_the_loops_over_its_rounded_sides() {
        let rounded = |x: &Tensor| x.read::<f32>().iter().map(|&x| bf16::from_f32(x).to_f64()).collect::<Vec<_>>();
        check(Precision::BF16, |x, w, dy| [rounded(x), rounded(w), rounded(dy), rounded(dy), rounded(x)]);
    }

    /// A product that was asked in FP8 and done in full precision would pass every check of a loss.
    #[test]
    #[should_panic(expected = "product: F64 rows cannot be lowered to Fp8")]
    fn rows_that_cannot_be_lowered_are_refused() {
        let mut specs = Specs::default();
        let w = specs.linear("w".into(), &[OUT, IN]);
        let params = Params::init(Arc::new(specs), &Init { seed: 3, embedding: 1.0, router: 1.0, weight: None });
        let (params, stats) = (params.copy_as(DType::F64), RefCell::default());
        let documents = Documents::new(&Reference, DocumentBounds::default());
        let rope = smelt_kernels::Rope::new(&[1.0], 1, 1.0, true);
        let cx = Cx {
            backend: &Cpu::new(1),
            params: &params,
            documents: &documents,
            rope: &rope,
            balance: crate::Balance::NONE,
            precision: Precision::Fp8(Fp8::default()),
            recompute: Recomputed::None,
            keeps: true,
            stats: &stats,
        };
        let input = Input::new(&cx, &noise(1, 2, IN).cast(DType::F64), None);
        Product { w, segments: None }.forward(&cx, &input);
    }

    /// FP8 has no infinity: without the note a loss would look sound.
    #[test]
    fn an_infinite_value_saturates_and_is_noted() {
        let mut specs = Specs::default();
        let w = specs.linear("w".into(), &[OUT, IN]);
        let params = Params::init(Arc::new(specs), &Init { seed: 3, embedding: 1.0, router: 1.0, weight: None });
        let (cpu, rope) = (Cpu::new(1), smelt_kernels::Rope::new(&[1.0], 1, 1.0, true));
        let documents = Documents::new(&cpu, DocumentBounds::default());
        for value in [1.0, f32::INFINITY, f32::NEG_INFINITY] {
            let stats = RefCell::<Stats>::default();
            let precision = Precision::Fp8(Fp8::default());
            let (backend, params, documents) = (&cpu, &params, &documents);
            let cx = Cx {
                backend,
                params,
                documents,
                rope: &rope,
                balance: crate::Balance::NONE,
                precision,
                recompute: Recomputed::None,
                keeps: true,
                stats: &stats,
            };
            let mut x = noise(1, 2, IN);
            x.write::<f32>()[7] = value;
            let y = Product { w, segments: None }.forward(&cx, &Input::new(&cx, &x, None));
            assert!(y.read::<f32>().iter().all(|y| y.is_finite()));
            let saturated = stats.borrow_mut().saturated(&cpu).read::<u32>()[0];
            assert_eq!(saturated == 1, value.is_infinite(), "{value}");
        }
    }
}
