// Q4_1 weights: decode, prefill and embeddings. The equations are in matvec.cuh and matmul.cuh.
#include "matmul.cuh"

HOB_TYPE(Q4_1, q4_1)
