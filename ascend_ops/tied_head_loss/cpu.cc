// tied_head_loss on the host: scores, softmax, loss and gradients chunk by chunk, in float32. The scores of all tokens
// are never in memory.
//
// The gradients are computed with the loss: a separate backward pass would have to compute the scores again.
#include <cmath>

#include "../gemm.h"
#include "../softmax.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kScores = 1 << 23;  // that a chunk aims at
constexpr int64_t kMostTokens = 1024, kFewestTokens = 64;  // bounds on the tokens of a chunk
constexpr int64_t kTileRows = 1024;  // rows of the table that one call multiplies
constexpr int64_t kTileTokens = 128;

// The tokens with their targets, and the rows of the table that belong to each token's vocabulary.
struct Targets {
  int64_t num_tokens, first_row, last_row;  // rows of the table that at least one token needs
  std::vector<Range> rows;   // of each token's vocabulary
  std::vector<int64_t> row;  // of each token's target

  // targets int32 [T], vocabulary of each sample int32 [B], first rows of the vocabularies and the end int32 [W + 1]
  Targets(const Array& targets, const Array& vocabularies, const Array& starts, int64_t table_rows)
      : num_tokens(targets.size()), first_row(table_rows), last_row(0) {
    const int64_t per_sample = num_tokens / std::max<int64_t>(vocabularies.size(), 1);
    for (int64_t token = 0; token < num_tokens; ++token) {
      const int32_t target = targets.as<int32_t>()[token], vocabulary = vocabularies.as<int32_t>()[token / per_sample];
      if (vocabulary < 0 || vocabulary >= starts.size() - 1)
        fail("tied_head_loss: vocabulary %d is outside %ld vocabularies", vocabulary, starts.size() - 1);
      const int32_t* start = starts.as<int32_t>() + vocabulary;
      const Range held = {start[0], start[1]};
      if (held.begin < 0 || held.end > table_rows || held.size() < 1)
        fail("tied_head_loss: a vocabulary has rows %ld to %ld of %ld", held.begin, held.end, table_rows);
      if (target < 0 || target >= held.size())
        fail("tied_head_loss: target %d of token %ld is outside a vocabulary of %ld", target, token, held.size());
      rows.push_back(held);
      row.push_back(held.begin + target);
      first_row = std::min(first_row, held.begin);
      last_row = std::max(last_row, held.end);
    }
  }

  int64_t num_rows() const { return last_row - first_row; }
};

struct Work {
  const float *x, *table, *weights;  // [T, H], [V, H], [T]; no weights: only losses
  int64_t hidden;
  float *losses, *dx, *dtable;
};

void run(const Targets& targets, const Work& work, int64_t table_rows) {
  const int64_t hidden = work.hidden, num_rows = targets.num_rows(), num_tokens = targets.num_tokens;
  const int64_t chunk = std::min(num_tokens, std::clamp(kScores / num_rows, kFewestTokens, kMostTokens));
  // rows an odd number of cache lines apart: a column of scores then spreads over all sets of the cache
  const int64_t stride = ((num_rows + 15) / 16 | 1) * 16, row_tiles = num_parts(num_rows, kTileRows);
  const float* table = work.table + targets.first_row * hidden;
  float* dtable = work.dtable == nullptr ? nullptr : work.dtable + targets.first_row * hidden;
  if (dtable != nullptr) {
    std::fill(work.dtable, dtable, 0.0f);
    std::fill(dtable + num_rows * hidden, work.dtable + table_rows * hidden, 0.0f);
  }
  static thread_local std::vector<float> kept_scores;  // of the thread that launches kernels
  kept_scores.resize(chunk * stride);
  float* scores = kept_scores.data();
  std::vector<float> scaled(chunk * hidden), factors(chunk);
  Multiplier multiply;
#pragma omp parallel if (num_tokens * num_rows * hidden >= kMultiplicationsWorthThreads)
  for (int64_t begin = 0; begin < num_tokens; begin += chunk) {
    const int64_t count = std::min(chunk, num_tokens - begin), token_tiles = num_parts(count, kTileTokens);
    const float* x = work.x + begin * hidden;
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < row_tiles; ++tile) {
      const Range rows = part(num_rows, kTileRows, tile);
      multiply('N', 'T', count, rows.size(), hidden, x, hidden, table + rows.begin * hidden, hidden,
               scores + rows.begin, stride);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = begin + i, target = targets.row[token] - targets.first_row;
      const Range held = targets.rows[token];
      float* row = scores + i * stride;
      const float of_target = row[target];
      const auto [highest, sum] =
          exponentials(row, held.begin - targets.first_row, held.end - targets.first_row, num_rows);
      const float loss = std::log(sum) + (highest - of_target);
      work.losses[token] = work.weights == nullptr ? loss : work.weights[token] * loss;
      if (work.weights == nullptr) continue;
      // the gradient of the scores is factor · (exponentials − sum at the target)
      row[target] -= sum;
      factors[i] = work.weights[token] / sum;
#pragma omp simd
      for (int64_t k = 0; k < hidden; ++k) scaled[i * hidden + k] = factors[i] * x[i * hidden + k];
    }
    if (work.weights == nullptr) continue;
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < row_tiles + token_tiles; ++tile) {
      if (tile < row_tiles) {
        const Range rows = part(num_rows, kTileRows, tile);
        multiply('T', 'N', rows.size(), hidden, count, scores + rows.begin, stride, scaled.data(), hidden,
                 dtable + rows.begin * hidden, hidden, begin > 0 ? 1.0f : 0.0f);
        continue;
      }
      const Range tokens = part(count, kTileTokens, tile - row_tiles);
      float* dx = work.dx + (begin + tokens.begin) * hidden;
      multiply('N', 'N', tokens.size(), hidden, num_rows, scores + tokens.begin * stride, stride, table, hidden, dx,
               hidden);
      for (int64_t i = 0; i < tokens.size(); ++i) {
#pragma omp simd
        for (int64_t k = 0; k < hidden; ++k) dx[i * hidden + k] *= factors[tokens.begin + i];
      }
    }
  }
  multiply.check("tied_head_loss");
}

}  // namespace

// in: x [T, H], table [V, H], targets int32 [T], vocabulary of each sample int32 [B], the vocabularies' first rows and
//     their end int32 [W + 1]
// out: losses [T]
ASCEND_OP int token_losses(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t table_rows = arguments[1].shape[0], hidden = arguments[1].shape[1];
  const Targets targets(arguments[2], arguments[3], arguments[4], table_rows);
  run(targets,
      {arguments[0].as<float>(), arguments[1].as<float>(), nullptr, hidden, arguments[5].as<float>(), nullptr, nullptr},
      table_rows);
  return 0;
}

// in: as above, then the weight of each loss [T]
// out: the sum of the weighted losses [1], the weighted losses [T], and the sum's gradients: dx [T, H], dtable [V, H]
ASCEND_OP int weighted_losses(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const int64_t table_rows = arguments[1].shape[0], hidden = arguments[1].shape[1];
  const Targets targets(arguments[2], arguments[3], arguments[4], table_rows);
  float* losses = arguments[7].as<float>();
  run(targets,
      {arguments[0].as<float>(), arguments[1].as<float>(), arguments[5].as<float>(), hidden, losses,
       arguments[8].as<float>(), arguments[9].as<float>()},
      table_rows);
  double sum = 0;
  for (int64_t token = 0; token < targets.num_tokens; ++token) sum += losses[token];
  *arguments[6].as<float>() = static_cast<float>(sum);
  return 0;
}
