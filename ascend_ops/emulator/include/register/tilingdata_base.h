// The macros with which op_host declares the tiling data: here a plain struct.
#pragma once

#include <cstdint>
#include <cstring>

#define BEGIN_TILING_DATA_DEF(name) \
  struct name {                     \
    using Self = name;
#define TILING_DATA_FIELD_DEF(type, field)        \
  type field{};                                   \
  void set_##field(type value) { field = value; } \
  type get_##field() const { return field; }
#define END_TILING_DATA_DEF                                                 \
  uint64_t GetDataSize() const { return sizeof(Self); }                     \
  void SaveToBuffer(void* address, uint64_t capacity) const {               \
    if (capacity >= sizeof(Self)) std::memcpy(address, this, sizeof(Self)); \
  }                                                                         \
  }
#define REGISTER_TILING_DATA_CLASS(operator_name, name)
