/* The filter's blocks times the transformed input, for a block of outputs and some columns; forward and backward. */
#pragma once
#include "factored_gemm.h"
#include "thread.h"

namespace {

/* Some outputs and columns of one phase. */
struct ProductRange {
    index_t phase, elements;    /* of the filter in this phase */
    index_t blocks_start;       /* the phase's first value of the blocks */
    index_t first, outputs, column, count;
    Channels held;              /* outputs whose filters there are */
    bool adds;                  /* backward, to what earlier outputs left in x_fourier_grad */
    index_t rows() const { return outputs * elements; }
    index_t place() const { return first - held.first; }
};

/* gemm_out (order, rows, columns) ← W x_fourier. */
template <class S, typename T = typename S::Scalar>
NOINLINE void multiply_filters(const Problem &p, const Thread<S> &w, const T *blocks, const T *depthwise,
                               const ProductRange &range, index_t step)
{
    const index_t I = p.in_channels, x_step = w.layout.columns, rows = range.rows(), elements = range.elements;
    for_blocks(p, range.blocks_start, elements, range.held.count, [&](const FilterBlock &block) {
        const T *x = w.x_fourier + block.row * I * x_step + range.column;
        T *out = w.gemm_out + (block.row + block.a) * rows * step;
        if (!block.in_factors) {
            const T *values = blocks + block.values + range.place() * elements * block.step;
            multiply<S>(rows, block.depth, range.count, values, block.step, x, x_step, out, step);
        } else if (block.a == 0) {
            for (index_t j = 0; j < range.count; j += S::wide_lanes)
                for (index_t o = 0; o < range.outputs; o++)
                    factored_gemm<S>(I, blocks + block.values + (range.place() + o) * block.step, range.held.count * block.step,
                                     depthwise + (range.first + o) * I * elements, x + j, x_step,
                                     out + o * elements * step + j, step, rows * step);
        }
    });
}

/* Backward through a block of size two that stays in factors. */
template <class S, typename T = typename S::Scalar>
NOINLINE void multiply_factors_backward(const Problem &p, const Thread<S> &w, const T *blocks, const T *depthwise,
                                        const ProductRange &range, const FilterBlock &block, index_t step)
{
    const index_t I = p.in_channels, x_step = w.layout.columns, rows = range.rows(), side = range.held.count * block.step;
    const index_t place = block.row * I * x_step + range.column;
    const T *grad = w.gemm_out + block.row * rows * step;
    for (index_t o = 0; o < range.outputs; o++)
        for (index_t i = 0; i < I; i++) {
            const index_t at = block.values + (range.place() + o) * block.step + i;
            const index_t at_depthwise = ((range.first + o) * I + i) * FACTORED_ELEMENTS;
            const T point[4] = {blocks[at], blocks[at + I], blocks[at + side], blocks[at + side + I]};
            T total[FACTORED_TOTALS] = {0};
            factored_gemm_backward<S>(range.adds || o > 0, range.count, point, depthwise + at_depthwise,
                                      w.x_fourier + place + i * x_step, w.x_fourier_grad + place + i * x_step, I * x_step,
                                      grad + o * range.elements * step, step, rows * step, total);
            for (index_t k = 0; k < FACTORED_ELEMENTS; k++) w.ddepthwise[at_depthwise + k] += total[k];
            w.dblocks[at] += total[FACTORED_ELEMENTS], w.dblocks[at + I] += total[FACTORED_ELEMENTS + 1];
            w.dblocks[at + side] += total[FACTORED_ELEMENTS + 2];
            w.dblocks[at + side + I] += total[FACTORED_ELEMENTS + 3];
        }
}

/* x_fourier_grad = or += Wᵀ gemm_out, and the gradient of W += gemm_out x_fourierᵀ. */
template <class S, typename T = typename S::Scalar>
NOINLINE void multiply_filters_backward(const Problem &p, const Thread<S> &w, const T *blocks, const T *depthwise,
                                        const ProductRange &range, index_t step, bool wants_x, bool wants_filters)
{
    const index_t I = p.in_channels, x_step = w.layout.columns, rows = range.rows();
    for_blocks(p, range.blocks_start, range.elements, range.held.count, [&](const FilterBlock &block) {
        if (block.in_factors) {
            if (block.a == 0) multiply_factors_backward(p, w, blocks, depthwise, range, block, step);
            return;
        }
        const index_t place = block.row * I * x_step + range.column, each = range.elements * block.step;
        const index_t values = block.values + range.place() * each, side = range.held.count * each;
        const T *grad = w.gemm_out + (block.row + block.a) * rows * step;
        if (block.a == 0 && wants_x)
            multiply_transposed<S>(range.adds, block.depth, block.size, rows, range.count, blocks + values, side,
                                   block.step, grad, step, w.x_fourier_grad + place, x_step);
        if (wants_filters)
            inner_products<S>(rows, block.depth, range.count, grad, step, w.x_fourier + place, x_step,
                              w.dblocks + values, block.step);
    });
}

/* ---- through the kernel elements, to and from the output's planes ---- */

/* Visit each row of the products: output, kernel element of the phase, and for each group element where its pixels are. */
template <class S, class Transform, class Function>
INLINE void for_product_rows(const PhaseElements &elements, const Thread<S> &w, const ProductRange &range,
                             Transform transform, Function function)
{
    using T = typename S::Scalar;
    const Layout &l = w.layout;
    for (index_t m = 0; m < range.rows(); m++) {
        const index_t o = m / range.elements, k = elements.element[range.phase][m % range.elements];
        T *plane[Transform::capacity];
        for (int g = 0; g < transform.order; g++) {
            const index_t i = k * transform.order + g;
            const bool same = elements.phase[i] == range.phase;
            plane[g] = same ? w.padded_out + (o * transform.order + g) * l.size - w.shift[i] : w.other_phase.data;
        }
        function(m, plane);
    }
}

/* ---- packed columns, each moved by itself ---- */

template <typename T> INLINE void spread(const int32_t *place, index_t count, const T *from, T *plane)
{
    for (index_t c = 0; c < count; c++) plane[place[c]] = from[c];
}

template <typename T> INLINE void spread_add(const int32_t *place, index_t count, const T *from, T *plane)
{
    for (index_t c = 0; c < count; c++) plane[place[c]] += from[c];
}

template <typename T> INLINE void collect(const int32_t *place, index_t count, const T *plane, T *to)
{
    for (index_t c = 0; c < count; c++) to[c] = plane[place[c]];
}

/* ---- transforms ---- */

/* Rows ← Hᵀ rows, one for each group element, in place. */
template <class S, class Transform, typename T = typename S::Scalar>
NOINLINE void inverse_of_rows(T *rows, index_t group_step, index_t count, Transform transform)
{
    for (index_t c = 0; c < count; c += S::lanes) {
        typename S::Vector v[Transform::capacity];
#pragma GCC unroll 8
        for (int g = 0; g < transform.order; g++) v[g] = S::load(rows + g * group_step + c);
        transform.inverse(v);
#pragma GCC unroll 8
        for (int g = 0; g < transform.order; g++) S::store(rows + g * group_step + c, v[g]);
    }
}

/* Rows ← H rows. */
template <class S, class Transform, typename T = typename S::Scalar>
NOINLINE void forward_of_rows(T *rows, index_t group_step, index_t count, Transform transform)
{
    for (index_t c = 0; c < count; c += S::lanes) {
        typename S::Vector v[Transform::capacity];
#pragma GCC unroll 8
        for (int g = 0; g < transform.order; g++) v[g] = S::load(rows + g * group_step + c);
        transform.forward(v);
#pragma GCC unroll 8
        for (int g = 0; g < transform.order; g++) S::store(rows + g * group_step + c, v[g]);
    }
}

/* padded_out, shifted by each kernel element, += Hᵀ gemm_out. */
template <class S, class Transform>
INLINE void accumulate_elements(const PhaseElements &elements, const Thread<S> &w, const ProductRange &range, index_t step,
                                Transform transform)
{
    using T = typename S::Scalar;
    const int32_t *plane_offset = w.plane_offset + range.column / S::lanes; /* unless packed */
    const index_t count = range.count, group_step = range.rows() * step;
    for_product_rows(elements, w, range, transform, [&](index_t m, T *const *to) INLINE_LAMBDA {
        T *from = w.gemm_out + m * step;
        if (w.layout.packed) {
            inverse_of_rows<S>(from, group_step, count, transform);
            for (int g = 0; g < transform.order; g++)
                spread_add(w.plane_offset + range.column, count, from + g * group_step, to[g]);
            return;
        }
        for (index_t c = 0; c < count; c += S::lanes) {
            typename S::Vector v[Transform::capacity];
            const index_t at = plane_offset[c / S::lanes];
#pragma GCC unroll 8
            for (int g = 0; g < transform.order; g++) v[g] = S::load(from + g * group_step + c);
            transform.inverse(v);
#pragma GCC unroll 8
            for (int g = 0; g < transform.order; g++) S::store(to[g] + at, S::load(to[g] + at) + v[g]);
        }
    });
}

/* gemm_out ← H of padded_out, shifted by each kernel element: the gradient of W x_fourier. */
template <class S, class Transform>
INLINE void gather_elements(const PhaseElements &elements, const Thread<S> &w, const ProductRange &range, index_t step,
                            Transform transform)
{
    using T = typename S::Scalar;
    const int32_t *plane_offset = w.plane_offset + range.column / S::lanes; /* unless packed */
    const index_t count = range.count, group_step = range.rows() * step;
    for_product_rows(elements, w, range, transform, [&](index_t m, T *const *from) INLINE_LAMBDA {
        T *to = w.gemm_out + m * step;
        if (w.layout.packed) {
            for (int g = 0; g < transform.order; g++)
                collect(w.plane_offset + range.column, count, from[g], to + g * group_step);
            forward_of_rows<S>(to, group_step, count, transform);
            return;
        }
        for (index_t c = 0; c < count; c += S::lanes) {
            typename S::Vector v[Transform::capacity];
            const index_t at = plane_offset[c / S::lanes];
#pragma GCC unroll 8
            for (int g = 0; g < transform.order; g++) v[g] = S::load(from[g] + at);
            transform.forward(v);
#pragma GCC unroll 8
            for (int g = 0; g < transform.order; g++) S::store(to + g * group_step + c, v[g]);
        }
    });
}

/* padded_mid ← u = Hᵀ gemm_out, of a separable layer. */
template <class S, class Transform>
INLINE void store_mid(const Thread<S> &w, const ProductRange &range, Blocking blocking, Transform transform)
{
    using T = typename S::Scalar;
    const int32_t *plane_offset = w.plane_offset + range.column / S::lanes;
    const index_t count = range.count, group_step = range.outputs * blocking.step, size = w.layout.size;
    for (index_t o = 0; o < range.outputs; o++) {
        T *from = w.gemm_out + o * blocking.step;
        T *to = w.padded_mid + (range.phase * blocking.outputs + o) * transform.order * size;
        if (w.layout.packed) {
            inverse_of_rows<S>(from, group_step, count, transform);
            for (int g = 0; g < transform.order; g++)
                spread(w.plane_offset + range.column, count, from + g * group_step, to + g * size);
            continue;
        }
        for (index_t c = 0; c < count; c += S::lanes) {
            typename S::Vector v[Transform::capacity];
            const index_t at = plane_offset[c / S::lanes];
#pragma GCC unroll 8
            for (int g = 0; g < transform.order; g++) v[g] = S::load(from + g * group_step + c);
            transform.inverse(v);
#pragma GCC unroll 8
            for (int g = 0; g < transform.order; g++) S::store(to + g * size + at, v[g]);
        }
    }
}

} // namespace
