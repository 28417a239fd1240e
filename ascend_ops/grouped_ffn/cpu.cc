// grouped_ffn on the host: every expert's matmuls on its own rows, in float32, by the MindSpore wheel's oneDNN.
//
// The threads share pieces of groups. How a group is cut depends only on its size, never on the number of threads:
// results repeat bit for bit on machines of the same kind.
#include "../activation.h"
#include "../gemm.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kPieceRows = 256;    // rows of a group that one call multiplies
constexpr int64_t kTileColumns = 512;  // columns of F whose weight gradient one call computes
constexpr int64_t kRoundRows = 1024;   // rows of a round of the backward pass: what it keeps stays in the cache

// The tensors that an expert may have, in their order in a slab; -1 for those that it lacks.
struct Network {
  int gate, gate_bias, up, up_bias, scale, shift, down, down_bias;
  bool is_silu;
  int size;  // number of tensors

  // layout int32 [9]: the index of each tensor, and whether the activation is silu
  explicit Network(const Array& layout) {
    const int32_t* index = layout.as<int32_t>();
    gate = index[0], gate_bias = index[1], up = index[2], up_bias = index[3];
    scale = index[4], shift = index[5], down = index[6], down_bias = index[7];
    is_silu = index[8] != 0;
    size = std::max(down, down_bias) + 1;
  }

  bool is_gated() const { return gate >= 0; }
  bool is_series() const { return scale >= 0; }
  float slope() const { return is_silu ? 1.0f : kSlope; }
};

// The ragged groups: T rows sorted by group, slot after slot and expert after expert; rows after the last group are padding.
struct Groups {
  int64_t num_rows, hidden, inner, num_experts, terms;
  int64_t used = 0;  // rows that belong to a group
  std::vector<int64_t> starts, sizes;

  // `first` is the index of the first slab among the arguments
  Groups(const Array& rows, const Array& counts, const Arguments& arguments, int first, const Network& network)
      : num_rows(rows.shape[0]), hidden(rows.shape[1]) {
    const Array up = arguments[first + network.up];  // [E, H, F], or [H, F] for a single expert
    num_experts = up.rank == 3 ? up.shape[0] : 1;
    inner = up.shape[up.rank - 1];
    terms = 0;
    if (network.is_series()) {
      const Array scale = arguments[first + network.scale];
      terms = scale.shape[scale.rank - 2];
    }
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

// Cuts rows [first, last) into pieces of single groups, the largest first, so that the threads finish together.
std::vector<Piece> cut_into_pieces(const Groups& groups, int64_t first, int64_t last, int64_t most_rows = kPieceRows) {
  std::vector<Piece> pieces;
  for (int64_t group = 0; group < groups.size(); ++group) {
    const int64_t begin = std::max(groups.starts[group], first);
    const int64_t size = std::min(groups.starts[group] + groups.sizes[group], last) - begin;
    for (int64_t i = 0; size > 0 && i < num_parts(size, most_rows); ++i) {
      const Range rows = part(size, most_rows, i);
      pieces.push_back({group, begin + rows.begin, rows.size()});
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.count > b.count; });
  return pieces;
}

// Zeroes the padding: rows that belong to no group.
void clear_padding(const Groups& groups, float* rows) {
  std::fill(rows + groups.used * groups.hidden, rows + groups.num_rows * groups.hidden, 0.0f);
}

// The tensors of one expert, or their gradients; null for those that it lacks.
template <typename Pointer>
struct Expert {
  Pointer gate, gate_bias, up, up_bias, scale, shift, down, down_bias;

  // `slabs` are network.size arrays per slot.
  Expert(const Network& network, const Groups& groups, const std::vector<Pointer>& slabs, int64_t group) {
    const int64_t slot = group / groups.num_experts, expert = group % groups.num_experts;
    const auto of = [&](int index, int64_t size) -> Pointer {
      return index < 0 ? nullptr : slabs[network.size * slot + index] + expert * size;
    };
    const int64_t hidden = groups.hidden, inner = groups.inner;
    gate = of(network.gate, hidden * inner), gate_bias = of(network.gate_bias, inner);
    up = of(network.up, hidden * inner), up_bias = of(network.up_bias, inner);
    scale = of(network.scale, groups.terms * inner), shift = of(network.shift, groups.terms * inner);
    down = of(network.down, inner * hidden), down_bias = of(network.down_bias, hidden);
  }
};

void add_bias(float* rows, const float* bias, int64_t count, int64_t width) {
  if (bias == nullptr) return;
  for (int64_t row = 0; row < count; ++row) {
    float* values = rows + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) values[i] += bias[i];
  }
}

// Adds all rows to the sums, in some columns; the sums begin at 0 if this is the first time.
void sum_rows(const float* rows, int64_t count, int64_t width, Range columns, bool begins, float* sums) {
  if (sums == nullptr) return;
  if (begins) std::fill(sums + columns.begin, sums + columns.end, 0.0f);
  for (int64_t row = 0; row < count; ++row) {
    const float* values = rows + row * width;
#pragma omp simd
    for (int64_t i = columns.begin; i < columns.end; ++i) sums[i] += values[i];
  }
}

// u · sigmoid(slope · u)
inline float activation(float u, float slope) { return u * sigmoid(slope * u); }

inline float derivative(float u, float slope) {
  const float gate = sigmoid(slope * u);
  return gate + slope * u * gate * (1.0f - gate);
}

// The activation of a row, or the series of PanGu-π.
void activate(const Expert<const float*>& expert, int64_t terms, float slope, const float* u, int64_t inner, float* out) {
  if (terms == 0) {
#pragma omp simd
    for (int64_t j = 0; j < inner; ++j) out[j] = activation(u[j], slope);
    return;
  }
  std::fill(out, out + inner, 0.0f);
  for (int64_t i = 0; i < terms; ++i) {
    const float *scale = expert.scale + i * inner, *shift = expert.shift + i * inner;
#pragma omp simd
    for (int64_t j = 0; j < inner; ++j) out[j] += activation(scale[j] * u[j] + shift[j], slope);
  }
}

// The derivative of a series with respect to u.
void differentiate(const Expert<const float*>& expert, int64_t terms, float slope, const float* u, int64_t inner,
                   float* out) {
  std::fill(out, out + inner, 0.0f);
  for (int64_t i = 0; i < terms; ++i) {
    const float *scale = expert.scale + i * inner, *shift = expert.shift + i * inner;
#pragma omp simd
    for (int64_t j = 0; j < inner; ++j) out[j] += scale[j] * derivative(scale[j] * u[j] + shift[j], slope);
  }
}

// Does what sum_rows does for the gradients of scale and shift; `dinner` is the gradient of the series.
void sum_series(const Expert<const float*>& expert, const Expert<float*>& gradient, int64_t terms, float slope,
                const float* u, const float* dinner, int64_t count, int64_t inner, Range columns, bool begins) {
  for (int64_t i = 0; i < terms; ++i) {
    const float *scale = expert.scale + i * inner, *shift = expert.shift + i * inner;
    float *dscale = gradient.scale + i * inner, *dshift = gradient.shift + i * inner;
    if (begins) {
      std::fill(dscale + columns.begin, dscale + columns.end, 0.0f);
      std::fill(dshift + columns.begin, dshift + columns.end, 0.0f);
    }
    for (int64_t row = 0; row < count; ++row) {
      const float *values = u + row * inner, *given = dinner + row * inner;
#pragma omp simd
      for (int64_t j = columns.begin; j < columns.end; ++j) {
        const float term = given[j] * derivative(scale[j] * values[j] + shift[j], slope);
        dscale[j] += term * values[j];
        dshift[j] += term;
      }
    }
  }
}

// The activation of a row, and its derivative times dinner, which is the gradient of u. `slopes` is scratch.
void activate_and_differentiate(const Expert<const float*>& expert, int64_t terms, float slope, const float* u,
                                const float* dinner, int64_t inner, float* out, float* du, float* slopes) {
  if (terms == 0) {  // one sigmoid serves both
#pragma omp simd
    for (int64_t j = 0; j < inner; ++j) {
      const float gate = sigmoid(slope * u[j]);
      out[j] = u[j] * gate;
      du[j] = dinner[j] * (gate + slope * u[j] * gate * (1.0f - gate));
    }
    return;
  }
  activate(expert, terms, slope, u, inner, out);
  differentiate(expert, terms, slope, u, inner, slopes);
#pragma omp simd
  for (int64_t j = 0; j < inner; ++j) du[j] = dinner[j] * slopes[j];
}

void multiply_elements(float* values, const float* factors, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) values[j] *= factors[j];
}

}  // namespace

// in: layout int32 [9], rows [T, H], counts int32 [D·E], per slot the tensors that the expert has
// out: [T, H]; for the backward pass rows · up [T, F] and, if there is a gate, rows · gate [T, F], with their biases
ASCEND_OP int grouped_ffn(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Network network(arguments[0]);
  const int num_outputs = network.is_gated() ? 3 : 2, num_slabs = count - 3 - num_outputs;
  const Groups groups(arguments[1], arguments[2], arguments, 3, network);
  const int64_t hidden = groups.hidden, inner = groups.inner;
  std::vector<const float*> slabs;
  for (int i = 0; i < num_slabs; ++i) slabs.push_back(arguments[3 + i].as<float>());
  const float* rows = arguments[1].as<float>();
  float* out = arguments[count - num_outputs].as<float>();
  float* ups = arguments[count - num_outputs + 1].as<float>();
  float* gates = network.is_gated() ? arguments[count - 1].as<float>() : nullptr;

  clear_padding(groups, out);
  const std::vector<Piece> pieces = cut_into_pieces(groups, 0, groups.used);
  Multiplier multiply;
#pragma omp parallel if (2 * groups.used * hidden * inner >= kMultiplicationsWorthThreads)
  {
    static thread_local std::vector<float> activated;
    activated.resize(kPieceRows * inner);
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece piece = pieces[i];
      const Expert<const float*> expert(network, groups, slabs, piece.group);
      const float* source = rows + piece.start * hidden;
      float *up = ups + piece.start * inner, *gate = gates == nullptr ? up : gates + piece.start * inner;
      multiply('N', 'N', piece.count, inner, hidden, source, hidden, expert.up, inner, up, inner);
      add_bias(up, expert.up_bias, piece.count, inner);
      if (network.is_gated()) {
        multiply('N', 'N', piece.count, inner, hidden, source, hidden, expert.gate, inner, gate, inner);
        add_bias(gate, expert.gate_bias, piece.count, inner);
      }
      for (int64_t row = 0; row < piece.count; ++row) {
        float* neurons = activated.data() + row * inner;
        activate(expert, groups.terms, network.slope(), gate + row * inner, inner, neurons);
        if (network.is_gated()) multiply_elements(neurons, up + row * inner, inner);
      }
      float* y = out + piece.start * hidden;
      multiply('N', 'N', piece.count, hidden, inner, activated.data(), inner, expert.down, hidden, y, hidden);
      add_bias(y, expert.down_bias, piece.count, hidden);
    }
  }
  multiply.check("grouped_ffn");
  return 0;
}

// in: layout, dout [T, H], the additional outputs above, then rows, counts and slabs as above
// out: drows [T, H], the gradient of every slab tensor
//
// The rows are processed in rounds. A round first goes back through the activation, then adds its part to the gradients
// of the weights of its groups.
ASCEND_OP int grouped_ffn_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                                   void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Network network(arguments[0]);
  const int first = network.is_gated() ? 6 : 5, num_slabs = (count - first - 1) / 2, first_output = first + num_slabs;
  const Groups groups(arguments[first - 2], arguments[first - 1], arguments, first, network);
  const int64_t hidden = groups.hidden, inner = groups.inner;
  const float slope = network.slope();
  std::vector<const float*> slabs;
  std::vector<float*> gradients;
  for (int i = 0; i < num_slabs; ++i) {
    slabs.push_back(arguments[first + i].as<float>());
    gradients.push_back(arguments[first_output + 1 + i].as<float>());
  }
  const float *dout = arguments[1].as<float>(), *ups = arguments[2].as<float>(), *rows = arguments[first - 2].as<float>();
  const float* gates = network.is_gated() ? arguments[3].as<float>() : ups;
  float* drows = arguments[first_output].as<float>();

  // of the rows of a round, [kRoundRows, F] each: the neurons; the gradients of the input of the activation, of rows ·
  // up, and of the activation
  static thread_local std::vector<float> kept;  // of the thread that launches kernels
  const int64_t round_size = std::min(kRoundRows, groups.num_rows) * inner;
  kept.resize(round_size * (2 + network.is_gated() + network.is_series()));
  float *neurons = kept.data(), *dsources = neurons + round_size;
  float* dups = network.is_gated() ? dsources + round_size : dsources;
  float* dinners = network.is_series() ? dups + round_size : dsources;

  clear_padding(groups, drows);
  Multiplier multiply;
  const int64_t num_tiles = num_parts(inner, kTileColumns);
  std::vector<int64_t> idle;
  for (int64_t group = 0; group < groups.size(); ++group)
    if (groups.sizes[group] == 0) idle.push_back(group);
  struct Round {
    int64_t first;
    std::vector<Piece> pieces, of_weights;  // the second: all rows that a group has in the round
  };
  std::vector<Round> rounds;
  for (int64_t i = 0; i < num_parts(groups.used, kRoundRows); ++i) {
    const auto [begin, end] = part(groups.used, kRoundRows, i);
    rounds.push_back({begin, cut_into_pieces(groups, begin, end), cut_into_pieces(groups, begin, end, kRoundRows)});
  }
#pragma omp parallel
  {
    std::vector<float> slopes(inner);
    // the gradient of an expert without rows is 0
#pragma omp for schedule(dynamic, 1) nowait
    for (size_t i = 0; i < idle.size(); ++i) {
      const Expert<float*> gradient(network, groups, gradients, idle[i]);
      const auto clear = [](float* values, int64_t size) {
        if (values != nullptr) std::fill(values, values + size, 0.0f);
      };
      for (float* matrix : {gradient.gate, gradient.up, gradient.down}) clear(matrix, hidden * inner);
      for (float* vector : {gradient.gate_bias, gradient.up_bias}) clear(vector, inner);
      for (float* vectors : {gradient.scale, gradient.shift}) clear(vectors, groups.terms * inner);
      clear(gradient.down_bias, hidden);
    }
    for (const Round& round : rounds) {
      // back through the activation to the rows
#pragma omp for schedule(dynamic, 1)
      for (size_t i = 0; i < round.pieces.size(); ++i) {
        const Piece piece = round.pieces[i];
        const Expert<const float*> expert(network, groups, slabs, piece.group);
        const int64_t offset = (piece.start - round.first) * inner;
        multiply('N', 'T', piece.count, inner, hidden, dout + piece.start * hidden, hidden, expert.down, hidden,
                 dinners + offset, inner);
        for (int64_t row = 0; row < piece.count; ++row) {
          const int64_t at = offset + row * inner;
          const float* gate = gates + (piece.start + row) * inner;
          float *dinner = dinners + at, *neuron = neurons + at, *dsource = dsources + at;
          if (network.is_gated()) {
            // dinner is the gradient of the neurons: of inner · up
            const float* up = ups + (piece.start + row) * inner;
            float* dup = dups + at;
            std::copy(dinner, dinner + inner, dup);
            multiply_elements(dinner, up, inner);
            activate_and_differentiate(expert, groups.terms, slope, gate, dinner, inner, neuron, dsource, slopes.data());
            multiply_elements(dup, neuron, inner);
            multiply_elements(neuron, up, inner);
          } else {
            activate_and_differentiate(expert, groups.terms, slope, gate, dinner, inner, neuron, dsource, slopes.data());
          }
        }
        float* to = drows + piece.start * hidden;
        multiply('N', 'T', piece.count, hidden, inner, dups + offset, inner, expert.up, inner, to, hidden);
        if (network.is_gated())
          multiply('N', 'T', piece.count, hidden, inner, dsources + offset, inner, expert.gate, inner, to, hidden, 1.0f);
      }
      // weights: one tile of F at a time, so that a few large groups also occupy all threads
#pragma omp for schedule(dynamic, 1) collapse(2)
      for (size_t i = 0; i < round.of_weights.size(); ++i) {
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
          const Piece piece = round.of_weights[i];
          const Range columns = part(inner, kTileColumns, tile);
          const int64_t offset = (piece.start - round.first) * inner;
          const bool begins = piece.start == groups.starts[piece.group];  // the first rows of the group: set, else add
          const float beta = begins ? 0.0f : 1.0f;
          const Expert<const float*> expert(network, groups, slabs, piece.group);
          const Expert<float*> gradient(network, groups, gradients, piece.group);
          const auto of_rows = [&](const float* dcolumns, float* to) {
            if (to != nullptr)
              multiply('T', 'N', hidden, columns.size(), piece.count, rows + piece.start * hidden, hidden,
                       dcolumns + offset + columns.begin, inner, to + columns.begin, inner, beta);
          };
          of_rows(dups, gradient.up);
          of_rows(dsources, gradient.gate);
          multiply('T', 'N', columns.size(), hidden, piece.count, neurons + offset + columns.begin, inner,
                   dout + piece.start * hidden, hidden, gradient.down + columns.begin * hidden, hidden, beta);
          sum_rows(dups + offset, piece.count, inner, columns, begins, gradient.up_bias);
          sum_rows(dsources + offset, piece.count, inner, columns, begins, gradient.gate_bias);
          if (network.is_series())
            sum_series(expert, gradient, groups.terms, slope, gates + piece.start * inner, dinners + offset, piece.count,
                       inner, columns, begins);
          if (tile == 0)
            sum_rows(dout + piece.start * hidden, piece.count, hidden, {0, hidden}, begins, gradient.down_bias);
        }
      }
    }
  }
  multiply.check("grouped_ffn");
  return 0;
}
