// Kernel of RreRegroup and RreRegroupBack: reorders blocks of rows from (outer, inner) to (inner, outer), or back;
// padding becomes zeros.
//
//   rows, regrouped [C, H]; counts int32 [outer, inner], rows of each block; a multiple of 8 blocks
//
// Every core walks all blocks in the order (inner, outer) and moves the rows of its turns, which are contiguous; it
// also clears a range of the padding. Invalid counts never cause accesses outside the arrays.
#pragma once

#include "rre_kernel.h"

namespace rre {

class Regroup {
 public:
  __aicore__ inline void Init(GM_ADDR rows, GM_ADDR counts, GM_ADDR regrouped, uint32_t num_rows, uint32_t outer,
                              uint32_t inner, uint32_t row_words, uint32_t tile_words, uint32_t batch) {
    num_rows_ = num_rows;
    outer_ = outer;
    inner_ = inner;
    blocks_ = outer * inner;
    zero_words_ = batch * tile_words;
    turn_ = Min(batch, kRowsOfTurn);
    row_words_ = row_words;
    const uint64_t words = static_cast<uint64_t>(num_rows) * row_words;
    rows_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(rows), words);
    regrouped_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(regrouped), words);
    counts_in_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(counts), blocks_);
    mover_.Init(pipe_, row_words, tile_words, batch);
    pipe_.InitBuffer(counts_, blocks_ * sizeof(int32_t));
    pipe_.InitBuffer(starts_, blocks_ * sizeof(int32_t));
    pipe_.InitBuffer(zeros_, zero_words_ * sizeof(int32_t));
  }

  __aicore__ inline void Process(bool back) {
    const uint32_t total = FindBlocks();
    MoveBlocks(back);
    const Range padding = ShareOfCore(num_rows_ - total, 1);
    Clear(total + padding.begin, total + padding.end);
  }

 private:
  // Computes the start of each block in the order (outer, inner). Returns the number of rows of all blocks.
  __aicore__ inline uint32_t FindBlocks() {
    const LocalTensor<int32_t> counts = counts_.Get<int32_t>(), starts = starts_.Get<int32_t>();
    DataCopy(counts, counts_in_, blocks_);
    Order<HardEvent::MTE2_S>();
    uint32_t start = 0;
    for (uint32_t block = 0; block < blocks_; ++block) {
      starts.SetValue(block, static_cast<int32_t>(start));
      start += Rows(counts, block, start);
    }
    return start;
  }

  // Rows of a block, given `before` rows of earlier blocks: its count, if there are so many rows.
  __aicore__ inline uint32_t Rows(const LocalTensor<int32_t>& counts, uint32_t block, uint32_t before) const {
    const int32_t count = counts.GetValue(block);
    return count < 0 ? 0 : Min(count, num_rows_ - before);
  }

  // The cores take turns at the rows in the order (inner, outer), a few at a time. With a contiguous range each, a core
  // could have one large block, or hundreds of small ones, which cost its scalar unit more.
  __aicore__ inline void MoveBlocks(bool back) {
    const LocalTensor<int32_t> counts = counts_.Get<int32_t>(), starts = starts_.Get<int32_t>();
    const uint32_t stride = turn_ * static_cast<uint32_t>(GetBlockNum());
    uint32_t mine = turn_ * static_cast<uint32_t>(GetBlockIdx());  // first row of this core's turn
    uint32_t regrouped = 0;                                        // rows of the blocks so far
    for (uint32_t b = 0; b < inner_; ++b) {
      for (uint32_t a = 0; a < outer_; ++a) {
        const uint32_t block = a * inner_ + b, end = regrouped + Rows(counts, block, regrouped);
        if (end == regrouped) continue;
        for (; mine < end; mine += stride) {
          MoveRows(regrouped < mine ? mine : regrouped, Min(mine + turn_, end), regrouped, starts.GetValue(block),
                   back);
          if (mine + turn_ > end) break;  // the turn continues in the next block
        }
        regrouped = end;
      }
    }
  }

  // Moves rows begin…end of the order (inner, outer); their block begins at `regrouped` there and at `start` here.
  __aicore__ inline void MoveRows(uint32_t begin, uint32_t end, uint32_t regrouped, uint32_t start, bool back) {
    if (start + end - regrouped > num_rows_) return;
    const uint64_t there = mover_.Word(begin, 0), here = mover_.Word(start + begin - regrouped, 0);
    if (back) {
      mover_.Copy(regrouped_[here], rows_[there], end - begin);
    } else {
      mover_.Copy(regrouped_[there], rows_[here], end - begin);
    }
  }

  __aicore__ inline void Clear(uint32_t begin, uint32_t end) {
    if (begin >= end) return;
    const LocalTensor<int32_t> zeros = zeros_.Get<int32_t>();
    Duplicate(zeros, 0, zero_words_);
    Order<HardEvent::V_MTE3>();
    const uint64_t last = mover_.Word(end, 0);
    for (uint64_t word = mover_.Word(begin, 0); word < last; word += zero_words_)
      DataCopy(regrouped_[word], zeros, last - word < zero_words_ ? last - word : zero_words_);
  }

  static constexpr uint32_t kRowsOfTurn = 8;

  TPipe pipe_;
  RowMover mover_;
  TBuf<TPosition::VECCALC> counts_, starts_, zeros_;
  GlobalTensor<int32_t> rows_, regrouped_, counts_in_;
  uint32_t num_rows_, outer_, inner_, blocks_, zero_words_, row_words_, turn_;
};

}  // namespace rre
