// RreRegroup and RreRegroupBack, its backward pass: definition, shapes and tiling. ascend_ops/rre_regroup/__init__.py
// describes the arguments.
#include "rre_regroup_tiling.h"

#include "rre_host.h"

namespace {

enum Input { kRows, kCounts };

}  // namespace

namespace optiling {

static ge::graphStatus TilingOfRegroup(gert::TilingContext* context) {
  const gert::Shape& rows = context->GetInputShape(kRows)->GetStorageShape();
  const gert::Shape& counts = context->GetInputShape(kCounts)->GetStorageShape();
  const uint64_t blocks = counts.GetShapeSize();
  if (counts.GetDimNum() != 2 || blocks == 0 || blocks % rre_host::kInts != 0) return ge::GRAPH_FAILED;

  const rre_host::Platform platform(context);
  const uint64_t row_bytes = rows.GetDim(1) * ge::GetSizeByDataType(context->GetInputDesc(kRows)->GetDataType());
  const uint64_t scratch = 2 * blocks * sizeof(int32_t);  // counts and starts of the blocks
  rre_host::RowTiles tiles;
  // the current batch, the next one, and a batch of zeros
  if (scratch >= platform.ub_bytes || !tiles.Fit(row_bytes, platform.ub_bytes - scratch, 3)) return ge::GRAPH_FAILED;

  RreRegroupTilingData tiling;
  tiling.set_rows(rows.GetDim(0));
  tiling.set_outer(counts.GetDim(0));
  tiling.set_inner(counts.GetDim(1));
  tiling.set_row_words(row_bytes / sizeof(int32_t));
  tiling.set_tile_words(tiles.tile_bytes / sizeof(int32_t));
  tiling.set_batch(tiles.batch);
  rre_host::Save(context, tiling);
  rre_host::SetWorkspace(context, platform, 0);
  context->SetBlockDim(rre_host::CoresFor(rows.GetDim(0), 1, platform.cores));
  return ge::GRAPH_SUCCESS;
}

}  // namespace optiling

namespace ops {

struct RegroupParameters {
  template <typename Definition>
  void operator()(Definition& definition, const rre_host::Types& rows) const {
    rre_host::Plain(definition.Input("rows"), rows);
    rre_host::Plain(definition.Input("counts"), rre_host::Integers(rows));
    rre_host::Plain(definition.Output("regrouped"), rows);
  }
};

class Regroup : public OpDef {
 public:
  explicit Regroup(const char* name) : OpDef(name) {
    this->SetInferShape(rre_host::ShapeOfFirst).SetInferDataType(rre_host::TypeOfFirst);
    this->AICore().SetTiling(optiling::TilingOfRegroup);
    rre_host::DefineOnAllChips<RegroupParameters>(*this);
  }
};

class RreRegroup : public Regroup {
 public:
  using Regroup::Regroup;
};
class RreRegroupBack : public Regroup {
 public:
  using Regroup::Regroup;
};

OP_ADD(RreRegroup);
OP_ADD(RreRegroupBack);

}  // namespace ops
