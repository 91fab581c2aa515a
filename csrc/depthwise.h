/* The depthwise factor of a separable filter: y[o,g](q) = bias[o] + Σ_k depthwise[o,k] u[o,g](q shifted) + residual. */
#pragma once
#include "batch_norm.h"
#include "filter_products.h"
#include "input_output.h"

namespace {

/* Call a function, which is compiled for kernels of nine elements and for others, with the number of this problem's. */
template <class Function> INLINE void with_elements(index_t elements, Function function)
{
    if (elements == 9)
        function(Constant<9>{}); /* so that the weights stay in registers */
    else
        function(Variable<MAX_ELEMENTS>{(int)elements});
}

/* `Vectors` vectors of bias + residual + Σ_k weight[k] from[k], of which `count` values are wanted. */
template <class S, int Vectors, class Count, typename E, typename T = typename S::Scalar>
INLINE void weighted_sum(const T *weight, const T *const *from, index_t at, T bias, const E *residual, E *to, index_t count,
                         Count elements)
{
    constexpr int Parts = larger(1, WEIGHTED_SUMS / Vectors); /* sums of a vector, that none waits for the one before */
    const int many = elements;
    typename S::Vector sum[Vectors][Parts] = {};
    auto add = [&](int k, int part) INLINE_LAMBDA {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; v++) sum[v][part] += weight[k] * S::load(from[k] + at + v * S::lanes);
    };
    int k = 0;
#pragma GCC unroll 9
    for (; k + Parts <= many; k += Parts)
#pragma GCC unroll 4
        for (int part = 0; part < Parts; part++) add(k + part, part);
#pragma GCC unroll 4
    for (; k < many; k++) add(k, 0);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; v++) {
#pragma GCC unroll 4
        for (int part = 1; part < Parts; part++) sum[v][0] += sum[v][part];
        sum[v][0] += bias;
        if (residual) sum[v][0] += S::load(residual + v * S::lanes, count - v * S::lanes);
        S::store(to + v * S::lanes, sum[v][0], count - v * S::lanes);
    }
}

/* A row of the same, of feature maps or of a thread's own values. */
template <class S, class Count, typename E, typename T = typename S::Scalar>
INLINE void weighted_row(const T *weight, const T *const *from, index_t at, T bias, const E *residual, E *to, index_t count,
                         Count elements)
{
    for (index_t c = 0, vectors; c < count; c += vectors * S::lanes) {
        vectors = block_rows(ceil_div(count - c, S::lanes), WEIGHTED_SUMS);
        with_rows<WEIGHTED_SUMS>(vectors, [&](auto many) INLINE_LAMBDA {
            weighted_sum<S, decltype(many)::value>(weight, from, at + c, bias, residual ? residual + c : nullptr, to + c,
                                                   count - c, elements);
        });
    }
}

/* Bias, residual, output and optional statistics. */
template <class S> struct Epilogue {
    const typename S::Scalar *bias;
    const typename S::Map *residual;
    typename S::Map *y;
    Stats *stats; /* (O) */
};

template <class S, class Count, typename T = typename S::Scalar>
INLINE void depthwise_any(const Problem &p, const PhaseElements &phases, const Tile &t, const Thread<S> &w, index_t first,
                          index_t outputs, index_t outputs_step, const T *depthwise, const Epilogue<S> &end, Count elements)
{
    const Layout &l = w.layout;
    const OutputTile out(p, t);
    for (index_t o = 0; o < outputs; o++)
        for (index_t g = 0; g < p.order; g++) {
            T weight[Count::capacity];
            const T *from[Count::capacity], added = end.bias ? end.bias[first + o] : 0;
            for (int k = 0; k < elements; k++) {
                const index_t i = k * p.order + g;
                weight[k] = depthwise[(first + o) * elements + k];
                from[k] = w.padded_mid + ((phases.phase[i] * outputs_step + o) * p.order + g) * l.size + w.shift[i]
                    + l.margin;
            }
            for (index_t image = 0; image < t.images; image++) {
                const index_t start = out.at(image, g, first + o);
                index_t at = start;
                for (index_t s = 0; s < t.out_size[0]; s++)
                    for (index_t r = 0; r < t.out_size[1]; r++, at += out.width)
                        weighted_row<S>(weight, from, image * l.image_step + s * l.slice_step + r * l.row_step, added,
                                        end.residual ? end.residual + at : nullptr, end.y + at, out.width, elements);
                if (end.stats) join_values<S>(end.stats[first + o], end.y + start, out.pixels);
            }
        }
}

/* ---- 3×3 or 3×3×3 elements side by side, at stride 1: each value is read once for all rows that it reaches ---- */

/* Return 1 or 3 if every group element moves the kernel to the same 3×3 pixels of as many slices, else 0. */
INLINE int slices_of_square(const Problem &p)
{
    const int slices = p.elements == 9 ? 1 : 3;
    bool square = product(p.stride) == 1 && p.elements == 9 * slices;
    for (index_t i = 0; i < p.elements * p.order; i++) {
        const int32_t *offset = p.offset + AXES * i;
        square &= offset[0] < slices && offset[1] < 3 && offset[2] < 3;
    }
    return square ? slices : 0;
}

/* What a correlation reads: weights (slices, 3, 3), and the steps of a plane. */
template <class S> struct Kernel3x3 {
    const typename S::Vector *weight;
    index_t slice_step, row_step;
};

/* One vector in each of `Rows` rows of bias + residual + a correlation; `count` values of it are wanted. */
template <class S, int Slices, int Rows, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void correlate(Kernel3x3<S> kernel, const T *from, T bias, const M *residual, M *to, index_t to_step, index_t count)
{
    using Vector = typename S::Vector;
    Vector sum[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++) {
        sum[r] = S::broadcast(bias);
        if (residual) sum[r] += S::load(residual + r * to_step, count);
    }
#pragma GCC unroll 3
    for (int slice = 0; slice < Slices; slice++, from += kernel.slice_step)
#pragma GCC unroll 6
        for (int row = 0; row < Rows + 2; row++)
#pragma GCC unroll 3
            for (int column = 0; column < 3; column++) {
                Vector value = S::load(from + row * kernel.row_step + column);
#pragma GCC unroll 4
                for (int r = 0; r < Rows; r++)
                    if (row - r >= 0 && row - r < 3) sum[r] += kernel.weight[9 * slice + 3 * (row - r) + column] * value;
            }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++) S::store(to + r * to_step, sum[r], count);
}

template <class S, int Slices, int Rows, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void correlate_rows(Kernel3x3<S> kernel, const T *from, T bias, const M *residual, M *to, index_t to_step,
                           index_t count)
{
    index_t c = 0;
    for (; c + S::lanes <= count; c += S::lanes)
        correlate<S, Slices, Rows>(kernel, from + c, bias, residual ? residual + c : nullptr, to + c, to_step, S::lanes);
    if (c == count) return;
    const index_t back = c ? c + S::lanes - count : 0; /* the last vector overlaps the one before if it can */
    c -= back, count = smaller(count - c, S::lanes);
    correlate<S, Slices, Rows>(kernel, from + c, bias, residual ? residual + c : nullptr, to + c, to_step, count);
}

template <class S, int Slices, typename T = typename S::Scalar>
NOINLINE void depthwise_square(const Problem &p, const Tile &t, const Thread<S> &w, index_t first, index_t outputs,
                               const T *depthwise, const Epilogue<S> &end)
{
    const Layout &l = w.layout;
    const OutputTile out(p, t);
    const index_t width = out.width, step = l.row_step, rows = t.out_size[1];
    for (index_t o = 0; o < outputs; o++)
        for (index_t g = 0; g < p.order; g++) {
            typename S::Vector weight[9 * Slices];
            const Kernel3x3<S> kernel = {weight, l.slice_step, step};
            const T added = end.bias ? end.bias[first + o] : 0;
            for (int k = 0; k < 9 * Slices; k++) {
                const int32_t *offset = p.offset + AXES * (k * p.order + g);
                weight[9 * offset[0] + 3 * offset[1] + offset[2]] = S::broadcast(depthwise[(first + o) * 9 * Slices + k]);
            }
            for (index_t image = 0; image < t.images; image++) {
                const T *plane = w.padded_mid + (o * p.order + g) * l.size + l.margin + image * l.image_step
                    - l.padding[0] * l.slice_step - l.padding[1] * step - l.padding[2];
                const index_t start = out.at(image, g, first + o);
                typename S::Map *to = end.y + start;
                const typename S::Map *residual = end.residual ? end.residual + start : nullptr;
                for (index_t s = 0; s < t.out_size[0]; s++) {
                    const T *from = plane + s * l.slice_step;
                    for (index_t r = 0, many; r < rows; r += many, from += many * step, to += many * width) {
                        many = r + CORRELATION_ROWS <= rows ? CORRELATION_ROWS : 1;
                        if (many == 1)
                            correlate_rows<S, Slices, 1>(kernel, from, added, residual, to, width, width);
                        else
                            correlate_rows<S, Slices, CORRELATION_ROWS>(kernel, from, added, residual, to, width, width);
                        if (residual) residual += many * width;
                    }
                }
                if (end.stats) join_values<S>(end.stats[first + o], end.y + start, out.pixels);
            }
        }
}

/* y ← the depthwise step, for some outputs of a tile. */
template <class S, typename T = typename S::Scalar>
INLINE void depthwise_forward(const Problem &p, const PhaseElements &elements, const Tile &t, const Thread<S> &w,
                              index_t first, index_t outputs, Blocking blocking, const T *depthwise, const Epilogue<S> &end,
                              int slices)
{
    if (slices == 1)
        depthwise_square<S, 1>(p, t, w, first, outputs, depthwise, end);
    else if (slices == 3)
        depthwise_square<S, 3>(p, t, w, first, outputs, depthwise, end);
    else
        with_elements(p.elements, [&](auto count) INLINE_LAMBDA {
            depthwise_any(p, elements, t, w, first, outputs, blocking.outputs, depthwise, end, count);
        });
}

/* ---- backward ---- */

/* A row of u in, its gradient out: Σ_k weight[k] from[k]; total[k] += u·from[k]. */
template <class S, class Count, typename T = typename S::Scalar>
INLINE void depthwise_backward_row(const T *depthwise, const T *const *from, const int32_t *plane_offset, T *row,
                                   index_t count, typename S::Vector *total, Count elements)
{
    using Vector = typename S::Vector;
    const int many = elements;
    Vector sum[Count::capacity], weight[Count::capacity];
#pragma GCC unroll 9
    for (int k = 0; k < many; k++) sum[k] = total[k], weight[k] = S::broadcast(depthwise[k]);
    for (index_t c = 0; c < count; c += S::pair, row += S::pair) { /* two vectors, that a weight may serve both */
        const index_t at = plane_offset[c / S::lanes], at2 = plane_offset[c / S::lanes + 1];
        Vector u = S::load(row), u2 = S::load(row + S::lanes), grad = {}, grad2 = {};
#pragma GCC unroll 9
        for (int k = 0; k < many; k++) {
            Vector shifted = S::load(from[k] + at), shifted2 = S::load(from[k] + at2);
            grad += weight[k] * shifted, grad2 += weight[k] * shifted2;
            sum[k] += u * shifted;
            sum[k] += u2 * shifted2;
        }
        S::store(row, grad), S::store(row + S::lanes, grad2);
    }
#pragma GCC unroll 9
    for (int k = 0; k < many; k++) total[k] = sum[k];
}

/* Not inlined, so that the compiler has all registers for it. */
template <class S, typename T = typename S::Scalar>
NOINLINE void depthwise_backward_nine(const T *depthwise, const T *const *from, const int32_t *plane_offset, T *row,
                                      index_t count, typename S::Vector *total)
{
    depthwise_backward_row<S>(depthwise, from, plane_offset, row, count, total, Constant<9>{});
}

/* The same of either number of elements. */
template <class S, class Count, typename T = typename S::Scalar>
INLINE void depthwise_backward_values(const T *depthwise, const T *const *from, const int32_t *plane_offset, T *row,
                                      index_t count, typename S::Vector *total, Count elements)
{
    if constexpr (Count::capacity == 9)
        depthwise_backward_nine<S>(depthwise, from, plane_offset, row, count, total);
    else
        depthwise_backward_row<S>(depthwise, from, plane_offset, row, count, total, elements);
}

/* gemm_out: W x_fourier in, its gradient out; ddepthwise[o,k] += Σ_g u[o,g] · (gradient of y, shifted). */
template <class S, class Count, typename T = typename S::Scalar>
INLINE void depthwise_backward(const Problem &p, const PhaseElements &phases, const Basis<T> &basis, const Thread<S> &w,
                               const ProductRange &range, index_t step, const T *depthwise, Count elements)
{
    using Vector = typename S::Vector;
    const Layout &l = w.layout;
    const index_t group_step = range.outputs * step, count = range.count;
    for (index_t o = 0; o < range.outputs; o++) {
        T *rows = w.gemm_out + o * step;
        const T *weight = depthwise + (range.first + o) * elements;
        Vector total[Count::capacity];
        for (int k = 0; k < elements; k++) total[k] = Vector{};
        with_transform(p, basis, [&](auto transform) INLINE_LAMBDA {
            inverse_of_rows<S>(rows, group_step, count, transform);
        });
        for (index_t g = 0; g < p.order; g++) {
            T *row = rows + g * group_step;
            const T *from[Count::capacity];
            for (int k = 0; k < elements; k++) {
                const index_t i = k * p.order + g;
                const bool same = phases.phase[i] == range.phase;
                from[k] = same ? w.padded_out + (o * p.order + g) * l.size - w.shift[i] : w.other_phase.data;
            }
            if (!l.packed) {
                const int32_t *plane_offset = w.plane_offset + range.column / S::lanes;
                depthwise_backward_values<S>(weight, from, plane_offset, row, count, total, elements);
                continue;
            }
            const int32_t *place = w.plane_offset + range.column;
            T *values = w.mid_plane + l.margin;
            spread(place, count, row, w.mid_plane.data);
            depthwise_backward_values<S>(weight, from, w.whole_plane, values, l.plane_values(S::lanes), total, elements);
            collect(place, count, w.mid_plane.data, row);
            memset(values, 0, l.plane_values(S::lanes) * sizeof(T)); /* another phase has pixels elsewhere */
        }
        with_transform(p, basis, [&](auto transform) INLINE_LAMBDA {
            forward_of_rows<S>(rows, group_step, count, transform);
        });
        for (int k = 0; k < elements; k++)
            for (index_t lane = 0; lane < S::lanes; lane++) w.ddepthwise[(range.first + o) * elements + k] += total[k][lane];
    }
}

} // namespace
