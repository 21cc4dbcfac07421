// x Wᵀ for frozen bf16 weights, on CPUs that multiply pairs of bf16: as fast for a few dozen rows as for many.
//
// A library's product of few rows first waits for its weights and then multiplies. This one asks for the next weights
// while it multiplies with those before, evenly over all of its rows.
#pragma once

#include <algorithm>
#include <cstring>
#ifdef __AMX_TILE__
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

inline int64_t groups_of(const Packed& w) { return (w.outputs + MANY_OUTPUTS - 1) / MANY_OUTPUTS; }

// Up to 48 outputs, from `first`; `next` are `lines` lines of memory that are needed after it.
struct Group { const bf16* weight; int64_t first, panels; const char* next; int64_t lines; };

#ifdef __AVX512BF16__
constexpr bool CAN_MULTIPLY = true;

inline __m512 bias_of(const Packed& w, int64_t at) {
  int64_t lanes = std::max<int64_t>(0, std::min(PANEL, w.outputs - at));
  return w.bias ? (__m512)(lanes == PANEL ? load(w.bias + at) : load_part(w.bias + at, lanes)) : _mm512_setzero_ps();
}

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
    __m512 bias = bias_of(w, at);
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

// Sixteen rows by sixteen outputs at once, on CPUs with AMX: a tile of sums, and 32 features of 16 rows or 16 outputs.
constexpr int64_t TILE = 16;
constexpr int64_t PAIRED = 32;
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, none[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Linux gives a process tiles when it asks for them, once for all of its threads.
inline bool has_tiles() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return granted;
}

// Sixteen outputs: where their first pairs of features lie, and after how many bytes the next ones.
struct Panel { const bf16* weight; int64_t pitch, first; };

inline int64_t panels_of(const Packed& w) { return (w.outputs + PANEL - 1) / PANEL; }
inline Panel panel_of(const Packed& w, int64_t at) {
  int64_t group = at / GROUP, together = std::min(GROUP, panels_of(w) - group * GROUP);
  return {w.weight + group * w.features * MANY_OUTPUTS + at % GROUP * 2 * PANEL, together * 64, at * PANEL};
}

// The pairs that two panels are to be asked for, one after the other.
struct Asked {
  Panel panels[2];
  int64_t at, end;
  void pairs(int64_t count) {
    for (; count > 0 && at < end; count--, at++)
      for (const Panel& panel : panels) _mm_prefetch((const char*)panel.weight + at * panel.pitch, _MM_HINT_T1);
  }
};

// TILES times 16 rows by PANELS times 16 outputs; sums [TILES][PANELS][16][16] to `out`. Loading a tile takes about as
// long as multiplying two: of two by two each is loaded once for two products, and more sums do not fit. Tiles 0 to 3 hold
// sums, 4 and 5 rows, 6 and 7 weights.
template <int TILES, int PANELS>
inline void multiply_tiles(const bf16* const* x, const int64_t* pitch, const Panel* panels, int64_t features, float* out,
                           Asked& asked) {
  _tile_zero(0);
  if (PANELS > 1) _tile_zero(1);
  if (TILES > 1) _tile_zero(2);
  if (TILES > 1 && PANELS > 1) _tile_zero(3);
  int64_t steps = features / PAIRED, some = (asked.end - asked.at + 2 * steps - 1) / (2 * steps);
  const char* w[2] = {(const char*)panels[0].weight, (const char*)panels[PANELS - 1].weight};
  for (int64_t k = 0; k < steps; k++) {
    _tile_loadd(4, x[0] + k * PAIRED, pitch[0]);
    _tile_loadd(6, w[0] + k * TILE * panels[0].pitch, panels[0].pitch);
    _tile_dpbf16ps(0, 4, 6);
    asked.pairs(some);
    if (PANELS > 1) {
      _tile_loadd(7, w[1] + k * TILE * panels[1].pitch, panels[1].pitch);
      _tile_dpbf16ps(1, 4, 7);
    }
    asked.pairs(some);
    if (TILES > 1) {
      _tile_loadd(5, x[1] + k * PAIRED, pitch[1]);
      _tile_dpbf16ps(2, 5, 6);
      if (PANELS > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, 64);
  if (PANELS > 1) _tile_stored(1, out + 256, 64);
  if (TILES > 1) _tile_stored(2, out + PANELS * 256, 64);
  if (TILES > 1 && PANELS > 1) _tile_stored(3, out + 768, 64);
}

// Rows to multiply. `last` are the last ones, fewer than a tile has, and zeros after them, which reach no row's sums.
struct Rows { const bf16* at; int64_t pitch; const bf16* last; };

inline Rows tiled(const bf16* x, int64_t x_pitch, int64_t n, int64_t features) {
  int64_t few = n % TILE;
  if (!few) return {x, x_pitch, nullptr};
  bf16* last = (bf16*)aligned(scratch(LAST_ROWS, TILE * features / 2 + 16));
  for (int64_t r = 0; r < few; r++) std::memcpy(last + r * features, x + (n - few + r) * x_pitch, features * sizeof(bf16));
  std::memset(last + few * features, 0, (TILE - few) * features * sizeof(bf16));
  return {x, x_pitch, last};
}

// All rows by `count` panels, one or two, while those of `asked` are asked for.
inline void multiply_panels(const Packed& w, int64_t count, const Panel* panels, const Rows& x, bf16* y, int64_t y_pitch,
                            int64_t n, Asked asked) {
  alignas(64) float sums[4 * TILE * TILE];
  int64_t blocks = (n + 2 * TILE - 1) / (2 * TILE), asked_end = asked.end;
  for (int64_t block = 0; block < blocks; block++) {
    int64_t row = block * 2 * TILE, tiles = n - row > TILE ? 2 : 1;
    const bf16* from[2];
    int64_t pitch[2];
    for (int64_t t = 0; t < tiles; t++) {
      bool is_whole = row + (t + 1) * TILE <= n;
      from[t] = is_whole ? x.at + (row + t * TILE) * x.pitch : x.last;
      pitch[t] = (is_whole ? x.pitch : w.features) * (int64_t)sizeof(bf16);
    }
    asked.end = asked_end * (block + 1) / blocks;
    if (tiles > 1 && count > 1) multiply_tiles<2, 2>(from, pitch, panels, w.features, sums, asked);
    else if (tiles > 1) multiply_tiles<2, 1>(from, pitch, panels, w.features, sums, asked);
    else if (count > 1) multiply_tiles<1, 2>(from, pitch, panels, w.features, sums, asked);
    else multiply_tiles<1, 1>(from, pitch, panels, w.features, sums, asked);
    for (int64_t c = 0; c < count; c++) {
      int64_t at = panels[c].first;
      __m512 bias = bias_of(w, at);
      for (int64_t r = 0; r < std::min(2 * TILE, n - row); r++) {
        const float* sum = sums + ((r / TILE * count + c) * TILE + r % TILE) * PANEL;
        store_rounded(y + (row + r) * y_pitch + at, _mm512_add_ps(_mm512_load_ps(sum), bias), w.outputs - at);
      }
    }
  }
}

inline void product_by_tiles(const Packed& w, const bf16* x, int64_t x_pitch, bf16* y, int64_t y_pitch, int64_t n,
                             const Packed* then) {
  static const TileConfig config;
  Rows rows = tiled(x, x_pitch, n, w.features);
  int64_t count = panels_of(w);
  parallel_shares((count + 1) / 2, n * w.features * w.outputs, [&](int64_t begin, int64_t end, int64_t own, int64_t size) {
    _tile_loadconfig(&config);
    for (int64_t i = begin; i < end; i++) {
      Panel panels[2] = {panel_of(w, 2 * i), panel_of(w, std::min(2 * i + 1, count - 1))};
      const Packed* next = i + 1 < end ? &w : then;
      Asked asked{{}, 0, 0};
      if (next) {
        int64_t all = panels_of(*next), at = next == then ? 2 * first_of((all + 1) / 2, own, size) : 2 * i + 2;
        at = std::min(at, all - 1);
        asked = {{panel_of(*next, at), panel_of(*next, std::min(at + 1, all - 1))}, 0, next->features / 2};
      }
      multiply_panels(w, std::min<int64_t>(2, count - 2 * i), panels, rows, y, y_pitch, n, asked);
    }
    _tile_release();
  });
}
#else
inline bool has_tiles() { return false; }
inline void product_by_tiles(const Packed&, const bf16*, int64_t, bf16*, int64_t, int64_t, const Packed*) {}
#endif

// The same for a group with vectors, a few rows after the others.
inline void product_by_vectors(const Packed& w, const Group& group, const bf16* x, int64_t x_pitch, bf16* y,
                               int64_t y_pitch, int64_t n) {
  int64_t tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t tile = 0; tile < tiles; tile++) {
    int64_t row = n * tile / tiles, rows = n * (tile + 1) / tiles - row;
    int64_t begin = group.lines * tile / tiles * 64, bytes = group.lines * (tile + 1) / tiles * 64 - begin;
    const bf16* from = x + row * x_pitch;
    bf16* to = y + row * y_pitch;
    const char* ahead = group.next + begin;
    switch (group.panels) {
      case 1: multiply_rows<1>(rows, from, x_pitch, group.weight, w, group.first, to, y_pitch, ahead, bytes); break;
      case 2: multiply_rows<2>(rows, from, x_pitch, group.weight, w, group.first, to, y_pitch, ahead, bytes); break;
      default: multiply_rows<3>(rows, from, x_pitch, group.weight, w, group.first, to, y_pitch, ahead, bytes);
    }
  }
}

// `then` is what will be multiplied with next, if that is known: each thread asks for the first that it will need of it.
inline void product(const Packed& w, const bf16* x, int64_t x_pitch, bf16* y, int64_t y_pitch, int64_t n,
                    const Packed* then = nullptr) {
  if (has_tiles() && w.features % PAIRED == 0) return product_by_tiles(w, x, x_pitch, y, y_pitch, n, then);
  int64_t groups = groups_of(w), group_elements = w.features * MANY_OUTPUTS;
  parallel_shares(groups, n * w.features * w.outputs, [&](int64_t begin, int64_t end, int64_t own, int64_t size) {
    for (int64_t i = begin; i < end; i++) {
      const bf16* weight = w.weight + i * group_elements;
      int64_t first = i * MANY_OUTPUTS, panels = std::min(GROUP, (w.outputs - first + PANEL - 1) / PANEL);
      // What is behind the last group may be nobody's: asking for it is harmless.
      const bf16* next = weight + group_elements;
      int64_t next_elements = group_elements;
      if (then && i + 1 == end) {
        next_elements = then->features * MANY_OUTPUTS;
        next = then->weight + first_of(groups_of(*then), own, size) * next_elements;
      }
      Group group{weight, first, panels, (const char*)next, next_elements * (int64_t)sizeof(bf16) / 64};
      product_by_vectors(w, group, x, x_pitch, y, y_pitch, n);
    }
  });
}
#else
constexpr bool CAN_MULTIPLY = false;
inline void product(const Packed&, const bf16*, int64_t, bf16*, int64_t, int64_t, const Packed* = nullptr) {}
#endif

}  // namespace
