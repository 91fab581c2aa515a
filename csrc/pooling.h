/* Max-pooling of feature maps (batch, channels, height, width): with batch norm and ReLU of 2×2 pixels, in one pass each
 * way; and of any window, with the place of each maximum. */
#pragma once
#include "batch_norm.h"
#include "tuning.h"

namespace {

/* Some windows: their pixels, row by row, each kind in an array of its own. */
template <typename T> struct Windows {
    T x[4][POOL_WINDOWS];
};

/* Some windows of a plane: the first one's row and column, rows and columns. */
struct WindowRange {
    index_t row, column, rows, columns;
};

/* Visit the windows of a plane: some rows at a time, or a part of one row, which lie together in the pooled plane. */
template <class Function> INLINE void for_windows(index_t rows, index_t columns, Function function)
{
    const index_t step = larger(1, POOL_WINDOWS / larger(1, columns));
    for (index_t r = 0; r < rows; r += step)
        for (index_t c = 0; c < columns; c += POOL_WINDOWS)
            function(WindowRange{r, c, smaller(step, rows - r), smaller(POOL_WINDOWS, columns - c)});
}

/* Put pixels into windows, zeros after the last. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void read_windows(const M *x, index_t width, const WindowRange &range, Windows<T> &w)
{
    const index_t count = range.rows * range.columns;
    for (index_t r = 0; r < range.rows; r++, x += 2 * width) {
        T *to = w.x[0] + r * range.columns;
        T pair[2][2 * POOL_WINDOWS]; /* of rows, as floats */
        const T *upper = pair[0], *lower = pair[1];
        if constexpr (sizeof(M) == sizeof(T))
            upper = x, lower = x + width;
        else
            for (int row = 0; row < 2; row++) copy_values<S>(2 * range.columns, x + row * width, pair[row]);
#pragma omp simd
        for (index_t c = 0; c < range.columns; c++) {
            to[c] = upper[2 * c], to[POOL_WINDOWS + c] = upper[2 * c + 1];
            to[2 * POOL_WINDOWS + c] = lower[2 * c], to[3 * POOL_WINDOWS + c] = lower[2 * c + 1];
        }
    }
    for (index_t c = count; c < round_up(count, S::lanes); c++) w.x[0][c] = w.x[1][c] = w.x[2][c] = w.x[3][c] = 0;
}

/* Write the windows' pixels. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void write_windows(const Windows<T> &w, index_t width, const WindowRange &range, M *x)
{
    for (index_t r = 0; r < range.rows; r++, x += 2 * width) {
        const T *from = w.x[0] + r * range.columns;
        T pair[2][2 * POOL_WINDOWS], *upper = pair[0], *lower = pair[1];
        if constexpr (sizeof(M) == sizeof(T)) upper = x, lower = x + width;
#pragma omp simd
        for (index_t c = 0; c < range.columns; c++) {
            upper[2 * c] = from[c], upper[2 * c + 1] = from[POOL_WINDOWS + c];
            lower[2 * c] = from[2 * POOL_WINDOWS + c], lower[2 * c + 1] = from[3 * POOL_WINDOWS + c];
        }
        if constexpr (sizeof(M) != sizeof(T))
            for (int row = 0; row < 2; row++) copy_values<S>(2 * range.columns, pair[row], x + row * width);
    }
}

/* Return the largest of windows after the norm, and which pixels are the first to be so large; NaN is largest. */
template <class S, typename T = typename S::Scalar>
INLINE typename S::Vector largest(const Windows<T> &w, index_t at, T scale, T shift, typename S::Mask *is)
{
    using Vector = typename S::Vector;
    Vector most = S::load(w.x[0] + at) * scale + shift;
    is[0] = Vector{} == Vector{};
#pragma GCC unroll 4
    for (int k = 1; k < 4; k++) {
        Vector other = S::load(w.x[k] + at) * scale + shift;
        is[k] = (other > most) | (other != other);
        most = S::select(is[k], other, most);
#pragma GCC unroll 4
        for (int before = 0; before < k; before++) is[before] &= ~is[k];
    }
    return most;
}

template <class S> void pool(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    const BatchNorm<T> norm(p, t);
    const index_t height = p.in_size[1], width = p.in_size[2], rows = height / 2, columns = width / 2;
    const typename S::Map *x = t.x;
    typename S::Map *y = t.y;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t n = 0; n < p.batch * p.in_channels; n++) {
        T scale, shift;
        norm.affine(n % p.in_channels, &scale, &shift);
        for_windows(rows, columns, [&](const WindowRange &range) INLINE_LAMBDA {
            T result[POOL_WINDOWS];
            Windows<T> w;
            read_windows<S>(x + (n * height + 2 * range.row) * width + 2 * range.column, width, range, w);
            for (index_t at = 0; at < range.rows * range.columns; at += S::lanes) {
                typename S::Mask is[4];
                typename S::Vector most = largest<S>(w, at, scale, shift, is);
                S::store(result + at, S::where(~(most < 0), most));
            }
            copy_values<S>(range.rows * range.columns, result, y + (n * rows + range.row) * columns + range.column);
        });
    }
}

/* ---- backward: the first largest pixel of a window takes all of its gradient ---- */

/* dx = the gradient through scale, plus slope·x + offset, of one channel. */
template <typename T> struct PoolGradient {
    T scale, shift, slope, offset;
};

/* The gradient of one channel of one feature map: the sums of those of scale and shift, or, where dx is not null, dx. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
INLINE void pool_backward_plane(index_t height, index_t width, const M *x, const M *dy, const PoolGradient<T> &gradient,
                                double *sums, M *dx)
{
    using Vector = typename S::Vector;
    using Mask = typename S::Mask;
    const index_t rows = height / 2, columns = width / 2;
    Vector dscale = {}, dshift = {};
    for_windows(rows, columns, [&](const WindowRange &range) INLINE_LAMBDA {
        const index_t place = 2 * range.row * width + 2 * range.column, count = range.rows * range.columns;
        T grads[POOL_WINDOWS];
        Windows<T> w;
        read_windows<S>(x + place, width, range, w);
        copy_values<S>(count, dy + range.row * columns + range.column, grads);
        for (index_t at = count; at < round_up(count, S::lanes); at++) grads[at] = 0;
        for (index_t at = 0; at < count; at += S::lanes) {
            Mask is[4];
            Vector most = largest<S>(w, at, gradient.scale, gradient.shift, is);
            Vector grad = S::where(~(most <= 0), S::load(grads + at));
            dshift += grad;
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                Vector pixel = S::load(w.x[k] + at), of_pixel = S::where(is[k], grad);
                dscale += of_pixel * pixel;
                S::store(w.x[k] + at, of_pixel * gradient.scale + pixel * gradient.slope + gradient.offset);
            }
        }
        if (dx) write_windows<S>(w, width, range, dx + place);
    });
    for (index_t lane = 0; lane < S::lanes && !dx; lane++) sums[0] += (double)dscale[lane], sums[1] += (double)dshift[lane];
    for (index_t r = 0; r < height && dx; r++) /* what no window has */
        for (index_t c = r < 2 * rows ? 2 * columns : 0; c < width; c++)
            dx[r * width + c] = gradient.slope * x[r * width + c] + gradient.offset;
}

/* Gradients of x, gamma and beta, where they are wanted. */
template <class S> void pool_backward(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    const BatchNorm<T> norm(p, t);
    const index_t height = p.in_size[1], width = p.in_size[2], pooled = height / 2 * (width / 2);
    const typename S::Map *x = t.x, *dy = t.grad;
    typename S::Map *dx = t.dx, *none = nullptr;
    T *dgamma = t.dgamma, *dbeta = t.dbeta;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t i = 0; i < p.in_channels; i++) {
        PoolGradient<T> gradient = {};
        norm.affine(i, &gradient.scale, &gradient.shift);
        if (dgamma || p.batch_stats) {
            double sums[2] = {0, 0};
            for (index_t n = i; n < p.batch * p.in_channels; n += p.in_channels)
                pool_backward_plane<S>(height, width, x + n * height * width, dy + n * pooled, gradient, sums, none);
            const BatchNormGradient<T> of_norm(norm, i, (double)(p.batch * height * width), sums[0], sums[1]);
            if (dgamma) dgamma[i] = of_norm.dgamma, dbeta[i] = of_norm.dbeta;
            if (p.batch_stats) gradient.slope = of_norm.slope, gradient.offset = of_norm.offset;
        }
        for (index_t n = i; n < p.batch * p.in_channels && dx; n += p.in_channels)
            pool_backward_plane<S>(height, width, x + n * height * width, dy + n * pooled, gradient, nullptr,
                                   dx + n * height * width);
    }
}

/* ---- any window ---- */

/* The maxima of some windows of one row of the output, and where they are: row · width + column of the window's pixel,
 * or -1 where none is larger than -∞. */
template <class S> struct Maxima {
    typename S::Vector value[POOL_WINDOWS / S::lanes];
    typename S::Mask place[POOL_WINDOWS / S::lanes];
};

/* Join one row of the windows' pixels; x is -∞ beyond the image. */
template <class S, class Stride, typename T = typename S::Scalar>
INLINE void join_row(const T *x, index_t count, Stride stride, int32_t window, int32_t place, Maxima<S> &most)
{
    using Vector = typename S::Vector;
    using Mask = typename S::Mask;
    for (index_t v = 0; v * S::lanes < count; v++)
        for (int32_t k = 0; k < window; k++) {
            const T *from = x + v * S::lanes * stride + k;
            Vector pixel;
            if constexpr (Stride::capacity == 2)
                pixel = S::even_places(S::load(from), S::load(from + S::lanes));
            else
                S::read(pixel, from, stride);
            const Mask larger = (pixel > most.value[v]) | (pixel != pixel), here = Mask{} + (place + k);
            most.value[v] = S::select(larger, pixel, most.value[v]);
            most.place[v] = (larger & here) | (~larger & most.place[v]);
        }
}

/* y: the largest pixel of each window of x; index: where it is in its image, the first of several, the last NaN. */
template <class S> void max_pool(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    const index_t height = p.in_size[1], width = p.in_size[2], rows = p.out_size[1], columns = p.out_size[2];
    const index_t stride = p.stride[2], window = p.window[2];
    const typename S::Map *x = t.x;
    typename S::Map *y = t.y;
    int64_t *index = t.index;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t n = 0; n < p.batch * p.in_channels * rows; n++) {
        const typename S::Map *image = x + n / rows * height * width;
        const index_t top = n % rows * p.stride[1] - p.padding[1];
        for (index_t first = 0; first < columns; first += POOL_WINDOWS) {
            const index_t count = smaller(POOL_WINDOWS, columns - first), left = first * stride - p.padding[2];
            Maxima<S> most;
            for (index_t v = 0; v * S::lanes < count; v++)
                most.value[v] = S::broadcast((T)-INFINITY), most.place[v] = ~typename S::Mask{};
            for (index_t r = larger(0, -top); r < smaller(p.window[1], height - top); r++) {
                T row[POOL_WINDOWS * MAX_STRIDE + MAX_POOL_WINDOW];
                const index_t begin = larger(0, left), end = smaller(width, left + (count - 1) * stride + window);
                for (index_t c = 0; c < round_up(count, S::lanes) * stride + window; c++) row[c] = (T)-INFINITY;
                copy_values<S>(end - begin, image + (top + r) * width + begin, row + begin - left);
                auto join = [&](auto known) INLINE_LAMBDA {
                    join_row<S>(row, count, known, (int32_t)window, (int32_t)(r * width), most);
                };
                stride == 1 ? join(Constant<1>{}) : stride == 2 ? join(Constant<2>{}) : join(Variable<MAX_STRIDE>{(int)stride});
            }
            for (index_t c = 0; c < count; c++) {
                const index_t at = n * columns + first + c, corner = top * width + left + c * stride;
                const index_t place = most.place[c / S::lanes][c % S::lanes];
                const index_t inside = larger(0, -top) * width + larger(0, -left - c * stride);
                y[at] = most.value[c / S::lanes][c % S::lanes];
                index[at] = corner + (place < 0 ? inside : place);
            }
        }
    }
}

/* dx: at each pixel, the sum of the gradients of the windows whose largest pixel it is. */
template <class S> void max_pool_backward(const Problem &p, const Tensors &t)
{
    const index_t pixels = product(p.in_size), windows = product(p.out_size);
    const typename S::Map *grad = t.grad;
    const int64_t *index = t.index;
    typename S::Map *dx = t.dx;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t n = 0; n < p.batch * p.in_channels; n++) {
        typename S::Map *image = dx + n * pixels;
        memset(image, 0, pixels * sizeof *image);
        for (index_t at = n * windows; at < (n + 1) * windows; at++) image[index[at]] = image[index[at]] + grad[at];
    }
}

} // namespace
