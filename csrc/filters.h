/* Filters in the Fourier domain: for each phase, the blocks W of its kernel elements, one after another, each
 *
 *     (size, O, elements, size, I) for W[(a,o,k), (c,i)] = Σ_h irrep[a,c,h] w[o,i,h,k].
 *
 * Separable filters have the blocks of their pointwise factor, as one element. A filter in factors is multiplied out, but
 * for blocks that stay in factors (tuning.h): these have the blocks of the pointwise factor, too.
 */
#pragma once
#include "layout.h"

namespace {

INLINE bool stays_in_factors(const Problem &p, index_t size, index_t elements)
{
    return USES_FACTORS && p.kind == FACTORED && size == 2 && elements == FACTORED_ELEMENTS && p.elements == elements;
}

/* Return the kernel elements that the blocks of a phase have. */
INLINE index_t filter_elements(const Problem &p, const PhaseElements &elements, index_t phase)
{
    return p.kind == SEPARABLE ? elements.count[phase] > 0 : elements.count[phase];
}

/* Return the values of the blocks of a phase with this number of elements. */
INLINE index_t blocks_size(const Problem &p, index_t elements)
{
    index_t total = 0;
    for (index_t b = 0; b < p.blocks; b++) {
        index_t size = p.block[3 * b + 1];
        total += size * size * (stays_in_factors(p, size, elements) ? 1 : elements);
    }
    return total * p.out_channels * p.in_channels;
}

INLINE index_t blocks_size(const Problem &p, const PhaseElements &elements)
{
    index_t total = 0;
    for (index_t f = 0; f < elements.phases; f++) total += blocks_size(p, filter_elements(p, elements, f));
    return total;
}

INLINE index_t depthwise_size(const Problem &p)
{
    return p.kind == DENSE ? 0 : p.out_channels * p.elements * (p.kind == FACTORED ? p.in_channels : 1);
}

/* One row of blocks, a, and one copy of the block: what it multiplies, and where its values are. */
struct FilterBlock {
    index_t a, size, depth; /* depth = size·I, contiguous */
    index_t row;            /* of the basis: the first of this copy */
    index_t values;         /* where (O, elements, size, I) begin */
    bool in_factors;
};

/* Visit each row of each block of a phase, and each copy of it. */
template <class Function>
INLINE void for_blocks(const Problem &p, index_t start, index_t elements, Function function)
{
    for (index_t b = 0; b < p.blocks; b++) {
        const index_t size = p.block[3 * b + 1], depth = size * p.in_channels;
        const bool in_factors = stays_in_factors(p, size, elements);
        for (index_t a = 0; a < size; a++, start += p.out_channels * (in_factors ? 1 : elements) * depth)
            for (index_t copy = 0; copy < p.block[3 * b + 2]; copy++)
                function(FilterBlock{a, size, depth, p.block[3 * b] + copy * size, start, in_factors});
    }
}

/* ---- from parameters to blocks, and from their gradients to those of the parameters ---- */

/* Parameters of S::lanes input channels of one output, and their gradients. */
template <class S> struct FilterChannels {
    using T = typename S::Scalar;
    index_t elements; /* of the weight: 1 of a pointwise one */
    Array<T> weight, depthwise, dweight, ddepthwise; /* (order, elements, lanes), (kernel elements, lanes) */

    FilterChannels(Arena &arena, const Problem &p)
        : elements(p.kind == DENSE ? p.elements : 1), weight(arena.take<T>(p.order * elements * S::lanes)),
          depthwise(arena.take<T>(p.elements * S::lanes)), dweight(arena.take<T>(weight.size)),
          ddepthwise(arena.take<T>(depthwise.size))
    {
    }

    /* Read the channels of output o from `first` on, the last one again where there are no more. */
    void load(const Problem &p, index_t o, index_t first, const T *all_weight, const T *all_depthwise) const
    {
        const index_t last = p.in_channels - 1 - first, values = p.order * elements;
        for (index_t lane = 0; lane < S::lanes; lane++) {
            const index_t channel = o * p.in_channels + first + smaller(lane, last);
            for (index_t n = 0; n < values; n++) weight[n * S::lanes + lane] = all_weight[channel * values + n];
            for (index_t k = 0; k < p.elements && p.kind == FACTORED; k++)
                depthwise[k * S::lanes + lane] = all_depthwise[channel * p.elements + k];
        }
    }

    /* Write the weight's gradients, add those of the depthwise factor. */
    void store_gradients(const Problem &p, index_t o, index_t first, T *all_dweight, T *all_ddepthwise) const
    {
        const index_t lanes = smaller(S::lanes, p.in_channels - first), values = p.order * elements;
        for (index_t lane = 0; lane < lanes; lane++) {
            const index_t channel = o * p.in_channels + first + lane;
            for (index_t n = 0; n < values; n++) all_dweight[channel * values + n] = dweight[n * S::lanes + lane];
            for (index_t k = 0; k < p.elements && p.kind == FACTORED; k++)
                all_ddepthwise[channel * p.elements + k] += ddepthwise[k * S::lanes + lane];
        }
    }
};

/* One entry (a, c) of one block of a phase. */
struct FilterEntry {
    const double *irrep;       /* (order) */
    const int32_t *element;    /* of the phase */
    index_t start, a, c, size; /* the block's first value */
    index_t rows;              /* elements of the block */
    bool multiplies;           /* pointwise and depthwise factors */

    /* Return where the value of output o, row n and the first input channel is. */
    INLINE index_t at(const Problem &p, index_t o, index_t n) const
    {
        return start + (((a * p.out_channels + o) * rows + n) * size + c) * p.in_channels;
    }
    INLINE index_t step(const Problem &p) const { return size * p.in_channels; } /* from row to row */
};

template <class Function>
INLINE void for_entries(const Problem &p, const PhaseElements &elements, Function function)
{
    index_t start = 0;
    for (index_t f = 0; f < elements.phases; f++) {
        const index_t count = filter_elements(p, elements, f);
        const double *irrep = p.irreps;
        for (index_t b = 0; b < p.blocks; b++) {
            const index_t size = p.block[3 * b + 1];
            const bool in_factors = stays_in_factors(p, size, count);
            const index_t rows = in_factors ? 1 : count;
            for (index_t entry = 0; entry < size * size; entry++, irrep += p.order)
                function(FilterEntry{irrep, elements.element[f], start, entry / size, entry % size, size, rows,
                                     p.kind == FACTORED && !in_factors});
            start += size * size * p.out_channels * rows * p.in_channels;
        }
    }
}

/* Write the blocks of output o. */
template <class S, typename T = typename S::Scalar>
NOINLINE void expand_output(const Problem &p, const PhaseElements &elements, index_t o, const T *weight,
                            const T *depthwise, const FilterChannels<S> &channels, T *blocks)
{
    using Vector = typename S::Vector;
    const index_t order = p.order, kernel = p.elements; /* locals: vectors are written to memory that could be anything */
    const bool dense = p.kind == DENSE;
    const T *w = channels.weight, *factor = channels.depthwise;
    for (index_t first = 0; first < p.in_channels; first += S::lanes) {
        const index_t lanes = smaller(S::lanes, p.in_channels - first);
        channels.load(p, o, first, weight, depthwise);
        for_entries(p, elements, [&](const FilterEntry &entry) INLINE_LAMBDA {
            const double *irrep = entry.irrep;
            Vector pointwise = {};
            for (index_t h = 0; h < order && !dense; h++) pointwise += (T)irrep[h] * S::load(w + h * S::lanes);
            T *to = blocks + entry.at(p, o, 0) + first;
            for (index_t n = 0; n < entry.rows; n++, to += entry.step(p)) {
                const index_t k = entry.element[n];
                Vector total = pointwise;
                if (entry.multiplies) total = pointwise * S::load(factor + k * S::lanes);
                for (index_t h = 0; h < order && dense; h++)
                    total += (T)irrep[h] * S::load(w + (h * kernel + k) * S::lanes);
                S::store(to, total, lanes);
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
NOINLINE void filter_gradients(const Problem &p, const PhaseElements &elements, index_t o, const T *weight,
                               const T *depthwise, const FilterChannels<S> &channels, BlockGradients<T> gradients,
                               T *dweight, T *ddepthwise)
{
    using Vector = typename S::Vector;
    const index_t order = p.order, kernel = p.elements, parts = gradients.parts; /* locals, see expand_output */
    const bool dense = p.kind == DENSE;
    const T *w = channels.weight, *factors = channels.depthwise;
    T *dw = channels.dweight, *dfactors = channels.ddepthwise;
    auto add = [](T *to, Vector v) INLINE_LAMBDA { S::store(to, S::load(to) + v); };
    for (index_t first = 0; first < p.in_channels; first += S::lanes) {
        const index_t lanes = smaller(S::lanes, p.in_channels - first);
        channels.load(p, o, first, weight, depthwise);
        channels.dweight.clear();
        channels.ddepthwise.clear();
        for_entries(p, elements, [&](const FilterEntry &entry) INLINE_LAMBDA {
            const double *irrep = entry.irrep;
            Vector pointwise = {}, dpointwise = {};
            for (index_t h = 0; h < order && !dense; h++) pointwise += (T)irrep[h] * S::load(w + h * S::lanes);
            const T *from = gradients.values + entry.at(p, o, 0) + first;
            for (index_t n = 0; n < entry.rows; n++, from += entry.step(p)) {
                const index_t k = entry.element[n];
                Vector sum = {}, factor = Vector{} + 1;
                for (index_t part = 0; part < parts; part++) sum += S::load(from + part * gradients.step, lanes);
                for (index_t h = 0; h < order && dense; h++) add(dw + (h * kernel + k) * S::lanes, (T)irrep[h] * sum);
                if (entry.multiplies) {
                    factor = S::load(factors + k * S::lanes);
                    add(dfactors + k * S::lanes, pointwise * sum);
                }
                dpointwise += factor * sum;
            }
            for (index_t h = 0; h < order && !dense; h++) add(dw + h * S::lanes, (T)irrep[h] * dpointwise);
        });
        channels.store_gradients(p, o, first, dweight, ddepthwise);
    }
}

} // namespace
