// Attention of neighbouring tokens of a sequence, on the tensor cores. The equation is decode.cuh's.
//
// A block has BM tokens of a query head, sixteen for each warp, and walks over the keys that they see, BN at a time, from a multiple of BN
// on: products of queries and keys, a running softmax in registers, whose weights are the next product's input as they lie.
// What a token does not see counts nothing, exactly, so a token's bits do not depend on how a prompt was cut.
// Queries, weights and values are f16; sums are f32. D is dim, or more: what is beyond is zero.
//
// Bound: the f16 tensor cores for long prompts, 4 * BM * BN * D operations a step for 2 * BN * D * 2 bytes from L2. There is one
// stage of keys and values: other blocks of the multiprocessor compute while one loads.
#pragma once
#include "pages.cuh"

// q: rows of `stride` floats; out (tokens, heads * dim). Tile i is tile_rows[i] tokens from row tile_first[i] on.
#define HOB_PREFILL_ARGS                                                                                               \
  HOB_PAGES_ARGS, const float *__restrict__ q, const int *__restrict__ tile_first, const int *__restrict__ tile_rows,  \
      float *__restrict__ out, int stride, int heads, int kv_heads, int window, float scale, float cap

template <int D, int BM, int BN, int KIND>
HOB_DEVICE void prefill(HOB_PREFILL_ARGS) {
  constexpr int P = D + 8, THREADS = BM * 2, EIGHTS = D / 8;  // rows 16 bytes apart from a power of two: no bank twice
  HOB_SHARED(__half, s_q, [BM * (D + 8)]);
  HOB_SHARED(__half, s_k, [BN * (D + 8)]);
  HOB_SHARED(__half, s_v, [BN * (D + 8)]);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q4 = lane & 3;
  const int first = tile_first[blockIdx.x], count = tile_rows[blockIdx.x], head = blockIdx.y;
  const int kv_head = head / (heads / kv_heads), position = positions[first];
  const int* table = tables + table_at[first];
  const u64 keys = side_at<KIND>(numbers, kv_head, 0, page_tokens, dim);
  const u64 values = side_at<KIND>(numbers, kv_head, 1, page_tokens, dim);
  const u64 key_scales = side_scales_at(scales_at, kv_head, 0, page_tokens, dim);
  const u64 value_scales = side_scales_at(scales_at, kv_head, 1, page_tokens, dim);
  for (int n = tid; n < BM * (D / 2); n += THREADS) {
    const int r = n / (D / 2), c = n % (D / 2) * 2;
    const bool there = r < count && c < dim;
    const float* from = q + (size_t)(first + (there ? r : 0)) * stride + (size_t)head * dim + (there ? c : 0);
    *reinterpret_cast<u32*>(&s_q[r * P + c]) = there ? two_halves(from[0] * scale, from[1] * scale) : 0u;
  }
  float acc[D / 8][4], m[2] = {-1e30f, -1e30f}, l[2] = {0.f, 0.f};
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int c = 0; c < 4; c++) acc[j][c] = 0.f;
  const int begin = (window > 0 ? max(0, position + 1 - window) : 0) / BN * BN, end = position + count;
  for (int t0 = begin; t0 < end; t0 += BN) {
    for (int n = tid; n < BN * EIGHTS; n += THREADS) {
      const int r = n / EIGHTS, e = n % EIGHTS * 8, t = t0 + r;
      const bool there = t < end && e < dim;
      const int page = page_of(there ? t : 0, inverse), at = (there ? t : 0) - page * page_tokens;
      const u8* bytes = arena + (u64)table[page] * page_bytes;
      if (KIND == KV_F16) {
        const u64 from = ((u64)at * dim + (there ? e : 0)) * 2;
        hob_cp_async16(&s_k[r * P + e], bytes + keys + from, there);
        hob_cp_async16(&s_v[r * P + e], bytes + values + from, there);
      } else {
        float k[8], v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) k[i] = v[i] = 0.f;
        if (there) {
          load_eight<KIND>(bytes, keys, key_scales, at, dim, e, k);
          load_eight<KIND>(bytes, values, value_scales, at, dim, e, v);
        }
        *reinterpret_cast<uint4*>(&s_k[r * P + e]) =
            make_uint4(two_halves(k[0], k[1]), two_halves(k[2], k[3]), two_halves(k[4], k[5]), two_halves(k[6], k[7]));
        *reinterpret_cast<uint4*>(&s_v[r * P + e]) =
            make_uint4(two_halves(v[0], v[1]), two_halves(v[2], v[3]), two_halves(v[4], v[5]), two_halves(v[6], v[7]));
      }
    }
    hob_cp_async_commit();
    hob_cp_async_wait<0>();
    __syncthreads();
    float s[BN / 8][4];
#pragma unroll
    for (int j = 0; j < BN / 8; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) s[j][c] = 0.f;
#pragma unroll
    for (int kk = 0; kk < D; kk += 16) {
      unsigned a[4];
      hob_ldmatrix_x4(a, &s_q[(warp * 16 + (lane & 15)) * P + kk + (lane >> 4) * 8]);
#pragma unroll
      for (int j = 0; j < BN / 16; j++) {
        unsigned b[4];
        hob_ldmatrix_x4(b, &s_k[(j * 16 + (lane >> 4) * 8 + (lane & 7)) * P + kk + (lane >> 3 & 1) * 8]);
        const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        hob_mma_f16(s[2 * j], a, b0);
        hob_mma_f16(s[2 * j + 1], a, b1);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int own = position + warp * 16 + g + h * 8;
      float most = m[h];
#pragma unroll
      for (int j = 0; j < BN / 8; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const int t = t0 + j * 8 + q4 * 2 + c;
          float v = s[j][2 * h + c];
          if (cap > 0.f) v = cap * hob_tanh(v / cap);
          v = t <= own && (window <= 0 || t > own - window) ? v : -1e30f;
          s[j][2 * h + c] = v;
          most = fmaxf(most, v);
        }
      most = fmaxf(most, __shfl_xor_sync(HOB_FULL, most, 1));
      most = fmaxf(most, __shfl_xor_sync(HOB_FULL, most, 2));
      const float by = __expf(m[h] - most);
      m[h] = most;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < BN / 8; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const float v = s[j][2 * h + c], p = v > -1e29f ? __expf(v - most) : 0.f;
          s[j][2 * h + c] = p;
          sum += p;
        }
      l[h] = l[h] * by + sum;
#pragma unroll
      for (int j = 0; j < D / 8; j++) acc[j][2 * h] *= by, acc[j][2 * h + 1] *= by;
    }
#pragma unroll
    for (int j = 0; j < BN / 16; j++) {
      const unsigned a[4] = {two_halves(s[2 * j][0], s[2 * j][1]), two_halves(s[2 * j][2], s[2 * j][3]),
                             two_halves(s[2 * j + 1][0], s[2 * j + 1][1]), two_halves(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        unsigned b[2];
        hob_ldmatrix_x2_trans(b, &s_v[(j * 16 + (lane & 15)) * P + n * 8]);
        hob_mma_f16(acc[n], a, b);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = l[h];
    sum += __shfl_xor_sync(HOB_FULL, sum, 1);
    sum += __shfl_xor_sync(HOB_FULL, sum, 2);
    const int r = warp * 16 + g + h * 8;
    if (r < count) {
      float* to = out + (size_t)(first + r) * heads * dim + (size_t)head * dim;
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const int d = n * 8 + q4 * 2 + c;
          if (d < dim) to[d] = acc[n][2 * h + c] / sum;
        }
    }
  }
}

#define HOB_PREFILL(D, BM, BN, KIND, name)                                                                              \
  extern "C" __global__ void __launch_bounds__(BM * 2) name(HOB_PREFILL_ARGS) {                                         \
    prefill<D, BM, BN, KIND>(arena, positions, table_at, tables, page_bytes, numbers, scales_at, inverse, page_tokens,  \
                             dim, q, tile_first, tile_rows, out, stride, heads, kv_heads, window, scale, cap);          \
  }
