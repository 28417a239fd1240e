// Global memory: the arrays of a kernel, and the accesses of each core between two SyncAlls.
//
// Finds races even if they do not happen: each core records the accesses of its DMAs, and a SyncAll compares the lists.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "chip.h"
#include "pipes.h"
#include "rules.h"

namespace emulator {

// One array: a tensor of the operator, or its workspace.
struct Array {
  std::string name;
  uint8_t* data = nullptr;
  uint64_t bytes = 0;
  std::vector<uint8_t> written{};  // one flag per byte; empty if everything is written (an input)

  bool holds(const void* address, uint64_t count) const {
    const uint8_t* first = static_cast<const uint8_t*>(address);
    return first >= data && first + count <= data + bytes;
  }
};

// One DMA's burst in global memory.
struct Access {
  const uint8_t *begin, *end;
  bool write;
  Stamp stamp;
  Clock known;     // clock of its pipe when it began
  uint64_t order;  // index in its core's program
};

class GlobalMemory {
 public:
  explicit GlobalMemory(std::vector<Array> arrays) : arrays_(std::move(arrays)) {}

  // The array that holds these bytes.
  Array& find(const void* address, uint64_t count, const char* what) {
    for (Array& array : arrays_)
      if (array.holds(address, count)) return array;
    for (Array& array : arrays_)
      if (array.holds(address, 0))
        violate(rule::kGmBounds, "%s touches bytes %ld to %ld of %s, which has %lu", what,
                static_cast<const uint8_t*>(address) - array.data,
                static_cast<const uint8_t*>(address) - array.data + static_cast<long>(count), array.name.c_str(),
                array.bytes);
    violate(rule::kGmBounds, "%s touches %lu bytes that belong to no array of the operator", what, count);
  }

  // All cores count SyncAlls in the same bytes, which are zeros at first and may not be used otherwise.
  void count_in(const void* address, uint64_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uint8_t* first = static_cast<const uint8_t*>(address);
    if (counters_ != nullptr && counters_ != first)
      violate(rule::kSyncAll, "SyncAll: another global workspace than before, or than another core's");
    if (counters_ != nullptr) return;
    read(address, count, "SyncAll");
    for (uint64_t i = 0; i < count; ++i)
      if (first[i] != 0) violate(rule::kSyncAll, "SyncAll: its global workspace is not zero at the first call");
    counters_end_ = first + count;
    counters_ = first;
  }

  void read(const void* address, uint64_t count, const char* what) {
    Array& array = find(address, count, what);
    const uint64_t offset = static_cast<const uint8_t*>(address) - array.data;
    if (!array.written.empty() && std::memchr(array.written.data() + offset, 0, count))
      violate(rule::kUninitialised, "%s reads bytes %lu to %lu of %s, which nothing has written", what, offset,
              offset + count, array.name.c_str());
  }

  // A DMA must not touch the counters of SyncAll.
  void refuse_counters(const void* address, uint64_t count, const char* what) const {
    const uint8_t* first = static_cast<const uint8_t*>(address);
    if (counters_ != nullptr && first < counters_end_ && first + count > counters_)
      violate(rule::kSyncAll, "%s touches what SyncAll counts in", what);
  }

  void write(const void* address, uint64_t count, const char* what) {
    Array& array = find(address, count, what);
    if (array.written.empty()) violate(rule::kGmBounds, "%s writes to %s, an input", what, array.name.c_str());
    std::memset(array.written.data() + (static_cast<const uint8_t*>(address) - array.data), 1, count);
  }

  std::string describe(const uint8_t* address) const {
    for (const Array& array : arrays_)
      if (array.holds(address, 1)) return "byte " + std::to_string(address - array.data) + " of " + array.name;
    return "an unknown byte";
  }

 private:
  std::vector<Array> arrays_;
  std::mutex mutex_;
  std::atomic<const uint8_t*> counters_{nullptr}, counters_end_{nullptr};  // of SyncAll
};

// The pipes of one core must be ordered in global memory too.
inline void check_order(const GlobalMemory& memory, std::vector<Access>& accesses) {
  std::sort(accesses.begin(), accesses.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  std::vector<const Access*> open;
  for (const Access& access : accesses) {
    open.erase(std::remove_if(open.begin(), open.end(), [&](auto* other) { return other->end <= access.begin; }),
               open.end());
    for (const Access* other : open) {
      if (!access.write && !other->write) continue;
      const bool after = access.order > other->order;
      const Access &later = after ? access : *other, &earlier = after ? *other : access;
      if (!Pipes::finished(earlier.stamp, later.stamp.pipe, later.known))
        violate(rule::kHazard, "%s %s %s, which %s %s before: no flag or barrier orders them", name(later.stamp.pipe),
                later.write ? "writes" : "reads", memory.describe(access.begin).c_str(), name(earlier.stamp.pipe),
                earlier.write ? "writes" : "reads");
    }
    open.push_back(&access);
  }
}

// Compares the accesses of different cores since the last SyncAll: no core may touch a byte that another one writes.
inline void check_races(const GlobalMemory& memory, const std::vector<std::vector<Access>>& accesses_of_core) {
  struct Span {
    const uint8_t *begin, *end;
    size_t core;
  };
  std::vector<Span> written;
  for (size_t core = 0; core < accesses_of_core.size(); ++core)
    for (const Access& access : accesses_of_core[core])
      if (access.write) written.push_back({access.begin, access.end, core});
  std::sort(written.begin(), written.end(), [](auto& a, auto& b) { return a.begin < b.begin; });

  std::vector<Span> owned;  // merged: disjoint, in ascending order
  for (const Span& span : written) {
    if (owned.empty() || span.begin >= owned.back().end) {
      owned.push_back(span);
      continue;
    }
    if (owned.back().core != span.core)
      violate(rule::kRace, "cores %zu and %zu both write %s, no SyncAll between", owned.back().core, span.core,
              memory.describe(span.begin).c_str());
    owned.back().end = std::max(owned.back().end, span.end);
  }
  for (size_t core = 0; core < accesses_of_core.size(); ++core) {
    for (const Access& access : accesses_of_core[core]) {
      auto span = std::upper_bound(owned.begin(), owned.end(), access.begin,
                                   [](const uint8_t* begin, const Span& each) { return begin < each.end; });
      for (; span != owned.end() && span->begin < access.end; ++span)
        if (span->core != core)
          violate(rule::kRace, "core %zu writes and core %zu reads %s, no SyncAll between", span->core, core,
                  memory.describe(std::max(span->begin, access.begin)).c_str());
    }
  }
}

}  // namespace emulator
