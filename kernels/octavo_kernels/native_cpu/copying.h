// Rows of a pack copied to where they are served from, cast once.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "status.h"

namespace {

enum { FROM_BF16, FROM_FP32, FROM_FP16 };  // as SOURCE_TYPES in copying.py

// `rows` rows of `length` elements that follow each other in the source, from byte `begin`.
struct Run { int64_t begin, rows, length, type; };

struct half { uint16_t bits; };
inline v16 widened(const bf16* p, int64_t n) { return n == 16 ? load(p) : load_part(p, n); }
inline v16 widened(const float* p, int64_t n) { return n == 16 ? load(p) : load_part(p, n); }
inline v16 widened(const half* p, int64_t n) {
  u16x16 h = {};
  std::memcpy(&h, p, n * sizeof(half));
  u16x32 bits = __builtin_convertvector(h, u16x32);
  // The exponent's bias differs by 112; the product is exact, for subnormal numbers too.
  v16 magnitude = (v16)((bits & 0x7fff) << 13) * 0x1p112f;
  u16x32 is_special = (u16x32)((bits & 0x7c00) == 0x7c00);
  return (v16)((u16x32)magnitude | (is_special & 0x7f800000u) | ((bits & 0x8000) << 16));
}

template <class S, class T> void cast(const char* from, T* to, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    int64_t some = std::min<int64_t>(16, n - k);
    v16 v = widened((const S*)from + k, some);
    if (some == 16) store(to + k, v);
    else store_part(to + k, v, some);
  }
}

// What is written is not read again soon, so it goes past the caches: they need not fetch what they would overwrite.
inline void copy_bytes(char* to, const char* from, int64_t bytes) {
#ifdef __AVX512F__
  if ((uintptr_t)to % 64 == 0) {
    int64_t whole = bytes / 64 * 64;
    for (int64_t i = 0; i < whole; i += 64) _mm512_stream_si512((__m512i*)(to + i), _mm512_loadu_si512(from + i));
    to += whole;
    from += whole;
    bytes -= whole;
  }
#endif
  std::memcpy(to, from, bytes);
}

template <class T> void copy_some(const char* from, int64_t type, T* to, int64_t n) {
  if (type == FROM_BF16 && sizeof(T) == sizeof(bf16)) copy_bytes((char*)to, from, n * sizeof(T));
  else if (type == FROM_FP32 && sizeof(T) == sizeof(float)) copy_bytes((char*)to, from, n * sizeof(T));
  else if (type == FROM_BF16) cast<bf16>(from, to, n);
  else if (type == FROM_FP32) cast<float>(from, to, n);
  else cast<half>(from, to, n);
}

template <class T>
int copy_rows(const char* source, int64_t source_bytes, const Run* runs, int64_t count, const int64_t* places, T* target,
              int64_t target_len) {
  const int64_t* place = places;
  for (int64_t i = 0; i < count; i++) {
    const Run& run = runs[i];
    if (run.type < FROM_BF16 || run.type > FROM_FP16) return BAD_TYPE;
    int64_t bytes = run.type == FROM_FP32 ? 4 : 2;
    if (run.begin < 0 || run.rows < 0 || run.length < 0) return BAD_OFFSET;
    if (run.rows * run.length * bytes > source_bytes - run.begin) return BAD_OFFSET;
    for (int64_t j = 0; j < run.rows; j++, place++)
      if (*place < 0 || *place > target_len - run.length) return BAD_OFFSET;
  }
  place = places;
  for (int64_t i = 0; i < count; i++) {
    const Run& run = runs[i];
    const char* from = source + run.begin;
    int64_t row_bytes = run.length * (run.type == FROM_FP32 ? 4 : 2);
    for (int64_t j = 0; j < run.rows;) {
      int64_t some = 1;  // rows that lie behind each other there, too
      while (j + some < run.rows && place[j + some] == place[j] + some * run.length) some++;
      copy_some(from + j * row_bytes, run.type, target + place[j], some * run.length);
      j += some;
    }
    place += run.rows;
  }
#ifdef __AVX512F__
  _mm_sfence();  // before anybody is told that the rows are there
#endif
  return OK;
}

}  // namespace
