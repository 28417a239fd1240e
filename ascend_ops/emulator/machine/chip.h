// The differences between the chips that the kernels support. The figures are from CANN's open headers and product
// pages; nothing here was measured on a device.
#pragma once

#include <cstdint>
#include <cstring>

// dav-c100 is the core of Ascend 910A, dav-c220 that of 910B and 910_93. A kernel may test the macro, as under CANN:
// older versions of CANN define __CCE_AICORE__, those of 2026 __NPU_ARCH__. The emulator runs with either of them.
#if !defined(__NPU_ARCH__) && !defined(__CCE_AICORE__)
#error "compile with -D__NPU_ARCH__=1001 or -D__CCE_AICORE__=100 (ascend910), or with 2201 or 220 (ascend910b, _93)"
#endif
#if __NPU_ARCH__ == 1001 || __CCE_AICORE__ == 100
#define EMULATOR_DAV_C100 1
#else
#define EMULATOR_DAV_C100 0
#endif

namespace emulator {

struct Chip {
  const char* name;        // as in AddConfig
  uint32_t vector_cores;   // that a kernel without matrix products may use
  uint64_t ub_bytes;       // size of a core's unified buffer that tiling sees: without the compiler's share
  uint32_t events;         // number of flags of one kind (from pipe, to pipe): QUE_MAX_EVENT
  bool hardware_sync_all;  // SyncAll() without a workspace, in kernels of the right type
  bool kernel_types;       // KERNEL_TASK_TYPE_DEFAULT
  bool bfloat16;           // supported by the vector unit
};

constexpr Chip kChips[] = {
    {"ascend910", 32, 256 * 1024, 4, false, false, false},
    {"ascend910b", 48, 192 * 1024 - 256, 8, true, true, true},
    {"ascend910_93", 48, 192 * 1024 - 256, 8, true, true, true},
};

// The name of one of the chips whose core this file is compiled for.
constexpr const char* kCompiledFor = EMULATOR_DAV_C100 ? "ascend910" : "ascend910b";

// The chip of this name, or nullptr.
inline const Chip* find_chip(const char* name) {
  for (const Chip& chip : kChips)
    if (std::strcmp(chip.name, name) == 0) return &chip;
  return nullptr;
}

constexpr uint64_t kUbOfLibrary = 8 * 1024;   // end of the unified buffer that AscendC reserves
constexpr uint64_t kLibraryWorkspace = 4096;  // bytes of the workspace before the operator's own; CANN's is larger
constexpr uint64_t kGranule = 32;             // bytes: smallest transfer and alignment of a DMA

}  // namespace emulator
