// Threads of the process's one OpenMP pool, and memory that each keeps between calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Below this many multiply-adds a parallel region costs more than it saves.
constexpr int64_t SERIAL_WORK = 1 << 15;

inline int64_t num_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

template <class F> void parallel(int64_t count, int64_t work, F run) {
#ifdef _OPENMP
  if (count > 1 && work > SERIAL_WORK) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) run(i);
    return;
  }
#endif
  for (int64_t i = 0; i < count; i++) run(i);
}

// As parallel, but each thread takes one stretch of units that follow each other, all stretches of about equal cost: it
// knows then what it will read next.
template <class C, class F> void parallel_stretches(int64_t count, int64_t work, C cost, F run) {
#ifdef _OPENMP
  if (count > 1 && work > SERIAL_WORK) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) total += cost(i);
#pragma omp parallel
    {
      int64_t threads = omp_get_num_threads(), own = omp_get_thread_num(), before = 0;
      for (int64_t i = 0; i < count; i++) {
        int64_t some = cost(i), middle = before + some / 2;
        if (middle * threads / std::max<int64_t>(1, total) == own) run(i);
        before += some;
      }
    }
    return;
  }
#endif
  for (int64_t i = 0; i < count; i++) run(i);
}

// The last rows of a product have one of their own: what it multiplies may be in any other.
constexpr int LAST_ROWS = 11;

float* scratch(int which, int64_t floats) {
  static thread_local std::vector<float> buffers[12];
  auto& buffer = buffers[which];
  if ((int64_t)buffer.size() < floats) buffer.resize(floats);
  return buffer.data();
}

// The next address that vectors may be kept at; takes up to 15 of the floats.
inline float* aligned(float* p) { return (float*)(((uintptr_t)p + 63) / 64 * 64); }

}  // namespace
