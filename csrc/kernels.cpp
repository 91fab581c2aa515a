/* Group convolutions on a CPU, in the group's Fourier domain, with everything between two maps in the cache.
 *
 * With H the fixed transform along the group axis (a scaled FourierBasis), t a tap and g·t the place to which g moves it,
 *
 *     y[o,g](q) = Σ_t u_t[o,g](stride·q + g·t - padding),     u_t = Hᵀ W_t H x,
 *
 * and W_t is block-diagonal: 12 multiplications a pair of channels in place of 64 for p4m. A gc layer has one u for all
 * taps and weights them. The filter of a g layer is multiplied out but for the blocks of size two, where its factors
 * take 4 + 2·taps multiplications a pair in place of 4·taps. The transform of x is made once a tile; a block of output
 * channels at a time, matrix products then make u a few hundred pixels at a time, and it is added to y, shifted, before
 * it leaves the cache. Backward, the output's gradient is read through the same shifts.
 *
 * Words used throughout:
 *   tile     a few images, or a band of rows of one image: the work that one thread takes;
 *   phase    the input pixels whose rows and columns leave one remainder by the stride; stride 1 has one phase;
 *   column   a pixel of a tile as the matrix products see it, phase after phase;
 *   plane    pixels of a tile with enough zeros between rows and images for a shift to be one offset for all of them.
 *
 * Maps lie in memory as (B, |H|, C, Y, X). Plain C, the widest vectors that the compiler's flags allow. Here stands what
 * knows no type of number; products.inl to convolution.inl compute the above, lifting.inl the step from the plane to
 * the group, norm.inl batch norm, and pooling.inl the pooling after it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#pragma GCC visibility push(default)
extern "C" {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define WIDE_BYTES 64 /* in matrix products; elsewhere rows of eight pixels are to fill a vector */
#define SUM_ROWS 6
#define COLUMNS 4
#define KEEPS_FACTORS 1 /* 32 registers hold the sums that this takes, 16 do not */
#else
#define WIDE_BYTES VECTOR_BYTES
#define SUM_ROWS 3
#define COLUMNS 2
#define KEEPS_FACTORS 0
#endif

#if defined(__AVX512F__) /* not read from memory by each product in turn */
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x) ((void)0)
#endif

#define INLINE static inline __attribute__((always_inline))
#define ORDER 8    /* largest order of a point group of the plane */
#define PHASES 9   /* strides up to 3 */
#define TAPS 49    /* kernels up to 7×7 */
#define ROWS 6     /* of a matrix product's register block, at most; it is COLUMNS wide vectors wide, at most */
#define TERMS 9    /* of a filter whose gradients are summed at a time */
#define FACTORED_TAPS 9 /* of a filter that may stay in factors */
#define WINDOWS 128 /* pooled at a time */

typedef int64_t index_t;

enum { DENSE = 0, SEPARABLE = 1, FACTORED = 2 }; /* gc is separable; g has factors */
enum { GENERAL = 0, CYCLIC4 = 4, DIHEDRAL4 = 8 };

/* One convolution. The same structure stands in library.py. */
typedef struct {
    index_t batch, in_channels, out_channels, height, width, out_height, out_width;
    index_t stride_y, stride_x, padding_y, padding_x, taps, kind, threads;
    index_t order, blocks, transform;
    const int32_t *block;   /* (blocks, 3): first row of the basis, size, copies */
    const int32_t *moved;   /* (taps, order, 2): row and column of each tap after each element has moved it */
    const double *basis;    /* (order, order): H */
    const double *irreps;   /* (Σ size², order): W[a,c] = Σ_k irrep[a,c,k] w[k], scaled to go with H */
    double eps;             /* of the batch norm */
    index_t batch_stats;    /* whether the norm's statistics are those of x, so that gradients pass through them */
    index_t wants_x, wants_filters; /* which gradients backward computes: of x and the norm; of the filters */
} Problem;

typedef struct {
    index_t first_image, images, in_row, in_rows, out_row, out_rows;
} Tile;

typedef struct {
    index_t row, column;               /* remainders */
    index_t rows, columns;             /* of its pixels in one image */
    index_t start, row_step, image_step, count; /* in columns of the tile; count is a multiple of the block's width */
    index_t taps, tap[TAPS];           /* those that some element moves into this phase */
} Phase;

typedef struct {
    index_t in_rows, out_rows, images, padding; /* what it was laid out for */
    index_t phases, columns;
    int square;                        /* one phase, and taps that every element moves to the same 3×3 pixels */
    Phase phase[PHASES];
    index_t row_step, image_step, margin, size;  /* of a plane */
    index_t shift[TAPS][ORDER];        /* from an output pixel to the input pixel, in a plane of its phase */
    int8_t phase_of[TAPS][ORDER];
} Layout;

INLINE index_t smaller(index_t a, index_t b) { return a < b ? a : b; }
INLINE index_t larger(index_t a, index_t b) { return a > b ? a : b; }
/* Rows of the next block of a product: the last two are about as high as each other. */
INLINE index_t block_rows(index_t rows, index_t most)
{
    return rows >= 2 * most ? most : rows > most ? (rows + 1) / 2 : rows;
}
INLINE index_t round_up(index_t a, index_t step) { return (a + step - 1) / step * step; }
/* The least number of parts, each at most so large and a multiple of step, if all are about as large as each other. */
INLINE index_t even_part(index_t all, index_t most, index_t step)
{
    index_t parts = larger(1, (all + most - 1) / most);
    return round_up(larger(1, (all + parts - 1) / parts), step);
}
INLINE index_t floor_div(index_t a, index_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

/* How the work is divided: images a tile, or bands of output (forward) or input (backward) rows. */
typedef struct { index_t images, bands, tiles; } Division;

/* Values of one channel of an image in the planes of all phases: with zeros as wide as the kernel reaches. */
static index_t plane_values(const Problem *p)
{
    index_t last_row = 0, last_column = 0;
    for (index_t i = 0; i < p->taps * p->order; i++) {
        last_row = larger(last_row, p->moved[2 * i]);
        last_column = larger(last_column, p->moved[2 * i + 1]);
    }
    index_t rows = larger(p->out_height + larger(0, floor_div(last_row - p->padding_y, p->stride_y)),
                          (p->height - 1) / p->stride_y + 1 - floor_div(-p->padding_y, p->stride_y));
    index_t columns = larger(p->out_width + larger(0, floor_div(last_column - p->padding_x, p->stride_x)),
                             (p->width - 1) / p->stride_x + 1 - floor_div(-p->padding_x, p->stride_x));
    return p->stride_y * p->stride_x * rows * columns;
}

static Division divide(const Problem *p, index_t rows, int backward)
{
    /* Benchmarks are flat around these sizes; the transforms of a tile are to stay in the second- and third-level cache.
     * Where a kernel reaches far beyond its images, or is padded far, the planes bound the tile: they are the workspace. */
    index_t pixels = larger(p->height * p->width, plane_values(p) / 4);
    index_t target = larger(256, smaller(backward ? 512 : 1024, 196608 / larger(1, p->order * p->in_channels)));
    Division d = {1, 1, 0};
    if (pixels > 2 * target)
        d.bands = (pixels + target - 1) / target;
    else
        d.images = larger(1, target / larger(pixels, 1));
    d.images = larger(1, smaller(d.images, p->batch / ((backward ? 2 : 4) * p->threads))); /* for threads to share evenly */
    if (p->batch * d.bands < p->threads)
        d.bands = (p->threads + p->batch - 1) / p->batch;
    d.bands = larger(1, smaller(d.bands, rows / 4));
    d.tiles = (p->batch + d.images - 1) / d.images * d.bands;
    return d;
}

/* Where one of several bands of the rows begins: at whole strides, so that all tiles have the same phases. */
INLINE index_t first_of(index_t rows, index_t band, index_t bands, index_t stride)
{
    return smaller(rows, round_up(rows * band / bands, stride));
}

/* The rows of the tile's input that its output reads (forward), or of its output that its input reaches (backward). */
static Tile tile_at(const Problem *p, const Division *d, index_t number, int backward)
{
    index_t band = number % d->bands, low = INT64_MAX, high = INT64_MIN;
    Tile t = {number / d->bands * d->images, 0, 0, 0, 0, 0};
    t.images = smaller(d->images, p->batch - t.first_image);
    for (index_t i = 0; i < p->taps * p->order; i++) {
        low = smaller(low, p->moved[2 * i] - p->padding_y);
        high = larger(high, p->moved[2 * i] - p->padding_y);
    }
    if (backward) {
        t.in_row = first_of(p->height, band, d->bands, p->stride_y);
        t.in_rows = first_of(p->height, band + 1, d->bands, p->stride_y) - t.in_row;
        t.out_row = larger(0, -floor_div(high - t.in_row, p->stride_y));
        t.out_rows = smaller(p->out_height, floor_div(t.in_row + t.in_rows - 1 - low, p->stride_y) + 1) - t.out_row;
    } else {
        t.out_row = first_of(p->out_height, band, d->bands, 1);
        t.out_rows = first_of(p->out_height, band + 1, d->bands, 1) - t.out_row;
        t.in_row = larger(0, floor_div(low, p->stride_y) + t.out_row) * p->stride_y;
        t.in_rows = smaller(p->height, p->stride_y * (t.out_row + t.out_rows - 1) + high + 1) - t.in_row;
    }
    t.in_rows = larger(0, t.in_rows);
    t.out_rows = larger(0, t.out_rows);
    if (!t.in_rows) t.in_row = 0;
    if (!t.out_rows) t.out_row = 0;
    return t;
}

/* Lay out a tile for vectors of `lanes` values; return whether anything changed. */
static int lay_out(const Problem *p, const Tile *t, index_t lanes, Layout *l)
{
    index_t s = p->stride_y, low[2] = {0, 0}, high[2] = {0, 0};
    /* Input row in_row + r reads as output row out_row + q through the tap at row r - stride·q + padding. */
    index_t padding = p->padding_y - s * t->out_row + t->in_row;
    if (l->images == t->images && l->in_rows == t->in_rows && l->out_rows == t->out_rows && l->padding == padding)
        return 0;
    l->images = t->images, l->in_rows = t->in_rows, l->out_rows = t->out_rows, l->padding = padding;
    l->phases = s * p->stride_x;
    for (index_t f = 0; f < l->phases; f++) {
        Phase *phase = &l->phase[f];
        phase->row = f / p->stride_x, phase->column = f % p->stride_x, phase->taps = 0;
        phase->rows = (larger(0, t->in_rows - phase->row) + s - 1) / s;
        phase->columns = (larger(0, p->width - phase->column) + p->stride_x - 1) / p->stride_x;
    }
    l->square = l->phases == 1 && p->taps == 9;
    for (index_t i = 0; i < 2 * p->taps * p->order; i++) l->square &= p->moved[i] < 3;
    index_t step[TAPS][ORDER][2];
    for (index_t tap = 0; tap < p->taps; tap++)
        for (index_t g = 0; g < p->order; g++) {
            const int32_t *place = p->moved + 2 * (tap * p->order + g);
            index_t row = place[0] - padding, column = place[1] - p->padding_x;
            step[tap][g][0] = floor_div(row, s), step[tap][g][1] = floor_div(column, p->stride_x);
            index_t f = (row - s * step[tap][g][0]) * p->stride_x + column - p->stride_x * step[tap][g][1];
            Phase *phase = &l->phase[f];
            l->phase_of[tap][g] = (int8_t)f;
            if (!phase->taps || phase->tap[phase->taps - 1] != tap) phase->tap[phase->taps++] = tap;
            for (int axis = 0; axis < 2; axis++) {
                low[axis] = smaller(low[axis], step[tap][g][axis]);
                high[axis] = larger(high[axis], step[tap][g][axis]);
            }
        }
    /* Wide enough that a shift out of a row ends in zeros, or where nobody reads; the first phase is the largest. */
    l->row_step = larger(p->out_width + high[1], l->phase[0].columns - low[1]);
    l->image_step = larger(t->out_rows + high[0], l->phase[0].rows - low[0]) * l->row_step;
    l->margin = larger(high[0], -low[0]) * l->row_step + larger(high[1], -low[1]);
    l->size = round_up(l->margin * 2 + t->images * l->image_step + 2 * lanes, lanes);
    for (index_t tap = 0; tap < p->taps; tap++)
        for (index_t g = 0; g < p->order; g++)
            l->shift[tap][g] = step[tap][g][0] * l->row_step + step[tap][g][1];
    l->columns = 0;
    for (index_t f = 0; f < l->phases; f++) {
        Phase *phase = &l->phase[f];
        /* Rows that fill vectors need no zeros between them; others are laid as in a plane. */
        phase->row_step = phase->columns % lanes ? l->row_step : phase->columns;
        phase->image_step = round_up(phase->rows * phase->row_step, lanes);
        phase->start = l->columns;
        phase->count = phase->taps ? round_up(t->images * phase->image_step, 2 * lanes) : 0;
        l->columns += phase->count;
    }
    /* Rows a multiple of many cache lines apart would all fall on the same few places of the cache. */
    if (l->columns / (2 * lanes) % 2 == 0) l->columns += 2 * lanes;
    if (l->size / lanes % 2 == 0) l->size += lanes;
    return 1;
}

INLINE index_t thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, SUFFIX)

/* Of some values: how many, their mean, and the sum of their squared deviations from it. */
typedef struct { double count, mean, squares; } Moments;

/* Join two sets of values (Chan, Golub and LeVeque, 1979). */
INLINE void join(Moments *m, Moments more)
{
    double count = m->count + more.count, step = more.mean - m->mean;
    if (more.count == 0) return;
    m->squares += more.squares + step * step * m->count * more.count / count;
    m->mean += step * more.count / count;
    m->count = count;
}

/* What family.inl includes is compiled once for each type. */
#define vector NAME(lanes)
#define LANES ((index_t)(VECTOR_BYTES / sizeof(REAL)))
#define WIDTH (2 * LANES) /* columns of a tile and of a strip come in such portions */
#define AT(pointer) (*(vector *)(pointer))
#define wide NAME(wide_lanes)
#define WIDE_LANES ((index_t)(WIDE_BYTES / sizeof(REAL)))
#define WIDE_AT(pointer) (*(wide *)(pointer))
#define mask __typeof__((vector){0} < (vector){0})
#define Thread NAME(thread)
#define Norm NAME(norm_of)
#define Affine NAME(affine)
#define Strip NAME(strip)
#define Filter NAME(filter_of)
#define Parts NAME(parts_of)
#define Room NAME(room_of)
#define Frame NAME(frame_of)
#define Pixels NAME(pixels)

#define REAL float
#define SUFFIX _f32
#include "family.inl"
#define REAL double
#define SUFFIX _f64
#include "family.inl"
#if WIDE_BYTES > VECTOR_BYTES /* once more, for rows that fill wide vectors */
#undef VECTOR_BYTES
#define VECTOR_BYTES WIDE_BYTES
#define REAL float
#define SUFFIX _f32_wide
#include "family.inl"
#define WIDE_ROWS (WIDE_BYTES / (index_t)sizeof(float))
#else
#define WIDE_ROWS 0
#endif

/* A multiple of how many values rows have to be for the functions named _wide; 0 if there are none. */
index_t wide_rows(void) { return WIDE_ROWS; }

/* Ask for large pages where so much is about to be written that the system hands out fresh memory for it. */
void expect_writes(void *start, index_t bytes)
{
#ifdef MADV_HUGEPAGE
    uintptr_t page = 4096, first = ((uintptr_t)start + page - 1) / page * page;
    uintptr_t last = ((uintptr_t)start + (uintptr_t)bytes) / page * page;
    if (last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* Whether the work is shared between threads. */
int threaded(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* For who loads the library: the same number and size stand in library.py, and change with what is told here. */
index_t version(void) { return 6; }
index_t problem_size(void) { return sizeof(Problem); }
}
#pragma GCC visibility pop
