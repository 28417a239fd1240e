// The limits of the benchmark: how fast this machine copies, streams and multiplies, on all its threads.
//
// Plain C functions, called through ctypes. They allocate nothing that a second call would allocate again.
#include <atomic>

#include "../activation.h"
#include "../gemm.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kBlockRows = 256;  // rows that one call multiplies: its result stays in the cache for the next call

struct Part {
  int64_t begin, end;
};

// This thread's share of `size`, in whole multiples of `unit`.
Part part_of_thread(int64_t size, int64_t unit) {
  const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num(), units = (size + unit - 1) / unit;
  return {std::min(size, units * thread / threads * unit), std::min(size, units * (thread + 1) / threads * unit)};
}

}  // namespace

ASCEND_OP int num_threads() { return omp_get_max_threads(); }

// One memcpy per thread.
ASCEND_OP void copy(char* destination, const char* source, int64_t bytes) {
#pragma omp parallel
  {
    const Part part = part_of_thread(bytes, 4096);
    std::memcpy(destination + part.begin, source + part.begin, part.end - part.begin);
  }
}

// Reads four arrays and writes three of them: the memory traffic of Adam, with hardly any arithmetic.
ASCEND_OP void stream(float* a, float* b, float* c, const float* d, int64_t size) {
#pragma omp parallel
  {
    const Part part = part_of_thread(size, 1024);
#pragma omp simd
    for (int64_t i = part.begin; i < part.end; ++i) {
      const float value = 0.125f * d[i];
      a[i] = 0.5f * a[i] + value;
      b[i] = 0.5f * b[i] + value;
      c[i] = 0.5f * c[i] + value;
    }
  }
}

// c [m, n] = a · b by one call per thread, which has equal shares of the longer side of c. Returns oneDNN's status.
ASCEND_OP int product(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                      const float* b, float* c) {
  std::atomic<int> status{0};
  const int64_t lda = transpose_a == 'T' ? m : k, ldb = transpose_b == 'T' ? k : n;
#pragma omp parallel
  {
    const Part rows = m >= n ? part_of_thread(m, 16) : Part{0, m}, columns = m >= n ? Part{0, n} : part_of_thread(n, 16);
    const int64_t num_rows = rows.end - rows.begin, num_columns = columns.end - columns.begin;
    if (num_rows > 0 && num_columns > 0)
      status |= dnnl_sgemm(transpose_a, transpose_b, num_rows, num_columns, k, 1,
                           a + rows.begin * (transpose_a == 'T' ? 1 : k), lda,
                           b + columns.begin * (transpose_b == 'T' ? k : 1), ldb, 0, c + rows.begin * n + columns.begin,
                           n);
  }
  return status;
}

// One expert's feed-forward network on all T rows, keeping u [T, F]; threads share the rows. Returns oneDNN's status.
ASCEND_OP int dense_forward(const float* rows, const float* up, const float* up_bias, const float* down,
                            const float* down_bias, float* u, float* activated, float* out, int64_t num_rows,
                            int64_t hidden, int64_t inner) {
  std::atomic<int> status{0};
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t start = 0; start < num_rows; start += kBlockRows) {
    const int64_t count = std::min(kBlockRows, num_rows - start);
    float *values = u + start * inner, *y = out + start * hidden;
    float* activations = activated + omp_get_thread_num() * kBlockRows * inner;  // a block per thread stays cached
    status |= dnnl_sgemm('N', 'N', count, inner, hidden, 1, rows + start * hidden, hidden, up, inner, 0, values, inner);
    for (int64_t row = 0; row < count; ++row) {
#pragma omp simd
      for (int64_t j = 0; j < inner; ++j) {
        const float value = values[row * inner + j] + up_bias[j];
        values[row * inner + j] = value;
        activations[row * inner + j] = value * sigmoid(kSlope * value);
      }
    }
    status |= dnnl_sgemm('N', 'N', count, hidden, inner, 1, activations, inner, down, hidden, 0, y, hidden);
    for (int64_t row = 0; row < count; ++row) {
#pragma omp simd
      for (int64_t i = 0; i < hidden; ++i) y[row * hidden + i] += down_bias[i];
    }
  }
  return status;
}

// The gradients of dense_forward: threads share the rows for drows, and F for the weights.
ASCEND_OP int dense_backward(const float* dout, const float* u, const float* rows, const float* up, const float* down,
                             float* du, float* activated, float* drows, float* dup, float* dup_bias, float* ddown,
                             float* ddown_bias, int64_t num_rows, int64_t hidden, int64_t inner) {
  std::atomic<int> status{0};
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t start = 0; start < num_rows; start += kBlockRows) {
      const int64_t count = std::min(kBlockRows, num_rows - start), offset = start * inner;
      status |= dnnl_sgemm('N', 'T', count, inner, hidden, 1, dout + start * hidden, hidden, down, hidden, 0,
                           du + offset, inner);
#pragma omp simd
      for (int64_t j = offset; j < offset + count * inner; ++j) {
        const float gate = sigmoid(kSlope * u[j]);
        activated[j] = u[j] * gate;
        du[j] *= gate + kSlope * u[j] * gate * (1.0f - gate);
      }
      status |= dnnl_sgemm('N', 'T', count, hidden, inner, 1, du + offset, inner, up, inner, 0, drows + start * hidden,
                           hidden);
    }
    const Part part = part_of_thread(inner, 16);
    const int64_t width = part.end - part.begin;
    if (width > 0) {
      status |= dnnl_sgemm('T', 'N', hidden, width, num_rows, 1, rows, hidden, du + part.begin, inner, 0,
                           dup + part.begin, inner);
      status |= dnnl_sgemm('T', 'N', width, hidden, num_rows, 1, activated + part.begin, inner, dout, hidden, 0,
                           ddown + part.begin * hidden, hidden);
    }
    std::fill(dup_bias + part.begin, dup_bias + part.end, 0.0f);
    const Part outer = part_of_thread(hidden, 16);
    std::fill(ddown_bias + outer.begin, ddown_bias + outer.end, 0.0f);
    for (int64_t row = 0; row < num_rows; ++row) {
#pragma omp simd
      for (int64_t j = part.begin; j < part.end; ++j) dup_bias[j] += du[row * inner + j];
#pragma omp simd
      for (int64_t i = outer.begin; i < outer.end; ++i) ddown_bias[i] += dout[row * hidden + i];
    }
  }
  return status;
}
