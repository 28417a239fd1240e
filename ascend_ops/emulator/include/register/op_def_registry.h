// The part of CANN's host side that op_host of this project uses: the definition of an operator, its shape inference
// and its tiling. Definitions are registered and evaluated (machine/host.h), so that they are tested with the kernels.
#pragma once

#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "../../machine/chip.h"
#include "../../machine/rules.h"
#include "register/tilingdata_base.h"

namespace ge {

using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 0xFFFFFFFFu;

enum DataType { DT_FLOAT = 0, DT_FLOAT16 = 1, DT_INT32 = 3, DT_UINT16 = 7, DT_BF16 = 27 };
enum Format { FORMAT_ND = 2 };

inline int GetSizeByDataType(DataType type) { return type == DT_FLOAT || type == DT_INT32 ? 4 : 2; }

}  // namespace ge

namespace gert {

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : sizes_(sizes) {}
  explicit Shape(std::vector<int64_t> sizes) : sizes_(std::move(sizes)) {}

  size_t GetDimNum() const { return sizes_.size(); }
  int64_t GetDim(size_t axis) const { return axis < sizes_.size() ? sizes_[axis] : 0; }
  void SetDimNum(size_t num_dims) { sizes_.resize(num_dims); }
  void SetDim(size_t axis, int64_t size) { sizes_[axis] = size; }
  int64_t GetShapeSize() const {
    int64_t product = 1;
    for (const int64_t size : sizes_) product *= size;
    return product;
  }

 private:
  std::vector<int64_t> sizes_;
};

class StorageShape {
 public:
  explicit StorageShape(Shape shape) : shape_(std::move(shape)) {}
  const Shape& GetStorageShape() const { return shape_; }

 private:
  Shape shape_;
};

class CompileTimeTensorDesc {
 public:
  explicit CompileTimeTensorDesc(ge::DataType type) : type_(type) {}
  ge::DataType GetDataType() const { return type_; }

 private:
  ge::DataType type_;
};

class TilingData {
 public:
  void* GetData() { return bytes_.data(); }
  size_t GetCapacity() const { return bytes_.size(); }
  void SetDataSize(size_t size) { size_ = size; }
  size_t GetDataSize() const { return size_; }

 private:
  std::vector<uint8_t> bytes_ = std::vector<uint8_t>(4096);
  size_t size_ = 0;
};

// The arguments of a call.
class InferContext {
 public:
  InferContext(std::vector<StorageShape> shapes, std::vector<CompileTimeTensorDesc> types)
      : shapes_(std::move(shapes)), types_(std::move(types)) {}

 protected:
  std::vector<StorageShape> shapes_;
  std::vector<CompileTimeTensorDesc> types_;
};

class InferShapeContext : public InferContext {
 public:
  explicit InferShapeContext(const InferContext& call) : InferContext(call) {}
  const Shape* GetInputShape(size_t index) const { return &shapes_.at(index).GetStorageShape(); }
  Shape* GetOutputShape(size_t index) { return &outputs_.at(index); }
  const std::vector<Shape>& outputs() const { return outputs_; }

 private:
  std::vector<Shape> outputs_ = std::vector<Shape>(8);
};

class InferDataTypeContext : public InferContext {
 public:
  explicit InferDataTypeContext(const InferContext& call) : InferContext(call) {}
  ge::DataType GetInputDataType(size_t index) const { return types_.at(index).GetDataType(); }
  ge::graphStatus SetOutputDataType(size_t index, ge::DataType type) {
    outputs_[index] = type;
    return ge::GRAPH_SUCCESS;
  }
  const std::map<size_t, ge::DataType>& outputs() const { return outputs_; }

 private:
  std::map<size_t, ge::DataType> outputs_;
};

class TilingContext : public InferContext {
 public:
  TilingContext(const InferContext& call, const emulator::Chip* chip) : InferContext(call), chip_(chip) {}
  const StorageShape* GetInputShape(size_t index) const { return &shapes_.at(index); }
  const CompileTimeTensorDesc* GetInputDesc(size_t index) const { return &types_.at(index); }
  const emulator::Chip* GetPlatformInfo() const { return chip_; }
  TilingData* GetRawTilingData() { return &data_; }
  size_t* GetWorkspaceSizes(size_t) { return &workspace_; }
  ge::graphStatus SetBlockDim(uint32_t cores) {
    cores_ = cores;
    return ge::GRAPH_SUCCESS;
  }
  ge::graphStatus SetNeedAtomic(bool value) {
    initialises_outputs_ = value;
    return ge::GRAPH_SUCCESS;
  }
  ge::graphStatus SetScheduleMode(uint32_t mode) {
    starts_together_ = mode == 1;
    return ge::GRAPH_SUCCESS;
  }

  uint32_t cores() const { return cores_; }
  size_t workspace() const { return workspace_; }
  bool initialises_outputs() const { return initialises_outputs_; }
  bool starts_together() const { return starts_together_; }

 private:
  const emulator::Chip* chip_;
  TilingData data_;
  size_t workspace_ = 0;
  uint32_t cores_ = 0;
  bool initialises_outputs_ = false, starts_together_ = false;
};

}  // namespace gert

namespace ops {

enum Option { OPTIONAL, REQUIRED };

class OpParamDef {
 public:
  explicit OpParamDef(const char* name = "") : name(name) {}
  OpParamDef& ParamType(Option) { return *this; }
  OpParamDef& DataType(std::vector<ge::DataType> list) {
    types = std::move(list);
    return *this;
  }
  OpParamDef& Format(std::vector<ge::Format> list) {
    formats = list.size();
    return *this;
  }
  OpParamDef& InitValue(uint64_t) {
    zeroed = true;
    return *this;
  }

  std::string name;
  std::vector<ge::DataType> types;
  size_t formats = 0;
  bool zeroed = false;
};

using InferShapeFunction = ge::graphStatus (*)(gert::InferShapeContext*);
using InferDataTypeFunction = ge::graphStatus (*)(gert::InferDataTypeContext*);
using TilingFunction = ge::graphStatus (*)(gert::TilingContext*);

// Inputs and outputs on one kind of chip, if they differ from the operator's.
class OpAICoreConfig {
 public:
  OpParamDef& Input(const char* name) { return inputs[name] = OpParamDef(name); }
  OpParamDef& Output(const char* name) { return outputs[name] = OpParamDef(name); }
  OpAICoreConfig& DynamicCompileStaticFlag(bool flag) { return set("dynamicCompileStatic", flag); }
  OpAICoreConfig& DynamicFormatFlag(bool flag) { return set("dynamicFormat", flag); }
  OpAICoreConfig& DynamicRankSupportFlag(bool flag) { return set("dynamicRankSupport", flag); }
  OpAICoreConfig& DynamicShapeSupportFlag(bool flag) { return set("dynamicShapeSupport", flag); }
  OpAICoreConfig& NeedCheckSupportFlag(bool flag) { return set("needCheckSupport", flag); }
  OpAICoreConfig& PrecisionReduceFlag(bool flag) { return set("precisionReduce", flag); }

  std::map<std::string, OpParamDef> inputs, outputs;
  std::map<std::string, bool> flags;

 private:
  OpAICoreConfig& set(const char* flag, bool value) {
    flags[flag] = value;
    return *this;
  }
};

class OpAICoreDef {
 public:
  OpAICoreDef& SetTiling(TilingFunction function) {
    tiling = function;
    return *this;
  }
  // CANN sets the flags only of configurations that it makes itself.
  OpAICoreDef& AddConfig(const char* chip) {
    OpAICoreConfig config;
    config.DynamicCompileStaticFlag(true).DynamicFormatFlag(true).DynamicRankSupportFlag(true);
    config.DynamicShapeSupportFlag(true).NeedCheckSupportFlag(false).PrecisionReduceFlag(true);
    return AddConfig(chip, config);
  }
  OpAICoreDef& AddConfig(const char* chip, OpAICoreConfig config) {
    configs[chip] = std::move(config);
    return *this;
  }

  TilingFunction tiling = nullptr;
  std::map<std::string, OpAICoreConfig> configs;
};

class OpDef {
 public:
  explicit OpDef(const char* name) : name(name) {}
  OpParamDef& Input(const char* name) {
    inputs.emplace_back(name);
    return inputs.back();
  }
  OpParamDef& Output(const char* name) {
    outputs.emplace_back(name);
    return outputs.back();
  }
  OpDef& SetInferShape(InferShapeFunction function) {
    infer_shape = function;
    return *this;
  }
  OpDef& SetInferDataType(InferDataTypeFunction function) {
    infer_data_type = function;
    return *this;
  }
  OpAICoreDef& AICore() { return core; }

  std::string name;
  std::vector<OpParamDef> inputs, outputs;
  InferShapeFunction infer_shape = nullptr;
  InferDataTypeFunction infer_data_type = nullptr;
  OpAICoreDef core;
};

}  // namespace ops

namespace emulator {

// The registry of this library's host side: its operators, and how many cores tiling may use (0: all).
struct Host {
  std::map<std::string, const ops::OpDef*> operators;
  uint32_t cores = 0;
};
static Host host;

}  // namespace emulator

#define OP_ADD(type)                                                                    \
  static const type emulator_definition_##type(#type);                                  \
  static const bool emulator_registered_##type = [] {                                   \
    return emulator::host.operators.emplace(#type, &emulator_definition_##type).second; \
  }()
