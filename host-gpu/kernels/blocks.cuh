// What the bytes of each GGUF type mean, as small integers: w = s * (q - ZERO) + m.
//
// On the device a matrix is not a run of blocks but some planes: all blocks' quants, then all blocks' scales and so on,
// each by block, so that what is read is aligned and neighbouring lanes read neighbouring 16 bytes. `split` in rows.cu
// makes them of a file's blocks; together they have as many bytes.
//
// A *unit* is what a lane reads at once: 16 bytes of quants (32 for Q8_0), which are PIECES times sixteen weights. `place` says which
// sixteen of its block a piece is. Units of a block are numbered from 0.
#pragma once
#include "hob.cuh"

// Four nibbles of each byte's lower or upper half.
HOB_DEVICE u32 nibbles(u32 v, int p) { return (p ? v >> 4 : v) & 0x0f0f0f0fu; }
// Bits 0 to 3 of `b` as bytes, 0 or 1.
HOB_DEVICE u32 spread(u32 b) { return (b * 0x00204081u) & 0x01010101u; }
HOB_DEVICE u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
HOB_DEVICE uint4 load16(const u8* p) { return *reinterpret_cast<const uint4*>(p); }
HOB_DEVICE u32 load4(const u8* p) { return *reinterpret_cast<const u32*>(p); }
HOB_DEVICE u32 load2(const u8* p) { return *reinterpret_cast<const u16*>(p); }

// The values that nibbles of the IQ4 types name: format::quant::CODEBOOK, four to a word.
HOB_DEVICE u32 codebook(u32 n) {
  u32 s = (n | n >> 4) & 0x00ff00ffu;
  s = (s | s >> 8) & 0xffffu;
  const u32 low = __byte_perm(0xbfad9881u, 0xf6eaddcfu, s & 0x7777u);
  const u32 high = __byte_perm(0x26190d01u, 0x71594535u, s & 0x7777u);
  const u32 upper = ((n >> 3) & 0x01010101u) * 0xffu;
  return (low & ~upper) | (high & upper);
}

struct Unit4 {  // planes: q 16 | d 2
  uint4 q;
  float d;
};

template <bool IQ>
struct Blocks4 {
  static constexpr int BLOCK = 32, PIECES = 2, ZERO = IQ ? 0 : 8;
  static constexpr bool MIN = false, WHOLE = true;
  typedef Unit4 Raw;
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int, Raw& r) {
    r.q = load16(w + b * 16);
    r.d = low_half(load2(w + blocks * 16 + b * 2));
  }
  HOB_DEVICE int place(int, int p) { return p; }
  HOB_DEVICE void unpack(const Raw& r, int, int p, u32 (&q)[4], float& s, float& m) {
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = IQ ? codebook(nibbles(word(r.q, i), p)) : nibbles(word(r.q, i), p);
    s = r.d;
    m = 0.f;
  }
};
typedef Blocks4<false> Q4_0;
typedef Blocks4<true> IQ4_NL;

struct Q4_1 {  // q 16 | d, m 4
  static constexpr int BLOCK = 32, PIECES = 2, ZERO = 0;
  static constexpr bool MIN = true, WHOLE = true;
  struct Raw {
    uint4 q;
    u32 dm;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int, Raw& r) {
    r.q = load16(w + b * 16);
    r.dm = load4(w + blocks * 16 + b * 4);
  }
  HOB_DEVICE int place(int, int p) { return p; }
  HOB_DEVICE void unpack(const Raw& r, int, int p, u32 (&q)[4], float& s, float& m) {
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = nibbles(word(r.q, i), p);
    s = low_half(r.dm);
    m = high_half(r.dm);
  }
};

template <bool AFFINE>
struct Blocks5 {  // q 16 | fifth bits 4 | d 2, or d, m 4
  static constexpr int BLOCK = 32, PIECES = 2, ZERO = AFFINE ? 0 : 16;
  static constexpr bool MIN = AFFINE, WHOLE = true;
  struct Raw {
    uint4 q;
    u32 h, dm;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int, Raw& r) {
    r.q = load16(w + b * 16);
    r.h = load4(w + blocks * 16 + b * 4);
    r.dm = AFFINE ? load4(w + blocks * 20 + b * 4) : load2(w + blocks * 20 + b * 2);
  }
  HOB_DEVICE int place(int, int p) { return p; }
  HOB_DEVICE void unpack(const Raw& r, int, int p, u32 (&q)[4], float& s, float& m) {
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = nibbles(word(r.q, i), p) | spread(r.h >> (16 * p + 4 * i) & 15) << 4;
    s = low_half(r.dm);
    m = AFFINE ? high_half(r.dm) : 0.f;
  }
};
typedef Blocks5<false> Q5_0;
typedef Blocks5<true> Q5_1;

struct Q8_0 {  // first sixteen 16 | others 16 | d 2
  static constexpr int BLOCK = 32, PIECES = 2, ZERO = 0;
  static constexpr bool MIN = false, WHOLE = true;
  struct Raw {
    uint4 first, other;
    float d;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int, Raw& r) {
    r.first = load16(w + b * 16);
    r.other = load16(w + blocks * 16 + b * 16);
    r.d = low_half(load2(w + blocks * 32 + b * 2));
  }
  HOB_DEVICE int place(int, int p) { return p; }
  HOB_DEVICE void unpack(const Raw& r, int, int p, u32 (&q)[4], float& s, float& m) {
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = p ? word(r.other, i) : word(r.first, i);
    s = r.d;
    m = 0.f;
  }
};

// Six bits of scale `g` and of its minimum; `head` is d, dmin and twelve bytes: see BlockQ4K.
HOB_DEVICE void six_bits(const uint4& head, int g, float& s, float& m) {
  const int j = 8 * (g & 3);
  const u32 a = head.y >> j, b = head.z >> j, c = head.w >> j;
  const u32 sc = g < 4 ? a & 63 : (c & 15) | (a >> 6 & 3) << 4;
  const u32 mn = g < 4 ? b & 63 : (c >> 4 & 15) | (b >> 6 & 3) << 4;
  s = low_half(head.x) * (float)sc;
  m = -high_half(head.x) * (float)mn;
}

template <bool FIVE>
struct BlocksK45 {  // q 128 | fifth bits 32, if there are | d, dmin, scales 16
  static constexpr int BLOCK = 256, PIECES = 2, ZERO = 0;
  static constexpr bool MIN = true, WHOLE = false;
  struct Raw {
    uint4 q, h, head;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int u, Raw& r) {
    r.q = load16(w + b * 128 + 16 * u);
    if (FIVE) r.h = load16(w + blocks * 128 + b * 32 + 16 * (u & 1));
    r.head = load16(w + blocks * (FIVE ? 160 : 128) + b * 16);
  }
  HOB_DEVICE int place(int u, int p) { return 4 * (u >> 1) + 2 * p + (u & 1); }
  HOB_DEVICE void unpack(const Raw& r, int u, int p, u32 (&q)[4], float& s, float& m) {
    const int g = 2 * (u >> 1) + p;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      q[i] = nibbles(word(r.q, i), p);
      if (FIVE) q[i] |= (word(r.h, i) >> g & 0x01010101u) << 4;
    }
    six_bits(r.head, g, s, m);
  }
};
typedef BlocksK45<false> Q4_K;
typedef BlocksK45<true> Q5_K;

struct Q6_K {  // q 128 | upper two bits 64 | scales 16 | d 2
  static constexpr int BLOCK = 256, PIECES = 2, ZERO = 32;
  static constexpr bool MIN = false, WHOLE = false;
  struct Raw {
    uint4 q, h;
    int scales[2];
    float d;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int u, Raw& r) {
    r.q = load16(w + b * 128 + 16 * u);
    r.h = load16(w + blocks * 128 + b * 64 + 32 * (u >> 2) + 16 * (u & 1));
    const i8* scales = reinterpret_cast<const i8*>(w) + blocks * 192 + b * 16;
    r.scales[0] = scales[place(u, 0)];
    r.scales[1] = scales[place(u, 1)];
    r.d = low_half(load2(w + blocks * 208 + b * 2));
  }
  HOB_DEVICE int place(int u, int p) { return 8 * (u >> 2) + 4 * p + (u & 3); }
  HOB_DEVICE void unpack(const Raw& r, int u, int p, u32 (&q)[4], float& s, float& m) {
    const int shift = 2 * (2 * p + (u >> 1 & 1));
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = nibbles(word(r.q, i), p) | (word(r.h, i) >> shift & 0x03030303u) << 4;
    s = r.d * (float)r.scales[p];
    m = 0.f;
  }
};

struct Q2_K {  // q 64 | scales and minima 16 | d, dmin 4
  static constexpr int BLOCK = 256, PIECES = 4, ZERO = 0;
  static constexpr bool MIN = true, WHOLE = false;
  struct Raw {
    uint4 q;
    u32 scales[2], dm;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int u, Raw& r) {
    r.q = load16(w + b * 64 + 16 * u);
    r.scales[0] = load4(w + blocks * 64 + b * 16 + 8 * (u >> 1));
    r.scales[1] = load4(w + blocks * 64 + b * 16 + 8 * (u >> 1) + 4);
    r.dm = load4(w + blocks * 80 + b * 4);
  }
  HOB_DEVICE int place(int u, int p) { return 8 * (u >> 1) + 2 * p + (u & 1); }
  HOB_DEVICE void unpack(const Raw& r, int u, int p, u32 (&q)[4], float& s, float& m) {
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = word(r.q, i) >> (2 * p) & 0x03030303u;
    const u32 both = (p & 2 ? r.scales[1] : r.scales[0]) >> (8 * (2 * (p & 1) + (u & 1)));
    s = low_half(r.dm) * (float)(both & 15);
    m = -high_half(r.dm) * (float)(both >> 4 & 15);
  }
};

struct Q3_K {  // lower two bits 64 | third bits 32 | scales 12 | d 2
  static constexpr int BLOCK = 256, PIECES = 4, ZERO = 4;
  static constexpr bool MIN = false, WHOLE = false;
  struct Raw {
    uint4 q, h;
    u32 scales[3];
    float d;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int u, Raw& r) {
    r.q = load16(w + b * 64 + 16 * u);
    r.h = load16(w + blocks * 64 + b * 32 + 16 * (u & 1));
#pragma unroll
    for (int i = 0; i < 3; i++) r.scales[i] = load4(w + blocks * 96 + b * 12 + 4 * i);
    r.d = low_half(load2(w + blocks * 108 + b * 2));
  }
  HOB_DEVICE int place(int u, int p) { return 8 * (u >> 1) + 2 * p + (u & 1); }
  HOB_DEVICE void unpack(const Raw& r, int u, int p, u32 (&q)[4], float& s, float& m) {
    const int g = 4 * (u >> 1) + p;
#pragma unroll
    for (int i = 0; i < 4; i++)
      q[i] = (word(r.q, i) >> (2 * p) & 0x03030303u) | (word(r.h, i) >> g & 0x01010101u) << 2;
    // Scale n of sixteen: four lower bits in a nibble of the first eight bytes, two upper ones in the last four.
    const int n = place(u, p), byte = 8 * (n & 3);
    const u32 low = (n & 4 ? r.scales[1] : r.scales[0]) >> (byte + (n >= 8 ? 4 : 0)) & 15;
    const u32 high = r.scales[2] >> (byte + 2 * (n >> 2)) & 3;
    s = r.d * (float)((int)(low | high << 4) - 32);
    m = 0.f;
  }
};

struct IQ4_XS {  // q 128 | d, upper and lower bits of scales 8
  static constexpr int BLOCK = 256, PIECES = 2, ZERO = 0;
  static constexpr bool MIN = false, WHOLE = true;
  struct Raw {
    uint4 q;
    uint2 head;
  };
  HOB_DEVICE void load(const u8* w, size_t blocks, size_t b, int u, Raw& r) {
    r.q = load16(w + b * 128 + 16 * u);
    r.head = *reinterpret_cast<const uint2*>(w + blocks * 128 + b * 8);
  }
  HOB_DEVICE int place(int u, int p) { return 2 * u + p; }
  HOB_DEVICE void unpack(const Raw& r, int u, int p, u32 (&q)[4], float& s, float& m) {
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = codebook(nibbles(word(r.q, i), p));
    const u32 scale = (r.head.y >> (4 * u) & 15) | (r.head.x >> (16 + 2 * u) & 3) << 4;
    s = low_half(r.head.x) * (float)((int)scale - 32);
    m = 0.f;
  }
};

template <class T>
HOB_DEVICE constexpr int units_of_block() {
  return T::BLOCK / (16 * T::PIECES);
}
// q - Z of each byte, for q of at most 63: borrows stay in their byte.
template <int Z>
HOB_DEVICE u32 less(u32 q) {
  return Z ? ((q | 0x80808080u) - 0x01010101u * Z) ^ 0x80808080u : q;
}
