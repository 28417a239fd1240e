// grouped_all_to_all on the host: rows are copied directly into shared memory, and from there to their destination.
#include <numeric>

#include "../routing.h"
#include "group.h"

using namespace ascend_ops;

// Functions that group.py calls through ctypes. MindSpore and ctypes load the same library, so they share one registry.

ASCEND_OP int64_t group_file_bytes(int64_t size, int64_t capacity) { return file_bytes(size, capacity); }

// Returns a handle, or 0 with the reason in `problem`. The caller keeps the descriptor; size 1 needs none.
ASCEND_OP int64_t register_group(const char* name, int fd, int rank, int size, int64_t capacity, double timeout,
                                 char* problem, int64_t problem_bytes) {
  try {
    auto group = std::make_shared<Group>(name, fd, rank, size, capacity, timeout);
    const std::lock_guard<std::mutex> lock(registry_mutex);
    registry[++last_handle] = std::move(group);
    return last_handle;
  } catch (const std::exception& error) {
    std::snprintf(problem, problem_bytes, "%s", error.what());
    return 0;
  }
}

// Waits for a running exchange.
ASCEND_OP void unregister_group(int64_t handle) {
  std::shared_ptr<Group> group;
  {
    const std::lock_guard<std::mutex> lock(registry_mutex);
    const auto found = registry.find(handle);
    if (found == registry.end()) return;
    group = std::move(found->second);
    registry.erase(found);
  }
  while (group.use_count() > 1) sched_yield();
}

// Writes exchanges, bytes sent to other ranks, bytes copied; returns 0 for a closed group.
ASCEND_OP int group_statistics(int64_t handle, int64_t* out) {
  try {
    const auto group = find_group(handle);
    out[0] = group->exchanges, out[1] = group->bytes_sent, out[2] = group->bytes_copied;
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// in: rows [Q, H], send counts int32 [R], receive counts int32 [R], any [C], handle int64 [1], order float32 [1]
// out: rows [C, H], order float32 [1]
ASCEND_OP int grouped_all_to_all(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                                 void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Array rows = arguments[0], out = arguments[6];
  const auto group = find_group(*arguments[4].as<int64_t>());
  const int me = group->rank;
  group->exchange([&] {
    const Plan plan = group->plan(arguments[1], arguments[2], rows.shape[0], out.shape[0], rows.row_bytes());
    const int64_t row_bytes = plan.row_bytes;
    const auto read = [&](int to) { return rows.as<char>() + plan.send_start[to] * row_bytes; };
    const auto written = [&](int from) { return out.as<char>() + plan.receive_start[from] * row_bytes; };

    const std::vector<char*> places = group->places(plan, written(me));
    for (int to = 0; to < group->size; ++to)
      if (to != me) copy(places[to], read(to), plan.send[to] * row_bytes);
    group->publish(plan);
    copy(places[me], read(me), plan.send[me] * row_bytes);
    for (int step = 1; step < group->size; ++step) {
      const int source = (me + step) % group->size;
      copy(written(source), group->rows_of(source, plan), plan.receive[source] * row_bytes);
    }
    std::memset(out.as<char>() + plan.num_received * row_bytes, 0, (out.shape[0] - plan.num_received) * row_bytes);
    group->bytes_copied += (plan.num_sent + plan.num_received - plan.send[me]) * row_bytes;
  });
  *arguments[7].as<float>() = *arguments[5].as<float>();
  return 0;
}

// in: x [T, H], token ids int32 [T], slot ids int32 [T], table int32 [D, V], any [R, D·E/R], send counts int32 [R],
//     receive counts int32 [R], any [C], handle int64 [1], order float32 [1]
// out: rows [C, H], counts int32 [R, D·E/R], positions int32 [T], invalid int32 [1], always 0, order float32 [1]
ASCEND_OP int dispatch_all_to_all(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes, void*,
                                  void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Array x = arguments[0], table = arguments[3], out = arguments[10];
  const int64_t num_tokens = x.shape[0];
  const int64_t groups_of_rank = arguments[4].shape[1], local_experts = groups_of_rank / table.shape[0];
  int32_t* counts = arguments[11].as<int32_t>();
  int32_t* positions = arguments[12].as<int32_t>();
  *arguments[13].as<int32_t>() = 0;
  const auto group = find_group(*arguments[8].as<int64_t>());
  const int me = group->rank, size = group->size;
  group->exchange([&] {
    const Plan plan = group->plan(arguments[5], arguments[6], num_tokens, out.shape[0], x.row_bytes());
    const int64_t num_groups = size * groups_of_rank, row_bytes = plan.row_bytes;
    const Router route("dispatch_all_to_all", arguments[1], arguments[2], table, size * local_experts);

    std::fill(counts, counts + num_groups, 0);
    std::vector<int32_t> group_of(num_tokens);  // in send order: (rank, slot, local expert)
    for (int64_t t = 0; t < num_tokens; ++t) {
      const auto [slot, expert] = route(t);
      group_of[t] = expert / local_experts * groups_of_rank + slot * local_experts + expert % local_experts;
      ++counts[group_of[t]];
    }

    const std::vector<char*> places = group->places(plan, out.as<char>() + plan.receive_start[me] * row_bytes);
    std::vector<char*> place_of(num_groups);  // destination of a group's first row
    std::vector<int32_t> start(num_groups);
    int32_t position = 0;
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t to = g / groups_of_rank;
      if (g % groups_of_rank == 0) {
        const int64_t named = std::accumulate(counts + g, counts + g + groups_of_rank, int64_t{0});
        if (named != plan.send[to])
          fail("dispatch_all_to_all: the plan of rank %d of group %s sends %ld rows to rank %ld, but its tokens name "
               "%ld", me, group->name(), plan.send[to], to, named);
      }
      start[g] = position;
      place_of[g] = places[to] + (position - plan.send_start[to]) * row_bytes;
      position += counts[g];
    }
    std::vector<int32_t> next = start;
    for (int64_t t = 0; t < num_tokens; ++t) positions[t] = next[group_of[t]]++;

    const char* source = x.as<char>();
#pragma omp parallel for schedule(static) if (num_tokens * row_bytes >= kParallelBytes)
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int32_t g = group_of[t];
      std::memcpy(place_of[g] + (positions[t] - start[g]) * row_bytes, source + t * row_bytes, row_bytes);
    }
    group->publish(plan);
    for (int step = 1; step < size; ++step) {
      const int from = (me + step) % size;
      const char* received = group->rows_of(from, plan);
      copy(out.as<char>() + plan.receive_start[from] * row_bytes, received, plan.receive[from] * row_bytes);
    }
    std::memset(out.as<char>() + plan.num_received * row_bytes, 0, (out.shape[0] - plan.num_received) * row_bytes);
    group->bytes_copied += (num_tokens + plan.num_received - plan.receive[me]) * row_bytes;
  });
  *arguments[14].as<float>() = *arguments[9].as<float>();
  return 0;
}

// The backward pass: rows return to their source rank, and go from the outboxes directly to their tokens.
// in: drows [C, H], send counts and receive counts of the forward exchange int32 [R], positions int32 [T],
//     handle int64 [1], order float32 [1]
// out: dx [T, H], order float32 [1]
ASCEND_OP int dispatch_all_to_all_backward(int count, void** data, int* ranks, int64_t** shapes, const char** dtypes,
                                           void*, void*) {
  const Arguments arguments(count, data, ranks, shapes, dtypes);
  const Array drows = arguments[0], dx = arguments[6];
  const int32_t* positions = arguments[3].as<int32_t>();
  const int64_t num_tokens = dx.shape[0];
  const auto group = find_group(*arguments[4].as<int64_t>());
  const int me = group->rank;
  group->exchange([&] {
    const Plan plan = group->plan(arguments[2], arguments[1], drows.shape[0], num_tokens, drows.row_bytes());
    const int64_t row_bytes = plan.row_bytes;
    char* own = drows.as<char>() + plan.send_start[me] * row_bytes;
    const std::vector<char*> places = group->places(plan, own);
    for (int to = 0; to < group->size; ++to)
      if (to != me) copy(places[to], drows.as<char>() + plan.send_start[to] * row_bytes, plan.send[to] * row_bytes);
    group->publish(plan);

    for (int64_t t = 0; t < num_tokens; ++t)
      if (positions[t] < 0 || positions[t] >= plan.num_received)
        fail("dispatch_all_to_all: position %d of token %ld is outside %ld rows", positions[t], t, plan.num_received);
    std::vector<const char*> returned(group->size, own);
    for (int step = 1; step < group->size; ++step) {
      const int from = (me + step) % group->size;
      returned[from] = group->rows_of(from, plan);
    }
    const auto& starts = plan.receive_start;
#pragma omp parallel for schedule(static) if (num_tokens * row_bytes >= kParallelBytes)
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int64_t from = std::upper_bound(starts.begin(), starts.end(), positions[t]) - starts.begin() - 1;
      std::memcpy(dx.as<char>() + t * row_bytes, returned[from] + (positions[t] - starts[from]) * row_bytes, row_bytes);
    }
    group->bytes_copied += (plan.num_sent - plan.send[me] + num_tokens) * row_bytes;
  });
  *arguments[7].as<float>() = *arguments[5].as<float>();
  return 0;
}
