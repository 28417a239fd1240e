// dense_adam on the host: AdamW on all parameters of a model in one launch, and the squared norm of all gradients.
#include "../adam.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kBlock = 1 << 14;  // elements per piece of work

// Elements [begin, end) of one array.
struct Piece {
  int64_t array, begin, end;
};

std::vector<Piece> cut_into_pieces(const Arguments& arguments, int first, int64_t num_arrays) {
  std::vector<Piece> pieces;
  for (int64_t array = 0; array < num_arrays; ++array) {
    const int64_t size = arguments[first + array].size();
    for (int64_t begin = 0; begin < size; begin += kBlock) pieces.push_back({array, begin, std::min(begin + kBlock, size)});
  }
  return pieces;
}

}  // namespace

// in: float32 [8]: the constants of adam_block, step size, epsilon, and the scale of the gradients, which the constants
//     contain; int32 [P]: whether a parameter decays; then P weights, first moments, second moments, and gradients
// out: int32 [1], P; weights and moments are changed in place
ASCEND_OP int dense_adam(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const float* scalars = arguments[0].as<float>();
  const int32_t* decays = arguments[1].as<int32_t>();
  const int64_t num_parameters = arguments[1].size();
  const float without_decay[] = {1.0f, scalars[1], scalars[2], scalars[3], scalars[4]};
  const std::vector<Piece> pieces = cut_into_pieces(arguments, 2, num_parameters);
#pragma omp parallel
  {
    const IeeeArithmetic here;
#pragma omp for schedule(static)
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece piece = pieces[i];
      float* arrays[4];
      for (int64_t kind = 0; kind < 4; ++kind)
        arrays[kind] = static_cast<float*>(data[2 + kind * num_parameters + piece.array]) + piece.begin;
      adam_block(arrays[0], arrays[1], arrays[2], arrays[3], piece.end - piece.begin, scalars[5], scalars[6],
                 decays[piece.array] != 0 ? scalars : without_decay);
    }
  }
  *arguments[count - 1].as<int32_t>() = static_cast<int32_t>(num_parameters);
  return 0;
}

// in: a factor for each array float32 [P], then P arrays float32
// out: float32 [1]: the sum of factor · Σ x²
ASCEND_OP int squared_norm(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const float* factors = arguments[0].as<float>();
  const std::vector<Piece> pieces = cut_into_pieces(arguments, 1, arguments[0].size());
  std::vector<double> sums(pieces.size());
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece piece = pieces[i];
    const float* array = static_cast<const float*>(data[1 + piece.array]);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = piece.begin; j < piece.end; ++j) sum += static_cast<double>(array[j]) * array[j];
    sums[i] = factors[piece.array] * sum;
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  *arguments[count - 1].as<float>() = static_cast<float>(total);
  return 0;
}
