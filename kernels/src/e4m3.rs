//! The number format E4M3 (Micikevicius et al. 2022).

/// The largest finite value.
pub const MAX: f32 = 448.0;

/// One E4M3 number: sign, 4 bits of exponent (bias 7), 3 of mantissa. No infinity; NaN is 0x7f and 0xff.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct E4m3(pub u8);

impl E4m3 {
    pub const NAN: Self = Self(0x7f);

    /// The nearest value, ties to even. Saturates: ±448 for larger magnitudes and for ±∞.
    #[inline(always)]
    pub fn from_f32(x: f32) -> Self {
        let sign = x.to_bits() >> 31 << 7;
        let a = x.abs();
        let limited = if a < MAX { a } else { MAX };
        // drops 20 bits of mantissa; when rounding carries into the exponent, that is the next power of two
        let bits = limited.to_bits();
        let normal = ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
        // near 2¹⁴ neighbouring f32 are 2⁻⁹ apart, as are the subnormals of E4M3: adding 2¹⁴ rounds
        let subnormal = (limited + 16_384.0).to_bits() - 16_384f32.to_bits();
        let magnitude = if limited < 0.015_625 { subnormal } else { normal };
        Self((if a.is_nan() { 0x7f } else { magnitude } | sign) as u8)
    }

    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let bits = u32::from(self.0 & 0x7f);
        let normal = f32::from_bits((bits << 20) + (120 << 23));
        let subnormal = bits as f32 * (1.0 / 512.0);
        let magnitude = if bits < 8 { subnormal } else { normal };
        let magnitude = if bits == 0x7f { f32::NAN } else { magnitude };
        f32::from_bits(magnitude.to_bits() | u32::from(self.0 & 0x80) << 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: (−1)ˢ · 2^(e−7) · (1 + m/8), or (−1)ˢ · 2⁻⁶ · m/8 when e = 0.
    fn value(byte: u8) -> f64 {
        let (e, m) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
        let magnitude = if e == 0 { m / 8.0 * 2f64.powi(-6) } else { 2f64.powi(e - 7) * (1.0 + m / 8.0) };
        if byte & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn all_256_bytes_mean_what_the_format_says() {
        for byte in 0..=255u8 {
            let found = E4m3(byte).to_f32();
            if byte & 0x7f == 0x7f {
                assert!(found.is_nan(), "{byte:#x}");
                assert_eq!(E4m3::from_f32(found).0, byte);
                continue;
            }
            assert_eq!(f64::from(found).to_bits(), value(byte).to_bits(), "{byte:#x}");
            assert_eq!(E4m3::from_f32(found).0, byte, "{byte:#x}");
        }
    }

    /// Three values between each pair of neighbours: just below the middle, the middle, just above it.
    #[test]
    fn the_nearest_value_is_taken_and_a_tie_is_even() {
        for low in 0..0x7eu8 {
            let middle = ((value(low) + value(low + 1)) / 2.0) as f32;
            let [below, above] = [-1, 1].map(|by| f32::from_bits((middle.to_bits() as i32 + by) as u32));
            for (x, expected) in [(below, low), (middle, low + (low & 1)), (above, low + 1)] {
                assert_eq!(E4m3::from_f32(x).0, expected, "{x}");
                assert_eq!(E4m3::from_f32(-x).0, expected | 0x80, "{}", -x);
            }
        }
        for x in [449.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!([E4m3::from_f32(x).0, E4m3::from_f32(-x).0], [0x7e, 0xfe], "{x}");
        }
        assert_eq!([E4m3::from_f32(0.0).0, E4m3::from_f32(-0.0).0, E4m3::from_f32(1e-40).0], [0, 0x80, 0]);
    }
}
