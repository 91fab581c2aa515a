/* Between feature maps in memory and the arrays of a tile: the transform of the input and its gradient, the output's planes. */
#pragma once
#include "batch_norm.h"
#include "thread.h"

namespace {

/* Visit the rows of a phase: its first pixel in a channel of the input, its first column, and its pixels. Rows that have
 * nothing between them are one long row; so are slices. */
template <class Function>
INLINE void for_rows(const Problem &p, const Tile &t, const Phase &phase, Function function)
{
    index_t slices = phase.size[0], rows = phase.size[1], pixels = phase.size[2];
    if (product(p.stride) == 1 && phase.row_step == pixels && phase.count) {
        pixels *= rows, rows = 1;
        if (phase.slice_step == pixels) pixels *= slices, slices = 1;
    }
    for (index_t image = 0; image < t.images; image++)
        for (index_t s = 0; s < slices; s++)
            for (index_t r = 0; r < rows; r++) {
                const index_t slice = t.in_start[0] + p.stride[0] * s + phase.remainder[0];
                const index_t row = t.in_start[1] + p.stride[1] * r + phase.remainder[1];
                const index_t pixel = (slice * p.in_size[1] + row) * p.in_size[2] + phase.remainder[2];
                const index_t column =
                    phase.start + image * phase.image_step + s * phase.slice_step + r * phase.row_step;
                function(t.first_image + image, pixel, column, pixels);
            }
}

/* Call a function, which is compiled for stride 1 and for others, with a stride. */
template <class Function> INLINE void with_stride(index_t stride, Function function)
{
    if (stride == 1)
        function(Constant<1>{});
    else
        function(Variable<MAX_STRIDE>{(int)stride});
}

/* Where x_fourier has a value: (order, I, columns) or, as fused products read it, (columns / lanes, I, order, lanes). */
struct FourierSteps {
    index_t channel, group, column;
};

template <class S> INLINE FourierSteps fourier_steps(const Problem &p, const Layout &layout, bool fused)
{
    if (fused) return {p.order * S::lanes, S::lanes, p.in_channels * p.order};
    return {layout.columns, p.in_channels * layout.columns, 1};
}

/* Vectors, or single values, of one channel: to = H relu(scale·from + shift), without the norm if `normalizes` is not set. */
template <class S, class V, class Stride, class Transform, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void fourier_of_values(const M *from, index_t group_step, Stride stride, bool normalizes, T scale, T shift, T *to,
                              index_t to_step, Transform transform)
{
    V v[Transform::capacity];
#pragma GCC unroll 8
    for (int g = 0; g < transform.order; g++) {
        S::read(v[g], from + g * group_step, stride);
        if (normalizes) {
            v[g] = v[g] * scale + shift;
            v[g] = S::where_positive(v[g], v[g]);
        }
    }
    transform.forward(v);
#pragma GCC unroll 8
    for (int g = 0; g < transform.order; g++) S::write(to + g * to_step, v[g], Constant<1>{});
}

/* The same for a row. */
template <class S, class Stride, class Transform, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void fourier_of_row(const M *from, index_t group_step, Stride stride, index_t pixels, bool normalizes, T scale,
                           T shift, T *to, FourierSteps steps, Transform transform)
{
    index_t c = 0;
    for (; c + S::lanes <= pixels; c += S::lanes)
        fourier_of_values<S, typename S::Vector>(from + c * stride, group_step, stride, normalizes, scale, shift,
                                                 to + c * steps.column, steps.group, transform);
    for (; c < pixels; c++)
        fourier_of_values<S, T>(from + c * stride, group_step, stride, normalizes, scale, shift, to + c, steps.group,
                                transform);
}

/* Feature maps, and the values from one channel, group element or image of them to the next. */
template <typename M> struct InputMaps {
    const M *x;
    index_t channel_step, group_step, image_step;
};

template <typename M> INLINE InputMaps<M> maps_of(const Problem &p, const M *x)
{
    const index_t plane = product(p.in_size);
    return {x, plane, p.in_channels * plane, p.order * p.in_channels * plane};
}

/* x_fourier ← H x for some channels of one tile; values between the rows stay the zeros that they are. */
template <class S, class Transform, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void fourier_of_input(const Problem &p, const Tile &t, const Thread<S> &w, Channels channels, InputMaps<M> maps,
                             Affine<T> affine, bool fused, Transform transform)
{
    const Layout &l = w.layout;
    const FourierSteps steps = fourier_steps<S>(p, l, fused);
    for (index_t f = 0; f < l.phases; f++) {
        const Phase &phase = l.phase[f];
        if (!phase.count) continue;
        for (index_t i = channels.first; i < channels.first + channels.count; i++) {
            const T scale = affine.scale ? affine.scale[i] : 1, shift = affine.shift ? affine.shift[i] : 0;
            for_rows(p, t, phase, [&](index_t image, index_t pixel, index_t column, index_t pixels) INLINE_LAMBDA {
                const M *from = maps.x + image * maps.image_step + i * maps.channel_step + pixel;
                T *to = w.x_fourier + i * steps.channel + column * steps.column;
                with_stride(p.stride[2], [&](auto stride) INLINE_LAMBDA {
                    fourier_of_row<S>(from, maps.group_step, stride, pixels, affine.scale != nullptr, scale, shift, to, steps,
                                      transform);
                });
            });
        }
    }
}

/* The gradients of scale and shift of one channel, as they are summed. */
template <class V> struct AffineSums {
    V scale = {}, shift = {};
};

/* Vectors, or single values, of one channel: dx = other + added + scale·(Hᵀ from where the ReLU let values pass). */
template <class S, class V, class Stride, class Transform, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void input_grad_of_values(const T *from, index_t from_step, const M *x, const M *other, T added, M *dx,
                                 index_t group_step, Stride stride, bool normalizes, T scale, T shift,
                                 AffineSums<V> &sums, Transform transform)
{
    V v[Transform::capacity];
    AffineSums<V> sum = sums; /* a local: dx is written between, and could be anything */
#pragma GCC unroll 8
    for (int g = 0; g < transform.order; g++) S::read(v[g], from + g * from_step, Constant<1>{});
    transform.inverse(v);
#pragma GCC unroll 8
    for (int g = 0; g < transform.order; g++) {
        const index_t at = g * group_step;
        V value;
        if (normalizes) {
            S::read(value, x + at, stride);
            v[g] = S::where_positive(value * scale + shift, v[g]);
            sum.shift += v[g];
            sum.scale += v[g] * value;
            v[g] *= scale;
        }
        if (other) {
            S::read(value, other + at, stride);
            v[g] += value;
        }
        S::write(dx + at, v[g] + added, stride);
    }
    sums = sum;
}

/* dx ← other, or the bias, or zeros, for some channels of one tile. */
template <typename T, typename M>
void copy_input_grad(const Problem &p, const Tile &t, Channels channels, const M *other, const T *bias, M *dx)
{
    const index_t plane = product(p.in_size), pixels = product(t.in_size);
    const index_t start = (t.in_start[0] * p.in_size[1] + t.in_start[1]) * p.in_size[2];
    for (index_t map = t.first_image * p.order; map < (t.first_image + t.images) * p.order; map++)
        for (index_t i = channels.first; i < channels.first + channels.count; i++) {
            const index_t at = (map * p.in_channels + i) * plane + start;
            if (other)
                memcpy(dx + at, other + at, pixels * sizeof(M));
            else
                for (index_t c = 0; c < pixels; c++) dx[at + c] = bias ? bias[i] : 0;
        }
}

/* dx ← other + bias + Hᵀ x_fourier_grad for some channels of one tile, through the norm, without x if there is none; the
 * gradient of the norm's statistics is added by the caller. There is no bias where there is an `other`. */
template <class S, class Transform, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void input_grad_from_fourier(const Problem &p, const Tile &t, const Thread<S> &w, Channels channels, const M *x,
                                    const M *other, const T *bias, M *dx, Affine<T> affine, Transform transform)
{
    using Vector = typename S::Vector;
    const Layout &l = w.layout;
    const index_t plane = product(p.in_size), group_step = p.in_channels * plane;
    const FourierSteps steps = fourier_steps<S>(p, l, false);
    const bool normalizes = affine.scale != nullptr;
    if (l.has_unread_pixels()) copy_input_grad(p, t, channels, other, bias, dx);
    for (index_t f = 0; f < l.phases; f++) {
        const Phase &phase = l.phase[f];
        if (!phase.count) continue;
        for (index_t i = channels.first; i < channels.first + channels.count; i++) {
            const T scale = normalizes ? affine.scale[i] : 1, shift = normalizes ? affine.shift[i] : 0;
            const T added = bias ? bias[i] : 0;
            AffineSums<Vector> sums;
            AffineSums<T> rest;
            for_rows(p, t, phase, [&](index_t image, index_t pixel, index_t column, index_t pixels) INLINE_LAMBDA {
                const index_t start = image * transform.order * group_step + i * plane + pixel;
                const T *from = w.x_fourier_grad + i * steps.channel + column;
                with_stride(p.stride[2], [&](auto stride) INLINE_LAMBDA {
                    auto values = [&](index_t c, auto &sum) INLINE_LAMBDA {
                        const index_t at = start + c * stride;
                        const M *const x_at = x ? x + at : nullptr, *const other_at = other ? other + at : nullptr;
                        input_grad_of_values<S>(from + c, steps.group, x_at, other_at, added, dx + at, group_step, stride,
                                                normalizes, scale, shift, sum, transform);
                    };
                    index_t c = 0;
                    for (; c + S::lanes <= pixels; c += S::lanes) values(c, sums);
                    for (; c < pixels; c++) values(c, rest);
                });
            });
            if (normalizes) {
                w.dnorm[i] += S::sum(sums.scale) + rest.scale;
                w.dnorm[p.in_channels + i] += S::sum(sums.shift) + rest.shift;
            }
        }
    }
}

/* ---- the output ---- */

/* The part of y that a tile has: its pixels follow each other in each channel. */
struct OutputTile {
    index_t plane, start, pixels, width, order, channels, first_image;

    OutputTile(const Problem &p, const Tile &t)
        : plane(product(p.out_size)), start((t.out_start[0] * p.out_size[1] + t.out_start[1]) * p.out_size[2]),
          pixels(product(t.out_size)), width(p.out_size[2]), order(p.order), channels(p.out_channels),
          first_image(t.first_image)
    {
    }

    /* Return where the tile's pixels of one of its images begin, of a group element and an output channel. */
    INLINE index_t at(index_t image, index_t g, index_t o) const
    {
        return (((first_image + image) * order + g) * channels + o) * plane + start;
    }
};

/* padded_out ← a tile's part of the gradient of y, for some outputs; the zeros between stay. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
NOINLINE void copy_output_grad(const Problem &p, const Tile &t, const Thread<S> &w, index_t first, index_t outputs,
                               const M *y)
{
    const Layout &l = w.layout;
    const OutputTile out(p, t);
    for (index_t image = 0; image < t.images; image++)
        for (index_t g = 0; g < p.order; g++)
            for (index_t o = 0; o < outputs; o++) {
                const M *from = y + out.at(image, g, first + o);
                T *plane = w.padded_out + (o * p.order + g) * l.size + l.margin + image * l.image_step;
                for (index_t s = 0; s < t.out_size[0]; s++)
                    for (index_t r = 0; r < t.out_size[1]; r++, from += out.width) {
                        T *to = plane + s * l.slice_step + r * l.row_step;
                        copy_values<S>(out.width, from, to);
                    }
            }
}

/* y ← padded_out + bias + residual; join the statistics of the channels, if they are wanted. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
NOINLINE void write_planes(const Problem &p, const Tile &t, const Thread<S> &w, index_t first, index_t outputs,
                           const T *bias, const M *residual, M *y, Stats *stats)
{
    const Layout &l = w.layout;
    const OutputTile out(p, t);
    for (index_t image = 0; image < t.images; image++)
        for (index_t g = 0; g < p.order; g++)
            for (index_t o = 0; o < outputs; o++) {
                const T *plane = w.padded_out + (o * p.order + g) * l.size + l.margin + image * l.image_step;
                const T added = bias ? bias[first + o] : 0;
                index_t at = out.at(image, g, first + o);
                for (index_t s = 0; s < t.out_size[0]; s++)
                    for (index_t r = 0; r < t.out_size[1]; r++, at += out.width) {
                        const T *from = plane + s * l.slice_step + r * l.row_step;
                        if (residual)
                            for (index_t c = 0; c < out.width; c++) y[at + c] = from[c] + added + residual[at + c];
                        else
                            for (index_t c = 0; c < out.width; c++) y[at + c] = from[c] + added;
                    }
                if (stats) join_values<S>(stats[first + o], y + out.at(image, g, first + o), out.pixels);
            }
}

} // namespace
