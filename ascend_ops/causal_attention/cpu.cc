// causal_attention on the host, in float32: no transposed copies and no S × S matrix in memory.
//
// A thread takes one head of one sequence at a time and walks over blocks of its queries. The scores of a block are
// computed, used, and forgotten; the backward pass computes them again, as in FlashAttention (arXiv 2205.14135), from
// their maximum and the sum of their exponentials. The logarithm of the sum would lose the digits of large scores.
#include <cmath>

#include "../gemm.h"
#include "../softmax.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kBlockQueries = 64;

// Sizes, and where the head of a sequence lies in arrays [B·S, N·K].
struct Shape {
  int64_t batch, heads, length, size;

  int64_t stride() const { return heads * size; }
  int64_t offset(int64_t sequence, int64_t head) const { return sequence * length * stride() + head * size; }
};

// The rows of one head, `stride` floats apart.
struct Rows {
  const float* data;
  int64_t stride;

  const float* operator[](int64_t row) const { return data + row * stride; }
};

// Rotary positions: the two halves of a row are the parts of K/2 complex numbers, which are turned by angles.
struct Rotation {
  const int32_t* positions = nullptr;  // [B, S]; null for no rotation
  const float *cosine = nullptr, *sine = nullptr;  // [C, K/2]

  // Turns the rows of a head by the angles of their positions, times `direction`.
  void turn(const Shape& shape, int64_t sequence, Rows from, float direction, float* to, int64_t to_stride) const {
    const int64_t half = shape.size / 2;
    for (int64_t i = 0; i < shape.length; ++i) {
      const int64_t position = positions[sequence * shape.length + i];
      const float *c = cosine + position * half, *s = sine + position * half, *first = from[i], *second = first + half;
      float* row = to + i * to_stride;
#pragma omp simd
      for (int64_t k = 0; k < half; ++k) {
        const float a = first[k], b = second[k];
        row[k] = a * c[k] - direction * b * s[k];
        row[half + k] = b * c[k] + direction * a * s[k];
      }
    }
  }
};

// Queries [begin, end) of a head, and the keys that at least one of them may look at: [first_key, end).
struct Block {
  int64_t begin, end, first_key;

  int64_t queries() const { return end - begin; }
  int64_t keys() const { return end - first_key; }
};

Block block_at(int64_t begin, int64_t length, const int32_t* first_keys) {
  const int64_t end = std::min(begin + kBlockQueries, length);
  return {begin, end, *std::min_element(first_keys + begin, first_keys + end)};
}

struct Inputs {
  Shape shape;
  const float *query, *key, *value;
  const int32_t* first_keys;  // [B, S]: the first key that each query may look at
  Rotation rotation;

  // Arguments from `first`: query, key, value, first keys, and perhaps positions, cosine and sine.
  Inputs(const Arguments& arguments, int first, const Array& softmax_sums, bool rotates)
      : query(arguments[first].as<float>()),
        key(arguments[first + 1].as<float>()),
        value(arguments[first + 2].as<float>()),
        first_keys(arguments[first + 3].as<int32_t>()) {
    const int64_t *of_sums = softmax_sums.shape, batch = of_sums[0], heads = of_sums[1], length = of_sums[2];
    shape = {batch, heads, length, arguments[first].shape[1] / heads};
    for (int64_t i = 0; i < batch * length; ++i)
      if (first_keys[i] < 0 || first_keys[i] > i % length)
        fail("causal_attention: the first key of token %ld of a sequence is %d; expected 0 to %ld", i % length,
             first_keys[i], i % length);
    if (!rotates) return;
    rotation = {arguments[first + 4].as<int32_t>(), arguments[first + 5].as<float>(), arguments[first + 6].as<float>()};
    const int64_t capacity = arguments[first + 5].shape[0];
    for (int64_t i = 0; i < batch * length; ++i)
      if (rotation.positions[i] < 0 || rotation.positions[i] >= capacity)
        fail("causal_attention: a position is %d; expected 0 to %ld", rotation.positions[i], capacity - 1);
  }

  bool rotates() const { return rotation.positions != nullptr; }

  // The rows of a head, turned into `turned` if there is a rotation.
  Rows rows(const float* array, int64_t sequence, int64_t head, std::vector<float>& turned) const {
    const Rows rows = {array + shape.offset(sequence, head), shape.stride()};
    if (!rotates()) return rows;
    turned.resize(shape.length * shape.size);
    rotation.turn(shape, sequence, rows, 1.0f, turned.data(), shape.size);
    return {turned.data(), shape.size};
  }
};

}  // namespace

// in: query, key, value [B·S, N·K], first keys int32 [B, S], and perhaps positions int32 [B, S], cosine, sine [C, K/2]
// out: [B·S, N·K], maximum and sum of each softmax [B, N, S, 2]
ASCEND_OP int causal_attention(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                               void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Inputs inputs(arguments, 0, arguments[count - 1], count == 9);
  const Shape shape = inputs.shape;
  const int64_t length = shape.length, size = shape.size;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  float* out = arguments[count - 2].as<float>();
  SoftmaxSum* sums = arguments[count - 1].as<SoftmaxSum>();

  Multiplier multiply;
#pragma omp parallel if (shape.batch * shape.heads * length * length * size >= kMultiplicationsWorthThreads)
  {
    std::vector<float> scores(kBlockQueries * length), queries, keys;
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t sequence = 0; sequence < shape.batch; ++sequence) {
      for (int64_t head = 0; head < shape.heads; ++head) {
        const Rows query = inputs.rows(inputs.query, sequence, head, queries);
        const Rows key = inputs.rows(inputs.key, sequence, head, keys);
        const Rows value = {inputs.value + shape.offset(sequence, head), shape.stride()};
        const int32_t* first_keys = inputs.first_keys + sequence * length;
        float* to = out + shape.offset(sequence, head);
        SoftmaxSum* of_head = sums + (sequence * shape.heads + head) * length;
        for (int64_t begin = 0; begin < length; begin += kBlockQueries) {
          const Block block = block_at(begin, length, first_keys);
          const int64_t num_keys = block.keys();
          multiply('N', 'T', block.queries(), num_keys, size, query[begin], query.stride, key[block.first_key],
                   key.stride, scores.data(), num_keys, 0.0f, scale);
          for (int64_t i = begin; i < block.end; ++i)
            of_head[i] = exponentials(scores.data() + (i - begin) * num_keys, first_keys[i] - block.first_key,
                                      i + 1 - block.first_key, num_keys);
          multiply('N', 'N', block.queries(), size, num_keys, scores.data(), num_keys, value[block.first_key],
                   value.stride, to + begin * shape.stride(), shape.stride());
          for (int64_t i = begin; i < block.end; ++i) {
            float* row = to + i * shape.stride();
            const float factor = 1.0f / of_head[i].sum;
#pragma omp simd
            for (int64_t k = 0; k < size; ++k) row[k] *= factor;
          }
        }
      }
    }
  }
  multiply.check("causal_attention");
  return 0;
}

// in: dout [B·S, N·K], both outputs, then the inputs as above
// out: dquery, dkey, dvalue [B·S, N·K]
ASCEND_OP int causal_attention_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes,
                                        void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Inputs inputs(arguments, 3, arguments[2], count == 13);
  const Shape shape = inputs.shape;
  const int64_t length = shape.length, size = shape.size, stride = shape.stride();
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  const float *dout = arguments[0].as<float>(), *out = arguments[1].as<float>();
  const SoftmaxSum* sums = arguments[2].as<SoftmaxSum>();
  float* gradients[3];
  for (int i = 0; i < 3; ++i) gradients[i] = arguments[count - 3 + i].as<float>();

  Multiplier multiply;
#pragma omp parallel if (shape.batch * shape.heads * length * length * size >= kMultiplicationsWorthThreads)
  {
    std::vector<float> weights(kBlockQueries * length), dscores(kBlockQueries * length), queries, keys;
    std::vector<float> dqueries(length * size), dkeys(length * size), dvalues(length * size);
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t sequence = 0; sequence < shape.batch; ++sequence) {
      for (int64_t head = 0; head < shape.heads; ++head) {
        const int64_t offset = shape.offset(sequence, head);
        const Rows query = inputs.rows(inputs.query, sequence, head, queries);
        const Rows key = inputs.rows(inputs.key, sequence, head, keys);
        const Rows value = {inputs.value + offset, stride}, given = {dout + offset, stride}, mixed = {out + offset, stride};
        const int32_t* first_keys = inputs.first_keys + sequence * length;
        const SoftmaxSum* of_head = sums + (sequence * shape.heads + head) * length;
        std::fill(dkeys.begin(), dkeys.end(), 0.0f);
        std::fill(dvalues.begin(), dvalues.end(), 0.0f);
        for (int64_t begin = 0; begin < length; begin += kBlockQueries) {
          const Block block = block_at(begin, length, first_keys);
          const int64_t num_keys = block.keys(), first_key = block.first_key, num_queries = block.queries();
          multiply('N', 'T', num_queries, num_keys, size, query[begin], query.stride, key[first_key], key.stride,
                   weights.data(), num_keys, 0.0f, scale);
          multiply('N', 'T', num_queries, num_keys, size, given[begin], stride, value[first_key], stride,
                   dscores.data(), num_keys);
          for (int64_t i = begin; i < block.end; ++i) {
            float *weight = weights.data() + (i - begin) * num_keys, *dscore = dscores.data() + (i - begin) * num_keys;
            const float *result = mixed[i], *gradient = given[i];
            float product = 0.0f;
#pragma omp simd reduction(+ : product)
            for (int64_t k = 0; k < size; ++k) product += result[k] * gradient[k];
            const int64_t first = first_keys[i] - first_key, last = i + 1 - first_key;
            const float highest = of_head[i].highest, factor = 1.0f / of_head[i].sum;
#pragma omp simd
            for (int64_t j = first; j < last; ++j) {
              weight[j] = factor * exponential(weight[j] - highest);
              dscore[j] = weight[j] * (dscore[j] - product) * scale;
            }
            for (float* row : {weight, dscore}) {
              std::fill(row, row + first, 0.0f);
              std::fill(row + last, row + num_keys, 0.0f);
            }
          }
          multiply('T', 'N', num_keys, size, num_queries, weights.data(), num_keys, given[begin], stride,
                   dvalues.data() + first_key * size, size, 1.0f);
          multiply('T', 'N', num_keys, size, num_queries, dscores.data(), num_keys, query[begin], query.stride,
                   dkeys.data() + first_key * size, size, 1.0f);
          multiply('N', 'N', num_queries, size, num_keys, dscores.data(), num_keys, key[first_key], key.stride,
                   dqueries.data() + begin * size, size);
        }
        const std::vector<float>* found[] = {&dqueries, &dkeys, &dvalues};
        for (int i = 0; i < 3; ++i) {
          const Rows from = {found[i]->data(), size};
          float* to = gradients[i] + offset;
          if (inputs.rotates() && i < 2) {
            inputs.rotation.turn(shape, sequence, from, -1.0f, to, stride);
          } else {
            for (int64_t row = 0; row < length; ++row) std::copy(from[row], from[row] + size, to + row * stride);
          }
        }
      }
    }
  }
  multiply.check("causal_attention");
  return 0;
}
