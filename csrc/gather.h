/* Pointwise convolutions of pixels of images: channel k·C + i of their input, of group element g, is
 *
 *     x[i](stride·q + g·k - padding).
 *
 * A lifting convolution is one, with one kernel element k for each orbit of the group: the pixels g·k, as a function of g,
 * are a feature map of the group. A filter of 49 pixels has ten orbits under p4m. The Fourier domain has 12 products for
 * each orbit, direct convolution 8 for each pixel. Pixels are gathered for one tile and channel at a time.
 */
#pragma once
#include "input_output.h"

namespace {

/* Return the pointwise convolution. */
Problem pointwise_of_gathered(const Problem &p)
{
    static const int32_t nowhere[MAX_ORDER * AXES] = {};
    Problem pointwise = p;
    pointwise.kind = DENSE;
    pointwise.in_order = p.order;
    pointwise.in_channels = p.elements * p.in_channels;
    pointwise.elements = 1;
    pointwise.offset = nowhere;
    for (int axis = 0; axis < AXES; axis++)
        pointwise.in_size[axis] = p.out_size[axis], pointwise.stride[axis] = 1, pointwise.padding[axis] = 0;
    return pointwise;
}

/* to[c] = from[first + stride·c] where that is one of `size` pixels, else 0. */
template <class S, typename M = typename S::Map>
INLINE void gather_row(const M *from, index_t size, index_t first, index_t stride, index_t count, M *to)
{
    const index_t begin = smaller(count, larger(0, ceil_div(larger(0, -first), stride)));
    const index_t end = larger(begin, smaller(count, floor_div(size - 1 - first, stride) + 1));
    index_t c = 0;
    for (; c < begin; c++) to[c] = 0;
    if (stride == 2)
        for (; c + S::lanes <= end && first + 2 * (c + S::lanes) <= size; c += S::lanes) {
            const M *at = from + first + 2 * c;
            S::store(to + c, S::even_places(S::load(at), S::load(at + S::lanes)));
        }
    with_stride(stride, [&](auto known) INLINE_LAMBDA {
        for (; c < end; c++) to[c] = from[first + c * known];
    });
    for (; c < count; c++) to[c] = 0;
}

/* Gather one channel of a tile: to (order, images, pixels of the tile). */
template <class S, typename M = typename S::Map>
NOINLINE void gather_channel(const Problem &p, const Tile &t, index_t channel, const M *x, M *to)
{
    const index_t k = channel / p.in_channels, i = channel % p.in_channels, plane = product(p.in_size);
    for (index_t g = 0; g < p.order; g++) {
        const int32_t *offset = p.offset + AXES * (k * p.order + g);
        index_t first[AXES];
        for (int axis = 0; axis < AXES; axis++)
            first[axis] = p.stride[axis] * t.in_start[axis] + offset[axis] - p.padding[axis];
        for (index_t image = t.first_image; image < t.first_image + t.images; image++) {
            const M *from = x + (image * p.in_channels + i) * plane;
            for (index_t s = 0; s < t.in_size[0]; s++)
                for (index_t r = 0; r < t.in_size[1]; r++, to += t.in_size[2]) {
                    const index_t slice = first[0] + p.stride[0] * s, row = first[1] + p.stride[1] * r;
                    const bool inside = slice >= 0 && slice < p.in_size[0] && row >= 0 && row < p.in_size[1];
                    gather_row<S>(from + (inside ? (slice * p.in_size[1] + row) * p.in_size[2] : 0),
                                  inside ? p.in_size[2] : 0, first[2], p.stride[2], t.in_size[2], to);
                }
        }
    }
}

} // namespace
