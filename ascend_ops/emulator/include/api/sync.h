// Flags, barriers and SyncAll.
#pragma once

#include "tensor.h"

// Types of kernels that only start the vector cores; the numbers are CANN's.
enum KernelMetaType : uint8_t { KERNEL_TYPE_AIV_ONLY = 0, KERNEL_TYPE_MIX_AIV_1_0 = 2 };

namespace emulator {

inline void set_type(KernelMetaType type) {
  if (!this_core->chip.kernel_types)
    violate(rule::kChip, "KERNEL_TASK_TYPE_DEFAULT: %s has no kernel types", this_core->chip.name);
  this_core->type_has_sync_all = type == KERNEL_TYPE_MIX_AIV_1_0;
}

}  // namespace emulator

#define KERNEL_TASK_TYPE_DEFAULT(type) emulator::set_type(type)

namespace AscendC {

inline int64_t GetBlockIdx() { return emulator::this_core->index; }
inline int64_t GetBlockNum() { return emulator::this_core->count; }

// The operator's part of the workspace, behind the library's.
inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace + emulator::kLibraryWorkspace; }

template <HardEvent kEvent>
void SetFlag(TEventID id) {
  emulator::this_core->set_flag(emulator::kind_of(kEvent), id);
}

template <HardEvent kEvent>
void WaitFlag(TEventID id) {
  emulator::this_core->wait_flag(emulator::kind_of(kEvent), id);
}

template <pipe_t kPipe>
void PipeBarrier() {
  emulator::Core& core = *emulator::this_core;
  ++core.counters.flags;
  switch (kPipe) {
    case PIPE_V:
      return core.pipes.barrier(emulator::Pipe::kVector);
    case PIPE_MTE2:
      return core.pipes.barrier(emulator::Pipe::kLoad);
    case PIPE_MTE3:
      return core.pipes.barrier(emulator::Pipe::kStore);
    case PIPE_ALL:
      return core.pipes.barrier_all();
    default:
      emulator::violate(emulator::rule::kChip, "PipeBarrier<PIPE_S>: the scalar unit needs none");
  }
}

// SyncAll by hardware, in a kernel that has declared its type.
inline void SyncAll() {
  emulator::Core& core = *emulator::this_core;
  if (!core.chip.hardware_sync_all)
    emulator::violate(emulator::rule::kSyncAll, "SyncAll without a workspace: %s has no hardware for it",
                      core.chip.name);
  if (!core.type_has_sync_all)
    emulator::violate(emulator::rule::kSyncAll,
                      "SyncAll without a workspace in a kernel that does not declare KERNEL_TYPE_MIX_AIV_1_0: the "
                      "device would not wait");
  emulator::this_launch->sync_all(core);
}

// SyncAll by counting in global memory: 32 bytes of `global` and of `local` per core, `global` zeroed before.
inline void SyncAll(const GlobalTensor<int32_t>& global, const LocalTensor<int32_t>& local, int32_t used_cores = 0) {
  emulator::Core& core = *emulator::this_core;
  const uint32_t cores = used_cores ? static_cast<uint32_t>(used_cores) : core.count;
  const uint64_t needed = cores * emulator::kGranule / sizeof(int32_t);
  if (cores != core.count)
    emulator::violate(emulator::rule::kSyncAll, "SyncAll of %u cores of %u: the others are not waited for", cores,
                      core.count);
  if (global.GetSize() < needed || local.GetSize() < needed)
    emulator::violate(emulator::rule::kSyncAll,
                      "SyncAll of %u cores needs %lu int32 of workspace, got %lu global and %lu local", cores, needed,
                      global.GetSize(), local.GetSize());
  if (reinterpret_cast<uintptr_t>(global.GetPhyAddr()) % emulator::kGranule || local.offset() % emulator::kGranule)
    emulator::violate(emulator::rule::kSyncAll, "SyncAll: its workspaces begin at multiples of 32 bytes");
  core.memory.count_in(global.GetPhyAddr(), needed * sizeof(int32_t));
  core.pipes.barrier_all();
  local.write(core.start(emulator::Pipe::kScalar), 0, needed, "SyncAll");
  emulator::this_launch->sync_all(core);
}

}  // namespace AscendC
