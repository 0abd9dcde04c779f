// Attention of neighbouring tokens over pages of f16: see prefill.cuh.
#include "prefill.cuh"

HOB_PREFILL(64, 64, 64, KV_F16, prefill_d64_f16)
HOB_PREFILL(128, 64, 32, KV_F16, prefill_d128_f16)
HOB_PREFILL(256, 32, 16, KV_F16, prefill_d256_f16)

HOB_EXPORT(prefill_d64_f16)
HOB_EXPORT(prefill_d128_f16)
HOB_EXPORT(prefill_d256_f16)
