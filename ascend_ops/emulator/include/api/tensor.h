// LocalTensor and GlobalTensor. Single elements of global memory cannot be read or written: those go through a cache
// that is not coherent with the DMA engines, and no kernel here needs them.
#pragma once

#include "types.h"

namespace AscendC {

template <typename T>
class LocalTensor {
 public:
  LocalTensor() = default;
  LocalTensor(int buffer, uint64_t first, uint64_t elements)
      : buffer_(buffer), generation_(emulator::this_core->buffers[buffer].generation), first_(first), size_(elements) {}

  LocalTensor operator[](uint64_t element) const {
    if (element > size_)
      emulator::violate(emulator::rule::kUbBounds, "element %lu of a LocalTensor of %lu", element, size_);
    LocalTensor part = *this;
    part.first_ += element * sizeof(T);
    part.size_ -= element;
    return part;
  }

  T GetValue(uint64_t element) const {
    T value;
    const emulator::Stamp now = emulator::this_core->start(emulator::Pipe::kScalar);
    std::memcpy(&value, read(now, element, 1, "GetValue"), sizeof(T));
    ++emulator::this_core->counters.elements;
    return value;
  }

  void SetValue(uint64_t element, T value) const {
    const emulator::Stamp now = emulator::this_core->start(emulator::Pipe::kScalar);
    std::memcpy(write(now, element, 1, "SetValue"), &value, sizeof(T));
    ++emulator::this_core->counters.elements;
  }

  uint64_t GetSize() const { return size_; }

  // Emulator: pointer to `count` elements that an operation reads or writes.
  const T* read(const emulator::Stamp& now, uint64_t element, uint64_t count, const char* what) const {
    return access(now, element, count, false, what);
  }
  T* write(const emulator::Stamp& now, uint64_t element, uint64_t count, const char* what) const {
    return access(now, element, count, true, what);
  }

  // Emulator: its offset in the unified buffer, and its buffer.
  uint64_t offset() const { return emulator::this_core->buffers[buffer_].offset + first_; }
  int buffer() const { return buffer_; }
  uint32_t generation() const { return generation_; }

 private:
  T* access(const emulator::Stamp& now, uint64_t element, uint64_t count, bool writes, const char* what) const {
    emulator::Core& core = *emulator::this_core;
    if (buffer_ < 0) emulator::violate(emulator::rule::kLifetime, "%s of a tensor that was never allocated", what);
    if (generation_ != core.buffers[buffer_].generation)
      emulator::violate(emulator::rule::kLifetime, "%s of a tensor that was enqueued or freed", what);
    if (element + count > size_)
      emulator::violate(emulator::rule::kUbBounds, "%s of elements %lu to %lu of a LocalTensor of %lu", what, element,
                        element + count, size_);
    const uint64_t from = offset() + element * sizeof(T);
    if (writes)
      core.unified_buffer.write(now, from, count * sizeof(T), what);
    else
      core.unified_buffer.read(now, from, count * sizeof(T), what);
    return reinterpret_cast<T*>(core.unified_buffer.at(from));
  }

  int buffer_ = -1;
  uint32_t generation_ = 0;
  uint64_t first_ = 0, size_ = 0;  // bytes from the buffer's start, elements
};

template <typename T>
class GlobalTensor {
 public:
  void SetGlobalBuffer(T* address, uint64_t elements) {
    emulator::this_core->memory.find(address, elements * sizeof(T), "SetGlobalBuffer");
    address_ = address;
    size_ = elements;
  }

  GlobalTensor operator[](uint64_t element) const {
    if (element > size_)
      emulator::violate(emulator::rule::kGmBounds, "element %lu of a GlobalTensor of %lu", element, size_);
    GlobalTensor part = *this;
    part.address_ += element;
    part.size_ -= element;
    return part;
  }

  uint64_t GetSize() const { return size_; }
  T* GetPhyAddr() const { return address_; }

 private:
  T* address_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace AscendC
