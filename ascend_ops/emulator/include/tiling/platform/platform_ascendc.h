// The chip's properties, as tiling queries them.
#pragma once

#include "register/op_def_registry.h"

namespace platform_ascendc {

enum class CoreMemType { UB };

class PlatformAscendC {
 public:
  explicit PlatformAscendC(const emulator::Chip* chip) : chip_(chip) {}
  uint32_t GetCoreNumAiv() const { return emulator::host.cores ? emulator::host.cores : chip_->vector_cores; }
  void GetCoreMemSize(CoreMemType, uint64_t& bytes) const { bytes = chip_->ub_bytes; }
  uint32_t GetLibApiWorkSpaceSize() const { return emulator::kLibraryWorkspace; }

 private:
  const emulator::Chip* chip_;
};

}  // namespace platform_ascendc
