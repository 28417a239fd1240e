// Shared code of the CPU kernels: arguments as MindSpore passes them, errors with a message, half precision.
//
// A kernel is an `extern "C" int name(int, void**, int*, int64_t**, const char**, void*, void*)`: inputs first, then
// outputs, all dense and row-major. It throws to refuse its input; MindSpore turns that into a RuntimeError that quotes
// the message. Standard C++17 and OpenMP only, no intrinsics: x86-64 and aarch64 compile the same source.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

#define ASCEND_OP extern "C" __attribute__((visibility("default")))

namespace ascend_ops {

// Below this size, waking threads, which then spin for a while, costs more than it saves. Generation moves few rows.
constexpr int64_t kBytesWorthThreads = 1 << 17;

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  throw std::runtime_error(message);
}

// One input or output.
struct Array {
  void* data;
  const int64_t* shape;
  int rank;
  const char* dtype;

  template <typename T>
  T* as() const { return static_cast<T*>(data); }

  bool is(const char* name) const { return std::strcmp(dtype, name) == 0; }

  int64_t size() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank; ++axis) product *= shape[axis];
    return product;
  }

  int64_t item_size() const {
    if (is("float64") || is("int64")) return 8;
    if (is("float32") || is("int32")) return 4;
    if (is("float16") || is("bfloat16")) return 2;
    fail("a CPU kernel was given dtype %s", dtype);
  }

  // Bytes of one entry along the first axis.
  int64_t row_bytes() const {
    int64_t product = item_size();
    for (int axis = 1; axis < rank; ++axis) product *= shape[axis];
    return product;
  }
};

class Arguments {
 public:
  Arguments(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes)
      : count_(count), data_(data), ranks_(ranks), shapes_(shapes), dtypes_(dtypes) {}

  int count() const { return count_; }

  Array operator[](int index) const {
    if (index >= count_) fail("a CPU kernel needs argument %d, but was given %d", index, count_);
    return {data_[index], shapes_[index], ranks_[index], dtypes_[index]};
  }

 private:
  int count_;
  void** data_;
  int* ranks_;
  int64_t** shapes_;
  const char** dtypes_;
};

// IEEE half precision. Compilers that lack the type (g++ before 12 on x86-64) use the conversions below.
#if defined(__FLT16_MANT_DIG__) && !defined(ASCEND_OPS_SOFTWARE_HALF)
using half = _Float16;
#elif defined(__ARM_FP16_FORMAT_IEEE) && !defined(ASCEND_OPS_SOFTWARE_HALF)
using half = __fp16;
#else
class half {
 public:
  half() = default;

  half(float value) {  // rounds to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {  // NaN: keeps the bits of its payload that fit, and remains NaN
      bits_ = static_cast<uint16_t>(sign | std::max(0x7c01u, (magnitude >> 13) & 0x7fffu));
    } else if (magnitude >= 0x477ff000u) {  // rounds to infinity
      bits_ = static_cast<uint16_t>(sign | 0x7c00u);
    } else if (magnitude >= 0x38800000u) {  // normal
      const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
      bits_ = static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
    } else {  // subnormal: the addition aligns and rounds the mantissa
      float small;
      std::memcpy(&small, &magnitude, 4);
      small += 0.5f;
      uint32_t aligned;
      std::memcpy(&aligned, &small, 4);
      bits_ = static_cast<uint16_t>(sign | (aligned - 0x3f000000u));
    }
  }

  operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits_ & 0x8000u) << 16, rest = bits_ & 0x7fffu;
    uint32_t bits;
    if (rest >= 0x7c00u) {  // infinity, NaN
      bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
    } else if (rest >= 0x400u) {  // normal
      bits = sign | ((rest << 13) + 0x38000000u);
    } else {  // subnormal: rest · 2⁻²⁴
      const float small = static_cast<float>(rest) * 5.9604644775390625e-8f;
      std::memcpy(&bits, &small, 4);
      bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

 private:
  uint16_t bits_;
};
static_assert(sizeof(half) == 2, "a half has two bytes");
#endif

}  // namespace ascend_ops
