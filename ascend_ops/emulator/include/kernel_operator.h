// Under CANN this is the header of the kernel language. Here it is the part that the kernels of this project use,
// run by threads on the CPU with every rule checked (machine/rules.h).
#pragma once

#include "api/copy.h"
#include "api/queue.h"
#include "api/sync.h"
#include "api/vector.h"

// The tiling data that op_host wrote. The build names the struct.
#define GET_TILING_DATA(name, address) \
  EMULATOR_TILING name;                \
  std::memcpy(static_cast<void*>(&name), address, sizeof(name))
