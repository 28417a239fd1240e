// Matrix products by the oneDNN of the MindSpore wheel, whose sgemm runs on the thread that calls it.
//
// So the threads of a kernel share tiles of the result. Tiles depend only on the sizes of the matrices, never on the
// number of threads: results repeat bit for bit on any number of cores of machines of the same kind.
#pragma once

#include <atomic>

#include "cpu_kernel.h"

extern "C" int dnnl_sgemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

namespace ascend_ops {

// Multiplications from which on waking the threads is worth it. Generation has few, and waiting threads spin.
constexpr int64_t kMultiplicationsWorthThreads = 1 << 22;

// A thread of a parallel region must not throw, so an error of oneDNN is kept until `check`.
class Multiplier {
 public:
  // c [m, n] = alpha · a · b + beta · c, with a [m, k] and b [k, n], or their transposes; rows are ld* floats apart.
  void operator()(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const float* b, int64_t ldb, float* c, int64_t ldc, float beta = 0.0f, float alpha = 1.0f) {
    const int status = dnnl_sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    if (status != 0) status_ = status;
  }

  void check(const char* kernel) const {
    if (status_ != 0) fail("%s: oneDNN's sgemm failed with status %d", kernel, status_.load());
  }

 private:
  std::atomic<int> status_{0};
};

// [begin, end) of part i when `size` is cut into equal parts of at most `most`.
struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

inline int64_t num_parts(int64_t size, int64_t most) { return (size + most - 1) / most; }

inline Range part(int64_t size, int64_t most, int64_t i) {
  const int64_t parts = num_parts(size, most);
  return {size * i / parts, size * (i + 1) / parts};
}

}  // namespace ascend_ops
