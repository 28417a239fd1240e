// linear on the host: x · weight + bias in float32, and all its gradients in one launch.
#include "../gemm.h"

using namespace ascend_ops;

namespace {

// Tiles of the result that one call multiplies; while a tile is cached, its bias is added.
constexpr int64_t kTileRows = 256, kTileColumns = 512;
constexpr int64_t kGradientColumns = 128;  // of a tile of the weight's gradient: few tiles, but enough for all threads

}  // namespace

// in: x [T, I], weight [I, O], and perhaps bias [O]
// out: [T, O]
ASCEND_OP int linear(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t num_rows = arguments[0].shape[0], inputs = arguments[1].shape[0], outputs = arguments[1].shape[1];
  const float *x = arguments[0].as<float>(), *weight = arguments[1].as<float>();
  const float* bias = count == 4 ? arguments[2].as<float>() : nullptr;
  float* out = arguments[count - 1].as<float>();

  Multiplier multiply;
#pragma omp parallel for collapse(2) schedule(dynamic, 1) if (num_rows * inputs * outputs >= kMultiplicationsWorthThreads)
  for (int64_t i = 0; i < num_parts(num_rows, kTileRows); ++i) {
    for (int64_t j = 0; j < num_parts(outputs, kTileColumns); ++j) {
      const Range rows = part(num_rows, kTileRows, i), columns = part(outputs, kTileColumns, j);
      float* tile = out + rows.begin * outputs + columns.begin;
      multiply('N', 'N', rows.size(), columns.size(), inputs, x + rows.begin * inputs, inputs, weight + columns.begin,
               outputs, tile, outputs);
      if (bias == nullptr) continue;
      for (int64_t row = 0; row < rows.size(); ++row) {
#pragma omp simd
        for (int64_t k = 0; k < columns.size(); ++k) tile[row * outputs + k] += bias[columns.begin + k];
      }
    }
  }
  multiply.check("linear");
  return 0;
}

// in: dout [T, O], x [T, I], weight [I, O]
// out: dx [T, I], dweight [I, O], and perhaps dbias [O]
ASCEND_OP int linear_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t num_rows = arguments[1].shape[0], inputs = arguments[2].shape[0], outputs = arguments[2].shape[1];
  const float *dout = arguments[0].as<float>(), *x = arguments[1].as<float>(), *weight = arguments[2].as<float>();
  float *dx = arguments[3].as<float>(), *dweight = arguments[4].as<float>();
  float* dbias = count == 6 ? arguments[5].as<float>() : nullptr;

  const int64_t weight_columns = num_parts(outputs, kGradientColumns);
  const int64_t weight_tiles = num_parts(inputs, kTileRows) * weight_columns;
  const int64_t row_columns = num_parts(inputs, kTileColumns);
  const int64_t row_tiles = num_parts(num_rows, kTileRows) * row_columns;
  Multiplier multiply;
#pragma omp parallel for schedule(dynamic, 1) if (num_rows * inputs * outputs >= kMultiplicationsWorthThreads)
  for (int64_t tile = 0; tile < weight_tiles + row_tiles; ++tile) {
    if (tile < weight_tiles) {  // the larger ones first
      const Range rows = part(inputs, kTileRows, tile / weight_columns);
      const Range columns = part(outputs, kGradientColumns, tile % weight_columns);
      multiply('T', 'N', rows.size(), columns.size(), num_rows, x + rows.begin, inputs, dout + columns.begin, outputs,
               dweight + rows.begin * outputs + columns.begin, outputs);
      if (dbias == nullptr || rows.begin > 0) continue;
      std::fill(dbias + columns.begin, dbias + columns.end, 0.0f);
      for (int64_t row = 0; row < num_rows; ++row) {
#pragma omp simd
        for (int64_t k = columns.begin; k < columns.end; ++k) dbias[k] += dout[row * outputs + k];
      }
    } else {
      const Range rows = part(num_rows, kTileRows, (tile - weight_tiles) / row_columns);
      const Range columns = part(inputs, kTileColumns, (tile - weight_tiles) % row_columns);
      multiply('N', 'T', rows.size(), columns.size(), outputs, dout + rows.begin * outputs, outputs,
               weight + columns.begin * outputs, outputs, dx + rows.begin * inputs + columns.begin, inputs);
    }
  }
  multiply.check("linear");
  return 0;
}
