// DataCopy: the DMA engines, between global memory and the unified buffer. Everything in whole granules of 32 bytes;
// DataCopyPad, which is less strict, is missing here because ascend910 lacks it.
#pragma once

#include "tensor.h"

namespace emulator {

// A field of 16 bits in a DMA's descriptor; the device would take the lower bits of a larger value.
class Field {
 public:
  template <typename Number>
  Field(Number value) : value_(static_cast<uint16_t>(value)) {
    if (static_cast<int64_t>(value) < 0 || static_cast<int64_t>(value) > 65535)
      violate(rule::kField, "%ld does not fit the 16 bits of a DMA's field", static_cast<long>(value));
  }
  operator uint32_t() const { return value_; }

 private:
  uint16_t value_;
};

}  // namespace emulator

namespace AscendC {

// blockCount bursts of blockLen granules, with gaps of so many granules between them, in source and destination.
struct DataCopyParams {
  DataCopyParams(emulator::Field count, emulator::Field length, emulator::Field source_gap,
                 emulator::Field destination_gap)
      : blockCount(count), blockLen(length), srcStride(source_gap), dstStride(destination_gap) {}
  emulator::Field blockCount, blockLen, srcStride, dstStride;
};

}  // namespace AscendC

namespace emulator {

constexpr uint32_t kMaxBursts = 4095;

inline void check_copy(const AscendC::DataCopyParams& params, uint64_t local, const void* global, const char* what) {
  if (params.blockCount == 0 || params.blockCount > kMaxBursts || params.blockLen == 0)
    violate(rule::kField, "%s of %u bursts of %u granules: 1 to %u bursts, not empty", what,
            static_cast<uint32_t>(params.blockCount), static_cast<uint32_t>(params.blockLen), kMaxBursts);
  if (local % kGranule)
    violate(rule::kAlignment, "%s: address %lu in the unified buffer is no multiple of 32", what, local);
  if (reinterpret_cast<uintptr_t>(global) % kGranule)
    violate(rule::kAlignment, "%s: the address in global memory is %lu bytes past a multiple of 32", what,
            reinterpret_cast<uintptr_t>(global) % kGranule);
}

template <typename T>
AscendC::DataCopyParams one_burst(uint64_t count, const char* what) {
  if (count * sizeof(T) % kGranule)
    violate(rule::kAlignment, "%s of %lu elements, %lu bytes: no multiple of 32", what, count, count * sizeof(T));
  return {1, count * sizeof(T) / kGranule, 0, 0};
}

// Number of elements from the first to the last that a strided copy touches.
template <typename T>
uint64_t extent(const AscendC::DataCopyParams& params, uint64_t gap) {
  return (params.blockCount * params.blockLen + (params.blockCount - 1) * gap) * kGranule / sizeof(T);
}

template <typename T>
void check_global(const AscendC::GlobalTensor<T>& global, uint64_t elements, const char* what) {
  if (elements > global.GetSize())
    violate(rule::kGmBounds, "%s of %lu elements of a GlobalTensor that has %lu from there", what, elements,
            global.GetSize());
}

}  // namespace emulator

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& local, const GlobalTensor<T>& global, const DataCopyParams& params) {
  using namespace emulator;
  constexpr const char* kWhat = "DataCopy to the core";
  check_copy(params, local.offset(), global.GetPhyAddr(), kWhat);
  check_global(global, extent<T>(params, params.srcStride), kWhat);
  const uint64_t burst = params.blockLen * kGranule / sizeof(T), gap = kGranule / sizeof(T);
  ++this_core->counters.loads;
  const Stamp now = this_core->start(Pipe::kLoad);
  for (uint64_t i = 0; i < params.blockCount; ++i) {
    const T* from = global.GetPhyAddr() + i * (burst + params.srcStride * gap);
    this_core->touch(now, from, burst * sizeof(T), false, kWhat);
    std::memcpy(local.write(now, i * (burst + params.dstStride * gap), burst, kWhat), from, burst * sizeof(T));
  }
}

template <typename T>
void DataCopy(const GlobalTensor<T>& global, const LocalTensor<T>& local, const DataCopyParams& params) {
  using namespace emulator;
  constexpr const char* kWhat = "DataCopy from the core";
  check_copy(params, local.offset(), global.GetPhyAddr(), kWhat);
  check_global(global, extent<T>(params, params.dstStride), kWhat);
  const uint64_t burst = params.blockLen * kGranule / sizeof(T), gap = kGranule / sizeof(T);
  ++this_core->counters.stores;
  const Stamp now = this_core->start(Pipe::kStore);
  for (uint64_t i = 0; i < params.blockCount; ++i) {
    T* to = global.GetPhyAddr() + i * (burst + params.dstStride * gap);
    const T* from = local.read(now, i * (burst + params.srcStride * gap), burst, kWhat);
    this_core->touch(now, to, burst * sizeof(T), true, kWhat);
    std::memcpy(to, from, burst * sizeof(T));
  }
}

template <typename T>
void DataCopy(const LocalTensor<T>& local, const GlobalTensor<T>& global, uint32_t count) {
  DataCopy(local, global, emulator::one_burst<T>(count, "DataCopy to the core"));
}

template <typename T>
void DataCopy(const GlobalTensor<T>& global, const LocalTensor<T>& local, uint32_t count) {
  DataCopy(global, local, emulator::one_burst<T>(count, "DataCopy from the core"));
}

}  // namespace AscendC
