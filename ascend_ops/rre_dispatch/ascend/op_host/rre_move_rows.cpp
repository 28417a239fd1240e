// RreGatherRows, moved[t] = rows[positions[t]], and RreScatterRows, moved[positions[t]] = rows[t]: the backward passes
// of dispatch and of combine.
#include "rre_move_rows_tiling.h"

#include "rre_host.h"

namespace {

enum Input { kRows, kPositions };

}  // namespace

namespace optiling {

static ge::graphStatus TilingOfMoveRows(gert::TilingContext* context) {
  const gert::Shape& rows = context->GetInputShape(kRows)->GetStorageShape();
  const gert::Shape& positions = context->GetInputShape(kPositions)->GetStorageShape();
  if (!rre_host::AreOf(positions, rows)) return ge::GRAPH_FAILED;

  const rre_host::Platform platform(context);
  const uint64_t row_bytes = rows.GetDim(1) * ge::GetSizeByDataType(context->GetInputDesc(kRows)->GetDataType());
  rre_host::RowTiles tiles;
  if (!tiles.Fit(row_bytes, platform.ub_bytes - rre_host::kTileTokens * sizeof(int32_t), 2)) return ge::GRAPH_FAILED;

  RreMoveRowsTilingData tiling;
  tiling.set_tokens(rows.GetDim(0));
  tiling.set_row_words(row_bytes / sizeof(int32_t));
  tiling.set_tile_words(tiles.tile_bytes / sizeof(int32_t));
  tiling.set_batch(tiles.batch);
  rre_host::Save(context, tiling);
  rre_host::SetWorkspace(context, platform, 0);
  context->SetBlockDim(rre_host::CoresFor(positions.GetDim(0), rre_host::kInts, platform.cores));
  return ge::GRAPH_SUCCESS;
}

}  // namespace optiling

namespace ops {

struct MoveRowsParameters {
  template <typename Definition>
  void operator()(Definition& definition, const rre_host::Types& rows) const {
    rre_host::Plain(definition.Input("rows"), rows);
    rre_host::Plain(definition.Input("positions"), rre_host::Integers(rows));
    rre_host::Plain(definition.Output("moved"), rows);
  }
};

class MoveRows : public OpDef {
 public:
  explicit MoveRows(const char* name) : OpDef(name) {
    this->SetInferShape(rre_host::ShapeOfFirst).SetInferDataType(rre_host::TypeOfFirst);
    this->AICore().SetTiling(optiling::TilingOfMoveRows);
    rre_host::DefineOnAllChips<MoveRowsParameters>(*this);
  }
};

class RreGatherRows : public MoveRows {
 public:
  using MoveRows::MoveRows;
};
class RreScatterRows : public MoveRows {
 public:
  using MoveRows::MoveRows;
};

OP_ADD(RreGatherRows);
OP_ADD(RreScatterRows);

}  // namespace ops
