// Shared code of the AscendC kernels: order between pipes, SyncAll on every chip, equal shares of work, moving rows.
//
// One source serves ascend910 (dav-c100), ascend910b and ascend910_93 (dav-c220): DMAs of whole 32-byte granules only,
// no atomics, no single elements of global memory. The differences are in this file.
#pragma once

#include "kernel_operator.h"
#include "rre_limits.h"

// RRE_DAV_C100 is 1 for dav-c100 and 0 for dav-c220. Older versions of CANN define __CCE_AICORE__, those of 2026
// __NPU_ARCH__. An unknown core is an error: a guess could choose the hardware SyncAll, which dav-c100 lacks.
#if __NPU_ARCH__ == 1001 || __CCE_AICORE__ == 100
#define RRE_DAV_C100 1
#elif __NPU_ARCH__ == 2201 || __CCE_AICORE__ == 220
#define RRE_DAV_C100 0
#else
#error "these kernels need __NPU_ARCH__ 1001 or 2201, or __CCE_AICORE__ 100 or 220"
#endif

namespace rre {

using namespace AscendC;
using rre_limits::kMaxBatch;
using rre_limits::kTileTokens;

constexpr uint32_t kGranule = 32;                       // smallest transfer of a DMA, in bytes
constexpr uint32_t kInts = kGranule / sizeof(int32_t);  // per granule
constexpr bool kHardwareSync = !RRE_DAV_C100;

__aicore__ inline uint32_t Min(uint32_t a, uint32_t b) { return a < b ? a : b; }
__aicore__ inline uint32_t RoundUp(uint32_t value, uint32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Later work of the event's second pipe waits for all earlier work of its first pipe.
template <HardEvent kEvent>
__aicore__ inline void Order() {
  const TEventID id = GetTPipePtr()->FetchEventID(kEvent);
  SetFlag<kEvent>(id);
  WaitFlag<kEvent>(id);
}

struct Range {
  uint32_t begin, end;
};

// This core's share of `units`, in steps of `granule` units: no two cores differ by more than one step.
__aicore__ inline Range ShareOfCore(uint32_t units, uint32_t granule) {
  const uint32_t steps = (units + granule - 1) / granule;
  const uint32_t cores = GetBlockNum(), core = GetBlockIdx();
  const uint32_t each = steps / cores, more = steps % cores;
  const uint32_t begin = core * each + Min(core, more);
  const uint32_t end = begin + each + (core < more ? 1 : 0);
  return {Min(begin * granule, units), Min(end * granule, units)};
}

// All cores wait for each other, and then see what the others stored. On dav-c100 they count in `counters`, which the
// host has set to zero. On dav-c220 the kernel's entry function must declare the kernel's type; see rre_dispatch.cpp.
class CoreSync {
 public:
  __aicore__ inline void Init(TPipe& pipe, GM_ADDR counters) {
    if constexpr (!kHardwareSync) {
      const uint32_t size = static_cast<uint32_t>(GetBlockNum()) * kInts;
      counters_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(counters), size);
      pipe.InitBuffer(scratch_, size * sizeof(int32_t));
    }
  }

  __aicore__ inline void operator()() {
    if constexpr (kHardwareSync) {
      SyncAll();
    } else {
      SyncAll(counters_, scratch_.Get<int32_t>());
    }
  }

 private:
  GlobalTensor<int32_t> counters_;
  TBuf<TPosition::VECCALC> scratch_;
};

// Moves rows through the unified buffer: while one batch is stored, the next is loaded. Rows are moved as int32 words,
// regardless of their dtype. Contiguous rows share a DMA; a row that does not fit the buffer is split into column tiles.
class RowMover {
 public:
  static constexpr uint32_t kBuffers = 2;

  // Moves rows of `row_words`, `batch` at a time in tiles of `tile_words`; batch is 1 if tile_words is less than
  // row_words.
  __aicore__ inline void Init(TPipe& pipe, uint32_t row_words, uint32_t tile_words, uint32_t batch) {
    row_words_ = row_words;
    tile_words_ = tile_words;
    batch_ = batch;
    pipe.InitBuffer(queue_, kBuffers, batch * tile_words * sizeof(int32_t));
  }

  // Scatters contiguous rows: to[places[i]] = from[i].
  __aicore__ inline void Scatter(const GlobalTensor<int32_t>& to, const LocalTensor<int32_t>& places,
                                 const GlobalTensor<int32_t>& from, uint32_t rows) {
    Move<false, true>(to, from, places, rows);
  }

  // Gathers rows: to[i] = from[places[i]].
  __aicore__ inline void Gather(const GlobalTensor<int32_t>& to, const GlobalTensor<int32_t>& from,
                                const LocalTensor<int32_t>& places, uint32_t rows) {
    Move<true, false>(to, from, places, rows);
  }

  // Copies contiguous rows: to[i] = from[i].
  __aicore__ inline void Copy(const GlobalTensor<int32_t>& to, const GlobalTensor<int32_t>& from, uint32_t rows) {
    Move<false, false>(to, from, LocalTensor<int32_t>(), rows);
  }

  // The word index of a column of a row.
  __aicore__ inline uint64_t Word(uint64_t row, uint32_t column) const { return row * row_words_ + column; }

 private:
  // Contiguous rows share one DMA per batch; rows named by places take one DMA each.
  template <bool kFromPlaces, bool kToPlaces>
  __aicore__ inline void Move(const GlobalTensor<int32_t>& to, const GlobalTensor<int32_t>& from,
                              const LocalTensor<int32_t>& places, uint32_t rows) {
    for (uint32_t row = 0; row < rows; row += batch_) {
      const uint32_t now = Min(batch_, rows - row);
      for (uint32_t column = 0; column < row_words_; column += tile_words_) {
        const uint32_t width = Min(tile_words_, row_words_ - column);
        LocalTensor<int32_t> loaded = queue_.AllocTensor<int32_t>();
        if constexpr (kFromPlaces) {
          for (uint32_t i = 0; i < now; ++i)
            DataCopy(loaded[i * width], from[Word(places.GetValue(row + i), column)], width);
        } else {
          DataCopy(loaded, from[Word(row, column)], now * width);
        }
        queue_.EnQue(loaded);
        LocalTensor<int32_t> stored = queue_.DeQue<int32_t>();
        if constexpr (kToPlaces) {
          for (uint32_t i = 0; i < now; ++i)
            DataCopy(to[Word(places.GetValue(row + i), column)], stored[i * width], width);
        } else {
          DataCopy(to[Word(row, column)], stored, now * width);
        }
        queue_.FreeTensor(stored);
      }
    }
  }

  TQueBind<TPosition::VECIN, TPosition::VECOUT, kBuffers> queue_;
  uint32_t row_words_, tile_words_, batch_;
};

}  // namespace rre
