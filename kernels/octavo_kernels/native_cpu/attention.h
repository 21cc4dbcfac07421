// Attention over the pages of each sequence, and writing keys and values into them.
#pragma once

#include <algorithm>

#include "ahead.h"
#include "lanes.h"
#include "status.h"
#include "threads.h"

namespace {

struct Kv {
  const int64_t* pages; const int32_t* starts; const int32_t* contexts;
  int64_t sequences, pages_max, page_tokens, heads, dim;
};

constexpr int64_t FEW_ROWS = 2;
constexpr int64_t SPAN = 64;  // keys per block, aligned to absolute positions so that chunking cannot move them

struct Query { int64_t sequence, row, rows, head; };  // rows of one sequence that share one pass over a key head
struct Attend { int64_t layer_offset, heads, window; float scaling, softcap; const float* sinks; };

// Up to four query heads of one row go over the keys together. Their scores lie in lanes [keys][STRIDE heads].
constexpr int stride_of(int heads) { return heads == 3 ? 4 : heads; }
struct Softmax { v16 total, largest; };  // running, per lane; largest is the same in all lanes of a head

inline v16 larger(v16 a, v16 b) {
  u16x32 is_a = (u16x32)(a > b);  // a number that is none is not larger: it shows in the total
  return (v16)(((u16x32)a & is_a) | ((u16x32)b & ~is_a));
}
template <int BY> inline v16 turned(v16 a) {
  return __builtin_shufflevector(a, a, (0 + BY) % 16, (1 + BY) % 16, (2 + BY) % 16, (3 + BY) % 16, (4 + BY) % 16,
                                 (5 + BY) % 16, (6 + BY) % 16, (7 + BY) % 16, (8 + BY) % 16, (9 + BY) % 16,
                                 (10 + BY) % 16, (11 + BY) % 16, (12 + BY) % 16, (13 + BY) % 16, (14 + BY) % 16,
                                 (15 + BY) % 16);
}
// Combines all lanes of each head, in one fixed order; every lane of the head gets the result.
template <int STRIDE, class F> inline v16 over_keys(v16 a, F combine) {
  a = combine(a, turned<8>(a));
  a = combine(a, turned<4>(a));
  if constexpr (STRIDE <= 2) a = combine(a, turned<2>(a));
  if constexpr (STRIDE <= 1) a = combine(a, turned<1>(a));
  return a;
}

// Weighs keys [begin, end) of a block for HEADS heads: p [SPAN][STRIDE] gets weights, `state` is brought up to date.
// Returns by how much what was summed before must shrink, per lane. What `ahead` holds, if there is any, is asked for at
// the pace at which keys and values are read.
template <class K, int HEADS>
inline v16 weigh(const float* q, int64_t pitch, const K* const* keys, int64_t begin, int64_t end, const Attend& at,
                 Softmax& state, float* p, Ahead* ahead) {
  constexpr int STRIDE = stride_of(HEADS), KEYS = 16 / STRIDE;
  v16 largest = state.largest;
  int64_t first = begin / KEYS * KEYS;
  for (int64_t t = first; t < end; t += KEYS) {
    if constexpr (sizeof(K) < sizeof(float)) {  // widened ones are near already
      if (ahead) ahead->lines((int)(2 * KEYS * pitch * sizeof(K) / 64));
    }
    v16 acc[16] = {};
    for (int64_t d = 0; d < pitch; d += 16)
      for (int i = 0; i < KEYS; i++) {
        v16 key = load(keys[t + i] + d);
        for (int h = 0; h < HEADS; h++) acc[i * STRIDE + h] = fma(load(q + h * pitch + d), key, acc[i * STRIDE + h]);
      }
    v16 scores = sums(acc) * at.scaling;
    if (at.softcap > 0 || t < begin || t + KEYS > end) {
      float lanes[16];
      store(lanes, scores);
      for (int i = 0; i < 16; i++) {
        int64_t key = t + i / STRIDE;
        if (key < begin || key >= end) lanes[i] = -INFINITY;
        else if (at.softcap > 0) lanes[i] = at.softcap * std::tanh(lanes[i] / at.softcap);
      }
      scores = load(lanes);
    }
    store(p + t * STRIDE, scores);
    largest = larger(scores, largest);
  }
  largest = over_keys<STRIDE>(largest, larger);
  v16 base = (v16)((u16x32)largest & (u16x32)(largest > splat(-INFINITY)));
  v16 decay = exp_nonpositive(state.largest - base);
  v16 total = state.total * decay;
  for (int64_t t = first; t < end; t += KEYS) {
    v16 weights = exp_nonpositive(load(p + t * STRIDE) - base);
    store(p + t * STRIDE, weights);
    total += weights;
  }
  state = {total, largest};
  return decay;
}

template <class K, int HEADS, int VECS>
inline void add_columns(float* acc, int64_t pitch, const float* p, const K* const* values, int64_t begin, int64_t end,
                        const float* decay, int64_t d) {
  constexpr int STRIDE = stride_of(HEADS);
  v16 sum[HEADS][VECS];
  for (int h = 0; h < HEADS; h++)
    for (int q = 0; q < VECS; q++) sum[h][q] = load(acc + h * pitch + d + 16 * q) * decay[h];
  for (int64_t t = begin; t < end; t++)
    for (int q = 0; q < VECS; q++) {
      v16 value = load(values[t] + d + 16 * q);
      for (int h = 0; h < HEADS; h++) sum[h][q] = fma(splat(p[t * STRIDE + h]), value, sum[h][q]);
    }
  for (int h = 0; h < HEADS; h++)
    for (int q = 0; q < VECS; q++) store(acc + h * pitch + d + 16 * q, sum[h][q]);
}

// Goes over keys and values [begin, end) of a block for HEADS heads of one row, whose accumulators are `acc`.
template <class K, int HEADS>
void see(const float* q, float* acc, int64_t pitch, const K* const* keys, const K* const* values, int64_t begin,
         int64_t end, const Attend& at, Softmax& state, Ahead* ahead) {
  float p[SPAN * stride_of(HEADS)], decay[16];
  store(decay, weigh<K, HEADS>(q, pitch, keys, begin, end, at, state, p, ahead));
  int64_t d = 0;
  for (; d + 64 <= pitch; d += 64) add_columns<K, HEADS, 4>(acc, pitch, p, values, begin, end, decay, d);
  for (; d < pitch; d += 16) add_columns<K, HEADS, 1>(acc, pitch, p, values, begin, end, decay, d);
}

template <class K>
void see_heads(int64_t heads, const float* q, float* acc, int64_t pitch, const K* const* keys, const K* const* values,
               int64_t begin, int64_t end, const Attend& at, Softmax* states, Ahead* ahead) {
  for (int64_t h = 0; h < heads; h += 4, states++, ahead = nullptr) {
    const float* own = q + h * pitch;
    float* to = acc + h * pitch;
    switch (std::min<int64_t>(4, heads - h)) {
      case 4: see<K, 4>(own, to, pitch, keys, values, begin, end, at, *states, ahead); break;
      case 3: see<K, 3>(own, to, pitch, keys, values, begin, end, at, *states, ahead); break;
      case 2: see<K, 2>(own, to, pitch, keys, values, begin, end, at, *states, ahead); break;
      default: see<K, 1>(own, to, pitch, keys, values, begin, end, at, *states, ahead);
    }
  }
}

inline void finish_heads(int64_t heads, Softmax* states, float* totals) {
  auto add = [](v16 a, v16 b) { return a + b; };
  for (int64_t h = 0; h < heads; h += 4, states++) {
    int64_t some = std::min<int64_t>(4, heads - h);
    v16 total = some > 2 ? over_keys<4>(states->total, add) : some == 2 ? over_keys<2>(states->total, add)
                                                                        : over_keys<1>(states->total, add);
    float lanes[16];
    store(lanes, total);
    for (int64_t i = 0; i < some; i++) totals[h + i] = lanes[i];
  }
}

// The tokens that the rows of a query see between them.
struct Seen { int64_t first, end; };
inline Seen seen_by(const Query& query, const Kv& kv, const Attend& at) {
  int64_t b = query.sequence, position = kv.contexts[b] - kv.starts[b + 1] + query.row;
  return {at.window ? std::max<int64_t>(0, position - at.window + 1) : 0, position + query.rows};
}

template <class T> void widen(const T* from, float* to, int64_t dim) {
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) store(to + d, load(from + d));
  if (d < dim) store(to + d, load_part(from + d, dim - d));
}

template <class T>
void attend(const T* q, int64_t q_row, int64_t q_head, const T* arena, const Kv& kv, const Attend& at, T* out,
            int64_t out_row, int64_t out_head, const Query& query, Ahead* ahead) {
  int64_t repeat = at.heads / kv.heads, quads = (repeat + 3) / 4, lanes = query.rows * repeat;
  int64_t pitch = (kv.dim + 15) / 16 * 16;
  int64_t b = query.sequence, position = kv.contexts[b] - kv.starts[b + 1] + query.row;
  // Few rows read keys where they lie; for many it pays to widen them once. The sums are the same either way.
  bool is_widened = pitch != kv.dim || (sizeof(T) < sizeof(float) && query.rows > FEW_ROWS);
  float* state = scratch(0, 2 * lanes * pitch + lanes);
  float* queries = state;
  float* acc = state + lanes * pitch;
  float* totals = acc + lanes * pitch;
  float* wide = is_widened ? scratch(1, 2 * SPAN * pitch) : nullptr;
  Softmax* softmax = (Softmax*)aligned(scratch(2, query.rows * quads * sizeof(Softmax) / sizeof(float) + 16));
  std::memset(acc, 0, lanes * pitch * sizeof(float));
  for (int64_t i = 0; i < query.rows * quads; i++) softmax[i] = {v16{}, splat(-INFINITY)};
  for (int64_t lane = 0; lane < lanes; lane++) {
    int64_t row = query.row + lane / repeat, own = lane % repeat, head = query.head * repeat + own;
    widen(q + row * q_row + head * q_head, queries + lane * pitch, kv.dim);
    if (!at.sinks) continue;
    Softmax& quad = softmax[lane / repeat * quads + own / 4];
    int64_t stride = stride_of(std::min<int64_t>(4, repeat - own / 4 * 4));
    quad.total[own % 4] = 1.0f;
    for (int64_t i = own % 4; i < 16; i += stride) quad.largest[i] = at.sinks[head];
  }
  auto [seen_first, seen_end] = seen_by(query, kv, at);
  int64_t plane = kv.page_tokens * kv.dim;
  const T* keys[SPAN];
  const T* values[SPAN];
  const float* wide_keys[SPAN];
  const float* wide_values[SPAN];
  for (int64_t base = seen_first / SPAN * SPAN; base < seen_end; base += SPAN) {
    int64_t from = std::max<int64_t>(0, seen_first - base), to = std::min(SPAN, seen_end - base);
    for (int64_t t = from; t < to;) {
      int64_t page = (base + t) / kv.page_tokens, slot = base + t - page * kv.page_tokens;
      int64_t until = std::min(to, t + kv.page_tokens - slot);
      const T* key = arena + kv.pages[b * kv.pages_max + page] + at.layer_offset + query.head * plane + slot * kv.dim;
      for (; t < until; t++, key += kv.dim) {
        keys[t] = key;
        values[t] = key + kv.heads * plane;
        if (ahead) continue;
        for (int64_t byte = 0; byte < (int64_t)(kv.dim * sizeof(T)); byte += 64) {
          __builtin_prefetch((const char*)keys[t] + byte);
          __builtin_prefetch((const char*)values[t] + byte);
        }
      }
    }
    // Keys are taken several at a time; those that nobody sees must be readable, and are masked.
    for (int64_t t = 0; t < SPAN; t++)
      if (t < from || t >= to) keys[t] = keys[from];
    if (is_widened)
      for (int64_t t = 0; t < SPAN; t++) {
        wide_keys[t] = wide + (t < from || t >= to ? from : t) * pitch;
        wide_values[t] = wide_keys[t] + SPAN * pitch;
        if (t < from || t >= to) continue;
        if (ahead) ahead->lines((int)(2 * kv.dim * sizeof(T) / 64));
        widen(keys[t], wide + t * pitch, kv.dim);
        widen(values[t], wide + (SPAN + t) * pitch, kv.dim);
      }
    for (int64_t r = 0; r < query.rows; r++) {
      int64_t first = at.window ? std::max<int64_t>(0, position + r - at.window + 1) : 0;
      int64_t begin = std::max<int64_t>(0, first - base), end = std::min(SPAN, position + r + 1 - base);
      if (begin >= end) continue;
      const float* own = queries + r * repeat * pitch;
      float* sums = acc + r * repeat * pitch;
      if (is_widened)
        see_heads(repeat, own, sums, pitch, wide_keys, wide_values, begin, end, at, softmax + r * quads, nullptr);
      else
        see_heads(repeat, own, sums, pitch, keys, values, begin, end, at, softmax + r * quads, r ? nullptr : ahead);
    }
  }
  for (int64_t r = 0; r < query.rows; r++) finish_heads(repeat, softmax + r * quads, totals + r * repeat);
  for (int64_t lane = 0; lane < lanes; lane++) {
    T* to = out + (query.row + lane / repeat) * out_row + (query.head * repeat + lane % repeat) * out_head;
    float inverse = 1.0f / totals[lane];
    for (int64_t d = 0; d < kv.dim; d += 16)
      store_part(to + d, load(acc + lane * pitch + d) * inverse, std::min<int64_t>(16, kv.dim - d));
  }
}

// Adds the keys and values that a query sees, page by page, to what is asked for ahead.
template <class T> void add_seen(const T* arena, const Kv& kv, const Attend& at, const Query& query, Ahead& ahead) {
  auto [t, end] = seen_by(query, kv, at);
  int64_t plane = kv.page_tokens * kv.dim;
  while (t < end) {
    int64_t page = t / kv.page_tokens, slot = t % kv.page_tokens, some = std::min(end - t, kv.page_tokens - slot);
    const T* key = arena + kv.pages[query.sequence * kv.pages_max + page] + at.layer_offset + query.head * plane + slot * kv.dim;
    ahead.add(key, some * kv.dim * sizeof(T));
    ahead.add(key + kv.heads * plane, some * kv.dim * sizeof(T));
    t += some;
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
  bool is_decode = sizeof(T) < sizeof(float) && std::all_of(todo.begin(), todo.end(), [](const Query& query) { return query.rows <= FEW_ROWS; });
  auto attend_one = [&](int64_t i, Ahead* ahead) {
    attend(q, q_row, q_head, arena, kv, at, out, out_row, out_head, todo[i], ahead);
  };
  // Prompts are bound by multiplying, and their rows cost very unlike: whichever thread is free takes the next.
  if (!is_decode) {
    parallel(todo.size(), work, [&](int64_t i) { attend_one(i, nullptr); });
    return OK;
  }
  auto cost = [&](int64_t i) {
    auto [first, seen_end] = seen_by(todo[i], kv, at);
    return todo[i].rows * (seen_end - first);
  };
  // Decodes are bound by reading: each thread knows what it reads next.
  parallel_stretches(todo.size(), work, cost, [&](int64_t i) {
    Ahead& ahead = look_ahead();
    for (int64_t u = i; u < std::min<int64_t>(i + 2, todo.size()); u++) add_seen(arena, kv, at, todo[u], ahead);
    ahead.start();
    attend_one(i, &ahead);
  });
  return OK;
}

// Copies bytes, so it serves every dtype; pitches are in elements.
inline int write_kv(int64_t element_bytes, char* arena, int64_t arena_len, const char* k, int64_t k_row, int64_t k_head,
                    const char* v, int64_t v_row, int64_t v_head, const int64_t* offsets, int64_t layer_offset,
                    int64_t page_tokens, int64_t n, int64_t heads, int64_t dim) {
  int64_t plane = page_tokens * dim, values = heads * plane;
  int64_t last = layer_offset + values + (heads - 1) * plane + dim;
  for (int64_t i = 0; i < n; i++)
    if (layer_offset < 0 || offsets[i] < 0 || offsets[i] > arena_len - last) return BAD_OFFSET;
  // A few copies are not worth calling other threads; in a team each takes the rows that each_row gives it.
  int64_t begin = first_of(n, team().own, team().size), end = first_of(n, team().own + 1, team().size);
  for (int64_t i = begin; i < end; i++)
    for (int64_t head = 0; head < heads; head++) {
      char* to = arena + (offsets[i] + layer_offset + head * plane) * element_bytes;
      std::memcpy(to, k + (i * k_row + head * k_head) * element_bytes, dim * element_bytes);
      std::memcpy(to + values * element_bytes, v + (i * v_row + head * v_head) * element_bytes, dim * element_bytes);
    }
  return OK;
}

}  // namespace
