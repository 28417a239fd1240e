// rre_combine on the host: returns rows to token order and adds the residual in the same pass.
#include "../cpu_kernel.h"

using namespace ascend_ops;

namespace {

void check_positions(const int32_t* positions, int64_t num_tokens) {
  for (int64_t t = 0; t < num_tokens; ++t)
    if (positions[t] < 0 || positions[t] >= num_tokens)
      fail("rre_combine: position %d of token %ld is outside %ld rows", positions[t], t, num_tokens);
}

template <typename T, typename Accumulator>
void combine(const Array& rows, const int32_t* positions, const Array& residual, const Array& out) {
  const int64_t num_tokens = rows.shape[0], hidden = rows.shape[1];
#pragma omp parallel for schedule(static) if (num_tokens * rows.row_bytes() >= kBytesWorthThreads)
  for (int64_t t = 0; t < num_tokens; ++t) {
    const T* row = rows.as<T>() + positions[t] * hidden;
    const T* kept = residual.as<T>() + t * hidden;
    T* sum = out.as<T>() + t * hidden;
#pragma omp simd
    for (int64_t i = 0; i < hidden; ++i)
      sum[i] = static_cast<T>(static_cast<Accumulator>(kept[i]) + static_cast<Accumulator>(row[i]));
  }
}

}  // namespace

// in: rows [T, H], positions int32 [T], residual [T, H]   out: [T, H]
ASCEND_OP int rre_combine(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Array rows = arguments[0], residual = arguments[2], out = arguments[3];
  const int32_t* positions = arguments[1].as<int32_t>();
  check_positions(positions, rows.shape[0]);
  if (rows.is("float32"))
    combine<float, float>(rows, positions, residual, out);
  else if (rows.is("float64"))
    combine<double, double>(rows, positions, residual, out);
  else if (rows.is("float16"))
    combine<half, float>(rows, positions, residual, out);
  else
    fail("rre_combine: no CPU kernel for dtype %s", rows.dtype);
  return 0;
}

// in: dout [T, H], positions int32 [T]   out: drows [T, H]
ASCEND_OP int rre_combine_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                                   void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t num_tokens = arguments[0].shape[0], row_bytes = arguments[0].row_bytes();
  const char* dout = arguments[0].as<char>();
  const int32_t* positions = arguments[1].as<int32_t>();
  char* drows = arguments[2].as<char>();
  check_positions(positions, num_tokens);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < num_tokens; ++t)
    std::memcpy(drows + positions[t] * row_bytes, dout + t * row_bytes, row_bytes);
  return 0;
}
