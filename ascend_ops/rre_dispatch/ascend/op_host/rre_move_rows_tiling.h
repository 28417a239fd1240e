// Tiling data of the kernels rre_gather_rows and rre_scatter_rows.
#pragma once

#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(RreMoveRowsTilingData)
TILING_DATA_FIELD_DEF(uint32_t, tokens)
TILING_DATA_FIELD_DEF(uint32_t, row_words)
TILING_DATA_FIELD_DEF(uint32_t, tile_words)
TILING_DATA_FIELD_DEF(uint32_t, batch)
END_TILING_DATA_DEF;
REGISTER_TILING_DATA_CLASS(RreGatherRows, RreMoveRowsTilingData)
REGISTER_TILING_DATA_CLASS(RreScatterRows, RreMoveRowsTilingData)
}  // namespace optiling
