// Tiling data of the kernels rre_regroup and rre_regroup_back.
#pragma once

#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(RreRegroupTilingData)
TILING_DATA_FIELD_DEF(uint32_t, rows)
TILING_DATA_FIELD_DEF(uint32_t, outer)
TILING_DATA_FIELD_DEF(uint32_t, inner)
TILING_DATA_FIELD_DEF(uint32_t, row_words)
TILING_DATA_FIELD_DEF(uint32_t, tile_words)
TILING_DATA_FIELD_DEF(uint32_t, batch)
END_TILING_DATA_DEF;
REGISTER_TILING_DATA_CLASS(RreRegroup, RreRegroupTilingData)
REGISTER_TILING_DATA_CLASS(RreRegroupBack, RreRegroupTilingData)
}  // namespace optiling
