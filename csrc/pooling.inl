/* Batch norm, ReLU and the largest of each 2×2 pixels, for one type of number. Included by kernels.c. */

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

/* y (maps, channels, height/2, width/2) of x and a norm; gamma and beta may be null. */
void NAME(pool)(index_t maps, index_t channels, index_t height, index_t width, index_t threads, double eps,
                const REAL *x, const REAL *gamma, const REAL *beta, const REAL *mean, const REAL *var, REAL *y)
{
    index_t rows = height / 2, columns = width / 2;
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (index_t n = 0; n < maps * channels; n++) {
        REAL scale, shift;
        NAME(affine_at)((Norm){gamma, beta, mean, var, eps}, n % channels, &scale, &shift);
        FOR_WINDOWS(rows, columns) {
            REAL result[WINDOWS];
            Pixels w;
            NAME(split)(x + (n * height + 2 * r) * width + 2 * c, width, some, wide, &w);
            for (index_t at = 0; at < some * wide; at += LANES) {
                mask is[4];
                vector most = NAME(largest)(&w, at, scale, shift, is);
                AT(result + at) = (vector)((mask)most & ~(most < 0));
            }
            memcpy(y + (n * rows + r) * columns + c, result, some * wide * sizeof(REAL));
        }
    }
}

/* Backward, one channel: the first largest pixel of a window takes all of its gradient. With x_grad null, sums are those
 * of the gradients of scale and shift; else x_grad is what reaches x through scale, plus slope·x + offset. */
INLINE void NAME(pool_back_at)(index_t i, index_t maps, index_t channels, index_t height, index_t width, const REAL *x,
                               REAL scale, REAL shift, const REAL *y_grad, double *sums, REAL slope, REAL offset,
                               REAL *x_grad)
{
    index_t rows = height / 2, columns = width / 2;
    for (index_t n = 0; n < maps; n++) {
        vector by_scale = {0}, by_shift = {0};
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
                vector most = NAME(largest)(&w, at, scale, shift, is);
                vector grad = (vector)((mask)AT(grads + at) & ~(most <= 0));
                by_shift += grad;
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++) {
                    vector pixel = AT(w.x[k] + at), own = (vector)((mask)grad & is[k]);
                    by_scale += own * pixel;
                    AT(w.x[k] + at) = own * scale + pixel * slope + offset;
                }
            }
            if (x_grad) NAME(join)(&w, width, some, wide, x_grad + place);
        }
        for (index_t lane = 0; lane < LANES && !x_grad; lane++)
            sums[0] += (double)by_scale[lane], sums[1] += (double)by_shift[lane];
        for (index_t r = 0; r < height && x_grad; r++) /* what no window has */
            for (index_t c = r < 2 * rows ? 2 * columns : 0; c < width; c++)
                x_grad[start + r * width + c] = slope * x[start + r * width + c] + offset;
    }
}

/* Gradients of x, gamma and beta; with own, the norm's statistics are those of x. Null are x_grad, or gamma_grad and
 * beta_grad, where they are not wanted. */
void NAME(pool_back)(index_t maps, index_t channels, index_t height, index_t width, index_t threads, index_t own,
                     double eps, const REAL *x, const REAL *gamma, const REAL *beta, const REAL *mean, const REAL *var,
                     const REAL *y_grad, REAL *x_grad, REAL *gamma_grad, REAL *beta_grad)
{
    Norm norm = {gamma, beta, mean, var, eps};
#pragma omp parallel for num_threads((int)threads) if (threads > 1)
    for (index_t i = 0; i < channels; i++) {
        REAL scale, shift, slope = 0, offset = 0;
        NAME(affine_at)(norm, i, &scale, &shift);
        if (gamma_grad || own) {
            REAL by_gamma, by_beta;
            double sums[2] = {0, 0};
            NAME(pool_back_at)(i, maps, channels, height, width, x, scale, shift, y_grad, sums, 0, 0, NULL);
            NAME(norm_back)(norm, i, (double)(maps * height * width), sums[0], sums[1], &by_gamma, &by_beta, &slope,
                            &offset);
            if (gamma_grad) gamma_grad[i] = by_gamma, beta_grad[i] = by_beta;
        }
        if (!own) slope = offset = 0;
        if (x_grad)
            NAME(pool_back_at)(i, maps, channels, height, width, x, scale, shift, y_grad, NULL, slope, offset, x_grad);
    }
}
