/* Products of small matrices, in registers: blocks of C take all of their sums before they are written. */
#pragma once
#include "simd.h"
#include "tuning.h"

namespace {

/* Return the rows of the next block of a product: the last two blocks are about as high as each other. */
INLINE index_t block_rows(index_t rows, index_t most)
{
    return rows >= 2 * most ? most : rows > most ? (rows + 1) / 2 : rows;
}

/* Call a function, which is compiled for each number of rows up to Most, with this one. */
template <int Most, class Function> INLINE void with_rows(index_t rows, Function function)
{
    static_assert(Most <= 6);
    switch (rows) {
    case 1: function(Constant<1>{}); break;
    case 2: if constexpr (Most >= 2) function(Constant<2>{}); break;
    case 3: if constexpr (Most >= 3) function(Constant<3>{}); break;
    case 4: if constexpr (Most >= 4) function(Constant<4>{}); break;
    case 5: if constexpr (Most >= 5) function(Constant<5>{}); break;
    case 6: if constexpr (Most >= 6) function(Constant<6>{}); break;
    }
}

/* The left factor of a product, in parts: a[part·part_step + k·depth_step + m·row_step]. */
template <typename T> struct LeftFactor {
    const T *a;
    index_t row_step, depth_step, part_step, parts, depth;
};

/* C (Rows × Columns wide vectors) = or += Σ A B over the parts; the rows of B follow each other, part after part. */
template <class S, int Rows, int Columns, typename T = typename S::Scalar>
INLINE void gemm_block(bool add, LeftFactor<T> left, const T *__restrict b, index_t b_step, T *__restrict c, index_t c_step)
{
    using Wide = typename S::Wide;
    const T *row[Rows];
    Wide sum[Rows][Columns];
#pragma GCC unroll 6
    for (int m = 0; m < Rows; m++) {
        row[m] = left.a + m * left.row_step;
#pragma GCC unroll 4
        for (int v = 0; v < Columns; v++) sum[m][v] = Wide{};
    }
    for (index_t part = 0; part < left.parts; part++)
        for (index_t k = 0; k < left.depth; k++, b += b_step) {
            Wide value[Columns];
#pragma GCC unroll 4
            for (int v = 0; v < Columns; v++) value[v] = S::load_wide(b + v * S::wide_lanes);
#pragma GCC unroll 6
            for (int m = 0; m < Rows; m++) {
                T factor = row[m][part * left.part_step + k * left.depth_step];
#pragma GCC unroll 4
                for (int v = 0; v < Columns; v++) sum[m][v] += factor * value[v];
            }
        }
#pragma GCC unroll 6
    for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
        for (int v = 0; v < Columns; v++) {
            T *to = c + m * c_step + v * S::wide_lanes;
            if (add) sum[m][v] += S::load_wide(to);
            S::store_wide(to, sum[m][v]);
        }
}

/* C (rows × count) = or += A B, block by block; count is a multiple of S::wide_lanes. */
template <class S, typename T = typename S::Scalar>
INLINE void gemm(bool add, index_t rows, index_t count, LeftFactor<T> left, const T *b, index_t b_step, T *c,
                 index_t c_step)
{
    for (index_t j = 0, width; j < count; j += width * S::wide_lanes) {
        width = GEMM_COLUMNS;
        while (width * S::wide_lanes > count - j) width /= 2;
        for (index_t m = 0, height; m < rows; m += height) {
            height = block_rows(rows - m, GEMM_ROWS);
            LeftFactor<T> block = left;
            block.a += m * left.row_step;
            with_rows<GEMM_ROWS>(height, [&](auto r) INLINE_LAMBDA {
                constexpr int Rows = decltype(r)::value;
                T *to = c + m * c_step + j;
                if (width == GEMM_COLUMNS)
                    gemm_block<S, Rows, GEMM_COLUMNS>(add, block, b + j, b_step, to, c_step);
                else if (width == 2)
                    gemm_block<S, Rows, 2>(add, block, b + j, b_step, to, c_step);
                else
                    gemm_block<S, Rows, 1>(add, block, b + j, b_step, to, c_step);
            });
        }
    }
}

/* C (rows × count) = A B with A (rows × depth), contiguous along its depth, and B (depth × count). */
template <class S, typename T = typename S::Scalar>
NOINLINE void multiply(index_t rows, index_t depth, index_t count, const T *a, index_t a_step, const T *b, index_t b_step,
                       T *c, index_t c_step)
{
    gemm<S>(false, rows, count, LeftFactor<T>{a, a_step, 1, 0, 1, depth}, b, b_step, c, c_step);
}

/* C (rows × count) = or += Aᵀ B with A (parts × depth × rows), rows contiguous, and B (parts·depth × count). */
template <class S, typename T = typename S::Scalar>
NOINLINE void multiply_transposed(bool add, index_t rows, index_t parts, index_t depth, index_t count, const T *a,
                                  index_t part_step, index_t depth_step, const T *b, index_t b_step, T *c, index_t c_step)
{
    gemm<S>(add, rows, count, LeftFactor<T>{a, 1, depth_step, part_step, parts, depth}, b, b_step, c, c_step);
}

/* C (Rows × four columns) += A Bᵀ, both with values along their rows, which b points to. */
template <class S, int Rows, typename T = typename S::Scalar>
INLINE void inner_products_block(index_t count, const T *a, index_t a_step, const T *const *b, T *c, index_t c_step,
                                 index_t columns)
{
    using Wide = typename S::Wide;
    Wide sum[Rows][4]; /* with a row of each and one value: 16 registers, or 31 */
#pragma GCC unroll 6
    for (int m = 0; m < Rows; m++) sum[m][0] = sum[m][1] = sum[m][2] = sum[m][3] = Wide{};
    for (index_t p = 0; p < count; p += S::wide_lanes) {
        Wide rows[Rows];
#pragma GCC unroll 6
        for (int m = 0; m < Rows; m++) rows[m] = S::load_wide(a + m * a_step + p);
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) {
            Wide value = S::load_wide(b[n] + p);
#pragma GCC unroll 6
            for (int m = 0; m < Rows; m++) sum[m][n] += rows[m] * value;
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < Rows; m++) add_sums<S>(sum[m], c + m * c_step, columns);
}

/* C (rows × columns) += A Bᵀ, both with values along their rows; count is a multiple of S::wide_lanes. */
template <class S, typename T = typename S::Scalar>
NOINLINE void inner_products(index_t rows, index_t columns, index_t count, const T *a, index_t a_step, const T *b,
                             index_t b_step, T *c, index_t c_step)
{
    for (index_t n = 0; n < columns; n += 4) {
        const T *four[4];
        for (index_t i = 0; i < 4; i++) four[i] = b + smaller(n + i, columns - 1) * b_step;
        for (index_t m = 0, height; m < rows; m += height) { /* inside: A has fewer rows than B to come back to */
            height = block_rows(rows - m, INNER_PRODUCT_ROWS);
            with_rows<INNER_PRODUCT_ROWS>(height, [&](auto r) INLINE_LAMBDA {
                inner_products_block<S, decltype(r)::value>(count, a + m * a_step, a_step, four, c + m * c_step + n,
                                                            c_step, columns - n);
            });
        }
    }
}

} // namespace
