/* How a convolution is cut into pieces that stay in a cache, and where the pixels of a piece lie.
 *
 *   tile     a few images, or a band of one image along its first axis: the work that one thread takes;
 *   phase    the input pixels whose indices leave one remainder by the stride on each axis; stride 1 has one phase;
 *   column   a pixel of a tile as the matrix products see it, phase after phase;
 *   plane    the pixels of a tile with zeros between rows, slices and images, so that a shift by a kernel element is one
 *            offset for all of them.
 *
 * Everything is stated for AXES axes; an image has one slice.
 */
#pragma once
#include "arena.h"
#include "tuning.h"

namespace {

constexpr int MAX_PHASES = MAX_STRIDE * MAX_STRIDE * MAX_STRIDE;

/* ---- tiles ---- */

/* The axis along which images are cut into bands: the first that has more than one pixel. */
INLINE int band_axis(const Problem &p) { return p.in_size[0] == 1 && p.out_size[0] == 1 ? 1 : 0; }

/* How the work is divided: images in a tile, or bands of an image's output (forward) or input (backward). */
struct Division {
    index_t images, bands, tiles;
};

/* Return the values of one channel of an image in the planes of all phases: with zeros as far as the kernel reaches. */
index_t padded_values(const Problem &p)
{
    index_t values = 1;
    for (int axis = 0; axis < AXES; axis++) {
        index_t last = 0, stride = p.stride[axis], padding = p.padding[axis];
        for (index_t i = 0; i < p.elements * p.order; i++) last = larger(last, p.offset[AXES * i + axis]);
        index_t by_output = p.out_size[axis] + larger(0, floor_div(last - padding, stride));
        index_t by_input = (p.in_size[axis] - 1) / stride + 1 - floor_div(-padding, stride);
        values *= stride * larger(by_output, by_input);
    }
    return values;
}

Division divide(const Problem &p, Pass pass)
{
    const bool backward = pass == BACKWARD;
    const index_t rows = (backward ? p.in_size : p.out_size)[band_axis(p)];
    /* Where a kernel reaches far beyond its images, or is padded far, the planes bound the tile: they are the workspace. */
    const index_t pixels = larger(product(p.in_size), padded_values(p) / 4);
    const index_t most = backward ? TILE_PIXELS_BACKWARD : TILE_PIXELS_FORWARD;
    const index_t target = larger(TILE_MIN_PIXELS, smaller(most, TILE_VALUES / larger(1, p.order * p.in_channels)));
    const index_t tiles_per_thread = backward ? TILES_PER_THREAD_BACKWARD : TILES_PER_THREAD_FORWARD;
    Division d = {1, 1, 0};
    if (pixels > 2 * target)
        d.bands = ceil_div(pixels, target);
    else
        d.images = larger(1, target / larger(pixels, 1));
    d.images = larger(1, smaller(d.images, p.batch / (tiles_per_thread * p.threads)));
    if (p.batch * d.bands < p.threads) d.bands = ceil_div(p.threads, p.batch);
    d.bands = larger(1, smaller(d.bands, rows / BAND_MIN_ROWS));
    d.tiles = ceil_div(p.batch, d.images) * d.bands;
    return d;
}

struct Tile {
    index_t first_image, images;
    index_t in_start[AXES], in_size[AXES], out_start[AXES], out_size[AXES];
};

/* Return where one of several bands begins: at whole strides, so that all tiles have the same phases. */
INLINE index_t band_start(index_t rows, index_t band, index_t bands, index_t stride)
{
    return smaller(rows, round_up(rows * band / bands, stride));
}

/* Return the tile of a number: the input that its output reads (forward), or the output that its input reaches (backward). */
Tile tile_at(const Problem &p, const Division &d, index_t number, Pass pass)
{
    const int cut = band_axis(p);
    const index_t band = number % d.bands, stride = p.stride[cut], height = p.in_size[cut], out_height = p.out_size[cut];
    index_t low = INT64_MAX, high = INT64_MIN; /* of the input rows that an output row reads */
    for (index_t i = 0; i < p.elements * p.order; i++) {
        low = smaller(low, p.offset[AXES * i + cut] - p.padding[cut]);
        high = larger(high, p.offset[AXES * i + cut] - p.padding[cut]);
    }
    index_t in_start, in_end, out_start, out_end;
    if (pass == BACKWARD) {
        in_start = band_start(height, band, d.bands, stride);
        in_end = band_start(height, band + 1, d.bands, stride);
        out_start = larger(0, -floor_div(high - in_start, stride));
        out_end = smaller(out_height, floor_div(in_end - 1 - low, stride) + 1);
    } else {
        out_start = band_start(out_height, band, d.bands, 1);
        out_end = band_start(out_height, band + 1, d.bands, 1);
        in_start = larger(0, floor_div(low, stride) + out_start) * stride;
        in_end = smaller(height, stride * (out_end - 1) + high + 1);
    }
    Tile t = {number / d.bands * d.images, 0, {}, {}, {}, {}};
    t.images = smaller(d.images, p.batch - t.first_image);
    for (int axis = 0; axis < AXES; axis++) t.in_size[axis] = p.in_size[axis], t.out_size[axis] = p.out_size[axis];
    t.in_size[cut] = larger(0, in_end - in_start);
    t.out_size[cut] = larger(0, out_end - out_start);
    t.in_start[cut] = t.in_size[cut] ? in_start : 0;
    t.out_start[cut] = t.out_size[cut] ? out_start : 0;
    return t;
}

/* ---- phases ---- */

INLINE index_t phase_count(const Problem &p) { return product(p.stride); }

/* The kernel elements that some group element moves into each phase, the same in all tiles. */
struct PhaseElements {
    index_t phases, count[MAX_PHASES] = {};
    const int32_t *element[MAX_PHASES]; /* (count) of each phase */
    Array<int8_t> phase;                /* (elements, order) */

    PhaseElements(Arena &arena, const Problem &p)
        : phases(phase_count(p)), phase(arena.take<int8_t>(p.elements * p.order))
    {
        if (phases == 1)
            count[0] = p.elements;
        else
            for (index_t k = 0; k < p.elements; k++) {
                uint32_t reached = phases_of(p, k);
                for (index_t f = 0; f < phases; f++) count[f] += reached >> f & 1;
            }
        index_t total = 0;
        for (index_t f = 0; f < phases; f++) total += count[f];
        Array<int32_t> lists = arena.take<int32_t>(total);
        if (arena.measures()) return;
        int32_t *next = lists;
        for (index_t f = 0; f < phases; f++) {
            element[f] = next;
            for (index_t k = 0; k < p.elements; k++)
                if (phases_of(p, k) >> f & 1) *next++ = (int32_t)k;
        }
        for (index_t i = 0; i < p.elements * p.order; i++) phase[i] = (int8_t)phase_of(p, i);
    }

private:
    index_t phase_of(const Problem &p, index_t i) const
    {
        index_t f = 0;
        if (phases == 1) return 0;
        for (int axis = 0; axis < AXES; axis++) {
            index_t place = p.offset[AXES * i + axis] - p.padding[axis], stride = p.stride[axis];
            f = f * stride + place - stride * floor_div(place, stride);
        }
        return f;
    }
    uint32_t phases_of(const Problem &p, index_t k) const
    {
        uint32_t reached = 0;
        for (index_t g = 0; g < p.order; g++) reached |= (uint32_t)1 << phase_of(p, k * p.order + g);
        return reached;
    }
};

struct Phase {
    index_t remainder[AXES];
    index_t size[AXES];                              /* of its pixels in one image of the tile */
    index_t slice_step, row_step, image_step, start; /* in columns of the tile */
    index_t count;                                   /* of columns, a multiple of S::pair */
};

/* ---- layouts ---- */

/* Where the pixels of a tile lie. */
struct Layout {
    index_t images = -1, in_size[AXES], out_size[AXES], padding[AXES]; /* what it was made for */
    index_t phases, columns;
    Phase phase[MAX_PHASES];
    index_t slice_step, row_step, image_step, margin, size; /* of a plane */

    /* Lay out a tile for vectors of `lanes` values; return whether anything changed. */
    bool update(const Problem &p, const PhaseElements &elements, const Tile &t, index_t lanes)
    {
        index_t new_padding[AXES], same = images == t.images;
        for (int axis = 0; axis < AXES; axis++) {
            /* Input pixel in_start + r reads as output pixel out_start + q through offset r - stride·q + padding. */
            new_padding[axis] = p.padding[axis] - p.stride[axis] * t.out_start[axis] + t.in_start[axis];
            same = same && in_size[axis] == t.in_size[axis] && out_size[axis] == t.out_size[axis]
                && padding[axis] == new_padding[axis];
        }
        if (same) return false;
        images = t.images;
        for (int axis = 0; axis < AXES; axis++)
            in_size[axis] = t.in_size[axis], out_size[axis] = t.out_size[axis], padding[axis] = new_padding[axis];
        find_phases(p);
        place_planes(p, lanes);
        place_columns(elements, lanes);
        return true;
    }

    /* Return the pixels along an axis from an output pixel to the input pixel of the same phase that offset i reads. */
    INLINE index_t step(const Problem &p, index_t i, int axis) const
    {
        return floor_div(p.offset[AXES * i + axis] - padding[axis], p.stride[axis]);
    }

    /* Write the same as offsets in a plane, (elements, order). */
    void write_shifts(const Problem &p, index_t *shift) const
    {
        for (index_t i = 0; i < p.elements * p.order; i++)
            shift[i] = step(p, i, 0) * slice_step + step(p, i, 1) * row_step + step(p, i, 2);
    }

    /* Write where in a plane each vector of columns lies. */
    void write_plane_offsets(index_t lanes, int32_t *plane_offset) const
    {
        for (index_t f = 0; f < phases; f++) {
            const Phase &ph = phase[f];
            for (index_t c = 0; c < ph.count; c += lanes) {
                index_t image = c / ph.image_step, place = images * image_step; /* past the last image */
                if (image < images) {
                    index_t in_image = c - image * ph.image_step, in_slice = in_image % ph.slice_step;
                    place = image * image_step + in_image / ph.slice_step * slice_step
                        + in_slice / ph.row_step * row_step + in_slice % ph.row_step;
                }
                plane_offset[(ph.start + c) / lanes] = (int32_t)(margin + place);
            }
        }
    }

private:
    void find_phases(const Problem &p)
    {
        phases = phase_count(p);
        for (index_t f = 0; f < phases; f++) {
            index_t rest = f;
            for (int axis = AXES - 1; axis >= 0; rest /= p.stride[axis], axis--) {
                phase[f].remainder[axis] = rest % p.stride[axis];
                phase[f].size[axis] = ceil_div(larger(0, in_size[axis] - phase[f].remainder[axis]), p.stride[axis]);
            }
        }
    }

    /* Wide enough that a shift out of a row ends in zeros, or where nobody reads; the first phase is the largest. */
    void place_planes(const Problem &p, index_t lanes)
    {
        index_t reach[AXES], extent[AXES];
        for (int axis = 0; axis < AXES; axis++) {
            index_t low = 0, high = 0;
            for (index_t i = 0; i < p.elements * p.order; i++) {
                const index_t pixels = step(p, i, axis);
                low = smaller(low, pixels), high = larger(high, pixels);
            }
            reach[axis] = larger(high, -low);
            extent[axis] = larger(out_size[axis] + high, phase[0].size[axis] - low);
        }
        row_step = extent[2];
        slice_step = extent[1] * row_step;
        image_step = extent[0] * slice_step;
        margin = reach[0] * slice_step + reach[1] * row_step + reach[2];
        size = odd_multiple(round_up(margin * 2 + images * image_step + 2 * lanes, lanes), lanes);
    }

    /* Rows that fill vectors need no zeros between them; others lie as in a plane. */
    void place_columns(const PhaseElements &elements, index_t lanes)
    {
        columns = 0;
        for (index_t f = 0; f < phases; f++) {
            Phase &ph = phase[f];
            ph.row_step = ph.size[2] % lanes ? row_step : ph.size[2];
            ph.slice_step = round_up(ph.size[1] * ph.row_step, lanes);
            ph.image_step = ph.size[0] * ph.slice_step;
            ph.start = columns;
            ph.count = elements.count[f] ? round_up(images * ph.image_step, 2 * lanes) : 0;
            columns += ph.count;
        }
        columns = odd_multiple(columns, 2 * lanes);
    }
};

/* ---- blocks of outputs ---- */

/* Output channels, and columns of their products, that are computed at a time; and the step of the products' rows. */
struct Blocking {
    index_t outputs, columns, step;
};

INLINE index_t product_elements(const Problem &p) { return p.kind == SEPARABLE ? 1 : p.elements; }

template <class S> Blocking blocking_of(const Problem &p, Pass pass, bool fused)
{
    const bool backward = pass == BACKWARD;
    const index_t elements = product_elements(p);
    index_t most = backward ? OUTPUTS_BACKWARD : fused ? OUTPUTS_FUSED : OUTPUTS_FORWARD; /* forward, planes of u take room */
    if (p.kind != SEPARABLE) most = larger(1, PRODUCT_ROWS / elements);
    const index_t outputs = even_part(p.out_channels, most, 1);
    const index_t values = backward ? PRODUCT_VALUES_BACKWARD : PRODUCT_VALUES_FORWARD;
    const index_t pairs = values / (elements * outputs * p.order) / S::pair;
    const index_t columns = smaller(PRODUCT_MAX_PAIRS, larger(PRODUCT_MIN_PAIRS, pairs)) * S::pair;
    return {outputs, columns, odd_multiple(columns, S::pair)};
}

} // namespace
