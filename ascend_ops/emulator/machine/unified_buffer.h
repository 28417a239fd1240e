// The unified buffer (UB) of a core, with the accesses of every pipe.
#pragma once

#include <cstring>
#include <vector>

#include "chip.h"
#include "pipes.h"
#include "rules.h"

namespace emulator {

class UnifiedBuffer {
 public:
  UnifiedBuffer(const Chip& chip, Pipes& pipes)
      : chip_(chip),
        pipes_(pipes),
        bytes_(chip.ub_bytes, 0xCD),
        written_(chip.ub_bytes, 0),
        granules_((chip.ub_bytes + kGranule - 1) / kGranule) {}

  uint8_t* at(uint64_t offset) { return bytes_.data() + offset; }

  // Allocates the next bytes, in whole granules; returns their offset.
  uint64_t allocate(uint64_t bytes) {
    const uint64_t offset = used_, whole = (bytes + kGranule - 1) / kGranule * kGranule;
    if (offset + whole > chip_.ub_bytes - kUbOfLibrary)
      violate(rule::kCapacity, "InitBuffer of %lu bytes: %lu are taken already, and %s has %lu, the library's excluded",
              whole, offset, chip_.name, chip_.ub_bytes - kUbOfLibrary);
    used_ += whole;
    return offset;
  }

  // An operation reads or writes [offset, offset + count): checks and records the access.
  void read(const Stamp& now, uint64_t offset, uint64_t count, const char* what) {
    if (const void* hole = std::memchr(written_.data() + offset, 0, count))
      violate(rule::kUninitialised, "%s reads UB byte %ld, which nothing has written", what,
              static_cast<const uint8_t*>(hole) - written_.data());
    for_granules(offset, count, [&](Granule& granule, uint64_t index) {
      check(granule.write, now, index, what, "reads", "wrote");
      granule.reads[static_cast<int>(now.pipe)] = now.number;
    });
  }

  void write(const Stamp& now, uint64_t offset, uint64_t count, const char* what) {
    for_granules(offset, count, [&](Granule& granule, uint64_t index) {
      check(granule.write, now, index, what, "overwrites", "wrote");
      for (int pipe = 0; pipe < kPipes; ++pipe) {
        check({static_cast<Pipe>(pipe), granule.reads[pipe]}, now, index, what, "overwrites", "reads");
        granule.reads[pipe] = 0;
      }
      granule.write = now;
    });
    std::memset(written_.data() + offset, 1, count);
  }

 private:
  struct Granule {
    Stamp write;
    std::array<uint64_t, kPipes> reads{};
  };

  template <typename Visit>
  void for_granules(uint64_t offset, uint64_t count, Visit visit) {
    for (uint64_t index = offset / kGranule; index < (offset + count + kGranule - 1) / kGranule; ++index)
      visit(granules_[index], index);
  }

  void check(const Stamp& earlier, const Stamp& now, uint64_t index, const char* what, const char* does,
             const char* did) const {
    if (earlier.number == 0 || pipes_.finished(earlier, now.pipe)) return;
    if (earlier.pipe == now.pipe && earlier.number == now.number) return;  // both accesses are of this operation
    if (earlier.pipe == now.pipe)
      violate(rule::kHazard,
              "%s (%s) %s UB bytes %lu…, which an earlier operation of the same pipe %s: no PipeBarrier between", what,
              name(now.pipe), does, index * kGranule, did);
    violate(rule::kHazard, "%s (%s) %s UB bytes %lu…, which %s %s: no flag or queue orders them", what, name(now.pipe),
            does, index * kGranule, name(earlier.pipe), did);
  }

  const Chip& chip_;
  Pipes& pipes_;
  std::vector<uint8_t> bytes_, written_;
  std::vector<Granule> granules_;
  uint64_t used_ = 0;
};

}  // namespace emulator
