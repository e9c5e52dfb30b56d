//! FP8 against files of a reference implementation (bytes, scales, products), and against [`Reference`].
//!
//! Small reference files are in `tests/parity/engine/fp8`; the full set is found through `SMELT_PARITY`, else next to
//! the repository (`../shared/parity/engine`), in the folder `fp8`. Bytes and scales are compared exactly. A product in
//! f32 may differ from its value in f64 by rounding, which depends on the order of summation: 10 · 2⁻²⁴ of the
//! norm is allowed.

#[path = "../../tests/parity/say.rs"]
mod say;

use safetensors::SafeTensors;
use say::say;
use smelt_kernels::fp8::*;
use smelt_kernels::gemm::Level;
use smelt_kernels::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// `name` of the repository's own reference, and of the full set where it is.
fn read(name: &str) -> Vec<Vec<u8>> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = repository.join("tests/parity/engine/fp8").join(name);
    let full = std::env::var_os("SMELT_PARITY").map_or(repository.join("../shared/parity/engine"), PathBuf::from);
    let mut files = vec![std::fs::read(&own).unwrap_or_else(|e| panic!("{}: {e}", own.display()))];
    match std::fs::read(full.join("fp8").join(name)) {
        Ok(bytes) => files.push(bytes),
        Err(e) => say(&format!("only the repository's own {name}: {}: {e} (set SMELT_PARITY)", full.display())),
    }
    files
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn matrix(file: &SafeTensors, name: &str) -> Tensor {
    Tensor::new(file.tensor(name).unwrap().shape(), &floats(file, name))
}

fn bytes_of(q: &Tensor) -> Vec<u8> {
    q.read::<E4m3>().iter().map(|q| q.0).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

#[test]
fn every_bf16_becomes_the_byte_of_the_reference() {
    let file = read("codec.safetensors").remove(0); // the full set has the same one
    let file = SafeTensors::deserialize(&file).unwrap();
    let encoded = file.tensor("bf16_bits_to_e4m3").unwrap().data();
    assert_eq!(encoded.len(), 1 << 16);
    for (high, &byte) in encoded.iter().enumerate() {
        let x = f32::from_bits((high as u32) << 16);
        assert_eq!(E4m3::from_f32(x).0, byte, "{x} ({high:#x})");
    }
    let decoded: Vec<f32> = (0..=255).map(|byte| E4m3(byte).to_f32()).collect();
    assert_eq!(bits(&decoded), bits(&floats(&file, "e4m3_to_f32")));
    say(&format!("fp8: the bytes of {} bf16 values", encoded.len()));
}

/// Relative distance of the finite elements; NaN must be at the same positions.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut off, mut size) = (0.0, 0.0);
    for (&found, &expected) in found.iter().zip(expected) {
        assert_eq!(found.is_finite(), expected.is_finite(), "{found}, expected {expected}");
        if expected.is_finite() {
            off += (f64::from(found) - expected).powi(2);
            size += expected.powi(2);
        }
    }
    if off == 0.0 { 0.0 } else { (off / size).sqrt() }
}

#[test]
fn all_cases_have_the_bytes_scales_and_products_of_the_reference() {
    read("fp8_cases.safetensors").iter().for_each(|file| check_cases(&SafeTensors::deserialize(file).unwrap()));
}

fn check_cases(file: &SafeTensors) {
    let cases: BTreeSet<String> =
        file.names().iter().filter_map(|n| Some(n.strip_suffix(".a_q")?.to_owned())).collect();
    assert!(!cases.is_empty());
    let cpu = Cpu::new(2);
    for case in &cases {
        let at = |part: &str| format!("{case}.{part}");
        let (a, w) = (matrix(file, &at("a")), matrix(file, &at("w")));
        let power_of_two = case.ends_with("ue8m0");
        let role = if case.starts_with("tiny_nofloor") { Role::Gradient } else { Role::Activation };
        let row = Quantiser { tile: Tile::Row, role, power_of_two };
        let block = Quantiser { tile: Tile::Block, role: Role::Weight, power_of_two };
        let lower = |x, how| {
            let mut saturated = Tensor::zeros([1], DType::U32);
            (cpu.lower(x, Some(how), None, &mut saturated), saturated.read::<u32>()[0] == 1)
        };
        let (lowered, a_saturated) = lower(&a, row);
        let Operand::Fp8(a_q) = &lowered else { panic!("{case} was not quantised") };
        let (Operand::Fp8(w_q), w_saturated) = lower(&w, block) else { panic!("{case} was not quantised") };
        let sides = [("a", &a, a_q, "a_scale", a_saturated), ("w", &w, &w_q, "w_scale_inv", w_saturated)];
        for (part, x, found, scale, is_saturated) in sides {
            assert_eq!(bytes_of(&found.q), file.tensor(&at(&format!("{part}_q"))).unwrap().data(), "{case}: {part}");
            assert_eq!(bits(found.scale.read()), bits(&floats(file, &at(scale))), "{case}: {scale}");
            let dequantised = floats(file, &at(&format!("{part}_dq")));
            assert_eq!(bits(found.dequantised(None).read()), bits(&dequantised), "{case}: {part}_dq");
            assert_eq!(is_saturated, x.read::<f32>().iter().any(|x| !x.is_finite()), "{case}: {part}");
        }
        let expected: Vec<f64> =
            file.tensor(&at("y_f64")).unwrap().data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
        let mut y = Tensor::empty([a.rows(), w.rows()], DType::F32);
        cpu.low_gemm(Layout::Nt, &lowered, &w, None, &mut y, Write::Set);
        let off = distance(y.read(), &expected);
        let theirs = distance(&floats(file, &at("y")), &expected);
        println!("{case}: bytes and scales equal, product off by {off:.1e} (the reference in f32 by {theirs:.1e})");
        assert!(off <= 10.0 * 2f64.powi(-24), "{case}: off by {off}");
    }
    say(&format!("fp8: bytes, scales and products of {} cases", cases.len()));
}

fn noise(seed: u64, rows: usize, cols: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * cols).map(|i| random::normal(seed, 0, i as u64) as f32).collect();
    Tensor::new([rows, cols], &values)
}

fn scaled(operand: &Operand) -> &Scaled {
    match operand {
        Operand::Fp8(scaled) => scaled,
        Operand::Plain(_) => panic!("not quantised"),
    }
}

/// Where nothing saturates.
fn lower(device: &dyn Backend, x: &Tensor, how: Option<Quantiser>, segments: Option<&Segments>) -> Operand {
    let mut saturated = Tensor::zeros([1], DType::U32);
    let lowered = device.lower(x, how, segments, &mut saturated);
    assert_eq!(saturated.read::<u32>(), [0]);
    lowered
}

/// By the reference: bytes and dequantised values.
fn by_reference(x: &Tensor, how: Quantiser, segments: &Segments) -> (Vec<u8>, Vec<f32>) {
    let lowered = lower(&Reference, x, Some(how), Some(segments));
    let scaled = scaled(&lowered);
    let segments = Some(segments).filter(|_| how.tile != Tile::Tensor); // which has one scale for all
    (bytes_of(&scaled.q), scaled.dequantised(segments).to_f32())
}

const ROLES: [Role; 3] = [Role::Activation, Role::Weight, Role::Gradient];

#[test]
fn every_tiling_is_its_tiles_one_by_one() {
    let mut x = noise(1, 300, 200);
    x.write::<f32>()[..200].fill(0.0); // a row of zeros
    x.write::<f32>()[200 * 140..200 * 160].fill(-0.0);
    x.write::<f32>()[5000] = 1e6;
    let segments = Segments::of_counts(&[130, 0, 3, 128, 39]);
    for tile in [Tile::Row, Tile::Column, Tile::Block, Tile::Tensor] {
        for (role, power_of_two) in ROLES.iter().flat_map(|&role| [(role, false), (role, true)]) {
            let how = Quantiser { tile, role, power_of_two };
            let (q, dequantised) = by_reference(&x, how, &segments);
            for threads in 1..=3 {
                for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
                    let lowered = lower(&Cpu::new(threads).at(level), &x, Some(how), Some(&segments));
                    assert_eq!(bytes_of(&scaled(&lowered).q), q, "{how:?}, {threads} threads, {level:?}");
                    let back = scaled(&lowered).dequantised(Some(&segments).filter(|_| tile != Tile::Tensor));
                    assert_eq!(bits(back.read()), bits(&dequantised), "{how:?}");
                }
            }
        }
    }
}

/// Forward, input gradient and weight gradient of three experts, one without rows, on dims that are no multiples of
/// 128.
#[test]
fn the_three_products_are_those_of_the_dequantised_sides() {
    let (out, inner, segments) = (150, 200, Segments::of_counts(&[140, 0, 75]));
    let n = segments.rows();
    let (x, dy, w) = (noise(1, n, inner), noise(2, n, out), noise(3, 3 * out, inner).reshape([3, out, inner]));
    for (tensor, dy_blocks, power_of_two) in [(false, false, false), (false, true, true), (true, false, false)] {
        let tile = |tile| if tensor { Tile::Tensor } else { tile };
        let how = |of, role| Some(Quantiser { tile: tile(of), role, power_of_two });
        let of_dy = |of| how(if dy_blocks { Tile::Block } else { of }, Role::Gradient);
        let [found, expected] = [&Cpu::new(2) as &dyn Backend, &Reference].map(|device| {
            let lower = |x, how| lower(device, x, how, Some(&segments));
            let (mut y, mut dx) = (noise(4, n, out), Tensor::empty([n, inner], DType::F32));
            let mut dw = Tensor::zeros([3, out, inner], DType::F32);
            let forward = lower(&x, how(Tile::Row, Role::Activation));
            device.low_gemm(Layout::Nt, &forward, &w, Some(&segments), &mut y, Write::Add);
            device.low_gemm(Layout::Nn, &lower(&dy, of_dy(Tile::Row)), &w, Some(&segments), &mut dx, Write::Set);
            let (dy, x) = (lower(&dy, of_dy(Tile::Column)), lower(&x, how(Tile::Column, Role::Activation)));
            device.low_gradient(&dy, &x, Some(&segments), &mut dw, Write::Add);
            [y, dx, dw]
        });
        for (what, (found, expected)) in ["y", "dx", "dw"].iter().zip(found.iter().zip(expected)) {
            let off = distance(found.read(), &expected.to_f64());
            assert!(off <= 10.0 * 2f64.powi(-24), "{what}: off by {off}");
        }
    }
}

/// The distinct results, as bits, of a product on each level with 1 to 3 threads.
fn everywhere(work: impl Fn(&Cpu) -> Tensor) -> BTreeSet<Vec<u32>> {
    let levels = Level::ALL.into_iter().filter(|level| level.is_supported());
    levels
        .flat_map(|level| (1..=3).map(move |threads| Cpu::new(threads).at(level)))
        .map(|cpu| bits(work(&cpu).read()))
        .collect()
}

#[test]
fn no_bit_depends_on_threads_level_or_the_rows_beside() {
    let (out, inner) = (300, 260);
    let segments = Segments::of_counts(&[70, 0, 130]);
    let (x, dy, w) = (
        noise(1, 200, inner),
        noise(2, 200, out),
        Tensor::new([3, out, inner], noise(3, 3 * out, inner).read::<f32>()),
    );
    for fp8 in [false, true] {
        let how = |tile, role| fp8.then_some(Quantiser { tile, role, power_of_two: false });
        let row = how(Tile::Row, Role::Activation);
        let forward = |cpu: &Cpu, x: &Tensor, segments: &Segments| {
            let mut y = Tensor::zeros([x.rows(), out], DType::F32);
            cpu.low_gemm(Layout::Nt, &lower(cpu, x, row, Some(segments)), &w, Some(segments), &mut y, Write::Set);
            y
        };
        let y = everywhere(|cpu| forward(cpu, &x, &segments));
        assert_eq!(y.len(), 1, "fp8: {fp8}");
        let alone = Tensor::new([1, inner], &x.read::<f32>()[150 * inner..151 * inner]);
        let alone = forward(&Cpu::new(1), &alone, &Segments::of_counts(&[0, 0, 1]));
        assert_eq!(bits(alone.read()), y.first().unwrap()[150 * out..151 * out], "fp8: {fp8}");
        let gradients = [Write::Add, Write::Set].map(|write| {
            everywhere(|cpu| {
                let before = if write == Write::Add { 0.0f32 } else { 7.0 };
                let mut dw = Tensor::new([3, out, inner], &vec![before; 3 * out * inner]);
                let dy = lower(cpu, &dy, how(Tile::Column, Role::Gradient), Some(&segments));
                cpu.low_gradient(
                    &dy,
                    &lower(cpu, &x, how(Tile::Column, Role::Activation), Some(&segments)),
                    Some(&segments),
                    &mut dw,
                    write,
                );
                dw
            })
        });
        assert_eq!(gradients[0].len(), 1, "fp8: {fp8}");
        assert_eq!(gradients[0], gradients[1], "set, or added to zero, fp8: {fp8}");
    }
}

#[test]
fn a_weight_that_was_written_is_lowered_again() {
    let (cpu, x) = (Cpu::new(1), noise(1, 3, 140));
    let mut w = noise(2, 20, 140);
    let how = Quantiser { tile: Tile::Row, role: Role::Activation, power_of_two: false };
    let run = |w: &Tensor, how| {
        let mut y = Tensor::empty([3, 20], DType::F32);
        cpu.low_gemm(Layout::Nt, &lower(&cpu, &x, how, None), w, None, &mut y, Write::Set);
        bits(y.read())
    };
    let (first, rounded) = (run(&w, Some(how)), run(&w, None));
    assert_ne!(first, rounded);
    assert_eq!(run(&w, Some(how)), first);
    w.write::<f32>().iter_mut().for_each(|w| *w *= 3.0);
    let second = run(&w, Some(how));
    assert_ne!(second, first);
    assert_eq!(second, run(&w.copy(), Some(how)));
}
