// Are the shim's fragments those of the hardware? Packs operands by CUTLASS's published layouts (CuTe mma_traits_sm80.hpp,
// (thread,value) -> index in a column-major tile) instead of through ldmatrix, and checks the product exactly.
#include "hob.cuh"
static float A[16][32], B[8][32]; static double got[16][8];
extern "C" __global__ void f16() {
  const int t = threadIdx.x; unsigned a[4] = {}, b[2] = {}; float c[4] = {};
  for (int v = 0; v < 8; v++) { int i = t % 4 * 32 + t / 4 + v % 2 * 16 + v / 2 % 2 * 8 + v / 4 * 128; a[v / 2] |= (unsigned)__half_as_ushort(__float2half(A[i % 16][i / 16])) << v % 2 * 16; }
  for (int v = 0; v < 4; v++) { int i = t % 4 * 16 + t / 4 + v % 2 * 8 + v / 2 * 64; b[v / 2] |= (unsigned)__half_as_ushort(__float2half(B[i % 8][i / 8])) << v % 2 * 16; }
  hob_mma_f16(c, a, b);
  for (int v = 0; v < 4; v++) { int i = t % 4 * 32 + t / 4 + v % 2 * 16 + v / 2 * 8; got[i % 16][i / 16] = c[v]; }
}
extern "C" __global__ void s8() {
  const int t = threadIdx.x; unsigned a[4] = {}, b[2] = {}; int c[4] = {};
  for (int v = 0; v < 16; v++) { int i = t % 4 * 64 + t / 4 + v % 4 * 16 + v / 4 % 2 * 8 + v / 8 * 256; a[v / 4] |= (unsigned)(u8)(i8)A[i % 16][i / 16] << v % 4 * 8; }
  for (int v = 0; v < 8; v++) { int i = t % 4 * 32 + t / 4 + v % 4 * 8 + v / 4 * 128; b[v / 4] |= (unsigned)(u8)(i8)B[i % 8][i / 8] << v % 4 * 8; }
  hob_mma_s8(c, a, b);
  for (int v = 0; v < 4; v++) { int i = t % 4 * 32 + t / 4 + v % 2 * 16 + v / 2 * 8; got[i % 16][i / 16] = c[v]; }
}
extern "C" __global__ void ldm() {   // SM75_U32x4_LDSM_N: register j of thread t is bits t*32 + j*1024 of the 32 rows of 128 bits
  HOB_SHARED(u16, s, [32][8]); const int t = threadIdx.x; for (int i = 0; i < 8; i++) s[t][i] = t * 8 + i; __syncthreads();
  unsigned r[4]; hob_ldmatrix_x4(r, s[t]);
  for (int j = 0; j < 4; j++) { unsigned e = (t * 32 + j * 1024) / 16; if (r[j] != (e | (e + 1) << 16)) __trap(); }
}
int main() {
  int bad = 0; std::string e; srand(1);
  for (int k : {16, 32}) {
    for (auto& r : A) for (auto& v : r) v = rand() % 21 - 10; for (auto& r : B) for (auto& v : r) v = rand() % 21 - 10;
    e += k == 16 ? cusim::run(f16, {1}, {32}, 0) : cusim::run(s8, {1}, {32}, 0);
    for (int m = 0; m < 16; m++) for (int n = 0; n < 8; n++) { double s = 0; for (int i = 0; i < k; i++) s += A[m][i] * B[n][i]; bad += s != got[m][n]; }
  }
  e += cusim::run(ldm, {1}, {32}, 0); printf("layouts: %d wrong %s\n", bad, e.c_str()); return bad || !e.empty();
}
