// Memory asked for before it is read.
#pragma once

#include <cstdint>
#include <vector>

namespace {

// Asks for memory some kilobytes before it is read. Rows of an adapter are short and lie in several places, so the
// hardware's own look-ahead stops at the end of each; this one follows them in the order in which they are read.
class Ahead {
 public:
  void clear() { spans_.clear(); next_ = 0; at_ = end_ = nullptr; }
  void add(const void* begin, int64_t bytes) {
    const char* p = (const char*)begin;
    if (!spans_.empty() && spans_.back().end == p) spans_.back().end = p + bytes;
    else spans_.push_back({p, p + bytes});
  }
  void start() { lines(DISTANCE / 64); }
  void lines(int count) {
    for (int i = 0; i < count; i++) {
      if (at_ >= end_) {
        if (next_ == spans_.size()) return;
        at_ = spans_[next_].begin;
        end_ = spans_[next_++].end;
      }
      __builtin_prefetch(at_);
      at_ += 64;
    }
  }

 private:
  static constexpr int DISTANCE = 12288;
  struct Span { const char* begin; const char* end; };
  std::vector<Span> spans_;
  size_t next_ = 0;
  const char* at_ = nullptr;
  const char* end_ = nullptr;
};

inline Ahead& look_ahead() {
  static thread_local Ahead ahead;
  ahead.clear();
  return ahead;
}

}  // namespace
