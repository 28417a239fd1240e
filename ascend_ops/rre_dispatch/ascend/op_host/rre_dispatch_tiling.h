// Tiling data of the kernel rre_dispatch.
#pragma once

#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(RreDispatchTilingData)
TILING_DATA_FIELD_DEF(uint32_t, tokens)
TILING_DATA_FIELD_DEF(uint32_t, slots)
TILING_DATA_FIELD_DEF(uint32_t, vocab_size)
TILING_DATA_FIELD_DEF(uint32_t, experts)
TILING_DATA_FIELD_DEF(uint32_t, ranks)
TILING_DATA_FIELD_DEF(uint32_t, row_words)
TILING_DATA_FIELD_DEF(uint32_t, tile_words)
TILING_DATA_FIELD_DEF(uint32_t, batch)
END_TILING_DATA_DEF;
REGISTER_TILING_DATA_CLASS(RreDispatch, RreDispatchTilingData)
}  // namespace optiling
