// Quantised weights times the bytes of a few tokens: decode.
//
// out[t][r] = sum over c of w[r][c] * x[t][c], with x = d * q: products of integers, added as floats. x (batch, k) i8, one
// Scale for each 32 of them: (batch, k / 32). Up to three matrices that share x lie one behind the other in `out`
// (batch, stride): q, k and v, or gate and up, are one launch.
//
// A warp has a row; its lanes take a unit each, so a warp reads 512 neighbouring bytes of quants at once. The order in
// which a row's products are added depends on nothing but k: a token gives the same bits in any batch.
//
// Bound: the bytes of the weights, once. L4: 300 GB/s of Q4_0 are 533 G weights/s and 133 G dp4a/s for each token, of 7.4 T/s.
// Activations come from L1: 8 tokens read 37 bytes for each clock and multiprocessor of 128.
#pragma once
#include "blocks.cuh"

#define HOB_MATVEC_ARGS                                                                                          \
  const u8 *__restrict__ w0, const u8 *__restrict__ w1, const u8 *__restrict__ w2, int n0, int n1, int n2,       \
      const i8 *__restrict__ x, const Scale *__restrict__ scales, float *__restrict__ out, int k, int batch, int stride

// Row `r` of the three matrices: makes it the row of its own matrix, whose weights and rows it gives.
HOB_DEVICE const u8* own_matrix(const u8* w0, const u8* w1, const u8* w2, int n0, int n1, int n2, int& r, int& n) {
  n = n0;
  if (r < n0) return w0;
  r -= n0;
  n = n1;
  if (r < n1) return w1;
  r -= n1;
  n = n2;
  return w2;
}

template <class T, int B>
HOB_DEVICE void matvec(HOB_MATVEC_ARGS) {
  const int lane = threadIdx.x & 31, at = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (at >= n0 + n1 + n2) return;
  int row = at, rows;
  const u8* w = own_matrix(w0, w1, w2, n0, n1, n2, row, rows);
  constexpr int UNITS = units_of_block<T>();
  const int per_row = k / T::BLOCK, units = per_row * UNITS;
  const size_t blocks = (size_t)rows * per_row, first = (size_t)row * per_row;
  float acc[B];
#pragma unroll
  for (int b = 0; b < B; b++) acc[b] = 0.f;
#pragma unroll 1
  for (int n = lane; n < units; n += 32) {
    const int block = n / UNITS, u = n % UNITS;
    typename T::Raw raw;
    T::load(w, blocks, first + block, u, raw);
    // The pieces of a whole unit have one scale, in weights and activations.
    if (T::WHOLE) {
      u32 q[2][4];
      float s, m;
      T::unpack(raw, u, 0, q[0], s, m);
      T::unpack(raw, u, 1, q[1], s, m);
      const int place = block * (T::BLOCK / 16) + T::place(u, 0);
#pragma unroll
      for (int b = 0; b < B; b++) {
        const size_t t = b < batch ? b : 0;
        const uint4 x0 = *reinterpret_cast<const uint4*>(x + t * k + place * 16);
        const uint4 x1 = *reinterpret_cast<const uint4*>(x + t * k + place * 16 + 16);
        const Scale xs = scales[t * (k / 32) + place / 2];
        int dot = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          dot = hob_dp4a((int)q[0][i], (int)word(x0, i), dot);
          dot = hob_dp4a((int)q[1][i], (int)word(x1, i), dot);
        }
        const int sum = first_sum(xs) + other_sum(xs);
        float part = s * (float)(dot - T::ZERO * sum);
        if (T::MIN) part += m * (float)sum;
        acc[b] += xs.d * part;
      }
    } else {
// More at once would not fit the registers.
#pragma unroll(B > 2 && T::PIECES > 2 ? 1 : T::PIECES)
      for (int p = 0; p < T::PIECES; p++) {
        u32 q[4];
        float s, m;
        T::unpack(raw, u, p, q, s, m);
        const int place = block * (T::BLOCK / 16) + T::place(u, p);
#pragma unroll
        for (int b = 0; b < B; b++) {
          const size_t t = b < batch ? b : 0;
          const uint4 x0 = *reinterpret_cast<const uint4*>(x + t * k + place * 16);
          const Scale xs = scales[t * (k / 32) + place / 2];
          int dot = 0;
#pragma unroll
          for (int i = 0; i < 4; i++) dot = hob_dp4a((int)q[i], (int)word(x0, i), dot);
          const int sum = place & 1 ? other_sum(xs) : first_sum(xs);
          float part = s * (float)(dot - T::ZERO * sum);
          if (T::MIN) part += m * (float)sum;
          acc[b] += xs.d * part;
        }
      }
    }
  }
#pragma unroll
  for (int b = 0; b < B; b++) {
    const float sum = warp_sum(acc[b]);
    if (lane == 0 && b < batch) out[(size_t)b * stride + at] = sum;
  }
}
