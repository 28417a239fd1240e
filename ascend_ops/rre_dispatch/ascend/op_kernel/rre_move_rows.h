// Kernel of RreGatherRows and RreScatterRows: moved[t] = rows[positions[t]], or moved[positions[t]] = rows[t].
//
//   rows, moved [T, H]; positions int32 [T rounded up to 8], a permutation in its first T
//
// A core takes a range of t, so the rows that it reads (scatter) or writes (gather) are contiguous, several per DMA.
#pragma once

#include "rre_kernel.h"

namespace rre {

class MoveRows {
 public:
  __aicore__ inline void Init(GM_ADDR rows, GM_ADDR positions, GM_ADDR moved, uint32_t tokens, uint32_t row_words,
                              uint32_t tile_words, uint32_t batch) {
    tokens_ = tokens;
    const uint32_t padded = RoundUp(tokens, kInts);
    share_ = ShareOfCore(padded, kInts);
    const uint64_t words = static_cast<uint64_t>(tokens) * row_words;
    rows_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(rows), words);
    moved_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(moved), words);
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(positions), padded);
    mover_.Init(pipe_, row_words, tile_words, batch);
    pipe_.InitBuffer(places_of_tile_, kTileTokens * sizeof(int32_t));
  }

  __aicore__ inline void Process(bool scatter) {
    const LocalTensor<int32_t> places = places_of_tile_.Get<int32_t>();
    for (uint32_t first = share_.begin; first < share_.end && first < tokens_; first += kTileTokens) {
      const uint32_t count = Min(kTileTokens, share_.end - first), real = Min(count, tokens_ - first);
      Order<HardEvent::S_MTE2>();
      DataCopy(places, positions_[first], count);
      Order<HardEvent::MTE2_S>();
      const uint64_t here = mover_.Word(first, 0);
      if (scatter) {
        mover_.Scatter(moved_, places, rows_[here], real);
      } else {
        mover_.Gather(moved_[here], rows_, places, real);
      }
    }
  }

 private:
  TPipe pipe_;
  RowMover mover_;
  TBuf<TPosition::VECCALC> places_of_tile_;
  GlobalTensor<int32_t> rows_, moved_, positions_;
  Range share_;
  uint32_t tokens_;
};

}  // namespace rre
