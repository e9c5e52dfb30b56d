//! The distance to the exact product, and that every CPU level has the bf16 step of the hardware.

use smelt_kernels::Write;
use smelt_kernels::gemm::{Bf16, Cells, Gemm, Level, View};

fn noise(seed: u32, len: usize) -> Vec<f32> {
    let number = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 9) as f32 / (1 << 22) as f32 - 1.0;
    (0..len as u32).map(number).collect()
}

/// A chain of K fused steps errs by at most K·u·Σ|a·b|, u = 2⁻²⁴ (Higham 2002, §3.1). Roundings of random
/// sign add up to about √K·u; four times that leaves room for the largest of 3071 elements, but not for one k
/// too many or too few.
#[test]
fn f32_and_bf16_keep_the_error_bound_of_a_chain() {
    let (m, n, k) = (37, 83, 4099);
    let (a, b) = (noise(1, m * k), noise(2, n * k));
    let [a16, b16] = [&a, &b].map(|x| x.iter().map(|&x| Bf16::from_f32(x)).collect::<Vec<_>>());
    let (mut c, mut c16) = (vec![0.0; m * n], vec![0.0; m * n]);
    let gemm = Gemm::new(2);
    gemm.multiply(View::new(&a, m, k), View::new(&b, n, k).t(), &mut c, Write::Set);
    gemm.multiply(View::new(&a16, m, k), View::new(&b16, n, k).t(), &mut c16, Write::Set);
    let check = |name, c: f32, a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| {
        let exact: f64 = (0..k).map(|k| a(k) * b(k)).sum();
        let size: f64 = (0..k).map(|k| (a(k) * b(k)).abs()).sum();
        let error = (f64::from(c) - exact).abs() / (size * 2f64.powi(-24));
        assert!(error <= 4.0 * (k as f64).sqrt(), "{name}: error of {error:.0} u·Σ|a·b|, K is {k}");
    };
    for i in 0..m {
        for j in 0..n {
            check("f32", c[i * n + j], &|l| a[i * k + l].into(), &|l| b[j * k + l].into());
            check("bf16", c16[i * n + j], &|l| a16[i * k + l].into(), &|l| b16[j * k + l].into());
        }
    }
}

/// One step on arbitrary bits: every exponent, subnormals, infinities. NaN only has to stay NaN.
#[test]
fn every_level_steps_any_bf16_bits_alike() {
    let (m, n) = (64, 4096);
    let bits = |seed: u32, len: usize| -> Vec<u32> {
        let mix = |i: u32| (i ^ seed).wrapping_mul(0x9e37_79b9).rotate_left(15).wrapping_mul(0x85eb_ca6b);
        (0..len as u32).map(|i| mix(i) ^ mix(i) >> 13).collect()
    };
    let pairs =
        |x: &[u32]| x.iter().flat_map(|x| [*x as u16, (x >> 16) as u16].map(Bf16::from_bits)).collect::<Vec<_>>();
    let (a, b) = (bits(1, m), bits(2, n));
    let start: Vec<f32> = bits(3, m * n).into_iter().map(f32::from_bits).collect();
    let expected: Vec<f32> = (0..m * n).map(|i| Bf16::step(start[i], a[i / n], b[i % n])).collect();
    let (a, b) = (pairs(&a), pairs(&b));
    for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
        let mut c = start.clone();
        Gemm::new(1).at(level).multiply(View::new(&a, m, 2), View::new(&b, n, 2).t(), &mut c, Write::Add);
        let differing =
            c.iter().zip(&expected).filter(|(c, e)| c.to_bits() != e.to_bits() && !(c.is_nan() && e.is_nan()));
        assert_eq!(differing.count(), 0, "{level:?}");
    }
}

/// Just below 2⁻¹²⁶ a result may round up to 2⁻¹²⁶ as a subnormal, but is tiny when rounded with an
/// unbounded exponent. The test constructs such values: 20 million random steps did not find one.
#[test]
fn every_level_flushes_alike_at_the_edge_of_underflow() {
    let bf16 = |x: f32| Bf16::from_f32(x);
    let c = [2f32.powi(-126), -(2f32.powi(-126)), 2f32.powi(-126) + 2f32.powi(-149), 0.0];
    let a: Vec<Bf16> = (-128..128).flat_map(|q| [bf16(q as f32 * 2f32.powi(-79)); 2]).collect();
    let b = [0.0, 2f32.powi(-77), 2f32.powi(-77), 0.0, 2f32.powi(-76), 2f32.powi(-75)].map(bf16);
    for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
        for c in c {
            let mut out = vec![c; 256 * 3];
            Gemm::new(1).at(level).multiply(View::new(&a, 256, 2), View::new(&b, 3, 2).t(), &mut out, Write::Add);
            for (i, out) in out.iter().enumerate() {
                let (a, b) = (&a[i / 3 * 2..], &b[i % 3 * 2..]);
                let expected = Bf16::step(c, Bf16::cell([a[0], a[1]]), Bf16::cell([b[0], b[1]]));
                assert_eq!(
                    out.to_bits(),
                    expected.to_bits(),
                    "{level:?}: {c:e} + {a:?}·{b:?}",
                    a = &a[..2],
                    b = &b[..2]
                );
            }
        }
    }
}
