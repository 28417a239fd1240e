// Constants that a kernel and its op_host must agree on. Both include this file; it is C++11, like op_host.
#pragma once

#include <cstdint>

namespace rre_limits {

constexpr uint32_t kTileTokens = 256;          // tokens whose ids or positions a core loads together
constexpr uint32_t kMaxBatch = 16;             // rows that move together; larger batches save no more launches
constexpr uint32_t kMaxCores = 64;             // on any chip
constexpr uint32_t kMaxShift = kMaxCores / 2;  // largest shift, in cores, of the running sum over the cores

}  // namespace rre_limits
