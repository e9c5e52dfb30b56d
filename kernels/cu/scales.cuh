// Scales of FP8 tiles (../src/fp8.rs).
#pragma once
#include "math.cuh"

constexpr int SIDE = 128;  // of a tile
constexpr u32 INFINITE = 0x7f800000;

// As `Quantiser` of ../src/quantiser.rs: role 0 activation, 1 weight, 2 gradient.
DEVICE float scale_of(u32 largest, int role, int power) {
  float amax = __uint_as_float(largest), smallest = 1.17549435e-38f * 448.f;
  float floor = role == 0 ? 1e-4f : smallest;
  float scale = (amax > floor ? amax : floor) / 448.f;
  if (power) scale = __uint_as_float((__float_as_uint(scale) + 0x7fffff) & 0xff800000);
  return role == 1 && amax == 0.f ? 1.f : scale;
}

DEVICE u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }
DEVICE u32 finite(u32 bits) { return bits < INFINITE ? bits : 0; }
DEVICE u32 warp_largest(u32 x) {
  for (int o = 16; o; o >>= 1) {
    u32 other = __shfl_xor_sync(0xffffffffu, x, o);
    x = other > x ? other : x;
  }
  return x;
}
