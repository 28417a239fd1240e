// RreCombine; see rre_combine.h.
#include "rre_combine.h"

extern "C" __global__ __aicore__ void rre_combine(GM_ADDR rows, GM_ADDR positions, GM_ADDR residual, GM_ADDR sum,
                                                  GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(data, tiling);
  rre::Combine<DTYPE_ROWS> combine;
  combine.Init(rows, positions, residual, sum, data.tokens, data.hidden, data.tile_columns, data.batch);
  combine.Process();
}
