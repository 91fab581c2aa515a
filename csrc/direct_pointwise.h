/* The pointwise step of a separable layer with blocks of channels, before a depthwise step of each plane:
 *
 *     u[o,g] = Σ_i Σ_h w[o,i,h] x[i,g·h],     y[o,g](q) = bias[o] + Σ_k depthwise[o,k] u[o,g](stride·q + g·k - padding).
 */
#pragma once
#include "direct_frame.h"

namespace {

/* Whole images: planes of x and of the gradient of u are rows of all their pixels, in whole vectors with zeros after them. */
template <class S> struct Pointwise {
    using T = typename S::Scalar;
    index_t terms, step, plane_step; /* (i,h); and those that fill the last sums; of planes */
    Array<T> inputs, plane;          /* (I/groups, order, pixels) of one block; a plane of u */
    Array<const T *> from, du_from;  /* (order, step): x[i,g·h]; (order): du[g] */
    Array<T> du, weights, sums;      /* (order, pixels); (order); (O, terms and one that is not read) */
    Array<T> input_grads;            /* as inputs */

    Pointwise(Arena &arena, const Problem &p, bool backward)
        : terms(p.kind == SEPARABLE ? block_inputs(p) * p.order : 0), step(round_up(terms, DIRECT_TERMS)),
          plane_step(terms ? round_up(product(p.in_size), S::lanes) : 0), inputs(arena.take<T>(terms * plane_step)),
          plane(arena.take<T>(plane_step)), from(arena.take<const T *>(p.order * step)),
          du_from(arena.take<const T *>(p.order)), du(arena.take<T>(backward ? p.order * plane_step : 0)),
          weights(arena.take<T>(p.order)), sums(arena.take<T>(backward && terms ? p.out_channels * (terms + 1) : 0)),
          input_grads(arena.take<T>(backward ? inputs.size : 0))
    {
    }

    /* Find the planes that each group element reads, and clear what follows their pixels. */
    void find(const Problem &p) const
    {
        if (!terms) return;
        inputs.clear(), du.clear();
        for (index_t g = 0; g < p.order; g++) {
            const T **next = from + g * step;
            for (index_t i = 0; i < block_inputs(p); i++)
                for (index_t h = 0; h < p.order; h++)
                    *next++ = inputs + (i * p.order + group_product(p, g, h)) * plane_step;
            for (index_t term = terms; term < step; term++, next++) *next = next[-1];
            du_from[g] = du + g * plane_step;
        }
    }

    /* Copy the block's planes of an image. */
    void read(const Problem &p, const FrameBand &band, const typename S::Map *x) const
    {
        for (index_t i = 0; i < block_inputs(p); i++)
            for (index_t h = 0; h < p.order; h++)
                copy_values<S>(product(p.in_size), x + input_map(p, band.image, band.block, i, h),
                            inputs + (i * p.order + h) * plane_step);
    }

    /* frame ← u of an output of the block. */
    void write_frame(const Problem &p, const Frame &f, const FrameBand &band, index_t o, const T *weight, T *frame) const
    {
        const T *none = nullptr;
        const Variable<MAX_ELEMENTS> count = {(int)terms};
        const T *filter = weight + (band.block * block_outputs(p) + o) * terms;
        for (index_t g = 0; g < p.order; g++) {
            weighted_row<S>(filter, from + g * step, 0, T(0), none, plane.data, product(p.in_size), count);
            fill_plane<S>(p, f, band, plane.data, frame + g * f.plane);
        }
    }

    /* Add the gradients of the pointwise factor of an output channel, for which du is there. */
    void add_gradients(const Problem &p, index_t channel) const
    {
        for (index_t g = 0; g < p.order; g++)
            sum_terms<S>(terms, product(p.in_size), du + g * plane_step, from + g * step, sums + channel * (terms + 1));
    }

    /* dx[i,g·h] = Σ_o Σ_g w[o,i,h] du[g] for the channels of the block, one output after another. */
    void write_input_gradient(const Problem &p, const FrameBand &band, index_t o, const T *weight,
                              typename S::Map *dx) const
    {
        const Variable<MAX_ELEMENTS> count = {(int)p.order};
        const T *filter = weight + (band.block * block_outputs(p) + o) * terms;
        for (index_t i = 0; i < block_inputs(p); i++)
            for (index_t plane = 0; plane < p.order; plane++) {
                for (index_t g = 0; g < p.order; g++)
                    for (index_t h = 0; h < p.order; h++)
                        if (group_product(p, g, h) == plane) weights[g] = filter[i * p.order + h];
                T *to = input_grads + (i * p.order + plane) * plane_step;
                const T *before = o ? to : nullptr;
                weighted_row<S>(weights.data, du_from.data, 0, T(0), before, to, product(p.in_size), count);
                if (o == block_outputs(p) - 1)
                    copy_values<S>(product(p.in_size), to, dx + input_map(p, band.image, band.block, i, plane));
            }
    }
};

} // namespace
