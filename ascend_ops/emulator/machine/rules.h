// The rules that a kernel can break, and how a broken rule is reported.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace emulator {

// The names are part of the emulator's interface: tests expect them.
namespace rule {
constexpr const char kAlignment[] = "alignment";       // addresses and lengths of a DMA: multiples of 32 bytes
constexpr const char kField[] = "dma-field";           // bursts and strides of a DMA: 16 bits, bursts not empty
constexpr const char kCapacity[] = "ub-capacity";      // the buffers of InitBuffer fit the unified buffer
constexpr const char kUbBounds[] = "ub-bounds";        // no access outside the tensor's buffer
constexpr const char kGmBounds[] = "gm-bounds";        // no access outside a GlobalTensor or its array
constexpr const char kQueue[] = "queue";               // alloc → enque → deque → free, never more than the queue has
constexpr const char kLifetime[] = "tensor-lifetime";  // no use of a tensor after it was enqueued or freed
constexpr const char kEvent[] = "event";               // each SetFlag has its WaitFlag, ids are within the chip's
constexpr const char kUninitialised[] = "uninitialised";  // nothing is read before it was written
constexpr const char kHazard[] = "hazard";                // pipes of a core that touch the same bytes are ordered
constexpr const char kRace[] = "race";                    // cores that touch the same bytes have a SyncAll between them
constexpr const char kSyncAll[] = "sync-all";             // its form, its workspace, and that every core arrives
constexpr const char kChip[] = "chip";                    // unsupported on this chip
constexpr const char kHost[] = "op-host";                 // definition, shapes and tiling agree with what is launched
}  // namespace rule

struct Violation : std::runtime_error {
  Violation(const char* rule, const std::string& message) : std::runtime_error(message), rule(rule) {}
  const char* rule;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void violate(const char* rule, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  throw Violation(rule, message);
}

}  // namespace emulator
