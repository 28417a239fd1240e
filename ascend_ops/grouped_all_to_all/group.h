// The transport of grouped_all_to_all: the ranks of a group are processes on one machine, and rows pass through one
// anonymous file that all of them map (group.py creates and distributes it).
//
// The file has a Header, R Members, counts int32 [R, 2, R], then two outboxes per rank. In exchange n a rank writes the
// rows for others into its outbox n % 2, publishes n, waits until every other rank has published n, and reads its rows
// from their outboxes. No acknowledgement is needed: a rank that publishes n + 1 has finished reading n, and no rank
// writes n + 2 before every rank has published n + 1.
//
// A group fails as a whole: the first rank that finds an error writes its message into the header, and all ranks stop
// with it. Each rank holds a record lock on byte `rank` of the file, which the kernel releases when it dies.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "../cpu_kernel.h"

namespace ascend_ops {

constexpr int64_t kPage = 4096;
constexpr int64_t kParallelBytes = 4 << 20;  // smaller copies are not worth waking threads for
constexpr double kLifeCheckSeconds = 0.01;

struct alignas(64) Header {
  std::atomic<int32_t> failed;  // 0: none; −1: the message is being written; otherwise 1 + the rank that failed
  char message[512];
};

struct alignas(64) Member {
  std::atomic<int64_t> published;  // index of the last exchange whose rows are in the outbox
  int64_t pid;
  int64_t row_bytes[2];
};
static_assert(std::atomic<int64_t>::is_always_lock_free, "processes share these, locks they do not");

inline int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

inline int64_t header_bytes(int64_t size) {
  return whole_pages(sizeof(Header) + size * sizeof(Member) + 2 * size * size * sizeof(int32_t));
}

inline int64_t file_bytes(int64_t size, int64_t capacity) {
  return header_bytes(size) + 2 * size * whole_pages(capacity);
}

inline double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

inline void copy(char* to, const char* from, int64_t bytes) {
  constexpr int64_t piece = 1 << 20;
#pragma omp parallel for schedule(static) if (bytes >= kParallelBytes)
  for (int64_t start = 0; start < bytes; start += piece)
    std::memcpy(to + start, from + start, std::min(piece, bytes - start));
}

// The rows of one exchange; counts and starts are in rows.
struct Plan {
  std::vector<int64_t> send, send_start, receive, receive_start;
  int64_t num_sent = 0, num_received = 0, row_bytes;
};

class Group {
 public:
  Group(const char* name, int fd, int rank, int size, int64_t capacity, double timeout)
      : rank(rank), size(size), name_(name), fd_(fd), capacity_(whole_pages(capacity)), timeout_(timeout) {
    if (size == 1) return;
    void* memory = mmap(nullptr, file_bytes(size, capacity), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) fail("cannot map %ld bytes: %s", file_bytes(size, capacity), std::strerror(errno));
    base_ = static_cast<char*>(memory);
    member(rank).pid = getpid();
  }

  ~Group() {
    if (base_) munmap(base_, file_bytes(size, capacity_));
  }

  // Runs one exchange. If it throws, the other ranks receive the reason.
  template <typename Body>
  void exchange(Body body) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    ++round_;
    try {
      refuse_if_failed();
      body();
    } catch (const std::exception& error) {
      announce(error.what());
      throw;
    }
    ++exchanges;
  }

  Plan plan(const Array& send_counts, const Array& receive_counts, int64_t num_rows, int64_t capacity,
            int64_t row_bytes) const {
    Plan plan;
    plan.row_bytes = row_bytes;
    plan.num_sent = read_counts(send_counts, "sends", "to", num_rows, plan.send, plan.send_start);
    plan.num_received = read_counts(receive_counts, "receives", "from", capacity, plan.receive, plan.receive_start);
    const int64_t bytes = (plan.num_sent - plan.send[rank]) * row_bytes;
    if (size > 1 && bytes > capacity_)
      fail("grouped_all_to_all: rank %d of group %s sends %ld bytes, but an outbox holds %ld: join the group with a "
           "larger capacity_bytes", rank, name(), bytes, capacity_);
    if (plan.send[rank] != plan.receive[rank])
      fail("grouped_all_to_all: rank %d of group %s sends %ld rows to itself, but expects %ld", rank, name(),
           plan.send[rank], plan.receive[rank]);
    return plan;
  }

  // Destinations of the rows for each rank. Those for this rank itself go to `own`.
  std::vector<char*> places(const Plan& plan, char* own) const {
    std::vector<char*> places(size);
    char* next = outbox(rank);
    for (int to = 0; to < size; ++to) {
      places[to] = to == rank ? own : next;
      if (to != rank) next += plan.send[to] * plan.row_bytes;
    }
    return places;
  }

  // Publishes the outbox: others may read it.
  void publish(const Plan& plan) {
    bytes_sent += (plan.num_sent - plan.send[rank]) * plan.row_bytes;
    if (size == 1) return;
    std::copy(plan.send.begin(), plan.send.end(), counts(rank));
    member(rank).row_bytes[round_ % 2] = plan.row_bytes;
    member(rank).published.store(round_, std::memory_order_release);
  }

  // Waits for another rank and returns its rows for this one. Every exchange must call it for every other rank.
  const char* rows_of(int source, const Plan& plan) const {
    wait(source);
    const int64_t row_bytes = member(source).row_bytes[round_ % 2];
    const int32_t* sent = counts(source);
    if (row_bytes != plan.row_bytes)
      fail("grouped_all_to_all: the plans of the ranks differ: rank %d of group %s sends rows of %ld bytes, rank %d "
           "expects %ld (exchange %ld)", source, name(), row_bytes, rank, plan.row_bytes, round_);
    if (sent[rank] != plan.receive[source])
      fail("grouped_all_to_all: the plans of the ranks differ: rank %d of group %s sends %d rows to rank %d, which "
           "expects %ld (exchange %ld)", source, name(), sent[rank], rank, plan.receive[source], round_);
    int64_t before = 0;
    for (int to = 0; to < rank; ++to)
      if (to != source) before += sent[to];
    return outbox(source) + before * row_bytes;
  }

  const char* name() const { return name_.c_str(); }

  const int rank, size;
  int64_t exchanges = 0, bytes_sent = 0, bytes_copied = 0;

 private:
  Header& header() const { return *reinterpret_cast<Header*>(base_); }

  Member& member(int of) const { return reinterpret_cast<Member*>(base_ + sizeof(Header))[of]; }

  int32_t* counts(int of) const {
    char* all = base_ + sizeof(Header) + size * sizeof(Member);
    return reinterpret_cast<int32_t*>(all) + (2 * of + round_ % 2) * size;
  }

  char* outbox(int of) const {
    return base_ ? base_ + header_bytes(size) + (2 * of + round_ % 2) * capacity_ : nullptr;
  }

  // Fills counts and starts and returns the sum.
  int64_t read_counts(const Array& from, const char* verb, const char* direction, int64_t limit,
                      std::vector<int64_t>& counts, std::vector<int64_t>& starts) const {
    int64_t sum = 0;
    for (int other = 0; other < size; ++other) {
      const int64_t count = from.as<int32_t>()[other];
      if (count < 0)
        fail("grouped_all_to_all: rank %d of group %s %s %ld rows %s rank %d", rank, name(), verb, count, direction,
             other);
      counts.push_back(count);
      starts.push_back(sum);
      sum += count;
    }
    if (sum > limit)
      fail("grouped_all_to_all: rank %d of group %s %s %ld rows, but its buffer has %ld", rank, name(), verb, sum,
           limit);
    return sum;
  }

  void refuse_if_failed() const {
    if (size == 1) return;
    const int32_t failed = header().failed.load(std::memory_order_acquire);
    if (failed > 0)
      fail("grouped_all_to_all: group %s has failed at rank %d: %s", name(), failed - 1, header().message);
  }

  void announce(const char* message) const {
    int32_t nobody = 0;
    if (size == 1 || !header().failed.compare_exchange_strong(nobody, -1)) return;
    const char* prefix = "grouped_all_to_all: ";  // the caller adds it again when it quotes the message
    if (std::strncmp(message, prefix, std::strlen(prefix)) == 0) message += std::strlen(prefix);
    std::snprintf(header().message, sizeof header().message, "%s", message);
    header().failed.store(rank + 1, std::memory_order_release);
  }

  bool arrived(int other) const { return member(other).published.load(std::memory_order_acquire) >= round_; }

  // Yields the core after a short spin, because there may be more processes than cores.
  void wait(int other) const {
    for (int look = 0; look < 1000; ++look) {
      if (arrived(other)) return;
      if (look >= 100) sched_yield();
    }
    const double started = now();
    for (double next_check = started; !arrived(other);) {
      const double time = now();
      if (time >= next_check) {
        next_check = time + kLifeCheckSeconds;
        refuse_if_failed();
        // a rank may publish and then die: what it has published is valid
        if (!alive(other) && !arrived(other))
          fail("grouped_all_to_all: rank %d of group %s (pid %ld) has died or left (exchange %ld)", other, name(),
               member(other).pid, round_);
        if (time - started > timeout_)
          fail("grouped_all_to_all: rank %d of group %s (pid %ld) did not arrive within %g s (exchange %ld)", other,
               name(), member(other).pid, timeout_, round_);
      }
      const timespec nap = {0, time - started < 0.01 ? 20000 : 500000};
      nanosleep(&nap, nullptr);
    }
  }

  bool alive(int other) const {
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = other;
    lock.l_len = 1;
    if (fcntl(fd_, F_GETLK, &lock) != 0) fail("grouped_all_to_all: F_GETLK: %s", std::strerror(errno));
    return lock.l_type != F_UNLCK;
  }

  const std::string name_;
  const int fd_;
  const int64_t capacity_;
  const double timeout_;
  char* base_ = nullptr;
  int64_t round_ = 0;
  std::mutex mutex_;
};

inline std::mutex registry_mutex;
inline std::map<int64_t, std::shared_ptr<Group>> registry;
inline int64_t last_handle = 0;

inline std::shared_ptr<Group> find_group(int64_t handle) {
  const std::lock_guard<std::mutex> lock(registry_mutex);
  const auto found = registry.find(handle);
  if (found == registry.end()) fail("grouped_all_to_all: the group is closed (handle %ld)", handle);
  return found->second;
}

}  // namespace ascend_ops
