// Kernel of RreDispatch: lookup, histogram, stable counting sort and row move in one launch, without atomics.
//
// Every core owns a range of tokens and a row of counts in the workspace. Between two SyncAlls the rows become prefix
// sums over the cores, column slice by column slice. Then a core knows the position of each of its tokens:
// start of the group + tokens of it on earlier cores + its own earlier tokens of it.
//
//   x [T, H]; token_ids, slot_ids int32 [T rounded up to 8]; table uint16 [D, V], V a multiple of 16, padded with
//   entries that name no expert; layout [ranks, experts of a rank], only its shape is used
//   rows [T, H]; counts int32 [G rounded up to 8]; positions int32 [as ids]; invalid int32 [8], only the first is used
//   barrier int32 [512], zeros: the counters of the cores of dav-c100
//
// Groups are in the order (rank, slot, expert of the rank); with one rank that is (slot, expert).
#pragma once

#include "rre_kernel.h"

namespace rre {

using rre_limits::kMaxShift;

class Dispatch {
 public:
  __aicore__ inline void Init(GM_ADDR x, GM_ADDR token_ids, GM_ADDR slot_ids, GM_ADDR table, GM_ADDR rows,
                              GM_ADDR counts, GM_ADDR positions, GM_ADDR invalid, GM_ADDR barrier, GM_ADDR workspace,
                              uint32_t tokens, uint32_t slots, uint32_t vocab_size, uint32_t experts, uint32_t ranks,
                              uint32_t row_words, uint32_t tile_words, uint32_t batch) {
    tokens_ = tokens;
    slots_ = slots;
    vocab_size_ = vocab_size;
    experts_ = experts;
    experts_of_rank_ = experts / ranks;
    groups_ = slots * experts;
    columns_ = kInts + RoundUp(groups_, kInts);
    cores_ = GetBlockNum();
    core_ = GetBlockIdx();
    const uint32_t padded = RoundUp(tokens, kInts);
    share_ = ShareOfCore(padded, kInts);

    const uint64_t words = static_cast<uint64_t>(tokens) * row_words;
    x_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(x), words);
    rows_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(rows), words);
    token_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(token_ids), padded);
    slot_ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(slot_ids), padded);
    positions_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(positions), padded);
    table_.SetGlobalBuffer(reinterpret_cast<__gm__ uint16_t*>(table), static_cast<uint64_t>(slots) * vocab_size_);
    counts_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(counts), columns_ - kInts);
    invalid_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(invalid), kInts);
    histograms_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(workspace), static_cast<uint64_t>(cores_) * columns_);

    sync_.Init(pipe_, barrier);
    mover_.Init(pipe_, row_words, tile_words, batch);
    pipe_.InitBuffer(histogram_, columns_ * sizeof(int32_t));
    pipe_.InitBuffer(totals_, columns_ * sizeof(int32_t));
    pipe_.InitBuffer(sums_[0], (kMaxShift + cores_) * kGranule);
    pipe_.InitBuffer(sums_[1], (kMaxShift + cores_) * kGranule);
    pipe_.InitBuffer(tokens_of_tile_, kTileTokens * sizeof(int32_t));
    pipe_.InitBuffer(slots_of_tile_, kTileTokens * sizeof(int32_t));
    pipe_.InitBuffer(entries_of_tile_, kTileTokens * kGranule);
    pipe_.InitBuffer(groups_of_tile_, kTileTokens * sizeof(int32_t));
  }

  __aicore__ inline void Process() {
    CountGroups();
    sync_();
    for (uint32_t slice = core_; slice < columns_ / kInts; slice += cores_) SumOverCores(slice);
    sync_();
    StartOfGroups();
    MoveRows();
  }

 private:
  // Looks up and counts every token of the share. Stores the groups where the positions will be.
  __aicore__ inline void CountGroups() {
    const LocalTensor<int32_t> histogram = histogram_.Get<int32_t>();
    Duplicate(histogram, 0, columns_);
    Order<HardEvent::V_S>();
    uint32_t wrong = 0;
    for (uint32_t first = share_.begin; first < share_.end; first += kTileTokens)
      wrong += CountTile(histogram, first, Min(kTileTokens, share_.end - first));
    histogram.SetValue(0, static_cast<int32_t>(wrong));
    Order<HardEvent::S_MTE3>();
    DataCopy(histograms_[static_cast<uint64_t>(core_) * columns_], histogram, columns_);
  }

  // Returns the number of tokens with a wrong id. Such ids are clamped, so nothing outside the table is accessed.
  __aicore__ inline uint32_t CountTile(const LocalTensor<int32_t>& histogram, uint32_t first, uint32_t count) {
    const LocalTensor<int32_t> tokens = tokens_of_tile_.Get<int32_t>(), slots = slots_of_tile_.Get<int32_t>();
    const LocalTensor<int32_t> groups = groups_of_tile_.Get<int32_t>();
    const LocalTensor<uint16_t> entries = entries_of_tile_.Get<uint16_t>();
    Order<HardEvent::S_MTE2>();
    DataCopy(tokens, token_ids_[first], count);
    DataCopy(slots, slot_ids_[first], count);
    Order<HardEvent::MTE2_S>();

    // an entry is loaded with the granule around it: 32 bytes per token, all loads in flight together
    const uint32_t real = first < tokens_ ? Min(count, tokens_ - first) : 0;
    for (uint32_t i = 0; i < real; ++i) {
      const uint32_t given_token = tokens.GetValue(i), given_slot = slots.GetValue(i);  // negative ids become huge
      const uint32_t token = Min(given_token, vocab_size_ - 1), slot = Min(given_slot, slots_ - 1);
      const uint32_t wrong = token != given_token || slot != given_slot ? 1 : 0;
      const uint64_t entry = static_cast<uint64_t>(slot) * vocab_size_ + token;
      DataCopy(entries[i * kEntries], table_[entry / kEntries * kEntries], kEntries);
      tokens.SetValue(i, static_cast<int32_t>((slot * 2 + wrong) * kEntries + token % kEntries));
    }
    Order<HardEvent::MTE2_S>();
    Order<HardEvent::MTE3_S>();
    uint32_t wrong_tokens = 0;
    for (uint32_t i = 0; i < real; ++i) {
      const uint32_t place = tokens.GetValue(i);
      const uint32_t named = entries.GetValue(i * kEntries + place % kEntries), expert = Min(named, experts_ - 1);
      wrong_tokens += expert != named || place / kEntries % 2 != 0 ? 1 : 0;
      const uint32_t group = GroupOf(place / kEntries / 2, expert);
      histogram.SetValue(kInts + group, histogram.GetValue(kInts + group) + 1);
      groups.SetValue(i, static_cast<int32_t>(group));
    }
    for (uint32_t i = real; i < count; ++i) groups.SetValue(i, 0);
    Order<HardEvent::S_MTE3>();
    DataCopy(positions_[first], groups, count);
    return wrong_tokens;
  }

  __aicore__ inline uint32_t GroupOf(uint32_t slot, uint32_t expert) const {
    if (experts_of_rank_ == experts_) return slot * experts_ + expert;  // one rank: no division
    return (expert / experts_of_rank_ * slots_ + slot) * experts_of_rank_ + expert % experts_of_rank_;
  }

  // Turns eight columns of all cores' counts into sums over the cores before each; stores the totals. The running sum
  // takes log2(cores) additions of the whole slice to itself, shifted; the zeros before it are what is shifted in.
  __aicore__ inline void SumOverCores(uint32_t slice) {
    LocalTensor<int32_t> from = sums_[0].Get<int32_t>(), to = sums_[1].Get<int32_t>();
    constexpr uint32_t kLead = kMaxShift * kInts;
    const uint32_t size = cores_ * kInts;
    const DataCopyParams in(cores_, 1, columns_ / kInts - 1, 0), out(cores_, 1, 0, columns_ / kInts - 1);
    const GlobalTensor<int32_t> column = histograms_[slice * kInts];

    Order<HardEvent::MTE3_V>();
    Duplicate(from, 0, kLead);
    Duplicate(to, 0, kLead);
    Order<HardEvent::V_MTE2>();
    DataCopy(from[kLead], column, in);
    Order<HardEvent::MTE2_V>();
    for (uint32_t shift = 1; shift < cores_; shift *= 2) {
      PipeBarrier<PIPE_V>();
      Add(to[kLead], from[kLead], from[kLead - shift * kInts], size);
      const LocalTensor<int32_t> swapped = from;
      from = to;
      to = swapped;
    }
    Order<HardEvent::V_MTE3>();
    DataCopy(column, from[kLead - kInts], out);  // shifted by one core: a sum over those before
    const GlobalTensor<int32_t> total = slice == 0 ? invalid_ : counts_[(slice - 1) * kInts];
    DataCopy(total, from[kLead + size - kInts], kInts);
  }

  // Position of this core's first row of each group.
  __aicore__ inline void StartOfGroups() {
    const LocalTensor<int32_t> next = histogram_.Get<int32_t>(), totals = totals_.Get<int32_t>();
    DataCopy(next, histograms_[static_cast<uint64_t>(core_) * columns_], columns_);
    DataCopy(totals, counts_, columns_ - kInts);
    Order<HardEvent::MTE2_S>();
    int32_t start = 0;
    for (uint32_t group = 0; group < groups_; ++group) {
      next.SetValue(kInts + group, next.GetValue(kInts + group) + start);
      start += totals.GetValue(group);
    }
  }

  __aicore__ inline void MoveRows() {
    // No flag orders the load of `places` after the store of the previous tile's positions; the queue of the rows does.
    // A full tile, of which less than a granule is padding, has more batches than the queue has buffers. So one of its
    // batches has waited for a buffer whose store came after the store of the positions.
    static_assert((kTileTokens - kInts) / kMaxBatch > RowMover::kBuffers, "the positions of a tile need a flag");
    const LocalTensor<int32_t> next = histogram_.Get<int32_t>(), places = groups_of_tile_.Get<int32_t>();
    for (uint32_t first = share_.begin; first < share_.end; first += kTileTokens) {
      const uint32_t count = Min(kTileTokens, share_.end - first);
      const uint32_t real = first < tokens_ ? Min(count, tokens_ - first) : 0;
      Order<HardEvent::S_MTE2>();
      DataCopy(places, positions_[first], count);
      Order<HardEvent::MTE2_S>();
      for (uint32_t i = 0; i < real; ++i) {
        const uint32_t group = kInts + places.GetValue(i);
        const int32_t place = next.GetValue(group);
        next.SetValue(group, place + 1);
        places.SetValue(i, place);
      }
      Order<HardEvent::S_MTE3>();
      DataCopy(positions_[first], places, count);
      if (real > 0) mover_.Scatter(rows_, places, x_[mover_.Word(first, 0)], real);
    }
  }

  static constexpr uint32_t kEntries = kGranule / sizeof(uint16_t);  // table entries per granule

  TPipe pipe_;
  CoreSync sync_;
  RowMover mover_;
  TBuf<TPosition::VECCALC> histogram_, totals_, sums_[2];
  TBuf<TPosition::VECCALC> tokens_of_tile_, slots_of_tile_, entries_of_tile_, groups_of_tile_;
  GlobalTensor<int32_t> x_, rows_, token_ids_, slot_ids_, positions_, counts_, invalid_, histograms_;
  GlobalTensor<uint16_t> table_;
  Range share_;
  uint32_t tokens_, slots_, vocab_size_, experts_, experts_of_rank_, groups_, columns_, cores_, core_;
};

}  // namespace rre
