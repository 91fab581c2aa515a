/* A gc layer of p4m whose rows fill 64-byte vectors: u of a vector of pixels at a time, products and transform back in
 * registers, with nothing written between. */
#pragma once
#include "gemm.h"
#include "thread.h"

namespace {

/* Whether a layer is computed so: 32 registers hold the sums, and each vector of columns is one of an input row. */
template <class S> INLINE bool fuses_products(const Problem &p)
{
    return sizeof(typename S::Vector) == 64 && p.kind == SEPARABLE && p.transform == DIHEDRAL4 && product(p.stride) == 1
        && p.in_size[2] % S::lanes == 0;
}

/* Copy the blocks of output o to (O, I, order), as fused products read them, behind the blocks. */
template <typename T> void interleave_blocks(const Problem &p, index_t o, T *blocks)
{
    const index_t I = p.in_channels, O = p.out_channels, step = filter_row_step(I), step2 = filter_row_step(2 * I);
    T *to = blocks + blocks_size(p, 1, p.out_channels) + o * I * 8;
    for (index_t i = 0; i < I; i++, to += 8) {
        for (index_t b = 0; b < 4; b++) to[b] = blocks[(b * O + o) * step + i];
        for (index_t a = 0; a < 2; a++)
            for (index_t c = 0; c < 2; c++) to[4 + 2 * c + a] = blocks[4 * O * step + (a * O + o) * step2 + c * I + i];
    }
}

/* planes (Rows, order, size) ← Hᵀ W x of `Rows` outputs on one vector of columns; x is (I, order, lanes). */
template <class S, int Rows, typename T = typename S::Scalar>
INLINE void fused_block(index_t channels, const T *__restrict filter, const T *__restrict x, T *__restrict planes,
                        index_t size)
{
    using Vector = typename S::Vector;
    Vector sum[Rows][8];
#pragma GCC unroll 3
    for (int r = 0; r < Rows; r++)
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) sum[r][g] = Vector{};
    for (index_t i = 0; i < channels; i++, x += 8 * S::lanes, filter += 8) {
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            Vector value = S::load(x + b * S::lanes);
            hold_in_register(value);
#pragma GCC unroll 3
            for (int r = 0; r < Rows; r++) sum[r][b] += filter[r * channels * 8 + b] * value;
        }
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) { /* two copies of the block of size two */
            Vector value = S::load(x + (4 + c) * S::lanes), copy = S::load(x + (6 + c) * S::lanes);
            hold_in_register(value);
            hold_in_register(copy);
#pragma GCC unroll 3
            for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
                for (int a = 0; a < 2; a++) {
                    T factor = filter[r * channels * 8 + 4 + 2 * c + a];
                    sum[r][4 + a] += factor * value;
                    sum[r][6 + a] += factor * copy;
                }
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < Rows; r++) {
        Dihedral4{}.inverse(sum[r]);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) S::store(planes + (r * 8 + g) * size, sum[r][g]);
    }
}

/* The same for any number of outputs; not in line, so that all registers are its own. */
template <class S, typename T = typename S::Scalar>
NOINLINE void fused_products(index_t outputs, index_t channels, const T *filter, const T *x, T *planes, index_t size)
{
    for (index_t o = 0, height; o < outputs; o += height) {
        height = block_rows(outputs - o, FUSED_ROWS);
        with_rows<FUSED_ROWS>(height, [&](auto rows) INLINE_LAMBDA {
            fused_block<S, decltype(rows)::value>(channels, filter + o * channels * 8, x, planes + o * 8 * size, size);
        });
    }
}

/* padded_mid ← u of some outputs, for a whole tile. */
template <class S, typename T = typename S::Scalar>
INLINE void fused_mid(const Problem &p, const Thread<S> &w, const T *blocks, index_t first, index_t outputs)
{
    const T *filter = blocks + blocks_size(p, 1, p.out_channels) + first * p.in_channels * 8;
    for (index_t c = 0; c < w.layout.phase[0].count; c += S::lanes)
        fused_products<S>(outputs, p.in_channels, filter, w.x_fourier + c * p.in_channels * 8,
                          w.padded_mid + w.plane_offset[c / S::lanes], w.layout.size);
}

} // namespace
