// The framework of rules.cpp: small kernels that register themselves, their arguments, and a loop that runs all of them.
// It prints a line per kernel: name, expected rule, reported rule, message; separated by tabs.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "kernel_operator.h"

using namespace AscendC;

namespace {

// The arguments of a kernel: an input, two outputs, a workspace that the host has zeroed.
constexpr uint32_t kWords = 4096;
struct Memory {
  int32_t *in, *out, *other, *zeros;
} memory;

struct Kernel {
  const char *name, *rule;
  void (*body)();
  uint32_t cores = 1;
};
std::vector<Kernel>& kernels() {
  static std::vector<Kernel> list;
  return list;
}

#define KERNEL(name, rule, cores)                                                         \
  void name();                                                                            \
  const bool registered_##name = (kernels().push_back({#name, rule, name, cores}), true); \
  void name()

struct Tensors {
  GlobalTensor<int32_t> in, out, other, zeros;
  TPipe pipe;
  Tensors() {
    in.SetGlobalBuffer(memory.in, kWords);
    out.SetGlobalBuffer(memory.out, kWords);
    other.SetGlobalBuffer(memory.other, kWords);
    zeros.SetGlobalBuffer(memory.zeros, kWords);
  }
  LocalTensor<int32_t> buffer(uint32_t words = 64) {
    TBuf<TPosition::VECCALC> buf;
    pipe.InitBuffer(buf, words * 4);
    return buf.Get<int32_t>();
  }
};

template <HardEvent kEvent>
void order() {
  const TEventID id = GetTPipePtr()->FetchEventID(kEvent);
  SetFlag<kEvent>(id);
  WaitFlag<kEvent>(id);
}

using Bind = TQueBind<TPosition::VECIN, TPosition::VECOUT, 2>;

int32_t* allocate() { return static_cast<int32_t*>(std::aligned_alloc(64, kWords * sizeof(int32_t))); }

inline int run_all() {
  const emulator::Chip& chip = *emulator::find_chip(emulator::kCompiledFor);
  memory = {allocate(), allocate(), allocate(), allocate()};
  for (const Kernel& kernel : kernels()) {
    const uint64_t bytes = kWords * sizeof(int32_t);
    std::memset(memory.in, 1, bytes);
    std::memset(memory.zeros, 0, bytes);
    emulator::Launch launch(
        chip, kernel.cores,
        {{"in", reinterpret_cast<uint8_t*>(memory.in), bytes},
         {"out", reinterpret_cast<uint8_t*>(memory.out), bytes, std::vector<uint8_t>(bytes, 0)},
         {"other", reinterpret_cast<uint8_t*>(memory.other), bytes, std::vector<uint8_t>(bytes, 0)},
         {"zeros", reinterpret_cast<uint8_t*>(memory.zeros), bytes, std::vector<uint8_t>(bytes, 1)}});
    emulator::this_launch = &launch;
    const emulator::Launch::Result result = launch.run(kernel.body);
    std::printf("%s\t%s\t%s\t%s\n", kernel.name, kernel.rule, result.rule.c_str(), result.message.c_str());
  }
  return 0;
}

}  // namespace
