// IQ4_XS weights: decode, prefill and embeddings. The equations are in matvec.cuh and matmul.cuh.
#include "matmul.cuh"

HOB_TYPE(IQ4_XS, iq4_xs)
