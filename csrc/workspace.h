/* The memory of a convolution, and the expanded filters that it holds. */
#pragma once
#include "batch_norm.h"
#include "fused_gc.h"

namespace {

/* The workspace of a convolution: what threads share, then what each has. Threads ask for tiles, so that none waits long
 * for a slower one. Gradients of filters and norms are summed part by part, each in one order whoever takes it. */
template <class S> struct Workspace {
    using T = typename S::Scalar;
    const Problem *gathered; /* where the input is gathered: by which pixels (gather.h); else null */
    PhaseElements elements;
    Plan<S> plan;
    Basis<T> basis;
    Array<T> blocks, affine, slope; /* of the filter, by tiles; (2, I) of the norm; (2, I), see batch_norm.h */
    Array<Stats> stats;             /* (tiles, O), forward */
    index_t parts;                  /* of the tiles, backward: gradients of each follow */
    index_t output_parts;           /* of the outputs, backward and by outputs: gradients of x of each follow, too */
    Array<T> dblocks, ddepthwise, dnorm;
    Array<T> x_fourier;             /* (order, I, columns), by outputs */
    Array<T> x_fourier_grads;       /* (output_parts, order, I, columns) */
    PerThread<Thread<S>> threads;

    Workspace(Arena &arena, const Problem &p, Pass pass, const Problem *of_gathered)
        : gathered(of_gathered), elements(arena, p), plan(p, elements, pass, fuses_products<S>(p), gathered), basis(arena, p),
          blocks(arena.take<T>(shared_blocks())), affine(arena.take<T>(2 * p.in_channels)),
          slope(arena.take<T>(2 * p.in_channels)),
          stats(arena.take<Stats>(pass == BACKWARD ? 0 : plan.division.tiles * p.out_channels)), parts(parts_of(p)),
          output_parts(output_parts_of(p)), dblocks(arena.take<T>(parts * shared_blocks())),
          ddepthwise(arena.take<T>(parts * depthwise_step(p))), dnorm(arena.take<T>(parts * norm_step(p))),
          x_fourier(arena.take<T>(plan.division.by_outputs ? p.order * p.in_channels * plan.columns : 0)),
          x_fourier_grads(arena.take<T>(output_parts * x_fourier.size)),
          threads(arena, p.threads, p, plan)
    {
    }

    static index_t depthwise_step(const Problem &p) { return round_up(depthwise_size(p), S::pair); }
    static index_t norm_step(const Problem &p) { return round_up(2 * p.in_channels, S::pair); }

private:
    index_t shared_blocks() const { return plan.division.by_outputs ? 0 : plan.blocks; }
    index_t parts_of(const Problem &p) const
    {
        if (plan.pass != BACKWARD) return 0;
        if (plan.division.by_outputs) return 1;
        const index_t values = plan.blocks + depthwise_step(p) + norm_step(p);
        const index_t cached = smaller(PARTS_PER_THREAD * p.threads, PART_VALUES / larger(1, values));
        return smaller(plan.division.tiles, larger(p.threads, p.threads == 1 ? 1 : cached));
    }
    index_t output_parts_of(const Problem &p) const
    {
        if (plan.pass != BACKWARD || !plan.division.by_outputs) return 0;
        return smaller(p.threads, ceil_div(p.out_channels, plan.blocking.outputs));
    }
};

template <class S> index_t workspace_bytes(const Problem &p, Pass pass, const Problem *gathered)
{
    Arena arena(nullptr);
    if (pass == EXPAND) {
        PhaseElements elements(arena, p);
        FilterChannels<S> channels(arena, p);
    } else
        Workspace<S> workspace(arena, p, pass, gathered);
    return arena.bytes();
}

/* Return the values of the products of a separable filter that forward saves for backward; 0 where they would take more
 * memory than the filter, or tiles differ. */
template <class S> index_t saved_products(const Problem &p)
{
    Arena arena(nullptr);
    const Plan<S> plan = Workspace<S>(arena, p, FORWARD, nullptr).plan;
    if (p.kind != SEPARABLE || !plan.division.by_outputs || plan.columns > p.in_channels) return 0;
    const Tile forward = tile_at(p, plan.division, 0, FORWARD), backward = tile_at(p, plan.division, 0, BACKWARD);
    for (int axis = 0; axis < AXES; axis++)
        if (forward.in_size[axis] != backward.in_size[axis] || forward.out_size[axis] != backward.out_size[axis]) return 0;
    return p.order * p.out_channels * plan.columns;
}

/* ---- expanded filters ---- */

template <class S> index_t filters_size(const Problem &p)
{
    Arena arena(nullptr);
    return Workspace<S>(arena, p, FORWARD, nullptr).plan.blocks;
}

/* Write the filter of output o as `forward` reads it; backward it is never fused. */
template <class S, typename T = typename S::Scalar>
void expand_filter(const Problem &p, const Tensors &t, const PhaseElements &elements, index_t o, bool fused,
                   const FilterChannels<S> &channels, T *blocks)
{
    expand_output<S>(p, elements, {0, p.out_channels}, o, (const T *)t.weight, (const T *)t.depthwise, channels, blocks);
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

/* Filters of outputs: of all that the threads share, or of those that a thread holds. */
template <typename T> struct Filters {
    Channels held;
    const T *blocks;
};

/* Transform the filters of a block of outputs into the thread's memory. */
template <class S, typename T = typename S::Scalar>
Filters<T> hold_filters(const Problem &p, const Tensors &t, const PhaseElements &elements, const Thread<S> &w, Channels outputs)
{
    for (index_t o = outputs.first; o < outputs.first + outputs.count; o++)
        expand_output<S>(p, elements, outputs, o, (const T *)t.weight, (const T *)t.depthwise, w.filter_channels,
                         w.held_blocks.data);
    return {outputs, w.held_blocks};
}

} // namespace
