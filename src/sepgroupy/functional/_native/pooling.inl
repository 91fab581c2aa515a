/* max(0, scale·x + shift) and the largest of each 2×2 pixels, for one type of number. Included by kernels.c. */

#define SELECT(mask, a, b) ((vector)((mask & (__typeof__(mask))(a)) | (~mask & (__typeof__(mask))(b))))

/* Some windows: their pixels, row by row, each kind for itself. */
typedef struct { REAL x[4][WINDOWS]; } Pixels;

/* Put pixels into windows, zeros after the last; and back. */
INLINE void NAME(split)(const REAL *x, index_t width, index_t rows, index_t columns, Pixels *w)
{
    index_t count = rows * columns;
    for (index_t r = 0; r < rows; r++, x += 2 * width) {
        REAL *to = w->x[0] + r * columns;
#pragma omp simd
        for (index_t c = 0; c < columns; c++) {
            to[c] = x[2 * c], to[WINDOWS + c] = x[2 * c + 1];
            to[2 * WINDOWS + c] = x[width + 2 * c], to[3 * WINDOWS + c] = x[width + 2 * c + 1];
        }
    }
    for (index_t c = count; c < round_up(count, LANES); c++) w->x[0][c] = w->x[1][c] = w->x[2][c] = w->x[3][c] = 0;
}

INLINE void NAME(join)(const Pixels *w, index_t width, index_t rows, index_t columns, REAL *x)
{
    for (index_t r = 0; r < rows; r++, x += 2 * width) {
        const REAL *from = w->x[0] + r * columns;
#pragma omp simd
        for (index_t c = 0; c < columns; c++) {
            x[2 * c] = from[c], x[2 * c + 1] = from[WINDOWS + c];
            x[width + 2 * c] = from[2 * WINDOWS + c], x[width + 2 * c + 1] = from[3 * WINDOWS + c];
        }
    }
}

/* Visit the windows of a plane: some rows at a time, or a part of one row, which lie together in the pooled plane. */
#define FOR_WINDOWS(rows, columns)                                                                                    \
    for (index_t r = 0, step = larger(1, WINDOWS / larger(1, columns)); r < rows; r += step)                          \
        for (index_t c = 0, some = smaller(step, rows - r), wide; wide = smaller(WINDOWS, columns - c), c < columns;  \
             c += WINDOWS)

/* Return the largest of windows after the norm, and which pixels are the first to be so large; NaN is largest. */
INLINE vector NAME(largest)(const Pixels *w, index_t at, REAL scale, REAL shift, mask *is)
{
    vector most = AT(w->x[0] + at) * scale + shift;
    is[0] = (vector){0} == (vector){0};
#pragma GCC unroll 4
    for (int k = 1; k < 4; k++) {
        vector other = AT(w->x[k] + at) * scale + shift;
        is[k] = (other > most) | (other != other);
        most = SELECT(is[k], other, most);
#pragma GCC unroll 4
        for (int before = 0; before < k; before++) is[before] &= ~is[k];
    }
    return most;
}

/* y (maps, channels, height/2, width/2). */
void NAME(pool)(index_t maps, index_t channels, index_t height, index_t width, index_t threads, const REAL *x,
                const REAL *scale, const REAL *shift, REAL *y)
{
    index_t rows = height / 2, columns = width / 2;
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (index_t n = 0; n < maps * channels; n++)
        FOR_WINDOWS(rows, columns) {
            REAL result[WINDOWS];
            Pixels w;
            NAME(split)(x + (n * height + 2 * r) * width + 2 * c, width, some, wide, &w);
            for (index_t at = 0; at < some * wide; at += LANES) {
                mask is[4];
                vector most = NAME(largest)(&w, at, scale[n % channels], shift[n % channels], is);
                AT(result + at) = (vector)((mask)most & ~(most < 0));
            }
            memcpy(y + (n * rows + r) * columns + c, result, some * wide * sizeof(REAL));
        }
}

/* Backward: the first largest pixel of a window takes all of its gradient. With x_grad null, norm_grad (2, channels)
 * is that of scale and shift; else x_grad is what reaches x through scale, plus slope[channel]·x + offset[channel]. */
void NAME(pool_back)(index_t maps, index_t channels, index_t height, index_t width, index_t threads, const REAL *x,
                     const REAL *scale, const REAL *shift, const REAL *y_grad, const REAL *slope, const REAL *offset,
                     REAL *norm_grad, REAL *x_grad)
{
    index_t rows = height / 2, columns = width / 2;
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (index_t i = 0; i < channels; i++) {
        double scale_grad = 0, shift_grad = 0;
        REAL a = x_grad ? slope[i] : 0, b = x_grad ? offset[i] : 0;
        for (index_t n = 0; n < maps; n++) {
            vector sums[2] = {{0}, {0}};
            index_t plane = n * channels + i, start = plane * height * width;
            FOR_WINDOWS(rows, columns) {
                index_t place = start + 2 * r * width + 2 * c, count = some * wide;
                REAL grads[WINDOWS];
                Pixels w;
                NAME(split)(x + place, width, some, wide, &w);
                memcpy(grads, y_grad + (plane * rows + r) * columns + c, count * sizeof(REAL));
                for (index_t at = count; at < round_up(count, LANES); at++) grads[at] = 0;
                for (index_t at = 0; at < count; at += LANES) {
                    mask is[4];
                    vector most = NAME(largest)(&w, at, scale[i], shift[i], is);
                    vector grad = (vector)((mask)AT(grads + at) & ~(most <= 0));
                    sums[1] += grad;
#pragma GCC unroll 4
                    for (int k = 0; k < 4; k++) {
                        vector pixel = AT(w.x[k] + at), own = (vector)((mask)grad & is[k]);
                        sums[0] += own * pixel;
                        AT(w.x[k] + at) = own * scale[i] + pixel * a + b;
                    }
                }
                if (x_grad) NAME(join)(&w, width, some, wide, x_grad + place);
            }
            for (index_t lane = 0; lane < LANES; lane++)
                scale_grad += (double)sums[0][lane], shift_grad += (double)sums[1][lane];
            for (index_t r = 0; r < height && x_grad; r++) /* what no window has */
                for (index_t c = r < 2 * rows ? 2 * columns : 0; c < width; c++)
                    x_grad[start + r * width + c] = a * x[start + r * width + c] + b;
        }
        if (!x_grad) norm_grad[i] = (REAL)scale_grad, norm_grad[channels + i] = (REAL)shift_grad;
    }
}
