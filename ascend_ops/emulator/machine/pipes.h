// The pipes of a core, and which operations each of them knows to be finished.
//
// A core has a scalar unit, which reads the program and issues work to the others, a vector unit and two DMA engines;
// they run concurrently. Only flags, barriers and queues order them: even two operations of the same pipe (except the
// scalar unit) need a PipeBarrier before one may use the result of the other. Vector clocks track this order.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace emulator {

enum class Pipe : uint8_t { kScalar, kVector, kLoad, kStore };  // S, V, MTE2 (to the core), MTE3 (from it)
constexpr int kPipes = 4;
constexpr const char* kPipeNames[kPipes] = {"S", "V", "MTE2", "MTE3"};

inline const char* name(Pipe pipe) { return kPipeNames[static_cast<int>(pipe)]; }

// For each pipe, the number of its operations that are known to be finished.
using Clock = std::array<uint64_t, kPipes>;

inline void merge(Clock& into, const Clock& other) {
  for (int pipe = 0; pipe < kPipes; ++pipe) into[pipe] = std::max(into[pipe], other[pipe]);
}

// One operation: its index in its pipe from 1, 0 for none.
struct Stamp {
  Pipe pipe = Pipe::kScalar;
  uint64_t number = 0;
};

class Pipes {
 public:
  Stamp start(Pipe pipe) { return {pipe, ++started_[index(pipe)]}; }

  // True if that operation is finished when the next operation of `pipe` begins.
  bool finished(const Stamp& earlier, Pipe pipe) const { return finished(earlier, pipe, known_[index(pipe)]); }

  static bool finished(const Stamp& earlier, Pipe pipe, const Clock& known) {
    if (earlier.pipe == Pipe::kScalar && pipe == Pipe::kScalar) return true;
    return known[index(earlier.pipe)] >= earlier.number;
  }

  const Clock& known(Pipe pipe) const { return known_[index(pipe)]; }

  // The clock when everything issued to `pipe` so far is finished.
  Clock after(Pipe pipe) const {
    Clock clock = known_[index(pipe)];
    clock[index(pipe)] = started_[index(pipe)];
    return clock;
  }

  void learn(Pipe pipe, const Clock& clock) { merge(known_[index(pipe)], clock); }

  void barrier(Pipe pipe) { known_[index(pipe)][index(pipe)] = started_[index(pipe)]; }

  void barrier_all() { known_.fill(started_); }

 private:
  static int index(Pipe pipe) { return static_cast<int>(pipe); }

  Clock started_{};
  std::array<Clock, kPipes> known_{};
};

}  // namespace emulator
