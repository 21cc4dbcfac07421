// The CPU kernels behind octavo_kernels.ops: plain C ABI, no headers but the compiler's own.
//
// Determinism: a result is one chain of fused multiply-adds per lane, in an order that depends on nothing but the
// row's own length, then one fixed tree over the 16 lanes. Blocks of rows, ranks or features only say which chains
// run side by side; threads take whole blocks. So neither neighbours, nor chunking, nor the thread count reach a bit.
//
// Every check of values comes before the first write; a non-zero return is an index into ERRORS in native.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

typedef float v16 __attribute__((vector_size(64)));
typedef uint32_t u16x32 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t bf16;

enum { OK, BAD_GROUPS, BAD_SLOT, BAD_RANK, BAD_OFFSET, BAD_CONTEXT, BAD_TYPE };
enum { BF16 = 0, FP32 = 1 };

struct Table { const int64_t* a; const int64_t* b; const int32_t* ranks; const float* scalings; int64_t slots, rank_max; };
struct Groups { const int32_t* starts; const int32_t* slots; int64_t count; };
struct Kv {
  const int64_t* pages; const int32_t* starts; const int32_t* contexts;
  int64_t sequences, pages_max, page_tokens, heads, dim;
};

inline v16 splat(float x) { return x - v16{}; }

inline v16 fma(v16 a, v16 b, v16 c) {
#ifdef __AVX512F__
  return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

inline v16 load(const float* p) { v16 v; std::memcpy(&v, p, sizeof v); return v; }
inline v16 load(const bf16* p) {
  u16x16 h; std::memcpy(&h, p, sizeof h);
  return (v16)(__builtin_convertvector(h, u16x32) << 16);
}
// The last lanes of a row that is no multiple of 16 long; lanes past the end are zero and never read from memory.
template <class T> inline v16 load_part(const T* p, int64_t n) {
  T lanes[16] = {};
  std::memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

inline void store(float* p, v16 v) { std::memcpy(p, &v, sizeof v); }
// Round to nearest even; NaN stays NaN. The hardware's own conversion would flush subnormal numbers.
inline void store(bf16* p, v16 v) {
  u16x32 bits = (u16x32)v;
  u16x32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  u16x32 quiet = (bits >> 16) | 0x40;
  u16x32 is_nan = (u16x32)(v != v);
  u16x16 h = __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), u16x16);
  std::memcpy(p, &h, sizeof h);
}
template <class T> inline void store_part(T* p, v16 v, int64_t n) {
  T lanes[16];
  store(lanes, v);
  std::memcpy(p, lanes, n * sizeof(T));
}

// Sums of 16 vectors at once, sum of a[i] in lane i: lanes l and l+8 first, then 4, 2, 1 apart.
inline v16 sums(const v16* a) {
  v16 b[8], c[4], d[2];
  for (int i = 0; i < 8; i++)
    b[i] = __builtin_shufflevector(a[i], a[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a[i], a[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    c[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    d[i] = __builtin_shufflevector(c[i], c[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(c[i], c[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return __builtin_shufflevector(d[0], d[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         __builtin_shufflevector(d[0], d[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
inline float sum(v16 a) {
  float x[16];
  std::memcpy(x, &a, sizeof x);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

// e^x for x <= 0, 2 ulp; NaN stays NaN, anything below the least normal result is zero.
inline v16 exp_nonpositive(v16 x) {
  u16x32 tiny = (u16x32)(x < splat(-87.3f));
  v16 shifted = fma(x, splat(1.44269504f), splat(12582912.0f));  // 1.5 * 2^23: the sum's low bits are the integer
  v16 n = shifted - 12582912.0f;
  v16 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  v16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  u16x32 scale = ((u16x32)shifted - 0x4b400000u + 127u) << 23;
  v16 result = p * (v16)scale;
  return (v16)((u16x32)result & ~tiny);
}

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

float* scratch(int which, int64_t floats) {
  static thread_local std::vector<float> buffers[3];
  auto& buffer = buffers[which];
  if ((int64_t)buffer.size() < floats) buffer.resize(floats);
  return buffer.data();
}

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

template <class T, int ROWS, int RANKS>
inline void project(const float* x, int64_t pitch, const T* const* a, int64_t h, float* out, int64_t out_pitch) {
  v16 acc[ROWS][RANKS] = {};
  int64_t k = 0;
  for (; k + 16 <= h; k += 16)
    for (int j = 0; j < RANKS; j++) {
      v16 w = load(a[j] + k);
      for (int r = 0; r < ROWS; r++) acc[r][j] = fma(load(x + r * pitch + k), w, acc[r][j]);
    }
  if (k < h)
    for (int j = 0; j < RANKS; j++) {
      v16 w = load_part(a[j] + k, h - k);
      for (int r = 0; r < ROWS; r++) acc[r][j] = fma(load(x + r * pitch + k), w, acc[r][j]);
    }
  // As many results as there are lanes are summed at once; a lane's sum does not depend on which it is.
  static_assert(ROWS * RANKS <= 16, "sums() takes 16 vectors");
  v16 lanes[16] = {};
  for (int r = 0; r < ROWS; r++)
    for (int j = 0; j < RANKS; j++) lanes[r * RANKS + j] = acc[r][j];
  float totals[16];
  store(totals, sums(lanes));
  for (int r = 0; r < ROWS; r++) std::memcpy(out + r * out_pitch, totals + r * RANKS, RANKS * sizeof(float));
}

template <class T, int ROWS, int RANKS>
inline int64_t project_while(const float* x, int64_t pitch, const T* arena, const int64_t* offsets, int64_t j,
                             int64_t ranks, int64_t h, float* out, int64_t out_pitch) {
  for (; j + RANKS <= ranks; j += RANKS) {
    const T* a[RANKS];
    for (int q = 0; q < RANKS; q++) a[q] = arena + offsets[j + q];
    project<T, ROWS, RANKS>(x, pitch, a, h, out + j, out_pitch);
  }
  return j;
}

template <class T, int ROWS>
void project_ranks(const float* x, int64_t pitch, const T* arena, const int64_t* offsets, int64_t ranks, int64_t h,
                   float* out, int64_t out_pitch) {
  int64_t j = 0;
  if constexpr (ROWS == 1) j = project_while<T, ROWS, 16>(x, pitch, arena, offsets, j, ranks, h, out, out_pitch);
  if constexpr (ROWS == 1) j = project_while<T, ROWS, 8>(x, pitch, arena, offsets, j, ranks, h, out, out_pitch);
  j = project_while<T, ROWS, 4>(x, pitch, arena, offsets, j, ranks, h, out, out_pitch);
  project_while<T, ROWS, 1>(x, pitch, arena, offsets, j, ranks, h, out, out_pitch);
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
    float* rows = scratch(0, BLOCK * pitch);
    for (int64_t r = 0; r < block.rows; r++) {
      const T* row = x + (block.row + r) * x_pitch;
      int64_t k = 0;
      for (; k + 16 <= h; k += 16) store(rows + r * pitch + k, load(row + k));
      if (k < h) store(rows + r * pitch + k, load_part(row + k, h - k));
    }
    const int64_t* offsets = t.a + block.slot * t.rank_max + first;
    float* to = out + block.row * t.rank_max + first;
    if (block.rows == BLOCK)
      project_ranks<T, BLOCK>(rows, pitch, arena, offsets, last - first, h, to, t.rank_max);
    else
      for (int64_t r = 0; r < block.rows; r++)
        project_ranks<T, 1>(rows + r * pitch, pitch, arena, offsets, last - first, h, to + r * t.rank_max, t.rank_max);
  });
  return OK;
}

template <class T, int ROWS, int VECS>
inline void add_products(const float* w, int64_t w_pitch, const T* arena, const int64_t* offsets, int64_t ranks, T* y,
                         int64_t y_pitch, int64_t o) {
  v16 acc[ROWS][VECS] = {};
  for (int64_t j = 0; j < ranks; j++) {
    const T* b = arena + offsets[j] + o;
    for (int q = 0; q < VECS; q++) {
      v16 column = load(b + 16 * q);
      if (ROWS == 1 && q % 2 == 0) __builtin_prefetch(b + 16 * q + 16 * VECS);
      for (int r = 0; r < ROWS; r++) acc[r][q] = fma(splat(w[r * w_pitch + j]), column, acc[r][q]);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int q = 0; q < VECS; q++) {
      T* at = y + r * y_pitch + o + 16 * q;
      store(at, load(at) + acc[r][q]);
    }
}

template <class T, int ROWS>
void add_features(const float* w, int64_t w_pitch, const T* arena, const int64_t* offsets, int64_t ranks, T* y,
                  int64_t y_pitch, int64_t o, int64_t end) {
  constexpr int WIDE = ROWS == 1 ? 8 : 4;
  for (; o + 16 * WIDE <= end; o += 16 * WIDE) add_products<T, ROWS, WIDE>(w, w_pitch, arena, offsets, ranks, y, y_pitch, o);
  for (; o + 16 <= end; o += 16) add_products<T, ROWS, 1>(w, w_pitch, arena, offsets, ranks, y, y_pitch, o);
  if (o == end) return;
  for (int r = 0; r < ROWS; r++) {
    v16 acc = {};
    for (int64_t j = 0; j < ranks; j++)
      acc = fma(splat(w[r * w_pitch + j]), load_part(arena + offsets[j] + o, end - o), acc);
    T* at = y + r * y_pitch + o;
    store_part(at, load_part(at, end - o) + acc, end - o);
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
    T* to = y + block.row * y_pitch;
    if (block.rows == BLOCK)
      add_features<T, BLOCK>(w, t.rank_max, arena, offsets, block.rank, to, y_pitch, first, last);
    else
      for (int64_t r = 0; r < block.rows; r++)
        add_features<T, 1>(w + r * t.rank_max, t.rank_max, arena, offsets, block.rank, to + r * y_pitch, y_pitch, first, last);
  });
  return OK;
}

struct Part { const Table* table; void* y; int64_t y_pitch, width; };

// shrink and expand of several modules that read the same x, block of rows by block of rows: x is widened once, the
// rank values never leave the cache, and there is one parallel region instead of two for each module.
template <class T>
int adapt(const T* x, int64_t x_pitch, const T* arena, int64_t arena_len, const Groups& g, const Part* parts,
          int64_t count, int64_t n, int64_t h) {
  static thread_local std::vector<Block> blocks, rows_of;
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
  rows_of.clear();
  for (int64_t i = 0; i < g.count; i++) {
    if (g.slots[i] < 0) continue;
    for (int64_t row = g.starts[i]; row < g.starts[i + 1]; row += BLOCK)
      rows_of.push_back({row, std::min<int64_t>(BLOCK, g.starts[i + 1] - row), g.slots[i], 0});
  }
  int64_t pitch = (h + 15) / 16 * 16;
  const std::vector<Block>& todo = rows_of;
  parallel(todo.size(), work, [&](int64_t unit) {
    const Block& block = todo[unit];
    float* rows = scratch(0, BLOCK * pitch);
    float* v = scratch(1, BLOCK * rank_max);
    for (int64_t r = 0; r < block.rows; r++) {
      const T* row = x + (block.row + r) * x_pitch;
      int64_t k = 0;
      for (; k + 16 <= h; k += 16) store(rows + r * pitch + k, load(row + k));
      if (k < h) store(rows + r * pitch + k, load_part(row + k, h - k));
    }
    for (int64_t i = 0; i < count; i++) {
      const Table& t = *parts[i].table;
      int64_t rank = t.ranks[block.slot], first = block.slot * t.rank_max, width = parts[i].width;
      if (!rank) continue;
      if (block.rows == BLOCK)
        project_ranks<T, BLOCK>(rows, pitch, arena, t.a + first, rank, h, v, rank_max);
      else
        for (int64_t r = 0; r < block.rows; r++)
          project_ranks<T, 1>(rows + r * pitch, pitch, arena, t.a + first, rank, h, v + r * rank_max, rank_max);
      for (int64_t r = 0; r < block.rows; r++)
        for (int64_t j = 0; j < rank; j++) v[r * rank_max + j] *= t.scalings[block.slot];
      T* y = (T*)parts[i].y + block.row * parts[i].y_pitch;
      if (block.rows == BLOCK)
        add_features<T, BLOCK>(v, rank_max, arena, t.b + first, rank, y, parts[i].y_pitch, 0, width);
      else
        for (int64_t r = 0; r < block.rows; r++)
          add_features<T, 1>(v + r * rank_max, rank_max, arena, t.b + first, rank, y + r * parts[i].y_pitch,
                             parts[i].y_pitch, 0, width);
    }
  });
  return OK;
}

constexpr int64_t SPAN = 64;  // keys per block, aligned to absolute positions so that chunking cannot move them

struct Head { v16 total; float largest; };  // running softmax of one query row and head
struct Query { int64_t sequence, row, rows, head; };  // rows of one sequence that share one pass over a key head

// Adds V rows [begin, end) of the block, weighted, to the accumulators of HEADS query heads.
template <int HEADS>
inline void add_values(float* acc, int64_t pitch, const float* p, const float* values, int64_t begin, int64_t end,
                       const float* decay) {
  for (int64_t d = 0; d < pitch; d += 64) {
    v16 sum[HEADS][4];
    for (int h = 0; h < HEADS; h++)
      for (int q = 0; q < 4; q++) sum[h][q] = load(acc + h * pitch + d + 16 * q) * decay[h];
    for (int64_t t = begin; t < end; t++)
      for (int q = 0; q < 4; q++) {
        v16 value = load(values + t * pitch + d + 16 * q);
        for (int h = 0; h < HEADS; h++) sum[h][q] = fma(splat(p[h * SPAN + t]), value, sum[h][q]);
      }
    for (int h = 0; h < HEADS; h++)
      for (int q = 0; q < 4; q++) store(acc + h * pitch + d + 16 * q, sum[h][q]);
  }
}

// Scores of one query head against keys [begin, end) of the block; others become minus infinity, then weights.
inline float weigh(const float* q, const float* keys, int64_t pitch, int64_t begin, int64_t end, float scaling,
                   float softcap, Head& head, float* p) {
  float largest = head.largest;
  for (int64_t t = 0; t < SPAN; t += 16) {
    if (t + 16 <= begin || t >= end) {
      store(p + t, splat(-INFINITY));
      continue;
    }
    v16 acc[16] = {};
    for (int64_t d = 0; d < pitch; d += 16) {
      v16 x = load(q + d);
      for (int i = 0; i < 16; i++) acc[i] = fma(x, load(keys + (t + i) * pitch + d), acc[i]);
    }
    store(p + t, sums(acc) * scaling);
    for (int64_t i = t; i < t + 16; i++) {
      if (i < begin || i >= end) p[i] = -INFINITY;
      else if (softcap > 0) p[i] = softcap * std::tanh(p[i] / softcap);
      largest = p[i] > largest ? p[i] : largest;
    }
  }
  float base = largest == -INFINITY ? 0.0f : largest;
  float decay = exp_nonpositive(splat(head.largest - base))[0];
  head.total = head.total * decay;
  for (int64_t t = 0; t < SPAN; t += 16) {
    v16 weights = exp_nonpositive(load(p + t) - base);
    store(p + t, weights);
    head.total += weights;
  }
  head.largest = largest;
  return decay;
}

template <class T> void widen(const T* from, float* to, int64_t dim) {
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) store(to + d, load(from + d));
  if (d < dim) store(to + d, load_part(from + d, dim - d));
}

struct Attend { int64_t layer_offset, heads, window; float scaling, softcap; const float* sinks; };

template <class T>
void attend(const T* q, int64_t q_row, int64_t q_head, const T* arena, const Kv& kv, const Attend& at, T* out,
            int64_t out_row, int64_t out_head, const Query& query) {
  int64_t repeat = at.heads / kv.heads, lanes = query.rows * repeat, pitch = (kv.dim + 63) / 64 * 64;
  int64_t b = query.sequence, position = kv.contexts[b] - kv.starts[b + 1] + query.row;
  float* block = scratch(0, 2 * SPAN * pitch);
  float* keys = block;
  float* values = block + SPAN * pitch;
  float* state = scratch(1, 2 * lanes * pitch + repeat * (SPAN + 1));
  float* queries = state;
  float* acc = state + lanes * pitch;
  float* weights = acc + lanes * pitch;
  float* decays = weights + repeat * SPAN;
  std::memset(block, 0, 2 * SPAN * pitch * sizeof(float));
  std::memset(state, 0, 2 * lanes * pitch * sizeof(float));
  static thread_local std::vector<Head> heads;
  heads.assign(lanes, Head{v16{}, -INFINITY});
  for (int64_t lane = 0; lane < lanes; lane++) {
    int64_t row = query.row + lane / repeat, head = query.head * repeat + lane % repeat;
    widen(q + row * q_row + head * q_head, queries + lane * pitch, kv.dim);
    if (at.sinks) {
      heads[lane].total[0] = 1.0f;
      heads[lane].largest = at.sinks[head];
    }
  }
  int64_t seen_first = at.window ? std::max<int64_t>(0, position - at.window + 1) : 0, seen_end = position + query.rows;
  int64_t plane = kv.page_tokens * kv.dim;
  for (int64_t base = seen_first / SPAN * SPAN; base < seen_end; base += SPAN) {
    for (int64_t t = std::max(base, seen_first); t < std::min(base + SPAN, seen_end); t++) {
      const T* key = arena + kv.pages[b * kv.pages_max + t / kv.page_tokens] + at.layer_offset + query.head * plane +
                     t % kv.page_tokens * kv.dim;
      widen(key, keys + (t - base) * pitch, kv.dim);
      widen(key + kv.heads * plane, values + (t - base) * pitch, kv.dim);
    }
    for (int64_t r = 0; r < query.rows; r++) {
      int64_t first = at.window ? std::max<int64_t>(0, position + r - at.window + 1) : 0;
      int64_t begin = std::max<int64_t>(0, first - base), end = std::min(SPAN, position + r + 1 - base);
      if (begin >= end) continue;
      for (int64_t h = 0; h < repeat; h++)
        decays[h] = weigh(queries + (r * repeat + h) * pitch, keys, pitch, begin, end, at.scaling, at.softcap,
                          heads[r * repeat + h], weights + h * SPAN);
      float* rows = acc + r * repeat * pitch;
      int64_t h = 0;
      for (; h + 4 <= repeat; h += 4) add_values<4>(rows + h * pitch, pitch, weights + h * SPAN, values, begin, end, decays + h);
      if (repeat - h == 3) add_values<3>(rows + h * pitch, pitch, weights + h * SPAN, values, begin, end, decays + h);
      if (repeat - h == 2) add_values<2>(rows + h * pitch, pitch, weights + h * SPAN, values, begin, end, decays + h);
      if (repeat - h == 1) add_values<1>(rows + h * pitch, pitch, weights + h * SPAN, values, begin, end, decays + h);
    }
  }
  for (int64_t lane = 0; lane < lanes; lane++) {
    T* to = out + (query.row + lane / repeat) * out_row + (query.head * repeat + lane % repeat) * out_head;
    float inverse = 1.0f / sum(heads[lane].total);
    for (int64_t d = 0; d < kv.dim; d += 16)
      store_part(to + d, load(acc + lane * pitch + d) * inverse, std::min<int64_t>(16, kv.dim - d));
  }
}

template <class T>
int paged_attention(const T* q, int64_t q_row, int64_t q_head, const T* arena, int64_t arena_len, const Kv& kv,
                    const Attend& at, T* out, int64_t out_row, int64_t out_head, int64_t n) {
  static thread_local std::vector<Query> plan;
  plan.clear();
  int64_t repeat = at.heads / kv.heads, rows_max = std::max<int64_t>(1, 48 / repeat), work = 0;
  int64_t last_element = at.layer_offset + 2 * kv.heads * kv.page_tokens * kv.dim;
  if (kv.starts[0] != 0 || kv.starts[kv.sequences] != n || at.layer_offset < 0) return BAD_GROUPS;
  for (int64_t b = 0; b < kv.sequences; b++) {
    int64_t begin = kv.starts[b], end = kv.starts[b + 1], context = kv.contexts[b];
    if (end < begin || end > n) return BAD_GROUPS;
    if (context < end - begin || context > kv.pages_max * kv.page_tokens) return BAD_CONTEXT;
    if (begin == end) continue;
    int64_t first = at.window ? std::max<int64_t>(0, context - (end - begin) - at.window + 1) : 0;
    for (int64_t page = first / kv.page_tokens; page * kv.page_tokens < context; page++) {
      int64_t offset = kv.pages[b * kv.pages_max + page];
      if (offset < 0 || offset > arena_len - last_element) return BAD_OFFSET;
    }
    for (int64_t row = begin; row < end; row += rows_max)
      for (int64_t head = 0; head < kv.heads; head++) plan.push_back({b, row, std::min(rows_max, end - row), head});
    work += (end - begin) * (context - first) * at.heads * kv.dim;
  }
  const std::vector<Query>& todo = plan;
  parallel(todo.size(), work, [&](int64_t i) {
    attend(q, q_row, q_head, arena, kv, at, out, out_row, out_head, todo[i]);
  });
  return OK;
}

}  // namespace

extern "C" {

int octavo_shrink(int type, const void* x, int64_t x_pitch, const void* arena, int64_t arena_len, const Table* table,
                  const Groups* groups, float* out, int64_t n, int64_t h) {
  if (type == BF16) return shrink((const bf16*)x, x_pitch, (const bf16*)arena, arena_len, *table, *groups, out, n, h);
  if (type == FP32) return shrink((const float*)x, x_pitch, (const float*)arena, arena_len, *table, *groups, out, n, h);
  return BAD_TYPE;
}

int octavo_expand(int type, const float* v, const void* arena, int64_t arena_len, const Table* table,
                  const Groups* groups, void* y, int64_t y_pitch, int64_t n, int64_t width) {
  if (type == BF16) return expand(v, (const bf16*)arena, arena_len, *table, *groups, (bf16*)y, y_pitch, n, width);
  if (type == FP32) return expand(v, (const float*)arena, arena_len, *table, *groups, (float*)y, y_pitch, n, width);
  return BAD_TYPE;
}

int octavo_adapt(int type, const void* x, int64_t x_pitch, const void* arena, int64_t arena_len, const Groups* groups,
                 const Part* parts, int64_t count, int64_t n, int64_t h) {
  if (type == BF16) return adapt((const bf16*)x, x_pitch, (const bf16*)arena, arena_len, *groups, parts, count, n, h);
  if (type == FP32) return adapt((const float*)x, x_pitch, (const float*)arena, arena_len, *groups, parts, count, n, h);
  return BAD_TYPE;
}

// Copies bytes, so it serves every dtype; pitches are in elements.
int octavo_write_kv(int64_t element_bytes, char* arena, int64_t arena_len, const char* k, int64_t k_row, int64_t k_head,
                    const char* v, int64_t v_row, int64_t v_head, const int64_t* offsets, int64_t layer_offset,
                    int64_t page_tokens, int64_t n, int64_t heads, int64_t dim) {
  int64_t plane = page_tokens * dim, values = heads * plane;
  int64_t last = layer_offset + values + (heads - 1) * plane + dim;
  for (int64_t i = 0; i < n; i++)
    if (layer_offset < 0 || offsets[i] < 0 || offsets[i] > arena_len - last) return BAD_OFFSET;
  for (int64_t i = 0; i < n; i++)
    for (int64_t head = 0; head < heads; head++) {
      char* to = arena + (offsets[i] + layer_offset + head * plane) * element_bytes;
      std::memcpy(to, k + (i * k_row + head * k_head) * element_bytes, dim * element_bytes);
      std::memcpy(to + values * element_bytes, v + (i * v_row + head * v_head) * element_bytes, dim * element_bytes);
    }
  return OK;
}

int octavo_paged_attention(int type, const void* q, int64_t q_row, int64_t q_head, const void* arena, int64_t arena_len,
                           const Kv* kv, int64_t layer_offset, void* out, int64_t out_row, int64_t out_head, int64_t n,
                           int64_t heads, float scaling, int64_t window, float softcap, const float* sinks) {
  Attend at{layer_offset, heads, window, scaling, softcap, sinks};
  if (type == BF16)
    return paged_attention((const bf16*)q, q_row, q_head, (const bf16*)arena, arena_len, *kv, at, (bf16*)out, out_row, out_head, n);
  if (type == FP32)
    return paged_attention((const float*)q, q_row, q_head, (const float*)arena, arena_len, *kv, at, (float*)out, out_row, out_head, n);
  return BAD_TYPE;
}

int octavo_num_threads() { return (int)num_threads(); }
}
