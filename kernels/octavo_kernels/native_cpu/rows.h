// shrink, expand and adapt: adapters added to rows, read from the arena row by row.
#pragma once

#include <algorithm>
#include <type_traits>

#include "ahead.h"
#include "lanes.h"
#include "status.h"
#include "threads.h"

namespace {

struct Table { const int64_t* a; const int64_t* b; const int32_t* ranks; const float* scalings; int64_t slots, rank_max; };
struct Groups { const int32_t* starts; const int32_t* slots; int64_t count; };

constexpr int BLOCK = 4;  // rows of one group that share a pass over its adapter
struct Block { int64_t row, rows, slot, rank; };

// Checks groups, slots, ranks and offsets; returns blocks of rows that have something to compute.
int plan(const Table& t, const Groups& g, const int64_t* offsets, int64_t n, int64_t width, int64_t arena_len,
         std::vector<Block>& blocks, int64_t& work) {
  blocks.clear();
  work = 0;
  if (g.starts[0] != 0 || g.starts[g.count] != n) return BAD_GROUPS;
  for (int64_t i = 0; i < g.count; i++) {
    int64_t begin = g.starts[i], end = g.starts[i + 1], slot = g.slots[i];
    if (end < begin || end > n) return BAD_GROUPS;
    if (slot < -1 || slot >= t.slots) return BAD_SLOT;
    if (slot < 0 || begin == end) continue;
    int64_t rank = t.ranks[slot];
    if (rank < 0 || rank > t.rank_max) return BAD_RANK;
    for (int64_t j = 0; j < rank; j++) {
      int64_t at = offsets[slot * t.rank_max + j];
      if (at < 0 || at > arena_len - width) return BAD_OFFSET;
    }
    if (!rank) continue;
    for (int64_t row = begin; row < end; row += BLOCK) blocks.push_back({row, std::min<int64_t>(BLOCK, end - row), slot, rank});
    work += (end - begin) * rank * width;
  }
  return OK;
}

// How many parts each block is cut into so that a few rows still keep every thread busy.
int64_t parts_of(int64_t blocks, int64_t parts_max) {
  int64_t want = 2 * num_threads();
  return blocks >= want || !blocks ? 1 : std::min(parts_max, (want + blocks - 1) / blocks);
}

// ROWS rows of x by one row of A: four chains each, taken in turn along the row.
template <class T, int ROWS>
inline void project(const float* x, int64_t pitch, const T* a, int64_t h, v16* lanes, int64_t lanes_pitch, Ahead& ahead) {
  v16 acc[ROWS][4] = {};
  int64_t k = 0;
  for (; k + 64 <= h; k += 64) {
    if (ROWS == 1) ahead.lines(sizeof(T));  // more rows are bound by multiplying
    for (int c = 0; c < 4; c++) {
      v16 w = load(a + k + 16 * c);
      for (int r = 0; r < ROWS; r++) acc[r][c] = fma(load(x + r * pitch + k + 16 * c), w, acc[r][c]);
    }
  }
  // Unrolled, or else the sums are kept in memory.
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    if (k >= h) continue;
    v16 w = k + 16 <= h ? load(a + k) : load_part(a + k, h - k);
    for (int r = 0; r < ROWS; r++) acc[r][c] = fma(load(x + r * pitch + k), w, acc[r][c]);
    k += 16;
  }
  for (int r = 0; r < ROWS; r++) lanes[r * lanes_pitch] = (acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]);
}

template <class T, int ROWS>
void project_ranks(const float* x, int64_t pitch, const T* arena, const int64_t* offsets, int64_t ranks, int64_t h,
                   float* out, int64_t out_pitch, Ahead& ahead) {
  for (int64_t first = 0; first < ranks; first += 16) {
    // As many results as there are lanes are summed at once; a lane's sum does not depend on which it is.
    int64_t some = std::min<int64_t>(16, ranks - first);
    v16 lanes[ROWS][16];
    for (int64_t j = 0; j < some; j++) {
      project<T, ROWS>(x, pitch, arena + offsets[first + j], h, &lanes[0][j], 16, ahead);
    }
    for (int r = 0; r < ROWS; r++) std::fill(lanes[r] + some, lanes[r] + 16, v16{});
    for (int r = 0; r < ROWS; r++) store_part(out + r * out_pitch + first, sums(lanes[r]), some);
  }
}

// A block's rows, however many: a row's sums are the same beside any others.
template <class T, class... Rest> void project_block(int64_t rows, const float* x, int64_t pitch, const T* arena, Rest&&... rest) {
  switch (rows) {
    case 1: return project_ranks<T, 1>(x, pitch, arena, rest...);
    case 2: return project_ranks<T, 2>(x, pitch, arena, rest...);
    case 3: return project_ranks<T, 3>(x, pitch, arena, rest...);
    default: return project_ranks<T, BLOCK>(x, pitch, arena, rest...);
  }
}

template <class T>
int shrink(const T* x, int64_t x_pitch, const T* arena, int64_t arena_len, const Table& t, const Groups& g, float* out,
           int64_t n, int64_t h) {
  static thread_local std::vector<Block> blocks;
  int64_t work;
  if (int error = plan(t, g, t.a, n, h, arena_len, blocks, work)) return error;
  std::memset(out, 0, n * t.rank_max * sizeof(float));
  int64_t pitch = (h + 15) / 16 * 16, parts = parts_of(blocks.size(), (t.rank_max + 7) / 8);
  int64_t step = ((t.rank_max + 7) / 8 + parts - 1) / parts * 8;
  const std::vector<Block>& todo = blocks;  // a thread_local name would mean another vector in each thread
  parallel(todo.size() * parts, work, [&](int64_t unit) {
    const Block& block = todo[unit / parts];
    int64_t first = unit % parts * step, last = std::min(block.rank, first + step);
    if (first >= last) return;
    float* rows = aligned(scratch(0, BLOCK * pitch + 16));
    for (int64_t r = 0; r < block.rows; r++) {
      const T* row = x + (block.row + r) * x_pitch;
      int64_t k = 0;
      for (; k + 16 <= h; k += 16) store(rows + r * pitch + k, load(row + k));
      if (k < h) store(rows + r * pitch + k, load_part(row + k, h - k));
    }
    const int64_t* offsets = t.a + block.slot * t.rank_max + first;
    Ahead& ahead = look_ahead();
    for (int64_t j = 0; j < last - first; j++) ahead.add(arena + offsets[j], h * sizeof(T));
    ahead.start();
    float* to = out + block.row * t.rank_max + first;
    project_block(block.rows, rows, pitch, arena, offsets, last - first, h, to, t.rank_max, ahead);
  });
  return OK;
}

// Adds features [o, end) of `ranks` columns of B to one row, reading each column from its first feature to its last.
template <class T>
void add_columns_to_row(const float* w, const T* arena, const int64_t* offsets, int64_t ranks, T* y, int64_t o,
                        int64_t end, Ahead& ahead) {
  int64_t width = end - o, whole = width / 16 * 16;
  float* acc = aligned(scratch(2, (width + 15) / 16 * 16 + 16));
  std::memset(acc, 0, (width + 15) / 16 * 16 * sizeof(float));
  auto add = [&](auto columns, int64_t j) {
    constexpr int COLUMNS = decltype(columns)::value;
    const T* b[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) b[c] = arena + offsets[j + c] + o;
    for (int64_t k = 0; k < whole; k += 16) {
      if (k % 64 == 0) ahead.lines(COLUMNS * sizeof(T));
      v16 sum = load(acc + k);
      for (int c = 0; c < COLUMNS; c++) sum = fma(splat(w[j + c]), load(b[c] + k), sum);
      store(acc + k, sum);
    }
    if (whole == width) return;
    v16 sum = load(acc + whole);
    for (int c = 0; c < COLUMNS; c++) sum = fma(splat(w[j + c]), load_part(b[c] + whole, width - whole), sum);
    store(acc + whole, sum);
  };
  int64_t j = 0;
  for (; j + 2 <= ranks; j += 2) add(std::integral_constant<int, 2>{}, j);
  for (; j < ranks; j++) add(std::integral_constant<int, 1>{}, j);
  for (int64_t k = 0; k < whole; k += 16) store(y + o + k, load(y + o + k) + load(acc + k));
  if (whole < width) store_part(y + o + whole, load_part(y + o + whole, width - whole) + load(acc + whole), width - whole);
}

// The same for ROWS rows at once, a few features at a time, so that their sums stay in registers.
template <class T, int ROWS, int VECS>
inline void add_products(const float* w, int64_t w_pitch, const T* arena, const int64_t* offsets, int64_t ranks, T* y,
                         int64_t y_pitch, int64_t o, int64_t lanes = 16) {
  v16 acc[ROWS][VECS] = {};
  for (int64_t j = 0; j < ranks; j++) {
    const T* b = arena + offsets[j] + o;
    for (int q = 0; q < VECS; q++) {
      v16 column = lanes == 16 ? load(b + 16 * q) : load_part(b + 16 * q, lanes);
      for (int r = 0; r < ROWS; r++) acc[r][q] = fma(splat(w[r * w_pitch + j]), column, acc[r][q]);
    }
  }
  // Unrolled, or else the sums are kept in memory.
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int q = 0; q < VECS; q++) {
      T* at = y + r * y_pitch + o + 16 * q;
      if (lanes == 16) store(at, load(at) + acc[r][q]);
      else store_part(at, load_part(at, lanes) + acc[r][q], lanes);
    }
}

template <class T, int ROWS>
void add_features(const float* w, int64_t w_pitch, const T* arena, const int64_t* offsets, int64_t ranks, T* y,
                  int64_t y_pitch, int64_t o, int64_t end, Ahead& ahead) {
  if (ROWS == 1) {
    add_columns_to_row(w, arena, offsets, ranks, y, o, end, ahead);
    return;
  }
  for (; o + 64 <= end; o += 64) add_products<T, ROWS, 4>(w, w_pitch, arena, offsets, ranks, y, y_pitch, o);
  for (; o + 16 <= end; o += 16) add_products<T, ROWS, 1>(w, w_pitch, arena, offsets, ranks, y, y_pitch, o);
  if (o < end) add_products<T, ROWS, 1>(w, w_pitch, arena, offsets, ranks, y, y_pitch, o, end - o);
}

template <class T, class... Rest> void add_block(int64_t rows, const float* w, int64_t w_pitch, const T* arena, Rest&&... rest) {
  switch (rows) {
    case 1: return add_features<T, 1>(w, w_pitch, arena, rest...);
    case 2: return add_features<T, 2>(w, w_pitch, arena, rest...);
    case 3: return add_features<T, 3>(w, w_pitch, arena, rest...);
    default: return add_features<T, BLOCK>(w, w_pitch, arena, rest...);
  }
}

template <class T>
int expand(const float* v, const T* arena, int64_t arena_len, const Table& t, const Groups& g, T* y, int64_t y_pitch,
           int64_t n, int64_t width) {
  static thread_local std::vector<Block> blocks;
  int64_t work;
  if (int error = plan(t, g, t.b, n, width, arena_len, blocks, work)) return error;
  int64_t chunks = (width + 127) / 128, parts = parts_of(blocks.size(), chunks);
  int64_t step = (chunks + parts - 1) / parts * 128;
  const std::vector<Block>& todo = blocks;
  parallel(todo.size() * parts, work, [&](int64_t unit) {
    const Block& block = todo[unit / parts];
    int64_t first = unit % parts * step, last = std::min(width, first + step);
    if (first >= last) return;
    float* w = scratch(0, BLOCK * t.rank_max);
    for (int64_t r = 0; r < block.rows; r++)
      for (int64_t j = 0; j < block.rank; j++)
        w[r * t.rank_max + j] = t.scalings[block.slot] * v[(block.row + r) * t.rank_max + j];
    const int64_t* offsets = t.b + block.slot * t.rank_max;
    Ahead& ahead = look_ahead();
    for (int64_t j = 0; j < block.rank; j++) ahead.add(arena + offsets[j] + first, (last - first) * sizeof(T));
    ahead.start();
    T* to = y + block.row * y_pitch;
    add_block(block.rows, w, t.rank_max, arena, offsets, block.rank, to, y_pitch, first, last, ahead);
  });
  return OK;
}

// Rows of one adapter; the cost is for reading it once and multiplying it by each row, in no unit.
struct Unit { int64_t row, rows, slot, cost; };
struct Part { const Table* table; void* y; int64_t y_pitch, width; };

// shrink and expand of several modules that read the same x, block of rows by block of rows: x is widened once, the
// rank values never leave the cache, and there is one parallel region instead of two for each module.
template <class T>
int adapt(const T* x, int64_t x_pitch, const T* arena, int64_t arena_len, const Groups& g, const Part* parts,
          int64_t count, int64_t n, int64_t h) {
  static thread_local std::vector<Block> blocks;
  static thread_local std::vector<Unit> units;
  int64_t work = 0, rank_max = 0;
  for (int64_t i = 0; i < count; i++) {
    const Table& t = *parts[i].table;
    int64_t some;
    if (int error = plan(t, g, t.a, n, h, arena_len, blocks, some)) return error;
    work += some;
    if (int error = plan(t, g, t.b, n, parts[i].width, arena_len, blocks, some)) return error;
    work += some;
    rank_max = std::max(rank_max, t.rank_max);
  }
  units.clear();
  for (int64_t i = 0; i < g.count; i++) {
    if (g.slots[i] < 0) continue;
    int64_t elements = 0;
    for (int64_t p = 0; p < count; p++) elements += parts[p].table->ranks[g.slots[i]] * (h + parts[p].width);
    for (int64_t row = g.starts[i]; row < g.starts[i + 1]; row += BLOCK) {
      int64_t rows = std::min<int64_t>(BLOCK, g.starts[i + 1] - row);
      units.push_back({row, rows, g.slots[i], elements * (2 + rows)});
    }
  }
  int64_t pitch = (h + 15) / 16 * 16;
  const std::vector<Unit>& todo = units;
  parallel_stretches(todo.size(), work, [&](int64_t i) { return todo[i].cost; }, [&](int64_t unit) {
    const Unit& block = todo[unit];
    float* rows = aligned(scratch(0, BLOCK * pitch + 16));
    float* v = scratch(1, BLOCK * rank_max);
    for (int64_t r = 0; r < block.rows; r++) {
      const T* row = x + (block.row + r) * x_pitch;
      int64_t k = 0;
      for (; k + 16 <= h; k += 16) store(rows + r * pitch + k, load(row + k));
      if (k < h) store(rows + r * pitch + k, load_part(row + k, h - k));
    }
    Ahead& ahead = look_ahead();
    for (int64_t u = unit; u < std::min<int64_t>(unit + 2, todo.size()); u++)
      for (int64_t i = 0; i < count; i++) {
        const Table& t = *parts[i].table;
        const int64_t first = todo[u].slot * t.rank_max, rank = t.ranks[todo[u].slot];
        for (int64_t j = 0; j < rank; j++) ahead.add(arena + t.a[first + j], h * sizeof(T));
        for (int64_t j = 0; j < rank; j++) ahead.add(arena + t.b[first + j], parts[i].width * sizeof(T));
        if (u > unit) break;
      }
    ahead.start();
    for (int64_t i = 0; i < count; i++) {
      const Table& t = *parts[i].table;
      int64_t rank = t.ranks[block.slot], first = block.slot * t.rank_max, width = parts[i].width;
      if (!rank) continue;
      project_block(block.rows, rows, pitch, arena, t.a + first, rank, h, v, rank_max, ahead);
      for (int64_t r = 0; r < block.rows; r++)
        for (int64_t j = 0; j < rank; j++) v[r * rank_max + j] *= t.scalings[block.slot];
      T* y = (T*)parts[i].y + block.row * parts[i].y_pitch;
      add_block(block.rows, v, rank_max, arena, t.b + first, rank, y, parts[i].y_pitch, 0, width, ahead);
    }
  });
  return OK;
}

}  // namespace
