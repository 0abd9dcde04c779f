// How keys and values lie in a page, on the device.
//
// A page holds `tokens` tokens of all layers. First come the numbers: for each layer and KV head the keys, then the values, both by
// token, (tokens, head_dim), so that the lanes that share a token read its key as one run, and a warp some tokens' one
// behind the other. (The processor's pages have keys by dimension, in tiles: there one lane has one token.) With bytes for numbers,
// all scales follow behind all numbers in the same order, (tokens, head_dim / 32) f16: numbers stay aligned to 16.
#pragma once
#include "hob.cuh"

// What a kernel needs to find a token.
#define HOB_PAGES_ARGS                                                                                                  \
  u8 *__restrict__ arena, const int *__restrict__ positions, const int *__restrict__ table_at,                          \
      const int *__restrict__ tables, u64 page_bytes, u64 numbers, u64 scales_at, u64 inverse, int page_tokens, int dim

// t / page_tokens and what is left, for t below 2^24 and fewer than 2^16 tokens in a page: `inverse` is 2^40 / page_tokens, rounded up.
HOB_DEVICE int page_of(int t, u64 inverse) { return (int)((u64)t * inverse >> 40); }

constexpr int KV_F16 = 0, KV_Q8_0 = 1;

// Where the numbers of a head's keys (`side` 0) or values (1) begin in a page, and where their scales do.
template <int KIND>
HOB_DEVICE u64 side_at(u64 numbers, int head, int side, int page_tokens, int dim) {
  return numbers + (u64)(head * 2 + side) * (u64)page_tokens * (u64)dim * (KIND == KV_F16 ? 2 : 1);
}
HOB_DEVICE u64 side_scales_at(u64 scales_at, int head, int side, int page_tokens, int dim) {
  return scales_at + (u64)(head * 2 + side) * (u64)page_tokens * (u64)((dim + 31) / 32) * 2;
}

// Eight numbers of token `at` of a page from `e` on.
template <int KIND>
HOB_DEVICE void load_eight(const u8* page, u64 side, u64 scales, int at, int dim, int e, float (&v)[8]) {
  if (KIND == KV_F16) {
    const uint4 raw = *reinterpret_cast<const uint4*>(page + side + ((u64)at * dim + e) * 2);
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = low_half(words[i]), v[2 * i + 1] = high_half(words[i]);
  } else {
    const uint2 raw = *reinterpret_cast<const uint2*>(page + side + (u64)at * dim + e);
    const u16 half = *reinterpret_cast<const u16*>(page + scales + ((u64)at * ((dim + 31) / 32) + e / 32) * 2);
    const float d = __half2float(__ushort_as_half(half));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[i] = d * (float)(i8)(raw.x >> (8 * i) & 0xff);
      v[4 + i] = d * (float)(i8)(raw.y >> (8 * i) & 0xff);
    }
  }
}
