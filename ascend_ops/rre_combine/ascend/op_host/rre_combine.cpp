// RreCombine: definition, shapes and tiling. ascend_ops/rre_combine/__init__.py describes the arguments.
#include "rre_combine_tiling.h"

#include "rre_host.h"

namespace {

enum Input { kRows, kPositions, kResidual };

}  // namespace

namespace optiling {

static ge::graphStatus TilingOfRreCombine(gert::TilingContext* context) {
  const gert::Shape& rows = context->GetInputShape(kRows)->GetStorageShape();
  const gert::Shape& positions = context->GetInputShape(kPositions)->GetStorageShape();
  if (!rre_host::AreOf(positions, rows)) return ge::GRAPH_FAILED;

  const rre_host::Platform platform(context);
  const uint64_t item = ge::GetSizeByDataType(context->GetInputDesc(kRows)->GetDataType());
  // Buffers per row: rows and residual, two of each; the sum, two; and if rows are not float, two more of float, each as
  // large as two rows: 6 copies, or 10.
  const uint64_t copies = item == sizeof(float) ? 6 : 10;
  rre_host::RowTiles tiles;
  const uint64_t scratch = rre_host::kTileTokens * sizeof(int32_t);
  if (!tiles.Fit(rows.GetDim(1) * item, platform.ub_bytes - scratch, copies)) return ge::GRAPH_FAILED;

  RreCombineTilingData tiling;
  tiling.set_tokens(rows.GetDim(0));
  tiling.set_hidden(rows.GetDim(1));
  tiling.set_tile_columns(tiles.tile_bytes / item);
  tiling.set_batch(tiles.batch);
  rre_host::Save(context, tiling);
  rre_host::SetWorkspace(context, platform, 0);
  context->SetBlockDim(rre_host::CoresFor(positions.GetDim(0), rre_host::kInts, platform.cores));
  return ge::GRAPH_SUCCESS;
}

}  // namespace optiling

namespace ops {

struct CombineParameters {
  template <typename Definition>
  void operator()(Definition& definition, const rre_host::Types& rows) const {
    rre_host::Plain(definition.Input("rows"), rows);
    rre_host::Plain(definition.Input("positions"), rre_host::Integers(rows));
    rre_host::Plain(definition.Input("residual"), rows);
    rre_host::Plain(definition.Output("sum"), rows);
  }
};

class RreCombine : public OpDef {
 public:
  explicit RreCombine(const char* name) : OpDef(name) {
    this->SetInferShape(rre_host::ShapeOfFirst).SetInferDataType(rre_host::TypeOfFirst);
    this->AICore().SetTiling(optiling::TilingOfRreCombine);
    rre_host::DefineOnAllChips<CombineParameters>(*this);
  }
};

OP_ADD(RreCombine);

}  // namespace ops
