// AdamW on a block of elements, for experts and for dense parameters.
#pragma once

#include <cfenv>
#include <cmath>

#include "cpu_kernel.h"

namespace ascend_ops {

// MindSpore's graph threads flush tiny numbers to 0, but squares of expert gradients are tiny: use IEEE arithmetic.
class IeeeArithmetic {
 public:
  IeeeArithmetic() {
    std::fegetenv(&kept_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~IeeeArithmetic() { std::fesetenv(&kept_); }

 private:
  std::fenv_t kept_;
};

// `constants` are 1 − learning rate · decay, beta1, beta2, and the factors of the gradient and of its square.
inline void adam_block(float* weight, float* moment1, float* moment2, const float* gradient, int64_t count,
                       const float step_size, const float eps, const float* constants) {
  const float keep = constants[0], beta1 = constants[1], beta2 = constants[2];
  const float gain1 = constants[3], gain2 = constants[4];
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i];
    const float m = moment1[i] * beta1 + g * gain1;
    const float v = moment2[i] * beta2 + g * g * gain2;
    moment1[i] = m;
    moment2[i] = v;
    weight[i] = weight[i] * keep - m / (std::sqrt(v) + eps) * step_size;
  }
}

}  // namespace ascend_ops
