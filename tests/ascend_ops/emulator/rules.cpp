// Small kernels that each break one rule of the emulator, and some that break none.
#include "small_kernels.h"

namespace {

// ---- no rule broken

KERNEL(copies_through_a_queue, "", 4) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t at = (GetBlockIdx() * 4 + i) * 64;
    auto loaded = queue.AllocTensor<int32_t>();
    DataCopy(loaded, t.in[at], 64);
    queue.EnQue(loaded);
    auto stored = queue.DeQue<int32_t>();
    DataCopy(t.out[at], stored, 64);
    queue.FreeTensor(stored);
  }
}

KERNEL(adds_in_place_on_the_vector_unit, "", 1) {
  Tensors t;
  auto a = t.buffer();
  DataCopy(a, t.in, 64);
  order<HardEvent::MTE2_V>();
  Add(a, a, a, 64);
  order<HardEvent::V_MTE3>();
  DataCopy(t.out, a, 64);
}

KERNEL(strided_copy, "", 1) {
  Tensors t;
  auto a = t.buffer();
  DataCopy(a, t.in, DataCopyParams(4, 1, 3, 1));
  order<HardEvent::MTE2_MTE3>();
  DataCopy(t.out, a, DataCopyParams(4, 1, 1, 0));
}

KERNEL(soft_sync_all_orders_cores, "", 4) {
  Tensors t;
  auto a = t.buffer(), scratch = t.buffer();
  const uint32_t mine = GetBlockIdx() * 64, others = (GetBlockIdx() + 1) % 4 * 64;
  DataCopy(a, t.in[mine], 64);
  order<HardEvent::MTE2_MTE3>();
  DataCopy(t.out[mine], a, 64);
  SyncAll(t.zeros, scratch);
  DataCopy(a, t.out[others], 64);
  order<HardEvent::MTE2_MTE3>();
  DataCopy(t.other[mine], a, 64);
}

#if !EMULATOR_DAV_C100
KERNEL(hardware_sync_all, "", 4) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);
  Tensors t;
  SyncAll();
}

KERNEL(hardware_sync_all_without_a_type_of_kernel, "sync-all", 4) {
  Tensors t;
  SyncAll();
}

KERNEL(hardware_sync_all_in_a_kernel_of_the_vector_cores_alone, "sync-all", 4) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  Tensors t;
  SyncAll();
}

KERNEL(eight_flags_of_a_kind, "", 1) {
  Tensors t;
  for (int id = 0; id < 8; ++id) SetFlag<HardEvent::MTE2_V>(id);
  for (int id = 0; id < 8; ++id) WaitFlag<HardEvent::MTE2_V>(id);
}

KERNEL(bfloat16_on_the_vector_unit, "", 1) {
  Tensors t;
  TBuf<TPosition::VECCALC> narrow, wide;
  t.pipe.InitBuffer(narrow, 64);
  t.pipe.InitBuffer(wide, 128);
  Duplicate(wide.Get<float>(), 1.0f, 32);
  PipeBarrier<PIPE_V>();
  Cast(narrow.Get<bfloat16_t>(), wide.Get<float>(), RoundMode::CAST_RINT, 32);
}
#endif

// ---- alignment, dma-field

KERNEL(copies_28_bytes, "alignment", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.in, 7);
}

KERNEL(stores_28_bytes, "alignment", 1) {
  Tensors t;
  auto a = t.buffer();
  Duplicate(a, 1, 64);
  order<HardEvent::V_MTE3>();
  DataCopy(t.out, a, 7);
}

KERNEL(local_address_in_a_granule, "alignment", 1) {
  Tensors t;
  DataCopy(t.buffer()[1], t.in, 8);
}

KERNEL(global_address_in_a_granule, "alignment", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.in[1], 8);
}

KERNEL(vector_address_in_a_granule, "alignment", 1) {
  Tensors t;
  Duplicate(t.buffer()[1], 1, 8);
}

KERNEL(stride_of_more_than_16_bits, "dma-field", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.in, DataCopyParams(2, 1, 65536, 0));
}

KERNEL(no_burst, "dma-field", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.in, 0u);
}

KERNEL(too_many_bursts, "dma-field", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.in, DataCopyParams(4096, 1, 0, 0));
}

// ---- ub-capacity, ub-bounds, gm-bounds

KERNEL(more_than_the_unified_buffer, "ub-capacity", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 130 * 1024);
}

KERNEL(empty_buffer, "ub-capacity", 1) {
  Tensors t;
  t.buffer(0);
}

KERNEL(past_a_local_tensor, "ub-bounds", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.in, 128);
}

KERNEL(element_past_a_local_tensor, "ub-bounds", 1) {
  Tensors t;
  t.buffer().SetValue(64, 1);
}

KERNEL(vector_operation_on_nothing, "ub-bounds", 1) {
  Tensors t;
  Duplicate(t.buffer(), 1, 0);
}

KERNEL(past_a_global_tensor, "gm-bounds", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.in[kWords - 8], 64);
}

KERNEL(global_tensor_larger_than_its_array, "gm-bounds", 1) {
  GlobalTensor<int32_t> wrong;
  wrong.SetGlobalBuffer(memory.in, kWords + 1);
}

KERNEL(writes_an_input, "gm-bounds", 1) {
  Tensors t;
  auto a = t.buffer();
  Duplicate(a, 1, 64);
  order<HardEvent::V_MTE3>();
  DataCopy(t.in, a, 64);
}

// ---- queue, tensor-lifetime

KERNEL(allocates_more_than_there_are, "queue", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  for (int i = 0; i < 3; ++i) queue.AllocTensor<int32_t>();
}

KERNEL(dequeues_from_an_empty_queue, "queue", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  queue.AllocTensor<int32_t>();
  queue.DeQue<int32_t>();
}

KERNEL(enqueues_deeper_than_the_queue, "queue", 1) {
  Tensors t;
  TQue<TPosition::VECIN, 1> queue;
  t.pipe.InitBuffer(queue, 2, 256);
  auto a = queue.AllocTensor<int32_t>(), b = queue.AllocTensor<int32_t>();
  queue.EnQue(a);
  queue.EnQue(b);
}

KERNEL(enqueues_what_it_has_not_allocated, "queue", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  queue.EnQue(t.buffer());
}

KERNEL(frees_twice, "queue", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  queue.EnQue(queue.AllocTensor<int32_t>());
  auto a = queue.DeQue<int32_t>();
  queue.FreeTensor(a);
  queue.FreeTensor(a);
}

KERNEL(never_frees, "queue", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  queue.AllocTensor<int32_t>();
}

KERNEL(uses_a_tensor_after_enque, "tensor-lifetime", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  auto a = queue.AllocTensor<int32_t>();
  queue.EnQue(a);
  DataCopy(a, t.in, 64);
}

KERNEL(uses_a_tensor_after_free, "tensor-lifetime", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 2, 256);
  auto a = queue.AllocTensor<int32_t>();
  DataCopy(a, t.in, 64);
  queue.EnQue(a);
  auto b = queue.DeQue<int32_t>();
  queue.FreeTensor(b);
  DataCopy(t.out, b, 64);
}

KERNEL(uses_a_tensor_that_is_none, "tensor-lifetime", 1) {
  Tensors t;
  LocalTensor<int32_t> nothing;
  nothing.GetValue(0);
}

// ---- event

KERNEL(waits_for_a_flag_that_nobody_set, "event", 1) {
  Tensors t;
  WaitFlag<HardEvent::MTE2_V>(0);
}

KERNEL(sets_a_flag_twice, "event", 1) {
  Tensors t;
  SetFlag<HardEvent::MTE2_V>(0);
  SetFlag<HardEvent::MTE2_V>(0);
}

KERNEL(leaves_a_flag_set, "event", 1) {
  Tensors t;
  SetFlag<HardEvent::MTE2_V>(0);
}

KERNEL(uses_the_flag_of_a_queue, "event", 1) {
  Tensors t;
  TQue<TPosition::VECIN, 2> queue;
  t.pipe.InitBuffer(queue, 2, 256);
  SetFlag<HardEvent::MTE2_V>(0);
}

KERNEL(queues_with_more_flags_than_there_are, "event", 1) {
  Tensors t;
  TQue<TPosition::VECIN, 1> first, second, third;
  t.pipe.InitBuffer(first, 3, 256);
  t.pipe.InitBuffer(second, 3, 256);
  t.pipe.InitBuffer(third, 3, 256);
}

KERNEL(a_flag_beyond_the_last, "event", 1) {
  Tensors t;
  SetFlag<HardEvent::MTE2_V>(EMULATOR_DAV_C100 ? 4 : 8);
}

// ---- uninitialised

KERNEL(reads_a_buffer_that_nothing_wrote, "uninitialised", 1) {
  Tensors t;
  t.buffer().GetValue(0);
}

KERNEL(stores_a_buffer_of_which_half_is_written, "uninitialised", 1) {
  Tensors t;
  auto a = t.buffer();
  Duplicate(a, 1, 32);
  order<HardEvent::V_MTE3>();
  DataCopy(t.out, a, 64);
}

KERNEL(loads_an_output_that_nothing_wrote, "uninitialised", 1) {
  Tensors t;
  DataCopy(t.buffer(), t.out, 64);
}

// ---- hazard

KERNEL(scalar_reads_before_the_load_is_done, "hazard", 1) {
  Tensors t;
  auto a = t.buffer();
  DataCopy(a, t.in, 64);
  a.GetValue(0);
}

KERNEL(loads_over_what_the_scalar_unit_may_still_read, "hazard", 1) {
  Tensors t;
  auto a = t.buffer();
  DataCopy(a, t.in, 64);
  order<HardEvent::MTE2_S>();
  a.GetValue(0);
  DataCopy(a, t.in, 64);
}

KERNEL(stores_before_the_vector_unit_is_done, "hazard", 1) {
  Tensors t;
  auto a = t.buffer();
  Duplicate(a, 1, 64);
  DataCopy(t.out, a, 64);
}

KERNEL(vector_operations_without_a_barrier, "hazard", 1) {
  Tensors t;
  auto a = t.buffer(), b = t.buffer();
  Duplicate(a, 1, 64);
  Add(b, a, a, 64);
}

KERNEL(loads_twice_into_one_place, "hazard", 1) {
  Tensors t;
  auto a = t.buffer();
  DataCopy(a, t.in, 64);
  DataCopy(a, t.in[64], 64);
}

KERNEL(a_flag_of_the_wrong_pipes, "hazard", 1) {
  Tensors t;
  auto a = t.buffer();
  DataCopy(a, t.in, 64);
  order<HardEvent::MTE2_V>();
  DataCopy(t.out, a, 64);
}

KERNEL(a_flag_set_too_early, "hazard", 1) {
  Tensors t;
  auto a = t.buffer(), b = t.buffer();
  DataCopy(a, t.in, 64);
  SetFlag<HardEvent::MTE2_MTE3>(0);
  DataCopy(b, t.in, 64);
  WaitFlag<HardEvent::MTE2_MTE3>(0);
  DataCopy(t.out, b, 64);
}

KERNEL(loads_what_its_own_store_may_not_have_written, "hazard", 1) {
  Tensors t;
  auto a = t.buffer(), b = t.buffer();
  Duplicate(a, 1, 64);
  order<HardEvent::V_MTE3>();
  DataCopy(t.out, a, 64);
  DataCopy(b, t.out, 64);
}

KERNEL(stores_twice_to_one_place, "hazard", 1) {
  Tensors t;
  auto a = t.buffer(), b = t.buffer();
  Duplicate(a, 1, 64);
  Duplicate(b, 2, 64);
  order<HardEvent::V_MTE3>();
  DataCopy(t.out, a, 64);
  DataCopy(t.out, b, 64);
}

// ---- race

KERNEL(cores_write_one_granule, "race", 4) {
  Tensors t;
  auto a = t.buffer();
  Duplicate(a, 1, 64);
  order<HardEvent::V_MTE3>();
  DataCopy(t.out, a, 64);
}

KERNEL(a_core_reads_what_another_writes, "race", 2) {
  Tensors t;
  auto a = t.buffer(), b = t.buffer();
  if (GetBlockIdx() == 0) {
    Duplicate(a, 1, 64);
    order<HardEvent::V_MTE3>();
    DataCopy(t.zeros, a, 64);
  } else {
    DataCopy(b, t.zeros, 64);
  }
}

// ---- more of queues and of the vector unit

KERNEL(a_second_pipe, "queue", 1) {
  Tensors t;
  TPipe another;
}

KERNEL(more_buffers_than_a_pipe_has, "queue", 1) {
  Tensors t;
  for (int i = 0; i < 65; ++i) t.buffer(8);
}

KERNEL(buffers_for_a_queue_that_has_some, "queue", 1) {
  Tensors t;
  Bind queue;
  t.pipe.InitBuffer(queue, 1, 256);
  t.pipe.InitBuffer(queue, 1, 256);
}

KERNEL(a_result_across_its_input, "ub-bounds", 1) {
  Tensors t;
  auto a = t.buffer(256);
  Duplicate(a, 1, 256);
  PipeBarrier<PIPE_V>();
  Add(a[8], a, a, 200);
}

KERNEL(a_cast_onto_its_input, "ub-bounds", 1) {
  Tensors t;
  TBuf<TPosition::VECCALC> buffer;
  t.pipe.InitBuffer(buffer, 256);
  Duplicate(buffer.Get<half>(), half(1.0f), 128);
  PipeBarrier<PIPE_V>();
  Cast(buffer.Get<float>(), buffer.Get<half>(), RoundMode::CAST_NONE, 64);
}

// ---- sync-all, chip

KERNEL(a_core_does_not_come, "sync-all", 4) {
  Tensors t;
  auto scratch = t.buffer();
  if (GetBlockIdx() != 2) SyncAll(t.zeros, scratch);
}

KERNEL(a_workspace_that_is_too_small, "sync-all", 4) {
  Tensors t;
  SyncAll(t.zeros, t.buffer(8));
}

KERNEL(a_workspace_that_is_not_zero, "sync-all", 4) {
  Tensors t;
  GlobalTensor<int32_t> used = t.in;
  SyncAll(used, t.buffer());
}

KERNEL(a_workspace_that_nobody_set, "uninitialised", 4) {
  Tensors t;
  SyncAll(t.other, t.buffer());
}

KERNEL(a_second_sync_all_counts_where_the_first_did, "", 4) {
  Tensors t;
  auto scratch = t.buffer();
  SyncAll(t.zeros, scratch);
  SyncAll(t.zeros, scratch);
}

KERNEL(another_workspace_the_second_time, "sync-all", 4) {
  Tensors t;
  auto scratch = t.buffer();
  SyncAll(t.zeros, scratch);
  SyncAll(t.zeros[64], scratch);
}

KERNEL(a_workspace_for_each_core, "sync-all", 4) {
  Tensors t;
  SyncAll(t.zeros[GetBlockIdx() * 64], t.buffer());
}

KERNEL(a_workspace_off_its_granule, "sync-all", 4) {
  Tensors t;
  SyncAll(t.zeros[1], t.buffer());
}

KERNEL(a_copy_into_the_counters, "sync-all", 4) {
  Tensors t;
  auto scratch = t.buffer(), copied = t.buffer();
  Duplicate(copied, 1, 64);
  SyncAll(t.zeros, scratch);
  DataCopy(t.zeros[8 * GetBlockIdx()], copied, 8);
}

KERNEL(sync_all_of_some_cores, "sync-all", 4) {
  Tensors t;
  SyncAll(t.zeros, t.buffer(), 2);
}

KERNEL(more_cores_than_the_chip_has, "sync-all", 49) {}

KERNEL(a_rounding_that_not_every_chip_knows, "chip", 1) {
  Tensors t;
  TBuf<TPosition::VECCALC> narrow, wide;
  t.pipe.InitBuffer(narrow, 64);
  t.pipe.InitBuffer(wide, 128);
  Duplicate(wide.Get<float>(), 1.0f, 32);
  PipeBarrier<PIPE_V>();
  Cast(narrow.Get<half>(), wide.Get<float>(), RoundMode::CAST_RINT, 32);
}

KERNEL(a_barrier_of_the_scalar_unit, "chip", 1) {
  Tensors t;
  PipeBarrier<PIPE_S>();
}

#if EMULATOR_DAV_C100
KERNEL(hardware_sync_all_that_is_not_there, "sync-all", 2) {
  Tensors t;
  SyncAll();
}

KERNEL(a_type_of_kernel_that_is_not_there, "chip", 1) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);
  Tensors t;
}

KERNEL(five_flags_of_a_kind, "event", 1) {
  Tensors t;
  for (int id = 0; id < 5; ++id) SetFlag<HardEvent::MTE2_V>(id);
}

KERNEL(bfloat16_that_is_not_there, "chip", 1) {
  Tensors t;
  TBuf<TPosition::VECCALC> narrow, wide;
  t.pipe.InitBuffer(narrow, 64);
  t.pipe.InitBuffer(wide, 128);
  Duplicate(wide.Get<float>(), 1.0f, 32);
  PipeBarrier<PIPE_V>();
  Cast(narrow.Get<bfloat16_t>(), wide.Get<float>(), RoundMode::CAST_RINT, 32);
}
#endif

}  // namespace

int main() { return run_all(); }
