// Attention of single tokens over pages of f16: see decode.cuh.
#include "decode.cuh"

HOB_DECODE(8, 1, KV_F16, decode_d64_g1_f16)
HOB_DECODE(8, 4, KV_F16, decode_d64_g4_f16)
HOB_DECODE(16, 1, KV_F16, decode_d128_g1_f16)
HOB_DECODE(16, 4, KV_F16, decode_d128_g4_f16)
HOB_DECODE(32, 1, KV_F16, decode_d256_g1_f16)
HOB_DECODE(32, 4, KV_F16, decode_d256_g4_f16)

// Joins the cuts of each head: part (rows, heads, splits, dim + 2) of maximum, sum and result, to out[rows[r]] (tokens, heads * dim).
// A block has a head of a row, a thread a dimension.
extern "C" __global__ void __launch_bounds__(256)
    decode_join(const float* __restrict__ part, const int* __restrict__ rows, const int* __restrict__ positions,
                float* __restrict__ out, int heads, int splits, int dim, int window) {
  const int token = rows[blockIdx.y], position = positions[token], d = threadIdx.x;
  if (d >= dim) return;
  const float* from = part + ((size_t)blockIdx.y * heads + blockIdx.x) * splits * (dim + 2);
  const int begin = first_seen(position, window) / CHUNK, end = position / CHUNK + 1;
  float most = -1e30f, sum = 0.f, a = 0.f;
  for (int s = begin; s < end; s++) most = fmaxf(most, from[(size_t)s * (dim + 2)]);
  for (int s = begin; s < end; s++) {
    const float* one = from + (size_t)s * (dim + 2);
    const float c = __expf(one[0] - most);
    sum += one[1] * c;
    a += one[2 + d] * c;
  }
  out[((size_t)token * heads + blockIdx.x) * dim + d] = a / sum;
}

HOB_EXPORT(decode_d64_g1_f16)
HOB_EXPORT(decode_d64_g4_f16)
HOB_EXPORT(decode_d128_g1_f16)
HOB_EXPORT(decode_d128_g4_f16)
HOB_EXPORT(decode_d256_g1_f16)
HOB_EXPORT(decode_d256_g4_f16)
HOB_EXPORT(decode_join)
