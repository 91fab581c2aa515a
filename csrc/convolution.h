/* Whole group convolutions, forward and backward:
 *
 *     y[o,g](q) = Σ_k u_k[o,g](stride·q + g·k - padding),     u_k = Hᵀ W_k H x.
 *
 * The transform of x is computed once for each tile. A block of output channels at a time, matrix products then compute u
 * for some hundred pixels, and it is added to y, shifted, before it leaves the cache. Backward, the output's gradient is
 * read through the same shifts.
 *
 * Threads divide the tiles, after they have transformed the filter together. Where there are few pixels and many channels,
 * they divide the outputs of a single tile: a thread transforms the filters of a block of outputs, uses them, and writes
 * their gradients before they leave its cache.
 */
#pragma once
#include "depthwise.h"
#include "filter_products.h"
#include "gather.h"
#include "workspace.h"

namespace {

/* ---- forward ---- */

/* Return the n-th block of outputs. */
INLINE Channels block_of_outputs(const Problem &p, Blocking blocking, index_t n)
{
    const index_t first = n * blocking.outputs;
    return {first, smaller(blocking.outputs, p.out_channels - first)};
}

INLINE index_t output_blocks(const Problem &p, Blocking blocking) { return ceil_div(p.out_channels, blocking.outputs); }

/* Visit a phase's columns, as many at a time as products are computed of. */
template <class Function>
INLINE void for_ranges(const Problem &p, const PhaseElements &elements, const Layout &l, Blocking blocking, Channels outputs,
                       Channels held, bool adds, index_t step, Function function)
{
    index_t start = 0;
    for (index_t f = 0; f < l.phases; f++) {
        const index_t count = filter_elements(p, elements, f), columns = l.phase[f].count;
        const index_t part = equal_part_size(columns, blocking.columns, step);
        for (index_t c = 0; c < columns; c += part)
            function(ProductRange{f, count, start, outputs.first, outputs.count, l.phase[f].start + c,
                                  smaller(part, columns - c), held, adds});
        if (p.kind != SEPARABLE) start += blocks_size(p, count, held.count);
    }
}

/* w.x_fourier ← H of the pixels that are gathered for some channels of a tile. */
template <class S, typename M = typename S::Map>
void transform_gathered(const Problem &p, const Tile &tile, const Workspace<S> &shared, const Thread<S> &w,
                        Channels channels, const M *x)
{
    Problem alone = p; /* the tile, as if there were nothing else */
    Tile t = tile;
    t.first_image = 0;
    for (int axis = 0; axis < AXES; axis++) alone.in_size[axis] = tile.in_size[axis], t.in_start[axis] = 0;
    const index_t pixels = product(tile.in_size);
    const InputMaps<M> maps = {w.gathered, 0, tile.images * pixels, pixels};
    for (index_t c = channels.first; c < channels.first + channels.count; c++) {
        gather_channel<S>(*shared.gathered, tile, c, x, w.gathered.data);
        with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
            fourier_of_input(alone, t, w, {c, 1}, maps, Affine<typename S::Scalar>{}, false, transform);
        });
    }
}

/* w.x_fourier ← H x of some channels of a tile. */
template <class S, typename T = typename S::Scalar>
NOINLINE void transform_input(const Problem &p, const Tile &tile, const Workspace<S> &shared, const Thread<S> &w,
                              Channels channels, const typename S::Map *x, Affine<T> affine)
{
    if (shared.gathered) return transform_gathered(p, tile, shared, w, channels, x);
    if (shared.plan.fused)
        fourier_of_input(p, tile, w, channels, maps_of(p, x), affine, true, Dihedral4{});
    else
        with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
            fourier_of_input(p, tile, w, channels, maps_of(p, x), affine, false, transform);
        });
}

/* By outputs: shared.x_fourier ← H x of the only tile, if there is an x; one thread's share. */
template <class S, typename T = typename S::Scalar>
void transform_together(const Problem &p, const Tile &tile, const Workspace<S> &shared, Thread<S> &w,
                        const typename S::Map *x, Affine<T> affine)
{
    const index_t parts = x ? smaller(p.threads, p.in_channels) : 0, columns = shared.plan.columns;
    w.prepare(p, shared.elements, tile);
    w.x_fourier.data = shared.x_fourier;
#pragma omp for
    for (index_t part = 0; part < parts; part++) {
        const Channels channels = part_of(p.in_channels, part, parts);
        for (index_t g = 0; g < p.order; g++)
            memset(w.x_fourier + (g * p.in_channels + channels.first) * columns, 0, channels.count * columns * sizeof(T));
        transform_input(p, tile, shared, w, channels, x, affine);
    }
}

/* Copy products of a separable filter from w.gemm_out to those of all outputs, (order, O, columns), or back. */
template <class S, typename T = typename S::Scalar>
void copy_products(const Problem &p, const Plan<S> &plan, const Thread<S> &w, const ProductRange &range, T *all, bool back)
{
    for (index_t row = 0; row < p.order * range.outputs; row++) {
        const index_t g = row / range.outputs, o = range.first + row % range.outputs;
        T *of_range = w.gemm_out + row * plan.blocking.step;
        T *of_all = all + (g * p.out_channels + o) * plan.columns + range.column;
        memcpy(back ? of_range : of_all, back ? of_all : of_range, range.count * sizeof(T));
    }
}

/* Some outputs of a tile, whose transform w has. */
template <class S, typename T = typename S::Scalar>
NOINLINE void forward_outputs(const Problem &p, const Tile &t, const Workspace<S> &shared, const Thread<S> &w,
                              Channels outputs, Filters<T> filters, const T *depthwise, const Epilogue<S> &end,
                              T *products = nullptr)
{
    const Blocking blocking = shared.plan.blocking;
    const int slices = slices_of_square(p);
    if (shared.plan.fused) {
        fused_mid(p, w, filters.blocks, outputs.first, outputs.count);
        depthwise_forward(p, shared.elements, t, w, outputs.first, outputs.count, blocking, depthwise, end, slices);
        return;
    }
    if (p.kind != SEPARABLE) memset(w.padded_out, 0, outputs.count * p.order * w.layout.size * sizeof(T));
    for_ranges(p, shared.elements, w.layout, blocking, outputs, filters.held, false, S::pair, [&](const ProductRange &range) {
        multiply_filters(p, w, filters.blocks, depthwise, range, blocking.step);
        if (products) copy_products(p, shared.plan, w, range, products, false);
        with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
            if (p.kind == SEPARABLE)
                store_mid(w, range, blocking, transform);
            else
                accumulate_elements(shared.elements, w, range, blocking.step, transform);
        });
    });
    if (p.kind == SEPARABLE)
        depthwise_forward(p, shared.elements, t, w, outputs.first, outputs.count, blocking, depthwise, end, slices);
    else
        write_planes(p, t, w, outputs.first, outputs.count, end.bias, end.residual, end.y, end.stats);
}

/* Each of several tiles, with all outputs; one thread's share. */
template <class S, typename T = typename S::Scalar>
void forward_by_tiles(const Problem &p, const Tensors &t, const Workspace<S> &shared, Thread<S> &w, Affine<T> affine,
                      Epilogue<S> end)
{
    const T *expanded = t.expanded;
    const Filters<T> filters = {{0, p.out_channels}, expanded ? expanded : shared.blocks.data};
    Stats *stats = end.stats;
    if (!expanded)
#pragma omp for
        for (index_t o = 0; o < p.out_channels; o++)
            expand_filter<S>(p, t, shared.elements, o, shared.plan.fused, w.filter_channels, shared.blocks.data);
#pragma omp for schedule(dynamic)
    for (index_t n = 0; n < shared.plan.division.tiles; n++) {
        const Tile tile = tile_at(p, shared.plan.division, n, FORWARD);
        if (stats) end.stats = stats + n * p.out_channels;
        w.prepare(p, shared.elements, tile);
        transform_input(p, tile, shared, w, {0, p.in_channels}, (const typename S::Map *)t.x, affine);
        for (index_t b = 0; b < output_blocks(p, shared.plan.blocking); b++)
            forward_outputs(p, tile, shared, w, block_of_outputs(p, shared.plan.blocking, b), filters,
                            (const T *)t.depthwise, end);
    }
}

/* Each block of outputs, on the only tile; one thread's share. */
template <class S, typename T = typename S::Scalar>
void forward_by_outputs(const Problem &p, const Tensors &t, const Workspace<S> &shared, Thread<S> &w, Affine<T> affine,
                        const Epilogue<S> &end)
{
    const T *expanded = t.expanded;
    const Tile tile = tile_at(p, shared.plan.division, 0, FORWARD);
    transform_together(p, tile, shared, w, (const typename S::Map *)t.x, affine);
#pragma omp for schedule(dynamic)
    for (index_t b = 0; b < output_blocks(p, shared.plan.blocking); b++) {
        const Channels outputs = block_of_outputs(p, shared.plan.blocking, b);
        const Filters<T> filters = expanded ? Filters<T>{{0, p.out_channels}, expanded}
                                            : hold_filters(p, t, shared.elements, w, outputs);
        forward_outputs(p, tile, shared, w, outputs, filters, (const T *)t.depthwise, end, (T *)t.products);
    }
}

template <class S> void forward(const Problem &p, const Problem *gathered, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const Workspace<S> shared(arena, p, FORWARD, gathered);
    T *y_mean = t.y_mean, *y_var = t.y_var;
    const Affine<T> affine = affine_of(BatchNorm<T>(p, t), p.in_channels, shared.affine.data);
    const Epilogue<S> end = {t.bias, t.residual, t.y, y_mean ? shared.stats.data : nullptr};
    if (y_mean) shared.stats.clear();
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        Arena part = shared.threads.part(thread_number());
        Thread<S> w(part, p, shared.plan);
        if (shared.plan.division.by_outputs)
            forward_by_outputs(p, t, shared, w, affine, end);
        else
            forward_by_tiles(p, t, shared, w, affine, end);
    }
    if (y_mean) finalize_stats(shared.stats.data, shared.plan.division.tiles, p.out_channels, y_mean, y_var);
}

/* ---- backward ---- */

/* Through some outputs of a tile, whose transform w has: the gradients of x_fourier and of the filters. */
template <class S, typename T = typename S::Scalar>
NOINLINE void backward_outputs(const Problem &p, const Tensors &t, const Tile &tile, const Workspace<S> &shared,
                               const Thread<S> &w, Channels outputs, Filters<T> filters, bool adds)
{
    const Blocking blocking = shared.plan.blocking;
    const T *depthwise = t.depthwise;
    T *products = t.products;
    const bool wants_filters = (bool)t.dweight, wants_x = (bool)t.dx;
    copy_output_grad(p, tile, w, outputs.first, outputs.count, (const typename S::Map *)t.grad);
    for_ranges(p, shared.elements, w.layout, blocking, outputs, filters.held, adds, S::pair, [&](const ProductRange &range) {
        if (p.kind == SEPARABLE && wants_filters) /* u is read by the gradient of the depthwise factor alone */
            products ? copy_products(p, shared.plan, w, range, products, true)
                     : multiply_filters(p, w, filters.blocks, depthwise, range, blocking.step);
        if (p.kind == SEPARABLE)
            with_elements(p.elements, [&](auto count) INLINE_LAMBDA {
                depthwise_backward(p, shared.elements, shared.basis, w, range, blocking.step, depthwise, count);
            });
        else
            with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
                gather_elements(shared.elements, w, range, blocking.step, transform);
            });
        multiply_filters_backward(p, w, filters.blocks, depthwise, range, blocking.step, wants_x, wants_filters);
    });
}

/* dx ← the gradient of some input channels of a tile. */
template <class S, typename T = typename S::Scalar>
NOINLINE void write_input_grad(const Problem &p, const Tensors &t, const Tile &tile, const Workspace<S> &shared,
                               const Thread<S> &w, Channels channels, Affine<T> affine)
{
    const typename S::Map *x = t.x, *other_grad = t.other_grad;
    const T *bias = t.bias;
    typename S::Map *dx = t.dx;
    with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
        input_grad_from_fourier(p, tile, w, channels, x, other_grad, bias, dx, affine, transform);
    });
}

/* Bind the gradients that a thread adds to: those of one part. */
template <class S> void bind_gradients(const Problem &p, const Workspace<S> &shared, Thread<S> &w, index_t part)
{
    w.dblocks = shared.dblocks + part * shared.plan.blocks;
    w.ddepthwise = shared.ddepthwise + part * shared.depthwise_step(p);
    w.dnorm = shared.dnorm + part * shared.norm_step(p);
}

/* Write the filter's gradients of output o, from those of the parts. */
template <class S, typename T = typename S::Scalar>
void write_filter_gradients(const Problem &p, const Tensors &t, const Workspace<S> &shared, const Thread<S> &w,
                            Channels held, index_t o, BlockGradients<T> gradients)
{
    T *dweight = t.dweight, *ddepthwise = t.ddepthwise;
    const index_t each = depthwise_size(p) / p.out_channels;
    for (index_t i = o * each; i < (o + 1) * each; i++) {
        ddepthwise[i] = 0;
        for (index_t part = 0; part < shared.parts; part++)
            ddepthwise[i] += shared.ddepthwise[part * shared.depthwise_step(p) + i];
    }
    filter_gradients<S>(p, shared.elements, held, o, (const T *)t.weight, (const T *)t.depthwise, w.filter_channels,
                        gradients, dweight, ddepthwise);
}

/* Compute the tiles of each part, and the part's gradients; then those of the filters. One thread's share. */
template <class S, typename T = typename S::Scalar>
void backward_by_tiles(const Problem &p, const Tensors &t, const Workspace<S> &shared, Thread<S> &w, Affine<T> affine)
{
    const index_t tiles = shared.plan.division.tiles, outputs = t.dweight ? p.out_channels : 0;
    const Channels all = {0, p.out_channels};
#pragma omp for
    for (index_t o = 0; o < p.out_channels; o++)
        expand_filter<S>(p, t, shared.elements, o, false, w.filter_channels, shared.blocks.data);
#pragma omp for schedule(dynamic)
    for (index_t part = 0; part < shared.parts; part++) {
        bind_gradients(p, shared, w, part);
        memset(w.dblocks, 0, shared.plan.blocks * sizeof(T));
        memset(w.ddepthwise, 0, shared.depthwise_step(p) * sizeof(T));
        memset(w.dnorm, 0, shared.norm_step(p) * sizeof(T));
        for (index_t n = tiles * part / shared.parts; n < tiles * (part + 1) / shared.parts; n++) {
            const Tile tile = tile_at(p, shared.plan.division, n, BACKWARD);
            w.prepare(p, shared.elements, tile);
            if (t.dweight)
                transform_input(p, tile, shared, w, {0, p.in_channels}, (const typename S::Map *)t.x, affine);
            for (index_t b = 0; b < output_blocks(p, shared.plan.blocking); b++)
                backward_outputs(p, t, tile, shared, w, block_of_outputs(p, shared.plan.blocking, b),
                                 Filters<T>{all, shared.blocks}, b > 0);
            if (t.dx) write_input_grad(p, t, tile, shared, w, {0, p.in_channels}, affine);
        }
    }
#pragma omp for
    for (index_t o = 0; o < outputs; o++)
        write_filter_gradients(p, t, shared, w, all, o,
                               BlockGradients<T>{shared.dblocks, shared.parts, shared.plan.blocks});
}

/* Add the gradients of other parts to the first's, of some input channels. */
template <class S> void sum_input_grads(const Problem &p, const Workspace<S> &shared, Channels channels)
{
    const index_t columns = shared.plan.columns, size = p.order * p.in_channels * columns;
    for (index_t part = 1; part < shared.output_parts; part++)
        for (index_t g = 0; g < p.order; g++) {
            typename S::Scalar *to = shared.x_fourier_grads + (g * p.in_channels + channels.first) * columns;
            for (index_t n = 0; n < channels.count * columns; n++) to[n] += to[part * size + n];
        }
}

/* Compute each block of outputs on the only tile, with its filters and their gradients; then the gradient of x. One
 * thread's share. A part's blocks always follow in the same order, so that sums do not depend on who computes them. */
template <class S, typename T = typename S::Scalar>
void backward_by_outputs(const Problem &p, const Tensors &t, const Workspace<S> &shared, Thread<S> &w, Affine<T> affine)
{
    const Tile tile = tile_at(p, shared.plan.division, 0, BACKWARD);
    const index_t parts = shared.output_parts, input_parts = t.dx ? smaller(p.threads, p.in_channels) : 0;
    const typename S::Map *x = t.x;
    transform_together(p, tile, shared, w, t.dweight ? x : nullptr, affine);
    bind_gradients(p, shared, w, 0); /* each part writes those of its channels */
#pragma omp for
    for (index_t part = 0; part < parts; part++) {
        const Channels blocks = part_of(output_blocks(p, shared.plan.blocking), part, parts);
        w.x_fourier_grad.data = shared.x_fourier_grads + part * p.order * p.in_channels * shared.plan.columns;
        for (index_t b = 0; b < blocks.count; b++) {
            const Channels outputs = block_of_outputs(p, shared.plan.blocking, blocks.first + b);
            const Filters<T> filters = hold_filters(p, t, shared.elements, w, outputs);
            const index_t each = depthwise_size(p) / p.out_channels;
            w.dblocks = w.held_dblocks;
            w.held_dblocks.clear();
            memset(w.ddepthwise + outputs.first * each, 0, outputs.count * each * sizeof(T));
            backward_outputs(p, t, tile, shared, w, outputs, filters, b > 0);
            for (index_t o = outputs.first; t.dweight && o < outputs.first + outputs.count; o++)
                write_filter_gradients(p, t, shared, w, outputs, o, BlockGradients<T>{w.held_dblocks, 1, 0});
        }
    }
    w.x_fourier_grad.data = shared.x_fourier_grads;
#pragma omp for
    for (index_t part = 0; part < input_parts; part++) {
        const Channels channels = part_of(p.in_channels, part, input_parts);
        memset(w.dnorm + channels.first, 0, channels.count * sizeof(T));
        memset(w.dnorm + p.in_channels + channels.first, 0, channels.count * sizeof(T));
        sum_input_grads(p, shared, channels);
        write_input_grad(p, t, tile, shared, w, channels, affine);
    }
}

/* Write the norm's gradients, summed over the parts; one thread's share. */
template <class S, typename T = typename S::Scalar>
void write_norm_gradients(const Problem &p, const Tensors &t, const Workspace<S> &shared, const BatchNorm<T> &norm)
{
    T *dgamma = t.dgamma, *dbeta = t.dbeta;
    const index_t step = shared.norm_step(p), channels = norm.mean && t.dx ? p.in_channels : 0;
#pragma omp for
    for (index_t i = 0; i < channels; i++) {
        double dscale = 0, dshift = 0;
        for (index_t part = 0; part < shared.parts; part++) {
            dscale += (double)shared.dnorm[part * step + i];
            dshift += (double)shared.dnorm[part * step + p.in_channels + i];
        }
        const double count = (double)(p.batch * p.order * product(p.in_size));
        const BatchNormGradient<T> gradient(norm, i, count, dscale, dshift);
        dgamma[i] = gradient.dgamma, dbeta[i] = gradient.dbeta;
        shared.slope[i] = gradient.slope, shared.slope[p.in_channels + i] = gradient.offset;
    }
}

template <class S> void backward(const Problem &p, const Problem *gathered, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const Workspace<S> shared(arena, p, BACKWARD, gathered);
    const BatchNorm<T> norm(p, t);
    const Affine<T> affine = affine_of(norm, p.in_channels, shared.affine.data);
    const Affine<T> slope = {shared.slope, shared.slope + p.in_channels};
    const index_t pixels = product(p.in_size), map = p.in_channels * pixels;
    const typename S::Map *x = t.x;
    typename S::Map *dx = t.dx;
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        Arena part = shared.threads.part(thread_number());
        Thread<S> w(part, p, shared.plan);
        if (shared.plan.division.by_outputs)
            backward_by_outputs(p, t, shared, w, affine);
        else
            backward_by_tiles(p, t, shared, w, affine);
        write_norm_gradients(p, t, shared, norm);
        if (norm.mean && p.batch_stats && dx)
#pragma omp for schedule(static)
            for (index_t n = 0; n < p.batch * p.order; n++)
                add_affine<S>(p.in_channels, pixels, x + n * map, slope, dx + n * map);
    }
}

} // namespace
