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

/* Return v where it is larger than another, or NaN; else the other. */
template <class S> INLINE typename S::Mask is_larger(typename S::Vector v, typename S::Vector other)
{
    return (v > other) | (v != v);
}

/* Some windows of one row of the output: the columns of the image that they read, from `left` on, -∞ beyond it. */
template <class S> struct PoolRow {
    using T = typename S::Scalar;
    index_t count, left, begin, end; /* windows; their first column, and those that the image has */
    T pixel[POOL_WINDOWS * MAX_STRIDE + MAX_POOL_WINDOW + 2 * S::lanes];

    PoolRow(const Problem &p, index_t first)
        : count(smaller(POOL_WINDOWS, p.out_size[2] - first)), left(first * p.stride[2] - p.padding[2]),
          begin(larger(0, left)), end(smaller(p.in_size[2], left + (count - 1) * p.stride[2] + p.window[2]))
    {
        for (index_t c = 0; c < round_up(count, S::lanes) * p.stride[2] + p.window[2]; c++) pixel[c] = (T)-INFINITY;
    }

    /* Return the k-th pixels of a vector of windows. */
    template <class Stride> INLINE typename S::Vector pixels(index_t v, index_t k, Stride stride) const
    {
        const T *from = pixel + v * S::lanes * stride + k;
        typename S::Vector found;
        if constexpr (Stride::capacity == 2)
            return S::even_places(S::load(from), S::load(from + S::lanes));
        S::read(found, from, stride);
        return found;
    }
};

/* The largest pixels of windows of one row of the output: y. */
template <class S, class Stride, typename M = typename S::Map>
INLINE void pool_values(const Problem &p, PoolRow<S> &row, const M *image, index_t top, Stride stride, M *y)
{
    auto *to = row.pixel + row.begin - row.left;
    const index_t columns = row.end - row.begin;
    for (index_t r = larger(0, -top); r < smaller(p.window[1], p.in_size[1] - top); r++) {
        const M *from = image + (top + r) * p.in_size[2] + row.begin;
        for (index_t c = 0; c < columns; c += S::lanes) {
            const typename S::Vector pixel = S::load(from + c, columns - c), most = S::load(to + c);
            S::store(to + c, S::select(is_larger<S>(pixel, most), pixel, most), columns - c);
        }
    }
    for (index_t v = 0; v * S::lanes < row.count; v++) {
        typename S::Vector most = row.pixels(v, 0, stride);
        for (index_t k = 1; k < p.window[2]; k++) {
            const typename S::Vector pixel = row.pixels(v, k, stride);
            most = S::select(is_larger<S>(pixel, most), pixel, most);
        }
        S::store(y + v * S::lanes, most, row.count - v * S::lanes);
    }
}

/* The same, and where they are: index ← row · width + column, the first of several, the last NaN. */
template <class S, class Stride, typename M = typename S::Map>
INLINE void pool_places(const Problem &p, PoolRow<S> &row, const M *image, index_t top, Stride stride, M *y, int64_t *index)
{
    using Mask = typename S::Mask;
    constexpr index_t vectors = POOL_WINDOWS / S::lanes;
    typename S::Vector most[vectors];
    Mask place[vectors]; /* from the windows' corners on; -1 where no pixel is larger than -∞ */
    const index_t width = p.in_size[2];
    for (index_t v = 0; v * S::lanes < row.count; v++)
        most[v] = S::broadcast((typename S::Scalar)-INFINITY), place[v] = ~Mask{};
    for (index_t r = larger(0, -top); r < smaller(p.window[1], p.in_size[1] - top); r++) {
        copy_values<S>(row.end - row.begin, image + (top + r) * width + row.begin, row.pixel + row.begin - row.left);
        for (index_t v = 0; v * S::lanes < row.count; v++)
            for (index_t k = 0; k < p.window[2]; k++) {
                const typename S::Vector pixel = row.pixels(v, k, stride);
                const Mask larger = is_larger<S>(pixel, most[v]), here = Mask{} + (int32_t)(r * width + k);
                most[v] = S::select(larger, pixel, most[v]);
                place[v] = (larger & here) | (~larger & place[v]);
            }
    }
    for (index_t c = 0; c < row.count; c++) {
        const index_t column = row.left + c * stride, found = place[c / S::lanes][c % S::lanes];
        const index_t inside = larger(0, -top) * width + larger(0, -column);
        y[c] = most[c / S::lanes][c % S::lanes];
        index[c] = top * width + column + (found < 0 ? inside : found);
    }
}

/* y: the largest pixel of each window of x; index, if it is wanted: where it is in its image. */
template <class S> void max_pool(const Problem &p, const Tensors &t)
{
    const index_t rows = p.out_size[1], columns = p.out_size[2], stride = p.stride[2];
    const typename S::Map *x = t.x;
    typename S::Map *y = t.y;
    int64_t *index = t.index;
#pragma omp parallel for num_threads((int)p.threads) if (p.threads > 1)
    for (index_t n = 0; n < p.batch * p.in_channels * rows; n++) {
        const typename S::Map *image = x + n / rows * p.in_size[1] * p.in_size[2];
        const index_t top = n % rows * p.stride[1] - p.padding[1];
        for (index_t first = 0; first < columns; first += POOL_WINDOWS) {
            PoolRow<S> row(p, first);
            auto pool = [&](auto known) INLINE_LAMBDA {
                const index_t at = n * columns + first;
                index ? pool_places<S>(p, row, image, top, known, y + at, index + at)
                      : pool_values<S>(p, row, image, top, known, y + at);
            };
            stride == 1 ? pool(Constant<1>{}) : stride == 2 ? pool(Constant<2>{}) : pool(Variable<MAX_STRIDE>{(int)stride});
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
