// Runs an operator from end to end, as the framework does: checks the inputs against its definition, infers the
// outputs, calls its tiling, and launches its kernel on emulated cores.
#pragma once

#include <cstdlib>
#include <memory>
#include <utility>

#include "../include/register/op_def_registry.h"
#include "launch.h"

namespace emulator {

constexpr size_t kMaxCores = 64;  // size of a report

// Calls a kernel with the addresses of its arguments.
template <typename... Address, size_t... kIndex>
void call(void (*kernel)(Address...), const std::vector<uint8_t*>& arguments, std::index_sequence<kIndex...>) {
  if (arguments.size() != sizeof...(Address))
    violate(rule::kHost, "the kernel takes %zu addresses, the definition gives %zu", sizeof...(Address),
            arguments.size());
  kernel(arguments[kIndex]...);
}

template <typename... Address>
void call(void (*kernel)(Address...), const std::vector<uint8_t*>& arguments) {
  call(kernel, arguments, std::index_sequence_for<Address...>());
}

// A tensor as Python passes it.
struct Tensor {
  const char* dtype;
  int64_t rank;
  const int64_t* shape;
  uint8_t* data;
};

struct TypeName {
  const char* name;
  ge::DataType type;
};
constexpr TypeName kTypeNames[] = {{"float32", ge::DT_FLOAT},
                                   {"float16", ge::DT_FLOAT16},
                                   {"bfloat16", ge::DT_BF16},
                                   {"int32", ge::DT_INT32},
                                   {"uint16", ge::DT_UINT16}};

inline ge::DataType type_of(const Tensor& tensor) {
  for (const TypeName& each : kTypeNames)
    if (std::strcmp(each.name, tensor.dtype) == 0) return each.type;
  violate(rule::kHost, "no operator here takes %s", tensor.dtype);
}

inline uint64_t bytes_of(const Tensor& tensor) {
  uint64_t product = ge::GetSizeByDataType(type_of(tensor));
  for (int64_t axis = 0; axis < tensor.rank; ++axis) product *= tensor.shape[axis];
  return product;
}

class Call {
 public:
  Call(const Chip& chip, const char* name, const std::vector<Tensor>& inputs)
      : chip_(chip), definition_(*host.operators.at(name)), inputs_(inputs) {
    check_definition();
    const size_t combination = find_types();
    std::vector<gert::StorageShape> shapes;
    std::vector<gert::CompileTimeTensorDesc> types;
    for (const Tensor& input : inputs) {
      shapes.emplace_back(gert::Shape(std::vector<int64_t>(input.shape, input.shape + input.rank)));
      types.emplace_back(type_of(input));
    }
    context_ = std::make_unique<gert::InferContext>(shapes, types);
    infer(combination);
  }

  const std::vector<gert::Shape>& output_shapes() const { return output_shapes_; }
  const std::vector<ge::DataType>& output_types() const { return output_types_; }

  // `start(arguments)` calls the kernel with the addresses of inputs, outputs, workspace and tiling data.
  Launch::Result run(const std::vector<Tensor>& outputs,
                     const std::function<void(const std::vector<uint8_t*>&)>& start) {
    gert::TilingContext tiling(*context_, &chip_);
    if (definition_.core.tiling(&tiling) != ge::GRAPH_SUCCESS)
      violate(rule::kHost, "the tiling of %s refuses these shapes on %s", definition_.name.c_str(), chip_.name);

    std::vector<Array> arrays;
    std::vector<uint8_t*> arguments;
    for (size_t i = 0; i < inputs_.size(); ++i)
      arrays.push_back({definition_.inputs[i].name, inputs_[i].data, bytes_of(inputs_[i])});
    for (size_t i = 0; i < outputs.size(); ++i) {
      const bool zeroed = on_chip(definition_.outputs[i], false).zeroed;
      if (zeroed && !tiling.initialises_outputs())
        violate(rule::kHost, "%s is to be zeroed, which needs SetNeedAtomic(true)",
                definition_.outputs[i].name.c_str());
      const uint64_t bytes = bytes_of(outputs[i]);
      std::memset(outputs[i].data, zeroed ? 0 : 0xCD, bytes);
      arrays.push_back({definition_.outputs[i].name, outputs[i].data, bytes, std::vector<uint8_t>(bytes, zeroed)});
    }
    const std::unique_ptr<uint8_t[], Free> workspace(allocate(tiling.workspace()));
    std::memset(workspace.get(), 0xCD, tiling.workspace());
    arrays.push_back(
        {"the workspace", workspace.get(), tiling.workspace(), std::vector<uint8_t>(tiling.workspace(), 0)});
    for (const Array& array : arrays) arguments.push_back(array.data);
    arguments.push_back(static_cast<uint8_t*>(tiling.GetRawTilingData()->GetData()));

    Launch launch(chip_, tiling.cores(), std::move(arrays));
    this_launch = &launch;
    Launch::Result result = launch.run([&] { start(arguments); });
    this_launch = nullptr;
    if (result.rule.empty() && !result.counters.empty() && result.counters[0].sync_alls > 0 &&
        !tiling.starts_together())
      return {rule::kHost, "a kernel with SyncAll needs SetScheduleMode(1): all cores have to start together", {}};
    return result;
  }

 private:
  struct Free {
    void operator()(uint8_t* address) const { std::free(address); }
  };

  static uint8_t* allocate(uint64_t bytes) {
    return static_cast<uint8_t*>(std::aligned_alloc(kGranule, (bytes / kGranule + 1) * kGranule));
  }

  const ops::OpParamDef& input_on_chip(size_t index) const { return on_chip(definition_.inputs[index], true); }

  const ops::OpParamDef& on_chip(const ops::OpParamDef& common, bool input) const {
    const ops::OpAICoreConfig& config = definition_.core.configs.at(chip_.name);
    const auto& own = input ? config.inputs : config.outputs;
    const auto found = own.find(common.name);
    return found == own.end() ? common : found->second;
  }

  void check_definition() const {
    if (!definition_.core.tiling || !definition_.infer_shape || !definition_.infer_data_type)
      violate(rule::kHost, "%s lacks tiling, shape or type inference", definition_.name.c_str());
    if (!definition_.core.configs.count(chip_.name))
      violate(rule::kHost, "%s is not defined for %s", definition_.name.c_str(), chip_.name);
    if (inputs_.size() != definition_.inputs.size())
      violate(rule::kHost, "%s has %zu inputs, got %zu", definition_.name.c_str(), definition_.inputs.size(),
              inputs_.size());
    const std::map<std::string, bool>& flags = definition_.core.configs.at(chip_.name).flags;
    for (const char* flag : {"dynamicCompileStatic", "dynamicFormat", "dynamicRankSupport", "dynamicShapeSupport",
                             "needCheckSupport", "precisionReduce"})
      if (!flags.count(flag))
        violate(rule::kHost, "%s on %s: %s is not set, and CANN has no default for a configuration of our own",
                definition_.name.c_str(), chip_.name, flag);
    const size_t combinations = input_on_chip(0).types.size();
    for (const bool input : {true, false})
      for (const ops::OpParamDef& common : input ? definition_.inputs : definition_.outputs) {
        const ops::OpParamDef& each = on_chip(common, input);
        if (each.types.size() != combinations || each.formats != combinations)
          violate(rule::kHost, "%s of %s on %s: %zu types and %zu formats, the first input has %zu types",
                  each.name.c_str(), definition_.name.c_str(), chip_.name, each.types.size(), each.formats,
                  combinations);
      }
  }

  // The index of the definition's combination of dtypes that these inputs have.
  size_t find_types() const {
    for (size_t i = 0; i < input_on_chip(0).types.size(); ++i) {
      bool all = true;
      for (size_t k = 0; k < inputs_.size(); ++k) all = all && input_on_chip(k).types[i] == type_of(inputs_[k]);
      if (all) return i;
    }
    violate(rule::kHost, "%s takes no such types on %s; its first input was %s", definition_.name.c_str(), chip_.name,
            inputs_[0].dtype);
  }

  void infer(size_t combination) {
    const size_t num_outputs = definition_.outputs.size();
    gert::InferContext& call = *context_;
    gert::InferShapeContext shapes(call);
    gert::InferDataTypeContext types(call);
    if (definition_.infer_shape(&shapes) != ge::GRAPH_SUCCESS ||
        definition_.infer_data_type(&types) != ge::GRAPH_SUCCESS)
      violate(rule::kHost, "%s refuses these shapes or types", definition_.name.c_str());
    for (size_t i = 0; i < num_outputs; ++i) {
      const ge::DataType wanted = on_chip(definition_.outputs[i], false).types[combination];
      if (!types.outputs().count(i) || types.outputs().at(i) != wanted)
        violate(rule::kHost, "the inferred type of %s is not that of the definition",
                definition_.outputs[i].name.c_str());
      output_shapes_.push_back(shapes.outputs().at(i));
      output_types_.push_back(wanted);
    }
  }

  const Chip& chip_;
  const ops::OpDef& definition_;
  const std::vector<Tensor> inputs_;
  std::unique_ptr<gert::InferContext> context_;
  std::vector<gert::Shape> output_shapes_;
  std::vector<ge::DataType> output_types_;
};

}  // namespace emulator
