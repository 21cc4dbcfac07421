// What a decoder does between its products: root mean square norms, gated activations, rotary embedding.
//
// Values are rounded to T wherever the model's own code would write a tensor of T, so that in bf16 the rounding is
// that of the code replaced.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "status.h"
#include "threads.h"

namespace {

constexpr int64_t ROWS_AT_ONCE = 8;  // rows that one thread takes at a time
// One thread does this many elements sooner than two have met; and meeting is what costs where cores are shared.
constexpr int64_t SERIAL_ELEMENTS = 3 << 14;

// As stored and loaded again, but for a number that is none: it stays one.
template <class T> inline v16 rounded(v16 x) { return x; }
template <> inline v16 rounded<bf16>(v16 x) {
  u16x32 bits = (u16x32)x, is_none = (u16x32)(x != x);
  u16x32 nearest = bits + 0x7fff + ((bits >> 16) & 1);
  return (v16)(((nearest & ~is_none) | ((bits | 0x400000) & is_none)) & 0xffff0000);
}

// Calls run(k, lanes) for each 16 of n lanes; the last may be fewer.
template <class F> inline void each_lanes(int64_t n, F run) {
  for (int64_t k = 0; k < n; k += 16) run(k, std::min<int64_t>(16, n - k));
}
template <class T> inline v16 load_some(const T* p, int64_t n) { return n == 16 ? load(p) : load_part(p, n); }
template <class T> inline void store_some(T* p, v16 v, int64_t n) { n == 16 ? store(p, v) : store_part(p, v, n); }

// In a team each thread always takes the same rows, and they do not meet behind it: meet() comes before rows of others are
// read.
template <class F> void each_row(int64_t n, int64_t width, F run) {
  if (team().size > 1) {
    int64_t size = team().size, own = team().own;
    for (int64_t i = first_of(n, own, size); i < first_of(n, own + 1, size); i++) run(i);
    return;
  }
  int64_t work = n * width >= SERIAL_ELEMENTS ? n * width : 0;
  parallel((n + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, work, [&](int64_t block) {
    for (int64_t i = block * ROWS_AT_ONCE; i < std::min(n, (block + 1) * ROWS_AT_ONCE); i++) run(i);
  });
}

// Where a norm rounds, and whether its weight is an offset from one. As NormForm in pointwise.py.
enum NormForm { ROUND_THEN_SCALE, SCALE_THEN_ROUND, SCALE_BY_ONE_PLUS };

template <class T>
void rms_norm(const T* x, int64_t x_pitch, const T* weight, float eps, int form, T* out, int64_t n, int64_t h) {
  each_row(n, h, [&](int64_t i) {
    const T* row = x + i * x_pitch;
    T* to = out + i * h;
    v16 squares[4] = {};
    each_lanes(h, [&](int64_t k, int64_t m) {
      v16 v = load_some(row + k, m);
      squares[k / 16 % 4] = fma(v, v, squares[k / 16 % 4]);
    });
    float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / h;
    v16 scale = splat(1.0f / std::sqrt(mean + eps));
    each_lanes(h, [&](int64_t k, int64_t m) {
      v16 v = load_some(row + k, m) * scale, w = load_some(weight + k, m);
      if (form == ROUND_THEN_SCALE) v = rounded<T>(v);
      if (form == SCALE_BY_ONE_PLUS) w = w + 1.0f;
      store_some(to + k, v * w, m);
    });
  });
}

// As Activation in pointwise.py.
enum Activation { SILU, GELU_TANH };

inline v16 either(v16 condition_below_zero, v16 below, v16 otherwise) {
  u16x32 is_below = (u16x32)(condition_below_zero < v16{});
  return (v16)(((u16x32)below & is_below) | ((u16x32)otherwise & ~is_below));
}
inline v16 magnitude(v16 x) { return (v16)((u16x32)x & 0x7fffffffu); }

inline v16 sigmoid(v16 x) {
  v16 e = exp_nonpositive(-magnitude(x));
  return either(x, e, splat(1.0f)) / (e + 1.0f);
}

template <class T>
void gate(int activation, const T* gates, int64_t gate_pitch, const T* up, int64_t up_pitch, T* out, int64_t n,
          int64_t width) {
  each_row(n, width, [&](int64_t i) {
    each_lanes(width, [&](int64_t k, int64_t m) {
      v16 x = load_some(gates + i * gate_pitch + k, m);
      v16 y;
      if (activation == SILU) {
        y = x * sigmoid(x);
      } else {
        // 0.5 (1 + tanh u) is the sigmoid of 2u.
        v16 u = (x + splat(0.044715f) * x * x * x) * splat(0.7978845608f);
        y = x * sigmoid(u + u);
      }
      store_some(out + i * width + k, rounded<T>(y) * load_some(up + i * up_pitch + k, m), m);
    });
  });
}

// Which elements rows may have: bits of_row[i] of the masks, all elements where that is negative or nobody asked.
struct Allowed {
  const uint32_t* masks;
  int64_t words;
  const int64_t* of_row;
  const uint32_t* mask(int64_t i) const { return of_row && of_row[i] >= 0 ? masks + of_row[i] * words : nullptr; }
  // The bits of elements k to k + 15, k a multiple of 16; what a mask has no bit for is not allowed.
  uint32_t sixteen(const uint32_t* mask, int64_t k) const {
    if (!mask) return 0xffff;
    return k / 32 < words ? mask[k / 32] >> k % 32 & 0xffff : 0;
  }
};

inline v16 only(uint32_t bits, v16 v) {
#ifdef __AVX512F__
  return (v16)_mm512_mask_blend_ps((__mmask16)bits, _mm512_set1_ps(-INFINITY), (__m512)v);
#else
  for (int64_t lane = 0; lane < 16; lane++)
    if (!(bits >> lane & 1)) v[lane] = -INFINITY;
  return v;
#endif
}

// The largest value of each row and the first index that has it, of what is allowed; not a number where any such value
// is none.
template <class T>
void largest(const T* x, int64_t x_pitch, float* values, int64_t* indices, int64_t n, int64_t width,
             const Allowed& allowed) {
  parallel(n, n * width, [&](int64_t i) {
    const T* row = x + i * x_pitch;
    const uint32_t* mask = allowed.mask(i);
    v16 best = splat(-INFINITY);
    u16x32 found = {}, is_none = {};
    each_lanes(width, [&](int64_t k, int64_t m) {
      uint32_t bits = allowed.sixteen(mask, k);
      // A schema mostly allows few: the rest is not even read.
      if (!bits) return;
      v16 v = load_some(row + k, m);
      if (m < 16) bits &= (1u << m) - 1;
      if (bits != 0xffff) v = only(bits, v);
      u16x32 is_larger = (u16x32)(v > best);
      best = (v16)(((u16x32)v & is_larger) | ((u16x32)best & ~is_larger));
      found = (is_larger & (uint32_t)k) | (found & ~is_larger);
      is_none |= (u16x32)(v != v);
    });
    values[i] = best[0];
    indices[i] = found[0];
    for (int64_t lane = 1; lane < 16; lane++) {
      int64_t index = found[lane] + lane;
      if (best[lane] > values[i] || (best[lane] == values[i] && index < indices[i])) {
        values[i] = best[lane];
        indices[i] = index;
      }
    }
    for (int64_t lane = 0; lane < 16; lane++)
      if (is_none[lane]) values[i] = NAN;
    // Nothing is larger than minus infinity: the first index stands for a row that holds nothing else.
    if (values[i] == -INFINITY) indices[i] = 0;
  });
}

// Minus infinity wherever a row of x [n, width] may not have an element.
inline void forbid(float* x, int64_t n, int64_t width, const Allowed& allowed) {
  parallel(n, n * width, [&](int64_t i) {
    const uint32_t* mask = allowed.mask(i);
    if (!mask) return;
    each_lanes(width, [&](int64_t k, int64_t m) {
      uint32_t bits = allowed.sixteen(mask, k);
      float* at = x + i * width + k;
      if (bits != 0xffff) store_some(at, only(bits, load_some(at, m)), m);
    });
  });
}

// q is [n, q_heads, dim] and k [n, k_heads, dim], any pitches but the last; cos and sin are [n, dim]. The turned heads
// of both stand behind each other in out [n, q_heads + k_heads, dim].
template <class T> struct Heads { const T* at; int64_t row_pitch, head_pitch, count; };
template <class T>
void rotate(const Heads<T>& q, const Heads<T>& k, const T* cos, const T* sin, T* out, int64_t n, int64_t dim) {
  int64_t half = dim / 2, heads = q.count + k.count;
  each_row(n, heads * dim, [&](int64_t i) {
    for (int64_t head = 0; head < heads; head++) {
      const Heads<T>& x = head < q.count ? q : k;
      const T* from = x.at + i * x.row_pitch + (head < q.count ? head : head - q.count) * x.head_pitch;
      T* to = out + (i * heads + head) * dim;
      each_lanes(half, [&](int64_t k, int64_t m) {
        v16 a = load_some(from + k, m), b = load_some(from + half + k, m);
        auto part = [&](int64_t at, v16 own, v16 other) {
          v16 straight = rounded<T>(own * load_some(cos + i * dim + at, m));
          v16 turned = rounded<T>(other * load_some(sin + i * dim + at, m));
          store_some(to + at, straight + turned, m);
        };
        part(k, a, -b);
        part(half + k, b, a);
      });
    }
  });
}

}  // namespace
