// IQ4_NL weights: decode, prefill and embeddings. The equations are in matvec.cuh and matmul.cuh.
#include "matmul.cuh"

HOB_TYPE(IQ4_NL, iq4_nl)
