// Deliberately broken kernels: what does the shim catch? usage: bugs N
#include "hob.cuh"
extern "C" __global__ void ok_sum(const float* x, float* y) {            // correct block sum of 128
  HOB_SHARED(float, p, [4]); float s = hob_warp_sum(x[blockIdx.x * 128 + threadIdx.x]);
  if (threadIdx.x % 32 == 0) p[threadIdx.x / 32] = s;
  __syncthreads(); if (threadIdx.x == 0) y[blockIdx.x] = p[0] + p[1] + p[2] + p[3]; }
extern "C" __global__ void no_sync(const float* x, float* y) {           // 1 missing __syncthreads
  HOB_SHARED(float, p, [4]); float s = hob_warp_sum(x[blockIdx.x * 128 + threadIdx.x]);
  if (threadIdx.x % 32 == 0) p[threadIdx.x / 32] = s;
  if (threadIdx.x == 127) y[blockIdx.x] = p[0] + p[1] + p[2] + p[3]; }
extern "C" __global__ void oob_global(const float* x, float* y, int n) { int i = blockIdx.x * 128 + threadIdx.x; if (i <= n) y[i] = x[i]; }   // 2
extern "C" __global__ void oob_shared(const float* x, float* y) { HOB_SHARED(float, p, [127]); p[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[threadIdx.x] = p[0]; }  // 3
extern "C" __global__ void no_wait(const float* x, float* y) {           // 4 cp.async never waited for
  HOB_SHARED(float, p, [512]); hob_cp_async16(&p[threadIdx.x * 4], x + threadIdx.x * 4); hob_cp_async_commit(); __syncthreads(); y[threadIdx.x] = p[threadIdx.x]; hob_cp_async_wait<0>(); }
extern "C" __global__ void div_sync(const float* x, float* y) { if (threadIdx.x < 64) { y[threadIdx.x] = x[threadIdx.x]; __syncthreads(); } else
 { __syncthreads(); y[threadIdx.x] = 0; } }  // 5
extern "C" __global__ void dead_shfl(const float* x, float* y) { if (threadIdx.x % 32 >= 16) return; y[threadIdx.x] = hob_warp_sum(x[threadIdx.x]); }   // 6 reads exited lanes
extern "C" __global__ void cond_shfl(const float* x, float* y) { float v = x[threadIdx.x]; if (v > 0) v = hob_warp_sum(v); __syncthreads(); y[threadIdx.x] = v; }  // 7 full mask in divergent code
extern "C" __global__ void uninit(float* y) { HOB_SHARED(float, p, [128]); if (threadIdx.x) p[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = p[127 - threadIdx.x]; }  // 8
extern "C" __global__ void misaligned(const float* x, float* y) { float4 v = *(const float4*)(x + threadIdx.x + 1); y[threadIdx.x] = v.x; }  // 9
extern "C" __global__ void interblock(const float* x, float* y) { y[threadIdx.x] += x[blockIdx.x * 128 + threadIdx.x]; }   // 10 blocks race on y
extern "C" __global__ void no_syncwarp(const float* x, float* y) { HOB_SHARED(float, p, [32]); p[threadIdx.x] = x[threadIdx.x]; y[threadIdx.x] = p[threadIdx.x ^ 1]; }  // 11
extern "C" __global__ void atomics(const float* x, float* y) { atomicAdd(y, x[blockIdx.x * 128 + threadIdx.x]); }      // 12 correct
extern "C" __global__ void late_sync(float* y) {                          // 13 missing barrier at the end of a loop body (double buffer reused)
  HOB_SHARED(float, p, [128]); float s = 0; for (int i = 0; i < 4; i++) { p[threadIdx.x] = i * 128 + threadIdx.x; __syncthreads(); s += p[127 - threadIdx.x]; } y[threadIdx.x] = s; }
extern "C" __global__ void missing_arrival(float* y) { if (threadIdx.x < 96) __syncthreads(); else { for (;;) { if (__any_sync(HOB_FULL, 1)) break; } __syncwarp(); hob_bar_sync(1, 64); } y[threadIdx.x] = 1; }  // 14 deadlock
extern "C" __global__ void recurse_stack(float* y) { volatile float big[40000]; big[threadIdx.x] = 1; y[threadIdx.x] = big[threadIdx.x]; }   // 15 stack overflow -> guard page
extern "C" __global__ void half_mma(float* y) { if (threadIdx.x >= 16) return; unsigned a[4] = {}, b[2] = {}; float d[4] = {}; hob_mma_f16(d, a, b); y[threadIdx.x] = d[0]; }   // 16 mma by half a warp
extern "C" __global__ void leave_copy(const float* x, float* y) { HOB_SHARED(float, p, [512]); hob_cp_async16(&p[threadIdx.x * 4], x); hob_cp_async_commit(); y[threadIdx.x] = 0; }   // 17 exit with a copy in flight
int main(int c, char** v) {
  std::vector<float> x(256), y(256, 0.f); double want = 0; for (int i = 0; i < 256; i++) { x[i] = (i % 7) - 3; want += i < 128 ? x[i] : 0; }
  int n = atoi(v[1]); std::string e; const float* px = x.data(); float* py = y.data(); double got = 0, exp = 0; std::vector<float> exact_x(x.begin(), x.end()); exact_x.shrink_to_fit();
  switch (n) {
    case 0: e = cusim::run(ok_sum, {2}, {128}, 0, px, py); got = y[0]; exp = want; break;
    case 1: e = cusim::run(no_sync, {2}, {128}, 0, px, py); got = y[0]; exp = want; break;
    case 2: e = cusim::run(oob_global, {3}, {128}, 0, px, py, 256); break;
    case 3: e = cusim::run(oob_shared, {1}, {128}, 0, px, py); got = y[0]; exp = x[0]; break;
    case 4: { std::vector<float> z(512, 1.f); e = cusim::run(no_wait, {1}, {128}, 0, z.data(), py); for (int i = 0; i < 128; i++) got += y[i]; exp = 128; break; }
    case 5: e = cusim::run(div_sync, {1}, {128}, 0, px, py); break;
    case 6: e = cusim::run(dead_shfl, {1}, {128}, 0, px, py); break;
    case 7: e = cusim::run(cond_shfl, {1}, {128}, 0, px, py); break;
    case 8: e = cusim::run(uninit, {1}, {128}, 0, py); got = y[127]; exp = 1; break;
    case 9: e = cusim::run(misaligned, {1}, {128}, 0, px, py); break;
    case 10: e = cusim::run(interblock, {2}, {128}, 0, px, py); break;
    case 11: e = cusim::run(no_syncwarp, {1}, {32}, 0, px, py); got = y[0]; exp = x[1]; break;
    case 12: e = cusim::run(atomics, {2}, {128}, 0, px, py); got = y[0]; for (float f : x) exp += f; break;
    case 13: e = cusim::run(late_sync, {1}, {128}, 0, py); got = y[0]; exp = 4 * 127 + 128 * 6; break;
    case 14: e = cusim::run(missing_arrival, {1}, {128}, 0, py); break;
    case 16: e = cusim::run(half_mma, {1}, {32}, 0, py); break;
    case 17: { float4 z[1] = {}; e = cusim::run(leave_copy, {1}, {128}, 0, (const float*)z, py); break; }
    case 15: e = cusim::run(recurse_stack, {1}, {128}, 0, py); break;
  }
  if (!e.empty()) printf("LAUNCH ERROR: %s\n", e.c_str()); else if (!(got == exp)) printf("WRONG RESULT: %g, expected %g\n", got, exp); else printf("no complaint\n");
}
