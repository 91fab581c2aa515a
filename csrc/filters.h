/* Filters in the Fourier domain: for each phase, the blocks W of its kernel elements, one after another, each
 *
 *     (size, outputs, elements, size·I) for W[(a,o,k), (c,i)] = Σ_h irrep[a,c,h] w[o,i,h,k].
 *
 * Rows of (c,i) are filter_row_step(size·I) values apart.
 * Separable filters have the blocks of their pointwise factor, as one element, once for all phases. A filter in factors is
 * multiplied out, but for blocks that stay in factors (tuning.h): these have the blocks of the pointwise factor, too.
 */
#pragma once
#include "gemm.h"
#include "layout.h"

namespace {

/* Return the step of rows of that many values: rows that are read across would all fall on the same places of a cache. */
INLINE index_t filter_row_step(index_t depth)
{
    return depth < FILTER_MIN_PADDED ? depth : odd_multiple(round_up(depth, CACHE_LINE / 4), CACHE_LINE / 4);
}

INLINE bool stays_in_factors(const Problem &p, index_t size, index_t elements)
{
    return USES_FACTORS && p.kind == FACTORED && size == 2 && elements == FACTORED_ELEMENTS && p.elements == elements;
}

/* Return the kernel elements that the blocks of a phase have. */
INLINE index_t filter_elements(const Problem &p, const PhaseElements &elements, index_t phase)
{
    return p.kind == SEPARABLE ? elements.count[phase] > 0 : elements.count[phase];
}

/* Return the values of the blocks of a phase with this number of elements, of some outputs. */
INLINE index_t blocks_size(const Problem &p, index_t elements, index_t outputs)
{
    index_t total = 0;
    for (index_t b = 0; b < p.blocks; b++) {
        index_t size = p.block[3 * b + 1];
        total += size * (stays_in_factors(p, size, elements) ? 1 : elements) * filter_row_step(size * p.in_channels);
    }
    return total * outputs;
}

/* Visit the phases that have blocks of their own: all, or the first that has an element for all. */
template <class Function>
INLINE void for_filter_phases(const Problem &p, const PhaseElements &elements, Function function)
{
    for (index_t f = 0; f < elements.phases; f++) {
        if (p.kind == SEPARABLE && !elements.count[f]) continue;
        function(f);
        if (p.kind == SEPARABLE) return;
    }
}

INLINE index_t blocks_size(const Problem &p, const PhaseElements &elements, index_t outputs)
{
    index_t total = 0;
    for_filter_phases(p, elements, [&](index_t f) INLINE_LAMBDA {
        total += blocks_size(p, filter_elements(p, elements, f), outputs);
    });
    return total;
}

INLINE index_t depthwise_size(const Problem &p)
{
    return p.kind == DENSE ? 0 : p.out_channels * p.elements * (p.kind == FACTORED ? p.in_channels : 1);
}

/* One row of blocks, a, and one copy of the block: what it multiplies, and where its values are. */
struct FilterBlock {
    index_t a, size;
    index_t depth, step;    /* of a row: size·I values, and from one to the next */
    index_t row;            /* of the basis: the first of this copy */
    index_t values;         /* where (outputs, elements, step) begin */
    bool in_factors;
};

/* Visit each row of each block of a phase of some outputs, and each copy of it. */
template <class Function>
INLINE void for_blocks(const Problem &p, index_t start, index_t elements, index_t outputs, Function function)
{
    for (index_t b = 0; b < p.blocks; b++) {
        const index_t size = p.block[3 * b + 1], depth = size * p.in_channels, step = filter_row_step(depth);
        const bool in_factors = stays_in_factors(p, size, elements);
        for (index_t a = 0; a < size; a++, start += outputs * (in_factors ? 1 : elements) * step)
            for (index_t copy = 0; copy < p.block[3 * b + 2]; copy++)
                function(FilterBlock{a, size, depth, step, p.block[3 * b] + copy * size, start, in_factors});
    }
}

/* ---- from parameters to blocks, and from their gradients to those of the parameters ---- */

/* Parameters of some input channels of one output, blocks = irreps · weight of them, and the gradients of both. */
template <class S> struct FilterChannels {
    using T = typename S::Scalar;
    index_t elements, entries;      /* of the weight: 1 of a pointwise one; of the blocks of the basis: Σ size² */
    index_t width, step;            /* channels at a time; of rows of elements · width values, whole wide vectors */
    Array<T> irreps;                /* (entries, order) */
    Array<T> weight, dweight;       /* (order, step) */
    Array<T> blocks, dblocks;       /* (entries, step) */
    Array<T> depthwise, ddepthwise; /* (kernel elements, width) */

    FilterChannels(Arena &arena, const Problem &p)
        : elements(p.kind == DENSE ? p.elements : 1), entries(entries_of(p)),
          width(width_of(p)), step(round_up(elements * width, S::wide_lanes)), irreps(arena.take<T>(entries * p.order)),
          weight(arena.take<T>(p.order * step)), dweight(arena.take<T>(p.order * step)),
          blocks(arena.take<T>(entries * step)), dblocks(arena.take<T>(entries * step)),
          depthwise(arena.take<T>(p.elements * width)), ddepthwise(arena.take<T>(p.elements * width))
    {
        if (arena.measures()) return;
        for (index_t i = 0; i < irreps.size; i++) irreps[i] = (T)p.irreps[i];
        weight.clear(); /* the ends of rows */
        dblocks.clear();
    }

    /* Return how many channels there are from `first` on, at most those of one time. */
    INLINE index_t count(const Problem &p, index_t first) const { return smaller(width, p.in_channels - first); }

    /* Read the channels of output o from `first` on, and compute their blocks. */
    void load(const Problem &p, index_t o, index_t first, const T *all_weight, const T *all_depthwise) const
    {
        const index_t values = p.order * elements, channel = o * p.in_channels + first, end = count(p, first);
        for (index_t c = 0; c < end; c += S::lanes) {
            read_lanes(all_weight + (channel + c) * values, values, end - c, {weight + c, elements, width, step});
            if (p.kind == FACTORED)
                read_lanes(all_depthwise + (channel + c) * p.elements, p.elements, end - c,
                           {depthwise + c, p.elements, width, 0});
        }
        multiply<S>(entries, p.order, step, irreps.data, p.order, weight.data, step, blocks.data, step);
    }

    /* Write the weight's gradients from those of the blocks, add those of the depthwise factor. */
    void store_gradients(const Problem &p, index_t o, index_t first, T *all_dweight, T *all_ddepthwise) const
    {
        const index_t values = p.order * elements, channel = o * p.in_channels + first, end = count(p, first);
        multiply_transposed<S>(false, p.order, 1, entries, step, irreps.data, 0, p.order, dblocks.data, step,
                               dweight.data, step);
        for (index_t c = 0; c < end; c += S::lanes)
            write_lanes({dweight + c, elements, width, step}, all_dweight + (channel + c) * values, values, end - c);
        for (index_t c = 0; c < end && p.kind == FACTORED; c++)
            for (index_t k = 0; k < p.elements; k++)
                all_ddepthwise[(channel + c) * p.elements + k] += ddepthwise[k * width + c];
    }

private:
    /* Whole vectors: as many that weight and blocks stay in the first-level cache. */
    index_t width_of(const Problem &p) const
    {
        const index_t vectors = FILTER_CHANNEL_VALUES / (p.order * elements * S::lanes);
        return S::lanes * larger(1, smaller(vectors, ceil_div(p.in_channels, S::lanes)));
    }
    static index_t entries_of(const Problem &p)
    {
        index_t total = 0;
        for (index_t b = 0; b < p.blocks; b++) total += p.block[3 * b + 1] * p.block[3 * b + 1];
        return total;
    }

    /* Where the values of a vector of channels are: `elements` rows, `width` apart, in each of those that are `step` apart. */
    struct Rows {
        T *row;
        index_t elements, width, step, k = 0;

        INLINE T *next()
        {
            T *current = row + k * width;
            if (++k == elements) k = 0, row += step;
            return current;
        }
    };

    /* Read the values of each channel into rows, those of the last one again where there are no more. */
    static INLINE void read_lanes(const T *from, index_t values, index_t count, Rows rows)
    {
        index_t n = 0;
        for (; count >= S::lanes && n + S::lanes <= values; n += S::lanes) {
            typename S::Vector square[S::lanes];
            for (index_t lane = 0; lane < S::lanes; lane++) square[lane] = S::load(from + lane * values + n);
            S::transpose(square);
            for (index_t i = 0; i < S::lanes; i++) S::store(rows.next(), square[i]);
        }
        for (; n < values; n++) {
            T *row = rows.next();
            for (index_t lane = 0; lane < S::lanes; lane++) row[lane] = from[smaller(lane, count - 1) * values + n];
        }
    }

    /* Write the values of each channel from rows. */
    static INLINE void write_lanes(Rows rows, T *to, index_t values, index_t count)
    {
        index_t n = 0;
        for (; count >= S::lanes && n + S::lanes <= values; n += S::lanes) {
            typename S::Vector square[S::lanes];
            for (index_t i = 0; i < S::lanes; i++) square[i] = S::load(rows.next());
            S::transpose(square);
            for (index_t lane = 0; lane < S::lanes; lane++) S::store(to + lane * values + n, square[lane]);
        }
        for (; n < values; n++) {
            const T *row = rows.next();
            for (index_t lane = 0; lane < smaller(count, S::lanes); lane++) to[lane * values + n] = row[lane];
        }
    }
};

/* One entry (a, c) of one block of a phase. */
struct FilterEntry {
    index_t number;            /* of all entries of the basis */
    const int32_t *element;    /* of the phase */
    index_t start, a, c, size; /* the block's first value */
    Channels held;              /* whose blocks there are */
    index_t rows;              /* elements of the block */
    bool multiplies;           /* pointwise and depthwise factors */

    /* Return where the value of output o, row n and the first input channel is. */
    INLINE index_t at(const Problem &p, index_t o, index_t n) const
    {
        return start + ((a * held.count + o - held.first) * rows + n) * step(p) + c * p.in_channels;
    }
    INLINE index_t step(const Problem &p) const { return filter_row_step(size * p.in_channels); }
};

template <class Function>
INLINE void for_entries(const Problem &p, const PhaseElements &elements, Channels held, Function function)
{
    index_t start = 0;
    for_filter_phases(p, elements, [&](index_t f) INLINE_LAMBDA {
        const index_t count = filter_elements(p, elements, f);
        for (index_t b = 0, number = 0; b < p.blocks; b++) {
            const index_t size = p.block[3 * b + 1];
            const bool in_factors = stays_in_factors(p, size, count);
            const index_t rows = in_factors ? 1 : count;
            for (index_t entry = 0; entry < size * size; entry++, number++)
                function(FilterEntry{number, elements.element[f], start, entry / size, entry % size, size, held,
                                     rows, p.kind == FACTORED && !in_factors});
            start += size * held.count * rows * filter_row_step(size * p.in_channels);
        }
    });
}

/* Write the blocks of output o, one of those held. */
template <class S, typename T = typename S::Scalar>
NOINLINE void expand_output(const Problem &p, const PhaseElements &elements, Channels held, index_t o, const T *weight,
                            const T *depthwise, const FilterChannels<S> &channels, T *blocks)
{
    const bool dense = p.kind == DENSE;
    for (index_t first = 0; first < p.in_channels; first += channels.width) {
        const index_t end = channels.count(p, first);
        channels.load(p, o, first, weight, depthwise);
        for_entries(p, elements, held, [&](const FilterEntry &entry) INLINE_LAMBDA {
            const T *values = channels.blocks + entry.number * channels.step;
            T *to = blocks + entry.at(p, o, 0) + first;
            for (index_t n = 0; n < entry.rows; n++, to += entry.step(p)) {
                const index_t row = entry.element[n] * channels.width;
                for (index_t c = 0; c < end; c += S::lanes) {
                    typename S::Vector value = S::load(values + (dense ? row : 0) + c);
                    if (entry.multiplies) value *= S::load(channels.depthwise + row + c);
                    S::store(to + c, value, end - c);
                }
            }
        });
    }
}

/* The blocks' gradients of parts of the tiles, `step` values apart. */
template <typename T> struct BlockGradients {
    const T *values;
    index_t parts, step;
};

/* Write the weight's gradients of output o from the sum of the parts, and add to those of a depthwise factor. */
template <class S, typename T = typename S::Scalar>
NOINLINE void filter_gradients(const Problem &p, const PhaseElements &elements, Channels held, index_t o, const T *weight,
                               const T *depthwise, const FilterChannels<S> &channels, BlockGradients<T> gradients,
                               T *dweight, T *ddepthwise)
{
    using Vector = typename S::Vector;
    const bool dense = p.kind == DENSE;
    auto add = [](T *to, Vector v) INLINE_LAMBDA { S::store(to, S::load(to) + v); };
    for (index_t first = 0; first < p.in_channels; first += channels.width) {
        const index_t end = channels.count(p, first);
        if (p.kind == FACTORED) channels.load(p, o, first, weight, depthwise);
        channels.dblocks.clear();
        channels.ddepthwise.clear();
        for_entries(p, elements, held, [&](const FilterEntry &entry) INLINE_LAMBDA {
            const index_t at = entry.number * channels.step;
            const T *from = gradients.values + entry.at(p, o, 0) + first;
            for (index_t n = 0; n < entry.rows; n++, from += entry.step(p)) {
                const index_t row = entry.element[n] * channels.width;
                for (index_t c = 0; c < end; c += S::lanes) {
                    Vector sum = {};
                    for (index_t part = 0; part < gradients.parts; part++)
                        sum += S::load(from + part * gradients.step + c, end - c);
                    if (entry.multiplies) {
                        add(channels.ddepthwise + row + c, sum * S::load(channels.blocks + at + c));
                        sum *= S::load(channels.depthwise + row + c);
                    }
                    add(channels.dblocks + at + (dense ? row : 0) + c, sum);
                }
            }
        });
        channels.store_gradients(p, o, first, dweight, ddepthwise);
    }
}

} // namespace
