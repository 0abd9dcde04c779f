// Queries, keys and values after their products: bias, norm of each head, rotation; keys and values go to their pages.
//
//   q, k = turn(norm(q + bias)), ...;  v = v + bias
//
// A warp has a head of a token. Pair i turns by the angle whose (cos, sin) is turns[token][i]: the host computes these in double
// precision. Queries stay where they are. Bound: the launch; some kilobytes a token.
#include "pages.cuh"

// qkv (tokens, heads + 2 * kv_heads, dim); bias as long as a row, or null; q_norm, k_norm (dim), or null. dim is at most 256.
template <int KIND>
HOB_DEVICE void turn(HOB_PAGES_ARGS, float* __restrict__ qkv, const float* __restrict__ bias,
                     const float* __restrict__ q_norm, const float* __restrict__ k_norm,
                     const float2* __restrict__ turns, int tokens, int heads, int kv_heads, int pairs, int neighbours,
                     float eps) {
  HOB_SHARED(float, s_head, [4][256]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, all = heads + 2 * kv_heads;
  const int token = blockIdx.y, head = blockIdx.x * 4 + warp;
  if (head >= all || token >= tokens) return;
  float* s = s_head[warp];
  float* row = qkv + ((size_t)token * all + head) * dim;
  float squares = 0.f;
  for (int i = lane; i < dim; i += 32) {
    const float v = row[i] + (bias ? bias[head * dim + i] : 0.f);
    s[i] = v;
    squares += v * v;
  }
  const bool is_value = head >= heads + kv_heads;
  const float* weight = head < heads ? q_norm : k_norm;
  if (weight && !is_value) {
    const float r = 1.f / sqrtf(warp_sum(squares) / (float)dim + eps);
    for (int i = lane; i < dim; i += 32) s[i] *= r * weight[i];
  }
  __syncwarp();
  if (!is_value) {
    for (int i = lane; i < pairs; i += 32) {
      const int first = neighbours ? 2 * i : i, second = neighbours ? 2 * i + 1 : i + pairs;
      const float2 by = turns[(size_t)token * pairs + i];
      const float a = s[first], b = s[second];
      s[first] = a * by.x - b * by.y;
      s[second] = a * by.y + b * by.x;
    }
    __syncwarp();
  }
  if (head < heads) {
    for (int i = lane; i < dim; i += 32) row[i] = s[i];
    return;
  }
  const int position = positions[token], page = page_of(position, inverse), at = position - page * page_tokens;
  u8* to = arena + (u64)tables[table_at[token] + page] * page_bytes;
  const int kv_head = (head - heads) % kv_heads, side = is_value ? 1 : 0;
  const u64 numbers_at = side_at<KIND>(numbers, kv_head, side, page_tokens, dim);
  if (KIND == KV_F16) {
    __half* out = reinterpret_cast<__half*>(to + numbers_at) + (size_t)at * dim;
    for (int i = lane; i < dim; i += 32) out[i] = clamp_half(s[i]);
    return;
  }
  i8* out = reinterpret_cast<i8*>(to + numbers_at) + (size_t)at * dim;
  __half* scales =
      reinterpret_cast<__half*>(to + side_scales_at(scales_at, kv_head, side, page_tokens, dim)) + (size_t)at * ((dim + 31) / 32);
  for (int b = 0; b < (dim + 31) / 32; b++) {
    const int i = b * 32 + lane;
    const float v = i < dim ? s[i] : 0.f;
    const __half scale = clamp_half(scale_of(v));
    const float d = __half2float(scale), by = d > 0.f ? __frcp_rn(d) : 0.f;
    // The scale was rounded: a quotient may come to a little more than 127.
    if (i < dim) out[i] = (i8)max(-127, min(127, __float2int_rn(v * by)));
    if (lane == 0) scales[b] = scale;
  }
}

#define HOB_TURN(KIND, name)                                                                                            \
  extern "C" __global__ void __launch_bounds__(128)                                                                     \
      turn_##name(HOB_PAGES_ARGS, float* __restrict__ qkv, const float* __restrict__ bias,                              \
                  const float* __restrict__ q_norm, const float* __restrict__ k_norm, const float2* __restrict__ turns, \
                  int tokens, int heads, int kv_heads, int pairs, int neighbours, float eps) {                          \
    turn<KIND>(arena, positions, table_at, tables, page_bytes, numbers, scales_at, inverse, page_tokens, dim, qkv,      \
               bias, q_norm, k_norm, turns, tokens, heads, kv_heads, pairs, neighbours, eps);                           \
  }

HOB_TURN(KV_F16, f16)
HOB_TURN(KV_Q8_0, q8_0)

HOB_EXPORT(turn_f16)
HOB_EXPORT(turn_q8_0)
