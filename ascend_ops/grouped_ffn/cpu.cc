// grouped_ffn on the host: every expert's two matmuls on its own rows, in float32, by the MindSpore wheel's oneDNN.
//
// That oneDNN's sgemm runs on the calling thread, so the threads share pieces of groups. How a group is split depends
// only on its size, never on the number of threads: results repeat bit for bit on machines of the same kind.
#include <atomic>

#include "../activation.h"
#include "../cpu_kernel.h"

using namespace ascend_ops;

extern "C" int dnnl_sgemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

namespace {

constexpr int64_t kPieceRows = 256;     // rows of a group that one call multiplies
constexpr int64_t kTileColumns = 512;   // columns of F whose weight gradient one call computes
constexpr int64_t kWorthThreads = 1 << 23;  // multiplications; generation has few, and waiting threads spin

// Matrix products. A thread of a parallel region must not throw, so errors of oneDNN are kept until the end.
class Multiplier {
 public:
  // c [m, n] = a · b, with a [m, k] or its transpose and b [k, n] or its transpose; rows are ld* floats apart.
  void operator()(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const float* b, int64_t ldb, float* c, int64_t ldc) {
    const int status = dnnl_sgemm(transpose_a, transpose_b, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, c, ldc);
    if (status != 0) status_ = status;
  }

  void check() const {
    if (status_ != 0) fail("grouped_ffn: oneDNN's sgemm failed with status %d", status_.load());
  }

 private:
  std::atomic<int> status_{0};
};

struct Weights {
  const float *up, *up_bias, *down, *down_bias;
};
struct Gradients {
  float *up, *up_bias, *down, *down_bias;
};

// The ragged groups: T rows sorted by group, slot after slot and expert after expert; rows after the last group are padding.
struct Groups {
  int64_t num_rows, hidden, inner, num_experts;
  int64_t used = 0;  // rows that belong to a group
  std::vector<int64_t> starts, sizes;

  Groups(const Array& rows, const Array& counts, const Array& up)
      : num_rows(rows.shape[0]), hidden(rows.shape[1]), inner(up.shape[2]), num_experts(up.shape[0]) {
    const int32_t* count = counts.as<int32_t>();
    for (int64_t group = 0; group < counts.size(); ++group) {
      if (count[group] < 0) fail("grouped_ffn: group %ld has %d rows", group, count[group]);
      starts.push_back(used);
      sizes.push_back(count[group]);
      used += count[group];
    }
    if (used > num_rows) fail("grouped_ffn: the counts add up to %ld rows of %ld", used, num_rows);
  }

  int64_t size() const { return static_cast<int64_t>(sizes.size()); }
};

// Rows [start, start + count) of one group.
struct Piece {
  int64_t group, start, count;
};

std::vector<Piece> cut_into_pieces(const Groups& groups) {
  std::vector<Piece> pieces;
  for (int64_t group = 0; group < groups.size(); ++group) {
    const int64_t size = groups.sizes[group], num_pieces = (size + kPieceRows - 1) / kPieceRows;
    for (int64_t i = 0; i < num_pieces; ++i) {
      const int64_t first = size * i / num_pieces, last = size * (i + 1) / num_pieces;
      pieces.push_back({group, groups.starts[group] + first, last - first});
    }
  }
  // largest first, so that the threads finish together
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.count > b.count; });
  return pieces;
}

// Zeroes the padding: rows that belong to no group.
void clear_padding(const Groups& groups, float* rows) {
  std::fill(rows + groups.used * groups.hidden, rows + groups.num_rows * groups.hidden, 0.0f);
}

// `slabs` are 4 arrays per slot.
template <typename Pointers, typename Pointer>
Pointers of_group(const Groups& groups, const std::vector<Pointer>& slabs, int64_t group) {
  const int64_t slot = group / groups.num_experts, expert = group % groups.num_experts;
  const int64_t matrix = groups.hidden * groups.inner;
  return {slabs[4 * slot] + expert * matrix, slabs[4 * slot + 1] + expert * groups.inner,
          slabs[4 * slot + 2] + expert * matrix, slabs[4 * slot + 3] + expert * groups.hidden};
}

void add_bias(float* rows, const float* bias, int64_t count, int64_t width) {
  for (int64_t row = 0; row < count; ++row) {
    float* values = rows + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) values[i] += bias[i];
  }
}

void sum_rows(const float* rows, int64_t count, int64_t width, int64_t begin, int64_t end, float* sums) {
  std::fill(sums + begin, sums + end, 0.0f);
  for (int64_t row = 0; row < count; ++row) {
    const float* values = rows + row * width;
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) sums[i] += values[i];
  }
}

}  // namespace

// in: rows [T, H], counts int32 [D·E], per slot up [E, H, F], up bias [E, F], down [E, F, H], down bias [E, H]
// out: [T, H], u [T, F]: the input of the activation, for the backward pass
ASCEND_OP int grouped_ffn(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t num_slots = (count - 4) / 4;
  const Groups groups(arguments[0], arguments[1], arguments[2]);
  const int64_t hidden = groups.hidden, inner = groups.inner;
  std::vector<const float*> slabs;
  for (int64_t i = 0; i < 4 * num_slots; ++i) slabs.push_back(arguments[2 + i].as<float>());
  const float* rows = arguments[0].as<float>();
  float* out = arguments[count - 2].as<float>();
  float* inputs_of_activation = arguments[count - 1].as<float>();

  clear_padding(groups, out);
  const std::vector<Piece> pieces = cut_into_pieces(groups);
  Multiplier multiply;
#pragma omp parallel if (2 * groups.used * hidden * inner >= kWorthThreads)
  {
    static thread_local std::vector<float> activated;
    activated.resize(kPieceRows * inner);
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece piece = pieces[i];
      const auto weights = of_group<Weights>(groups, slabs, piece.group);
      float* u = inputs_of_activation + piece.start * inner;
      multiply('N', 'N', piece.count, inner, hidden, rows + piece.start * hidden, hidden, weights.up, inner, u, inner);
      for (int64_t row = 0; row < piece.count; ++row) {
        float* values = u + row * inner;
        float* activations = activated.data() + row * inner;
#pragma omp simd
        for (int64_t j = 0; j < inner; ++j) {
          values[j] += weights.up_bias[j];
          activations[j] = values[j] * sigmoid(kSlope * values[j]);
        }
      }
      float* y = out + piece.start * hidden;
      multiply('N', 'N', piece.count, hidden, inner, activated.data(), inner, weights.down, hidden, y, hidden);
      add_bias(y, weights.down_bias, piece.count, hidden);
    }
  }
  multiply.check();
  return 0;
}

// in: dout [T, H], u [T, F], then rows, counts and slabs as above
// out: drows [T, H], the gradient of every slab tensor, and two [T, F] of scratch
ASCEND_OP int grouped_ffn_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                                   void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t num_slots = (count - 7) / 8;
  const Groups groups(arguments[2], arguments[3], arguments[4]);
  const int64_t hidden = groups.hidden, inner = groups.inner, first_output = 4 + 4 * num_slots;
  std::vector<const float*> slabs;
  std::vector<float*> gradients;
  for (int64_t i = 0; i < 4 * num_slots; ++i) {
    slabs.push_back(arguments[4 + i].as<float>());
    gradients.push_back(arguments[first_output + 1 + i].as<float>());
  }
  const float* dout = arguments[0].as<float>();
  const float* inputs_of_activation = arguments[1].as<float>();
  const float* rows = arguments[2].as<float>();
  float* drows = arguments[first_output].as<float>();
  float* du = arguments[count - 2].as<float>();
  float* activated = arguments[count - 1].as<float>();

  clear_padding(groups, drows);
  const std::vector<Piece> pieces = cut_into_pieces(groups);
  Multiplier multiply;
  const int64_t num_tiles = (inner + kTileColumns - 1) / kTileColumns;
#pragma omp parallel
  {
    // back through the activation to the rows
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece piece = pieces[i];
      const auto weights = of_group<Weights>(groups, slabs, piece.group);
      const float* u = inputs_of_activation + piece.start * inner;
      float* gradient = du + piece.start * inner;
      float* activations = activated + piece.start * inner;
      multiply('N', 'T', piece.count, inner, hidden, dout + piece.start * hidden, hidden, weights.down, hidden,
               gradient, inner);
#pragma omp simd
      for (int64_t j = 0; j < piece.count * inner; ++j) {
        const float gate = sigmoid(kSlope * u[j]);
        activations[j] = u[j] * gate;
        gradient[j] *= gate + kSlope * u[j] * gate * (1.0f - gate);
      }
      multiply('N', 'T', piece.count, hidden, inner, gradient, inner, weights.up, inner, drows + piece.start * hidden,
               hidden);
    }
    // weights: one tile of F at a time, so that a few large groups also occupy all threads
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int64_t group = 0; group < groups.size(); ++group) {
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t begin = tile * kTileColumns, end = std::min(begin + kTileColumns, inner), width = end - begin;
        const int64_t start = groups.starts[group], size = groups.sizes[group];
        const auto gradient = of_group<Gradients>(groups, gradients, group);
        if (size == 0) {
          for (int64_t row = 0; row < hidden; ++row)
            std::fill(gradient.up + row * inner + begin, gradient.up + row * inner + end, 0.0f);
          std::fill(gradient.down + begin * hidden, gradient.down + end * hidden, 0.0f);
        } else {
          multiply('T', 'N', hidden, width, size, rows + start * hidden, hidden, du + start * inner + begin, inner,
                   gradient.up + begin, inner);
          multiply('T', 'N', width, hidden, size, activated + start * inner + begin, inner, dout + start * hidden,
                   hidden, gradient.down + begin * hidden, hidden);
        }
        sum_rows(du + start * inner, size, inner, begin, end, gradient.up_bias);
        if (tile == 0) sum_rows(dout + start * hidden, size, hidden, 0, hidden, gradient.down_bias);
      }
    }
  }
  multiply.check();
  return 0;
}
