/* Everything for one type of number, REAL, in vectors of VECTOR_BYTES; SUFFIX for the names. Included by kernels.c. */
#include "products.inl"
#include "norm.inl"
#include "transform.inl"
#include "fused.inl"
#include "convolution.inl"
#include "lifting.inl"
#include "pooling.inl"
#undef REAL
#undef SUFFIX
