// Attention of neighbouring tokens over pages of q8_0: see prefill.cuh.
#include "prefill.cuh"

HOB_PREFILL(64, 64, 64, KV_Q8_0, prefill_d64_q8_0)
HOB_PREFILL(128, 64, 32, KV_Q8_0, prefill_d128_q8_0)
HOB_PREFILL(256, 32, 16, KV_Q8_0, prefill_d256_q8_0)

HOB_EXPORT(prefill_d64_q8_0)
HOB_EXPORT(prefill_d128_q8_0)
HOB_EXPORT(prefill_d256_q8_0)
