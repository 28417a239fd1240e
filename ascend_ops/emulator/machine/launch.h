// A launch: one thread per core, SyncAll is a barrier, and the first broken rule is the result.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "core.h"

namespace emulator {

class Launch {
 public:
  struct Result {
    std::string rule, message;  // empty: every rule held
    std::vector<Counters> counters;
  };

  Launch(const Chip& chip, uint32_t cores, std::vector<Array> arrays)
      : chip_(chip), cores_(cores), memory_(std::move(arrays)), accesses_of_core_(cores) {}

  Result run(const std::function<void()>& kernel) {
    if (cores_ == 0 || cores_ > chip_.vector_cores)
      return {rule::kSyncAll,
              "launched on " + std::to_string(cores_) + " cores, " + chip_.name + " has " +
                  std::to_string(chip_.vector_cores) + ": cores of a later round would never come",
              {}};
    result_.counters.resize(cores_);
    std::vector<std::thread> threads;
    for (uint32_t index = 0; index < cores_; ++index) threads.emplace_back([&, index] { play(index, kernel); });
    for (std::thread& thread : threads) thread.join();
    return result_;
  }

  // SyncAll: everything that any core did before is finished and visible to all.
  void sync_all(Core& core) {
    core.pipes.barrier_all();
    ++core.counters.sync_alls;
    arrive(core);
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t epoch = epoch_;
    ++waiting_;
    if (waiting_ == cores_) {
      close_epoch();
    } else {
      fail_if_stuck();
      changed_.wait(lock, [&] { return epoch_ != epoch || failed_; });
    }
    if (failed_) throw Abandoned();
  }

 private:
  struct Abandoned {};  // another core broke a rule

  void play(uint32_t index, const std::function<void()>& kernel) {
    Core core(chip_, index, cores_, memory_);
    this_core = &core;
    try {
      kernel();
      core.finish();
      arrive(core);
      const std::lock_guard<std::mutex> lock(mutex_);
      ++finished_;
      fail_if_stuck();
      if (finished_ == cores_) close_epoch();
    } catch (const Violation& violation) {
      const std::lock_guard<std::mutex> lock(mutex_);
      fail(violation.rule, "core " + std::to_string(index) + ": " + violation.what());
    } catch (const Abandoned&) {
    }
    result_.counters[index] = core.counters;
    this_core = nullptr;
  }

  // Collects the core's accesses since the last SyncAll.
  void arrive(Core& core) {
    check_order(memory_, core.accesses);
    accesses_of_core_[core.index] = std::move(core.accesses);
    core.accesses.clear();
  }

  void close_epoch() {
    try {
      if (!failed_) check_races(memory_, accesses_of_core_);
    } catch (const Violation& violation) {
      fail(violation.rule, violation.what());
    }
    for (auto& accesses : accesses_of_core_) accesses.clear();
    waiting_ = 0;
    ++epoch_;
    changed_.notify_all();
  }

  void fail_if_stuck() {
    if (waiting_ > 0 && waiting_ + finished_ == cores_)
      fail(rule::kSyncAll, std::to_string(waiting_) + " cores wait in SyncAll, and " + std::to_string(finished_) +
                               " have ended without it: the device would hang");
  }

  void fail(const std::string& rule, const std::string& message) {
    if (!failed_) result_.rule = rule, result_.message = message;
    failed_ = true;
    changed_.notify_all();
  }

  const Chip& chip_;
  const uint32_t cores_;
  GlobalMemory memory_;
  std::vector<std::vector<Access>> accesses_of_core_;
  Result result_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t waiting_ = 0, finished_ = 0;
  uint64_t epoch_ = 0;
  bool failed_ = false;
};

// The launch that is running; one at a time.
static Launch* this_launch = nullptr;

}  // namespace emulator
