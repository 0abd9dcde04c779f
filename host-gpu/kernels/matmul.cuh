// Quantised weights times the bytes of many tokens, on the tensor cores for bytes: prefill and large batches.
//
// The equation and the arguments are matvec.cuh's. A block of four warps makes 64 tokens by 64 rows, 128 columns at a time:
// activations come by cp.async, two stages; weights through registers, which hold the next stage's raw blocks while this one is
// multiplied, and become bytes with scales for each sixteen in shared memory. Rows of both are 144 bytes apart, so
// that eight of them lie in different banks. For each 32 (or 16) columns the integer product gets its scales and joins a
// float sum, in the order of columns: a token gives the same bits in any batch that comes here.
//
// The accumulator begins as the integer that is the float 1.5 * 2^23: what the products add to it stays below 2^22, so its
// bits are a float again, and no conversion is needed.
//
// Bound: the tensor cores for many tokens: an mma of 4,096 products (16 clocks of a quarter multiprocessor on L4) comes with
// 12 float operations a lane, 12 clocks beside it; types with scales for each sixteen need twice as many, and are bound by
// those, at about half the rate. Up to 64 tokens the weights' bytes bound it, once for all of them.
#pragma once
#include "matvec.cuh"

constexpr int TILE = 64, DEEP = 128, PITCH = 144;

// The matrix that column tile `tile` is of; gives its first row, and where its rows go.
HOB_DEVICE const u8* own_tile(const u8* w0, const u8* w1, const u8* w2, int n0, int n1, int n2, int tile, int& row0,
                              int& rows, int& column) {
  const int t0 = (n0 + TILE - 1) / TILE, t1 = (n1 + TILE - 1) / TILE;
  const u8* w = w0;
  rows = n0;
  column = 0;
  if (tile >= t0) {
    tile -= t0;
    column = n0;
    w = w1;
    rows = n1;
    if (tile >= t1) {
      tile -= t1;
      column = n0 + n1;
      w = w2;
      rows = n2;
    }
  }
  row0 = tile * TILE;
  return w;
}

template <class T>
HOB_DEVICE void matmul(HOB_MATVEC_ARGS) {
  constexpr int UNITS = units_of_block<T>(), PER_TILE = DEEP / (16 * T::PIECES), EACH = TILE * PER_TILE / 128;
  HOB_SHARED(i8, s_x, [2][TILE * PITCH]);
  HOB_SHARED(i8, s_w, [TILE * PITCH]);
  HOB_SHARED(Scale, s_xs, [TILE][DEEP / 32 + 1]);
  HOB_SHARED(float2, s_ws, [TILE][DEEP / 16 + 1]);
  const int tid = threadIdx.x, lane = tid & 31, g = lane >> 2, q4 = lane & 3;
  const int wm = (tid >> 5 & 1) * 32, wn = (tid >> 6) * 32, m0 = blockIdx.y * TILE;
  int row0, rows, column;
  const u8* w = own_tile(w0, w1, w2, n0, n1, n2, blockIdx.x, row0, rows, column);
  const int per_row = k / T::BLOCK, units = per_row * UNITS;
  const size_t blocks = (size_t)rows * per_row;

  typename T::Raw raw[EACH];
  Scale xs[2];
  auto fetch_weights = [&](int step) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int n = tid + i * 128, row = min(row0 + n / PER_TILE, rows - 1);
      const int unit = min(step * PER_TILE + n % PER_TILE, units - 1);
      T::load(w, blocks, (size_t)row * per_row + unit / UNITS, unit % UNITS, raw[i]);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int n = tid + i * 128, t = m0 + n / 4, group = step * (DEEP / 32) + n % 4;
      xs[i].d = 0.f;
      xs[i].sums = 0;
      if (t < batch && group < k / 32) xs[i] = scales[(size_t)t * (k / 32) + group];
    }
  };
  auto fetch_tokens = [&](int step, int stage) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int n = tid + i * 128, t = n >> 3, c = (n & 7) * 16, col = step * DEEP + c;
      const bool there = m0 + t < batch && col < k;
      hob_cp_async16(&s_x[stage][t * PITCH + c], x + (there ? (size_t)(m0 + t) * k + col : 0), there);
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
  const int steps = (k + DEEP - 1) / DEEP;
  fetch_weights(0);
  fetch_tokens(0, 0);
  for (int step = 0; step < steps; step++) {
    // What the last step read is free: it ended with a barrier.
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int n = tid + i * 128, r = n / PER_TILE, unit = step * PER_TILE + n % PER_TILE;
      // Places of a unit beyond the end must be zero, not what the last unit has.
      const int u = unit % UNITS, begin = step * (DEEP / 16);
#pragma unroll
      for (int p = 0; p < T::PIECES; p++) {
        u32 q[4];
        float s, m;
        T::unpack(raw[i], u, p, q, s, m);
        const bool there = unit < units;
        const int place = unit / UNITS * (T::BLOCK / 16) + T::place(u, p) - begin;
        uint4 bytes = make_uint4(less<T::ZERO>(q[0]), less<T::ZERO>(q[1]), less<T::ZERO>(q[2]), less<T::ZERO>(q[3]));
        if (!there) bytes = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(&s_w[r * PITCH + place * 16]) = bytes;
        s_ws[r][place] = there ? make_float2(s, m) : make_float2(0.f, 0.f);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) s_xs[(tid + i * 128) / 4][(tid + i * 128) % 4] = xs[i];
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
    for (int kk = 0; kk < DEEP / 32; kk++) {
      unsigned a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
        hob_ldmatrix_x4(a[i], &s_x[stage][(wm + i * 16 + (lane & 15)) * PITCH + kk * 32 + (lane >> 4) * 16]);
#pragma unroll
      for (int j = 0; j < 2; j++)  // two tiles of eight rows: the first and the other sixteen columns of each
        hob_ldmatrix_x4(b[j], &s_w[(wn + j * 16 + (lane >> 4) * 8 + (lane & 7)) * PITCH + kk * 32 + (lane >> 3 & 1) * 16]);
      Scale d[2][2];
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) d[i][h] = s_xs[wm + i * 16 + g + h * 8][kk];
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int part = 0; part < (T::WHOLE ? 1 : 2); part++) {
          const float2 e0 = s_ws[wn + j * 8 + q4 * 2][kk * 2 + part], e1 = s_ws[wn + j * 8 + q4 * 2 + 1][kk * 2 + part];
#pragma unroll
          for (int i = 0; i < 2; i++) {
            int c[4] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
            const unsigned both[2] = {b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]};
            if (T::WHOLE)
              hob_mma_s8(c, a[i], both);
            else
              hob_mma_s8_short(c, a[i][2 * part], a[i][2 * part + 1], both[part]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const float f0 = __int_as_float(c[2 * h]) - 12582912.f, f1 = __int_as_float(c[2 * h + 1]) - 12582912.f;
              acc[i][j][2 * h] += d[i][h].d * e0.x * f0;
              acc[i][j][2 * h + 1] += d[i][h].d * e1.x * f1;
              if (T::MIN) {
                const int sum = T::WHOLE ? first_sum(d[i][h]) + other_sum(d[i][h])
                                         : part ? other_sum(d[i][h]) : first_sum(d[i][h]);
                const float dsum = d[i][h].d * (float)sum;
                acc[i][j][2 * h] += dsum * e0.y;
                acc[i][j][2 * h + 1] += dsum * e1.y;
              }
            }
          }
        }
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
        if (t < batch && r < rows) out[(size_t)t * stride + column + r] = acc[i][j][c];
      }
}

// x[t] = w[token[t]] * scale: embeddings. A thread takes a unit. Bound: nothing, a few rows.
template <class T>
HOB_DEVICE void embed(const u8* __restrict__ w, int rows, int k, const int* __restrict__ tokens, float* __restrict__ x,
                      float scale) {
  constexpr int UNITS = units_of_block<T>();
  const int per_row = k / T::BLOCK, row = tokens[blockIdx.x];
  for (int n = threadIdx.x; n < per_row * UNITS; n += blockDim.x) {
    typename T::Raw raw;
    T::load(w, (size_t)rows * per_row, (size_t)row * per_row + n / UNITS, n % UNITS, raw);
#pragma unroll
    for (int p = 0; p < T::PIECES; p++) {
      u32 q[4];
      float s, m;
      T::unpack(raw, n % UNITS, p, q, s, m);
      float* to = x + (size_t)blockIdx.x * k + n / UNITS * T::BLOCK + T::place(n % UNITS, p) * 16;
#pragma unroll
      for (int i = 0; i < 16; i++) {
        const i8 one = (i8)(less<T::ZERO>(q[i / 4]) >> (8 * (i % 4)) & 0xff);
        to[i] = (s * (float)one + m) * scale;
      }
    }
  }
}

// All kernels of one type.
#define HOB_TYPE(T, name)                                                                                              \
  extern "C" __global__ void __launch_bounds__(128) matvec1_##name(HOB_MATVEC_ARGS) {                                  \
    matvec<T, 1>(w0, w1, w2, n0, n1, n2, x, scales, out, k, batch, stride);                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 6) matvec2_##name(HOB_MATVEC_ARGS) {                               \
    matvec<T, 2>(w0, w1, w2, n0, n1, n2, x, scales, out, k, batch, stride);                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 4) matvec4_##name(HOB_MATVEC_ARGS) {                               \
    matvec<T, 4>(w0, w1, w2, n0, n1, n2, x, scales, out, k, batch, stride);                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 2) matvec8_##name(HOB_MATVEC_ARGS) {                               \
    matvec<T, 8>(w0, w1, w2, n0, n1, n2, x, scales, out, k, batch, stride);                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 2) matmul_##name(HOB_MATVEC_ARGS) {                                \
    matmul<T>(w0, w1, w2, n0, n1, n2, x, scales, out, k, batch, stride);                                               \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      embed_##name(const u8* __restrict__ w, int rows, int k, const int* __restrict__ tokens, float* __restrict__ x,   \
                   float scale) {                                                                                      \
    embed<T>(w, rows, k, tokens, x, scale);                                                                            \
  }                                                                                                                    \
  HOB_EXPORT(matvec1_##name)                                                                                           \
  HOB_EXPORT(matvec2_##name)                                                                                           \
  HOB_EXPORT(matvec4_##name)                                                                                           \
  HOB_EXPORT(matvec8_##name)                                                                                           \
  HOB_EXPORT(matmul_##name)                                                                                            \
  HOB_EXPORT(embed_##name)
