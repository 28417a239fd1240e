// RreRegroupBack; see rre_regroup.h.
#include "rre_regroup.h"

extern "C" __global__ __aicore__ void rre_regroup_back(GM_ADDR rows, GM_ADDR counts, GM_ADDR regrouped,
                                                       GM_ADDR workspace, GM_ADDR tiling) {
  GET_TILING_DATA(data, tiling);
  rre::Regroup regroup;
  regroup.Init(rows, counts, regrouped, data.rows, data.outer, data.inner, data.row_words, data.tile_words, data.batch);
  regroup.Process(true);
}
