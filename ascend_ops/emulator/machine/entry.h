// The C interface of a compiled operator. Before it, the build includes op_host and op_kernel, names the operator in
// EMULATOR_OPERATOR, and defines emulator_start(type of the rows, arguments), which calls the kernel.
#pragma once

#include "host.h"

#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default")))

// Shapes and types of the outputs: shapes [outputs][8] with the rank first, types as names. Returns the number of
// outputs, or −1 with "rule: message" in `problem`.
EMULATOR_EXPORT int emulator_infer(const char* chip_name, const emulator::Tensor* inputs, int num_inputs,
                                   int64_t (*shapes)[8], const char** types, char* problem, int problem_size) {
  using namespace emulator;
  try {
    const Call call(*find_chip(chip_name), EMULATOR_OPERATOR, {inputs, inputs + num_inputs});
    for (size_t i = 0; i < call.output_shapes().size(); ++i) {
      const gert::Shape& shape = call.output_shapes()[i];
      shapes[i][0] = static_cast<int64_t>(shape.GetDimNum());
      for (size_t axis = 0; axis < shape.GetDimNum(); ++axis) shapes[i][axis + 1] = shape.GetDim(axis);
      for (const TypeName& each : kTypeNames)
        if (each.type == call.output_types()[i]) types[i] = each.name;
    }
    return static_cast<int>(call.output_shapes().size());
  } catch (const Violation& violation) {
    std::snprintf(problem, problem_size, "%s: %s", violation.rule, violation.what());
    return -1;
  }
}

// The definition for a chip, as an entry of the file aic-<chip>-ops-info.json that CANN's build makes of it. The text
// stays valid until the next call.
EMULATOR_EXPORT const char* emulator_definition(const char* chip_name) {
  using namespace emulator;
  static std::string text;
  const ops::OpDef& definition = *host.operators.at(EMULATOR_OPERATOR);
  const ops::OpAICoreConfig& config = definition.core.configs.at(chip_name);
  text = "{";
  const auto add = [&](const char* kind, const std::vector<ops::OpParamDef>& parameters, const auto& own) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      const auto found = own.find(parameters[i].name);
      std::string types, formats;
      for (const ge::DataType type : (found == own.end() ? parameters[i] : found->second).types)
        for (const TypeName& each : kTypeNames)
          if (each.type == type)
            types += (types.empty() ? "" : ",") + std::string(each.name), formats += formats.empty() ? "ND" : ",ND";
      text += (text.size() > 1 ? ", \"" : "\"") + std::string(kind) + std::to_string(i) + "\": {\"name\": \"" +
              parameters[i].name + "\", \"paramType\": \"required\", \"dtype\": \"" + types + "\", \"format\": \"" +
              formats + "\"}";
    }
  };
  add("input", definition.inputs, config.inputs);
  add("output", definition.outputs, config.outputs);
  text += "}";
  return text.c_str();
}

// Runs the operator. Returns the number of cores, and the counters of each, or −1 with "rule: message" in `problem`.
EMULATOR_EXPORT int emulator_run(const char* chip_name, int cores, const emulator::Tensor* inputs, int num_inputs,
                                 const emulator::Tensor* outputs, int num_outputs, emulator::Counters* counters,
                                 char* problem, int problem_size) {
  using namespace emulator;
  static std::mutex one_at_a_time;  // Python releases its lock while this runs
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  try {
    host.cores = static_cast<uint32_t>(cores);
    Call operator_call(*find_chip(chip_name), EMULATOR_OPERATOR, {inputs, inputs + num_inputs});
    const Launch::Result result =
        operator_call.run({outputs, outputs + num_outputs},
                          [&](const std::vector<uint8_t*>& arguments) { emulator_start(inputs[0].dtype, arguments); });
    std::copy(result.counters.begin(), result.counters.end(), counters);
    if (result.rule.empty()) return static_cast<int>(result.counters.size());
    std::snprintf(problem, problem_size, "%s: %s", result.rule.c_str(), result.message.c_str());
  } catch (const Violation& violation) {
    std::snprintf(problem, problem_size, "%s: %s", violation.rule, violation.what());
  }
  return -1;
}

// The entry point in MindSpore's form: inputs, then outputs. A broken rule throws.
EMULATOR_EXPORT int emulator_aot(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                                 void*) {
  using namespace emulator;
  const size_t num_inputs = host.operators.at(EMULATOR_OPERATOR)->inputs.size();
  std::vector<Tensor> tensors;
  std::vector<std::vector<uint8_t>> aligned(count);  // MindSpore does not promise a multiple of 32
  for (int i = 0; i < count; ++i) {
    Tensor tensor{dtypes[i], ranks[i], shapes[i], static_cast<uint8_t*>(data[i])};
    aligned[i].resize(bytes_of(tensor) + kGranule);
    tensor.data = aligned[i].data() + kGranule - reinterpret_cast<uintptr_t>(aligned[i].data()) % kGranule;
    std::memcpy(tensor.data, data[i], bytes_of(tensor));
    tensors.push_back(tensor);
  }
  std::vector<Counters> counters(kMaxCores);
  char problem[1024];
  if (emulator_run(kCompiledFor, 0, tensors.data(), num_inputs, tensors.data() + num_inputs, count - num_inputs,
                   counters.data(), problem, sizeof problem) < 0)
    throw std::runtime_error(std::string(EMULATOR_OPERATOR) + " in the emulator: " + problem);
  for (int i = num_inputs; i < count; ++i) std::memcpy(data[i], tensors[i].data, bytes_of(tensors[i]));
  return 0;
}
