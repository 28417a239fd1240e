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
    for (size_t tried = 0; tried < buffers_.size(); ++tried) {  // in turn, as the device does
      Buffer& buffer = buffers_[next_];
      next_ = (next_ + 1) % buffers_.size();
      if (buffer.state != State::kFree) continue;
      core.pipes.learn(kProducer, buffer.clock);
      ++core.counters.flags;
      ++core.outstanding_tensors;
      buffer.state = State::kAllocated;
      return tensor<T>(buffer);
    }
    emulator::violate(emulator::rule::kQueue, "AllocTensor: all %zu buffers are in use (FreeTensor missing?)",
                      buffers_.size());
  }

  template <typename T>
  void EnQue(const LocalTensor<T>& tensor) {
    emulator::Core& core = *emulator::this_core;
    Buffer& buffer = find_buffer(tensor, State::kAllocated, "EnQue");
    if (queued_.size() >= kDepth)
      emulator::violate(emulator::rule::kQueue, "EnQue of tensor %zu into a queue of depth %d", queued_.size() + 1,
                        kDepth);
    buffer.state = State::kQueued;
    buffer.clock = core.pipes.after(kProducer);
    ++core.counters.flags;
    ++core.buffers[buffer.index].generation;
    queued_.push_back(&buffer);
  }

  template <typename T>
  LocalTensor<T> DeQue() {
    emulator::Core& core = *emulator::this_core;
    if (queued_.empty())
      emulator::violate(emulator::rule::kQueue, "DeQue of an empty queue (EnQue missing?): the device would hang");
    Buffer& buffer = *queued_.front();
    queued_.pop_front();
    buffer.state = State::kTaken;
    core.pipes.learn(kConsumer, buffer.clock);
    ++core.counters.flags;
    return tensor<T>(buffer);
  }

  template <typename T>
  void FreeTensor(const LocalTensor<T>& tensor) {
    emulator::Core& core = *emulator::this_core;
    Buffer& buffer = find_buffer(tensor, State::kTaken, "FreeTensor");
    buffer.state = State::kFree;
    buffer.clock = core.pipes.after(kConsumer);
    ++core.counters.flags;
    ++core.buffers[buffer.index].generation;
    --core.outstanding_tensors;
  }

 private:
  friend class TPipe;

  enum class State { kFree, kAllocated, kQueued, kTaken };
  struct Buffer {
    int index;
    State state = State::kFree;
    emulator::Clock clock{};
  };

  static constexpr emulator::Pipe kProducer = emulator::producer(kSource);
  static constexpr emulator::Pipe kConsumer = emulator::consumer(kDestination);

  template <typename T>
  LocalTensor<T> tensor(const Buffer& buffer) const {
    return LocalTensor<T>(buffer.index, 0, emulator::this_core->buffers[buffer.index].bytes / sizeof(T));
  }

  template <typename T>
  Buffer& find_buffer(const LocalTensor<T>& tensor, State state, const char* what) {
    for (Buffer& buffer : buffers_)
      if (buffer.index == tensor.buffer() && buffer.state == state &&
          tensor.generation() == emulator::this_core->buffers[buffer.index].generation)
        return buffer;
    emulator::violate(emulator::rule::kQueue, "%s of a tensor that this queue has not handed out for it", what);
  }

  std::vector<Buffer> buffers_;
  size_t next_ = 0;  // index of the next buffer to allocate
  std::deque<Buffer*> queued_;
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
    if (!queue.buffers_.empty())
      emulator::violate(emulator::rule::kQueue, "InitBuffer of a queue that has its buffers");
    emulator::this_core->reserve_events({Queue::kProducer, Queue::kConsumer}, num_buffers);
    emulator::this_core->reserve_events({Queue::kConsumer, Queue::kProducer}, num_buffers);
    for (uint32_t i = 0; i < num_buffers; ++i) queue.buffers_.push_back({take(bytes)});
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
    if (core.buffers.size() == kMaxBuffers)
      emulator::violate(emulator::rule::kQueue, "InitBuffer: a TPipe has %zu buffers at most", kMaxBuffers);
    core.buffers.push_back({core.unified_buffer.allocate(bytes), bytes});
    return static_cast<int>(core.buffers.size()) - 1;
  }

  static constexpr size_t kMaxBuffers = 64;
  static inline thread_local TPipe* current_ = nullptr;
};

inline TPipe* GetTPipePtr() { return TPipe::current(); }

}  // namespace AscendC
