// Types of the kernel language: half and bfloat16 with the rounding of the vector unit, events, positions.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../machine/launch.h"

#define __aicore__
#define __global__
#define __gm__
#define __ubuf__

using GM_ADDR = uint8_t*;
using TEventID = int8_t;

using half = _Float16;

// A float without its lower 16 bits, rounded to nearest, ties to even.
class bfloat16_t {
 public:
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits_ = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  explicit operator float() const {
    const uint32_t bits = static_cast<uint32_t>(bits_) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

 private:
  uint16_t bits_;
};

namespace AscendC {

enum class TPosition { GM, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;

template <typename T, typename U>
using IsSameType = std::is_same<T, U>;

enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };

enum class HardEvent { MTE2_V, MTE2_MTE3, MTE2_S, V_MTE2, V_MTE3, V_S, MTE3_MTE2, MTE3_V, MTE3_S, S_V, S_MTE2, S_MTE3 };

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

}  // namespace AscendC

using AscendC::PIPE_ALL;
using AscendC::PIPE_MTE2;
using AscendC::PIPE_MTE3;
using AscendC::PIPE_S;
using AscendC::pipe_t;
using AscendC::PIPE_V;

namespace emulator {

constexpr EventKind kind_of(AscendC::HardEvent event) {
  using AscendC::HardEvent;
  switch (event) {
    case HardEvent::MTE2_V:
      return {Pipe::kLoad, Pipe::kVector};
    case HardEvent::MTE2_MTE3:
      return {Pipe::kLoad, Pipe::kStore};
    case HardEvent::MTE2_S:
      return {Pipe::kLoad, Pipe::kScalar};
    case HardEvent::V_MTE2:
      return {Pipe::kVector, Pipe::kLoad};
    case HardEvent::V_MTE3:
      return {Pipe::kVector, Pipe::kStore};
    case HardEvent::V_S:
      return {Pipe::kVector, Pipe::kScalar};
    case HardEvent::MTE3_MTE2:
      return {Pipe::kStore, Pipe::kLoad};
    case HardEvent::MTE3_V:
      return {Pipe::kStore, Pipe::kVector};
    case HardEvent::MTE3_S:
      return {Pipe::kStore, Pipe::kScalar};
    case HardEvent::S_V:
      return {Pipe::kScalar, Pipe::kVector};
    case HardEvent::S_MTE2:
      return {Pipe::kScalar, Pipe::kLoad};
    default:
      return {Pipe::kScalar, Pipe::kStore};  // S_MTE3
  }
}

// The pipe that fills a queue at this position, and the one that empties it.
constexpr Pipe producer(AscendC::TPosition position) {
  return position == AscendC::TPosition::VECIN ? Pipe::kLoad : Pipe::kVector;
}
constexpr Pipe consumer(AscendC::TPosition position) {
  return position == AscendC::TPosition::VECOUT ? Pipe::kStore : Pipe::kVector;
}

}  // namespace emulator
