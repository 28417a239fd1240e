// The exponentials of a softmax over part of a row, and their sum.
#pragma once

#include "activation.h"

namespace ascend_ops {

// The largest of some floats; if one of them is NaN, either NaN or the largest of the others.
//
// Without -ffast-math, compilers vectorize the maximum of integers, but not that of floats. The bits of floats order as
// their values do once those of negative ones are inverted.
inline float largest(const float* values, int64_t count) {
  const auto invert_if_negative = [](int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); };
  int32_t most = INT32_MIN;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, 4);
    most = std::max(most, invert_if_negative(bits));
  }
  most = invert_if_negative(most);
  float value;
  std::memcpy(&value, &most, 4);
  return value;
}

// The softmax is exp(score − highest) / sum.
struct SoftmaxSum {
  float highest, sum;
};

// Replaces the scores of [first, last) by exp(score − highest), and the others of the row by 0.
inline SoftmaxSum exponentials(float* scores, int64_t first, int64_t last, int64_t size) {
  const float highest = largest(scores + first, last - first);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = first; j < last; ++j) {
    scores[j] = exponential(scores[j] - highest);
    sum += scores[j];
  }
  std::fill(scores, scores + first, 0.0f);
  std::fill(scores + last, scores + size, 0.0f);
  return {highest, sum};
}

}  // namespace ascend_ops
