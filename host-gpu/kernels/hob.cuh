// What every kernel includes: the few things that C++ does not have, and the sums of a warp.
//
// A kernel is ordinary CUDA C++. For a GPU it is compiled ahead of time (see README.md), and the wrappers below are inline
// PTX for sm_80 and up. For tests it is compiled for the processor with -DCUSIM, and sim/cusim.h has the same names.
//
// Rules that both need: shared memory by HOB_SHARED, inline PTX here only, `extern "C" __global__`, and a line
// HOB_EXPORT(name) for each kernel at the end of its file.
#pragma once

#ifdef CUSIM
#include "cusim.h"
#define HOB_EXPORT(name) CUSIM_DESC(name)
#else
#include <cuda_fp16.h>
#define HOB_EXPORT(name) /* the tests of ops::cuda read these lines */
#define HOB_SHARED(T, name, dims) __shared__ __align__(16) T name dims
#define HOB_DEVICE static __device__ __forceinline__
// The compiler that we use leaves `__dp4a` an unresolved name in its PTX, so it is written out.
HOB_DEVICE int hob_dp4a(int a, int b, int c) {
  int d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
HOB_DEVICE unsigned hob_smem(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
// c += a b; a (16, 16) f16 by rows, b (16, 8) f16 by columns, c (16, 8) f32; a warp together.
HOB_DEVICE void hob_mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c += a b; a (16, 32) i8 by rows, b (32, 8) i8 by columns, c (16, 8) i32.
HOB_DEVICE void hob_mma_s8(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same with half as deep a and b: a (16, 16), b (16, 8).
HOB_DEVICE void hob_mma_s8_short(int (&c)[4], unsigned a0, unsigned a1, unsigned b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a0), "r"(a1), "r"(b));
}
// Four (8, 8) tiles of 16-bit numbers: lane 8 i + r gives the address of row r of tile i.
HOB_DEVICE void hob_ldmatrix_x4(unsigned (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(hob_smem(row))
               : "memory");
}
HOB_DEVICE void hob_ldmatrix_x2_trans(unsigned (&d)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(d[0]), "=r"(d[1])
               : "r"(hob_smem(row))
               : "memory");
}
// 16 bytes to shared memory while the thread goes on; zeros if not `pred`.
HOB_DEVICE void hob_cp_async16(void* smem, const void* gmem, bool pred) {
  const int bytes = pred ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(hob_smem(smem)), "l"(gmem), "r"(bytes) : "memory");
}
HOB_DEVICE void hob_cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
HOB_DEVICE void hob_cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif

#ifndef HOB_DEVICE
#define HOB_DEVICE static inline
#endif

#define HOB_FULL 0xffffffffu
typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// 32 activations as bytes have one of these: x = d * q, and the sums of the first and the other sixteen q.
struct __align__(8) Scale {
  float d;
  int sums;
};
HOB_DEVICE int first_sum(Scale s) { return (int)(short)(s.sums & 0xffff); }
HOB_DEVICE int other_sum(Scale s) { return s.sums >> 16; }

HOB_DEVICE float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(HOB_FULL, v, o);
  return v;
}
HOB_DEVICE int warp_sum(int v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(HOB_FULL, v, o);
  return v;
}
HOB_DEVICE float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(HOB_FULL, v, o));
  return v;
}
// The sum over a block of 256 threads, for all of them. `part` is shared: eight floats, free to be overwritten.
HOB_DEVICE float block_sum(float v, float* part) {
  v = warp_sum(v);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
  __syncthreads();
  float all = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) all += part[i];
  return all;
}

// d = max |x| / 127 of a warp's 32 numbers. Divisions are exact where bytes are made, so that these are the processor's.
HOB_DEVICE float scale_of(float x) { return __fdiv_rn(warp_max(fabsf(x)), 127.f); }

// A warp's 32 numbers as bytes: q = round(x / d), as the processor's kernels have it.
HOB_DEVICE int quantise_lane(float x, Scale* scale) {
  const float d = scale_of(x), by = d > 0.f ? __frcp_rn(d) : 0.f;
  const int q = __float2int_rn(x * by);
  // Lanes of either half add up among themselves.
  int sum = q;
#pragma unroll
  for (int o = 8; o; o >>= 1) sum += __shfl_xor_sync(HOB_FULL, sum, o);
  const int other = __shfl_sync(HOB_FULL, sum, 16);
  if ((threadIdx.x & 31) == 0) {
    scale->d = d;
    scale->sums = (sum & 0xffff) | (int)((u32)other << 16);
  }
  return q;
}

HOB_DEVICE __half clamp_half(float x) { return __float2half_rn(fminf(fmaxf(x, -65504.f), 65504.f)); }
HOB_DEVICE u32 two_halves(float a, float b) {
  return (u32)__half_as_ushort(clamp_half(a)) | (u32)__half_as_ushort(clamp_half(b)) << 16;
}
HOB_DEVICE float low_half(u32 v) { return __half2float(__ushort_as_half((u16)(v & 0xffff))); }
HOB_DEVICE float high_half(u32 v) { return __half2float(__ushort_as_half((u16)(v >> 16))); }
// tanh by one exponential; exact to 1e-7, and at both ends.
HOB_DEVICE float hob_tanh(float x) {
  const float e = __expf(-2.f * fabsf(x)), t = (1.f - e) / (1.f + e);
  return x < 0.f ? -t : t;
}
