// Sixteen lanes of fp32: loads and stores of bf16 and fp32, fused multiply-adds, sums in one fixed order, e^x.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

typedef float v16 __attribute__((vector_size(64)));
typedef uint32_t u16x32 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t bf16;

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
#ifdef __AVX512F__
  // Compilers widen each half apart and join them: three instructions more.
  return (v16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
  u16x16 h; std::memcpy(&h, p, sizeof h);
  return (v16)(__builtin_convertvector(h, u16x32) << 16);
#endif
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
  u16x32 kept = (rounded & ~is_nan) | (quiet & is_nan);
#ifdef __AVX512F__
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)kept));
#else
  u16x16 h = __builtin_convertvector(kept, u16x16);
  std::memcpy(p, &h, sizeof h);
#endif
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

}  // namespace
