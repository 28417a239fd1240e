// Shared code of the operators' op_host: reading shapes and attributes, tiling rows, choosing the number of cores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "register/op_def_registry.h"
#include "rre_limits.h"
#include "tiling/platform/platform_ascendc.h"

namespace rre_host {

using rre_limits::kMaxBatch;
using rre_limits::kMaxCores;
using rre_limits::kMaxShift;
using rre_limits::kTileTokens;

constexpr uint64_t kGranule = 32;            // smallest transfer of a DMA, in bytes
constexpr uint64_t kUbOfLibrary = 8 * 1024;  // end of the unified buffer that AscendC reserves (TMP_UB_SIZE)
constexpr uint64_t kInts = 8;                // int32 per granule

inline uint64_t RoundUp(uint64_t value, uint64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The number of vector cores of the chip, and the bytes of a core's unified buffer.
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

// How rows of `row_bytes` pass through the unified buffer, in `copies` buffers at a time.
struct RowTiles {
  // Divides the rest of the buffer; returns false if a row is not made of whole granules.
  bool Fit(uint64_t row_bytes, uint64_t free_bytes, uint64_t copies) {
    if (row_bytes == 0 || row_bytes % kGranule != 0 || free_bytes < copies * kGranule) return false;
    const uint64_t each = free_bytes / copies / kGranule * kGranule;
    if (row_bytes <= each) {
      tile_bytes = row_bytes;
      batch = std::min<uint64_t>(each / row_bytes, kMaxBatch);
    } else {
      const uint64_t tiles = (row_bytes + each - 1) / each;  // as equal as granules permit
      tile_bytes = RoundUp((row_bytes + tiles - 1) / tiles, kGranule);
      batch = 1;
    }
    return true;
  }
  uint64_t tile_bytes = 0, batch = 0;
};

// One core per granule of ids, up to the number of cores.
inline uint32_t CoresFor(uint64_t units, uint64_t granule, uint64_t cores) {
  return static_cast<uint32_t>(std::max<uint64_t>(1, std::min(cores, (units + granule - 1) / granule)));
}

using Types = std::vector<ge::DataType>;

// int32, once per dtype of the rows.
inline Types Integers(const Types& rows) { return Types(rows.size(), ge::DT_INT32); }

// A required input or output in the plain (ND) layout.
inline ops::OpParamDef& Plain(ops::OpParamDef& parameter, const Types& types) {
  return parameter.ParamType(ops::REQUIRED)
      .DataType(types)
      .Format(std::vector<ge::Format>(types.size(), ge::FORMAT_ND));
}

// `Define{}(definition, dtypes of the rows)` declares inputs and outputs: those of the operator, and those of a chip
// with more dtypes. It is C++11, because CANN's template of an operator project compiles C++11.
template <typename Define>
void DefineOnAllChips(ops::OpDef& definition) {
  Define{}(definition, Types{ge::DT_FLOAT16, ge::DT_FLOAT});
  definition.AICore().AddConfig("ascend910");  // no bfloat16
  for (const char* chip : {"ascend910b", "ascend910_93"}) {
    ops::OpAICoreConfig config;
    Define{}(config, Types{ge::DT_FLOAT16, ge::DT_FLOAT, ge::DT_BF16});
    // the flags that AddConfig sets by itself if it is given no configuration
    config.DynamicCompileStaticFlag(true).DynamicFormatFlag(true).DynamicRankSupportFlag(true);
    config.DynamicShapeSupportFlag(true).NeedCheckSupportFlag(false).PrecisionReduceFlag(true);
    definition.AICore().AddConfig(chip, config);
  }
}

// True if `positions` has an entry per row of `rows`, padded to whole granules.
inline bool AreOf(const gert::Shape& positions, const gert::Shape& rows) {
  const int64_t padding = positions.GetDim(0) - rows.GetDim(0);
  return positions.GetDim(0) % kInts == 0 && padding >= 0 && padding < static_cast<int64_t>(kInts);
}

// Shape and type inference of an operator whose only output is like its first input.
inline ge::graphStatus ShapeOfFirst(gert::InferShapeContext* context) {
  *context->GetOutputShape(0) = *context->GetInputShape(0);
  return ge::GRAPH_SUCCESS;
}
inline ge::graphStatus TypeOfFirst(gert::InferDataTypeContext* context) {
  return context->SetOutputDataType(0, context->GetInputDataType(0));
}

// Passes the tiling data to the kernel.
template <typename Tiling>
void Save(gert::TilingContext* context, Tiling& tiling) {
  tiling.SaveToBuffer(context->GetRawTilingData()->GetData(), context->GetRawTilingData()->GetCapacity());
  context->GetRawTilingData()->SetDataSize(tiling.GetDataSize());
}

// Bytes of the workspace: ours and the library's. Never 0, which SyncAll would not accept.
inline void SetWorkspace(gert::TilingContext* context, const Platform& platform, uint64_t bytes) {
  context->GetWorkspaceSizes(1)[0] = platform.library_workspace + std::max(bytes, kGranule);
}

}  // namespace rre_host
