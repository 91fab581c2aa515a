/* Where the pixels of a tile lie.
 *
 *   phase    the input pixels whose indices leave one remainder by the stride on each axis; stride 1 has one phase;
 *   column   a pixel of a tile as the matrix products see it, phase after phase;
 *   plane    the pixels of a tile with zeros between rows, slices and images, so that a shift by a kernel element is one
 *            offset for all of them.
 *
 * Columns follow each other as in a plane, so that a vector of them is one of a plane, too. Small maps would have products
 * of more zeros than pixels: their columns are packed, pixels alone, and each is moved to and from its place in a plane.
 */
#pragma once
#include "arena.h"
#include "tiling.h"

namespace {

constexpr int MAX_PHASES = MAX_STRIDE * MAX_STRIDE * MAX_STRIDE;

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
    index_t count;                                   /* of columns, whole wide vectors; unless packed, whole pairs */
};

/* ---- layouts ---- */

struct Layout {
    index_t images = -1, in_size[AXES], out_size[AXES], padding[AXES]; /* what it was made for */
    index_t phases, columns;
    bool packed; /* whether columns have nothing between them */
    Phase phase[MAX_PHASES];
    index_t slice_step, row_step, image_step, margin, size; /* of a plane */

    /* Lay out a tile for vectors of `lanes` values, and products of `wide` ones; return whether anything changed. */
    bool update(const Problem &p, const PhaseElements &elements, const Tile &t, index_t lanes, index_t wide)
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
        packed = packs(p, elements, lanes);
        place_columns(elements, lanes, wide);
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

    /* Write where in a plane each vector of columns lies; or each column, if they are packed. */
    void write_plane_offsets(index_t lanes, int32_t *plane_offset) const
    {
        if (packed) return write_places(plane_offset);
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

    /* Return the values of a plane from its margin to the end of the last image, in whole pairs of vectors. */
    INLINE index_t plane_values(index_t lanes) const { return round_up(images * image_step, 2 * lanes); }

    /* Whether no output reads the pixels of some phase. */
    INLINE bool has_unread_pixels() const
    {
        bool unread = false;
        for (index_t f = 0; f < phases; f++) unread |= !phase[f].count;
        return unread;
    }

private:
    /* Write where in a plane each packed column lies. */
    void write_places(int32_t *place) const
    {
        for (index_t f = 0; f < phases; f++) {
            const Phase &ph = phase[f];
            int32_t *next = place + ph.start, *end = next + ph.count;
            for (index_t image = 0; image < images && ph.count; image++)
                for (index_t s = 0; s < ph.size[0]; s++)
                    for (index_t r = 0; r < ph.size[1]; r++)
                        for (index_t c = 0; c < ph.size[2]; c++)
                            *next++ = (int32_t)(margin + image * image_step + s * slice_step + r * row_step + c);
            while (next < end) *next++ = (int32_t)(margin + images * image_step); /* past the last image */
        }
    }

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

    /* Whether packed columns cost less, in products of an image and in moves; bands of it are all alike. */
    bool packs(const Problem &p, const PhaseElements &elements, index_t lanes) const
    {
        index_t pixels = 0, padded = 0;
        for (index_t f = 0; f < phases; f++)
            if (elements.count[f]) {
                pixels += product(phase[f].size);
                padded += phase[f].size[0] * padded_slice(phase[f], lanes);
            }
        return padded * p.in_channels > pixels * (p.in_channels + PACKING_CHANNELS);
    }

    /* Rows that fill vectors need no zeros between them; others lie as in a plane. */
    INLINE index_t padded_row(const Phase &ph, index_t lanes) const { return ph.size[2] % lanes ? row_step : ph.size[2]; }
    INLINE index_t padded_slice(const Phase &ph, index_t lanes) const
    {
        return round_up(ph.size[1] * padded_row(ph, lanes), lanes);
    }

    void place_columns(const PhaseElements &elements, index_t lanes, index_t wide)
    {
        columns = 0;
        for (index_t f = 0; f < phases; f++) {
            Phase &ph = phase[f];
            ph.row_step = packed ? ph.size[2] : padded_row(ph, lanes);
            ph.slice_step = packed ? ph.size[1] * ph.size[2] : padded_slice(ph, lanes);
            ph.image_step = ph.size[0] * ph.slice_step;
            ph.start = columns;
            ph.count = elements.count[f] ? round_up(images * ph.image_step, packed ? wide : 2 * lanes) : 0;
            columns += ph.count;
        }
        columns = odd_multiple(round_up(columns, 2 * lanes), 2 * lanes);
    }
};

} // namespace
