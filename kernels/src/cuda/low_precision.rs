//! Products in lower precision.
//!
//! Operands have a layout of their own here. Rows are padded with zeros to 128 bytes: `Operand::Plain` holds bf16
//! `[N, pitch]`, FP8 tiled along features holds E4M3 `[N, pitch]` with scales as on the CPU. FP8 tiled along tokens
//! holds E4M3 `[D, T]`, transposed, where the tokens of each segment begin at a multiple of 128, and scales
//! `[T / 128, D]`.

use super::device::Cuda;
use super::launch::{Arg, flag, int, long};
use super::products::{SIDE, tiles};
use super::rows::expect_f32;
use super::tensor_cores::Product;
use crate::backend::{Layout, Write};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser, Role, Scaled, TILE, Tile};
use crate::segments::Segments;
use crate::tensor::Tensor;
use std::sync::Arc;

/// Elements of a padded row of bf16, and of E4M3.
pub(super) fn pitch_of_bf16(cols: usize) -> usize {
    cols.next_multiple_of(64)
}
pub(super) fn pitch_of_e4m3(cols: usize) -> usize {
    cols.next_multiple_of(TILE)
}

/// A weight in lower precision, for the two products that read it.
pub(super) struct Lowered {
    pub(super) how: Option<Quantiser>,
    pub(super) experts: usize,
    /// `[E, out, pitch]`
    pub(super) nt: Tensor,
    /// `[E, in, pitch]`; the tensor cores read bf16 of `nt` the other way.
    pub(super) nn: Option<Tensor>,
    /// Of FP8: `[E, ⌈out/128⌉, ⌈in/128⌉]`, and transposed.
    pub(super) scales: Option<(Tensor, Tensor)>,
}

/// The rows of an operation that has no segments, as one.
pub(super) struct Ends<'a> {
    own: Option<Tensor>,
    segments: Option<&'a Segments>,
    pub count: usize,
}

impl Ends<'_> {
    pub(super) fn tensor(&self) -> &Tensor {
        self.segments.map_or_else(|| self.own.as_ref().expect("made without segments"), Segments::ends)
    }
}

impl Cuda {
    pub(super) fn ends<'a>(&self, segments: Option<&'a Segments>, rows: usize) -> Ends<'a> {
        let own = segments.is_none().then(|| {
            let mut ends = self.make([1], DType::U32);
            self.fill_all(&mut ends, rows as f64);
            ends
        });
        Ends { own, segments, count: segments.map_or(1, Segments::count) }
    }

    pub(super) fn lower_operand(
        &self,
        x: &Tensor,
        how: Option<Quantiser>,
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> Operand {
        expect_f32("lower", x);
        match how {
            None => Operand::Plain(self.round(x, x.rows())),
            Some(how) => Operand::Fp8(self.quantise(x, how, segments, saturated)),
        }
    }

    /// bf16 `[rows, pitch]`
    pub(super) fn round(&self, x: &Tensor, rows: usize) -> Tensor {
        let (d, pitch) = (x.cols(), pitch_of_bf16(x.cols()));
        let mut y = self.make([rows, pitch], DType::Bf16);
        self.each("round_rows", rows * pitch, &[self.read(x), self.write(&mut y), long(rows), int(d), int(pitch)]);
        y
    }

    fn quantise(&self, x: &Tensor, how: Quantiser, segments: Option<&Segments>, saturated: &mut Tensor) -> Scaled {
        let (n, d) = (x.rows(), x.cols());
        let segments = segments.filter(|_| how.tile != Tile::Tensor);
        if let Some(segments) = segments {
            assert!(segments.rows() == n, "lower: x has {n} rows, its segments {}", segments.rows());
        }
        let (pitch, across) = (pitch_of_e4m3(d), d.div_ceil(TILE));
        let (role, power) = (Arg::Int(how.role as i32), flag(how.power_of_two));
        let ends = self.ends(segments, n);
        let bands = tiles(n, ends.count, TILE);
        match how.tile {
            Tile::Row => {
                let (mut q, mut scale) = (self.make([n, pitch], DType::E4m3), self.make([n, across], DType::F32));
                let flag = self.write(saturated);
                let (to, scales) = (self.write(&mut q), self.write(&mut scale));
                let args = [self.read(x), to, scales, flag, long(n), int(d), int(pitch), role, power];
                self.launch("quantise_rows", [(n * across).div_ceil(8), 1, 1], 0, &args);
                Scaled { q, scale, how }
            }
            Tile::Column => {
                let tokens = bands * TILE;
                let (mut q, mut scale) = (self.make([d, tokens], DType::E4m3), self.make([bands, d], DType::F32));
                let args = [
                    self.read(x),
                    self.read(ends.tensor()),
                    int(ends.count),
                    self.write(&mut q),
                    self.write(&mut scale),
                    self.write(saturated),
                    int(d),
                    long(tokens),
                    role,
                    power,
                ];
                self.launch("quantise_columns", [bands, d.div_ceil(64), 1], 0, &args);
                Scaled { q, scale, how }
            }
            Tile::Block | Tile::Tensor => {
                let (q, scale) = self.quantise_blocks(x, how, &ends, bands, saturated);
                let scale = if how.tile == Tile::Tensor { self.first_scale(&scale) } else { scale };
                Scaled { q, scale, how }
            }
        }
    }

    /// By 128×128 tiles, or all of each segment with one scale, which every tile then has.
    fn quantise_blocks(
        &self,
        x: &Tensor,
        how: Quantiser,
        ends: &Ends,
        bands: usize,
        saturated: &mut Tensor,
    ) -> (Tensor, Tensor) {
        let (n, d) = (x.rows(), x.cols());
        let (pitch, across) = (pitch_of_e4m3(d), d.div_ceil(TILE));
        let (role, power) = (Arg::Int(how.role as i32), flag(how.power_of_two));
        let (from, of_ends, count) = (self.read(x), self.read(ends.tensor()), int(ends.count));
        let mut q = self.make([n, pitch], DType::E4m3);
        if how.tile == Tile::Block {
            let mut scale = self.make([bands, across], DType::F32);
            let to = [self.write(&mut q), self.write(&mut scale), self.write(saturated)];
            let args = [from, of_ends, count].into_iter().chain(to).chain([int(d), int(pitch), role, power]);
            self.launch("quantise_blocks", [bands, across, 1], 4 * TILE * TILE, &args.collect::<Vec<_>>());
            return (q, scale);
        }
        // an empty matrix has one scale too
        let shape = [bands.max(1), across.max(1)];
        let (mut largest, mut scale) = (self.make(shape, DType::U32), self.make(shape, DType::F32));
        self.fill_all(&mut largest, 0.0);
        let args = [from, of_ends, count, self.write(&mut largest), self.write(saturated), int(d)];
        self.launch("tile_maxima", [bands, across, 1], 0, &args);
        let tiles = long(largest.len() / ends.count);
        let args = [self.read(&largest), self.write(&mut scale), tiles, role, power];
        self.launch("scales_of", [ends.count, 1, 1], 0, &args);
        let args = [from, of_ends, count, self.read(&scale), self.write(&mut q), int(d), int(pitch)];
        self.launch("quantise_tiles", [bands, across, 1], 0, &args);
        (q, scale)
    }

    /// The one scale of a matrix whose tiles all have it.
    fn first_scale(&self, scale: &Tensor) -> Tensor {
        let mut one = self.make([1, 1], DType::F32);
        let args = [self.read(scale), long(1), self.write(&mut one), long(1), long(1), int(1)];
        self.each_row("copy_columns", [1, 1], &args);
        one
    }

    /// Lowers `w`, and keeps the result until `w` is written.
    pub(super) fn lowered(&self, w: &Tensor, how: Option<Quantiser>, experts: usize) -> Arc<Lowered> {
        let (out, inner) = (w.rows() / experts, w.cols());
        let make = |old: Option<Lowered>| {
            drop(old); // its memory serves the new one
            match how {
                None => {
                    let nt = self.round(w, w.rows());
                    let is_needed = !self.has_tensor_cores(inner, experts);
                    let nn = is_needed
                        .then(|| self.transposed(&nt, [experts, out, inner], "transpose_2", pitch_of_bf16(out)));
                    Lowered { how, experts, nt, nn, scales: None }
                }
                Some(quantiser) => {
                    let segments = self.equal_segments(experts, out);
                    let ends = self.ends(Some(&segments), w.rows());
                    let (bands, across) = (out.div_ceil(TILE), inner.div_ceil(TILE));
                    let mut unused = self.make([1], DType::U32);
                    self.fill_all(&mut unused, 0.0);
                    let matrix = w.clone().reshape([w.rows(), inner]);
                    let (nt, scale) = self.quantise_blocks(&matrix, quantiser, &ends, experts * bands, &mut unused);
                    let nn = self.transposed(&nt, [experts, out, inner], "transpose_1", pitch_of_e4m3(out));
                    let mut turned = self.make([experts, across, bands], DType::F32);
                    let args = [self.read(&scale), self.write(&mut turned), int(bands), int(across)];
                    self.launch("transpose_scales", [(bands * across).div_ceil(256), 1, experts], 0, &args);
                    Lowered { how, experts, nt, nn: Some(nn), scales: Some((scale, turned)) }
                }
            }
        };
        w.derive(|lowered: &Lowered| lowered.how == how && lowered.experts == experts, make)
    }

    /// Segments of `rows` rows each.
    fn equal_segments(&self, count: usize, rows: usize) -> Segments {
        let ends: Vec<u32> = (1..=count).map(|e| (e * rows) as u32).collect();
        Segments::on_device(self.upload_one(&Tensor::new([count], &ends)), count * rows)
    }

    /// Each of `[experts, rows, cols]` transposed, with rows padded to `pitch`.
    fn transposed(&self, x: &Tensor, [experts, rows, cols]: [usize; 3], kernel: &'static str, pitch: usize) -> Tensor {
        let mut y = self.make([experts * cols, pitch], x.dtype());
        let args = [self.read(x), self.write(&mut y), int(rows), int(cols), long(x.cols()), long(pitch)];
        self.launch(kernel, [cols.div_ceil(32), pitch.div_ceil(32), experts], 0, &args);
        y
    }

    pub(super) fn low_product(
        &self,
        layout: Layout,
        a: &Operand,
        w: &Tensor,
        segments: Option<&Segments>,
        c: &mut Tensor,
        write: Write,
    ) {
        let experts = segments.map_or(1, Segments::count);
        let (out, inner) = (w.rows() / experts, w.cols());
        let (k, n) = match layout {
            Layout::Nt => (inner, out),
            Layout::Nn => (out, inner),
            Layout::Tn => panic!("low_gemm: Tn is low_gradient"),
        };
        let m = c.rows();
        c.expect("low_gemm: c", [m, n]);
        let ends = self.ends(segments, m);
        assert!(segments.is_none_or(|segments| segments.rows() == m), "low_gemm: {m} rows, {segments:?}");
        let adds = write == Write::Add;
        let side = |lowered: &Lowered| match layout {
            Layout::Nt => lowered.nt.clone(),
            _ => lowered.nn.clone().expect("made where it is read"),
        };
        match a {
            Operand::Plain(a) => {
                let pitch = pitch_of_bf16(k);
                a.expect("low_gemm: a", [m, pitch]);
                let lowered = self.lowered(w, None, experts);
                let sides = [a, &lowered.nt];
                let is_done = segments.is_none()
                    && match layout {
                        Layout::Nt => self.by_cublaslt_nt(sides, c, [m, n, k], adds),
                        _ => self.by_cublaslt_nn(sides, c, [m, n, k], adds),
                    };
                if is_done {
                    return;
                }
                if self.has_tensor_cores(n, experts) {
                    let product = Product { ends: ends.tensor(), to: self.write(c), m, n, k, experts, adds };
                    return match layout {
                        Layout::Nt => self.bf16_product(a, &lowered.nt, product),
                        _ => self.bf16_product_nn(a, &lowered.nt, product),
                    };
                }
                let b = side(&lowered);
                let args = [
                    self.read(a),
                    self.read(&b),
                    self.write(c),
                    self.read(ends.tensor()),
                    int(experts),
                    int(n),
                    int(pitch),
                    flag(adds),
                ];
                self.launch("any_bf16_gemm", [n.div_ceil(SIDE), tiles(m, experts, SIDE), 1], 0, &args);
            }
            Operand::Fp8(a) => {
                let pitch = pitch_of_e4m3(k);
                a.q.expect("low_gemm: a", [m, pitch]);
                let tile = if a.how.tile == Tile::Tensor { Tile::Tensor } else { Tile::Block };
                let lowered = self.lowered(w, Some(Quantiser { tile, role: Role::Weight, ..a.how }), experts);
                let (nt, nn) = lowered.scales.as_ref().expect("FP8 has scales");
                let (b, b_scale) = (side(&lowered), if layout == Layout::Nt { nt } else { nn });
                let a_scale = self.scales_of_rows(a, segments, k.div_ceil(TILE));
                if self.has_tensor_cores(n, experts) {
                    let product = Product { ends: ends.tensor(), to: self.write(c), m, n, k: pitch, experts, adds };
                    return self.fp8_product([&a.q, &b], [&a_scale, b_scale], product);
                }
                let args = [
                    self.read(&a.q),
                    self.read(&a_scale),
                    self.read(&b),
                    self.read(b_scale),
                    self.write(c),
                    self.read(ends.tensor()),
                    int(experts),
                    int(n),
                    int(pitch),
                    flag(adds),
                ];
                self.launch("any_fp8_gemm", [n.div_ceil(SIDE), tiles(m, experts, SIDE), 1], 0, &args);
            }
        }
    }

    /// `[M, ⌈K/128⌉]`, for a product over columns.
    fn scales_of_rows(&self, x: &Scaled, segments: Option<&Segments>, across: usize) -> Tensor {
        let m = x.q.rows();
        match x.how.tile {
            Tile::Row => x.scale.clone(),
            Tile::Column => panic!("low_gemm: expected scales along rows of a, found tiles Column"),
            Tile::Block => {
                let (ends, mut by_rows) = (self.ends(segments, m), self.make([m, across], DType::F32));
                let args = [
                    self.read(&x.scale),
                    self.read(ends.tensor()),
                    int(ends.count),
                    self.write(&mut by_rows),
                    int(across),
                ];
                self.launch("scales_by_rows", [tiles(m, ends.count, TILE), 1, 1], 0, &args);
                by_rows
            }
            Tile::Tensor => self.scales_by_columns(x, m, across),
        }
    }

    /// `[bands, D]` of the scales of tiles, or of one for all.
    fn scales_by_columns(&self, x: &Scaled, bands: usize, d: usize) -> Tensor {
        let mut by_columns = self.make([bands, d], DType::F32);
        let args = [
            self.read(&x.scale),
            self.write(&mut by_columns),
            long(bands),
            int(d),
            int(x.scale.cols()),
            flag(x.how.tile == Tile::Tensor),
        ];
        self.each("scales_by_columns", bands * d, &args);
        by_columns
    }

    pub(super) fn low_gradient_of(
        &self,
        dy: &Operand,
        x: &Operand,
        segments: Option<&Segments>,
        dw: &mut Tensor,
        write: Write,
    ) {
        let experts = segments.map_or(1, Segments::count);
        let (out, inner) = (dw.rows() / experts, dw.cols());
        let adds = write == Write::Add;
        let grid = [inner.div_ceil(SIDE), out.div_ceil(SIDE), experts];
        match (dy, x) {
            (Operand::Plain(dy), Operand::Plain(x)) => {
                let m = dy.rows();
                dy.expect("low_gradient: dy", [m, pitch_of_bf16(out)]);
                x.expect("low_gradient: x", [m, pitch_of_bf16(inner)]);
                if segments.is_none() && self.by_cublaslt_tn([dy, x], dw, [out, inner, m], adds) {
                    return;
                }
                let ends = self.ends(segments, m);
                if self.has_tensor_cores(inner, experts) && m > 0 {
                    let (to, ends) = (self.write(dw), ends.tensor());
                    let product = Product { ends, to, m: out, n: inner, k: m, experts, adds };
                    return self.bf16_weight_gradient([dy, x], product);
                }
                let args = [
                    self.read(dy),
                    self.read(x),
                    self.write(dw),
                    self.read(ends.tensor()),
                    int(out),
                    int(inner),
                    int(dy.cols()),
                    int(x.cols()),
                    flag(adds),
                ];
                self.launch("any_bf16_gradient", grid, 0, &args);
            }
            (Operand::Fp8(dy), Operand::Fp8(x)) => {
                let rows = segments.map(Segments::rows);
                let rows = rows.or_else(|| [dy, x].into_iter().find_map(rows_of));
                let rows = rows.unwrap_or(dy.q.cols());
                let ends = self.ends(segments, rows);
                let bands = tiles(rows, experts, TILE);
                let [(dy, dy_scale), (x, x_scale)] =
                    [(dy, out), (x, inner)].map(|(operand, d)| self.along_tokens(operand, &ends, d, bands));
                if self.has_tensor_cores(inner, experts) && bands > 0 {
                    let (to, ends) = (self.write(dw), ends.tensor());
                    let product = Product { ends, to, m: out, n: inner, k: bands * TILE, experts, adds };
                    return self.fp8_weight_gradient([&dy, &x], [&dy_scale, &x_scale], product);
                }
                let args = [
                    self.read(&dy),
                    self.read(&dy_scale),
                    self.read(&x),
                    self.read(&x_scale),
                    self.write(dw),
                    self.read(ends.tensor()),
                    int(out),
                    int(inner),
                    long(bands * TILE),
                    flag(adds),
                ];
                self.launch("any_fp8_gradient", grid, 0, &args);
            }
            _ => panic!("low_gradient: expected dy and x in one precision, found {dy:?} and {x:?}"),
        }
    }

    /// An operand tiled along tokens, with scales `[bands, D]`.
    fn along_tokens(&self, x: &Scaled, ends: &Ends, d: usize, bands: usize) -> (Tensor, Tensor) {
        let tokens = bands * TILE;
        match x.how.tile {
            Tile::Column => {
                x.q.expect("low_gradient: an operand", [d, tokens]);
                (x.q.clone(), x.scale.clone())
            }
            Tile::Row => panic!("low_gradient: expected scales along columns, found tiles Row"),
            Tile::Block | Tile::Tensor => {
                let mut q = self.make([d, tokens], DType::E4m3);
                let args = [
                    self.read(&x.q),
                    self.read(ends.tensor()),
                    int(ends.count),
                    self.write(&mut q),
                    int(d),
                    int(x.q.cols()),
                    long(tokens),
                ];
                self.launch("transpose_tokens", [bands, d.div_ceil(32), 1], 0, &args);
                (q, self.scales_by_columns(x, bands, d))
            }
        }
    }
}

/// Rows of an operand that keeps them: tiles along tokens have only their padded number.
fn rows_of(x: &Scaled) -> Option<usize> {
    (x.how.tile != Tile::Column).then(|| x.q.rows())
}
