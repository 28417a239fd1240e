// The vector unit: the operations that the kernels use, on `count` elements, with the rounding of the device.
#pragma once

#include <type_traits>

#include "tensor.h"

namespace emulator {

// Begins an operation of the vector unit on `count` elements.
inline Stamp start_vector_operation(int64_t count, const char* what) {
  if (count <= 0) violate(rule::kUbBounds, "%s of %ld elements", what, count);
  ++this_core->counters.vector_operations;
  return this_core->start(Pipe::kVector);
}

template <typename T>
void check_vector_type(const char* what) {
  if (std::is_same_v<T, bfloat16_t> && !this_core->chip.bfloat16)
    violate(rule::kChip, "%s of bfloat16: the vector unit of %s does not know it", what, this_core->chip.name);
}

template <typename T>
void check_vector_address(const AscendC::LocalTensor<T>& tensor, const char* what) {
  if (tensor.offset() % kGranule)
    violate(rule::kAlignment, "%s: address %lu in the unified buffer is no multiple of 32", what, tensor.offset());
}

// The vector unit works in repeats: its result may coincide with an input element for element, or not overlap it.
template <typename To, typename From>
void check_overlap(const AscendC::LocalTensor<To>& out, const AscendC::LocalTensor<From>& in, uint64_t count,
                   const char* what) {
  const uint64_t to = out.offset(), from = in.offset();
  const bool apart = to + count * sizeof(To) <= from || from + count * sizeof(From) <= to;
  if (!apart && (to != from || sizeof(To) != sizeof(From)))
    violate(rule::kUbBounds, "%s: its result lies across its input, bytes %lu and %lu of the unified buffer", what, to,
            from);
}

}  // namespace emulator

namespace AscendC {

template <typename T>
void Duplicate(const LocalTensor<T>& out, T value, int32_t count) {
  using namespace emulator;
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "Duplicate takes elements of 2 or 4 bytes");
  const Stamp now = start_vector_operation(count, "Duplicate");
  check_vector_type<T>("Duplicate");
  check_vector_address(out, "Duplicate");
  T* to = out.write(now, 0, count, "Duplicate");
  std::fill(to, to + count, value);
}

// The vector unit adds half, float and integers; bfloat16 goes through float.
template <typename T>
void Add(const LocalTensor<T>& out, const LocalTensor<T>& left, const LocalTensor<T>& right, int32_t count) {
  using namespace emulator;
  static_assert(
      std::is_same_v<T, half> || std::is_same_v<T, float> || std::is_same_v<T, int32_t> || std::is_same_v<T, int16_t>,
      "Add takes half, float, int16 or int32");
  const Stamp now = start_vector_operation(count, "Add");
  for (const auto& tensor : {out, left, right}) check_vector_address(tensor, "Add");
  for (const auto& tensor : {left, right}) check_overlap(out, tensor, count, "Add");
  const T* a = left.read(now, 0, count, "Add");
  const T* b = right.read(now, 0, count, "Add");
  T* to = out.write(now, 0, count, "Add");
  for (int32_t i = 0; i < count; ++i) to[i] = static_cast<T>(a[i] + b[i]);
}

// half and bfloat16 → float, exactly (CAST_NONE); float → half (CAST_NONE, which rounds to nearest even) and, if the
// chip has it, float → bfloat16 (CAST_RINT).
template <typename To, typename From>
void Cast(const LocalTensor<To>& out, const LocalTensor<From>& in, RoundMode mode, uint32_t count) {
  using namespace emulator;
  static_assert((std::is_same_v<To, float> && sizeof(From) == 2) || (std::is_same_v<From, float> && sizeof(To) == 2),
                "Cast here is between float and half or bfloat16");
  const Stamp now = start_vector_operation(count, "Cast");
  check_vector_type<To>("Cast");
  check_vector_type<From>("Cast");
  check_vector_address(out, "Cast");
  check_vector_address(in, "Cast");
  check_overlap(out, in, count, "Cast");
  const RoundMode wanted = std::is_same_v<To, bfloat16_t> ? RoundMode::CAST_RINT : RoundMode::CAST_NONE;
  if (mode != wanted)
    violate(rule::kChip, "Cast with a rounding mode that is not common to all chips; expected %s",
            wanted == RoundMode::CAST_RINT ? "CAST_RINT" : "CAST_NONE");
  const From* from = in.read(now, 0, count, "Cast");
  To* to = out.write(now, 0, count, "Cast");
  for (uint32_t i = 0; i < count; ++i) to[i] = static_cast<To>(static_cast<float>(from[i]));
}

}  // namespace AscendC
