// Attention of single tokens over pages of q8_0: see decode.cuh.
#include "decode.cuh"

HOB_DECODE(8, 1, KV_Q8_0, decode_d64_g1_q8_0)
HOB_DECODE(8, 4, KV_Q8_0, decode_d64_g4_q8_0)
HOB_DECODE(16, 1, KV_Q8_0, decode_d128_g1_q8_0)
HOB_DECODE(16, 4, KV_Q8_0, decode_d128_g4_q8_0)
HOB_DECODE(32, 1, KV_Q8_0, decode_d256_g1_q8_0)
HOB_DECODE(32, 4, KV_Q8_0, decode_d256_g4_q8_0)

HOB_EXPORT(decode_d64_g1_q8_0)
HOB_EXPORT(decode_d64_g4_q8_0)
HOB_EXPORT(decode_d128_g1_q8_0)
HOB_EXPORT(decode_d128_g4_q8_0)
HOB_EXPORT(decode_d256_g1_q8_0)
HOB_EXPORT(decode_d256_g4_q8_0)
