// TPipe, which allocates the unified buffer, and its queues and buffers.
#pragma once

#include <deque>

#include "tensor.h"

namespace AscendC {

class TPipe;

// Buffers that one pipe fills and another empties. EnQue, DeQue and FreeTensor are flags between the two.
template <TPosition kSource, TPosition kDestination, int kDepth>
class TQueBind {
 public:
  template <typename T>
  LocalTensor<T> AllocTensor() {
    emulator::Core& core = *emulator::this_core;
    for (size_t tried = 0; tried < slots_.size(); ++tried) {  // in turn, as the device does
      Slot& slot = slots_[next_];
      next_ = (next_ + 1) % slots_.size();
      if (slot.state != State::kFree) continue;
      core.pipes.learn(kProducer, slot.clock);
      ++core.counters.flags;
      ++core.outstanding_tensors;
      slot.state = State::kAllocated;
      return tensor<T>(slot);
    }
    emulator::violate(emulator::rule::kQueue, "AllocTensor: all %zu buffers are in use (FreeTensor missing?)",
                      slots_.size());
  }

  template <typename T>
  void EnQue(const LocalTensor<T>& tensor) {
    emulator::Core& core = *emulator::this_core;
    Slot& slot = slot_of(tensor, State::kAllocated, "EnQue");
    if (queued_.size() >= kDepth)
      emulator::violate(emulator::rule::kQueue, "EnQue of tensor %zu into a queue of depth %d", queued_.size() + 1,
                        kDepth);
    slot.state = State::kQueued;
    slot.clock = core.pipes.after(kProducer);
    ++core.counters.flags;
    ++core.buffers[slot.buffer].generation;
    queued_.push_back(&slot);
  }

  template <typename T>
  LocalTensor<T> DeQue() {
    emulator::Core& core = *emulator::this_core;
    if (queued_.empty())
      emulator::violate(emulator::rule::kQueue, "DeQue of an empty queue (EnQue missing?): the device would hang");
    Slot& slot = *queued_.front();
    queued_.pop_front();
    slot.state = State::kTaken;
    core.pipes.learn(kConsumer, slot.clock);
    ++core.counters.flags;
    return tensor<T>(slot);
  }

  template <typename T>
  void FreeTensor(const LocalTensor<T>& tensor) {
    emulator::Core& core = *emulator::this_core;
    Slot& slot = slot_of(tensor, State::kTaken, "FreeTensor");
    slot.state = State::kFree;
    slot.clock = core.pipes.after(kConsumer);
    ++core.counters.flags;
    ++core.buffers[slot.buffer].generation;
    --core.outstanding_tensors;
  }

 private:
  friend class TPipe;

  enum class State { kFree, kAllocated, kQueued, kTaken };
  struct Slot {
    int buffer;
    State state = State::kFree;
    emulator::Clock clock{};
  };

  static constexpr emulator::Pipe kProducer = emulator::producer(kSource);
  static constexpr emulator::Pipe kConsumer = emulator::consumer(kDestination);

  template <typename T>
  LocalTensor<T> tensor(const Slot& slot) const {
    return LocalTensor<T>(slot.buffer, 0, emulator::this_core->buffers[slot.buffer].bytes / sizeof(T));
  }

  template <typename T>
  Slot& slot_of(const LocalTensor<T>& tensor, State state, const char* what) {
    for (Slot& slot : slots_)
      if (slot.buffer == tensor.buffer() && slot.state == state &&
          tensor.generation() == emulator::this_core->buffers[slot.buffer].generation)
        return slot;
    emulator::violate(emulator::rule::kQueue, "%s of a tensor that this queue has not handed out for it", what);
  }

  std::vector<Slot> slots_;
  size_t next_ = 0;  // next slot to allocate
  std::deque<Slot*> queued_;
};

template <TPosition kPosition, int kDepth>
class TQue : public TQueBind<kPosition, kPosition, kDepth> {};

// A buffer without a queue: its user orders the pipes.
template <TPosition kPosition = TPosition::VECCALC>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get() const {
    return LocalTensor<T>(buffer_, 0, emulator::this_core->buffers[buffer_].bytes / sizeof(T));
  }

 private:
  friend class TPipe;
  int buffer_ = -1;
};

class TPipe {
 public:
  TPipe() {
    emulator::Core& core = *emulator::this_core;
    if (core.pipe_object != nullptr)
      emulator::violate(emulator::rule::kQueue, "a second TPipe: its buffers would be those of the first");
    core.pipe_object = current_ = this;
  }

  template <TPosition kSource, TPosition kDestination, int kDepth>
  void InitBuffer(TQueBind<kSource, kDestination, kDepth>& queue, uint32_t num_buffers, uint32_t bytes) {
    using Queue = TQueBind<kSource, kDestination, kDepth>;
    if (!queue.slots_.empty()) emulator::violate(emulator::rule::kQueue, "InitBuffer of a queue that has its buffers");
    emulator::this_core->reserve_events({Queue::kProducer, Queue::kConsumer}, num_buffers);
    emulator::this_core->reserve_events({Queue::kConsumer, Queue::kProducer}, num_buffers);
    for (uint32_t i = 0; i < num_buffers; ++i) queue.slots_.push_back({take(bytes)});
  }

  template <TPosition kPosition>
  void InitBuffer(TBuf<kPosition>& buffer, uint32_t bytes) {
    buffer.buffer_ = take(bytes);
  }

  TEventID FetchEventID(HardEvent event) {
    return static_cast<TEventID>(emulator::this_core->free_event(emulator::kind_of(event)));
  }

  static TPipe* current() { return current_; }

 private:
  static int take(uint64_t bytes) {
    emulator::Core& core = *emulator::this_core;
    if (bytes == 0) emulator::violate(emulator::rule::kCapacity, "InitBuffer of 0 bytes");
    if (core.buffers.size() == kMostBuffers)
      emulator::violate(emulator::rule::kQueue, "InitBuffer: a TPipe has %zu buffers at most", kMostBuffers);
    core.buffers.push_back({core.unified_buffer.allocate(bytes), bytes});
    return static_cast<int>(core.buffers.size()) - 1;
  }

  static constexpr size_t kMostBuffers = 64;
  static inline thread_local TPipe* current_ = nullptr;
};

inline TPipe* GetTPipePtr() { return TPipe::current(); }

}  // namespace AscendC
