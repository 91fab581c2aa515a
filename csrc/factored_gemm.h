/* A filter in factors through a block of size two: a pair of channels takes 4 + 2·elements multiplications in place of
 * 4·elements. Both functions read the pointwise factor's block, point[a,c], and the depthwise factor of an output. */
#pragma once
#include "gemm.h"

namespace {

/* out[a][k] = Σ_i depthwise[i,k] Σ_c point[a,c,i] x[c,i], of one output and a wide vector of columns. The sides a = 0 and 1
 * of point are `point_side` apart, those of out `side`; x[1] follows the `channels` rows of x[0]. */
template <class S, typename T = typename S::Scalar>
NOINLINE void factored_gemm(index_t channels, const T *__restrict point, index_t point_side, const T *__restrict depthwise,
                            const T *__restrict x, index_t x_step, T *__restrict out, index_t step, index_t side)
{
    using Wide = typename S::Wide;
    constexpr int K = FACTORED_ELEMENTS;
    Wide sum[2][K];
#pragma GCC unroll 9
    for (int k = 0; k < K; k++) sum[0][k] = sum[1][k] = Wide{};
    for (index_t i = 0; i < channels; i++, point++, x += x_step) {
        Wide x0 = S::load_wide(x), x1 = S::load_wide(x + channels * x_step);
        Wide v0 = point[0] * x0 + point[channels] * x1;
        Wide v1 = point[point_side] * x0 + point[point_side + channels] * x1;
#pragma GCC unroll 9
        for (int k = 0; k < K; k++) {
            T factor = depthwise[i * K + k];
            sum[0][k] += factor * v0, sum[1][k] += factor * v1;
        }
    }
#pragma GCC unroll 9
    for (int k = 0; k < K; k++, out += step) {
        S::store_wide(out, sum[0][k]);
        S::store_wide(out + side, sum[1][k]);
    }
}

constexpr int FACTORED_SUMS = FACTORED_ELEMENTS + 4, FACTORED_TOTALS = FACTORED_ELEMENTS + 7; /* whole fours */

/* Backward, of one output and input: with w[a] = Σ_k depthwise[k] grad[a][k],
 *
 *     dx[c] = or += Σ_a point[a,c] w[a],
 *     total[k] += Σ_a grad[a][k]·(Σ_c point[a,c] x[c]),    total[elements + 2·a + c] += w[a]·x[c].
 *
 * The last three of total have no meaning. */
template <class S, typename T = typename S::Scalar>
NOINLINE void factored_gemm_backward(bool add, index_t count, const T *point, const T *depthwise, const T *__restrict x,
                                     T *__restrict dx, index_t side_of_x, const T *__restrict grad, index_t step,
                                     index_t side, T *__restrict total)
{
    using Wide = typename S::Wide;
    constexpr int K = FACTORED_ELEMENTS;
    Wide sum[FACTORED_TOTALS];
#pragma GCC unroll 16
    for (int n = 0; n < FACTORED_TOTALS; n++) sum[n] = Wide{};
    for (index_t p = 0; p < count; p += S::wide_lanes) {
        Wide x0 = S::load_wide(x + p), x1 = S::load_wide(x + side_of_x + p);
        Wide v0 = point[0] * x0 + point[1] * x1, v1 = point[2] * x0 + point[3] * x1;
        Wide w[2][2] = {}; /* two sums of each side, that none waits for the one before */
        const T *from = grad + p;
        __asm__("" : "+r"(depthwise)); /* read again each time: registers are for the sums */
#pragma GCC unroll 9
        for (int k = 0; k < K; k++, from += step) {
            Wide u0 = S::load_wide(from), u1 = S::load_wide(from + side);
            hold_in_register(u0);
            hold_in_register(u1);
            w[k % 2][0] += depthwise[k] * u0, w[k % 2][1] += depthwise[k] * u1;
            sum[k] += v0 * u0;
            sum[k] += v1 * u1;
        }
        Wide w0 = w[0][0] + w[1][0], w1 = w[0][1] + w[1][1];
        Wide grad0 = point[0] * w0 + point[2] * w1, grad1 = point[1] * w0 + point[3] * w1;
        if (add) grad0 += S::load_wide(dx + p), grad1 += S::load_wide(dx + side_of_x + p);
        S::store_wide(dx + p, grad0), S::store_wide(dx + side_of_x + p, grad1);
        sum[K] += w0 * x0, sum[K + 1] += w0 * x1;
        sum[K + 2] += w1 * x0, sum[K + 3] += w1 * x1;
    }
#pragma GCC unroll 4
    for (int n = 0; n < FACTORED_SUMS; n += 4) add_sums<S>(sum + n, total + n, 4);
}

} // namespace
