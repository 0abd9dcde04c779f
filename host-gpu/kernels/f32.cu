// F32 weights: decode, prefill and embeddings. See float.cuh.
#include "float.cuh"

HOB_FLOAT_TYPE(F32, f32)
