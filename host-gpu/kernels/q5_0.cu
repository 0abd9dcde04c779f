// Q5_0 weights: decode, prefill and embeddings. The equations are in matvec.cuh and matmul.cuh.
#include "matmul.cuh"

HOB_TYPE(Q5_0, q5_0)
