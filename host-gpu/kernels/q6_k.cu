// Q6_K weights: decode, prefill and embeddings. The equations are in matvec.cuh and matmul.cuh.
#include "matmul.cuh"

HOB_TYPE(Q6_K, q6_k)
