/* Buffers of one thread, and their preparation for a tile. */
#pragma once
#include "filters.h"
#include "group_transform.h"

namespace {

/* Sizes that hold for every tile of a convolution. */
template <class S> struct Plan {
    Pass pass;
    Division division;
    bool fused;          /* gc layers whose products and transform are one step (fused_gc.h) */
    bool packed = false; /* whether columns of some tile are */
    Blocking blocking;
    index_t columns = 0, plane = 0; /* of the largest tile; of a plane */
    index_t gathered;               /* pixels of the largest tile, if they are gathered */
    index_t blocks, held_blocks;    /* of the filter; of those outputs whose filters a thread holds, by outputs */

    Plan(const Problem &p, const PhaseElements &elements, Pass of_pass, bool fuses, bool gathers)
        : pass(of_pass), division(divide(p, pass)), fused(fuses && pass != BACKWARD && !division.by_outputs), gathered(0)
    {
        Layout layout;
        for (index_t band = 0; band < division.bands; band++) { /* later tiles have as many images, or fewer */
            const Tile tile = tile_at(p, division, band, pass);
            layout.update(p, elements, tile, S::lanes, S::wide_lanes);
            if (gathers) gathered = larger(gathered, tile.images * product(tile.in_size));
            columns = larger(columns, layout.columns);
            packed = packed || layout.packed;
            plane = larger(plane, round_up(layout.size, S::pair));
        }
        blocking = blocking_of<S>(p, pass, division, fused, larger(columns, plane / 2));
        const index_t interleaved = fuses && pass != BACKWARD ? p.out_channels * p.in_channels * p.order : 0;
        blocks = round_up(blocks_size(p, elements, p.out_channels) + interleaved, S::pair);
        held_blocks = division.by_outputs ? round_up(blocks_size(p, elements, blocking.outputs), S::pair) : 0;
    }
};

template <class S> struct Thread {
    using T = typename S::Scalar;
    Array<int32_t> plane_offset; /* of each vector of columns, or of each column if they are packed */
    Array<int32_t> whole_plane;  /* the same of each vector of a plane, for packed columns moved to one */
    Array<index_t> shift;        /* (elements, order): from an output pixel to the input pixel, in a plane of its phase */
    Array<typename S::Map> gathered; /* one channel of a tile, (order, images, pixels) */
    Array<T> x_fourier;          /* H x, (order, I, columns), or as fused products read it; by outputs, that of all threads */
    Array<T> x_fourier_grad;     /* by outputs, that of a part of them, in shared memory */
    Array<T> gemm_out;           /* products of a block of outputs, (order, outputs × elements, step) */
    Array<T> padded_out;         /* planes of y or its gradient, of a block of outputs, (outputs, order, plane) */
    Array<T> padded_mid;         /* planes of u, of a separable layer, (phases, outputs, order, plane) */
    Array<T> mid_plane;          /* a plane of u for packed columns, backward; zeros but in use */
    Array<T> other_phase;        /* one plane, for shifts that have another phase: zeros to read; writes are discarded */
    FilterChannels<S> filter_channels;
    Array<T> held_blocks, held_dblocks; /* filters of a block of outputs, and their gradients; by outputs */
    Layout layout;
    T *dblocks, *ddepthwise, *dnorm; /* gradients of the tiles of a part: of the blocks; (O, …); (2, I) */

    Thread(Arena &arena, const Problem &p, const Plan<S> &plan)
        : plane_offset(arena.take<int32_t>(plan.columns / (plan.packed ? 1 : S::lanes))),
          whole_plane(arena.take<int32_t>(plan.packed ? plan.plane / S::lanes : 0)),
          shift(arena.take<index_t>(p.elements * p.order)),
          gathered(arena.take<typename S::Map>(p.order * plan.gathered)),
          x_fourier(arena.take<T>(plan.division.by_outputs ? 0 : p.order * p.in_channels * plan.columns)),
          x_fourier_grad(arena.take<T>(plan.pass == BACKWARD ? x_fourier.size : 0)),
          gemm_out(arena.take<T>(plan.fused ? 0 : p.order * rows(p, plan) * plan.blocking.step)),
          padded_out(arena.take<T>(has_mid(p, plan) ? 0 : planes(p, plan))),
          padded_mid(arena.take<T>(has_mid(p, plan) ? phase_count(p) * planes(p, plan) : 0)),
          mid_plane(arena.take<T>(plan.packed && plan.pass == BACKWARD ? plan.plane : 0)),
          other_phase(arena.take<T>(plan.plane)), filter_channels(arena, p),
          held_blocks(arena.take<T>(plan.held_blocks)),
          held_dblocks(arena.take<T>(plan.pass == BACKWARD ? plan.held_blocks : 0))
    {
    }

    /* Lay a tile out, and put zeros wherever this layout has them. */
    void prepare(const Problem &p, const PhaseElements &elements, const Tile &t)
    {
        if (!layout.update(p, elements, t, S::lanes, S::wide_lanes)) return;
        layout.write_plane_offsets(S::lanes, plane_offset);
        for (index_t v = 0; v < whole_plane.size; v++) whole_plane[v] = (int32_t)(layout.margin + v * S::lanes);
        mid_plane.clear();
        layout.write_shifts(p, shift);
        x_fourier.clear();
        padded_out.clear();
        padded_mid.clear();
        other_phase.clear();
    }

private:
    static index_t rows(const Problem &p, const Plan<S> &plan) { return plan.blocking.outputs * product_elements(p); }
    static index_t planes(const Problem &p, const Plan<S> &plan) { return plan.blocking.outputs * p.order * plan.plane; }
    static bool has_mid(const Problem &p, const Plan<S> &plan) { return p.kind == SEPARABLE && plan.pass != BACKWARD; }
};

} // namespace
