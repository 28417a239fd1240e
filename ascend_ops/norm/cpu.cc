// norm on the host: LayerNorm and RMSNorm of rows in float32, alone or after an addition to the residual stream.
#include <cmath>

#include "../cpu_kernel.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kBlockRows = 32;  // rows whose contributions to the gradients of gamma and beta are summed first

struct RowStatistics {
  float mean, factor;  // the norm is (x − mean) · factor · gamma + beta
};

// LayerNorm (kCentered) subtracts the mean and adds beta; RMSNorm does neither.
template <bool kCentered>
RowStatistics measure(const float* x, int64_t width, float epsilon) {
  float sum = 0.0f;
  if (kCentered) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += x[i];
  }
  const float mean = sum / static_cast<float>(width);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon)};
}

template <bool kCentered>
void forward(const float* x, const float* addend, const float* gamma, const float* beta, float epsilon, int64_t rows,
             int64_t width, float* sum, float* out, RowStatistics* measured) {
#pragma omp parallel for schedule(static) if (rows * width * 4 >= kBytesWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    const float* source = x + row * width;
    if (addend != nullptr) {
      const float* more = addend + row * width;
      float* total = sum + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) total[i] = source[i] + more[i];
      source = total;
    }
    const RowStatistics here = measure<kCentered>(source, width, epsilon);
    float* to = out + row * width;
    measured[row] = here;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float normal = (source[i] - here.mean) * here.factor * gamma[i];
      to[i] = kCentered ? normal + beta[i] : normal;
    }
  }
}

template <bool kCentered>
void backward(const float* dout, const float* dsum, const float* x, const float* gamma, const RowStatistics* measured,
              int64_t rows, int64_t width, float* dx, float* dgamma, float* dbeta) {
  const int64_t num_blocks = (rows + kBlockRows - 1) / kBlockRows;
  std::vector<float> sums(num_blocks * width * 2, 0.0f);  // of gamma and beta, block by block
#pragma omp parallel for schedule(static) if (rows * width * 4 >= kBytesWorthThreads)
  for (int64_t block = 0; block < num_blocks; ++block) {
    float *gamma_sum = sums.data() + block * width * 2, *beta_sum = gamma_sum + width;
    for (int64_t row = block * kBlockRows; row < std::min(rows, (block + 1) * kBlockRows); ++row) {
      const float *source = x + row * width, *gradient = dout + row * width;
      float* to = dx + row * width;
      const RowStatistics here = measured[row];
      float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
      for (int64_t i = 0; i < width; ++i) {
        const float normal = (source[i] - here.mean) * here.factor, scaled = gradient[i] * gamma[i];
        gamma_sum[i] += gradient[i] * normal;
        beta_sum[i] += gradient[i];
        sum += scaled;
        product += scaled * normal;
      }
      const float mean = kCentered ? sum / static_cast<float>(width) : 0.0f;
      product /= static_cast<float>(width);
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const float normal = (source[i] - here.mean) * here.factor;
        to[i] = here.factor * (gradient[i] * gamma[i] - mean - normal * product);
      }
      if (dsum == nullptr) continue;
      const float* past = dsum + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) to[i] += past[i];
    }
  }
  std::fill(dgamma, dgamma + width, 0.0f);
  if (kCentered) std::fill(dbeta, dbeta + width, 0.0f);
  for (int64_t block = 0; block < num_blocks; ++block) {
    const float* of_block = sums.data() + block * width * 2;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) dgamma[i] += of_block[i];
    if (!kCentered) continue;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) dbeta[i] += of_block[width + i];
  }
}

}  // namespace

// in: x [T, H], perhaps the addend [T, H], gamma [H], for LayerNorm beta [H], epsilon [1]
// out: with an addend the sum [T, H]; the norm [T, H]; mean and factor of each row [T, 2]
template <bool kCentered, bool kAdds>
int norm(const Arguments& arguments) {
  const int gamma = kAdds ? 2 : 1, epsilon = gamma + (kCentered ? 2 : 1), first_output = epsilon + 1;
  const int64_t width = arguments[gamma].size();
  forward<kCentered>(arguments[0].as<float>(), kAdds ? arguments[1].as<float>() : nullptr,
                     arguments[gamma].as<float>(), kCentered ? arguments[gamma + 1].as<float>() : nullptr,
                     *arguments[epsilon].as<float>(), arguments[0].size() / width, width,
                     kAdds ? arguments[first_output].as<float>() : nullptr,
                     arguments[first_output + kAdds].as<float>(),
                     arguments[first_output + kAdds + 1].as<RowStatistics>());
  return 0;
}

// in: the gradient of the norm [T, H], perhaps that of the sum [T, H], x or the sum [T, H], gamma [H],
//     mean and factor of each row [T, 2]
// out: dx [T, H], which is also the gradient of the addend, dgamma [H], for LayerNorm dbeta [H]
template <bool kCentered, bool kAdds>
int norm_backward(const Arguments& arguments) {
  const int x = kAdds ? 2 : 1;
  const int64_t width = arguments[x + 1].size();
  backward<kCentered>(arguments[0].as<float>(), kAdds ? arguments[1].as<float>() : nullptr, arguments[x].as<float>(),
                      arguments[x + 1].as<float>(), arguments[x + 2].as<RowStatistics>(), arguments[x].size() / width,
                      width, arguments[x + 3].as<float>(), arguments[x + 4].as<float>(),
                      kCentered ? arguments[x + 5].as<float>() : nullptr);
  return 0;
}

#define NORM(name, centered, adds)                                                                              \
  ASCEND_OP int name(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) { \
    return norm<centered, adds>(Arguments(count, data, ranks, shapes, dtypes));                                 \
  }                                                                                                             \
  ASCEND_OP int name##_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes,      \
                                void*, void*) {                                                                 \
    return norm_backward<centered, adds>(Arguments(count, data, ranks, shapes, dtypes));                        \
  }

NORM(layer_norm, true, false)
NORM(rms_norm, false, false)
NORM(add_layer_norm, true, true)
NORM(add_rms_norm, false, true)
