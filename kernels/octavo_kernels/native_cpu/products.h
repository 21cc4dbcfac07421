// x Wᵀ for frozen bf16 weights, on CPUs that multiply pairs of bf16: as fast for a few dozen rows as for many.
//
// A library's product of few rows first waits for its weights and then multiplies. This one asks for the next weights
// while it multiplies with those before, evenly over all of its rows.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "status.h"
#include "threads.h"

namespace {

constexpr int64_t PANEL = 16;                 // outputs of one vector
constexpr int64_t GROUP = 3;                  // panels that lie together, and are multiplied together
constexpr int64_t TILE_ROWS = 8;              // 8 rows by 3 panels of sums stay in registers
constexpr int64_t MANY_OUTPUTS = GROUP * PANEL;

// Laid out by products.py: groups of 48 outputs, the last one of 16, 32 or 48; in a group, for each pair of features
// after the other, the pairs of all its outputs. `outputs` of them are wanted, the others of the last group are zeros.
struct Packed { const bf16* weight; const bf16* bias; int64_t features, outputs; };

#ifdef __AVX512BF16__
constexpr bool CAN_MULTIPLY = true;

inline void store_rounded(bf16* p, __m512 v, int64_t lanes) {
  __m256i h = (__m256i)_mm512_cvtneps_pbh(v);
  if (lanes >= PANEL) _mm256_storeu_si256((__m256i*)p, h);
  else _mm256_mask_storeu_epi16(p, (__mmask16)((1u << std::max<int64_t>(0, lanes)) - 1), h);
}

// ROWS rows by PANELS panels of one group. One chain of sums for each result, along the features: neither the rows nor
// the panels beside it reach its bits. `ahead` are lines to ask for meanwhile.
template <int ROWS, int PANELS>
inline void multiply(const bf16* x, int64_t x_pitch, const bf16* weight, const Packed& w, int64_t first, bf16* y,
                     int64_t y_pitch, const char* ahead, int64_t ahead_bytes) {
  __m512 acc[ROWS][PANELS];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < PANELS; c++) acc[r][c] = _mm512_setzero_ps();
  const char* until = ahead + ahead_bytes;
  for (int64_t k = 0; k < w.features / 2; k++) {
    __m512bh columns[PANELS];
    for (int c = 0; c < PANELS; c++)
      columns[c] = (__m512bh)_mm512_loadu_si512(weight + (k * PANELS + c) * 2 * PANEL);
    if (ahead < until) {
      _mm_prefetch(ahead, _MM_HINT_T1);
      ahead += 64;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      int32_t pair;
      std::memcpy(&pair, x + r * x_pitch + 2 * k, sizeof pair);
      __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
      for (int c = 0; c < PANELS; c++) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], row, columns[c]);
    }
  }
  for (int c = 0; c < PANELS; c++) {
    int64_t at = first + c * PANEL, lanes = std::min(PANEL, w.outputs - at);
    __m512 bias = w.bias ? (__m512)(lanes >= PANEL ? load(w.bias + at) : load_part(w.bias + at, std::max<int64_t>(0, lanes)))
                         : _mm512_setzero_ps();
    for (int r = 0; r < ROWS; r++)
      store_rounded(y + r * y_pitch + at, w.bias ? _mm512_add_ps(acc[r][c], bias) : acc[r][c], lanes);
  }
}

template <int PANELS, class... Rest> inline void multiply_rows(int64_t rows, Rest... rest) {
  switch (rows) {
    case 1: return multiply<1, PANELS>(rest...);
    case 2: return multiply<2, PANELS>(rest...);
    case 3: return multiply<3, PANELS>(rest...);
    case 4: return multiply<4, PANELS>(rest...);
    case 5: return multiply<5, PANELS>(rest...);
    case 6: return multiply<6, PANELS>(rest...);
    case 7: return multiply<7, PANELS>(rest...);
    default: return multiply<8, PANELS>(rest...);
  }
}

inline void product(const Packed& w, const bf16* x, int64_t x_pitch, bf16* y, int64_t y_pitch, int64_t n) {
  int64_t groups = (w.outputs + MANY_OUTPUTS - 1) / MANY_OUTPUTS, tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
  int64_t group_elements = w.features * MANY_OUTPUTS;
  parallel_stretches(groups, n * w.features * w.outputs, [](int64_t) { return 1; }, [&](int64_t group) {
    const bf16* weight = w.weight + group * group_elements;
    int64_t first = group * MANY_OUTPUTS, panels = std::min(GROUP, (w.outputs - first + PANEL - 1) / PANEL);
    // What is behind the last group may be nobody's: asking for it is harmless.
    const char* next = (const char*)(weight + group_elements);
    int64_t lines = group_elements * sizeof(bf16) / 64;
    for (int64_t tile = 0; tile < tiles; tile++) {
      int64_t row = n * tile / tiles, rows = n * (tile + 1) / tiles - row;
      int64_t begin = lines * tile / tiles * 64, bytes = lines * (tile + 1) / tiles * 64 - begin;
      const bf16* from = x + row * x_pitch;
      bf16* to = y + row * y_pitch;
      switch (panels) {
        case 1: multiply_rows<1>(rows, from, x_pitch, weight, w, first, to, y_pitch, next + begin, bytes); break;
        case 2: multiply_rows<2>(rows, from, x_pitch, weight, w, first, to, y_pitch, next + begin, bytes); break;
        default: multiply_rows<3>(rows, from, x_pitch, weight, w, first, to, y_pitch, next + begin, bytes);
      }
    }
  });
}
#else
constexpr bool CAN_MULTIPLY = false;
inline void product(const Packed&, const bf16*, int64_t, bf16*, int64_t, int64_t) {}
#endif

}  // namespace
