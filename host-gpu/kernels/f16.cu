// F16 weights: decode, prefill and embeddings. See float.cuh.
#include "float.cuh"

HOB_FLOAT_TYPE(F16, f16)
