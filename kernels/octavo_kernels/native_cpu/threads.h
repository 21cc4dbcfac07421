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

// A team: threads that all make the same calls and take their own shares of each, so that they need not be called together
// for every one. Alone, a thread calls the others for what is worth it.
struct Team { int64_t own, size; };
inline Team& team() {
  static thread_local Team team{0, 1};
  return team;
}

// Calls run on every thread of the pool, as a team.
template <class F> void as_team(F run) {
#ifdef _OPENMP
#pragma omp parallel
  {
    team() = {omp_get_thread_num(), omp_get_num_threads()};
    run();
    team() = {0, 1};
  }
#else
  run();
#endif
}

// Returns when all of a team have come here: what they wrote before can be read then.
inline void meet() {
#ifdef _OPENMP
  if (team().size > 1) {
#pragma omp barrier
  }
#endif
}

// The first of `count` units, in order, that belongs to a thread.
inline int64_t first_of(int64_t count, int64_t own, int64_t size) { return (count * own + size - 1) / size; }

// A team meets behind what these two share out.
template <class F> void parallel(int64_t count, int64_t work, F run) {
#ifdef _OPENMP
  if (team().size > 1) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) run(i);
    return;
  }
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
  int64_t total = 0;
  auto take = [&](int64_t own, int64_t threads) {
    for (int64_t i = 0, before = 0; i < count; i++) {
      int64_t some = cost(i), middle = before + some / 2;
      if (middle * threads / std::max<int64_t>(1, total) == own) run(i);
      before += some;
    }
  };
  for (int64_t i = 0; i < count; i++) total += cost(i);
  if (team().size > 1) {
    take(team().own, team().size);
    meet();
    return;
  }
  if (count > 1 && work > SERIAL_WORK) {
#pragma omp parallel
    take(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  for (int64_t i = 0; i < count; i++) run(i);
}

// As parallel_stretches for units of one cost: run(begin, end, own, size) has all units of a thread, which is one of `size`.
template <class F> void parallel_shares(int64_t count, int64_t work, F run) {
  auto take = [&](int64_t own, int64_t size) { run(first_of(count, own, size), first_of(count, own + 1, size), own, size); };
  if (team().size > 1) {
    take(team().own, team().size);
    meet();
    return;
  }
#ifdef _OPENMP
  if (count > 1 && work > SERIAL_WORK) {
#pragma omp parallel
    take(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  take(0, 1);
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
