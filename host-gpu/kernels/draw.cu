// The next token of each row of logits, and how it gets into the step that follows.
#include "hob.cuh"

// Tokens are in order: the largest logit first, of equal ones the first place. That order, up to 32 below the largest (times the temperature,
// where it is above 1), is kept as numbers: see `place_of`. What is further down is never drawn.
//
// All sums are of whole numbers, in units of 2^-40 of the largest weight: they are the same in any order of threads, so that a row
// gives the same token whatever else is in the batch.

constexpr int THREADS = 256, LISTED = 512, BUCKETS = 8, ID_BITS = 24, DEPTH_BITS = 31;
constexpr u64 NOWHERE = ~0ull;
constexpr float DEPTH = 32.f;
// What is summed: tokens, their weights at a temperature of 1, and at that of the draw.
enum { COUNT, MODEL, DRAWN, SUMS, PLACE };

// How a token is chosen: see `Sampling`. `depth` is -ln(min_p); `at` is a number in 0..1, in units of 2^-64.
struct Draw {
  float temperature, top_p, depth;
  u32 top_k;
  u64 at;
};

struct Row {
  const float* logits;
  int n;
  float max, temperature, per_wide;
};

// A beginning of the order: it ends with `place`, and these are its sums.
struct Beginning {
  u64 place, sums[SUMS];
};

struct Shared {
  u64 (*parts)[BUCKETS * SUMS];        // of each warp
  u64 (*first)[SUMS], (*level)[SUMS];  // of each bucket
  u64* places;
  u64 (*weights)[SUMS];
  u64* listed;  // from where the list is, and how large a bucket it is of
  u32* count;
  u64* found;
};

HOB_DEVICE u64 warp_sum(u64 v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(HOB_FULL, v, o);
  return v;
}

// How far below the largest it is, in units of 2^-26 or so, and then its number: smaller is earlier.
HOB_DEVICE u64 place_of(const Row& row, float logit, int i) {
  const float depth = (row.max - logit) * row.per_wide;
  if (!(depth < DEPTH)) return NOWHERE;
  return (u64)(u32)(depth * (float)(1u << (DEPTH_BITS - 5))) << ID_BITS | (u64)i;
}

HOB_DEVICE void weigh(const Row& row, float logit, u64 (&weights)[SUMS]) {
  const float depth = row.max - logit, unit = 1099511627776.f;
  weights[COUNT] = 1;
  weights[MODEL] = (u64)(__expf(-depth) * unit);
  weights[DRAWN] = (u64)(__expf(-depth / row.temperature) * unit);
}

// Sums of the places from `low` on in eight buckets of 2^shift each.
HOB_DEVICE void sum_buckets(const Row& row, u64 low, int shift, u64 (*out)[SUMS], const Shared& s) {
  u64 sums[BUCKETS][SUMS] = {};
  for (int i = threadIdx.x; i < row.n; i += THREADS) {
    const float logit = row.logits[i];
    // What is before `low` wraps around to far behind.
    const u64 bucket = (place_of(row, logit, i) - low) >> shift;
    if (bucket >= BUCKETS) continue;
    u64 weights[SUMS];
    weigh(row, logit, weights);
#pragma unroll
    for (int b = 0; b < BUCKETS; b++)
#pragma unroll
      for (int k = 0; k < SUMS; k++) sums[b][k] += bucket == (u64)b ? weights[k] : 0;
  }
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
  for (int b = 0; b < BUCKETS; b++)
#pragma unroll
    for (int k = 0; k < SUMS; k++) {
      const u64 sum = warp_sum(sums[b][k]);
      if (lane == 0) s.parts[warp][b * SUMS + k] = sum;
    }
  __syncthreads();
  if (threadIdx.x < BUCKETS * SUMS) {
    u64 sum = 0;
    for (int w = 0; w < THREADS / 32; w++) sum += s.parts[w][threadIdx.x];
    out[threadIdx.x / SUMS][threadIdx.x % SUMS] = sum;
  }
  __syncthreads();
}

// Lists the places of a bucket, which are few, and what they weigh, in any order.
HOB_DEVICE void list_bucket(const Row& row, u64 low, int shift, const Shared& s) {
  if (s.listed[0] == low && s.listed[1] == (u64)shift) return;
  __syncthreads();
  if (threadIdx.x == 0) s.count[0] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < row.n; i += THREADS) {
    const float logit = row.logits[i];
    const u64 place = place_of(row, logit, i);
    if ((place - low) >> shift != 0) continue;
    const u32 at = atomicAdd(&s.count[0], 1u);
    u64 weights[SUMS];
    weigh(row, logit, weights);
    s.places[at] = place;
#pragma unroll
    for (int k = 0; k < SUMS; k++) s.weights[at][k] = weights[k];
  }
  if (threadIdx.x == 0) s.listed[0] = low, s.listed[1] = (u64)shift;
  __syncthreads();
}

// One of them, without an address: registers have none.
HOB_DEVICE u64 of_kind(const u64 (&sums)[SUMS], int kind) {
  return kind == COUNT ? sums[COUNT] : kind == MODEL ? sums[MODEL] : sums[DRAWN];
}

// The shortest beginning of which the sum of `kind` is more than `target`; all, if there is none. Of the kind PLACE: what is up to `target`.
//
// Buckets of buckets, until few enough are left to compare each with each.
HOB_DEVICE Beginning find(const Row& row, int kind, u64 target, const Shared& s) {
  Beginning before = {0, {0, 0, 0}};
  u64 (*level)[SUMS] = s.first;
  int shift = DEPTH_BITS + ID_BITS - 3;
  for (;; shift -= 3) {
    int b = 0;
    for (; b < BUCKETS; b++) {
      const bool here = kind == PLACE ? target - before.place < 1ull << shift : target < of_kind(before.sums, kind) + level[b][kind];
      if (here) break;
#pragma unroll
      for (int k = 0; k < SUMS; k++) before.sums[k] += level[b][k];
      before.place += 1ull << shift;
    }
    if (b == BUCKETS) {
      before.place = NOWHERE;
      return before;
    }
    if (level[b][COUNT] <= LISTED) break;
    level = s.level;
    __syncthreads();
    sum_buckets(row, before.place, shift - 3, level, s);
  }
  list_bucket(row, before.place, shift, s);
  const u32 count = s.count[0];
  if (kind != PLACE) {
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
      u64 sum = of_kind(before.sums, kind);
      for (u32 j = 0; j < count; j++) sum += s.places[j] < s.places[i] ? s.weights[j][kind] : 0;
      if (sum <= target && target < sum + s.weights[i][kind]) s.found[0] = s.places[i];
    }
    __syncthreads();
    target = s.found[0];
    __syncthreads();
  }
  // All threads add up the same: the list is short, and they go on with the same sums.
  before.place = target;
  for (u32 i = 0; i < count; i++)
    if (s.places[i] <= target)
#pragma unroll
      for (int k = 0; k < SUMS; k++) before.sums[k] += s.weights[i][k];
  return before;
}

HOB_DEVICE Beginning shorter(const Beginning& a, const Beginning& b) { return b.place < a.place ? b : a; }

// The next token of each row of logits (rows, n): ids (rows). At a temperature of 0 that is the likeliest, the first of them. Else one is drawn
// of the shortest of these beginnings of the order: of `top_k` tokens, if that is not 0; of what has more than `top_p` of the
// weight of those at a temperature of 1; of what is no more than `depth` below the largest. What is no number counts least. A block has a row.
//
// Bound: memory: 4 bytes a logit; later passes are from cache.
extern "C" __global__ void __launch_bounds__(256, 2)
    draw(const float* __restrict__ logits, int n, const Draw* __restrict__ draws, u32* __restrict__ ids) {
  HOB_SHARED(float, s_value, [THREADS]);
  HOB_SHARED(int, s_id, [THREADS]);
  HOB_SHARED(u64, s_parts, [THREADS / 32][BUCKETS * SUMS]);
  HOB_SHARED(u64, s_first, [BUCKETS][SUMS]);
  HOB_SHARED(u64, s_level, [BUCKETS][SUMS]);
  HOB_SHARED(u64, s_places, [LISTED]);
  HOB_SHARED(u64, s_weights, [LISTED][SUMS]);
  HOB_SHARED(u64, s_listed, [2]);
  HOB_SHARED(u64, s_found, [1]);
  HOB_SHARED(u32, s_count, [1]);
  const float* row_logits = logits + (size_t)blockIdx.x * n;
  const float infinity = __uint_as_float(0x7f800000u);
  float value = -infinity;
  int id = 0x7fffffff;
  for (int i = threadIdx.x; i < n; i += THREADS) {
    const float v = row_logits[i];
    if (v > value) value = v, id = i;
  }
  s_value[threadIdx.x] = value;
  s_id[threadIdx.x] = id;
  if (threadIdx.x < 2) s_listed[threadIdx.x] = NOWHERE;
  __syncthreads();
  for (int o = THREADS / 2; o; o >>= 1) {
    if ((int)threadIdx.x < o) {
      const float v = s_value[threadIdx.x + o];
      const int other = s_id[threadIdx.x + o];
      if (v > s_value[threadIdx.x] || (v == s_value[threadIdx.x] && other < s_id[threadIdx.x])) {
        s_value[threadIdx.x] = v;
        s_id[threadIdx.x] = other;
      }
    }
    __syncthreads();
  }
  const float max = s_value[0];
  const Draw how = draws[blockIdx.x];
  if (how.temperature <= 0.f || !(fabsf(max) < infinity)) {
    if (threadIdx.x == 0) ids[blockIdx.x] = s_id[0] == 0x7fffffff ? 0 : (u32)s_id[0];
    return;
  }
  const Row row = {row_logits, n, max, how.temperature, 1.f / fmaxf(how.temperature, 1.f)};
  const Shared s = {s_parts, s_first, s_level, s_places, s_weights, s_listed, s_count, s_found};
  sum_buckets(row, 0, DEPTH_BITS + ID_BITS - 3, s_first, s);
  Beginning kept = {NOWHERE, {0, 0, 0}};
  for (int b = 0; b < BUCKETS; b++)
#pragma unroll
    for (int k = 0; k < SUMS; k++) kept.sums[k] += s_first[b][k];
  if (how.top_k) kept = shorter(kept, find(row, COUNT, how.top_k - 1, s));
  if (how.top_p < 1.f) {
    const u64 target = (u64)((double)how.top_p * (double)kept.sums[MODEL]);
    kept = shorter(kept, find(row, MODEL, target, s));
  }
  // With all that is as far down as this.
  const u64 deepest = place_of(row, max - how.depth, (1 << ID_BITS) - 1);
  if (deepest != NOWHERE) kept = shorter(kept, find(row, PLACE, deepest, s));
  const Beginning drawn = find(row, DRAWN, __umul64hi(kept.sums[DRAWN], how.at), s);
  if (threadIdx.x == 0) ids[blockIdx.x] = (u32)(drawn.place & ((1u << ID_BITS) - 1));
}

// Token i of a step is what row from[i] of the step before drew, unless that is negative: ids, from (n).
extern "C" __global__ void __launch_bounds__(256)
    follow(u32* __restrict__ ids, const int* __restrict__ from, const u32* __restrict__ drawn, int n) {
  const int i = (int)blockIdx.x * 256 + (int)threadIdx.x;
  if (i < n && from[i] >= 0) ids[i] = drawn[from[i]];
}

HOB_EXPORT(draw)
HOB_EXPORT(follow)
