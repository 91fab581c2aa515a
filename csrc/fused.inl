/* A gc layer of p4m whose rows fill wide vectors: u of a vector of pixels at a time, products and transform back in
 * registers, with no strip between. For one type of number: REAL, and SUFFIX for the names. Included by kernels.c. */

/* Whether a layer is computed so: 32 registers hold the sums, and each vector of columns is one of an input row. */
INLINE int NAME(fuses)(const Problem *p)
{
    return VECTOR_BYTES == 64 && p->kind == SEPARABLE && p->transform == DIHEDRAL4 && p->stride_y * p->stride_x == 1
        && p->width % LANES == 0;
}

/* The filter of one output as fused products read it, (I, order), out of blocks of one tap. */
static void NAME(interleave)(index_t I, index_t O, index_t o, const REAL *blocks, REAL *to)
{
    for (index_t i = 0; i < I; i++, to += 8) {
        for (index_t b = 0; b < 4; b++) to[b] = blocks[(b * O + o) * I + i];
        for (index_t a = 0; a < 2; a++)
            for (index_t c = 0; c < 2; c++) to[4 + 2 * c + a] = blocks[(4 * O + 2 * (a * O + o) + c) * I + i];
    }
}

/* planes (R, order, size) ← Hᵀ W hat of R outputs on one vector of columns; hat is (I, order, LANES). */
INLINE void NAME(fused_block)(int R, index_t I, const REAL *__restrict filter, const REAL *__restrict hat,
                              REAL *__restrict planes, index_t size)
{
    vector sum[3][8];
#pragma GCC unroll 3
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) sum[r][g] = (vector){0};
    for (index_t i = 0; i < I; i++, hat += 8 * LANES, filter += 8) {
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            vector x = AT(hat + b * LANES);
            IN_REGISTER(x);
#pragma GCC unroll 3
            for (int r = 0; r < R; r++) sum[r][b] += filter[r * I * 8 + b] * x;
        }
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) { /* two copies of the block of size two */
            vector x = AT(hat + (4 + c) * LANES), z = AT(hat + (6 + c) * LANES);
            IN_REGISTER(x);
            IN_REGISTER(z);
#pragma GCC unroll 3
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int a = 0; a < 2; a++) {
                    REAL factor = filter[r * I * 8 + 4 + 2 * c + a];
                    sum[r][4 + a] += factor * x;
                    sum[r][6 + a] += factor * z;
                }
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < R; r++) {
        NAME(vectors_inverse)(sum[r], 8, DIHEDRAL4, NULL);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) AT(planes + (r * 8 + g) * size) = sum[r][g];
    }
}

/* The same for any number of outputs; not in line, so that all registers are its own. */
static __attribute__((noinline)) void NAME(fused)(index_t outputs, index_t I, const REAL *filter, const REAL *hat,
                                                  REAL *planes, index_t size)
{
    for (index_t o = 0, height; o < outputs; o += height) {
        height = block_rows(outputs - o, 3);
        BY_ROWS(height, 3, NAME(fused_block)(R, I, filter + o * I * 8, hat, planes + o * 8 * size, size));
    }
}
