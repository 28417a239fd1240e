// RreGatherRows: moved[t] = rows[positions[t]]; see rre_move_rows.h.
#include "rre_move_rows.h"

extern "C" __global__ __aicore__ void rre_gather_rows(GM_ADDR rows, GM_ADDR positions, GM_ADDR moved, GM_ADDR workspace,
                                                      GM_ADDR tiling) {
  GET_TILING_DATA(data, tiling);
  rre::MoveRows kernel;
  kernel.Init(rows, positions, moved, data.tokens, data.row_words, data.tile_words, data.batch);
  kernel.Process(false);
}
