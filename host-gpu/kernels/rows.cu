// What happens to rows of activations between products. All of these are bound by the launch: a row is some kilobytes, and in cache.
#include "hob.cuh"

// h = norm(x)  where  x += norm_y(y + bias), in one go: the end of one half of a layer and the beginning of the next.
//
// x, y (rows, n) f32; y, bias (n), y_weight (n) may be null. With `pick`, row r of what is made is of row pick[r], each of which is there once.
// h goes to `out` (rows, n) f32, and to `bytes` (rows, n) with `scales` (rows, n / 32), whichever is not null. n is a multiple
// of 32. A block of 256 has a row; a lane has the same columns in each pass.
extern "C" __global__ void __launch_bounds__(256)
    norm(float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ bias,
         const float* __restrict__ y_weight, const float* __restrict__ weight, const int* __restrict__ pick,
         float* __restrict__ out, i8* __restrict__ bytes, Scale* __restrict__ scales, int n, float eps) {
  HOB_SHARED(float, part, [8]);
  const size_t to = (size_t)blockIdx.x * n, from = (size_t)(pick ? pick[blockIdx.x] : (int)blockIdx.x) * n;
  float by = 1.f;
  if (y && y_weight) {
    float squares = 0.f;
    for (int i = threadIdx.x; i < n; i += 256) {
      const float v = y[from + i] + (bias ? bias[i] : 0.f);
      squares += v * v;
    }
    by = 1.f / sqrtf(block_sum(squares, part) / (float)n + eps);
  }
  float squares = 0.f;
  for (int i = threadIdx.x; i < n; i += 256) {
    float v = x[from + i];
    if (y) {
      const float more = y[from + i] + (bias ? bias[i] : 0.f);
      v += y_weight ? more * by * y_weight[i] : more;
      x[from + i] = v;
    }
    squares += v * v;
  }
  const float r = 1.f / sqrtf(block_sum(squares, part) / (float)n + eps);
  // Whole warps leave together: n is a multiple of 32.
  for (int i = threadIdx.x; i < n; i += 256) {
    const float h = x[from + i] * r * weight[i];
    if (out) out[to + i] = h;
    if (bytes) bytes[to + i] = (i8)quantise_lane(h, scales + (to + i) / 32);
  }
}

// x (rows, n) f32 to bytes and scales; with `rest`, bytes and scales of what that leaves of row r are row count + r.
extern "C" __global__ void __launch_bounds__(128)
    quantise(const float* __restrict__ x, i8* __restrict__ bytes, Scale* __restrict__ scales, u64 count, int rest) {
  const u64 i = (u64)blockIdx.x * 128 + threadIdx.x;
  if (i >= count) return;
  const float v = x[i];
  const int q = quantise_lane(v, scales + i / 32);
  bytes[i] = (i8)q;
  if (rest) {
    const float d = scale_of(v);
    bytes[count + i] = (i8)quantise_lane(v - d * (float)q, scales + (count + i) / 32);
  }
}

// x (rows, n) f32 to f16 times powers (rows): the power of two that makes the largest of a row about 1024.
extern "C" __global__ void __launch_bounds__(256)
    halve(const float* __restrict__ x, __half* __restrict__ out, float* __restrict__ powers, int n) {
  HOB_SHARED(float, part, [8]);
  const float* row = x + (size_t)blockIdx.x * n;
  float most = 0.f;
  for (int i = threadIdx.x; i < n; i += 256) most = fmaxf(most, fabsf(row[i]));
  most = warp_max(most);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++) most = fmaxf(most, part[i]);
  // The exponent alone, kept where its inverse is a normal number, too.
  const int e = min(max((int)(__float_as_uint(most) >> 23), 20), 240);
  const float up = __uint_as_float((u32)(264 - e) << 23);
  for (int i = threadIdx.x; i < n; i += 256) out[(size_t)blockIdx.x * n + i] = clamp_half(row[i] * up);
  if (threadIdx.x == 0) powers[blockIdx.x] = 1.f / up;
}

// out[t] = act(gate[t]) * up[t]: act is silu or gelu with a tanh. gates (rows, 2 n): gate, then up. Results go to `out` (rows, n)
// f32, and to `bytes` and `scales`, whichever is not null. n is a multiple of 32.
extern "C" __global__ void __launch_bounds__(128)
    gate(const float* __restrict__ gates, float* __restrict__ out, i8* __restrict__ bytes, Scale* __restrict__ scales,
         int n, u64 count, int gelu) {
  const u64 i = (u64)blockIdx.x * 128 + threadIdx.x;
  if (i >= count) return;
  const u64 row = i / (u64)n, c = i % (u64)n;
  const float x = gates[row * 2 * n + c], up = gates[row * 2 * n + n + c];
  const float tanh_part = gelu ? hob_tanh(0.7978845608f * (x + 0.044715f * x * x * x)) : 0.f;
  const float v = (gelu ? 0.5f * x * (1.f + tanh_part) : x / (1.f + __expf(-x))) * up;
  if (out) out[i] = v;
  if (bytes) bytes[i] = (i8)quantise_lane(v, scales + i / 32);
}

// The logits of `count` numbers: out = whole + rest, if there is a rest, and then cap * tanh(out / cap), if there is a cap.
extern "C" __global__ void __launch_bounds__(256)
    finish_logits(float* __restrict__ whole, const float* __restrict__ rest, u64 count, float cap) {
  const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= count) return;
  float v = whole[i];
  if (rest) v += rest[i];
  whole[i] = cap > 0.f ? cap * hob_tanh(v / cap) : v;
}

// A file's blocks to planes (see blocks.cuh). `raw` has blocks first to first + count of `blocks`, each of `size` bytes; the plane that begins
// at `plane * blocks` of `out` gets `length` bytes of each, from `offset` on. Two bytes a thread: no type has odd parts.
//
// Bound: memory, each byte read and written once for each load of a model.
extern "C" __global__ void __launch_bounds__(256)
    split(const u16* __restrict__ raw, u16* __restrict__ out, u64 blocks, u64 first, u64 count, int size, int plane,
          int length, int offset) {
  const int halves = length / 2;
  const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= count * (u64)halves) return;
  const u64 block = i / (u64)halves, part = i % (u64)halves;
  out[(blocks * (u64)plane + (first + block) * (u64)length) / 2 + part] = raw[(block * (u64)size + (u64)offset) / 2 + part];
}

HOB_EXPORT(norm)
HOB_EXPORT(quantise)
HOB_EXPORT(halve)
HOB_EXPORT(gate)
HOB_EXPORT(finish_logits)
HOB_EXPORT(split)
