// bf16 and E4M3, with the rounding of the GPU's conversions.
#pragma once

struct __align__(2) bf16 {
  u16 bits;
};

inline float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// To nearest even; NaN becomes 0x7fff, as in `cvt.rn.bf16.f32`.
inline bf16 to_bf16(float x) {
  u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return bf16{0x7fff};
  return bf16{(u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Two neighbours in memory; `low` comes first.
inline u32 pack_bf16(float low, float high) { return to_bf16(low).bits | (u32)to_bf16(high).bits << 16; }

// To nearest even; saturates to ±448, NaN is 0x7f, as in `cvt.rn.satfinite.e4m3x2.f32`.
inline u8 to_e4m3(float x) {
  u32 bits = __float_as_uint(x), sign = bits >> 24 & 128, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7f;
  if (size >= 0x43e00000) return (u8)(sign | 0x7e);                       // 448 and more
  if (size < 0x3c800000) {                                                // below 2⁻⁶: steps of 2⁻⁹
    return (u8)(sign | (u32)nearbyintf(__uint_as_float(size) * 512.f));
  }
  size += 0x7ffff + (size >> 20 & 1);
  return (u8)(sign | ((size >> 20) - (120 << 3)));
}

inline float e4m3_to_f(u8 x) {
  int exponent = x >> 3 & 15, mantissa = x & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  float size = exponent ? ldexpf(1.f + mantissa / 8.f, exponent - 7) : ldexpf(mantissa / 8.f, -6);
  return x & 128 ? -size : size;
}
