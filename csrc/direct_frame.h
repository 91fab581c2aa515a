/* The arrays of a direct convolution (direct.h): a band of the input, and the gradient of the output, with zeros around
 * them, and where each of a filter's terms is read from there. The input lies phase by phase: pixels whose indices leave
 * one remainder by the stride on each axis.
 */
#pragma once
#include "depthwise.h"

namespace {

INLINE index_t block_inputs(const Problem &p) { return p.in_channels / p.groups; }
INLINE index_t block_outputs(const Problem &p) { return p.out_channels / p.groups; }

/* Return the planes of a frame, and of how many an output has terms. After the pointwise step of a separable layer
 * (direct_pointwise.h) they are of one output, and each is convolved by itself. */
INLINE index_t frame_planes(const Problem &p) { return p.kind == SEPARABLE ? p.order : block_inputs(p) * p.in_order; }
INLINE index_t planes_per_output(const Problem &p) { return p.kind == SEPARABLE ? 1 : frame_planes(p); }
INLINE index_t outputs_per_input(const Problem &p) { return p.kind == SEPARABLE ? 1 : block_outputs(p); } /* backward */
INLINE index_t direct_terms(const Problem &p) { return planes_per_output(p) * p.elements; }

/* Return g·h, or the one h of an image. */
INLINE index_t group_product(const Problem &p, index_t g, index_t h)
{
    return p.in_order == 1 ? 0 : p.product[g * p.order + h];
}

/* Of the pixels stride·t + first with t from 0 to extent, those from low to high are among `size`. */
struct Inside {
    index_t low, high;

    Inside(index_t first, index_t stride, index_t size, index_t extent)
        : low(first < 0 ? ceil_div(-first, stride) : 0), high(smaller(extent, first < size ? ceil_div(size - first, stride) : 0))
    {
    }
};

/* Bands of the output, and a band of the input with what surrounds it: (planes, phases, extent). */
struct Frame {
    int cut;                  /* the axis along which bands are cut */
    index_t bands, rows;      /* output rows along it in a band */
    index_t line;             /* pixels of a phase for each such row */
    index_t extent[AXES], span[AXES]; /* of a phase; what a filter reaches in it beyond its first pixel */
    index_t size, plane, values;      /* of a phase; of all phases; of all planes, and what vectors read past the end */
    index_t terms, step;              /* and the terms with those that fill the last sums */

    Frame(const Problem &p, index_t pair)
        : cut(band_axis(p)), line(1), values(pair), terms(direct_terms(p)), step(round_up(terms, DIRECT_TERMS))
    {
        for (int axis = 0; axis < AXES; axis++) {
            span[axis] = reach(p, axis) / p.stride[axis];
            extent[axis] = p.out_size[axis] + span[axis];
        }
        for (int axis = AXES - 1; axis > cut; line *= extent[axis], axis--) values += span[axis] * line;
        const index_t planes = frame_planes(p), phases = phase_count(p), out_rows = p.out_size[cut];
        const index_t fits = larger(DIRECT_MIN_ROWS, DIRECT_VALUES / (line * planes * phases));
        bands = ceil_div(out_rows, smaller(out_rows, fits));
        if (p.batch * p.groups * bands < p.threads) bands = smaller(out_rows, p.threads);
        if (p.kind == SEPARABLE) bands = 1; /* its pointwise step, and the gradients of that, are of whole images */
        rows = ceil_div(out_rows, bands);
        extent[cut] = rows + span[cut];
        size = product(extent);
        plane = phases * size;
        values = round_up(planes * plane + values, pair);
    }

    index_t tasks(const Problem &p) const { return p.batch * bands * p.groups; }
};

/* A band of one image, for one block of channels. */
struct FrameBand {
    index_t image, block, start[AXES], rows[AXES]; /* of the output */

    FrameBand(const Problem &p, const Frame &f, index_t n) : image(n / p.groups / f.bands), block(n % p.groups), start{}
    {
        for (int axis = 0; axis < AXES; axis++) rows[axis] = p.out_size[axis];
        start[f.cut] = n / p.groups % f.bands * f.rows;
        rows[f.cut] = larger(0, smaller(f.rows, p.out_size[f.cut] - start[f.cut]));
    }

    /* Return where the band begins in y (B, |H|, O, …), of a group element and an output channel of the block. */
    index_t at(const Problem &p, index_t g, index_t o) const
    {
        const index_t map = (image * p.order + g) * p.out_channels + block * block_outputs(p) + o;
        return map * product(p.out_size) + (start[0] * p.out_size[1] + start[1]) * p.out_size[2];
    }
};

/* Copy what a band reads of a plane, and zeros around it. */
template <class S, typename E, typename T>
void fill_plane(const Problem &p, const Frame &f, const FrameBand &band, const E *x, T *to)
{
    memset(to, 0, f.plane * sizeof(T));
    for (index_t phase = 0; phase < phase_count(p); phase++, to += f.size) {
        index_t first[AXES], rest = phase;
        for (int axis = AXES - 1; axis >= 0; rest /= p.stride[axis], axis--)
            first[axis] = rest % p.stride[axis] + p.stride[axis] * band.start[axis] - p.padding[axis];
        auto inside = [&](int axis) { return Inside(first[axis], p.stride[axis], p.in_size[axis], f.extent[axis]); };
        const Inside slices = inside(0), rows = inside(1), columns = inside(2);
        const index_t stride = p.stride[2];
        for (index_t s = slices.low; s < slices.high; s++)
            for (index_t r = rows.low; r < rows.high; r++) {
                const index_t slice = p.stride[0] * s + first[0], row = p.stride[1] * r + first[1];
                const E *from = x + (slice * p.in_size[1] + row) * p.in_size[2] + first[2];
                T *line = to + (s * f.extent[1] + r) * f.extent[2];
                if (stride == 1)
                    copy_values<S>(columns.high - columns.low, from + columns.low, line + columns.low);
                else
                    for (index_t c = columns.low; c < columns.high; c++) line[c] = from[stride * c];
            }
    }
}

/* Return where a plane of the block begins in x (B, in_order, I, …). */
INLINE index_t input_map(const Problem &p, index_t image, index_t block, index_t i, index_t h)
{
    return ((image * p.in_order + h) * p.in_channels + block * block_inputs(p) + i) * product(p.in_size);
}

/* Copy what the band reads of its image. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
void fill_frame(const Problem &p, const Frame &f, const FrameBand &band, const M *x, T *frame)
{
    for (index_t i = 0; i < block_inputs(p); i++)
        for (index_t h = 0; h < p.in_order; h++)
            fill_plane<S>(p, f, band, x + input_map(p, band.image, band.block, i, h), frame + (i * p.in_order + h) * f.plane);
}

/* Find where in a frame each group element has each term, (order, step); those past the last repeat it, unread. */
template <typename T> void find_terms(const Problem &p, const Frame &f, const T *frame, const T **from)
{
    for (index_t g = 0; g < p.order; g++, from += f.step) {
        index_t term = 0;
        /* Planes are (i, h); h = 0 is the identity, which g moves to g. */
        for (index_t plane = 0; plane < planes_per_output(p); plane++)
            for (index_t k = 0; k < p.elements; k++) {
                index_t phase = 0, place = 0;
                for (int axis = 0; axis < AXES; axis++) {
                    const index_t offset = p.offset[AXES * (k * p.order + g) + axis];
                    phase = phase * p.stride[axis] + offset % p.stride[axis];
                    place = place * f.extent[axis] + offset / p.stride[axis];
                }
                const index_t read = plane / p.in_order * p.in_order + group_product(p, g, plane % p.in_order);
                from[term++] = frame + read * f.plane + phase * f.size + place;
            }
        for (; term < f.step; term++) from[term] = from[term - 1];
    }
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

/* sums[term] += Σ grad · from[term], a few terms at a time, and sums[terms] += Σ grad, over some pixels. */
template <class S, typename T = typename S::Scalar>
NOINLINE void sum_terms(index_t terms, index_t pixels, const T *grad, const T *const *from, T *sums)
{
    T totals[DIRECT_TERMS + 1];
    for (index_t start = 0; start < terms; start += DIRECT_TERMS) {
        typename S::Vector sum[DIRECT_TERMS + 1];
#pragma GCC unroll 10
        for (int k = 0; k <= DIRECT_TERMS; k++) sum[k] = typename S::Vector{};
        for (index_t c = 0; c < pixels; c += S::lanes) {
            typename S::Vector v = S::load(grad + c);
#pragma GCC unroll 9
            for (int k = 0; k < DIRECT_TERMS; k++) sum[k] += v * S::load(from[start + k] + c);
            sum[DIRECT_TERMS] += v;
        }
        for (int k = 0; k <= DIRECT_TERMS; k++) totals[k] = S::sum(sum[k]);
        for (int k = 0; k < smaller(DIRECT_TERMS, terms - start); k++) sums[start + k] += totals[k];
    }
    sums[terms] += totals[DIRECT_TERMS];
}

/* The gradient of y for one image and some outputs of a block, with zeros around it, (outputs, order, extent), from which dx
 * is read, or that of a separable layer's u with h = 0 alone:
 *
 *     dx[i,g·h](stride·t + f) = Σ_o Σ_g Σ_k w[o,i,h,k] dy[o,g](t + (f + padding - g·k) / stride),
 *
 * over the elements whose quotient is an integer, for each phase f. */
struct GradientFrame {
    index_t low[AXES], extent[AXES], size, values; /* zeros before the first pixel; of a plane; of all planes */
    index_t terms; /* of all phases and input planes of a channel */

    GradientFrame(const Problem &p, index_t pair) : size(1)
    {
        for (int axis = 0; axis < AXES; axis++) {
            const index_t stride = p.stride[axis], padding = p.padding[axis];
            low[axis] = larger(0, floor_div(reach(p, axis) - padding, stride));
            const index_t read = ceil_div(p.in_size[axis], stride) + (stride - 1 + padding) / stride;
            extent[axis] = low[axis] + larger(p.out_size[axis], read);
            size *= extent[axis];
        }
        values = round_up(outputs_per_input(p) * p.order * size + pair, pair);
        terms = outputs_per_input(p) * (p.kind == SEPARABLE ? 1 : p.order) * p.order * p.elements;
    }
};

/* The terms of dx of each phase f and input plane h, as they follow each other: where they are in a gradient frame, and
 * which entry of the weight (of input channel 0) they have. */
template <typename T> struct GradientTerms {
    Array<int32_t> count; /* (phases, order) */
    Array<const T *> from;
    Array<int32_t> entry;

    GradientTerms(Arena &arena, const Problem &p, index_t terms)
        : count(arena.take<int32_t>(phase_count(p) * p.order)), from(arena.take<const T *>(terms)),
          entry(arena.take<int32_t>(terms))
    {
    }

    void find(const Problem &p, const GradientFrame &f, const T *frame) const
    {
        index_t next = 0;
        for (index_t phase = 0; phase < phase_count(p); phase++)
            for (index_t plane = 0; plane < p.order; plane++) {
                const index_t first = next;
                for (index_t g = 0; g < p.order; g++) {
                    index_t h = 0;
                    if (p.kind == SEPARABLE && g != plane) continue;
                    while (p.kind != SEPARABLE && group_product(p, g, h) != plane) h++;
                    for (index_t k = 0; k < p.elements; k++) {
                        index_t place;
                        if (!place_of(p, f, phase, k, g, &place)) continue;
                        for (index_t o = 0; o < outputs_per_input(p); o++) {
                            from[next] = frame + (o * p.order + g) * f.size + place;
                            entry[next++] = (int32_t)((o * block_inputs(p) * p.order + h) * p.elements + k);
                        }
                    }
                }
                count[phase * p.order + plane] = (int32_t)(next - first);
            }
    }

private:
    /* Find where an element is read from, as the distance of a pixel of the phase; return whether it is read there. */
    static bool place_of(const Problem &p, const GradientFrame &f, index_t phase, index_t k, index_t g, index_t *place)
    {
        index_t quotient[AXES], rest = phase;
        for (int axis = AXES - 1; axis >= 0; rest /= p.stride[axis], axis--) {
            const index_t stride = p.stride[axis];
            const index_t ahead = rest % stride + p.padding[axis] - p.offset[AXES * (k * p.order + g) + axis];
            quotient[axis] = floor_div(ahead, stride);
            if (quotient[axis] * stride != ahead) return false;
        }
        *place = 0;
        for (int axis = 0; axis < AXES; axis++) *place = *place * f.extent[axis] + quotient[axis] + f.low[axis];
        return true;
    }
};

/* Copy the gradient of y of one image, from output `first` on; the zeros around it stay. */
template <class S, typename T = typename S::Scalar, typename M = typename S::Map>
void fill_gradient(const Problem &p, const GradientFrame &f, index_t image, index_t first, const M *grad, T *around)
{
    const index_t pixels = product(p.out_size);
    for (index_t o = 0; o < outputs_per_input(p); o++)
        for (index_t g = 0; g < p.order; g++, around += f.size) {
            const M *from = grad + ((image * p.order + g) * p.out_channels + first + o) * pixels;
            for (index_t s = 0; s < p.out_size[0]; s++)
                for (index_t r = 0; r < p.out_size[1]; r++, from += p.out_size[2]) {
                    T *to = around + ((s + f.low[0]) * f.extent[1] + r + f.low[1]) * f.extent[2] + f.low[2];
                    copy_values<S>(p.out_size[2], from, to);
                }
        }
}

/* One phase of a plane of dx, or of du: weighted rows of the gradient. */
template <class S, typename E, typename T = typename S::Scalar>
void write_phase(const Problem &p, const GradientFrame &f, index_t phase, const T *weights, const T *const *from,
                 index_t terms, E *row, E *dx)
{
    index_t first[AXES], size[AXES], rest = phase;
    for (int axis = AXES - 1; axis >= 0; rest /= p.stride[axis], axis--) {
        first[axis] = rest % p.stride[axis];
        size[axis] = ceil_div(larger(0, p.in_size[axis] - first[axis]), p.stride[axis]);
    }
    const E *none = nullptr;
    const index_t stride = p.stride[2];
    with_elements(terms, [&](auto count) INLINE_LAMBDA {
        for (index_t s = 0; s < size[0]; s++)
            for (index_t r = 0; r < size[1]; r++) {
                const index_t slice = p.stride[0] * s + first[0], line = p.stride[1] * r + first[1];
                E *to = dx + (slice * p.in_size[1] + line) * p.in_size[2] + first[2];
                const index_t at = (s * f.extent[1] + r) * f.extent[2];
                weighted_row<S>(weights, from, at, T(0), none, stride == 1 ? to : row, size[2], count);
                for (index_t c = 0; c < size[2] && stride > 1; c++) to[stride * c] = row[c];
            }
    });
}

} // namespace
