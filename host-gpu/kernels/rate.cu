// How fast tensor cores are when nothing keeps them waiting: what the rate of a product is compared with.
#include "hob.cuh"

// So many products are under way in a warp: none waits for the one before.
#define AT_ONCE 8

// `steps` times eight products of ones in each warp: out (blocks, 256) gets 512 for each step, where all is well.
extern "C" __global__ void __launch_bounds__(256) rate_f16(float* __restrict__ out, int steps) {
  const unsigned a[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u}, b[2] = {0x3c003c00u, 0x3c003c00u};
  float c[AT_ONCE][4];
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) c[i][j] = 0.f;
  for (int s = 0; s < steps; s++) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) hob_mma_f16(c[i], a, b);
  }
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) sum += c[i][j];
  out[blockIdx.x * 256 + threadIdx.x] = sum;
}

// The same with bytes: 1024 for each step.
extern "C" __global__ void __launch_bounds__(256) rate_s8(float* __restrict__ out, int steps) {
  const unsigned a[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u}, b[2] = {0x01010101u, 0x01010101u};
  int c[AT_ONCE][4];
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) c[i][j] = 0;
  for (int s = 0; s < steps; s++) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) hob_mma_s8(c[i], a, b);
  }
  int sum = 0;
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) sum += c[i][j];
  out[blockIdx.x * 256 + threadIdx.x] = (float)sum;
}

HOB_EXPORT(rate_f16)
HOB_EXPORT(rate_s8)
