// Q8_0 weights: decode, prefill and embeddings. The equations are in matvec.cuh and matmul.cuh.
#include "matmul.cuh"

HOB_TYPE(Q8_0, q8_0)
