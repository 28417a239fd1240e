// RreDispatch: definition, shapes and tiling. ascend_ops/rre_dispatch/__init__.py describes the arguments, and
// op_kernel/rre_dispatch.h the algorithm.
#include "rre_dispatch_tiling.h"

#include "rre_host.h"

namespace {

enum Input { kX, kTokenIds, kSlotIds, kTable, kLayout };
enum Output { kRows, kCounts, kPositions, kInvalid, kBarrier };

// `layout` is [ranks, experts of a rank]; only its shape is used.
int64_t Groups(const gert::Shape& table, const gert::Shape& layout) {
  return table.GetDim(0) * layout.GetDim(0) * layout.GetDim(1);
}

// A core's counts go to global memory and back twice, and those of all groups are read once more. If that is more than
// a thirtieth of the rows' traffic, fewer cores are used, but at least half of them.
uint64_t CoresWorthCounting(uint64_t cores, uint64_t columns, uint64_t rows_bytes) {
  const uint64_t counting = 5 * columns * sizeof(int32_t);  // bytes of a core
  return std::min(cores, std::max((cores + 1) / 2, 2 * rows_bytes / 30 / counting));
}

}  // namespace

namespace optiling {

static ge::graphStatus TilingOfRreDispatch(gert::TilingContext* context) {
  const gert::Shape& x = context->GetInputShape(kX)->GetStorageShape();
  const gert::Shape& ids = context->GetInputShape(kTokenIds)->GetStorageShape();
  const gert::Shape& table = context->GetInputShape(kTable)->GetStorageShape();
  const gert::Shape& layout = context->GetInputShape(kLayout)->GetStorageShape();
  if (!rre_host::AreOf(ids, x)) return ge::GRAPH_FAILED;
  if (table.GetDim(1) % 16 != 0 || Groups(table, layout) == 0) return ge::GRAPH_FAILED;

  const rre_host::Platform platform(context);
  // one row of counts per core: a granule for wrong ids, then an entry per group
  const uint64_t columns = rre_host::kInts + rre_host::RoundUp(Groups(table, layout), rre_host::kInts);
  const uint64_t row_bytes = x.GetDim(1) * ge::GetSizeByDataType(context->GetInputDesc(kX)->GetDataType());
  const uint32_t cores = rre_host::CoresFor(ids.GetDim(0), rre_host::kInts,
                                            CoresWorthCounting(platform.cores, columns, x.GetDim(0) * row_bytes));
  // in the unified buffer: two such rows; twice the slices of all cores, with zeros before them; the counters of cores
  // without SyncAll; ids, groups and table entries of a tile
  const uint64_t scratch = 2 * columns * sizeof(int32_t) + 2 * (rre_host::kMaxShift + cores) * rre_host::kGranule +
                           cores * rre_host::kGranule +
                           rre_host::kTileTokens * (3 * sizeof(int32_t) + rre_host::kGranule);
  rre_host::RowTiles tiles;
  if (scratch >= platform.ub_bytes || !tiles.Fit(row_bytes, platform.ub_bytes - scratch, 2)) return ge::GRAPH_FAILED;

  RreDispatchTilingData tiling;
  tiling.set_tokens(x.GetDim(0));
  tiling.set_slots(table.GetDim(0));
  tiling.set_vocab_size(table.GetDim(1));
  tiling.set_experts(layout.GetDim(0) * layout.GetDim(1));
  tiling.set_ranks(layout.GetDim(0));
  tiling.set_row_words(row_bytes / sizeof(int32_t));
  tiling.set_tile_words(tiles.tile_bytes / sizeof(int32_t));
  tiling.set_batch(tiles.batch);
  rre_host::Save(context, tiling);
  rre_host::SetWorkspace(context, platform, cores * columns * sizeof(int32_t));
  context->SetBlockDim(cores);
  context->SetNeedAtomic(true);  // zeroes the barrier before the launch
  context->SetScheduleMode(1);   // starts all cores together: they wait for each other
  return ge::GRAPH_SUCCESS;
}

}  // namespace optiling

namespace ge {

static graphStatus InferShapeOfRreDispatch(gert::InferShapeContext* context) {
  const int64_t groups = Groups(*context->GetInputShape(kTable), *context->GetInputShape(kLayout));
  *context->GetOutputShape(kRows) = *context->GetInputShape(kX);
  *context->GetOutputShape(kCounts) = gert::Shape({static_cast<int64_t>(rre_host::RoundUp(groups, rre_host::kInts))});
  *context->GetOutputShape(kPositions) = *context->GetInputShape(kTokenIds);
  *context->GetOutputShape(kInvalid) = gert::Shape({static_cast<int64_t>(rre_host::kInts)});
  *context->GetOutputShape(kBarrier) = gert::Shape({static_cast<int64_t>(rre_host::kMaxCores * rre_host::kInts)});
  return GRAPH_SUCCESS;
}

static graphStatus InferTypeOfRreDispatch(gert::InferDataTypeContext* context) {
  context->SetOutputDataType(kRows, context->GetInputDataType(kX));
  for (const int output : {kCounts, kPositions, kInvalid, kBarrier}) context->SetOutputDataType(output, DT_INT32);
  return GRAPH_SUCCESS;
}

}  // namespace ge

namespace ops {

struct DispatchParameters {
  template <typename Definition>
  void operator()(Definition& definition, const rre_host::Types& rows) const {
    using rre_host::Plain;
    const rre_host::Types integers = rre_host::Integers(rows), entries(rows.size(), ge::DT_UINT16);
    Plain(definition.Input("x"), rows);
    Plain(definition.Input("token_ids"), integers);
    Plain(definition.Input("slot_ids"), integers);
    Plain(definition.Input("table"), entries);
    Plain(definition.Input("layout"), integers);
    Plain(definition.Output("rows"), rows);
    Plain(definition.Output("counts"), integers);
    Plain(definition.Output("positions"), integers);
    Plain(definition.Output("invalid"), integers);
    Plain(definition.Output("barrier"), integers).InitValue(0);
  }
};

class RreDispatch : public OpDef {
 public:
  explicit RreDispatch(const char* name) : OpDef(name) {
    this->SetInferShape(ge::InferShapeOfRreDispatch).SetInferDataType(ge::InferTypeOfRreDispatch);
    this->AICore().SetTiling(optiling::TilingOfRreDispatch);
    rre_host::DefineOnAllChips<DispatchParameters>(*this);
  }
};

OP_ADD(RreDispatch);

}  // namespace ops
