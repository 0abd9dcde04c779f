// Matrices of floats: the products of matvec.cuh and matmul.cuh without blocks.
//
// Decode takes activations as they are, and adds floats in an order that depends on nothing but k. Prefill takes them as f16
// with one power of two for each token, so that none is too large and those that matter keep eleven bits; weights
// become f16 on the way, which is exact for f16 and for all bf16 that are not tiny.
//
// Bound: decode by the bytes of the weights, once; prefill by the f16 tensor cores (121 T/s on L4).
#pragma once
#include "matmul.cuh"

// Eight weights from 16-byte loads.
struct F32 {
  static constexpr int BYTES = 4;
  HOB_DEVICE void load(const u8* p, float (&w)[8]) {
    const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
  }
};
struct F16 {
  static constexpr int BYTES = 2;
  HOB_DEVICE void load(const u8* p, float (&w)[8]) {
    const uint4 v = load16(p);
#pragma unroll
    for (int i = 0; i < 4; i++) w[2 * i] = low_half(word(v, i)), w[2 * i + 1] = high_half(word(v, i));
  }
};
struct BF16 {
  static constexpr int BYTES = 2;
  HOB_DEVICE void load(const u8* p, float (&w)[8]) {
    const uint4 v = load16(p);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      w[2 * i] = __uint_as_float(word(v, i) << 16);
      w[2 * i + 1] = __uint_as_float(word(v, i) & 0xffff0000u);
    }
  }
};

// x (batch, k) f32.
#define HOB_FLOATVEC_ARGS                                                                                              \
  const u8 *__restrict__ w0, const u8 *__restrict__ w1, const u8 *__restrict__ w2, int n0, int n1, int n2,             \
      const float *__restrict__ x, float *__restrict__ out, int k, int batch, int stride

template <class T, int B>
HOB_DEVICE void floatvec(HOB_FLOATVEC_ARGS) {
  const int lane = threadIdx.x & 31, at = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (at >= n0 + n1 + n2) return;
  int row = at, rows;
  const u8* w = own_matrix(w0, w1, w2, n0, n1, n2, row, rows) + (size_t)row * k * T::BYTES;
  float acc[B];
#pragma unroll
  for (int b = 0; b < B; b++) acc[b] = 0.f;
#pragma unroll 1
  for (int c = lane * 8; c < k; c += 256) {
    float v[8];
    T::load(w + (size_t)c * T::BYTES, v);
#pragma unroll
    for (int b = 0; b < B; b++) {
      const float4* from = reinterpret_cast<const float4*>(x + (size_t)(b < batch ? b : 0) * k + c);
      const float4 x0 = from[0], x1 = from[1];
      acc[b] += v[0] * x0.x + v[1] * x0.y + v[2] * x0.z + v[3] * x0.w;
      acc[b] += v[4] * x1.x + v[5] * x1.y + v[6] * x1.z + v[7] * x1.w;
    }
  }
#pragma unroll
  for (int b = 0; b < B; b++) {
    const float sum = warp_sum(acc[b]);
    if (lane == 0 && b < batch) out[(size_t)b * stride + at] = sum;
  }
}

// x (batch, k) f16, times powers (batch).
#define HOB_FLOATMUL_ARGS                                                                                              \
  const u8 *__restrict__ w0, const u8 *__restrict__ w1, const u8 *__restrict__ w2, int n0, int n1, int n2,             \
      const __half *__restrict__ x, const float *__restrict__ powers, float *__restrict__ out, int k, int batch,       \
      int stride

template <class T>
HOB_DEVICE void floatmul(HOB_FLOATMUL_ARGS) {
  constexpr int COLUMNS = 64, ROW = PITCH / 2;
  HOB_SHARED(__half, s_x, [2][TILE * (PITCH / 2)]);
  HOB_SHARED(__half, s_w, [TILE * (PITCH / 2)]);
  const int tid = threadIdx.x, lane = tid & 31, g = lane >> 2, q4 = lane & 3;
  const int wm = (tid >> 5 & 1) * 32, wn = (tid >> 6) * 32, m0 = blockIdx.y * TILE;
  int row0, rows, column;
  const u8* w = own_tile(w0, w1, w2, n0, n1, n2, blockIdx.x, row0, rows, column);
  uint4 raw[4];
  auto fetch_weights = [&](int step) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int n = tid + i * 128, row = min(row0 + (n >> 3), rows - 1), col = step * COLUMNS + (n & 7) * 8;
      float v[8];
      if (col < k) T::load(w + ((size_t)row * k + col) * T::BYTES, v);
      raw[i] = col < k ? make_uint4(two_halves(v[0], v[1]), two_halves(v[2], v[3]), two_halves(v[4], v[5]),
                                    two_halves(v[6], v[7]))
                       : make_uint4(0, 0, 0, 0);
    }
  };
  auto fetch_tokens = [&](int step, int stage) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int n = tid + i * 128, t = n >> 3, c = (n & 7) * 8, col = step * COLUMNS + c;
      const bool there = m0 + t < batch && col < k;
      hob_cp_async16(&s_x[stage][t * ROW + c], x + (there ? (size_t)(m0 + t) * k + col : 0), there);
    }
    hob_cp_async_commit();
  };
  float acc[2][4][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) acc[i][j][c] = 0.f;
  const int steps = (k + COLUMNS - 1) / COLUMNS;
  fetch_weights(0);
  fetch_tokens(0, 0);
  for (int step = 0; step < steps; step++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int n = tid + i * 128;
      *reinterpret_cast<uint4*>(&s_w[(n >> 3) * ROW + (n & 7) * 8]) = raw[i];
    }
    const int stage = step & 1;
    if (step + 1 < steps) {
      fetch_weights(step + 1);
      fetch_tokens(step + 1, stage ^ 1);
      hob_cp_async_wait<1>();
    } else {
      hob_cp_async_wait<0>();
    }
    __syncthreads();
#pragma unroll 1
    for (int kk = 0; kk < COLUMNS; kk += 16) {
      unsigned a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
        hob_ldmatrix_x4(a[i], &s_x[stage][(wm + i * 16 + (lane & 15)) * ROW + kk + (lane >> 4) * 8]);
#pragma unroll
      for (int j = 0; j < 2; j++)
        hob_ldmatrix_x4(b[j], &s_w[(wn + j * 16 + (lane >> 4) * 8 + (lane & 7)) * ROW + kk + (lane >> 3 & 1) * 8]);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const unsigned both[2] = {b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]};
          hob_mma_f16(acc[i][j], a[i], both);
        }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int t = m0 + wm + i * 16 + g + (c >> 1) * 8, r = row0 + wn + j * 8 + q4 * 2 + (c & 1);
        if (t < batch && r < rows) out[(size_t)t * stride + column + r] = acc[i][j][c] * powers[t];
      }
}

// x[t] = w[token[t]] * scale.
template <class T>
HOB_DEVICE void float_embed(const u8* __restrict__ w, int k, const int* __restrict__ tokens, float* __restrict__ x,
                            float scale) {
  const u8* row = w + (size_t)tokens[blockIdx.x] * k * T::BYTES;
  for (int c = threadIdx.x * 8; c < k; c += blockDim.x * 8) {
    float v[8];
    T::load(row + (size_t)c * T::BYTES, v);
#pragma unroll
    for (int i = 0; i < 8; i++) x[(size_t)blockIdx.x * k + c + i] = v[i] * scale;
  }
}

#define HOB_FLOAT_TYPE(T, name)                                                                                        \
  extern "C" __global__ void __launch_bounds__(128) matvec1_##name(HOB_FLOATVEC_ARGS) {                                \
    floatvec<T, 1>(w0, w1, w2, n0, n1, n2, x, out, k, batch, stride);                                                  \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 6) matvec2_##name(HOB_FLOATVEC_ARGS) {                             \
    floatvec<T, 2>(w0, w1, w2, n0, n1, n2, x, out, k, batch, stride);                                                  \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 4) matvec4_##name(HOB_FLOATVEC_ARGS) {                             \
    floatvec<T, 4>(w0, w1, w2, n0, n1, n2, x, out, k, batch, stride);                                                  \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 2) matvec8_##name(HOB_FLOATVEC_ARGS) {                             \
    floatvec<T, 8>(w0, w1, w2, n0, n1, n2, x, out, k, batch, stride);                                                  \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 2) matmul_##name(HOB_FLOATMUL_ARGS) {                              \
    floatmul<T>(w0, w1, w2, n0, n1, n2, x, powers, out, k, batch, stride);                                             \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      embed_##name(const u8* __restrict__ w, int rows, int k, const int* __restrict__ tokens, float* __restrict__ x,   \
                   float scale) {                                                                                      \
    (void)rows;                                                                                                        \
    float_embed<T>(w, k, tokens, x, scale);                                                                            \
  }                                                                                                                    \
  HOB_EXPORT(matvec1_##name)                                                                                           \
  HOB_EXPORT(matvec2_##name)                                                                                           \
  HOB_EXPORT(matvec4_##name)                                                                                           \
  HOB_EXPORT(matvec8_##name)                                                                                           \
  HOB_EXPORT(matmul_##name)                                                                                            \
  HOB_EXPORT(embed_##name)
