/* Batch norm before a ReLU, its gradients, and the statistics that the next one needs. */
#pragma once
#include "arena.h"
#include "simd.h"

namespace {

/* A norm's parameters and statistics, (channels) each; gamma null is 1, beta null is 0. There is none if mean is null. */
template <typename T> struct BatchNorm {
    const T *gamma, *beta, *mean, *var;
    double eps;

    BatchNorm(const Problem &p, const Tensors &t) : gamma(t.gamma), beta(t.beta), mean(t.mean), var(t.var), eps(p.eps) {}

    /* Of one channel, scale = γ/σ and shift = β - μ·scale. */
    INLINE void affine(index_t i, T *scale, T *shift) const
    {
        double factor = (gamma ? (double)gamma[i] : 1) / sqrt((double)var[i] + eps);
        *scale = (T)factor;
        *shift = (T)((beta ? (double)beta[i] : 0) - (double)mean[i] * factor);
    }
};

/* Scale and shift of each channel, (channels) each: scale·x + shift. scale is null if there is no batch norm. */
template <typename T> struct Affine {
    const T *scale, *shift;
};

/* Write scale and shift of all channels to `memory` (2, channels). */
template <typename T> Affine<T> affine_of(const BatchNorm<T> &norm, index_t channels, T *memory)
{
    if (!norm.mean) return {nullptr, nullptr};
    for (index_t i = 0; i < channels; i++) norm.affine(i, memory + i, memory + channels + i);
    return {memory, memory + channels};
}

/* Gradients of one channel of a norm. Where the statistics are those of x, so that they depend on it, dx also gets
 *
 *     slope·x + offset = -γ/σ·(dβ + x̂·dγ)/count   with x̂ = (x - μ)/σ.
 */
template <typename T> struct BatchNormGradient {
    T dgamma, dbeta, slope, offset;

    BatchNormGradient(const BatchNorm<T> &norm, index_t i, double count, double dscale, double dshift)
    {
        double inverse = 1 / sqrt((double)norm.var[i] + norm.eps);
        double by_gamma = (dscale - (double)norm.mean[i] * dshift) * inverse;
        double factor = -(norm.gamma ? (double)norm.gamma[i] : 1) * inverse / count, by_x = factor * by_gamma * inverse;
        dgamma = (T)by_gamma, dbeta = (T)dshift;
        slope = (T)by_x, offset = (T)(factor * dshift - by_x * (double)norm.mean[i]);
    }
};

/* out += scale[channel]·x + shift[channel], of one feature map (channels, pixels). */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
void add_affine(index_t channels, index_t pixels, const M *x, Affine<T> affine, M *out)
{
    for (index_t i = 0; i < channels; i++, x += pixels, out += pixels)
        for (index_t c = 0; c < pixels; c += S::lanes) {
            const typename S::Vector v = S::load(x + c, pixels - c) * affine.scale[i] + affine.shift[i];
            S::store(out + c, S::load(out + c, pixels - c) + v, pixels - c);
        }
}

/* ---- statistics ---- */

/* Of some values: how many, their mean, and the sum of their squared deviations from it. */
struct Stats {
    double count, mean, squares;
};

/* Join the statistics of two sets of values (Chan, Golub and LeVeque, 1979). */
INLINE void join(Stats &stats, const Stats &other)
{
    double count = stats.count + other.count, step = other.mean - stats.mean;
    if (other.count == 0) return;
    stats.squares += other.squares + step * step * stats.count * other.count / count;
    stats.mean += step * other.count / count;
    stats.count = count;
}

/* Join values that follow each other in memory, few enough to be read twice. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void join_values(Stats &stats, const M *x, index_t count)
{
    typename S::Vector sums = {}, deviations = {};
    T sum = 0, deviation = 0;
    index_t c = 0;
    for (; c + S::lanes <= count; c += S::lanes) sums += S::load(x + c);
    for (; c < count; c++) sum += x[c];
    for (index_t lane = 0; lane < S::lanes; lane++) sum += sums[lane];
    T mean = sum / (T)larger(1, count);
    for (c = 0; c + S::lanes <= count; c += S::lanes) {
        typename S::Vector d = S::load(x + c) - mean;
        deviations += d * d;
    }
    for (; c < count; c++) {
        const T d = x[c] - mean;
        deviation += d * d;
    }
    for (index_t lane = 0; lane < S::lanes; lane++) deviation += deviations[lane];
    join(stats, {(double)count, (double)mean, (double)deviation});
}

/* Write mean and biased variance. */
template <typename T> INLINE void write_stats(const Stats &stats, T *mean, T *var)
{
    *mean = (T)stats.mean;
    *var = (T)(stats.squares / stats.count);
}

/* Write those of each channel, of the statistics of parts (parts, channels) joined in their order. */
template <typename T> void finalize_stats(const Stats *stats, index_t parts, index_t channels, T *mean, T *var)
{
    for (index_t i = 0; i < channels; i++) {
        Stats all = {0, 0, 0};
        for (index_t part = 0; part < parts; part++) join(all, stats[part * channels + i]);
        write_stats(all, mean + i, var + i);
    }
}

/* Write mean and biased variance of each channel of x (batch, channels, pixels). */
template <class S> void batch_statistics(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    const index_t channels = p.in_channels, pixels = product(p.in_size);
    const typename S::Map *x = t.x;
    T *mean = t.y_mean, *var = t.y_var;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t i = 0; i < channels; i++) {
        Stats all = {0, 0, 0};
        for (index_t n = 0; n < p.batch; n++) join_values<S>(all, x + (n * channels + i) * pixels, pixels);
        write_stats(all, mean + i, var + i);
    }
}

} // namespace
