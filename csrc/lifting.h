/* Direct convolution of images of few channels with filters transformed by every group element:
 *
 *     y[o,g](q) = bias[o] + Σ_i Σ_k w[o,i,k] x[i](q + g·k - padding).
 *
 * A band of the input lies in the cache with zeros around it, and every output reads its terms (i,k) from there. Stride 1.
 */
#pragma once
#include "depthwise.h"

namespace {

/* Bands of the output, and a band of the input with what surrounds it: (I, extent). */
struct Frame {
    int cut;                  /* the axis along which bands are cut */
    index_t bands, rows;      /* output rows along it in a band */
    index_t line;             /* pixels of the frame for each such row */
    index_t extent[AXES], span[AXES]; /* of the frame; what a filter reaches beyond its first pixel */
    index_t size, values;     /* of one channel; of all, and what vectors read past the end */
    index_t terms;

    Frame(const Problem &p, index_t pair) : cut(band_axis(p)), line(1), values(pair), terms(p.elements * p.in_channels)
    {
        for (int axis = 0; axis < AXES; axis++) {
            extent[axis] = p.in_size[axis] + 2 * p.padding[axis];
            span[axis] = extent[axis] - p.out_size[axis];
        }
        for (int axis = AXES - 1; axis > cut; line *= extent[axis], axis--) values += span[axis] * line;
        const index_t fits = larger(LIFTING_MIN_ROWS, LIFTING_VALUES / (line * p.in_channels));
        const index_t out_rows = p.out_size[cut];
        bands = ceil_div(out_rows, smaller(out_rows, fits));
        if (p.batch * bands < p.threads) bands = smaller(out_rows, p.threads);
        rows = ceil_div(out_rows, bands);
        extent[cut] = rows + span[cut];
        size = product(extent);
        values = round_up(p.in_channels * size + values, pair);
    }
};

/* A band of one image. */
struct FrameBand {
    index_t image, start[AXES], rows[AXES]; /* of the output */

    FrameBand(const Problem &p, const Frame &f, index_t n) : image(n / f.bands), start{}
    {
        for (int axis = 0; axis < AXES; axis++) rows[axis] = p.out_size[axis];
        start[f.cut] = n % f.bands * f.rows;
        rows[f.cut] = larger(0, smaller(f.rows, p.out_size[f.cut] - start[f.cut]));
    }

    /* Return where the band begins in y (B, |H|, O, …), of a group element and an output channel. */
    index_t at(const Problem &p, index_t g, index_t o) const
    {
        const index_t plane = product(p.out_size);
        return ((image * p.order + g) * p.out_channels + o) * plane
            + (start[0] * p.out_size[1] + start[1]) * p.out_size[2];
    }
};

/* Copy what the band reads of its image. */
template <typename T> void fill_frame(const Problem &p, const Frame &f, const FrameBand &band, const T *images, T *frame)
{
    const T *x = images + band.image * p.in_channels * product(p.in_size);
    index_t low[2], high[2], top[2];
    for (int axis = 0; axis < 2; axis++) {
        top[axis] = band.start[axis] - p.padding[axis];
        low[axis] = larger(0, top[axis]);
        high[axis] = smaller(p.in_size[axis], top[axis] + band.rows[axis] + f.span[axis]);
    }
    memset(frame, 0, f.values * sizeof(T));
    for (index_t i = 0; i < p.in_channels; i++)
        for (index_t s = low[0]; s < high[0]; s++)
            for (index_t r = low[1]; r < high[1]; r++)
                memcpy(frame + i * f.size + ((s - top[0]) * f.extent[1] + r - top[1]) * f.extent[2] + p.padding[2],
                       x + ((i * p.in_size[0] + s) * p.in_size[1] + r) * p.in_size[2], p.in_size[2] * sizeof(T));
}

/* Find where in a frame group element g has each term; those past the last repeat it, unread. */
template <typename T> INLINE void find_terms(const Problem &p, const Frame &f, index_t g, const T *frame, const T **from)
{
    for (index_t i = 0; i < p.in_channels; i++)
        for (index_t k = 0; k < p.elements; k++) {
            const int32_t *offset = p.offset + AXES * (k * p.order + g);
            from[i * p.elements + k] =
                frame + i * f.size + (offset[0] * f.extent[1] + offset[1]) * f.extent[2] + offset[2];
        }
    for (index_t term = f.terms; term % LIFTING_TERMS; term++) from[term] = from[term - 1];
}

/* Visit the rows of a band: where they begin in a frame, and in a channel of the output. */
template <class Function>
INLINE void for_band_rows(const Problem &p, const Frame &f, const FrameBand &band, Function function)
{
    index_t at = 0;
    for (index_t s = 0; s < band.rows[0]; s++)
        for (index_t r = 0; r < band.rows[1]; r++, at += p.out_size[2])
            function((s * f.extent[1] + r) * f.extent[2], at);
}

template <class S> struct LiftingThread {
    using T = typename S::Scalar;
    Array<T> frame, grad, sums; /* grad as a frame, zeros between rows; sums (O, terms and the bias) */

    LiftingThread(Arena &arena, const Problem &p, const Frame &f, Pass pass)
        : frame(arena.take<T>(f.values)), grad(arena.take<T>(pass == BACKWARD ? f.rows * f.line + S::pair : 0)),
          sums(arena.take<T>(pass == BACKWARD ? p.out_channels * (f.terms + 1) : 0))
    {
    }
};

template <class S> struct LiftingWorkspace {
    Frame frame;
    Array<Stats> stats; /* (bands of all images, O), forward */
    PerThread<LiftingThread<S>> threads;

    LiftingWorkspace(Arena &arena, const Problem &p, Pass pass)
        : frame(p, S::pair), stats(arena.take<Stats>(pass == BACKWARD ? 0 : p.batch * frame.bands * p.out_channels)),
          threads(arena, p.threads, p, frame, pass)
    {
    }
};

template <class S> index_t lifting_workspace_bytes(const Problem &p, Pass pass)
{
    Arena arena(nullptr);
    LiftingWorkspace<S> workspace(arena, p, pass);
    return arena.bytes();
}

template <class S> void lift(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const LiftingWorkspace<S> shared(arena, p, FORWARD);
    const Frame &f = shared.frame;
    const T *x = t.x, *weight = t.weight, *bias = t.bias, *none = nullptr;
    T *y = t.y, *mean = t.y_mean, *var = t.y_var;
    if (mean) shared.stats.clear();
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        Arena part = shared.threads.part(thread_number());
        const LiftingThread<S> w(part, p, f, FORWARD);
        const T *from[MAX_ELEMENTS + LIFTING_TERMS];
#pragma omp for schedule(static)
        for (index_t n = 0; n < p.batch * f.bands; n++) {
            const FrameBand band(p, f, n);
            fill_frame(p, f, band, x, w.frame.data);
            for (index_t g = 0; g < p.order; g++) {
                find_terms(p, f, g, w.frame.data, from);
                for (index_t o = 0; o < p.out_channels; o++) {
                    T *to = y + band.at(p, g, o);
                    const T *values = weight + o * f.terms, added = bias ? bias[o] : 0;
                    with_elements(f.terms, [&](auto terms) INLINE_LAMBDA {
                        for_band_rows(p, f, band, [&](index_t at, index_t row) INLINE_LAMBDA {
                            weighted_row<S>(values, from, at, added, none, to + row, p.out_size[2], terms);
                        });
                    });
                    if (mean) join_values<S>(shared.stats[n * p.out_channels + o], to, product(band.rows));
                }
            }
        }
    }
    if (mean) finalize_stats(shared.stats.data, p.batch * f.bands, p.out_channels, mean, var);
}

/* sums[term] += Σ grad · from[term], a few terms at a time, and sums[terms] += Σ grad, over the pixels of a frame. */
template <class S, typename T = typename S::Scalar>
NOINLINE void sum_terms(const Frame &f, index_t pixels, const T *grad, const T *const *from, T *sums)
{
    T totals[LIFTING_TERMS + 1];
    for (index_t start = 0; start < f.terms; start += LIFTING_TERMS) {
        typename S::Vector sum[LIFTING_TERMS + 1];
#pragma GCC unroll 10
        for (int k = 0; k <= LIFTING_TERMS; k++) sum[k] = typename S::Vector{};
        for (index_t c = 0; c < pixels; c += S::lanes) {
            typename S::Vector v = S::load(grad + c);
#pragma GCC unroll 9
            for (int k = 0; k < LIFTING_TERMS; k++) sum[k] += v * S::load(from[start + k] + c);
            sum[LIFTING_TERMS] += v;
        }
        for (int k = 0; k <= LIFTING_TERMS; k++) totals[k] = S::sum(sum[k]);
        for (int k = 0; k < smaller(LIFTING_TERMS, f.terms - start); k++) sums[start + k] += totals[k];
    }
    sums[f.terms] += totals[LIFTING_TERMS];
}

/* Add each thread's bands to its sums. */
template <class S, typename T = typename S::Scalar>
void lifting_gradients(const Problem &p, const Tensors &t, const Frame &f, const LiftingThread<S> &w)
{
    const T *x = t.x, *grad = t.grad, *from[MAX_ELEMENTS + LIFTING_TERMS];
#pragma omp for schedule(static)
    for (index_t n = 0; n < p.batch * f.bands; n++) {
        const FrameBand band(p, f, n);
        fill_frame(p, f, band, x, w.frame.data);
        if (band.rows[f.cut] < f.rows) memset(w.grad, 0, f.rows * f.line * sizeof(T));
        for (index_t g = 0; g < p.order; g++) {
            find_terms(p, f, g, w.frame.data, from);
            for (index_t o = 0; o < p.out_channels; o++) {
                const T *read = grad + band.at(p, g, o);
                for_band_rows(p, f, band, [&](index_t at, index_t row) INLINE_LAMBDA { /* the zeros between rows stay */
                    for (index_t c = 0; c < p.out_size[2]; c++) w.grad[at + c] = read[row + c];
                });
                sum_terms<S>(f, band.rows[f.cut] * f.line, w.grad.data, from, w.sums + o * (f.terms + 1));
            }
        }
    }
}

template <class S> void lift_backward(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const LiftingWorkspace<S> shared(arena, p, BACKWARD);
    const Frame &f = shared.frame;
    T *dweight = t.dweight, *dbias = t.dbias;
    for (index_t thread = 0; thread < p.threads; thread++) { /* fewer threads may come than were asked for */
        Arena part = shared.threads.part(thread);
        const LiftingThread<S> w(part, p, f, BACKWARD);
        w.grad.clear();
        w.sums.clear();
    }
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        Arena part = shared.threads.part(thread_number());
        lifting_gradients(p, t, f, LiftingThread<S>(part, p, f, BACKWARD));
    }
    for (index_t o = 0; o < p.out_channels; o++)
        for (index_t term = 0; term <= f.terms; term++) {
            T total = 0;
            for (index_t thread = 0; thread < p.threads; thread++) {
                Arena part = shared.threads.part(thread);
                total += LiftingThread<S>(part, p, f, BACKWARD).sums[o * (f.terms + 1) + term];
            }
            if (term < f.terms)
                dweight[o * f.terms + term] = total;
            else if (dbias)
                dbias[o] = total;
        }
}

} // namespace
