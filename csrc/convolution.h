/* Whole group convolutions, forward and backward:
 *
 *     y[o,g](q) = Σ_k u_k[o,g](stride·q + g·k - padding),     u_k = Hᵀ W_k H x.
 *
 * The transform of x is computed once for each tile. A block of output channels at a time, matrix products then compute u
 * for some hundred pixels, and it is added to y, shifted, before it leaves the cache. Backward, the output's gradient is
 * read through the same shifts.
 */
#pragma once
#include "batch_norm.h"
#include "depthwise.h"
#include "filter_products.h"
#include "fused_gc.h"
#include "input_output.h"

namespace {

/* The workspace of a convolution: what threads share, then what each has. Threads ask for tiles, so that none waits long
 * for a slower one. Gradients of filters and norms are summed part by part, each in one order whoever takes it. */
template <class S> struct Workspace {
    using T = typename S::Scalar;
    PhaseElements elements;
    Plan<S> plan;
    Basis<T> basis;
    Array<T> blocks, affine, slope; /* of the filter; (2, I) of the norm; (2, I), see batch_norm.h */
    Array<Stats> stats;                    /* (tiles, O), forward */
    index_t parts;                         /* of the tiles, backward: gradients of each follow */
    Array<T> dblocks, ddepthwise, dnorm;
    PerThread<Thread<S>> threads;

    Workspace(Arena &arena, const Problem &p, Pass pass)
        : elements(arena, p), plan(p, elements, pass, fuses_products<S>(p)), basis(arena, p),
          blocks(arena.take<T>(plan.blocks)), affine(arena.take<T>(2 * p.in_channels)),
          slope(arena.take<T>(2 * p.in_channels)),
          stats(arena.take<Stats>(pass == BACKWARD ? 0 : plan.division.tiles * p.out_channels)), parts(parts_of(p)),
          dblocks(arena.take<T>(parts * plan.blocks)), ddepthwise(arena.take<T>(parts * depthwise_step(p))),
          dnorm(arena.take<T>(parts * norm_step(p))), threads(arena, p.threads, p, plan)
    {
    }

    static index_t depthwise_step(const Problem &p) { return round_up(depthwise_size(p), S::pair); }
    static index_t norm_step(const Problem &p) { return round_up(2 * p.in_channels, S::pair); }

private:
    index_t parts_of(const Problem &p) const
    {
        if (plan.pass != BACKWARD) return 0;
        const index_t values = plan.blocks + depthwise_step(p) + norm_step(p);
        const index_t cached = smaller(PARTS_PER_THREAD * p.threads, PART_VALUES / larger(1, values));
        return smaller(plan.division.tiles, larger(p.threads, p.threads == 1 ? 1 : cached));
    }
};

template <class S> index_t workspace_bytes(const Problem &p, Pass pass)
{
    Arena arena(nullptr);
    if (pass == EXPAND) {
        PhaseElements elements(arena, p);
        FilterChannels<S> channels(arena, p);
    } else
        Workspace<S> workspace(arena, p, pass);
    return arena.bytes();
}

/* ---- filters ---- */

template <class S> index_t filters_size(const Problem &p)
{
    Arena arena(nullptr);
    return Workspace<S>(arena, p, FORWARD).plan.blocks;
}

/* Write the filter of output o as `forward` reads it; backward it is never fused. */
template <class S, typename T = typename S::Scalar>
void expand_filter(const Problem &p, const Tensors &t, const PhaseElements &elements, index_t o, bool fused,
                   const FilterChannels<S> &channels, T *blocks)
{
    expand_output<S>(p, elements, o, (const T *)t.weight, (const T *)t.depthwise, channels, blocks);
    if (fused) interleave_blocks(p, o, blocks);
}

template <class S> void expand_filters(const Problem &p, const Tensors &t)
{
    Arena arena(t.workspace);
    PhaseElements elements(arena, p);
    FilterChannels<S> channels(arena, p);
    for (index_t o = 0; o < p.out_channels; o++)
        expand_filter<S>(p, t, elements, o, fuses_products<S>(p), channels, (typename S::Scalar *)t.expanded);
}

/* ---- forward ---- */

/* Visit a phase's columns, as many at a time as products are computed of. */
template <class Function>
INLINE void for_ranges(const Problem &p, const PhaseElements &elements, const Layout &l, Blocking blocking, index_t first,
                       index_t outputs, index_t step, Function function)
{
    index_t start = 0;
    for (index_t f = 0; f < l.phases; f++) {
        const index_t count = filter_elements(p, elements, f), columns = l.phase[f].count;
        const index_t part = equal_part_size(columns, blocking.columns, step);
        for (index_t c = 0; c < columns; c += part)
            function(ProductRange{f, count, start, first, outputs, l.phase[f].start + c, smaller(part, columns - c)});
        if (p.kind != SEPARABLE) start += blocks_size(p, count);
    }
}

template <class S, typename T = typename S::Scalar>
NOINLINE void forward_tile(const Problem &p, const Tile &t, const Workspace<S> &shared, const Thread<S> &w, const T *x,
                           Affine<T> affine, const T *blocks, const T *depthwise, const Epilogue<T> &end)
{
    const Blocking blocking = shared.plan.blocking;
    const int slices = slices_of_square(p);
    if (shared.plan.fused)
        fourier_of_input(p, t, w, x, affine, true, Dihedral4{});
    else
        with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
            fourier_of_input(p, t, w, x, affine, false, transform);
        });
    for (index_t first = 0; first < p.out_channels; first += blocking.outputs) {
        const index_t outputs = smaller(blocking.outputs, p.out_channels - first);
        if (shared.plan.fused) {
            fused_mid(p, w, blocks, first, outputs);
            depthwise_forward(p, shared.elements, t, w, first, outputs, blocking, depthwise, end, slices);
            continue;
        }
        if (p.kind != SEPARABLE) memset(w.padded_out, 0, outputs * p.order * w.layout.size * sizeof(T));
        for_ranges(p, shared.elements, w.layout, blocking, first, outputs, S::pair, [&](const ProductRange &range) {
            multiply_filters(p, w, blocks, depthwise, range, blocking.step);
            with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
                if (p.kind == SEPARABLE)
                    store_mid(w, range, blocking, transform);
                else
                    accumulate_elements(shared.elements, w, range, blocking.step, transform);
            });
        });
        if (p.kind == SEPARABLE)
            depthwise_forward(p, shared.elements, t, w, first, outputs, blocking, depthwise, end, slices);
        else
            write_planes(p, t, w, first, outputs, end.bias, end.residual, end.y, end.stats);
    }
}

template <class S> void forward(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const Workspace<S> shared(arena, p, FORWARD);
    const T *x = t.x, *depthwise = t.depthwise, *bias = t.bias, *residual = t.residual;
    T *y = t.y, *y_mean = t.y_mean, *y_var = t.y_var, *expanded = t.expanded;
    const Affine<T> affine = affine_of(BatchNorm<T>(p, t), p.in_channels, shared.affine.data);
    const T *blocks = expanded ? expanded : shared.blocks.data;
    if (y_mean) shared.stats.clear();
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        Arena part = shared.threads.part(thread_number());
        Thread<S> w(part, p, shared.plan);
        if (!expanded)
#pragma omp for
            for (index_t o = 0; o < p.out_channels; o++)
                expand_filter<S>(p, t, shared.elements, o, shared.plan.fused, w.filter_channels, shared.blocks.data);
#pragma omp for schedule(dynamic)
        for (index_t n = 0; n < shared.plan.division.tiles; n++) {
            const Tile tile = tile_at(p, shared.plan.division, n, FORWARD);
            Stats *stats = y_mean ? shared.stats + n * p.out_channels : nullptr;
            w.prepare(p, shared.elements, tile);
            forward_tile(p, tile, shared, w, x, affine, blocks, depthwise, Epilogue<T>{bias, residual, y, stats});
        }
    }
    if (y_mean) finalize_stats(shared.stats.data, shared.plan.division.tiles, p.out_channels, y_mean, y_var);
}

/* ---- backward ---- */

template <class S, typename T = typename S::Scalar>
NOINLINE void backward_tile(const Problem &p, const Tensors &t, const Tile &tile, const Workspace<S> &shared,
                            const Thread<S> &w, Affine<T> affine)
{
    const Blocking blocking = shared.plan.blocking;
    const T *x = t.x, *depthwise = t.depthwise, *grad = t.grad, *other_grad = t.other_grad, *blocks = shared.blocks;
    T *dx = t.dx;
    const bool wants_filters = (bool)t.dweight;
    with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
        fourier_of_input(p, tile, w, x, affine, false, transform);
    });
    for (index_t first = 0; first < p.out_channels; first += blocking.outputs) {
        const index_t outputs = smaller(blocking.outputs, p.out_channels - first);
        copy_output_grad(p, tile, w, first, outputs, grad);
        for_ranges(p, shared.elements, w.layout, blocking, first, outputs, S::pair, [&](const ProductRange &range) {
            if (p.kind == SEPARABLE && wants_filters) /* u is read by the gradient of the depthwise factor alone */
                multiply_filters(p, w, blocks, depthwise, range, blocking.step);
            if (p.kind == SEPARABLE)
                with_elements(p.elements, [&](auto count) INLINE_LAMBDA {
                    depthwise_backward(p, shared.elements, shared.basis, w, range, blocking.step, depthwise, count);
                });
            else
                with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
                    gather_elements(shared.elements, w, range, blocking.step, transform);
                });
            multiply_filters_backward(p, w, blocks, depthwise, range, blocking.step, dx != nullptr, wants_filters);
        });
    }
    if (dx)
        with_transform(p, shared.basis, [&](auto transform) INLINE_LAMBDA {
            input_grad_from_fourier(p, tile, w, x, other_grad, dx, affine, transform);
        });
}

/* Compute the tiles of each part, and the part's gradients; one thread's share. */
template <class S, typename T = typename S::Scalar>
void backward_parts(const Problem &p, const Tensors &t, const Workspace<S> &shared, Thread<S> &w, Affine<T> affine)
{
    const index_t tiles = shared.plan.division.tiles, depthwise_step = shared.depthwise_step(p);
#pragma omp for schedule(dynamic)
    for (index_t part = 0; part < shared.parts; part++) {
        w.dblocks = shared.dblocks + part * shared.plan.blocks;
        w.ddepthwise = shared.ddepthwise + part * depthwise_step;
        w.dnorm = shared.dnorm + part * shared.norm_step(p);
        memset(w.dblocks, 0, shared.plan.blocks * sizeof(T));
        memset(w.ddepthwise, 0, depthwise_step * sizeof(T));
        memset(w.dnorm, 0, shared.norm_step(p) * sizeof(T));
        for (index_t n = tiles * part / shared.parts; n < tiles * (part + 1) / shared.parts; n++) {
            const Tile tile = tile_at(p, shared.plan.division, n, BACKWARD);
            w.prepare(p, shared.elements, tile);
            backward_tile(p, t, tile, shared, w, affine);
        }
    }
}

/* Sum the norm's gradients over the parts; one thread's share. */
template <class S, typename T = typename S::Scalar>
void sum_norm_gradients(const Problem &p, const Tensors &t, const Workspace<S> &shared, const BatchNorm<T> &norm)
{
    T *dgamma = t.dgamma, *dbeta = t.dbeta;
    const index_t step = shared.norm_step(p), channels = norm.mean && t.dx ? p.in_channels : 0;
#pragma omp for nowait
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

/* Sum the filter's gradients over the parts; one thread's share. */
template <class S, typename T = typename S::Scalar>
void sum_filter_gradients(const Problem &p, const Tensors &t, const Workspace<S> &shared, const Thread<S> &w)
{
    T *dweight = t.dweight, *ddepthwise = t.ddepthwise;
    const T *weight = t.weight, *depthwise = t.depthwise;
    const index_t outputs = dweight ? p.out_channels : 0, each = depthwise_size(p) / p.out_channels;
    const BlockGradients<T> gradients = {shared.dblocks, shared.parts, shared.plan.blocks};
#pragma omp for
    for (index_t o = 0; o < outputs; o++) {
        for (index_t i = o * each; i < (o + 1) * each; i++) {
            ddepthwise[i] = 0;
            for (index_t part = 0; part < shared.parts; part++)
                ddepthwise[i] += shared.ddepthwise[part * shared.depthwise_step(p) + i];
        }
        filter_gradients<S>(p, shared.elements, o, weight, depthwise, w.filter_channels, gradients, dweight, ddepthwise);
    }
}

template <class S> void backward(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const Workspace<S> shared(arena, p, BACKWARD);
    const BatchNorm<T> norm(p, t);
    const Affine<T> affine = affine_of(norm, p.in_channels, shared.affine.data);
    const Affine<T> slope = {shared.slope, shared.slope + p.in_channels};
    const index_t pixels = product(p.in_size), map = p.in_channels * pixels;
    const T *x = t.x;
    T *dx = t.dx;
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        Arena part = shared.threads.part(thread_number());
        Thread<S> w(part, p, shared.plan);
#pragma omp for
        for (index_t o = 0; o < p.out_channels; o++)
            expand_filter<S>(p, t, shared.elements, o, false, w.filter_channels, shared.blocks.data);
        backward_parts(p, t, shared, w, affine);
        sum_norm_gradients(p, t, shared, norm);
        sum_filter_gradients(p, t, shared, w);
        if (norm.mean && p.batch_stats && dx)
#pragma omp for schedule(static)
            for (index_t n = 0; n < p.batch * p.order; n++)
                add_affine(p.in_channels, pixels, x + n * map, slope, dx + n * map);
    }
}

} // namespace
