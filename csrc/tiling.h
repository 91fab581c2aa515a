/* How a convolution is cut into pieces that stay in a cache.
 *
 * A tile is a few images, or a band of one image along its first axis: the work that one thread takes. In a tile, products
 * are computed of a block of outputs and some columns at a time. Everything is stated for AXES axes; an image has one slice.
 */
#pragma once
#include "tuning.h"

namespace {

/* Channels that follow each other. */
struct Channels {
    index_t first, count;
};

/* Return the n-th of equal parts. */
INLINE Channels part_of(index_t channels, index_t n, index_t parts)
{
    const index_t first = channels * n / parts;
    return {first, channels * (n + 1) / parts - first};
}

/* ---- tiles ---- */

/* The axis along which images are cut into bands: the first that has more than one pixel. */
INLINE int band_axis(const Problem &p) { return p.in_size[0] == 1 && p.out_size[0] == 1 ? 1 : 0; }

/* How the work is divided: images in a tile, or bands of an image's output (forward) or input (backward); or all images
 * in one tile, whose output channels are divided among the threads. */
struct Division {
    index_t images, bands, tiles;
    bool by_outputs;
};

/* Return the elements that products are computed of: those of a separable filter are one. */
INLINE index_t product_elements(const Problem &p) { return p.kind == SEPARABLE ? 1 : p.elements; }

/* Return about as many values as the expanded filter of one output has. */
INLINE index_t filter_values(const Problem &p) { return p.in_channels * p.order * product_elements(p); }

/* Return how far the kernel reaches beyond its first pixel along an axis. */
INLINE index_t reach(const Problem &p, int axis)
{
    index_t most = 0;
    for (index_t i = 0; i < p.elements * p.order; i++) most = larger(most, p.offset[AXES * i + axis]);
    return most;
}

/* Return the values of one channel of an image in the planes of all phases: with zeros as far as the kernel reaches. */
index_t padded_values(const Problem &p)
{
    index_t values = 1;
    for (int axis = 0; axis < AXES; axis++) {
        index_t stride = p.stride[axis], padding = p.padding[axis];
        index_t by_output = p.out_size[axis] + larger(0, floor_div(reach(p, axis) - padding, stride));
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
    const index_t all = p.batch * pixels;
    if (all > 0 && all <= BY_OUTPUTS_PIXELS && p.out_channels * filter_values(p) > HELD_FILTER_VALUES)
        return {p.batch, 1, 1, true};
    Division d = {1, 1, 0, false};
    if (pixels > 2 * target)
        d.bands = ceil_div(pixels, target);
    else
        d.images = larger(1, target / larger(pixels, 1));
    /* Many tiles, but none of a few pixels if that leaves one for each thread. */
    const index_t most_images = larger(p.batch / (tiles_per_thread * p.threads), TILE_MIN_PIXELS / larger(pixels, 1));
    d.images = larger(1, smaller(d.images, smaller(most_images, p.batch / p.threads)));
    if (p.batch * d.bands < p.threads) d.bands = ceil_div(p.threads, p.batch);
    d.bands = larger(1, smaller(d.bands, rows / (band_axis(p) == 0 ? BAND_MIN_SLICES : BAND_MIN_ROWS)));
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

/* ---- blocks of outputs ---- */

/* Output channels, and columns of their products, that are computed at a time; and the step of the products' rows. */
struct Blocking {
    index_t outputs, columns, step;
};

/* Divide the products of a tile with that many values of a channel: more outputs at a time where there are few. */
template <class S>
Blocking blocking_of(const Problem &p, Pass pass, const Division &division, bool fused, index_t tile_values)
{
    const bool backward = pass == BACKWARD;
    const index_t elements = product_elements(p);
    index_t most = backward ? OUTPUTS_BACKWARD : fused ? OUTPUTS_FUSED : OUTPUTS_FORWARD; /* forward, planes of u take room */
    if (p.kind != SEPARABLE) most = larger(1, PRODUCT_ROWS / elements);
    const index_t values = backward ? PRODUCT_VALUES_BACKWARD : PRODUCT_VALUES_FORWARD;
    if (!fused) most = larger(most, values / (elements * p.order * larger(1, tile_values)));
    index_t divided = p.out_channels;
    if (division.by_outputs) {
        divided = ceil_div(divided, p.threads);
        most = smaller(most, larger(1, HELD_FILTER_VALUES / filter_values(p)));
    }
    const index_t outputs = equal_part_size(divided, most, 1);
    const index_t pairs = values / (elements * outputs * p.order) / S::pair;
    const index_t columns = smaller(PRODUCT_MAX_PAIRS, larger(PRODUCT_MIN_PAIRS, pairs)) * S::pair;
    return {outputs, columns, odd_multiple(columns, S::pair)};
}

} // namespace
