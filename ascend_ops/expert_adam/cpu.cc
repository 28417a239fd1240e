// expert_adam on the host: AdamW on the rows of the listed experts, in place, in one pass over memory.
//
// The float32 operations and their order are those of composed.py, so both give the same bits.
#include "../adam.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kBlock = 1 << 9;         // elements per piece of work; a converted gradient stays in the L1 cache
constexpr int64_t kWorthThreads = 1 << 15;  // elements from which on waking the threads is worth it

// The Coefficients of coefficients.py.
struct Coefficients {
  const float *step_size, *eps, *constants;
};

const float* in_single(const float* gradient, int64_t, float*) { return gradient; }

// Converts halves by bits and masks: g++ 12 vectorizes neither static_cast<float>(half) nor branches here, and the
// update would take twice the time.
const float* in_single(const uint16_t* gradient, int64_t count, float* converted) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const int32_t rest = gradient[i] & 0x7fff;
    const uint32_t sign = (gradient[i] & 0x8000u) << 16;
    const uint32_t if_subnormal = -static_cast<uint32_t>(rest < 0x400);
    const uint32_t if_special = -static_cast<uint32_t>(rest >= 0x7c00);  // infinity, NaN
    const uint32_t normal = (static_cast<uint32_t>(rest) << 13) + 0x38000000u + (if_special & 0x38000000u);
    const float subnormal = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2⁻²⁴
    uint32_t bits;
    std::memcpy(&bits, &subnormal, 4);
    bits = sign | (bits & if_subnormal) | (normal & ~if_subnormal);
    std::memcpy(converted + i, &bits, 4);
  }
  return converted;
}

// Experts are rows of `size` elements; `experts` lists `count` of them.
template <typename Gradient>
void update(float* weight, float* moment1, float* moment2, const Gradient* gradient, int64_t size,
            const int32_t* experts, int64_t count, const Coefficients& coefficients) {
  const int64_t num_blocks = (size + kBlock - 1) / kBlock;
#pragma omp parallel if (count * size >= kWorthThreads)
  {
    const IeeeArithmetic here;
    float converted[kBlock];
#pragma omp for schedule(static) collapse(2)
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t block = 0; block < num_blocks; ++block) {
        const int64_t begin = block * kBlock, length = std::min(kBlock, size - begin);
        const int64_t offset = experts[i] * size + begin;
        adam_block(weight + offset, moment1 + offset, moment2 + offset, in_single(gradient + offset, length, converted),
                   length, coefficients.step_size[i], coefficients.eps[i], coefficients.constants);
      }
    }
  }
}

void update(float* weight, float* moment1, float* moment2, const void* gradient, bool is_half, int64_t size,
            const int32_t* experts, int64_t count, const Coefficients& coefficients) {
  if (is_half)
    update(weight, moment1, moment2, static_cast<const uint16_t*>(gradient), size, experts, count, coefficients);
  else
    update(weight, moment1, moment2, static_cast<const float*>(gradient), size, experts, count, coefficients);
}

}  // namespace

// Called through ctypes: must not throw; Python checks its arguments.
ASCEND_OP void expert_adam(float* weight, float* moment1, float* moment2, const void* gradient, int is_half,
                           int64_t size, const int32_t* experts, int64_t count, const float* step_size,
                           const float* eps, const float* constants) {
  update(weight, moment1, moment2, gradient, is_half, size, experts, count, {step_size, eps, constants});
}

// in: weight, moment1, moment2 float32 [E, ...], gradient float32 or float16 [E, ...], experts int32 [U],
//     step size float32 [U], eps float32 [U], constants float32 [5]
// out: int32 [1], U; the first three inputs are changed in place
ASCEND_OP int expert_adam_op(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Array weight = arguments[0], gradient = arguments[3];
  const int64_t num_experts = weight.shape[0], num_updated = arguments[4].size();
  const int32_t* experts = arguments[4].as<int32_t>();
  std::vector<bool> seen(num_experts);
  for (int64_t i = 0; i < num_updated; ++i) {
    if (experts[i] < 0 || experts[i] >= num_experts)
      fail("expert_adam: expert %d is outside %ld experts", experts[i], num_experts);
    if (seen[experts[i]]) fail("expert_adam: expert %d is listed more than once", experts[i]);
    seen[experts[i]] = true;
  }
  update(weight.as<float>(), arguments[1].as<float>(), arguments[2].as<float>(), gradient.data,
         gradient.is("float16"), weight.size() / num_experts, experts, num_updated,
         {arguments[5].as<float>(), arguments[6].as<float>(), arguments[7].as<float>()});
  *arguments[8].as<int32_t>() = static_cast<int32_t>(num_updated);
  return 0;
}
