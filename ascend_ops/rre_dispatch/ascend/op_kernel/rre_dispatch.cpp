// RreDispatch; see rre_dispatch.h.
#include "rre_dispatch.h"

extern "C" __global__ __aicore__ void rre_dispatch(GM_ADDR x, GM_ADDR token_ids, GM_ADDR slot_ids, GM_ADDR table,
                                                   GM_ADDR layout, GM_ADDR rows, GM_ADDR counts, GM_ADDR positions,
                                                   GM_ADDR invalid, GM_ADDR barrier, GM_ADDR workspace,
                                                   GM_ADDR tiling) {
#if !RRE_DAV_C100
  // The hardware SyncAll only works in kernels of this type. AIV_ONLY, which CANN may infer for a kernel without matrix
  // products, starts the same cores but does not synchronise them. dav-c100 has no kernel types.
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);
#endif
  GET_TILING_DATA(data, tiling);
  rre::Dispatch dispatch;
  dispatch.Init(x, token_ids, slot_ids, table, rows, counts, positions, invalid, barrier,
                AscendC::GetUserWorkspace(workspace), data.tokens, data.slots, data.vocab_size, data.experts,
                data.ranks, data.row_words, data.tile_words, data.batch);
  dispatch.Process();
}
