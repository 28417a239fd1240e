// Tiling data of the kernel rre_combine.
#pragma once

#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(RreCombineTilingData)
TILING_DATA_FIELD_DEF(uint32_t, tokens)
TILING_DATA_FIELD_DEF(uint32_t, hidden)
TILING_DATA_FIELD_DEF(uint32_t, tile_columns)
TILING_DATA_FIELD_DEF(uint32_t, batch)
END_TILING_DATA_DEF;
REGISTER_TILING_DATA_CLASS(RreCombine, RreCombineTilingData)
}  // namespace optiling
