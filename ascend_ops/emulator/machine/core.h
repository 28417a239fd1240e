// One core: its pipes, its unified buffer, its flags, and its counters.
#pragma once

#include <map>
#include <vector>

#include "global_memory.h"
#include "pipes.h"
#include "unified_buffer.h"

namespace emulator {

// Counts of one core. "Scalar operations" are the visible work of the scalar unit: reads and writes of single elements
// of the unified buffer, and instructions that it issues to the other pipes. Arithmetic in registers is not counted.
struct Counters {
  uint64_t bytes_read = 0, bytes_written = 0;  // of global memory
  uint64_t loads = 0, stores = 0;              // DMA launches
  uint64_t vector_operations = 0;
  uint64_t flags = 0;     // SetFlag and WaitFlag, also those of queues; barriers
  uint64_t elements = 0;  // of the unified buffer that the scalar unit read or wrote
  uint64_t sync_alls = 0;

  uint64_t scalar_operations() const { return elements + loads + stores + vector_operations + flags; }
};

// A part of the unified buffer that InitBuffer allocated. A tensor records the generation in which it was taken;
// enqueueing or freeing it begins the next one.
struct Buffer {
  uint64_t offset, bytes;
  uint32_t generation = 0;
};

// The kinds of flags: from one pipe to another, each with its own ids.
struct EventKind {
  Pipe from, to;
  bool operator<(const EventKind& other) const { return std::pair(from, to) < std::pair(other.from, other.to); }
};

class Core {
 public:
  Core(const Chip& chip, uint32_t index, uint32_t count, GlobalMemory& memory)
      : chip(chip), index(index), count(count), memory(memory), unified_buffer(chip, pipes) {}

  Stamp start(Pipe pipe) { return pipes.start(pipe); }

  // A DMA's burst in global memory.
  void touch(const Stamp& stamp, const void* address, uint64_t bytes, bool write, const char* what) {
    const uint8_t* begin = static_cast<const uint8_t*>(address);
    memory.refuse_counters(address, bytes, what);
    if (write)
      memory.write(address, bytes, what);
    else
      memory.read(address, bytes, what);
    accesses.push_back({begin, begin + bytes, write, stamp, pipes.known(stamp.pipe), accesses.size()});
    (write ? counters.bytes_written : counters.bytes_read) += bytes;
  }

  // Number of ids of one kind that queues reserve.
  void reserve_events(EventKind kind, uint32_t num_events) {
    uint32_t& held = reserved_[kind];
    held += num_events;
    if (held > chip.events)
      violate(rule::kEvent, "queues need %u flags from %s to %s, and %s has %u", held, name(kind.from), name(kind.to),
              chip.name, chip.events);
  }

  int free_event(EventKind kind) {
    for (uint32_t id = reserved_[kind]; id < chip.events; ++id)
      if (!flags_.count({kind, id})) return static_cast<int>(id);
    violate(rule::kEvent, "no flag from %s to %s is left of the %u of %s", name(kind.from), name(kind.to), chip.events,
            chip.name);
  }

  void set_flag(EventKind kind, int id) {
    check_id(kind, id);
    ++counters.flags;
    if (!flags_.emplace(std::pair(kind, static_cast<uint32_t>(id)), pipes.after(kind.from)).second)
      violate(rule::kEvent, "SetFlag of flag %d from %s to %s, which is set and not awaited", id, name(kind.from),
              name(kind.to));
  }

  void wait_flag(EventKind kind, int id) {
    check_id(kind, id);
    ++counters.flags;
    const auto flag = flags_.find({kind, static_cast<uint32_t>(id)});
    if (flag == flags_.end())
      violate(rule::kEvent, "WaitFlag of flag %d from %s to %s, which nobody set: the device would hang", id,
              name(kind.from), name(kind.to));
    pipes.learn(kind.to, flag->second);
    flags_.erase(flag);
  }

  // The kernel's function returned.
  void finish() {
    if (!flags_.empty())
      violate(rule::kEvent, "the kernel ended with a flag from %s to %s that nobody awaited",
              name(flags_.begin()->first.first.from), name(flags_.begin()->first.first.to));
    if (outstanding_tensors > 0)
      violate(rule::kQueue, "the kernel ended with %d tensors that were allocated and not freed", outstanding_tensors);
  }

  const Chip& chip;
  const uint32_t index, count;
  GlobalMemory& memory;
  Pipes pipes;
  UnifiedBuffer unified_buffer;
  std::vector<Buffer> buffers;
  const void* pipe_object = nullptr;  // the only TPipe: a second one would allocate the unified buffer from its start
  std::vector<Access> accesses;       // of global memory, since the last SyncAll
  Counters counters;
  int outstanding_tensors = 0;
  bool type_has_sync_all = false;  // the hardware SyncAll works in the declared type of kernel

 private:
  void check_id(EventKind kind, int id) {
    const int held = static_cast<int>(reserved_[kind]);
    if (id < held || id >= static_cast<int>(chip.events))
      violate(rule::kEvent, "flag %d from %s to %s: %s has %u of a kind, and queues hold the first %d", id,
              name(kind.from), name(kind.to), chip.name, chip.events, held);
  }

  std::map<EventKind, uint32_t> reserved_;
  std::map<std::pair<EventKind, uint32_t>, Clock> flags_;
};

// The core that this thread emulates.
static thread_local Core* this_core = nullptr;

}  // namespace emulator
