// The CPU kernels behind octavo_kernels.ops: plain C ABI, no headers but the compiler's own and those beside it.
//
// Determinism: a result is one chain of fused multiply-adds per lane, in an order that depends on nothing but the
// row's own length, then one fixed tree over the 16 lanes. Blocks of rows, ranks or features only say which chains
// run side by side; threads take whole blocks. So neither neighbours, nor chunking, nor the thread count reach a bit.

#include "attention.h"
#include "copying.h"
#include "decoder_layers.h"
#include "pointwise.h"
#include "products.h"
#include "rows.h"

namespace {
enum { BF16 = 0, FP32 = 1 };  // as TYPES in native.py
}

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

int octavo_write_kv(int64_t element_bytes, char* arena, int64_t arena_len, const char* k, int64_t k_row, int64_t k_head,
                    const char* v, int64_t v_row, int64_t v_head, const int64_t* offsets, int64_t layer_offset,
                    int64_t page_tokens, int64_t n, int64_t heads, int64_t dim) {
  return write_kv(element_bytes, arena, arena_len, k, k_row, k_head, v, v_row, v_head, offsets, layer_offset, page_tokens,
                  n, heads, dim);
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

int octavo_copy_rows(int type, const char* source, int64_t source_bytes, const Run* runs, int64_t count,
                     const int64_t* places, void* target, int64_t target_len) {
  if (type == BF16) return copy_rows(source, source_bytes, runs, count, places, (bf16*)target, target_len);
  if (type == FP32) return copy_rows(source, source_bytes, runs, count, places, (float*)target, target_len);
  return BAD_TYPE;
}

int octavo_rms_norm(int type, const void* x, int64_t x_pitch, const void* weight, float eps, int form, void* out, int64_t n,
                    int64_t h) {
  if (type == BF16) rms_norm((const bf16*)x, x_pitch, (const bf16*)weight, eps, form, (bf16*)out, n, h);
  else if (type == FP32) rms_norm((const float*)x, x_pitch, (const float*)weight, eps, form, (float*)out, n, h);
  else return BAD_TYPE;
  return OK;
}

int octavo_gate(int type, int activation, const void* gates, int64_t gate_pitch, const void* up, int64_t up_pitch,
                void* out, int64_t n, int64_t width) {
  if (type == BF16) gate(activation, (const bf16*)gates, gate_pitch, (const bf16*)up, up_pitch, (bf16*)out, n, width);
  else if (type == FP32) gate(activation, (const float*)gates, gate_pitch, (const float*)up, up_pitch, (float*)out, n, width);
  else return BAD_TYPE;
  return OK;
}

int octavo_largest(int type, const void* x, int64_t x_pitch, float* values, int64_t* indices, int64_t n, int64_t width,
                   const uint32_t* masks, int64_t words, const int64_t* of_row) {
  Allowed allowed{masks, words, of_row};
  if (type == BF16) largest((const bf16*)x, x_pitch, values, indices, n, width, allowed);
  else if (type == FP32) largest((const float*)x, x_pitch, values, indices, n, width, allowed);
  else return BAD_TYPE;
  return OK;
}

int octavo_forbid(float* x, int64_t n, int64_t width, const uint32_t* masks, int64_t words, const int64_t* of_row) {
  forbid(x, n, width, {masks, words, of_row});
  return OK;
}

int octavo_rotate(int type, const void* q, int64_t q_row, int64_t q_head, int64_t q_heads, const void* k, int64_t k_row,
                  int64_t k_head, int64_t k_heads, const void* cos, const void* sin, void* out, int64_t n, int64_t dim) {
  if (type == BF16)
    rotate<bf16>({(const bf16*)q, q_row, q_head, q_heads}, {(const bf16*)k, k_row, k_head, k_heads}, (const bf16*)cos,
                 (const bf16*)sin, (bf16*)out, n, dim);
  else if (type == FP32)
    rotate<float>({(const float*)q, q_row, q_head, q_heads}, {(const float*)k, k_row, k_head, k_heads},
                  (const float*)cos, (const float*)sin, (float*)out, n, dim);
  else return BAD_TYPE;
  return OK;
}

int octavo_can_multiply() { return CAN_MULTIPLY; }

int octavo_product(const Packed* weight, const void* x, int64_t x_pitch, void* y, int64_t n) {
  if (!CAN_MULTIPLY) return BAD_TYPE;
  product(*weight, (const bf16*)x, x_pitch, (bf16*)y, weight->outputs, n);
  return OK;
}

int octavo_decoder_layers(int type, const Torch* torch, const DecoderLayer* layers, int64_t count, const LayerStep* step,
                          const LayerPlaces* places, const void* x, void* out) {
  if (type == BF16) return decoder_layers(*torch, layers, count, *step, places, (const bf16*)x, (bf16*)out);
  if (type == FP32) return decoder_layers(*torch, layers, count, *step, places, (const float*)x, (float*)out);
  return BAD_TYPE;
}

int octavo_num_threads() { return (int)num_threads(); }
}
