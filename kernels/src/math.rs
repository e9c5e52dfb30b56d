//! `exp`, `ln`, `sin` and so on, our own: the system's results differ between C libraries and vector widths, so a
//! model's would too.
//!
//! They use only +, −, ×, ÷, explicit fused multiply-adds, conversions and bit operations. IEEE 754 defines each
//! exactly and rustc fuses nothing by itself, so the bits are the same on every machine. The f32 functions do not
//! branch, so loops over them vectorise.

/// eˣ for x in −87.3..88.3: Cody and Waite's reduction to |r| ≤ ln 2 / 2 and the minimax polynomial of Cephes'
/// `expf` (Moshier 1992). Multiply-adds are fused: a shorter dependency chain lets the core overlap more vectors.
#[inline(always)]
fn exp_reduced(x: f32) -> f32 {
    // adding 1.5 · 2²³ leaves the nearest integer in the low bits; 127 is the bias of the exponent
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    y * f32::from_bits(shifted.to_bits() << 23)
}

/// eˣ for x up to 88. A softmax needs no more: its largest x is 0, up to rounding. The error is below 1.5 units in the
/// last place (tested on 2²⁰ points); below −87.3 the result is 0.
#[inline(always)]
pub(crate) fn exp_below_f32(x: f32) -> f32 {
    let y = exp_reduced(if x < -87.3 { -87.3 } else { x });
    if x < -87.3 { 0.0 } else { y }
}

/// 1/(1 + e⁻ˣ). Below −88 the result is that of −88, which is below the smallest normal number.
#[inline(always)]
pub(crate) fn sigmoid_f32(x: f32) -> f32 {
    1.0 / (1.0 + exp_below_f32(if x < -88.0 { 88.0 } else { -x }))
}

/// eˣ by Taylor's series on |r| ≤ ln 2 / 2: the first term left out is below 2⁻⁵⁸.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2⁵²
    let clamped = x.clamp(-708.0, 709.5);
    let shifted = clamped * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_147_180_369_123_8 - n * 1.908_214_929_270_587_7e-10;
    let mut p = 1.0;
    for k in (1..=14).rev() {
        p = p * r * (1.0 / k as f64) + 1.0;
    }
    let n = n as i64;
    let half = n >> 1;
    let power = |n: i64| f64::from_bits(((n + 1023) << 52) as u64);
    let y = p * power(half) * power(n - half);
    let y = if x < -708.0 { 0.0 } else { y };
    let y = if x > 709.78 { f64::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// Natural logarithm: x = m·2ᵉ with m in [√½, √2), then 2·artanh((m − 1)/(m + 1)) as a series whose first
/// term left out is below 2⁻⁶⁰. Zero gives −∞, a negative number NaN.
pub fn ln(x: f64) -> f64 {
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x < 0.0 {
        return f64::NAN;
    }
    if x < f64::MIN_POSITIVE {
        return ln_of_parts(x * 2f64.powi(54), -54);
    }
    if x < f64::INFINITY { ln_of_parts(x, 0) } else { x } // and NaN stays NaN
}

/// ln(x·2ᵉ)
fn ln_of_parts(x: f64, e: i32) -> f64 {
    let bits = x.to_bits();
    let e = e + (bits >> 52) as i32 - 1023;
    let m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    let is_high = m > std::f64::consts::SQRT_2;
    let (m, e) = if is_high { (m * 0.5, e + 1) } else { (m, e) };
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 0.0;
    for k in (0..=12).rev() {
        p = p * z + 1.0 / (2 * k + 1) as f64;
    }
    let e = f64::from(e);
    e * 0.693_147_180_369_123_8 + (2.0 * s * p + e * 1.908_214_929_270_587_7e-10)
}

/// ln(1 + eˣ) without overflow.
pub fn softplus(x: f64) -> f64 {
    let y = exp(-x.abs());
    // 1 + y loses the digits of a small y, and there ln(1 + y) is y
    let tail = if y < 1e-8 { y } else { ln(1.0 + y) };
    x.max(0.0) + tail
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + exp(-x))
}

/// xʸ for x > 0.
pub fn pow(x: f64, y: f64) -> f64 {
    exp(y * ln(x))
}

/// xⁿ by repeated squaring. The system's `pow` could give other bits on another machine.
pub(crate) fn power(x: f64, n: u64) -> f64 {
    let bit = |power: f64, i: u32| power * power * if n >> i & 1 == 1 { x } else { 1.0 };
    (0..u64::BITS - n.leading_zeros()).rev().fold(1.0, bit)
}

/// Sine and cosine for |x| up to 2²⁰: Cody and Waite's reduction by π/2 in three parts, then Taylor's series.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI).round();
    // π/2 = A + B + C, A and B with 33 bits each, so that n·A and n·B are exact
    const A: f64 = 1.570_796_326_734_125_6;
    const B: f64 = 6.077_100_506_303_966e-11;
    const C: f64 = 2.022_266_248_795_950_6e-21;
    let r = x - n * A - n * B - n * C;
    let z = r * r;
    let series = |first: usize| {
        let mut p = 1.0;
        for k in (1..=9).rev() {
            let k = 2 * k + first;
            p = 1.0 - p * z / (k * (k - 1)) as f64;
        }
        p
    };
    let (sin, cos) = (r * series(1), series(0));
    match (n as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// π
pub const PI: f64 = std::f64::consts::PI;

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference is the system's f64 function, good to about one unit in the last place of f64.
    #[test]
    fn exp_below_f32_errs_by_less_than_one_and_a_half_units() {
        for i in 0..1 << 20 {
            let x = (i as f32 / (1 << 20) as f32) * 175.29 - 87.29;
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            let error = (f64::from(exp_below_f32(x)) - exact).abs() / unit;
            assert!(error < 1.5, "exp({x}) errs by {error} units");
        }
        assert_eq!([0.0, -0.0].map(exp_below_f32), [1.0; 2]);
        assert_eq!([-87.300_01, -200.0, f32::MIN, f32::NEG_INFINITY].map(exp_below_f32), [0.0; 4]);
        assert!(exp_below_f32(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_f32_is_that_of_f64() {
        for x in (-8700..10_000).map(|i| i as f32 * 0.01) {
            let exact = sigmoid(f64::from(x));
            assert!((f64::from(sigmoid_f32(x)) / exact - 1.0).abs() < 3e-7, "sigmoid({x})");
        }
        assert!([-89.0, f32::NEG_INFINITY].iter().all(|&x| sigmoid_f32(x) < f32::MIN_POSITIVE));
        assert_eq!(sigmoid_f32(f32::INFINITY), 1.0);
        assert!(sigmoid_f32(f32::NAN).is_nan());
    }

    /// Relative 1e-15: a few units in the last place of f64, far below what f32 results need.
    #[test]
    fn the_f64_functions_agree_with_the_system_to_1e_15() {
        let close = |a: f64, b: f64, what: &str| assert!((a - b).abs() <= 1e-15 * b.abs().max(1e-3), "{what}: {a} {b}");
        for i in 1..200_000 {
            let x = i as f64 * 0.0071;
            close(exp(x * 0.4 - 400.0) / (x * 0.4 - 400.0).exp(), 1.0, "exp");
            close(ln(x * x), (x * x).ln(), "ln");
            let (sin, cos) = sin_cos(x * 10.0);
            assert!((sin - (x * 10.0).sin()).abs() < 1e-15 && (cos - (x * 10.0).cos()).abs() < 1e-15, "sin_cos({x})");
        }
        close(softplus(-30.0), (-30.0f64).exp().ln_1p(), "softplus");
        close(softplus(3.0), 3.0f64.exp().ln_1p(), "softplus");
        close(pow(10_000.0, -0.75), 1e-3, "pow");
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        close(ln(1e-310), 1e-310f64.ln(), "ln");
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
    }
}
