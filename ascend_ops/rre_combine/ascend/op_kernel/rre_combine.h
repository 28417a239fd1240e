// Kernel of RreCombine: sum[t] = residual[t] + rows[positions[t]], added in float.
//
//   rows, residual, sum [T, H], half, float or (not on ascend910) bfloat16; positions int32 [T rounded up to 8]
//
// A core takes a range of t: residual and sum are contiguous, several rows per DMA; each of rows needs its own DMA.
#pragma once

#include "rre_kernel.h"

namespace rre {

template <typename T>
class Combine {
 public:
  __aicore__ inline void Init(GM_ADDR rows, GM_ADDR positions, GM_ADDR residual, GM_ADDR sum, uint32_t tokens,
                              uint32_t hidden, uint32_t tile_columns, uint32_t batch) {
    tokens_ = tokens;
    hidden_ = hidden;
    tile_columns_ = tile_columns;
    batch_ = batch;
    const uint32_t padded = RoundUp(tokens, kInts);
    share_ = ShareOfCore(padded, kInts);
    const uint64_t size = static_cast<uint64_t>(tokens) * hidden;
    rows_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(rows), size);
    residual_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(residual), size);
    sum_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(sum), size);
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(positions), padded);

    tile_ = batch * tile_columns;
    pipe_.InitBuffer(places_of_tile_, kTileTokens * sizeof(int32_t));
    pipe_.InitBuffer(in_, 2, 2 * tile_ * sizeof(T));
    pipe_.InitBuffer(out_, 2, tile_ * sizeof(T));
    if constexpr (kWidens) pipe_.InitBuffer(wide_, 2 * tile_ * sizeof(float));
  }

  __aicore__ inline void Process() {
    const LocalTensor<int32_t> places = places_of_tile_.Get<int32_t>();
    for (uint32_t first = share_.begin; first < share_.end && first < tokens_; first += kTileTokens) {
      const uint32_t count = Min(kTileTokens, share_.end - first), real = Min(count, tokens_ - first);
      Order<HardEvent::S_MTE2>();
      DataCopy(places, positions_[first], count);
      Order<HardEvent::MTE2_S>();
      for (uint32_t row = 0; row < real; row += batch_) {
        const uint32_t now = Min(batch_, real - row);
        for (uint32_t column = 0; column < hidden_; column += tile_columns_) {
          const uint32_t width = Min(tile_columns_, hidden_ - column);
          Load(places, first, row, column, now, width);
          AddTile(now * width);
          Store(first + row, column, now * width);
        }
      }
    }
  }

 private:
  static constexpr bool kWidens = sizeof(T) < sizeof(float);

  // Loads the residual, and after it the rows that belong to it.
  __aicore__ inline void Load(const LocalTensor<int32_t>& places, uint32_t first, uint32_t row, uint32_t column,
                              uint32_t rows, uint32_t width) {
    const LocalTensor<T> in = in_.template AllocTensor<T>();
    DataCopy(in, residual_[Element(first + row, column)], rows * width);
    for (uint32_t i = 0; i < rows; ++i)
      DataCopy(in[tile_ + i * width], rows_[Element(places.GetValue(row + i), column)], width);
    in_.EnQue(in);
  }

  __aicore__ inline void AddTile(uint32_t size) {
    LocalTensor<T> in = in_.template DeQue<T>();
    const LocalTensor<T> out = out_.template AllocTensor<T>();
    if constexpr (kWidens) {
      const LocalTensor<float> left = wide_.template Get<float>(), right = left[tile_];
      PipeBarrier<PIPE_V>();  // the previous tile has left them
      Cast(left, in, RoundMode::CAST_NONE, size);
      Cast(right, in[tile_], RoundMode::CAST_NONE, size);
      PipeBarrier<PIPE_V>();
      Add(left, left, right, size);
      PipeBarrier<PIPE_V>();
      Cast(out, left, kRound, size);
    } else {
      Add(out, in, in[tile_], size);
    }
    out_.EnQue(out);
    in_.FreeTensor(in);
  }

  __aicore__ inline void Store(uint32_t row, uint32_t column, uint32_t size) {
    LocalTensor<T> out = out_.template DeQue<T>();
    DataCopy(sum_[Element(row, column)], out, size);
    out_.FreeTensor(out);
  }

  __aicore__ inline uint64_t Element(uint64_t row, uint32_t column) const { return row * hidden_ + column; }

  // To nearest, ties to even. For float → half this is the default, and the only mode of dav-c100; bfloat16 must ask.
  static constexpr RoundMode kRound = IsSameType<T, half>::value ? RoundMode::CAST_NONE : RoundMode::CAST_RINT;

  TPipe pipe_;
  TQue<TPosition::VECIN, 2> in_;
  TQue<TPosition::VECOUT, 2> out_;
  TBuf<TPosition::VECCALC> places_of_tile_, wide_;
  GlobalTensor<T> rows_, residual_, sum_;
  GlobalTensor<int32_t> positions_;
  Range share_;
  uint32_t tokens_, hidden_, tile_columns_, batch_, tile_;
};

}  // namespace rre
