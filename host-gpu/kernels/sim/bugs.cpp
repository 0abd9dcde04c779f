// Kernels with a bug each, and two without: what the shim and the sanitizers must find. `bugs N` runs number N and prints "nothing",
// "wrong result" or "launch error: ...", unless a sanitizer or the system ends it.
#include "hob.cuh"

extern "C" __global__ void correct_sum(const float* x, float* y) {
  HOB_SHARED(float, p, [4]);
  float s = warp_sum(x[blockIdx.x * 128 + threadIdx.x]);
  if (threadIdx.x % 32 == 0) p[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = p[0] + p[1] + p[2] + p[3];
}
extern "C" __global__ void missing_barrier(const float* x, float* y) {
  HOB_SHARED(float, p, [4]);
  float s = warp_sum(x[blockIdx.x * 128 + threadIdx.x]);
  if (threadIdx.x % 32 == 0) p[threadIdx.x / 32] = s;
  if (threadIdx.x == 127) y[blockIdx.x] = p[0] + p[1] + p[2] + p[3];
}
extern "C" __global__ void beyond_global(const float* x, float* y, int n) {
  int i = blockIdx.x * 128 + threadIdx.x;
  if (i <= n) y[i] = x[i];
}
extern "C" __global__ void beyond_shared(const float* x, float* y) {
  HOB_SHARED(float, p, [127]);
  p[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = p[0];
}
extern "C" __global__ void copy_not_waited_for(const float* x, float* y) {
  HOB_SHARED(float, p, [512]);
  hob_cp_async16(&p[threadIdx.x * 4], x + threadIdx.x * 4, true);
  hob_cp_async_commit();
  __syncthreads();
  y[threadIdx.x] = p[threadIdx.x];
  hob_cp_async_wait<0>();
}
extern "C" __global__ void divergent_barrier(const float* x, float* y) {
  if (threadIdx.x < 64) {
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
  } else {
    __syncthreads();
    y[threadIdx.x] = 0;
  }
}
extern "C" __global__ void shuffle_with_the_gone(const float* x, float* y) {
  if (threadIdx.x % 32 >= 16) return;
  y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
extern "C" __global__ void divergent_shuffle(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (v > 0) v = warp_sum(v);
  __syncthreads();
  y[threadIdx.x] = v;
}
extern "C" __global__ void uninitialised(float* y) {
  HOB_SHARED(float, p, [128]);
  if (threadIdx.x) p[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = p[127 - threadIdx.x];
}
extern "C" __global__ void misaligned(const float* x, float* y) {
  float4 v = *(const float4*)(x + threadIdx.x + 1);
  y[threadIdx.x] = v.x;
}
extern "C" __global__ void blocks_race(const float* x, float* y) { y[threadIdx.x] += x[blockIdx.x * 128 + threadIdx.x]; }
extern "C" __global__ void missing_warp_barrier(const float* x, float* y) {
  HOB_SHARED(float, p, [32]);
  p[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = p[threadIdx.x ^ 1];
}
extern "C" __global__ void correct_atomics(const float* x, float* y) { atomicAdd(y, x[blockIdx.x * 128 + threadIdx.x]); }
extern "C" __global__ void missing_barrier_in_loop(float* y) {
  HOB_SHARED(float, p, [128]);
  float s = 0;
  for (int i = 0; i < 4; i++) {
    p[threadIdx.x] = i * 128 + threadIdx.x;
    __syncthreads();
    s += p[127 - threadIdx.x];
  }
  y[threadIdx.x] = s;
}
extern "C" __global__ void some_never_arrive(float* y) {
  if (threadIdx.x < 96) __syncthreads();
  else cusim::barrier(1, 64, false, __FILE__, __LINE__);
  y[threadIdx.x] = 1;
}
extern "C" __global__ void too_much_stack(float* y) {
  volatile float big[40000];
  big[threadIdx.x] = 1;
  y[threadIdx.x] = big[threadIdx.x];
}
extern "C" __global__ void mma_of_half_a_warp(float* y) {
  if (threadIdx.x >= 16) return;
  unsigned a[4] = {}, b[2] = {};
  float d[4] = {};
  hob_mma_f16(d, a, b);
  y[threadIdx.x] = d[0];
}
extern "C" __global__ void copy_left_behind(const float* x, float* y) {
  HOB_SHARED(float, p, [512]);
  hob_cp_async16(&p[threadIdx.x * 4], x, true);
  hob_cp_async_commit();
  y[threadIdx.x] = 0;
}

int main(int, char** arguments) {
  std::vector<float> x(256), y(256, 0.f), many(512, 1.f);
  double half = 0, all = 0, got = 0, want = 0;
  for (int i = 0; i < 256; i++) {
    x[i] = (i % 7) - 3;
    all += x[i];
    if (i < 128) half += x[i];
  }
  const float* px = x.data();
  float* py = y.data();
  std::string e;
  switch (atoi(arguments[1])) {
    case 0: e = cusim::run(correct_sum, {2}, {128}, 0, px, py), got = y[0], want = half; break;
    case 1: e = cusim::run(missing_barrier, {2}, {128}, 0, px, py), got = y[0], want = half; break;
    case 2: e = cusim::run(beyond_global, {3}, {128}, 0, px, py, 256); break;
    case 3: e = cusim::run(beyond_shared, {1}, {128}, 0, px, py), got = y[0], want = x[0]; break;
    case 4:
      e = cusim::run(copy_not_waited_for, {1}, {128}, 0, (const float*)many.data(), py), want = 128;
      for (int i = 0; i < 128; i++) got += y[i];
      break;
    case 5: e = cusim::run(divergent_barrier, {1}, {128}, 0, px, py); break;
    case 6: e = cusim::run(shuffle_with_the_gone, {1}, {128}, 0, px, py); break;
    case 7: e = cusim::run(divergent_shuffle, {1}, {128}, 0, px, py); break;
    case 8: e = cusim::run(uninitialised, {1}, {128}, 0, py), got = y[127], want = 1; break;
    case 9: e = cusim::run(misaligned, {1}, {128}, 0, px, py); break;
    case 10: e = cusim::run(blocks_race, {2}, {128}, 0, px, py); break;
    case 11: e = cusim::run(missing_warp_barrier, {1}, {32}, 0, px, py), got = y[0], want = x[1]; break;
    case 12: e = cusim::run(correct_atomics, {2}, {128}, 0, px, py), got = y[0], want = all; break;
    case 13: e = cusim::run(missing_barrier_in_loop, {1}, {128}, 0, py), got = y[0], want = 4 * 127 + 128 * 6; break;
    case 14: e = cusim::run(some_never_arrive, {1}, {128}, 0, py); break;
    case 15: e = cusim::run(too_much_stack, {1}, {128}, 0, py); break;
    case 16: e = cusim::run(mma_of_half_a_warp, {1}, {32}, 0, py); break;
    case 17: e = cusim::run(copy_left_behind, {1}, {128}, 0, px, py); break;
  }
  if (!e.empty()) printf("launch error: %s\n", e.c_str());
  else puts(got == want ? "nothing" : "wrong result");
}
