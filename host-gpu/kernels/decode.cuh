// Attention of single tokens: flash-decoding over pages.
//
//   out[h] = sum over t of p[t] v[t],  p = softmax(score(q[h] . k[t] * scale)),  score(s) = cap * tanh(s / cap) if there is a cap
//
// A sequence's tokens are cut every CHUNK tokens; a block has one cut of one KV head and up to G of the query heads that share it.
// LANES lanes have a token, eight dimensions each, so that keys are read in whole rows; each group of lanes keeps its
// own running maximum, sum and result, which are joined at the end, and `decode_join` joins the cuts. Where cuts are depends on positions alone:
// a token gives the same bits in any batch.
//
// Bound: the bytes of keys and values, once for G heads. 128 threads have 4 KiB under way; an L4 needs 3.1 KiB for each
// multiprocessor.
#pragma once
#include "pages.cuh"

constexpr int CHUNK = 256;

// The first token that the one at `position` sees.
HOB_DEVICE int first_seen(int position, int window) { return window > 0 ? max(0, position + 1 - window) : 0; }

// q: rows of `stride` floats, whose first heads * dim are queries. `rows` names the tokens. part (rows, heads, splits, dim + 2).
#define HOB_DECODE_ARGS                                                                                                \
  HOB_PAGES_ARGS, const float *__restrict__ q, const int *__restrict__ rows, float *__restrict__ part, int stride,     \
      int heads, int kv_heads, int window, float scale, float cap

template <int LANES, int G, int KIND>
HOB_DEVICE void decode(HOB_DECODE_ARGS) {
  constexpr int PER_WARP = 32 / LANES, STRIDE = 4 * PER_WARP;
  HOB_SHARED(float, s_m, [4][G]);
  HOB_SHARED(float, s_l, [4][G]);
  HOB_SHARED(float, s_acc, [4][G][LANES * 8]);
  const int group = heads / kv_heads, parts = (group + G - 1) / G;
  const int kv_head = blockIdx.x / parts, first_head = kv_head * group + blockIdx.x % parts * G;
  const int count = min(G, (kv_head + 1) * group - first_head);
  const int cut = blockIdx.y, splits = gridDim.y, token = rows[blockIdx.z], position = positions[token];
  const int begin = max(cut * CHUNK, first_seen(position, window)), end = min((cut + 1) * CHUNK, position + 1);
  if (begin >= end) return;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, e = lane % LANES * 8;
  const bool own = e < dim;
  const int* table = tables + table_at[token];
  const u64 keys = side_at<KIND>(numbers, kv_head, 0, page_tokens, dim);
  const u64 values = side_at<KIND>(numbers, kv_head, 1, page_tokens, dim);
  const u64 key_scales = side_scales_at(scales_at, kv_head, 0, page_tokens, dim);
  const u64 value_scales = side_scales_at(scales_at, kv_head, 1, page_tokens, dim);
  float qf[G][8], acc[G][8], m[G], l[G];
#pragma unroll
  for (int g = 0; g < G; g++) {
    const float* from = q + (size_t)token * stride + (size_t)(first_head + min(g, count - 1)) * dim + e;
#pragma unroll
    for (int i = 0; i < 8; i++) qf[g][i] = own ? from[i] * scale : 0.f, acc[g][i] = 0.f;
    m[g] = -1e30f, l[g] = 0.f;
  }
  for (int base = begin + warp * PER_WARP; base < end; base += STRIDE) {  // alike in a warp
    const bool there = base + lane / LANES < end;
    const int t = there ? base + lane / LANES : begin, page = page_of(t, inverse), at = t - page * page_tokens;
    const u8* bytes = arena + (u64)table[page] * page_bytes;
    float kf[8], vf[8];
#pragma unroll
    for (int i = 0; i < 8; i++) kf[i] = vf[i] = 0.f;
    if (own) {
      load_eight<KIND>(bytes, keys, key_scales, at, dim, e, kf);
      load_eight<KIND>(bytes, values, value_scales, at, dim, e, vf);
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
      float s = 0.f;
#pragma unroll
      for (int i = 0; i < 8; i++) s += qf[g][i] * kf[i];
#pragma unroll
      for (int o = LANES / 2; o; o >>= 1) s += __shfl_xor_sync(HOB_FULL, s, o);
      if (cap > 0.f) s = cap * hob_tanh(s / cap);
      if (!there) continue;  // nothing below is done together
      const float most = fmaxf(m[g], s), c = __expf(m[g] - most), p = __expf(s - most);
      m[g] = most;
      l[g] = l[g] * c + p;
#pragma unroll
      for (int i = 0; i < 8; i++) acc[g][i] = acc[g][i] * c + p * vf[i];
    }
  }
#pragma unroll
  for (int g = 0; g < G; g++) {
#pragma unroll
    for (int o = LANES; o < 32; o <<= 1) {  // the groups of a warp
      const float m2 = __shfl_xor_sync(HOB_FULL, m[g], o), l2 = __shfl_xor_sync(HOB_FULL, l[g], o);
      const float most = fmaxf(m[g], m2), c = __expf(m[g] - most), c2 = __expf(m2 - most);
      l[g] = l[g] * c + l2 * c2;
      m[g] = most;
#pragma unroll
      for (int i = 0; i < 8; i++) acc[g][i] = acc[g][i] * c + __shfl_xor_sync(HOB_FULL, acc[g][i], o) * c2;
    }
    if (lane < LANES) {
#pragma unroll
      for (int i = 0; i < 8; i++) s_acc[warp][g][e + i] = acc[g][i];
      if (lane == 0) s_m[warp][g] = m[g], s_l[warp][g] = l[g];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * dim; i += 128) {  // the warps
    const int g = i / dim, d = i % dim;
    float most = -1e30f, sum = 0.f, a = 0.f;
#pragma unroll
    for (int w = 0; w < 4; w++) most = fmaxf(most, s_m[w][g]);
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const float c = __expf(s_m[w][g] - most);
      sum += s_l[w][g] * c;
      a += s_acc[w][g][d] * c;
    }
    float* out = part + (((size_t)blockIdx.z * heads + first_head + g) * splits + cut) * (dim + 2);
    out[2 + d] = a;
    if (d == 0) out[0] = most, out[1] = sum;
  }
}

#define HOB_DECODE(LANES, G, KIND, name)                                                                               \
  extern "C" __global__ void __launch_bounds__(128, G == 1 ? 6 : 4) name(HOB_DECODE_ARGS) {                            \
    decode<LANES, G, KIND>(arena, positions, table_at, tables, page_bytes, numbers, scales_at, inverse, page_tokens,   \
                           dim, q, rows, part, stride, heads, kv_heads, window, scale, cap);                           \
  }
