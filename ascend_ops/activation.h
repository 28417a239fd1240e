// The experts' activation, fast_gelu(u) = u · sigmoid(1.702 u), in arithmetic that compilers vectorize.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ascend_ops {

constexpr float kSlope = 1.702f;

// e^x to 2 units in the last place: 2^n · p(r) with x = n·ln 2 + r and |r| ≤ ln 2 / 2.
inline float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2²³: the addition rounds to a whole number
  const float whole = shifted - 12582912.0f;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;  // the low bits of `shifted` are n
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace ascend_ops
