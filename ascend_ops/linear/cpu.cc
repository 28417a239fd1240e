// linear on the host: x · weight + bias for one or several matrices in float32, and all their gradients in one launch.
#include "../gemm.h"

using namespace ascend_ops;

namespace {

// Tiles of the result that one call multiplies; while a tile is cached, its bias is added.
constexpr int64_t kTileRows = 256, kTileColumns = 512;
constexpr int64_t kGradientColumns = 256;  // of a tile of a weight's gradient: few tiles, but enough for all threads

// One weight with its bias and their gradients; `array` is the product or, backward, the product's gradient.
struct Matrix {
  const float* weight;  // [I, O]
  float *array, *dweight, *dbias;
  const float* bias;
  int64_t outputs;
};

// A tile: of the result of a matrix, of the gradient of a weight, or of the gradient of x.
struct Tile {
  const Matrix* matrix;  // null for the gradient of x
  Range rows, columns;
};

void cut(std::vector<Tile>& tiles, const Matrix* matrix, int64_t rows, int64_t columns, int64_t most_columns) {
  for (int64_t i = 0; i < num_parts(rows, kTileRows); ++i) {
    for (int64_t j = 0; j < num_parts(columns, most_columns); ++j)
      tiles.push_back({matrix, part(rows, kTileRows, i), part(columns, most_columns, j)});
  }
}

int64_t multiplications(const std::vector<Matrix>& matrices, int64_t num_rows, int64_t inputs) {
  int64_t outputs = 0;
  for (const Matrix& matrix : matrices) outputs += matrix.outputs;
  return num_rows * inputs * outputs;
}

}  // namespace

// in: x [T, I], then for each matrix weight [I, O] and perhaps bias [O]: all or none have one
// out: for each matrix [T, O]
ASCEND_OP int linear(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t num_rows = arguments[0].shape[0], inputs = arguments[0].shape[1];
  const int per_matrix = arguments[2].rank == 1 ? 2 : 1, num_matrices = (count - 1) / (per_matrix + 1);
  const float* x = arguments[0].as<float>();
  std::vector<Matrix> matrices;
  for (int i = 0; i < num_matrices; ++i) {
    const Array weight = arguments[1 + i * per_matrix];
    const float* bias = per_matrix == 2 ? arguments[2 + i * per_matrix].as<float>() : nullptr;
    float* out = arguments[count - num_matrices + i].as<float>();
    matrices.push_back({weight.as<float>(), out, nullptr, nullptr, bias, weight.shape[1]});
  }
  std::vector<Tile> tiles;
  for (const Matrix& matrix : matrices) cut(tiles, &matrix, num_rows, matrix.outputs, kTileColumns);

  Multiplier multiply;
#pragma omp parallel for schedule(dynamic, 1) if (multiplications(matrices, num_rows, inputs) >= kMultiplicationsWorthThreads)
  for (size_t i = 0; i < tiles.size(); ++i) {
    const auto [matrix, rows, columns] = tiles[i];
    const int64_t outputs = matrix->outputs;
    float* tile = matrix->array + rows.begin * outputs + columns.begin;
    multiply('N', 'N', rows.size(), columns.size(), inputs, x + rows.begin * inputs, inputs,
             matrix->weight + columns.begin, outputs, tile, outputs);
    if (matrix->bias == nullptr) continue;
    const float* bias = matrix->bias + columns.begin;
    for (int64_t row = 0; row < rows.size(); ++row) {
#pragma omp simd
      for (int64_t j = 0; j < columns.size(); ++j) tile[row * outputs + j] += bias[j];
    }
  }
  multiply.check("linear");
  return 0;
}

// in: for each matrix dout [T, O]; x [T, I]; for each matrix weight [I, O]
// out: dx [T, I]; for each matrix dweight [I, O] and, if they have biases, dbias [O]
ASCEND_OP int linear_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int per_matrix = arguments[count - 1].rank == 1 ? 2 : 1, num_matrices = (count - 2) / (2 + per_matrix);
  const Array input = arguments[num_matrices];
  const int64_t num_rows = input.shape[0], inputs = input.shape[1];
  const float* x = input.as<float>();
  float* dx = arguments[2 * num_matrices + 1].as<float>();
  std::vector<Matrix> matrices;
  for (int i = 0; i < num_matrices; ++i) {
    const Array weight = arguments[num_matrices + 1 + i];
    const int gradient = 2 * num_matrices + 2 + i * per_matrix;
    float* dbias = per_matrix == 2 ? arguments[gradient + 1].as<float>() : nullptr;
    matrices.push_back({weight.as<float>(), arguments[i].as<float>(), arguments[gradient].as<float>(), dbias, nullptr,
                        weight.shape[1]});
  }
  std::vector<Tile> tiles;  // weights' gradients first, then the gradient of x
  for (const Matrix& matrix : matrices) cut(tiles, &matrix, inputs, matrix.outputs, kGradientColumns);
  cut(tiles, nullptr, num_rows, inputs, kTileColumns);

  Multiplier multiply;
#pragma omp parallel for schedule(dynamic, 1) if (multiplications(matrices, num_rows, inputs) >= kMultiplicationsWorthThreads)
  for (size_t i = 0; i < tiles.size(); ++i) {
    const auto [matrix, rows, columns] = tiles[i];
    if (matrix == nullptr) {
      float* tile = dx + rows.begin * inputs + columns.begin;
      for (size_t j = 0; j < matrices.size(); ++j)
        multiply('N', 'T', rows.size(), columns.size(), matrices[j].outputs,
                 matrices[j].array + rows.begin * matrices[j].outputs, matrices[j].outputs,
                 matrices[j].weight + columns.begin * matrices[j].outputs, matrices[j].outputs, tile, inputs,
                 j == 0 ? 0.0f : 1.0f);
      continue;
    }
    const int64_t outputs = matrix->outputs;
    const float* dout = matrix->array;
    multiply('T', 'N', rows.size(), columns.size(), num_rows, x + rows.begin, inputs, dout + columns.begin, outputs,
             matrix->dweight + rows.begin * outputs + columns.begin, outputs);
    if (matrix->dbias == nullptr || rows.begin > 0) continue;
    float* dbias = matrix->dbias;
    std::fill(dbias + columns.begin, dbias + columns.end, 0.0f);
    for (int64_t row = 0; row < num_rows; ++row) {
#pragma omp simd
      for (int64_t j = columns.begin; j < columns.end; ++j) dbias[j] += dout[row * outputs + j];
    }
  }
  multiply.check("linear");
  return 0;
}
