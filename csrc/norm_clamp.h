/* y = clamp(norm(x) + residual, low, high) of feature maps (batch, channels, …), in one pass, and its gradients. */
#pragma once
#include "batch_norm.h"

namespace {

/* Return the gradient where y is between the bounds or NaN, else 0. */
template <class S>
INLINE typename S::Vector unclamped(typename S::Vector y, typename S::Vector grad, typename S::Scalar low,
                                    typename S::Scalar high)
{
    return S::where(~((y <= low) | (y >= high)), grad);
}

template <class S> void norm_clamp(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    using Vector = typename S::Vector;
    const BatchNorm<T> norm(p, t);
    const index_t pixels = product(p.in_size);
    const Vector low = S::broadcast((T)p.low), high = S::broadcast((T)p.high);
    const typename S::Map *const x = t.x, *const residual = t.residual;
    typename S::Map *const y = t.y;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t n = 0; n < p.batch * p.in_channels; n++) {
        T scale, shift;
        norm.affine(n % p.in_channels, &scale, &shift);
        const index_t start = n * pixels;
        for (index_t at = 0; at < pixels; at += S::lanes) {
            Vector v = S::load(x + start + at, pixels - at) * scale + shift;
            if (residual) v += S::load(residual + start + at, pixels - at);
            v = S::select(v < low, low, v);
            S::store(y + start + at, S::select(v > high, high, v), pixels - at);
        }
    }
}

/* ---- backward ---- */

/* Where y comes from: nowhere, if nothing is clamped; from x, if there is no residual; or from memory. */
enum ClampedBy { NOTHING, BY_X, BY_Y };

/* One channel of one feature map. */
template <class S> struct ClampedPlane {
    const typename S::Map *x, *y, *grad;
    typename S::Scalar scale, shift, low, high;
};

/* Visit the vectors of a plane: first pixel, pixels that are left, and x and the gradient of norm(x) + residual there. */
template <class S, int By, class Function>
INLINE void for_gradients(const ClampedPlane<S> &plane, index_t pixels, Function function)
{
    auto visit = [&](index_t at, index_t left) INLINE_LAMBDA {
        const typename S::Vector x = S::load(plane.x + at, left);
        typename S::Vector grad = S::load(plane.grad + at, left);
        if constexpr (By == BY_X) grad = unclamped<S>(x * plane.scale + plane.shift, grad, plane.low, plane.high);
        if constexpr (By == BY_Y) grad = unclamped<S>(S::load(plane.y + at, left), grad, plane.low, plane.high);
        function(at, left, x, grad);
    };
    index_t at = 0;
    for (; at + S::lanes <= pixels; at += S::lanes) visit(at, S::lanes);
    if (at < pixels) visit(at, pixels - at);
}

/* norm_clamp_backward, compiled for each ClampedBy. */
template <class S, int By> void norm_clamp_backward(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    using Vector = typename S::Vector;
    const BatchNorm<T> norm(p, t);
    const index_t pixels = product(p.in_size), channels = p.in_channels, all = p.batch * channels;
    const typename S::Map *const x = t.x, *const y = t.y, *const grad = t.grad;
    typename S::Map *const dx = t.dx, *const dresidual = t.dresidual;
    T *const dgamma = t.dgamma, *const dbeta = t.dbeta;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t i = 0; i < channels; i++) {
        T scale, shift, slope = 0, offset = 0;
        norm.affine(i, &scale, &shift);
        const auto plane = [=, &p](index_t n) {
            const typename S::Map *const of_y = By == BY_Y ? y + n * pixels : nullptr;
            return ClampedPlane<S>{x + n * pixels, of_y, grad + n * pixels, scale, shift, (T)p.low, (T)p.high};
        };
        if (dgamma || (dx && p.batch_stats)) {
            double by_scale = 0, by_shift = 0;
            for (index_t n = i; n < all; n += channels) {
                Vector dscale = {}, dshift = {};
                for_gradients<S, By>(plane(n), pixels, [&](index_t, index_t, Vector of_x, Vector of_grad) INLINE_LAMBDA {
                    dscale += of_grad * of_x, dshift += of_grad;
                });
                by_scale += (double)S::sum(dscale), by_shift += (double)S::sum(dshift);
            }
            const BatchNormGradient<T> of_norm(norm, i, (double)(p.batch * pixels), by_scale, by_shift);
            if (dgamma) dgamma[i] = of_norm.dgamma, dbeta[i] = of_norm.dbeta;
            if (p.batch_stats) slope = of_norm.slope, offset = of_norm.offset;
        }
        for (index_t n = i; n < all && (dx || dresidual); n += channels)
            for_gradients<S, By>(plane(n), pixels, [&](index_t at, index_t left, Vector of_x, Vector of_grad) INLINE_LAMBDA {
                if (dresidual) S::store(dresidual + n * pixels + at, of_grad, left);
                if (dx) S::store(dx + n * pixels + at, of_grad * scale + of_x * slope + offset, left);
            });
    }
}

/* Gradients of x, of the residual, and of gamma and beta, where they are wanted. */
template <class S> void norm_clamp_backward(const Problem &p, const Tensors &t)
{
    if (!(p.low > -INFINITY || p.high < INFINITY))
        norm_clamp_backward<S, NOTHING>(p, t);
    else if (t.y)
        norm_clamp_backward<S, BY_Y>(p, t);
    else
        norm_clamp_backward<S, BY_X>(p, t);
}

} // namespace
