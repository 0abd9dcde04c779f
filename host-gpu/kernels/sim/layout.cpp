// Are the shim's operands where the hardware has them? Packs them by published layouts, (thread, value) to an index in a tile by columns
// (CuTe's mma_traits_sm80.hpp, and the PTX ISA for the short one), rather than by ldmatrix, and checks the products exactly.
#include "hob.cuh"

static float A[16][32], B[8][32];
static double got[16][8];

static void put(int t, const float (&c)[4]) {
  for (int v = 0; v < 4; v++) {
    int i = t % 4 * 32 + t / 4 + v % 2 * 16 + v / 2 * 8;
    got[i % 16][i / 16] = c[v];
  }
}
static unsigned half_bits(float x) { return __half_as_ushort(__float2half(x)); }
static unsigned byte_bits(float x) { return (unsigned)(u8)(i8)x; }

extern "C" __global__ void f16() {
  const int t = threadIdx.x;
  unsigned a[4] = {}, b[2] = {};
  float c[4] = {};
  for (int v = 0; v < 8; v++) {
    int i = t % 4 * 32 + t / 4 + v % 2 * 16 + v / 2 % 2 * 8 + v / 4 * 128;
    a[v / 2] |= half_bits(A[i % 16][i / 16]) << v % 2 * 16;
  }
  for (int v = 0; v < 4; v++) {
    int i = t % 4 * 16 + t / 4 + v % 2 * 8 + v / 2 * 64;
    b[v / 2] |= half_bits(B[i % 8][i / 8]) << v % 2 * 16;
  }
  hob_mma_f16(c, a, b);
  put(t, c);
}
extern "C" __global__ void s8() {
  const int t = threadIdx.x;
  unsigned a[4] = {}, b[2] = {};
  int c[4] = {};
  for (int v = 0; v < 16; v++) {
    int i = t % 4 * 64 + t / 4 + v % 4 * 16 + v / 4 % 2 * 8 + v / 8 * 256;
    a[v / 4] |= byte_bits(A[i % 16][i / 16]) << v % 4 * 8;
  }
  for (int v = 0; v < 8; v++) {
    int i = t % 4 * 32 + t / 4 + v % 4 * 8 + v / 4 * 128;
    b[v / 4] |= byte_bits(B[i % 8][i / 8]) << v % 4 * 8;
  }
  hob_mma_s8(c, a, b);
  const float f[4] = {(float)c[0], (float)c[1], (float)c[2], (float)c[3]};
  put(t, f);
}
extern "C" __global__ void s8_short() {
  const int t = threadIdx.x;
  unsigned a[2] = {}, b = 0;
  int c[4] = {};
  for (int v = 0; v < 8; v++) a[v / 4] |= byte_bits(A[t / 4 + v / 4 * 8][t % 4 * 4 + v % 4]) << v % 4 * 8;
  for (int v = 0; v < 4; v++) b |= byte_bits(B[t / 4][t % 4 * 4 + v]) << v * 8;
  hob_mma_s8_short(c, a[0], a[1], b);
  const float f[4] = {(float)c[0], (float)c[1], (float)c[2], (float)c[3]};
  put(t, f);
}
// SM75_U32x4_LDSM_N: register j of thread t is bits t * 32 + j * 1024 of 32 rows of 128 bits.
extern "C" __global__ void ldmatrix() {
  HOB_SHARED(u16, s, [32][8]);
  const int t = threadIdx.x;
  for (int i = 0; i < 8; i++) s[t][i] = t * 8 + i;
  __syncthreads();
  unsigned r[4];
  hob_ldmatrix_x4(r, s[t]);
  for (int j = 0; j < 4; j++) {
    unsigned e = (t * 32 + j * 1024) / 16;
    if (r[j] != (e | (e + 1) << 16)) __trap();
  }
}

int main() {
  struct { void (*run)(); int deep; } products[] = {{f16, 16}, {s8, 32}, {s8_short, 16}};
  int bad = 0;
  std::string e;
  srand(1);
  for (auto& one : products) {
    for (auto& row : A) for (auto& v : row) v = rand() % 21 - 10;
    for (auto& row : B) for (auto& v : row) v = rand() % 21 - 10;
    e += cusim::run(one.run, {1}, {32}, 0);
    for (int m = 0; m < 16; m++)
      for (int n = 0; n < 8; n++) {
        double s = 0;
        for (int i = 0; i < one.deep; i++) s += A[m][i] * B[n][i];
        bad += s != got[m][n];
      }
  }
  e += cusim::run(ldmatrix, {1}, {32}, 0);
  printf("%d operands in the wrong place %s\n", bad, e.c_str());
  return bad || !e.empty();
}
