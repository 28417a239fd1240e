// What op_host of the operators shares: reading shapes and attributes, cutting rows into tiles, the cores to use.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

namespace rre_host {

constexpr uint64_t kGranule = 32;            // bytes that a DMA moves at least
constexpr uint64_t kUbOfLibrary = 8 * 1024;  // of the unified buffer: AscendC keeps its end for itself (TMP_UB_SIZE)
constexpr uint64_t kInts = 8;                // int32 in a granule
constexpr uint64_t kMostCores = 64;          // that any of the chips has
constexpr uint64_t kTileTokens = 256;        // as in rre_kernel.h

inline uint64_t RoundUp(uint64_t value, uint64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The chip's vector cores and the bytes of its unified buffer.
struct Platform {
  explicit Platform(gert::TilingContext* context) {
    const auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
    cores = platform.GetCoreNumAiv();
    platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, ub_bytes);
    ub_bytes -= kUbOfLibrary;
    library_workspace = platform.GetLibApiWorkSpaceSize();
  }
  uint64_t cores = 0, ub_bytes = 0, library_workspace = 0;
};

// How rows of `row_bytes` go through buffers of the unified buffer, of which `copies` are there at a time.
struct RowTiles {
  // What is left of the buffer is shared; false where a row is not made of whole granules.
  bool Fit(uint64_t row_bytes, uint64_t free_bytes, uint64_t copies) {
    constexpr uint64_t kMostBatch = 16;  // more rows in one DMA save nothing more
    if (row_bytes == 0 || row_bytes % kGranule != 0 || free_bytes < copies * kGranule) return false;
    const uint64_t each = free_bytes / copies / kGranule * kGranule;
    if (row_bytes <= each) {
      tile_bytes = row_bytes;
      batch = std::min(each / row_bytes, kMostBatch);
    } else {
      const uint64_t tiles = (row_bytes + each - 1) / each;  // as equal as granules allow
      tile_bytes = RoundUp((row_bytes + tiles - 1) / tiles, kGranule);
      batch = 1;
    }
    return true;
  }
  uint64_t tile_bytes = 0, batch = 0;
};

// One core for each granule of ids, as far as there are cores.
inline uint32_t CoresFor(uint64_t units, uint64_t granule, uint64_t cores) {
  return static_cast<uint32_t>(std::max<uint64_t>(1, std::min(cores, (units + granule - 1) / granule)));
}

using Types = std::vector<ge::DataType>;

// int32, as often as there are types of the rows.
inline Types Integers(const Types& rows) { return Types(rows.size(), ge::DT_INT32); }

// A required input or output in the plain layout.
inline ops::OpParamDef& Plain(ops::OpParamDef& parameter, const Types& types) {
  return parameter.ParamType(ops::REQUIRED)
      .DataType(types)
      .Format(std::vector<ge::Format>(types.size(), ge::FORMAT_ND));
}

// `Define{}(definition, types of the rows)` states inputs and outputs: of the operator, and where a chip has more
// types. Written for C++11, which CANN's template of an operator project compiles.
template <typename Define>
void DefineOnAllChips(ops::OpDef& definition) {
  Define{}(definition, Types{ge::DT_FLOAT16, ge::DT_FLOAT});
  definition.AICore().AddConfig("ascend910");  // no bfloat16
  for (const char* chip : {"ascend910b", "ascend910_93"}) {
    ops::OpAICoreConfig config;
    Define{}(config, Types{ge::DT_FLOAT16, ge::DT_FLOAT, ge::DT_BF16});
    // what AddConfig sets by itself where it is given no configuration
    config.DynamicCompileStaticFlag(true).DynamicFormatFlag(true).DynamicRankSupportFlag(true);
    config.DynamicShapeSupportFlag(true).NeedCheckSupportFlag(false).PrecisionReduceFlag(true);
    definition.AICore().AddConfig(chip, config);
  }
}

// Whether `positions` has an entry for each row of `rows`, filled up to whole granules.
inline bool AreOf(const gert::Shape& positions, const gert::Shape& rows) {
  const int64_t padding = positions.GetDim(0) - rows.GetDim(0);
  return positions.GetDim(0) % kInts == 0 && padding >= 0 && padding < static_cast<int64_t>(kInts);
}

// Of an operator whose one output is like its first input.
inline ge::graphStatus ShapeOfFirst(gert::InferShapeContext* context) {
  *context->GetOutputShape(0) = *context->GetInputShape(0);
  return ge::GRAPH_SUCCESS;
}
inline ge::graphStatus TypeOfFirst(gert::InferDataTypeContext* context) {
  return context->SetOutputDataType(0, context->GetInputDataType(0));
}

// Hands the tiling data over.
template <typename Tiling>
void Save(gert::TilingContext* context, Tiling& tiling) {
  tiling.SaveToBuffer(context->GetRawTilingData()->GetData(), context->GetRawTilingData()->GetCapacity());
  context->GetRawTilingData()->SetDataSize(tiling.GetDataSize());
}

// Bytes of the workspace: ours and what the library wants. Never 0, which SyncAll would not take.
inline void SetWorkspace(gert::TilingContext* context, const Platform& platform, uint64_t bytes) {
  context->GetWorkspaceSizes(1)[0] = platform.library_workspace + std::max(bytes, kGranule);
}

}  // namespace rre_host
