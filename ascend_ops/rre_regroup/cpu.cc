// rre_regroup on the host: reorders whole blocks of rows.
#include "../cpu_kernel.h"

using namespace ascend_ops;

namespace {

constexpr int64_t kPieceRows = 64;  // rows that one thread moves at a time

struct Move {
  int64_t source, destination, count;
};

// Moves block (r, g), sorted by (r, g), to its position sorted by (g, r), or back.
void regroup(const Array& rows, const Array& counts_array, const Array& out, bool back) {
  const int32_t* counts = counts_array.as<int32_t>();
  const int64_t outer = counts_array.shape[0], inner = counts_array.shape[1];
  const int64_t num_rows = rows.shape[0], row_bytes = rows.row_bytes();

  std::vector<int64_t> starts(outer * inner);
  int64_t total = 0;
  for (int64_t block = 0; block < outer * inner; ++block) {
    if (counts[block] < 0)
      fail("rre_regroup: the count of block (%ld, %ld) is %d", block / inner, block % inner, counts[block]);
    starts[block] = total;
    total += counts[block];
  }
  if (total > num_rows) fail("rre_regroup: the counts add up to %ld rows of %ld", total, num_rows);

  std::vector<Move> moves;
  int64_t regrouped = 0;
  for (int64_t b = 0; b < inner; ++b) {
    for (int64_t a = 0; a < outer; ++a) {
      const int64_t block = a * inner + b;
      for (int64_t row = 0; row < counts[block]; row += kPieceRows) {
        const int64_t count = std::min<int64_t>(kPieceRows, counts[block] - row);
        const int64_t here = starts[block] + row, there = regrouped + row;
        moves.push_back(back ? Move{there, here, count} : Move{here, there, count});
      }
      regrouped += counts[block];
    }
  }
  const int64_t num_moves = static_cast<int64_t>(moves.size());
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < num_moves; ++i)
    std::memcpy(out.as<char>() + moves[i].destination * row_bytes, rows.as<char>() + moves[i].source * row_bytes,
                moves[i].count * row_bytes);
  std::memset(out.as<char>() + total * row_bytes, 0, (num_rows - total) * row_bytes);
}

}  // namespace

// in: rows [C, H], counts int32 [R, G]   out: [C, H]
ASCEND_OP int rre_regroup(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  regroup(arguments[0], arguments[1], arguments[2], false);
  return 0;
}

// in: dout [C, H], counts int32 [R, G]   out: drows [C, H]
ASCEND_OP int rre_regroup_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                                   void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  regroup(arguments[0], arguments[1], arguments[2], true);
  return 0;
}
