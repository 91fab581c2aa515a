/* Vectors and matrix products for one type of number: REAL, and SUFFIX for the names. Included by kernels.c. */

typedef REAL vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL wide __attribute__((vector_size(WIDE_BYTES), aligned(sizeof(REAL)), may_alias));

/* Up to a vector of values, the rest of it zero; and back. */
INLINE vector NAME(take)(const REAL *from, index_t count)
{
    vector some = {0};
    if (count >= LANES) return AT(from);
    memcpy(&some, from, count * sizeof(REAL));
    return some;
}

INLINE void NAME(put)(REAL *to, vector v, index_t count)
{
    if (count >= LANES)
        AT(to) = v;
    else
        memcpy(to, &v, count * sizeof(REAL));
}

/* C (R rows × V wide vectors) = or += Σ A B over the parts, each depth long, those of B contiguous. */
INLINE void NAME(block_product)(int add, int R, int V, index_t parts, index_t depth, const REAL *__restrict a,
                                index_t a_row, index_t a_depth, index_t a_part, const REAL *__restrict b,
                                index_t b_step, REAL *__restrict c, index_t c_step)
{
    const REAL *row[ROWS];
    wide sum[ROWS][COLUMNS];
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) {
        row[m] = a + m * a_row;
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[m][v] = (wide){0};
    }
    for (index_t part = 0; part < parts; part++)
        for (index_t k = 0; k < depth; k++, b += b_step) {
            wide value[COLUMNS];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) value[v] = WIDE_AT(b + v * WIDE_LANES);
#pragma GCC unroll 6
            for (int m = 0; m < R; m++) {
                REAL factor = row[m][part * a_part + k * a_depth];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sum[m][v] += factor * value[v];
            }
        }
#pragma GCC unroll 6
    for (int m = 0; m < R; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            REAL *to = c + m * c_step + v * WIDE_LANES;
            if (add) sum[m][v] += WIDE_AT(to);
            WIDE_AT(to) = sum[m][v];
        }
}

/* Call a function whose loops the compiler unrolls for each number of rows. */
#define BY_ROWS(rows, most, call)                                                                                     \
    switch (rows) {                                                                                                   \
    case 1: if (1 <= (most)) { enum { R = 1 }; call; } break;                                                         \
    case 2: if (2 <= (most)) { enum { R = 2 }; call; } break;                                                         \
    case 3: if (3 <= (most)) { enum { R = 3 }; call; } break;                                                         \
    case 4: if (4 <= (most)) { enum { R = 4 }; call; } break;                                                         \
    case 5: if (5 <= (most)) { enum { R = 5 }; call; } break;                                                         \
    case 6: if (6 <= (most)) { enum { R = 6 }; call; } break;                                                         \
    }

/* C (rows × count) = or += A B, block by block; count divides by WIDTH. */
INLINE void NAME(blocks_product)(int add, index_t rows, index_t parts, index_t depth, index_t count, const REAL *a,
                                 index_t a_row, index_t a_depth, index_t a_part, const REAL *b, index_t b_step,
                                 REAL *c, index_t c_step)
{
    for (index_t j = 0, width; j < count; j += width * WIDE_LANES) {
        width = COLUMNS;
        while (width * WIDE_LANES > count - j) width /= 2;
        for (index_t m = 0, height; m < rows; m += height) {
            height = block_rows(rows - m, ROWS);
#define BLOCK(V) BY_ROWS(height, ROWS, NAME(block_product)(add, R, V, parts, depth, a + m * a_row, a_row, a_depth, \
                                                          a_part, b + j, b_step, c + m * c_step + j, c_step))
            if (width == COLUMNS) BLOCK(COLUMNS)
            else if (width == 2) BLOCK(2)
            else BLOCK(1)
        }
    }
}

/* C (rows × count) = A (rows × depth) B (depth × count); depth is contiguous in A. */
static void NAME(product)(index_t rows, index_t depth, index_t count, const REAL *a, index_t a_row, const REAL *b,
                          index_t b_step, REAL *c, index_t c_step)
{
    NAME(blocks_product)(0, rows, 1, depth, count, a, a_row, 1, 0, b, b_step, c, c_step);
}

/* C (rows × count) = or += Aᵀ B with A (parts × depth × rows), rows contiguous, and B (parts·depth × count). */
static void NAME(transposed_product)(int add, index_t rows, index_t parts, index_t depth, index_t count, const REAL *a,
                                     index_t a_part, index_t a_depth, const REAL *b, index_t b_step, REAL *c,
                                     index_t c_step)
{
    NAME(blocks_product)(add, rows, parts, depth, count, a, 1, a_depth, a_part, b, b_step, c, c_step);
}

/* Add the sums of four wide vectors' values to c[0..3]. */
INLINE void NAME(add_sums)(const wide *sum, REAL *c, index_t columns)
{
    REAL total[4];
#if defined(__AVX2__)
    if (sizeof(REAL) == 4) {
#if WIDE_BYTES == 64
        __m512 s0 = (__m512)sum[0], s1 = (__m512)sum[1], s2 = (__m512)sum[2], s3 = (__m512)sum[3];
        __m512d s01 = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(s0, s1), _mm512_unpackhi_ps(s0, s1));
        __m512d s23 = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(s2, s3), _mm512_unpackhi_ps(s2, s3));
        __m512 fours = _mm512_add_ps((__m512)_mm512_unpacklo_pd(s01, s23), (__m512)_mm512_unpackhi_pd(s01, s23));
        __m256 pairs = _mm256_add_ps(_mm512_castps512_ps256(fours), _mm512_extractf32x8_ps(fours, 1));
#else
        __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps((__m256)sum[0], (__m256)sum[1]),
                                      _mm256_hadd_ps((__m256)sum[2], (__m256)sum[3]));
#endif
        __m128 all = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
        if (columns >= 4) {
            _mm_storeu_ps((float *)c, _mm_add_ps(_mm_loadu_ps((float *)c), all));
            return;
        }
        memcpy(total, &all, sizeof all < sizeof total ? sizeof all : sizeof total);
    } else
#endif
        for (int n = 0; n < 4; n++) {
            total[n] = 0;
            for (index_t lane = 0; lane < WIDE_LANES; lane++) total[n] += sum[n][lane];
        }
    for (index_t n = 0; n < 4 && n < columns; n++) c[n] += total[n];
}

/* C (R rows × four columns) += A Bᵀ, both with values along their rows, which b points to. */
INLINE void NAME(block_of_sums)(int R, index_t count, const REAL *a, index_t a_step, const REAL *const *b, REAL *c,
                                index_t c_step, index_t columns)
{
    wide sum[SUM_ROWS][4]; /* with a row of each and one value: 16 registers, or 31 */
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) sum[m][0] = sum[m][1] = sum[m][2] = sum[m][3] = (wide){0};
    for (index_t p = 0; p < count; p += WIDE_LANES) {
        wide rows[SUM_ROWS];
#pragma GCC unroll 6
        for (int m = 0; m < R; m++) rows[m] = WIDE_AT(a + m * a_step + p);
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) {
            wide value = WIDE_AT(b[n] + p);
#pragma GCC unroll 6
            for (int m = 0; m < R; m++) sum[m][n] += rows[m] * value;
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) NAME(add_sums)(sum[m], c + m * c_step, columns);
}

/* C (rows × columns) += A Bᵀ, both with values along their rows; count divides by WIDTH. */
static void NAME(inner_products)(index_t rows, index_t columns, index_t count, const REAL *a, index_t a_step,
                                 const REAL *b, index_t b_step, REAL *c, index_t c_step)
{
    for (index_t n = 0; n < columns; n += 4) {
        const REAL *four[4];
        for (index_t i = 0; i < 4; i++) four[i] = b + smaller(n + i, columns - 1) * b_step;
        for (index_t m = 0, height; m < rows; m += height) { /* inside: A has fewer rows than B to come back to */
            height = block_rows(rows - m, SUM_ROWS);
            BY_ROWS(height, SUM_ROWS, NAME(block_of_sums)(R, count, a + m * a_step, a_step, four, c + m * c_step + n,
                                                          c_step, columns - n))
        }
    }
}

/* ---- a filter in factors through a block of size two ------------------------------------------------------------ */

/* strip[a][t] = Σ_i depth[i,t] Σ_c point[a,c,i] hat[c,i] of one output and a wide vector of columns; the sides a = 0 and 1
 * of point and of strip are so far apart. */
static void NAME(through)(index_t I, const REAL *__restrict point, index_t point_side, const REAL *__restrict depth,
                          const REAL *__restrict hat, index_t hat_step, REAL *__restrict strip, index_t step, index_t side)
{
    wide sum[2][FACTORED_TAPS];
#pragma GCC unroll 9
    for (int t = 0; t < FACTORED_TAPS; t++) sum[0][t] = sum[1][t] = (wide){0};
    for (index_t i = 0; i < I; i++, point++, hat += hat_step) {
        wide x0 = WIDE_AT(hat), x1 = WIDE_AT(hat + I * hat_step);
        wide v0 = point[0] * x0 + point[I] * x1, v1 = point[point_side] * x0 + point[point_side + I] * x1;
#pragma GCC unroll 9
        for (int t = 0; t < FACTORED_TAPS; t++) {
            REAL factor = depth[i * FACTORED_TAPS + t];
            sum[0][t] += factor * v0, sum[1][t] += factor * v1;
        }
    }
#pragma GCC unroll 9
    for (int t = 0; t < FACTORED_TAPS; t++, strip += step) {
        WIDE_AT(strip) = sum[0][t];
        WIDE_AT(strip + side) = sum[1][t];
    }
}

/* The way back for one output and input: hat_grad[c] = or += Σ_a point[a,c] w[a] with w[a] = Σ_t depth[t] strip[a][t], and
 * total gets Σ_a strip[a][t]·(Σ_c point[a,c] hat[c]) for each tap, then w[a]·hat[c]; its last three have no meaning. */
static void NAME(through_back)(int add, index_t count, const REAL *point, const REAL *depth, const REAL *__restrict hat,
                               REAL *__restrict hat_grad, index_t c_step, const REAL *__restrict strip, index_t step,
                               index_t side, REAL *__restrict total)
{
    wide sum[FACTORED_TAPS + 7];
#pragma GCC unroll 16
    for (int n = 0; n < FACTORED_TAPS + 7; n++) sum[n] = (wide){0};
    for (index_t p = 0; p < count; p += WIDE_LANES) {
        wide x0 = WIDE_AT(hat + p), x1 = WIDE_AT(hat + c_step + p);
        wide v0 = point[0] * x0 + point[1] * x1, v1 = point[2] * x0 + point[3] * x1;
        wide w[2][2] = {{{0}}}; /* two sums of each side, that none waits for the one before */
        const REAL *from = strip + p;
        __asm__("" : "+r"(depth)); /* read again each time: registers are for the sums */
#pragma GCC unroll 9
        for (int t = 0; t < FACTORED_TAPS; t++, from += step) {
            wide u0 = WIDE_AT(from), u1 = WIDE_AT(from + side);
            IN_REGISTER(u0);
            IN_REGISTER(u1);
            w[t % 2][0] += depth[t] * u0, w[t % 2][1] += depth[t] * u1;
            sum[t] += v0 * u0;
            sum[t] += v1 * u1;
        }
        wide w0 = w[0][0] + w[1][0], w1 = w[0][1] + w[1][1];
        wide grad0 = point[0] * w0 + point[2] * w1, grad1 = point[1] * w0 + point[3] * w1;
        if (add) grad0 += WIDE_AT(hat_grad + p), grad1 += WIDE_AT(hat_grad + c_step + p);
        WIDE_AT(hat_grad + p) = grad0, WIDE_AT(hat_grad + c_step + p) = grad1;
        sum[FACTORED_TAPS] += w0 * x0, sum[FACTORED_TAPS + 1] += w0 * x1;
        sum[FACTORED_TAPS + 2] += w1 * x0, sum[FACTORED_TAPS + 3] += w1 * x1;
    }
#pragma GCC unroll 4
    for (int n = 0; n < FACTORED_TAPS + 4; n += 4) NAME(add_sums)(sum + n, total + n, 4);
}
