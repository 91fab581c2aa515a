/* Direct convolution, where an output reads few channels: lifting of images, and blocks of channels (`groups` of a layer):
 *
 *     y[o,g](q) = bias[o] + Σ_i Σ_h Σ_k w[o,i,h,k] x[i,g·h](stride·q + g·k - padding)
 *
 * over the channels i of the block of o; of an image there is one h, which no g moves. A band of the input lies in the cache
 * with zeros around it, and every output reads its terms (i,h,k) from there, each a row. A separable layer has its pointwise
 * step first.
 */
#pragma once
#include "direct_pointwise.h"

namespace {

template <class S> struct DirectThread {
    using T = typename S::Scalar;
    Array<T> frame, grad, sums; /* grad as a frame, zeros between rows; sums (O, terms and the bias) */
    Array<const T *> from;      /* (order, step): the terms that each group element reads */
    Array<T> around, weights, row; /* of dx: the gradient with zeros around; the weights of one plane; a row of a phase, of T or of M */
    GradientTerms<T> terms;
    Pointwise<S> pointwise;

    DirectThread(Arena &arena, const Problem &p, const Frame &f, const GradientFrame &of_grad, bool filters, bool input)
        : frame(arena.take<T>(f.values)), grad(arena.take<T>(filters ? f.rows * f.line + S::pair : 0)),
          sums(arena.take<T>(filters ? p.out_channels * (f.terms + 1) : 0)),
          from(arena.take<const T *>(p.order * f.step)), around(arena.take<T>(input ? of_grad.values : 0)),
          weights(arena.take<T>(input ? of_grad.terms / p.order : 0)),
          row(arena.take<T>(input ? p.in_size[2] : 0)), terms(arena, p, input ? of_grad.terms : 0),
          pointwise(arena, p, input)
    {
    }

    /* Find the terms that are read, and clear what stays zero: between rows and after the last. */
    void prepare(const Problem &p, const Frame &f, const GradientFrame &of_grad) const
    {
        frame.clear(), grad.clear(), around.clear();
        find_terms(p, f, frame.data, from.data);
        if (terms.from.size) terms.find(p, of_grad, around.data);
        pointwise.find(p);
    }
};

template <class S> struct DirectWorkspace {
    Frame frame;
    GradientFrame of_grad;
    Array<Stats> stats; /* (bands of all images, O), forward */
    PerThread<DirectThread<S>> threads;

    DirectWorkspace(Arena &arena, const Problem &p, Pass pass)
        : frame(p, S::pair), of_grad(p, S::pair),
          stats(arena.take<Stats>(pass == BACKWARD ? 0 : p.batch * frame.bands * p.out_channels)),
          threads(arena, p.threads, p, frame, of_grad, pass == BACKWARD, reads_gradient(p, pass))
    {
    }

    DirectThread<S> thread(const Problem &p, Pass pass, index_t number) const
    {
        Arena part = threads.part(number);
        return DirectThread<S>(part, p, frame, of_grad, pass == BACKWARD, reads_gradient(p, pass));
    }

private:
    /* Whether dx may be wanted: without blocks a direct convolution is of images, whose gradient is PyTorch's. */
    static bool reads_gradient(const Problem &p, Pass pass)
    {
        return pass == BACKWARD && p.groups > 1 && p.in_order == p.order;
    }
};

template <class S> index_t direct_workspace_bytes(const Problem &p, Pass pass)
{
    Arena arena(nullptr);
    DirectWorkspace<S> workspace(arena, p, pass);
    return arena.bytes();
}

/* y[o,g] ← bias + the convolution of what is in the frame, for an output of the block; and statistics, if they are wanted. */
template <class S, typename T = typename S::Scalar>
void convolve_frame(const Problem &p, const Tensors &t, const Frame &f, const FrameBand &band, const DirectThread<S> &w,
                    index_t o, index_t g, const T *filter, Stats *stats)
{
    const T *bias = t.bias;
    typename S::Map *y = t.y, *none = nullptr;
    const index_t channel = band.block * block_outputs(p) + o;
    const T *weight = filter + channel * f.terms, added = bias ? bias[channel] : 0;
    typename S::Map *to = y + band.at(p, g, o);
    with_elements(f.terms, [&](auto terms) INLINE_LAMBDA {
        for_band_rows(p, f, band, [&](index_t at, index_t row) INLINE_LAMBDA {
            weighted_row<S>(weight, w.from + g * f.step, at, added, none, to + row, p.out_size[2], terms);
        });
    });
    if (stats) join_values<S>(stats[channel], to, product(band.rows));
}

template <class S> void direct_forward(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const DirectWorkspace<S> shared(arena, p, FORWARD);
    const Frame &f = shared.frame;
    const typename S::Map *x = t.x;
    const T *weight = t.weight, *depthwise = t.depthwise;
    T *mean = t.y_mean, *var = t.y_var;
    if (mean) shared.stats.clear();
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        const DirectThread<S> w = shared.thread(p, FORWARD, thread_number());
        w.prepare(p, f, shared.of_grad);
#pragma omp for schedule(static)
        for (index_t n = 0; n < f.tasks(p); n++) {
            const FrameBand band(p, f, n);
            Stats *stats = mean ? shared.stats + n / p.groups * p.out_channels : nullptr;
            if (p.kind == SEPARABLE) {
                w.pointwise.read(p, band, x);
                for (index_t o = 0; o < block_outputs(p); o++) {
                    w.pointwise.write_frame(p, f, band, o, weight, w.frame.data);
                    for (index_t g = 0; g < p.order; g++) convolve_frame<S>(p, t, f, band, w, o, g, depthwise, stats);
                }
                continue;
            }
            fill_frame<S>(p, f, band, x, w.frame.data);
            for (index_t g = 0; g < p.order; g++) /* in the order in which y lies in memory */
                for (index_t o = 0; o < block_outputs(p); o++) convolve_frame<S>(p, t, f, band, w, o, g, weight, stats);
        }
    }
    if (mean) finalize_stats(shared.stats.data, p.batch * f.bands, p.out_channels, mean, var);
}

/* ---- gradients of weight and bias ---- */

/* Add the gradients of the filter, or of its depthwise factor, and of the bias, from y[o,g]; the terms are in the frame. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
void add_frame_gradients(const Problem &p, const M *grad, const Frame &f, const FrameBand &band, const DirectThread<S> &w,
                         index_t o, index_t g)
{
    const M *read = grad + band.at(p, g, o);
    for_band_rows(p, f, band, [&](index_t at, index_t row) INLINE_LAMBDA { /* the zeros between rows stay */
        copy_values<S>(p.out_size[2], read + row, w.grad + at);
    });
    T *sums = w.sums + (band.block * block_outputs(p) + o) * (f.terms + 1);
    sum_terms<S>(f.terms, band.rows[f.cut] * f.line, w.grad.data, w.from + g * f.step, sums);
}

/* The same of a dense or lifting layer, each thread's bands. */
template <class S, typename T = typename S::Scalar>
void direct_filter_gradients(const Problem &p, const Tensors &t, const Frame &f, const DirectThread<S> &w)
{
    const typename S::Map *x = t.x, *grad = t.grad;
#pragma omp for schedule(static)
    for (index_t n = 0; n < f.tasks(p); n++) {
        const FrameBand band(p, f, n);
        fill_frame<S>(p, f, band, x, w.frame.data);
        if (band.rows[f.cut] < f.rows) memset(w.grad, 0, f.rows * f.line * sizeof(T));
        for (index_t g = 0; g < p.order; g++)
            for (index_t o = 0; o < block_outputs(p); o++) add_frame_gradients<S>(p, grad, f, band, w, o, g);
    }
}

/* ---- gradient of the input ---- */

/* Write planes, `step` values apart, from the gradient with zeros around it; the weights begin with those of the planes. */
template <class S, typename E, typename T = typename S::Scalar>
void write_planes_gradient(const Problem &p, const GradientFrame &f, const DirectThread<S> &w, const T *weight, E *planes,
                           index_t step)
{
    E *row = reinterpret_cast<E *>(w.row.data);
    index_t start = 0;
    for (index_t phase = 0; phase < phase_count(p); phase++)
        for (index_t plane = 0; plane < p.order; plane++) {
            const index_t terms = w.terms.count[phase * p.order + plane];
            for (index_t n = 0; n < terms; n++) w.weights[n] = weight[w.terms.entry[start + n]];
            write_phase<S>(p, f, phase, w.weights.data, w.terms.from + start, terms, row, planes + plane * step);
            start += terms;
        }
}

template <class S, typename T = typename S::Scalar>
void direct_input_gradient(const Problem &p, const Tensors &t, const GradientFrame &f, const DirectThread<S> &w)
{
    const typename S::Map *grad = t.grad;
    typename S::Map *dx = t.dx;
    const T *weight = t.weight;
#pragma omp for schedule(static)
    for (index_t n = 0; n < p.batch * p.groups; n++) {
        const index_t image = n / p.groups, block = n % p.groups, first = block * block_outputs(p);
        fill_gradient<S>(p, f, image, first, grad, w.around.data);
        for (index_t i = 0; i < block_inputs(p); i++)
            write_planes_gradient(p, f, w, weight + first * direct_terms(p) + i * p.order * p.elements,
                                  dx + input_map(p, image, block, i, 0), p.in_channels * product(p.in_size));
    }
}

/* All gradients of a separable layer with blocks of channels; du is computed from the gradient of y first. */
template <class S, typename T = typename S::Scalar>
void separable_gradients(const Problem &p, const Tensors &t, const DirectWorkspace<S> &shared, const DirectThread<S> &w)
{
    const typename S::Map *x = t.x, *grad = t.grad;
    const T *weight = t.weight, *depthwise = t.depthwise;
    const Frame &f = shared.frame;
#pragma omp for schedule(static)
    for (index_t n = 0; n < f.tasks(p); n++) {
        const FrameBand band(p, f, n);
        if (t.dweight) w.pointwise.read(p, band, x);
        for (index_t o = 0; o < block_outputs(p); o++) {
            const index_t channel = band.block * block_outputs(p) + o;
            if (t.dweight) {
                w.pointwise.write_frame(p, f, band, o, weight, w.frame.data);
                for (index_t g = 0; g < p.order; g++) add_frame_gradients<S>(p, grad, f, band, w, o, g);
            }
            fill_gradient<S>(p, shared.of_grad, band.image, channel, grad, w.around.data);
            write_planes_gradient(p, shared.of_grad, w, depthwise + channel * p.elements, w.pointwise.du.data,
                                  w.pointwise.plane_step);
            if (t.dweight) w.pointwise.add_gradients(p, channel);
            if (t.dx) w.pointwise.write_input_gradient(p, band, o, weight, (typename S::Map *)t.dx);
        }
    }
}

/* Sum the threads' gradients, (O, terms + 1) each. OpenMP may start fewer threads than requested, so all arrays were
 * cleared. */
template <class S, class Function, typename T = typename S::Scalar>
void sum_threads(const Problem &p, const DirectWorkspace<S> &shared, index_t terms, T *sum, T *last, Function of_thread)
{
    for (index_t o = 0; o < p.out_channels; o++)
        for (index_t term = 0; term <= terms; term++) {
            T total = 0;
            for (index_t thread = 0; thread < p.threads; thread++)
                total += of_thread(shared.thread(p, BACKWARD, thread))[o * (terms + 1) + term];
            if (term < terms)
                sum[o * terms + term] = total;
            else if (last)
                last[o] = total;
        }
}

template <class S> void direct_backward(const Problem &p, const Tensors &t)
{
    using T = typename S::Scalar;
    Arena arena(t.workspace);
    const DirectWorkspace<S> shared(arena, p, BACKWARD);
    const bool separable = p.kind == SEPARABLE;
    for (index_t thread = 0; thread < p.threads && t.dweight; thread++) {
        const DirectThread<S> w = shared.thread(p, BACKWARD, thread);
        w.sums.clear(), w.pointwise.sums.clear();
    }
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
        const DirectThread<S> w = shared.thread(p, BACKWARD, thread_number());
        w.prepare(p, shared.frame, shared.of_grad);
        if (separable) separable_gradients(p, t, shared, w);
        if (t.dweight && !separable) direct_filter_gradients(p, t, shared.frame, w);
        if (t.dx && !separable) direct_input_gradient(p, t, shared.of_grad, w);
    }
    if (!t.dweight) return;
    T *filter = separable ? t.ddepthwise : t.dweight, *none = nullptr;
    sum_threads(p, shared, shared.frame.terms, filter, (T *)t.dbias, [](const DirectThread<S> &w) { return w.sums.data; });
    if (separable)
        sum_threads(p, shared, block_inputs(p) * p.order, (T *)t.dweight, none,
                    [](const DirectThread<S> &w) { return w.pointwise.sums.data; });
}

} // namespace
