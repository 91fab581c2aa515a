/* Group convolutions on a CPU, in the group's Fourier domain, with everything between two feature maps in the cache.
 *
 * With H the fixed transform along the group axis (a scaled Fourier basis), k a kernel element and g·k the place to which g
 * moves it,
 *
 *     y[o,g](q) = Σ_k u_k[o,g](stride·q + g·k - padding),     u_k = Hᵀ W_k H x,
 *
 * and W_k is block-diagonal: 12 multiplications for a pair of channels in place of 64 for p4m. A gc layer has one u for all
 * kernel elements and weights it (depthwise.h). The filter of a g layer is multiplied out but for blocks that stay in factors
 * (factored_gemm.h). Lifting layers are pointwise convolutions of the pixels of each orbit (gather.h); those of few entries,
 * and layers with blocks of few channels, are computed directly (direct.h).
 *
 * Feature maps lie in memory as (B, |H|, C, …). This file is the C interface: `library.py` loads it by path, for any Python.
 * No exceptions and no C++ library: what is allocated is Python's, and every size is checked there.
 */
#include "convolution.h"
#include "direct.h"
#include "norm_clamp.h"
#include "pooling.h"
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using Float = Simd<float, VECTOR_BYTES>;
using Double = Simd<double, VECTOR_BYTES>;
using Short = Simd<float, VECTOR_BYTES, BFloat16>;
using WideFloat = Simd<float, WIDE_BYTES>; /* the same where there are no wider vectors */
using WideShort = Simd<float, WIDE_BYTES, BFloat16>;

/* Return whether rows of this many pixels fill wide vectors. */
bool fills_wide(index_t dtype, index_t row)
{
    return dtype != FLOAT64 && WIDE_BYTES > VECTOR_BYTES && row % WideFloat::lanes == 0;
}

/* Whether a convolution is not computed in the Fourier domain. */
bool is_direct(const Problem &p) { return p.kind == DIRECT || p.groups > 1; }

/* The convolution that is computed: of a gathered problem the pointwise one, else the problem itself. */
struct Computed {
    Problem problem;
    const Problem *gathered;

    explicit Computed(const Problem *p)
        : problem(p->kind == GATHERED ? pointwise_of_gathered(*p) : *p), gathered(p->kind == GATHERED ? p : nullptr)
    {
    }
};

/* Call a function, which is compiled for each kind of vector, with that of feature maps. */
template <class Function> INLINE auto with_simd(int64_t dtype, Function function)
{
    return dtype == FLOAT64 ? function(Double{}) : dtype == BFLOAT16 ? function(Short{}) : function(Float{});
}

/* The same of a convolution, whose vectors may be wide. */
template <class Function> INLINE auto with_simd(const Problem &p, Function function)
{
    const bool wide = !is_direct(p) && fills_wide(p.dtype, p.in_size[2] / p.stride[2]);
    if (wide) return p.dtype == BFLOAT16 ? function(WideShort{}) : function(WideFloat{});
    return with_simd(p.dtype, function);
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

/* ---- what is loaded ---- */

EXPORT int64_t version() { return INTERFACE_VERSION; }
EXPORT int64_t problem_bytes() { return sizeof(Problem); }
EXPORT int64_t tensors_bytes() { return sizeof(Tensors); }

/* Whether the work is shared between threads. */
EXPORT int64_t threaded()
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* ---- sizes ---- */

/* Return the values of the vectors that convolve rows of this many pixels: the layout of expanded filters depends on it. */
EXPORT int64_t vector_values(int64_t dtype, int64_t row)
{
    return dtype == FLOAT64 ? Double::lanes : fills_wide(dtype, row) ? WideFloat::lanes : Float::lanes;
}

EXPORT int64_t workspace_bytes(const Problem *p, int64_t pass)
{
    const Computed of(p);
    return with_simd(of.problem, [&](auto simd) -> index_t {
        using S = decltype(simd);
        if (is_direct(*p)) return direct_workspace_bytes<S>(*p, (Pass)pass);
        return workspace_bytes<S>(of.problem, (Pass)pass, of.gathered);
    });
}

/* Return the values of expanded filters. */
EXPORT int64_t filters_size(const Problem *p)
{
    return with_simd(*p, [&](auto simd) { return filters_size<decltype(simd)>(*p); });
}

/* Return the values of products that forward may save for backward, or 0. */
EXPORT int64_t saved_products(const Problem *p)
{
    return with_simd(*p, [&](auto simd) -> index_t { return is_direct(*p) ? 0 : saved_products<decltype(simd)>(*p); });
}

/* ---- kernels ---- */

/* y, and y_mean and y_var if they are wanted, of x and a filter; expanded filters are used if they are given. */
EXPORT void forward(const Problem *p, const Tensors *t)
{
    const Computed of(p);
    with_simd(of.problem, [&](auto simd) {
        using S = decltype(simd);
        is_direct(*p) ? direct_forward<S>(*p, *t) : forward<S>(of.problem, of.gathered, *t);
    });
}

/* Gradients, where they are wanted: dx, and dgamma and dbeta with it if there is a norm; dweight, and ddepthwise with it.
 * Of a direct convolution also dbias, with dweight; dx unless x is of images. A transposed convolution of grad is dx without
 * x, with a bias (I) added to it. */
EXPORT void backward(const Problem *p, const Tensors *t)
{
    const Computed of(p);
    with_simd(of.problem, [&](auto simd) {
        using S = decltype(simd);
        is_direct(*p) ? direct_backward<S>(*p, *t) : backward<S>(of.problem, of.gathered, *t);
    });
}

/* expanded: what `forward` computes of weight and depthwise. */
EXPORT void expand_filters(const Problem *p, const Tensors *t)
{
    with_simd(*p, [&](auto simd) { expand_filters<decltype(simd)>(*p, *t); });
}

/* y_mean and y_var of x (batch, in_channels, …). */
EXPORT void batch_statistics(const Problem *p, const Tensors *t)
{
    with_simd(p->dtype, [&](auto simd) { batch_statistics<decltype(simd)>(*p, *t); });
}

/* y: clamp(norm(x) + residual, low, high) of x (batch, in_channels, …); the residual may be null. */
EXPORT void norm_clamp(const Problem *p, const Tensors *t)
{
    with_simd(p->dtype, [&](auto simd) { norm_clamp<decltype(simd)>(*p, *t); });
}

/* dx, dresidual, dgamma with dbeta, where they are wanted; y is read where it is given, else norm(x) is clamped. */
EXPORT void norm_clamp_backward(const Problem *p, const Tensors *t)
{
    with_simd(p->dtype, [&](auto simd) { norm_clamp_backward<decltype(simd)>(*p, *t); });
}

/* y: batch norm, ReLU and 2×2 max-pooling of x (batch, in_channels, height, width). */
EXPORT void pool(const Problem *p, const Tensors *t)
{
    with_simd(p->dtype, [&](auto simd) { pool<decltype(simd)>(*p, *t); });
}

/* dx, or dgamma and dbeta, or all three. */
EXPORT void pool_backward(const Problem *p, const Tensors *t)
{
    with_simd(p->dtype, [&](auto simd) { pool_backward<decltype(simd)>(*p, *t); });
}

/* y and index: max-pooling of x (batch, in_channels, height, width). */
EXPORT void max_pool(const Problem *p, const Tensors *t)
{
    with_simd(p->dtype, [&](auto simd) { max_pool<decltype(simd)>(*p, *t); });
}

/* dx: the gradient of y at the places that index has. */
EXPORT void max_pool_backward(const Problem *p, const Tensors *t)
{
    with_simd(p->dtype, [&](auto simd) { max_pool_backward<decltype(simd)>(*p, *t); });
}

/* ---- memory ---- */

/* Ask for large pages where so much is about to be written that the system hands out fresh memory for it. */
EXPORT void expect_writes(void *start, int64_t bytes)
{
#ifdef MADV_HUGEPAGE
    uintptr_t page = 4096, first = ((uintptr_t)start + page - 1) / page * page;
    uintptr_t last = ((uintptr_t)start + (uintptr_t)bytes) / page * page;
    if (last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}
