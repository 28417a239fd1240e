// Shared code of the kernels that route tokens: the expert of a token, and an error for ids outside the table.
#pragma once

#include "cpu_kernel.h"

namespace ascend_ops {

class Router {
 public:
  // Token ids and slot ids int32 [T], table int32 [D, V] of experts below num_experts; `op` is the name in errors.
  Router(const char* op, const Array& token_ids, const Array& slot_ids, const Array& table, int64_t num_experts)
      : op_(op),
        token_ids_(token_ids.as<int32_t>()),
        slot_ids_(slot_ids.as<int32_t>()),
        table_(table.as<int32_t>()),
        num_slots_(table.shape[0]),
        vocab_size_(table.shape[1]),
        num_experts_(num_experts) {}

  struct Route {
    int64_t slot;
    int32_t expert;
  };

  Route operator()(int64_t t) const {
    const int64_t slot = slot_ids_[t], token = token_ids_[t];
    if (slot < 0 || slot >= num_slots_)
      fail("%s: slot id %ld of row %ld is outside the table of %ld slots", op_, slot, t, num_slots_);
    if (token < 0 || token >= vocab_size_)
      fail("%s: token id %ld of row %ld is outside the table of %ld tokens", op_, token, t, vocab_size_);
    const int32_t expert = table_[slot * vocab_size_ + token];
    if (expert < 0 || expert >= num_experts_)
      fail("%s: the table names expert %d of %ld for token %ld in slot %ld", op_, expert, num_experts_, token, slot);
    return {slot, expert};
  }

 private:
  const char* op_;
  const int32_t *token_ids_, *slot_ids_, *table_;
  const int64_t num_slots_, vocab_size_, num_experts_;
};

}  // namespace ascend_ops
