// Whole pre-norm decoder layers in one call: the same kernels in the same order, with nothing between them.
//
// Products that are not laid out for ours are oneDNN's, as torch calls them: through torch's plain C interface for
// compiled models, whose functions are handed in by decoder_layers.py.
#pragma once

#include "attention.h"
#include "pointwise.h"
#include "products.h"
#include "rows.h"

namespace {

typedef void* Tensor;  // a torch tensor
struct Torch {
  int32_t (*create_from_blob)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, Tensor*);
  int32_t (*get_data_ptr)(Tensor, void**);
  int32_t (*delete_tensor)(Tensor);
  int32_t (*linear)(Tensor, Tensor, Tensor*, const char*, const double**, int64_t, const char**, Tensor*);
};

// Ours where `packed` has a weight, torch's otherwise.
struct Product { Packed packed; Tensor weight, bias; };
struct Norm { const void* weight; int64_t form; double eps; };
struct DecoderLayer {
  Norm input_norm, inner_norm;
  Product qkv, o, gate_up, down;
  int64_t activation, heads, kv_heads, dim, window, layer_offset;
  double scaling;
};
struct LayerStep {
  int64_t n;
  const void *cos, *sin;
  void* arena;
  int64_t arena_len;
  const Groups* groups;
};
// Where a layer finds its keys and values, and tables of the adapters, none where nobody targets a module: q, k, v, o,
// gate, up, down.
struct LayerPlaces {
  const Kv* kv;
  const int64_t* token_offsets;
  const Table* tables[7];
};

template <class T> int32_t torch_dtype();
template <> inline int32_t torch_dtype<bf16>() { return 15; }
template <> inline int32_t torch_dtype<float>() { return 6; }

// What a product wrote: into memory of its own, or torch's, given back at the end of its life.
template <class T> struct Produced {
  const Torch& torch;
  T* data;
  Tensor tensor = nullptr;
  Produced(const Torch& torch, T* room) : torch(torch), data(room) {}
  Produced(const Produced&) = delete;
  ~Produced() { if (tensor) torch.delete_tensor(tensor); }
};

// oneDNN sums one row alone in another order, so there are always two (see linear.py); x has room for them.
template <class T> bool project_with_torch(const Torch& torch, const Product& product, T* x, int64_t n, Produced<T>& y) {
  int64_t in = product.packed.features, rows = std::max<int64_t>(n, 2), sizes[2] = {rows, in}, strides[2] = {in, 1};
  if (n < 2) std::memset(x + n * in, 0, (2 - n) * in * sizeof(T));
  Tensor input = nullptr;
  if (torch.create_from_blob(x, 2, sizes, strides, 0, torch_dtype<T>(), 0, 0, &input)) return false;
  Tensor weight = product.weight, bias = product.bias;
  const char* algorithm = "";
  bool is_done = !torch.linear(input, weight, bias ? &bias : nullptr, "none", nullptr, 0, &algorithm, &y.tensor);
  torch.delete_tensor(input);
  void* data = nullptr;
  if (!is_done || torch.get_data_ptr(y.tensor, &data)) return false;
  y.data = (T*)data;
  return true;
}

template <class T>
bool project_all(const Torch& torch, const Product& with, T* x, int64_t n, Produced<T>& y, const Product* then) {
  if constexpr (sizeof(T) == sizeof(bf16)) {
    if (with.packed.weight) {
      const Packed* next = then && then->packed.weight ? &then->packed : nullptr;
      product(with.packed, x, with.packed.features, y.data, with.packed.outputs, n, next);
      return true;
    }
  }
  return project_with_torch(torch, with, x, n, y);
}

template <class T> void add(const T* a, const T* b, T* out, int64_t n, int64_t width) {
  each_row(n, width, [&](int64_t i) {
    each_lanes(width, [&](int64_t k, int64_t m) {
      store_some(out + i * width + k, load_some(a + i * width + k, m) + load_some(b + i * width + k, m), m);
    });
  });
}

template <class T> int adapt_some(const LayerStep& s, const T* x, int64_t h, Part* parts, int64_t count) {
  int64_t used = 0;
  for (int64_t i = 0; i < count; i++)
    if (parts[i].table) parts[used++] = parts[i];
  if (!used) return OK;
  return adapt(x, h, (const T*)s.arena, s.arena_len, *s.groups, parts, used, s.n, h);
}

// What a layer writes for the next of its parts to read, in this order; room for the largest of all layers.
enum { NORMED, TURNED, ATTENDED, GATED, BETWEEN, QKV, PROJECTED, GATE_UP, BUFFERS };
template <class T> struct Buffers { T* at[BUFFERS]; };

template <class T> Buffers<T> buffers_for(const DecoderLayer* layers, int64_t count, int64_t n) {
  int64_t widest[BUFFERS] = {};
  for (int64_t i = 0; i < count; i++) {
    const DecoderLayer& l = layers[i];
    int64_t hidden = l.qkv.packed.features, inner = l.down.packed.features;
    int64_t widths[BUFFERS] = {hidden, (l.heads + l.kv_heads) * l.dim, l.heads * l.dim, inner, hidden,
                               l.qkv.packed.outputs, hidden, 2 * inner};
    for (int b = 0; b < BUFFERS; b++) widest[b] = std::max(widest[b], widths[b]);
  }
  Buffers<T> buffers;
  for (int b = 0; b < BUFFERS; b++)
    buffers.at[b] = (T*)aligned(scratch(3 + b, (std::max<int64_t>(n, 2) * widest[b] * sizeof(T) + 3) / sizeof(float) + 16));
  return buffers;
}

// `out` may be x. `then` is the first product of the layer behind this one, if there is one.
template <class T>
int decoder_layer(const Torch& torch, const DecoderLayer& l, const LayerStep& s, const LayerPlaces& at, const T* x, T* out,
                  const Buffers<T>& buffers, const Product* then) {
  int64_t n = s.n, hidden = l.qkv.packed.features, inner = l.down.packed.features, dim = l.dim;
  int64_t attended_width = l.heads * dim, turned_width = (l.heads + l.kv_heads) * dim, qkv_width = l.qkv.packed.outputs;
  T *normed = buffers.at[NORMED], *turned = buffers.at[TURNED], *attended = buffers.at[ATTENDED];
  T *gated = buffers.at[GATED], *between = buffers.at[BETWEEN];

  rms_norm(x, hidden, (const T*)l.input_norm.weight, (float)l.input_norm.eps, (int)l.input_norm.form, normed, n, hidden);
  meet();
  {
    Produced<T> qkv(torch, buffers.at[QKV]), o(torch, buffers.at[PROJECTED]);
    if (!project_all(torch, l.qkv, normed, n, qkv, &l.o)) return BAD_PRODUCT;
    T *q = qkv.data, *k = q + attended_width, *v = k + l.kv_heads * dim;
    Part parts[] = {{at.tables[0], q, qkv_width, attended_width},
                    {at.tables[1], k, qkv_width, l.kv_heads * dim},
                    {at.tables[2], v, qkv_width, l.kv_heads * dim}};
    if (int error = adapt_some(s, normed, hidden, parts, 3)) return error;
    rotate<T>({q, qkv_width, dim, l.heads}, {k, qkv_width, dim, l.kv_heads}, (const T*)s.cos, (const T*)s.sin, turned, n, dim);
    if (int error = write_kv(sizeof(T), (char*)s.arena, s.arena_len, (const char*)(turned + attended_width), turned_width, dim,
                             (const char*)v, qkv_width, dim, at.token_offsets, l.layer_offset, at.kv->page_tokens, n,
                             l.kv_heads, dim))
      return error;
    meet();
    Attend how{l.layer_offset, l.heads, l.window, (float)l.scaling, 0.0f, nullptr};
    if (int error = paged_attention((const T*)turned, turned_width, dim, (const T*)s.arena, s.arena_len, *at.kv, how, attended,
                                    attended_width, dim, n))
      return error;
    if (!project_all(torch, l.o, attended, n, o, &l.gate_up)) return BAD_PRODUCT;
    Part part = {at.tables[3], o.data, hidden, hidden};
    if (int error = adapt_some(s, attended, attended_width, &part, 1)) return error;
    add(x, (const T*)o.data, between, n, hidden);
  }
  rms_norm((const T*)between, hidden, (const T*)l.inner_norm.weight, (float)l.inner_norm.eps, (int)l.inner_norm.form, normed, n,
           hidden);
  meet();
  Produced<T> gate_up(torch, buffers.at[GATE_UP]), down(torch, buffers.at[PROJECTED]);
  if (!project_all(torch, l.gate_up, normed, n, gate_up, &l.down)) return BAD_PRODUCT;
  T *gates = gate_up.data, *up = gates + inner;
  Part parts[] = {{at.tables[4], gates, 2 * inner, inner}, {at.tables[5], up, 2 * inner, inner}};
  if (int error = adapt_some(s, normed, hidden, parts, 2)) return error;
  gate((int)l.activation, (const T*)gates, 2 * inner, (const T*)up, 2 * inner, gated, n, inner);
  meet();
  if (!project_all(torch, l.down, gated, n, down, then)) return BAD_PRODUCT;
  Part part = {at.tables[6], down.data, hidden, hidden};
  if (int error = adapt_some(s, gated, inner, &part, 1)) return error;
  add((const T*)between, (const T*)down.data, out, n, hidden);
  return OK;
}

template <class T>
int decoder_layers(const Torch& torch, const DecoderLayer* layers, int64_t count, const LayerStep& s, const LayerPlaces* places,
                   const T* x, T* out) {
  Buffers<T> buffers = buffers_for<T>(layers, count, s.n);
  auto run = [&] {
    for (int64_t i = 0; i < count; i++) {
      const Product* then = i + 1 < count ? &layers[i + 1].qkv : nullptr;
      if (int error = decoder_layer(torch, layers[i], s, places[i], i ? out : x, out, buffers, then)) return error;
    }
    return (int)OK;
  };
  // torch calls threads of its own for its products.
  bool is_ours = std::all_of(layers, layers + count, [](const DecoderLayer& l) {
    return l.qkv.packed.weight && l.o.packed.weight && l.gate_up.packed.weight && l.down.packed.weight;
  });
  if (!is_ours) return run();
  // What is wrong is wrong for each of them, and found before they would meet.
  int result = OK;
  as_team([&] {
    int error = run();
    if (!team().own) result = error;
  });
  return result;
}

}  // namespace
